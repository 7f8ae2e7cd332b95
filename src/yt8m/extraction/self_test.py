"""Compare the loaded weights with the pairs that the official extractor was tested with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from yt8m.errors import UsageError, Yt8mError
from yt8m.extraction.arrays import read_npz
from yt8m.extraction.resize import resize_bilinear
from yt8m.extraction.weights import Networks

IMAGE_NAME, ACTIVATIONS_NAME, PCA_NAME = "frame.jpg", "frame_features.npz", "pca_pair.npz"
"""Files of the official pairs: an image, its activations (`inception`), and activations with their PCA (`original`,
`pca`)."""

ACTIVATIONS_TOLERANCE = 0.1
"""That of the official test: the image is a JPEG of the frame that the activations were computed from."""

PCA_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Comparison:
    """A difference from an official result.

    Args:
        name: What was compared.
        difference: Mean relative difference, see `relative_difference`.
        tolerance: What the official tests allow.
    """

    name: str
    difference: float
    tolerance: float

    @property
    def is_within(self) -> bool:
        """Whether the difference is within the tolerance."""
        return self.difference < self.tolerance


def relative_difference(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Mean of |a - b| / (0.01 + max(|a|, |b|)), as in the official tests."""
    larger = np.maximum(np.abs(found), np.abs(expected))
    return float(np.mean(np.abs(found - expected) / (0.01 + larger)))


def self_test(networks: Networks, folder: Path) -> tuple[Comparison, ...]:
    """Compare the networks with the official pairs.

    Args:
        networks: The networks.
        folder: Folder of the pairs (google/youtube-8m, feature_extractor/testdata).

    Returns:
        A comparison of the activations of Inception-v3, and one of its PCA.

    Raises:
        UsageError: The pairs are not there, or PyAV is not installed.
        Yt8mError: A file is damaged.
    """
    expected = _array(folder / ACTIVATIONS_NAME, "inception", 2048)
    image = torch.from_numpy(resize_bilinear(_decoded(folder / IMAGE_NAME)))
    device = next(networks.frames.parameters()).device
    with torch.inference_mode():
        activations = networks.frames(image[None].to(device))[0].float().cpu().numpy()
    features = networks.frames_pca(_array(folder / PCA_NAME, "original", 2048))
    expected_features = _array(folder / PCA_NAME, "pca", 1024)
    return (
        Comparison("Inception-v3", relative_difference(activations, expected), ACTIVATIONS_TOLERANCE),
        Comparison("PCA", relative_difference(features, expected_features), PCA_TOLERANCE),
    )


def _array(path: Path, name: str, size: int) -> NDArray[Any]:
    found = read_npz(path)
    if name not in found or found[name].shape != (size,):
        raise Yt8mError(f"{path}: is no official pair: expected an array {name} of {size:,} numbers.")
    return found[name].astype(np.float64)


def _decoded(path: Path) -> NDArray[np.uint8]:
    """An image as uint8 (H, W, 3)."""
    try:
        import av
    except ImportError:
        raise UsageError("The self-test decodes an image with PyAV: pip install 'yt8m[video]'.") from None
    try:
        with av.open(path) as container:
            image = next(container.decode(video=0)).to_ndarray(format="rgb24")
    except (OSError, av.FFmpegError, StopIteration) as error:
        raise UsageError(f"{path}: cannot be read as an image ({getattr(error, 'strerror', None) or error}).") from None
    return np.asarray(image, np.uint8)
