"""Fixtures of the tests of runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.tiny_run import FinishedRun


@pytest.fixture
def copy(tmp_path: Path, finished_run: FinishedRun) -> Path:
    """A copy of the finished run, which tests may change."""
    return Path(shutil.copytree(finished_run.out, tmp_path / "out"))


@pytest.fixture
def data(tmp_path: Path, tiny_dataset: Path) -> Path:
    """A copy of the tiny dataset, which tests may change."""
    return Path(shutil.copytree(tiny_dataset, tmp_path / "data"))
