"""Graceful stop: a signal ends a run with a checkpoint and exit status 75, and the run resumes to the same result."""

from __future__ import annotations

import multiprocessing
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
from yt8m.errors import Interrupted, Stopped
from yt8m.runtime.machine import MachineConfig
from yt8m.runtime.signals import STOP_SIGNALS, stopped_by_signals
from yt8m.runtime.stopping import StopRequest, StopRequested
from yt8m.training.loop import CHECKPOINT_FILE, Trainer
from yt8m.training.metrics_log import METRICS_FILE


def checkpoint_step(folder: Path) -> int:
    return torch.load(folder / CHECKPOINT_FILE, weights_only=True)["progress"]["step"]


@pytest.mark.parametrize("number", STOP_SIGNALS)
@pytest.mark.parametrize("step", [1, 2, 3, 6, 10])
def test_a_signal_ends_the_run_after_its_step_with_a_checkpoint(
    number: signal.Signals, step: int, tmp_path: Path
) -> None:
    uninterrupted, stopped = tmp_path / "uninterrupted", tmp_path / "stopped"
    _, expected = fit_linear(uninterrupted)
    handlers = [signal.getsignal(number) for number in STOP_SIGNALS]

    def send_signal(started: int) -> None:
        if started == step:
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted) as raised:
        fit_linear(stopped, LinearTask(send_signal))
    assert str(raised.value) == (f"{stopped}: stopped after step {step} of 10; the same command resumes from there.")
    assert raised.value.exit_code == 75
    assert checkpoint_step(stopped) == step
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == handlers
    done: list[int] = []
    _, model = fit_linear(stopped, LinearTask(done.append))
    assert done == list(range(step + 1, 11))
    assert digest(model) == digest(expected)
    assert (stopped / METRICS_FILE).read_bytes() == (uninterrupted / METRICS_FILE).read_bytes()


def test_a_signal_during_an_evaluation_stops_it_at_once(tmp_path: Path) -> None:
    """The checkpoint precedes the evaluation, and the resumed run evaluates once."""
    uninterrupted, stopped = tmp_path / "uninterrupted", tmp_path / "stopped"
    _, expected = fit_linear(uninterrupted)

    class Signalled(LinearTask):
        def evaluate(self, fabric: Fabric, model: nn.Module, check: Callable[[], None]) -> dict[str, float]:
            os.kill(os.getpid(), signal.SIGTERM)
            check()
            pytest.fail("the evaluation continued")

    with pytest.raises(Interrupted):
        fit_linear(stopped, Signalled())
    assert checkpoint_step(stopped) == 3
    task = LinearTask()
    _, model = fit_linear(stopped, task)
    assert task.saved == [3, 6, 9, 10]
    assert digest(model) == digest(expected)
    assert (stopped / METRICS_FILE).read_bytes() == (uninterrupted / METRICS_FILE).read_bytes()


def test_a_second_ctrl_c_interrupts_at_once(tmp_path: Path) -> None:
    def interrupt_twice(step: int) -> None:
        if step == 5:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)

    with pytest.raises(KeyboardInterrupt):
        fit_linear(tmp_path, LinearTask(interrupt_twice))
    assert checkpoint_step(tmp_path) == 4


def test_worker_processes_ignore_signals(tiny_dataset: Path, tmp_path: Path) -> None:
    """A terminal sends signals to workers too; only the training process handles them."""
    model, task = video_case(tiny_dataset)
    config = CONFIG.model_copy(update={"peak_lr": 1e-3})
    loss = task.loss

    def loss_with_signals(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        workers = multiprocessing.active_children()
        assert len(workers) == 2
        # At the third batch, both workers have delivered a batch.
        for worker in workers if len(calls) > 2 else []:
            for number in STOP_SIGNALS:
                os.kill(worker.pid or 0, number)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return loss(*arguments)

    calls: list[int] = []
    task.loss = loss_with_signals  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        Trainer(
            Fabric(accelerator="cpu", devices=1),
            model,
            task,
            config,
            tmp_path,
            3,
            MachineConfig(num_workers=2),
        ).fit()
    assert checkpoint_step(tmp_path) == 4


def test_evaluation_checks_once_per_batch(tiny_dataset: Path) -> None:
    model, task = video_case(tiny_dataset)
    task.evaluation_batch_size = 2
    checks: list[int] = []
    fabric = Fabric(accelerator="cpu", devices=1)
    task.evaluate(fabric, model.eval(), lambda: checks.append(1))
    assert len(checks) == -(-len(task.valid_rows) // 2) > 1

    def stop() -> None:
        raise StopRequested

    with pytest.raises(StopRequested):
        task.evaluate(fabric, model, stop)


@pytest.mark.parametrize("closes", [False, True])
def test_a_signal_after_the_last_check_is_not_lost(closes: bool) -> None:
    seen = []

    def work() -> None:
        with stopped_by_signals(), StopRequest(Fabric(accelerator="cpu", devices=1)) as stop:
            seen.append(stop.requested())
            os.kill(os.getpid(), signal.SIGUSR1)
            seen.append("handled")
            if closes:
                stop.close()
                pytest.fail("the signal was lost")

    with pytest.raises(Stopped, match="SIGUSR1"):
        work()
    assert seen == [False, "handled"]


def test_no_handlers_are_installed_in_another_thread(tmp_path: Path) -> None:
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
def test_the_command_reports_how_to_resume(
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
    assert error.splitlines()[-1].startswith(f"yt8m: {log.parent}: stopped after step ")
    assert error.endswith("of 100,000; the same command resumes from there.\n")
    assert "Traceback" not in error
