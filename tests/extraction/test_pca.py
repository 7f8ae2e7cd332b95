"""PCA and quantization, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from yt8m.extraction.pca import PCA, quantize


def test_eigenvectors_are_rows_and_whitening_divides_by_the_root_of_the_eigenvalue() -> None:
    mean = np.array([[1.0], [2.0], [3.0]], np.float32)
    eigenvalues = np.array([[3.9999], [0.2499], [7.0]], np.float64)
    eigenvectors = np.array([[1, 0, 2], [0, 1, -1], [5, 5, 5]], np.float32)
    pca = PCA.from_eigenvectors(mean, eigenvalues, eigenvectors, 2)
    # (4, 1, 5) - mean = (3, -1, 2): 3 + 4 = 7 over 2, and -1 - 2 = -3 over 0.5.
    np.testing.assert_allclose(pca(np.array([4.0, 1.0, 5.0], np.float32)), [3.5, -6.0], rtol=1e-12)
    batch = pca(np.array([[1.0, 2.0, 3.0], [4.0, 1.0, 5.0]], np.float32))
    np.testing.assert_allclose(batch, [[0, 0], [3.5, -6.0]], rtol=1e-12, atol=1e-12)


def test_matrices_multiply_columns_from_the_left() -> None:
    pca = PCA.from_matrices(np.array([[1.0], [1.0]]), np.array([[1.0, 2.0], [3.0, 4.0], [0.0, 1.0]]))
    np.testing.assert_allclose(pca(np.array([[2.0, 3.0]])), [[5, 11, 2]])


def test_both_forms_agree() -> None:
    generator = np.random.default_rng(0)
    mean, eigenvalues = generator.normal(size=(8, 1)), generator.exponential(size=(8, 1))
    eigenvectors = generator.normal(size=(8, 8))
    folded = np.array([eigenvectors[row] / math.sqrt(eigenvalues[row, 0] + 1e-4) for row in range(4)])
    activations = generator.normal(size=(5, 8))
    np.testing.assert_allclose(
        PCA.from_eigenvectors(mean, eigenvalues, eigenvectors, 4)(activations),
        PCA.from_matrices(mean, folded)(activations),
        rtol=1e-12,
    )


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (-2.0, 0),
        (-5.0, 0),
        (-math.inf, 0),
        (2.0, 255),
        (2.1, 255),
        (math.inf, 255),
        (0.0, 128),  # (0 + 2) * 63.75 = 127.5, rounded up
        (1.0, 191),  # 191.25
        (-1.0, 64),  # 63.75
        (-1.99, 1),  # 0.6375
        (-1.995, 0),  # 0.31875
    ],
)
def test_a_value_is_clipped_and_rounded(value: float, code: int) -> None:
    assert quantize(np.array([value])).tolist() == [code]
    assert quantize(np.array([value], np.float32)).dtype == np.uint8


def test_codes_stand_for_values_near_those_that_they_were_made_from() -> None:
    values = np.linspace(-2, 2, 4001)
    restored = quantize(values) * (4 / 255) + 4 / 512 - 2
    # The dataset's own offset is half a step of 4 / 256.
    assert np.abs(restored - values).max() < 4 / 255 / 2 + 4 / 512 + 1e-9
