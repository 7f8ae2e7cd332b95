"""Damaged copies of a file's bytes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def mutations(content: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """Truncated, flipped, overwritten, cut and extended copies; damage is mostly near the beginning, where headers are."""
    generator = np.random.default_rng(seed)
    for number in range(count):
        size = len(content)
        end = size if number % 2 else min(size, 200)
        damaged = bytearray(content)
        at = int(generator.integers(0, end))
        kind = number % 5
        if kind == 0:
            del damaged[at:]
        elif kind == 1:
            damaged[at] ^= 1 << int(generator.integers(8))
        elif kind == 2:
            part = generator.bytes(int(generator.integers(1, 9)))
            damaged[at : at + len(part)] = part
        elif kind == 3:
            del damaged[at : at + int(generator.integers(1, 9))]
        else:
            damaged[at:at] = generator.bytes(int(generator.integers(1, 9)))
        yield bytes(damaged)
