"""The comparison with official pairs, on pairs computed from random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.extraction_weights import random_pca
from yt8m.errors import UsageError, Yt8mError
from yt8m.extraction.resize import resize_bilinear
from yt8m.extraction.self_test import ACTIVATIONS_NAME, IMAGE_NAME, PCA_NAME, relative_difference, self_test
from yt8m.extraction.weights import Networks

pytest.importorskip("av", reason="PyAV decodes the image")


@pytest.fixture
def pairs(tmp_path: Path, random_networks: Networks) -> Path:
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (8, 10, 3), np.uint8)
    picture = Image.fromarray(coarse).resize((320, 240), Image.Resampling.BILINEAR)
    picture.save(tmp_path / IMAGE_NAME, quality=95, subsampling=0)
    picture = Image.open(tmp_path / IMAGE_NAME)
    with torch.inference_mode():
        image = torch.from_numpy(resize_bilinear(np.asarray(picture)))
        activations = random_networks.frames(image[None])[0].numpy()
    np.savez(tmp_path / ACTIVATIONS_NAME, inception=activations)
    arrays = random_pca()
    original = generator.exponential(0.4, 2048)
    scale = np.sqrt(arrays["eigenvals.npy"][:1024, 0].astype(np.float64) + 1e-4)
    vectors = arrays["eigenvecs.npy"].astype(np.float64)
    pca = np.array([vectors[row] @ (original - arrays["mean.npy"][:, 0]) for row in range(1024)]) / scale
    np.savez(tmp_path / PCA_NAME, original=original, pca=pca)
    return tmp_path


def test_the_right_weights_are_within_the_tolerances(pairs: Path, random_networks: Networks) -> None:
    inception, pca = self_test(random_networks, pairs)
    assert inception.is_within
    assert inception.difference < 0.1, "two decoders of JPEG differ slightly"
    assert pca.is_within
    assert pca.difference < 1e-9
    assert (inception.tolerance, pca.tolerance) == (0.1, 1e-5)


def test_other_weights_are_not(pairs: Path, random_networks: Networks) -> None:
    for name, key in ((ACTIVATIONS_NAME, "inception"), (PCA_NAME, "pca")):
        arrays = dict(np.load(pairs / name))
        arrays[key] = np.roll(arrays[key], 1)
        np.savez(pairs / name, **arrays)
    assert [comparison.is_within for comparison in self_test(random_networks, pairs)] == [False, False]


def test_the_difference_is_that_of_the_official_tests() -> None:
    # |1 - 2| / (0.01 + 2), |-1 - 1| / (0.01 + 1), and 0.
    found = relative_difference(np.array([1.0, -1.0, 0.0]), np.array([2.0, 1.0, 0.0]))
    assert found == pytest.approx((1 / 2.01 + 2 / 1.01) / 3)


def test_the_official_pairs_are_read(shared_data: Path, random_networks: Networks) -> None:
    comparisons = self_test(random_networks, shared_data / "feature_extraction")
    assert [comparison.is_within for comparison in comparisons] == [False, False], "the weights are random"


def test_wrong_pairs_are_refused(pairs: Path, random_networks: Networks) -> None:
    (pairs / IMAGE_NAME).write_bytes(b"no image")
    with pytest.raises(UsageError, match=r"frame\.jpg: cannot be read as an image \(.*\)\.$"):
        self_test(random_networks, pairs)
    np.savez(pairs / ACTIVATIONS_NAME, other=np.zeros(3))
    with pytest.raises(Yt8mError, match="is no official pair: expected an array inception of 2,048 numbers"):
        self_test(random_networks, pairs)
    with pytest.raises(UsageError, match="cannot be read"):
        self_test(random_networks, pairs / "absent")
