"""Full disks and folders that cannot be written to: one message, no partial file, and the same command resumes."""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path

import pytest

from tests.support.command import refused, succeeds
from tests.support.command import yt8m as command
from tests.support.files import files_in
from tests.support.full_disk import FullDisk
from tests.support.tiny_run import STAGES, FinishedRun
from tests.support.tiny_shards import random_videos, write_shards
from yt8m.dataset.catalog import FILE_NAME


def test_index_writes_no_partial_catalog_to_a_full_disk(full_disk: FullDisk) -> None:
    write_shards(full_disk.folder / "shards", random_videos(4))
    full_disk.fill()
    before = files_in(full_disk.folder)
    sentence = refused(1, "index", full_disk.folder / "shards")
    assert sentence.startswith(f"{full_disk.folder / 'shards' / FILE_NAME}: no space left on the disk; ")
    assert files_in(full_disk.folder) == before
    full_disk.free()
    succeeds("index", full_disk.folder / "shards")


@pytest.mark.parametrize("existed", [False, True])
def test_splice_leaves_no_files_on_a_full_disk(full_disk: FullDisk, existed: bool) -> None:
    out = full_disk.folder / "data"
    if existed:
        out.mkdir()
    full_disk.fill(leave=500_000)
    arguments = ["splice", out, "--pretrain", 4, "--segments", 1, "--test", 1]
    assert "no space left on the disk" in refused(1, *arguments)
    assert out.exists() == existed
    assert files_in(full_disk.folder) <= {"filler"}
    full_disk.free()
    succeeds(*arguments)


def test_a_run_resumes_after_a_full_disk_during_training(
    full_disk: FullDisk, finished_run: FinishedRun, tiny_dataset: Path, tiny_recipe: Path
) -> None:
    out = full_disk.folder / "out"
    full_disk.fill(leave=150_000)
    arguments = ["run", tiny_recipe, "--data", tiny_dataset, "--out", out]
    sentence = refused(1, *arguments)
    assert sentence.startswith(f"{out / 'pretrain/dbof/checkpoint.pt'}: no space left on the disk; ")
    # Training continues while a thread writes the checkpoint, so a model may be saved before the write fails.
    left = {name for name in files_in(out) if "tensorboard" not in name and "/model/" not in name}
    assert left == {"recipe.yaml", "pretrain/dbof/stage.yaml", "pretrain/dbof/metrics.csv"}
    full_disk.free()
    succeeds(*arguments)
    assert (out / "submission.csv").read_bytes() == (finished_run.out / "submission.csv").read_bytes()


@pytest.mark.parametrize("stage", STAGES[:-1])
@pytest.mark.parametrize("leave", [0, 4_000, 40_000])
def test_a_run_resumes_after_a_full_disk_in_any_training_stage(
    full_disk: FullDisk, finished_run: FinishedRun, tiny_dataset: Path, tiny_recipe: Path, stage: str, leave: int
) -> None:
    out = full_disk.folder / "out"
    shutil.copytree(finished_run.out, out)
    shutil.rmtree(out / stage)
    weights = "model/model.safetensors"
    full_disk.fill(leave=leave)
    arguments = ["run", tiny_recipe, "--data", tiny_dataset, "--out", out, "--only", stage]
    outcome = command(*arguments)
    assert outcome.status == 1
    assert re.search(r"^yt8m: .*no space left on the disk; ", outcome.err.splitlines()[-1])
    assert not (out / stage / "stage.yaml").exists() or "finished" not in (out / stage / "stage.yaml").read_text()
    full_disk.free()
    succeeds(*arguments)
    assert (out / stage / weights).read_bytes() == (finished_run.out / stage / weights).read_bytes()
    assert not [name for name in files_in(out) if "/." in f"/{name}"]


def test_a_run_resumes_after_a_full_disk_at_the_submission(
    full_disk: FullDisk, finished_run: FinishedRun, tiny_dataset: Path, tiny_recipe: Path
) -> None:
    out = full_disk.folder / "out"
    shutil.copytree(finished_run.out, out)
    (out / "submission.csv").unlink()
    shutil.rmtree(out / "predict")
    full_disk.fill(leave=9_000)
    arguments = ["run", tiny_recipe, "--data", tiny_dataset, "--out", out]
    outcome = command(*arguments)
    assert outcome.status == 1
    expected = f"yt8m: {out / 'submission.csv'}: no space left on the disk; "
    assert outcome.err.splitlines()[-1].startswith(expected)
    assert not (out / "submission.csv").exists()
    assert not [name for name in files_in(out) if "/." in f"/{name}"]
    assert "status: started" in (out / "predict/stage.yaml").read_text()
    full_disk.free()
    assert "predict: resumes where it was stopped" in succeeds(*arguments).err
    assert (out / "submission.csv").read_bytes() == (finished_run.out / "submission.csv").read_bytes()


def test_predictions_larger_than_the_free_space_are_refused(
    full_disk: FullDisk, finished_run: FinishedRun, tiny_dataset: Path
) -> None:
    full_disk.fill(leave=5_000)
    if not full_disk.is_real:
        pytest.skip("no disk can be mounted here")
    shards = ["--shards", tiny_dataset / "segment/test", "--vocabulary", tiny_dataset]
    out = full_disk.folder / "predictions"
    sentence = refused(1, "predict", finished_run.model("finetune/bare"), *shards, "--store", out)
    assert sentence.startswith(f"{out}: the predictions need 0.0 GB, and 0.0 GB are free.")
    assert files_in(full_disk.folder) == {"filler"}


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_folders_that_cannot_be_written_to_are_reported(
    tiny_dataset: Path, tiny_recipe: Path, out: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    sentence = refused(1, "run", tiny_recipe, "--data", tiny_dataset, "--out", out)
    assert sentence.startswith(f"{out}: ")


def test_a_file_in_place_of_the_run_folder_is_reported(tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    sentence = refused(1, "run", tiny_recipe, "--data", tiny_dataset, "--out", tmp_path / "file")
    assert sentence.startswith(f"{tmp_path / 'file' / 'recipe.yaml'}: cannot be written (")
