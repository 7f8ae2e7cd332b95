"""Comparison of an imported model with the probabilities that the original predicts for example videos.

Shapes: B examples, T frames, D=1152 features, C classes.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from yt8m.errors import UsageError, Yt8mError
from yt8m.features import YOUTUBE8M
from yt8m.models.classifier import Classifier, ContextAgnosticClassifier, ContextAwareClassifier

TOLERANCE = 1e-5
"""Largest allowed difference of a probability from the original's."""

_CROP_START, _CROP_END = 30, 10
"""Frames at the start and end of a video that the networks do not see."""

_BATCH_SIZE = 32


@dataclass(frozen=True)
class Example:
    """Predictions of a 2019 model for some videos.

    Args:
        path: The file, for messages.
        video: Complete videos of equal length, uint8 (B, T, D), or None.
        segment: A segment of each with its margins, uint8 (B, T, D), or None.
        probabilities: Probabilities that the original predicts, (B, C).
    """

    path: Path
    video: NDArray[np.uint8] | None
    segment: NDArray[np.uint8] | None
    probabilities: NDArray[np.floating]


def read_example(path: Path) -> Example:
    """Read an example: a NumPy archive of `video` and `segment` (uint8), and `probabilities`.

    Raises:
        UsageError: There is no such file.
        Yt8mError: It is not such an archive, or the shapes of its arrays do not match.
    """
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file.")
    try:
        # Opened here, since NumPy does not close a file that it cannot read.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in ("video", "segment", "probabilities") if name in archive}
    # A .npy file is not an archive (TypeError, AttributeError), and zipfile raises errors of many types.
    except Exception as error:
        raise Yt8mError(f"{path}: cannot be read as a NumPy archive, .npz ({type(error).__name__}).") from None
    probabilities = arrays.pop("probabilities", None)
    if probabilities is None or probabilities.dtype.kind != "f" or probabilities.ndim != 2 or not len(probabilities):
        raise Yt8mError(f"{path}: expected an array 'probabilities' of floats, examples x classes.")
    for name, array in arrays.items():
        if (
            array.dtype != np.uint8
            or array.ndim != 3
            or array.shape[::2] != (len(probabilities), YOUTUBE8M.frame_bytes)
        ):
            raise Yt8mError(
                f"{path}: expected {name!r} as bytes, {len(probabilities)} x frames x {YOUTUBE8M.frame_bytes}, found "
                f"{array.dtype} {' x '.join(map(str, array.shape))}."
            )
    return Example(path, arrays.get("video"), arrays.get("segment"), probabilities)


def largest_difference(model: Classifier, example: Example) -> float:
    """Largest difference of a model's probabilities from those of an example; infinite if any is not finite.

    Args:
        model: A classifier in eval mode.
        example: Predictions of the original.

    Raises:
        Yt8mError: The example does not fit the model.
    """
    num_classes = example.probabilities.shape[1]
    if num_classes != model.num_classes:
        raise Yt8mError(
            f"{example.path}: has probabilities of {num_classes:,} classes, the model {model.num_classes:,}."
        )
    if isinstance(model, ContextAwareClassifier):
        context = _cropped_videos(example, model.config.context_encoder.max_frames)
        inputs = [_frames(example, "segment"), context]
    elif isinstance(model, ContextAgnosticClassifier):
        inputs = [_frames(example, "segment")]
    else:
        inputs = [_cropped_videos(example, model.config.encoder.max_frames)]
    largest = 0.0
    for start in range(0, len(example.probabilities), _BATCH_SIZE):
        rows = slice(start, start + _BATCH_SIZE)
        batch = [(part := torch.from_numpy(array[rows]), torch.full((len(part),), part.shape[1])) for array in inputs]
        with torch.no_grad():
            if isinstance(model, ContextAwareClassifier):
                logits = model(*batch[0], model.encode_context(*batch[1]))
            else:
                logits = model(*batch[0])
        expected = torch.from_numpy(example.probabilities[rows].astype(np.float64))
        difference = (torch.sigmoid(logits).double() - expected).abs().max().item()
        largest = max(largest, difference) if math.isfinite(difference) else math.inf
    return largest


def _frames(example: Example, name: Literal["video", "segment"]) -> NDArray[np.uint8]:
    array: NDArray[np.uint8] | None = getattr(example, name)
    if array is None or not array.shape[1]:
        raise Yt8mError(f"{example.path}: has no frames under {name!r}, the input of a model of this kind.")
    return array


def _cropped_videos(example: Example, max_frames: int) -> NDArray[np.uint8]:
    """Frames of complete videos that the original uses, (B, T, D); only where it does not sample them."""
    videos = _frames(example, "video")[:, _CROP_START:-_CROP_END]
    if not 0 < videos.shape[1] <= max_frames:
        raise Yt8mError(
            f"{example.path}: its videos have {videos.shape[1]} frames without the first {_CROP_START} and the last "
            f"{_CROP_END}; expected 1 to {max_frames}, since the original samples at random from more than its max_len."
        )
    return videos
