"""Distinguishable sources of spliced videos, and the source of each frame."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from yt8m.synthetic.splice import Sources
from yt8m.vocabulary import Vocabulary

CLASSES = Vocabulary(np.array([13, 3, 8, 5]), ("thirteen", "three", "eight", "five"))


def dequantized(frames: NDArray[np.uint8]) -> NDArray[np.float64]:
    return frames.astype(np.float64) * (4 / 255) + 4 / 512 - 2


def distinct_sources(count: int) -> Sources:
    """Sources whose means are different corners of a cube, so that the source of a noisy frame can be identified."""
    means = np.where(np.random.default_rng(5).random((count, 1152)) < 0.5, -0.8, 0.8).astype(np.float32)
    return Sources(means, tuple(np.array([[13, 3, 8, 5][i % 4], 100 + i]) for i in range(count)))


def owners(frames: NDArray[np.uint8], sources: Sources) -> list[int]:
    """The nearest source of each frame."""
    return [int(i) for i in (dequantized(frames) @ sources.means.T).argmax(1)]
