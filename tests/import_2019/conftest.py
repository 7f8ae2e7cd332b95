"""Fixtures of the tests of imports."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import reference_2019 as reference
from tests.support.models_2019 import NUM_CLASSES


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Folder of a context-aware 2019 model, with an example of the reference's probabilities."""
    config = reference.aware_config(reference.dbof_settings(), reference.nextvlad_settings(), reference.head_settings())
    tensors = reference.random_tensors(config, NUM_CLASSES)
    folder = reference.write_folder(tmp_path / "original", config, tensors)
    video, segment = reference.random_input(batch=40)
    expected = reference.probabilities(config, tensors, video, segment)
    reference.write_example(folder / "example.npz", video, segment, expected)
    return folder
