"""Asked to stop: everything is saved, the exit status says so, and the run goes on to the same end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from tests.support.tiny_tasks import CONFIG, LinearTask, digest, fit_linear, video_case
from yt8m.errors import Interrupted
from yt8m.runtime.machine import MachineConfig
from yt8m.runtime.stopping import StopRequest, StopRequestedError
from yt8m.training.loop import CHECKPOINT_FILE, fit
from yt8m.training.metrics_log import METRICS_FILE


def step_of(folder: Path) -> int:
    return torch.load(folder / CHECKPOINT_FILE, weights_only=True)["progress"]["step"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("step", [1, 2, 3, 6, 10])
def test_a_signal_ends_the_run_after_its_step_with_a_checkpoint(
    number: signal.Signals, step: int, tmp_path: Path
) -> None:
    alone, stopped = tmp_path / "alone", tmp_path / "stopped"
    _, undisturbed = fit_linear(alone)
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)

    def ask(before: int) -> None:
        if before == step:
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted) as raised:
        fit_linear(stopped, LinearTask(ask))
    assert str(raised.value) == (
        f"{stopped}: stopped as asked after step {step} of 10; the same command goes on from there."
    )
    assert raised.value.exit_code == 75
    assert step_of(stopped) == step
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    done: list[int] = []
    _, model = fit_linear(stopped, LinearTask(done.append))
    assert done == list(range(step + 1, 11))
    assert digest(model) == digest(undisturbed)
    assert (stopped / METRICS_FILE).read_bytes() == (alone / METRICS_FILE).read_bytes()


def test_a_signal_during_an_evaluation_does_not_wait_for_its_end(tmp_path: Path) -> None:
    """The state before the evaluation is saved, and the evaluation is done again, once."""
    alone, stopped = tmp_path / "alone", tmp_path / "stopped"
    _, undisturbed = fit_linear(alone)

    class Asked(LinearTask):
        def evaluate(self, fabric: Fabric, model: nn.Module, check: Callable[[], None]) -> dict[str, float]:
            os.kill(os.getpid(), signal.SIGTERM)
            check()
            pytest.fail("went on evaluating")

    with pytest.raises(Interrupted):
        fit_linear(stopped, Asked())
    assert step_of(stopped) == 3
    task = LinearTask()
    _, model = fit_linear(stopped, task)
    assert task.saved == [3, 6, 9, 10]
    assert digest(model) == digest(undisturbed)
    assert (stopped / METRICS_FILE).read_bytes() == (alone / METRICS_FILE).read_bytes()


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    def ask_twice(step: int) -> None:
        if step == 5:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)

    with pytest.raises(KeyboardInterrupt):
        fit_linear(tmp_path, LinearTask(ask_twice))
    assert step_of(tmp_path) == 4


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # as it does on a machine of few cores
def test_real_evaluations_and_workers_heed_signals(tiny_dataset: Path, tmp_path: Path) -> None:
    """Workers get the signals of a terminal too, and leave them to the process that trains."""
    model, task = video_case(tiny_dataset)
    config = CONFIG.model_copy(update={"peak_lr": 1e-3})
    loss = task.loss

    def asking(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        children = Path(f"/proc/self/task/{os.getpid()}/children")
        # By the third batch both workers have delivered one.
        for process in children.read_text().split() if children.is_file() and len(calls) > 2 else []:
            os.kill(int(process), signal.SIGINT)
            os.kill(int(process), signal.SIGTERM)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return loss(*arguments)

    calls: list[int] = []
    task.loss = asking  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        fit(
            Fabric(accelerator="cpu", devices=1),
            model,
            task,
            config,
            tmp_path,
            3,
            MachineConfig(num_workers=2),
        )
    assert step_of(tmp_path) == 4


def test_evaluation_asks_once_a_batch(tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yt8m.training.tasks.EVALUATION_BATCH", 2)
    model, task = video_case(tiny_dataset)
    asked: list[int] = []
    fabric = Fabric(accelerator="cpu", devices=1)
    task.evaluate(fabric, model.eval(), lambda: asked.append(1))
    assert len(asked) == -(-len(task.valid_rows) // 2) > 1

    def stop() -> None:
        raise StopRequestedError

    with pytest.raises(StopRequestedError):
        task.evaluate(fabric, model, stop)


def test_another_thread_trains_without_handlers(tmp_path: Path) -> None:
    ends: list[Any] = []
    before = signal.getsignal(signal.SIGTERM)

    def train() -> None:
        with StopRequest(Fabric(accelerator="cpu", devices=1)) as stop:
            ends.append((stop.requested(), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert ends == [(False, before)]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_says_how_to_go_on(
    number: signal.Signals, tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-W", "ignore", "-m", "yt8m", "run", str(tiny_recipe)]
    command += ["--data", str(tiny_dataset), "--out", str(out), "--set", "base_models.dbof.training.steps=100000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        log = out / "pretrain" / "dbof" / METRICS_FILE
        deadline = time.monotonic() + 120
        while not (log.is_file() and len(log.read_text().splitlines()) > 5) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(number)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 75, error
    assert error.splitlines()[-1].startswith(f"yt8m: {log.parent}: stopped as asked after step ")
    assert error.endswith("of 100,000; the same command goes on from there.\n")
    assert "Traceback" not in error
