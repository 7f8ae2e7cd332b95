"""Fixtures shared by several test folders."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.support.command import succeeds
from tests.support.full_disk import FullDisk, mounted_disk
from tests.support.tiny_run import TINY_CLASSES, TINY_RECIPE, TINY_SIZES, FinishedRun
from yt8m.runtime import progress
from yt8m.runtime.environment import prepare_environment
from yt8m.synthetic.invented import invented_sources, invented_vocabulary
from yt8m.synthetic.splice import write_dataset
from yt8m.vocabulary import Vocabulary

prepare_environment()  # before any test imports torch

# Under nohup it is ignored, by the commands that tests start too.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# No test depends on the speed of the machine.
hypothesis.settings.register_profile("yt8m", deadline=None)
hypothesis.settings.load_profile("yt8m")


@pytest.fixture(scope="session", autouse=True)
def _no_notifications() -> Iterator[None]:
    """Disable notifications, even if the environment configures them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("YT8M_NOTIFY", "")
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_lines_of_progress() -> Iterator[None]:
    """Print no progress, which would depend on the speed of the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "LINE_SECONDS", float("inf"))
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real YouTube-8M and AudioSet data, which is not in the repository; tests are skipped without it."""
    named = os.environ.get("YT8M_SHARED_DATA")
    folder = Path(named) if named else Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set YT8M_SHARED_DATA to the folder that contains it")
    return folder


@pytest.fixture(scope="session")
def tiny_vocabulary() -> Vocabulary:
    """The first classes of the invented vocabulary, with unsorted ids."""
    complete = invented_vocabulary()
    return Vocabulary(complete.label_ids[:TINY_CLASSES], complete.names[:TINY_CLASSES])


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory, tiny_vocabulary: Vocabulary) -> Path:
    """A complete spliced dataset of 44 videos; change only copies of it."""
    folder = tmp_path_factory.mktemp("dataset") / "data"
    sources = invented_sources(600, invented_vocabulary())
    write_dataset(folder, sources, tiny_vocabulary, TINY_SIZES, 0)
    return folder


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of four networks of 8 to 16 channels, six steps each."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(TINY_RECIPE)
    return path


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Path, tiny_recipe: Path) -> FinishedRun:
    """A finished run; change only copies of it."""
    out = tmp_path_factory.mktemp("run") / "out"
    return FinishedRun(out, succeeds("run", tiny_recipe, "--data", tiny_dataset, "--out", out))


@pytest.fixture
def full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FullDisk]:
    """A disk of 64 MB that a test can fill: a mounted one if this process has permission to mount it."""
    with mounted_disk(tmp_path / "disk", monkeypatch) as disk:
        yield disk
