"""PCA with whitening, and the bytes that stand for its values in the dataset."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

_EPSILON = 1e-4
_LIMIT = 2.0


@dataclass(frozen=True)
class PCA:
    """Projection on whitened principal components, in float64.

    Args:
        mean: float64 (D,).
        projection: float64 (D, P), the whitening folded in.
    """

    mean: NDArray[np.float64]
    projection: NDArray[np.float64]

    @classmethod
    def from_eigenvectors(
        cls, mean: NDArray[Any], eigenvalues: NDArray[Any], eigenvectors: NDArray[Any], size: int
    ) -> Self:
        """PCA of the files of `yt8m_pca.tgz`.

        Args:
            mean: (D, 1).
            eigenvalues: (D, 1), the largest first.
            eigenvectors: (D, D), one per row.
            size: Components to keep.
        """
        scale = np.sqrt(eigenvalues[:size, 0].astype(np.float64) + _EPSILON)
        return cls(mean[:, 0].astype(np.float64), eigenvectors[:size].T.astype(np.float64) / scale)

    @classmethod
    def from_matrices(cls, mean: NDArray[Any], projection: NDArray[Any]) -> Self:
        """PCA of MediaPipe's matrices.

        Args:
            mean: (D, 1).
            projection: (P, D); it multiplies columns from the left.
        """
        return cls(mean[:, 0].astype(np.float64), projection.T.astype(np.float64))

    def __call__(self, activations: NDArray[Any]) -> NDArray[np.float64]:
        """Project activations (..., D); returns float64 (..., P)."""
        return np.asarray((activations - self.mean) @ self.projection)


def quantize(features: NDArray[Any]) -> NDArray[np.uint8]:
    """Quantize features to bytes: clipped to [-2, 2], 0 stands for -2 and 255 for 2.

    Halves are rounded up, as the official tool does for positive numbers.
    """
    clipped = np.clip(features, -_LIMIT, _LIMIT)
    codes: NDArray[np.uint8] = np.floor((clipped + _LIMIT) * (255 / (2 * _LIMIT)) + 0.5).astype(np.uint8)
    return codes
