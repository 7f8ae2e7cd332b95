"""The training loop: steps, evaluation, the best model, checkpoints, logs, on any devices of Lightning Fabric.

A `Task` defines batches, loss and evaluation. Step s depends only on the weights before it and on (seed, s), so that a
run that is killed and resumed ends with the same weights.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from yt8m.dataset.batches import Batches, ProcessSlice
from yt8m.dataset.read_ahead import on_device, step_loader
from yt8m.errors import Interrupted, UsageError, Yt8mError
from yt8m.files import clear_leftovers
from yt8m.models.layers.distributed import split_over_processes
from yt8m.runtime.machine import MachineConfig
from yt8m.runtime.stopping import StopRequest, StopRequested
from yt8m.training.averaging import WeightAverage
from yt8m.training.checkpoint import CheckpointWriter, TrainingState
from yt8m.training.config import MODEL_FOLDER, TrainingConfig
from yt8m.training.metrics_log import METRICS_FILE, MetricsLog, WandbRun
from yt8m.training.optimization import learning_rate, make_optimizer
from yt8m.training.step import make_step, step_seed

CHECKPOINT_FILE = "checkpoint.pt"

METRIC_MODES: dict[str, Literal["min", "max"]] = {"loss": "min", "auc": "max", "map": "max"}
"""Metrics that can select the best model, and whether lower or higher is better."""


class Task(Protocol):
    """What to train on, and how to evaluate."""

    def batches(self, share: ProcessSlice) -> Batches:
        """Training batches of this process."""

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Loss of a batch, a scalar."""

    def evaluate(self, fabric: Fabric, model: nn.Module, check: Callable[[], None]) -> dict[str, float]:
        """Compute metrics on the held-out data, at least those of `METRIC_MODES`.

        Calls `check` often, and equally often on every process; `check` raises if the run has to stop.
        """

    def encoder_parameters(self, model: nn.Module) -> list[nn.Parameter]:
        """Parameters trained at `encoder_lr_factor` times the learning rate."""

    def save(self, folder: Path, model: nn.Module, step: int, metrics: dict[str, float]) -> None:
        """Write the model folder."""


@dataclass(frozen=True)
class FitResult:
    """Step and metrics of the best model, the last step, and seconds of training in all."""

    best_step: int
    metrics: dict[str, float]
    last_step: int
    seconds: float


class StepMetrics(NamedTuple):
    """Loss and speed at a log line.

    Args:
        step: Steps done.
        loss: Mean since the last line.
        examples_per_second: Videos or segments per second since then, over all processes.
        waiting: Fraction of the time since then spent waiting for data.
    """

    step: int
    loss: float
    examples_per_second: float
    waiting: float

    @property
    def note(self) -> str:
        """Short text for a progress bar."""
        waiting = f", {self.waiting:.0%} waiting for data" if self.waiting >= 0.05 else ""
        return f"loss {self.loss:.4g}, {self.examples_per_second:,.0f} examples/s{waiting}"


def training_batches(fabric: Fabric, task: Task, config: TrainingConfig) -> Batches:
    """Training batches of this process.

    Raises:
        UsageError: They cannot be split into equal micro-batches.
    """
    batches = task.batches(ProcessSlice(fabric.global_rank, fabric.world_size))
    if batches.local_batch_size % config.gradient_accumulation:
        raise UsageError(
            f"gradient_accumulation {config.gradient_accumulation} does not divide the {batches.local_batch_size} examples per "
            "batch and process."
        )
    return batches


class _Clock:
    """Measures the duration of a run, and speed and waiting time per log interval.

    Args:
        previous_seconds: Seconds before the run was resumed.
        step: Steps done.
        batch_size: Examples per step.
        device: Where the steps are computed.
    """

    def __init__(self, previous_seconds: float, step: int, batch_size: int, device: torch.device) -> None:
        self._previous_seconds, self._step, self._batch_size = previous_seconds, step, batch_size
        self._start = self._lap_start = time.monotonic()
        self._waited = 0.0
        self._done = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def step_launched(self) -> None:
        """Mark the end of a step's kernels in the GPU's queue."""
        if self._done is not None:
            self._done.record()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the block's time as waiting for data, unless the GPU is still busy at its end."""
        start = time.monotonic()
        yield
        if self._done is None or self._done.query():  # type: ignore[no-untyped-call]
            self._waited += time.monotonic() - start

    def seconds(self) -> float:
        """Duration of the run, over all its tries."""
        return self._previous_seconds + time.monotonic() - self._start

    def lap(self, step: int) -> tuple[float, float]:
        """Examples per second and the fraction of time spent waiting for data, since the last call."""
        now = time.monotonic()
        elapsed = max(now - self._lap_start, 1e-9)
        speed, waiting = (step - self._step) * self._batch_size / elapsed, self._waited / elapsed
        self._lap_start, self._step, self._waited = now, step, 0.0
        return speed, waiting


@dataclass
class Trainer:
    """Trains a model, or resumes a run that was stopped.

    Args:
        fabric: Launched; determines device, precision and processes.
        model: As initialized for this run; a checkpoint replaces its weights.
        task: Data, loss and evaluation.
        config: Steps, learning rates and intervals.
        folder: Receives `model/` (the best model), `metrics.csv`, `tensorboard/` and, during the run, `checkpoint.pt`.
        seed: Seed of batches and dropout.
        machine: Worker processes, compilation, and batch norm over several processes.
        callback: Called at every line of the training log.
        wandb_run: The run in Weights & Biases.
    """

    fabric: Fabric
    model: nn.Module
    task: Task
    config: TrainingConfig
    folder: Path
    seed: int
    machine: MachineConfig = field(default_factory=MachineConfig)
    callback: Callable[[StepMetrics], None] = lambda metrics: None
    wandb_run: WandbRun | None = None

    def __post_init__(self) -> None:
        fabric, model, task, config, machine = self.fabric, self.model, self.task, self.config, self.machine
        split_over_processes(model, fabric.global_rank, fabric.world_size, machine.sync_batch_norm)
        self.batches = training_batches(fabric, task, config)
        optimizer = make_optimizer(model, config, task.encoder_parameters(model))
        self.compiles = machine.compiles(fabric.device)
        network = cast("nn.Module", torch.compile(model)) if self.compiles else model
        self.wrapped, self.optimizer = fabric.setup(network, optimizer)
        average = None if config.averaging.type == "none" else WeightAverage(model, config.averaging, config.steps)
        self.state = TrainingState(model, optimizer, fabric.strategy.precision, average)
        if fabric.is_global_zero:
            for name in (CHECKPOINT_FILE, MODEL_FOLDER, METRICS_FILE):
                clear_leftovers(self.folder / name)
        fabric.barrier()
        checkpoint = self.folder / CHECKPOINT_FILE
        if checkpoint.exists():
            self.state.load(checkpoint, fabric.device)
        self.log = MetricsLog(self.folder, fabric, self.state.progress.step, wandb_run=self.wandb_run)
        self.writer = CheckpointWriter(checkpoint, self.log.flush)

    def fit(self) -> FitResult:
        """Run all remaining steps; `model` keeps the weights of the last one.

        SIGTERM and Ctrl-C, on any of the processes, end the run after the current step with a checkpoint.

        Raises:
            Interrupted: The run received a signal to stop; its checkpoint is written.
            Yt8mError: The loss is not finite, or the disk is full.
        """
        progress = self.state.progress
        with self.log, self.writer, StopRequest(self.fabric) as stop:
            try:
                if self._evaluation_is_due():
                    self.evaluate(stop.check)
                if not self._is_finished():
                    self._train(stop)
            except StopRequested:
                self.save_checkpoint()
                self.writer.wait()
                self.fabric.barrier()
                raise Interrupted(
                    f"{self.folder}: stopped after step {progress.step:,} of {self.config.steps:,}; the same command "
                    "resumes from there."
                ) from None
        metrics = self.log.values("valid", progress.best_step)
        return FitResult(progress.best_step, metrics, progress.step, progress.seconds)

    def _train(self, stop: StopRequest) -> None:
        config, progress, device = self.config, self.state.progress, self.fabric.device
        pins = device.type == "cuda"
        loader = step_loader(self.batches, progress.step, config.steps, self.machine.num_workers, pins)
        # A compiled network is compiled for one number of frames.
        batches = on_device(loader, device, self.batches.max_frames if self.compiles else None)
        with closing(loader):
            self._take_steps(batches, stop)

    def _take_steps(self, batches: Iterator[NamedTuple], stop: StopRequest) -> None:
        config, progress, device = self.config, self.state.progress, self.fabric.device
        self.wrapped.train()
        step = make_step(self.fabric, self.wrapped, self.optimizer, self.task.loss, config, self.seed, self.machine)
        clock = _Clock(progress.seconds, progress.step, config.batch_size, device)
        while not self._is_finished():
            with clock.waiting():
                batch = next(batches)
            loss, norm = step(batch, progress.step)
            clock.step_launched()
            self.state.losses.append(loss)
            progress.step += 1
            progress.seconds = clock.seconds()
            if self.state.average:
                self.state.average.update(self.model, progress.step)
            if self._is_due(config.log_every):
                self._log(norm, clock)
            self.writer.check()
            stop.check()
            if self._evaluation_is_due():
                self.evaluate(stop.check)
                progress.seconds = clock.seconds()
                clock.lap(progress.step)
            if self._is_due(config.checkpoint_every) or self._is_finished():
                self.save_checkpoint()

    def _is_due(self, interval: int) -> bool:
        step = self.state.progress.step
        return step > 0 and (step % interval == 0 or step == self.config.steps)

    def _evaluation_is_due(self) -> bool:
        progress = self.state.progress
        return self._is_due(self.config.evaluate_every) and progress.evaluated_step < progress.step

    def _is_finished(self) -> bool:
        """Whether all steps are done, or early stopping ends the run."""
        progress, config = self.state.progress, self.config
        if progress.step >= config.steps:
            return True
        num_worse = (progress.evaluated_step - progress.best_step) // config.evaluate_every
        return config.patience is not None and progress.best_step >= 0 and num_worse >= config.patience

    def _log(self, norm: Tensor, clock: _Clock) -> None:
        step, losses = self.state.progress.step, self.state.losses
        # Over all processes, so that all of them stop if the loss of one is not finite.
        loss = float(cast("Tensor", self.fabric.all_reduce(torch.stack(losses).mean(), reduce_op="mean")))
        losses.clear()
        self._require_finite(loss, "loss")
        self.log.write("train", step, {"loss": loss, "lr": learning_rate(step, self.config), "grad_norm": float(norm)})
        metrics = StepMetrics(step, loss, *clock.lap(step))
        self.log.write_speed(
            step, {"examples_per_second": metrics.examples_per_second, "waiting_for_data": metrics.waiting}
        )
        self.callback(metrics)

    def _require_finite(self, loss: float, name: str) -> None:
        if not np.isfinite(loss):
            raise Yt8mError(
                f"{self.folder}: the {name} is {loss} at step {self.state.progress.step}; peak_lr {self.config.peak_lr:g} is "
                "too high, or the data is corrupt."
            )

    def save_checkpoint(self) -> None:
        """Start to write a checkpoint, in the first process."""
        if self.fabric.is_global_zero:
            self.writer.write(self.state)

    def evaluate(self, check: Callable[[], None]) -> None:
        """Evaluate on the held-out data, and save the model if it is the best so far."""
        progress, config = self.state.progress, self.config
        if self.fabric.world_size > 1 and not self.machine.sync_batch_norm:
            # Each process has its own running statistics; evaluate those that are saved, of the first process.
            for buffer in self.model.buffers():
                torch.distributed.broadcast(buffer, 0)
        average = self.state.average
        model = self.model if average is None else average.model_to_evaluate(self.model, self._forward)
        model.eval()
        metrics = self.task.evaluate(self.fabric, model, check)
        self.wrapped.train()
        self._require_finite(metrics["loss"], "held-out loss")
        self.log.write("valid", progress.step, metrics)
        progress.evaluated_step = progress.step
        value = metrics[config.monitor]
        sign = 1 if METRIC_MODES[config.monitor] == "max" else -1
        improved = not sign * progress.best_value >= sign * value
        if progress.best_step < 0 or (improved and not np.isnan(value)):
            progress.best_value, progress.best_step = value, progress.step
            if self.fabric.is_global_zero:
                self.task.save(self.folder / MODEL_FOLDER, model, progress.step, metrics)
        self.fabric.barrier()

    def _forward(self, model: nn.Module, number: int) -> None:
        """Run a model on a training batch."""
        torch.manual_seed(step_seed(self.seed, number, 0))
        with self.fabric.autocast():
            self.task.loss(model, self.fabric.to_device(self.batches[number]))
