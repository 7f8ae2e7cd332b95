"""Fixtures that several folders of tests share."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.command import Outcome, succeeds
from yt8m.runtime.environment import prepare_environment
from yt8m.synthetic.invented import invented_sources, invented_vocabulary
from yt8m.synthetic.splice import Sizes, write_dataset
from yt8m.vocabulary import Vocabulary

prepare_environment()  # before any test imports torch

TINY_SIZES = Sizes(train=16, valid=4, rated=16, test=8)
TINY_CLASSES = 12
TINY_RECIPE = """\
folds: 4
compare: true
machine: {accelerator: cpu}
base_models:
  dbof:
    classifier:
      encoder: {type: dbof, hidden_size: 16, output_size: 8, max_frames: 20}
      mixture: {num_experts: 2}
    training: &training
      steps: 6
      batch_size: 8
      peak_lr: 2e-3
      weight_decay: 0.1
      evaluate_every: 3
      checkpoint_every: 2
      log_every: 2
  nextvlad:
    classifier:
      encoder: {type: nextvlad, num_clusters: 2, num_groups: 4, expansion: 1, output_size: 8, max_frames: 20}
      mixture: {num_experts: 2}
    training: *training
segment_models:
  bare:
    kind: agnostic
    base: dbof
    fold: 0
    training: *training
  aware:
    kind: aware
    context: dbof
    segment: nextvlad
    fold: 1
    fusion: {output_size: 8}
    mixture: {num_experts: 2}
    training: *training
"""


@pytest.fixture(scope="session", autouse=True)
def _nobody_is_told() -> Iterator[None]:
    """Whoever runs the tests may have set up messages for runs of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("YT8M_NOTIFY", "")
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real YouTube-8M and AudioSet data; not part of the project, so tests that need it may skip."""
    named = os.environ.get("YT8M_SHARED_DATA")
    folder = Path(named) if named else Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set YT8M_SHARED_DATA to the folder that holds it")
    return folder


@pytest.fixture(scope="session")
def tiny_vocabulary() -> Vocabulary:
    """The first classes of the invented vocabulary, ids out of order."""
    whole = invented_vocabulary()
    return Vocabulary(whole.label_ids[:TINY_CLASSES], whole.names[:TINY_CLASSES])


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory, tiny_vocabulary: Vocabulary) -> Path:
    """A whole spliced dataset of 44 videos; read it, and change only copies."""
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


@dataclass(frozen=True)
class FinishedRun:
    """A run of the tiny recipe on the tiny dataset: its folder and what the command printed."""

    out: Path
    outcome: Outcome


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Path, tiny_recipe: Path) -> FinishedRun:
    """A finished run; read it, and change only copies."""
    out = tmp_path_factory.mktemp("run") / "out"
    return FinishedRun(out, succeeds("run", tiny_recipe, "--data", tiny_dataset, "--out", out))


class FullDisk:
    """A folder on a disk whose space can be taken away and given back."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self, leave: int = 0) -> None:
        """Take all space but `leave` bytes."""
        free = shutil.disk_usage(self.folder).free
        with (self.folder / "filler").open("wb", buffering=0) as file:
            file.write(bytes(max(0, free - leave)))

    def free(self) -> None:
        """Give the space back."""
        (self.folder / "filler").unlink()


class SimulatedFullDisk(FullDisk):
    """The same where no disk can be mounted: flushing a file fails as on a full disk, however small the file."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        super().__init__(folder)
        self._patch = patch
        self._flush = os.fsync

    def fill(self, leave: int = 0) -> None:
        def flush(file: int) -> None:
            if os.fstat(file).st_size > leave:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._flush(file)

        self._patch.setattr(os, "fsync", flush)

    def free(self) -> None:
        self._patch.setattr(os, "fsync", self._flush)


@pytest.fixture
def full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FullDisk]:
    """A disk of 64 MB that a test can fill: a real one where this process may mount it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    is_real = mount is not None and subprocess.run([mount, *options], capture_output=True, check=False).returncode == 0
    if not is_real:
        yield SimulatedFullDisk(folder, monkeypatch)
        return
    try:
        yield FullDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
