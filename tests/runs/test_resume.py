"""Runs that are killed or receive a signal resume and end with the same result."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import refused, succeeds
from tests.support.predictions import SMALL, record_batches, use_small_blocks
from tests.support.processes import run_python
from tests.support.tiny_run import STAGES, FinishedRun, skipped_stages
from yt8m.runs.records import read_record
from yt8m.runs.stages import RunStage
from yt8m.training.loop import Trainer


class Killed(BaseException):
    """Simulates a kill; the package does not catch it."""


def kill_after(patch: pytest.MonkeyPatch, owner: type, method: str, number: int) -> None:
    """Raise `Killed` at the end of the call of a method with this number."""
    original = getattr(owner, method)
    calls = 0

    def killing(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        result = original(*arguments, **named)
        if calls == number:
            raise Killed
        return result

    patch.setattr(owner, method, killing)


def kill_before(patch: pytest.MonkeyPatch, owner: type, method: str) -> None:
    """Raise `Killed` instead of calling a method."""

    def killing(*_: Any, **__: Any) -> None:
        raise Killed

    patch.setattr(owner, method, killing)


@pytest.mark.parametrize(
    ("place", "number"),
    [
        # aware is trained for 6 steps: checkpoints after 2, 4 and 6, evaluations after 3 and 6.
        ("checkpoint", 1),
        ("evaluation", 1),
        ("checkpoint", 2),
        ("evaluation", 2),
        ("checkpoint", 3),
        # The kill is before training is recorded as finished.
        ("end", 1),
    ],
)
def test_killed_training_resumes_to_the_same_model(
    copy: Path,
    finished_run: FinishedRun,
    tiny_dataset: Path,
    tiny_recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    number: int,
) -> None:
    shutil.rmtree(copy / "finetune/aware")
    command = ["finetune", tiny_recipe, "aware", "--data", tiny_dataset, "--out", copy]
    match place:
        case "checkpoint":
            kill_after(monkeypatch, Trainer, "save_checkpoint", number)
        case "evaluation":
            kill_after(monkeypatch, Trainer, "evaluate", number)
        case _:
            kill_before(monkeypatch, RunStage, "finish")
    with pytest.raises(Killed):
        succeeds(*command)
    monkeypatch.undo()
    assert "finetune aware: resumes where it was stopped" in succeeds(*command).err
    for name in ("model/model.safetensors", "model/config.yaml", "metrics.csv"):
        expected = (finished_run.out / "finetune/aware" / name).read_bytes()
        assert (copy / "finetune/aware" / name).read_bytes() == expected, name


def test_prediction_killed_before_its_record_is_repeated(
    copy: Path, finished_run: FinishedRun, tiny_dataset: Path, tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(copy / "predict")
    (copy / "submission.csv").unlink()
    command = ["run", tiny_recipe, "--data", tiny_dataset, "--out", copy]
    kill_before(monkeypatch, RunStage, "finish")
    with pytest.raises(Killed):
        succeeds(*command)
    monkeypatch.undo()
    assert len(skipped_stages(succeeds(*command).err)) == len(STAGES) - 1
    for name in ("submission.csv", "predict/scores.csv"):
        assert (copy / name).read_bytes() == (finished_run.out / name).read_bytes(), name


@pytest.mark.parametrize("store", [False, True])
def test_prediction_stopped_by_a_signal_resumes(
    copy: Path,
    finished_run: FinishedRun,
    tiny_dataset: Path,
    tiny_recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    store: bool,
) -> None:
    shutil.rmtree(copy / "predict")
    (copy / "submission.csv").unlink()
    use_small_blocks(monkeypatch)
    starts = record_batches(monkeypatch, stop_after=4)
    command = ["run", tiny_recipe, "--data", tiny_dataset, "--out", copy, "--only", "predict"]
    command += ["--set", f"ensemble.store={str(store).lower()}"]
    assert "stopped by a signal; the same command continues with" in refused(75, *command)
    assert not (copy / "submission.csv").exists()
    record = read_record(copy / "predict")
    assert record is not None
    assert record.status == "started"
    assert "predict: resumes where it was stopped" in succeeds(*command).err
    assert starts == list(range(0, starts[-1] + SMALL, SMALL))
    for name in ("submission.csv", "segments.parquet", "predict/scores.csv"):
        assert (copy / name).read_bytes() == (finished_run.out / name).read_bytes(), name
    assert not list((copy / "predict").glob("*.part"))


KILLED_AFTER_A_CHECKPOINT = """
import os, signal
from yt8m.cli.main import main
from yt8m.training.checkpoint import CheckpointWriter

write = CheckpointWriter.write

def write_and_die(self, state):
    write(self, state)
    self.wait()
    if self.path.parent.name == "nextvlad":
        os.kill(os.getpid(), signal.SIGKILL)

CheckpointWriter.write = write_and_die
main()
"""


@pytest.mark.slow
def test_a_killed_process_resumes_to_the_same_submission(
    finished_run: FinishedRun, tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ["run", tiny_recipe, "--data", tiny_dataset, "--out", out]
    killed = run_python("-c", KILLED_AFTER_A_CHECKPOINT, *arguments)
    assert killed.status == -signal.SIGKILL, killed.err
    record = read_record(out / "pretrain/nextvlad")
    assert record is not None
    assert record.status == "started"
    assert (out / "pretrain/nextvlad/checkpoint.pt").is_file()
    done = succeeds(*arguments)
    assert skipped_stages(done.err) == ["pretrain dbof"]
    assert "pretrain nextvlad: resumes where it was stopped" in done.err
    assert (out / "submission.csv").read_bytes() == (finished_run.out / "submission.csv").read_bytes()
