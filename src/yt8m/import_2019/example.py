"""Compare an imported model with the original's probabilities."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from yt8m.errors import UsageError, Yt8mError
from yt8m.models.classifier import (
    Classifier,
    ContextAwareClassifier,
    ContextAwareClassifierConfig,
    VideoClassifierConfig,
)
from yt8m.models.layers.input import FRAME_SIZE

TOLERANCE = 1e-5
"""How far a probability of an imported model may be from the original's."""

_CROP = slice(30, -10)
"""Frames of a video that its networks see."""

_BATCH = 32
"""Examples computed at once."""


@dataclass(frozen=True)
class Example:
    """What a model of 2019 made of some videos.

    Args:
        path: The file, for messages.
        video: uint8 (B, T, D), whole videos of one length; None where the file has none.
        segment: uint8 (B, T, D), a segment of each with its margins; None where the file has none.
        probabilities: (B, C).
    """

    path: Path
    video: NDArray[np.uint8] | None
    segment: NDArray[np.uint8] | None
    probabilities: NDArray[np.floating]


def read_example(path: Path) -> Example:
    """Read an example: a NumPy archive of `video` and `segment` (uint8), and `probabilities`.

    Raises:
        UsageError: There is no such file.
        Yt8mError: It is no such archive, or its arrays do not go together.
    """
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file.")
    try:
        # Opened here, since NumPy leaves a file open that turns out to be none of its own.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in ("video", "segment", "probabilities") if name in archive}
    # An array of the .npy format is no archive (TypeError, AttributeError); NumPy passes on what zipfile raises.
    except Exception as error:
        raise Yt8mError(f"{path}: cannot be read as a NumPy archive, .npz ({type(error).__name__}).") from None
    probabilities = arrays.pop("probabilities", None)
    if probabilities is None or probabilities.dtype.kind != "f" or probabilities.ndim != 2 or not len(probabilities):
        raise Yt8mError(f"{path}: expected an array 'probabilities' of floats, a row an example and a column a class.")
    for name, array in arrays.items():
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[::2] != (len(probabilities), FRAME_SIZE):
            raise Yt8mError(
                f"{path}: expected {name!r} as bytes, {len(probabilities)} x frames x {FRAME_SIZE}, found "
                f"{array.dtype} {' x '.join(map(str, array.shape))}."
            )
    return Example(path, arrays.get("video"), arrays.get("segment"), probabilities)


def largest_difference(model: Classifier, example: Example) -> float:
    """How far the probabilities of a model are from those of an example, at most.

    Args:
        model: A classifier in eval mode.
        example: What the original made of the same videos.

    Raises:
        Yt8mError: The example is not one for such a model.
    """
    num_classes = example.probabilities.shape[1]
    if num_classes != model.num_classes:
        raise Yt8mError(
            f"{example.path}: has probabilities of {num_classes:,} classes, the model {model.num_classes:,}."
        )
    kind, config = model.config.kind, model.config
    inputs = []
    if not isinstance(config, VideoClassifierConfig) or kind == "agnostic":
        inputs.append(_frames(example, "segment"))
    if isinstance(config, ContextAwareClassifierConfig):
        inputs.append(_seen(example, config.context_encoder.max_frames))
    elif kind == "video":
        inputs.append(_seen(example, config.encoder.max_frames))
    worst = 0.0
    for start in range(0, len(example.probabilities), _BATCH):
        rows = slice(start, start + _BATCH)
        batch = [(part := torch.from_numpy(array[rows]), torch.full((len(part),), part.shape[1])) for array in inputs]
        with torch.no_grad():
            if isinstance(model, ContextAwareClassifier):
                logits = model(*batch[0], model.encode_context(*batch[1]))
            else:
                logits = model(*batch[0])
        expected = torch.from_numpy(example.probabilities[rows].astype(np.float64))
        difference = (torch.sigmoid(logits).double() - expected).abs().max().item()
        # A probability that is no number is as wrong as can be.
        worst = max(worst, difference) if math.isfinite(difference) else math.inf
    return worst


def _frames(example: Example, name: Literal["video", "segment"]) -> NDArray[np.uint8]:
    array: NDArray[np.uint8] | None = getattr(example, name)
    if array is None or not array.shape[1]:
        raise Yt8mError(f"{example.path}: has no frames under {name!r}, which a model of this kind looks at.")
    return array


def _seen(example: Example, max_frames: int) -> NDArray[np.uint8]:
    """The frames of whole videos that the original looks at, where it takes all of them."""
    videos = _frames(example, "video")[:, _CROP]
    if not 0 < videos.shape[1] <= max_frames:
        raise Yt8mError(
            f"{example.path}: its videos keep {videos.shape[1]} frames without the first 30 and the last 10; expected 1 "
            f"to {max_frames}, since of more than its max_len the original picks at random."
        )
    return videos
