"""A folder of random weights, in the official formats and sizes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.extraction_weights import write_random_weights
from yt8m.extraction.weights import Networks, load_networks


@pytest.fixture(scope="session")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder; change only copies of it."""
    return write_random_weights(tmp_path_factory.mktemp("weights") / "weights")


@pytest.fixture(scope="session")
def random_networks(random_weights: Path) -> Networks:
    return load_networks(random_weights)


@pytest.fixture
def weights_copy(random_weights: Path, tmp_path: Path) -> Path:
    """A folder with links to the files; replace them, and do not write into them."""
    folder = tmp_path / "weights"
    folder.mkdir()
    for path in random_weights.iterdir():
        os.link(path, folder / path.name)
    return folder
