"""Signals and deaths at any place of a run: one message, the right status, no process left, and the next run continues."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import succeeds, yt8m
from tests.support.processes import children, environment, run_python, wait_for_the_end, wait_until
from tests.support.tiny_run import FinishedRun
from yt8m.errors import ShardError
from yt8m.runtime.signals import STOP_SIGNALS

PLACES = [
    "yt8m.runs.context.index_and_save",
    "yt8m.runs.run.train",
    "yt8m.runs.training.build",
    "yt8m.runs.predict_stage.segments_of",
    "yt8m.runs.predict_stage.write_submission",
    "yt8m.runs.predict_stage.score_rankings",
]
"""Functions that a run calls outside of loops with a state to save."""


@pytest.mark.parametrize(("place", "number"), list(zip(PLACES, cycle(STOP_SIGNALS), strict=False)))
def test_a_signal_outside_of_loops_stops_at_once(
    place: str,
    number: signal.Signals,
    copy: Path,
    data: Path,
    finished_run: FinishedRun,
    tiny_recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.rmtree(copy / "finetune/aware")
    shutil.rmtree(copy / "predict")
    (copy / "submission.csv").unlink()
    for catalog in data.rglob("catalog.parquet"):
        catalog.unlink()
    command = ["run", tiny_recipe, "--data", data, "--out", copy]

    def send_signal(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), number)
        pytest.fail("the run continued")

    monkeypatch.setattr(place, send_signal)
    outcome = yt8m(*command)
    assert outcome.status == 75, outcome.err
    sentence = f"yt8m: Stopped by {number.name}; the same command continues with what is not finished."
    assert outcome.err.splitlines()[-1] == sentence
    assert not list(copy.rglob(".*"))
    monkeypatch.undo()
    monkeypatch.setenv("YT8M_NOTIFY", "")
    succeeds(*command)
    for name in ("submission.csv", "predict/scores.csv"):
        assert (copy / name).read_bytes() == (finished_run.out / name).read_bytes(), name


INDEXING_SLOWLY = """
import time
from yt8m.cli.main import main
from yt8m.dataset import indexing

def find_shards(folder):
    print("indexing", flush=True)
    time.sleep(1000)

indexing.find_shards = find_shards
main()
"""


@pytest.mark.parametrize(("command", "status"), [("index", 75), ("run", 75), ("describe", -signal.SIGTERM)])
def test_sigterm_while_indexing(command: str, status: int, data: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    """Commands with nothing to continue end as any program."""
    for catalog in data.rglob("catalog.parquet"):
        catalog.unlink()
    arguments = [tiny_recipe, "--data", data, "--out", tmp_path / "out"] if command == "run" else [data / "video/train"]
    words = [sys.executable, "-W", "ignore", "-c", INDEXING_SLOWLY, command, *map(str, arguments)]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "indexing\n"
            process.terminate()
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == status
    message = "yt8m: Stopped by SIGTERM; the same command continues with what is not finished.\n"
    assert err.endswith(message) == (status == 75)
    assert "Traceback" not in err


class Training:
    """A run that trains for ever with two workers, and has done some steps."""

    def __init__(self, data: Path, recipe: Path, folder: Path) -> None:
        self.log, out = folder / "log", folder / "out"
        settings = ["machine.num_workers=2", "base_models.dbof.training.steps=100000"]
        arguments = ["run", recipe, "--data", data, "--out", out, *(w for s in settings for w in ("--set", s))]
        with self.log.open("wb") as file:
            command = [sys.executable, "-W", "ignore", "-m", "yt8m", *map(str, arguments)]
            self.process = subprocess.Popen(command, stdout=file, stderr=file, env=environment())
        metrics = out / "pretrain/dbof/metrics.csv"

        def is_training() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return metrics.is_file() and len(metrics.read_text().splitlines()) > 3

        wait_until(is_training, "training", 240)
        self.workers = children(self.process.pid)
        assert len(self.workers) == 2

    def ended(self) -> tuple[int, str]:
        """The exit status and the output, when all processes have ended."""
        status = self.process.wait(60)
        wait_for_the_end(self.workers)
        return status, self.log.read_text()


@pytest.fixture
def training(data: Path, tiny_recipe: Path, tmp_path: Path) -> Training:
    return Training(data, tiny_recipe, tmp_path)


def test_a_truncated_shard_ends_training_with_workers(training: Training, data: Path) -> None:
    shard = next((data / "video/train").glob("*.tfrecord"))
    for path in (data / "video/train").glob("*.tfrecord"):
        os.truncate(path, 1000)
    status, shown = training.ended()
    assert (status, shown.count("\n")) == (ShardError.exit_code, 1), shown
    assert shown.startswith(f"yt8m: {shard.parent}")
    assert "changed" in shown


def test_a_killed_worker_ends_training(training: Training) -> None:
    os.kill(training.workers[1], signal.SIGKILL)
    status, shown = training.ended()
    assert (status, shown.count("\n")) == (1, 1), shown
    assert shown.startswith(
        "yt8m: A process that reads batches was killed (SIGKILL), probably because the memory ran out"
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_workers_end_with_training(training: Training, number: signal.Signals) -> None:
    training.process.send_signal(number)
    status, shown = training.ended()
    assert status == (75 if number == signal.SIGHUP else -number)
    assert ("stopped after step" in shown) == (number == signal.SIGHUP)


@pytest.mark.parametrize(("arguments", "status"), [(["recipes"], 0), (["recipes", "nonsense"], 2)])
def test_a_signal_at_the_end_of_the_interpreter_does_not_change_the_status(
    arguments: list[str], status: int, tmp_path: Path
) -> None:
    script = tmp_path / "late.py"
    script.write_text(
        "import atexit, os, signal, sys\n"
        "atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))\n"
        "from yt8m.cli.main import main\n"
        "main()\n"
    )
    ended = run_python(script, *arguments)
    assert ended.status == status, ended.err
