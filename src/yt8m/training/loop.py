"""The one training loop.

A task says what a batch is, what its loss is and how the model is judged; the loop walks the steps, keeps the best
model, checkpoints, logs and resumes. Devices, precision and processes are Lightning Fabric's. Step s depends on the
weights before it and on (seed, s) alone, so a run that was killed goes on to the same end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricModule
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from yt8m.dataset.batches import Batches, Share
from yt8m.dataset.read_ahead import on_device, step_loader
from yt8m.errors import Interrupted, UsageError, Yt8mError
from yt8m.files import clear_leftovers
from yt8m.models.layers.dropout import split_over_processes
from yt8m.runtime.machine import MachineConfig
from yt8m.runtime.stopping import StopRequest, StopRequestedError
from yt8m.training.averaging import AveragingConfig, averaging
from yt8m.training.captured import CapturedStep, make_capturable
from yt8m.training.checkpoint import CheckpointWriter, TrainingState
from yt8m.training.metrics_log import METRICS_FILE, MetricsLog, WandbRun
from yt8m.training.optimization import OptimizationConfig, make_optimizer, rate_of, set_rates

CHECKPOINT_FILE = "checkpoint.pt"
MODEL_FOLDER = "model"
Direction = Literal["min", "max"]

DIRECTIONS: dict[str, Direction] = {"loss": "min", "auc": "max", "map": "max"}
"""Metrics a best model can be chosen by, and which way is better."""


class TrainingConfig(OptimizationConfig):
    """One training run: how the weights move, and how often we look."""

    averaging: AveragingConfig = AveragingConfig()
    """Averages of the weights (EMA, SWA) to judge and save in their place."""
    evaluate_every: int = Field(default=1000, gt=0)
    """Steps between evaluations on the held-out videos; the last step is always evaluated."""
    checkpoint_every: int = Field(default=500, gt=0)
    """Steps between checkpoints, which a killed run resumes from."""
    log_every: int = Field(default=20, gt=0)
    """Steps between lines of the training log."""
    monitor: Literal["loss", "auc", "map"] = "auc"
    """What the best model is chosen by, on the held-out videos."""
    patience: int | None = Field(default=None, gt=0)
    """Evaluations in a row that may be no better than the best before the run ends early; never where left out."""


class Task(Protocol):
    """What a stage trains, on what, judged by what."""

    def batches(self, share: Share) -> Batches:
        """Training batches of this process."""

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Loss of a batch, a scalar."""

    def evaluate(self, fabric: Fabric, model: nn.Module, check: Callable[[], None]) -> dict[str, float]:
        """Metrics on the held-out videos, at least those of `DIRECTIONS`.

        `check` is called often, equally often by every process; it raises where the run is asked to stop.
        """

    def encoder_parameters(self, model: nn.Module) -> list[nn.Parameter]:
        """Parameters that learn at the slower rate."""

    def save(self, folder: Path, model: nn.Module, step: int, metrics: dict[str, float]) -> None:
        """Write the model folder."""


@dataclass(frozen=True)
class Fitted:
    """What a run ended with: the best model's step and metrics, the last step, and seconds of training in all."""

    best_step: int
    metrics: dict[str, float]
    last_step: int
    seconds: float


class Pace(NamedTuple):
    """How a run comes along, at a line of its log.

    Args:
        step: Steps done.
        loss: Its mean since the last line.
        examples_per_second: Videos or segments a second since then, over all processes.
        waiting: Share of the time since then that was spent waiting for data.
    """

    step: int
    loss: float
    examples_per_second: float
    waiting: float

    @property
    def note(self) -> str:
        """The same in a few words, for a progress bar."""
        waiting = f", {self.waiting:.0%} waiting for data" if self.waiting >= 0.05 else ""
        return f"loss {self.loss:.4g}, {self.examples_per_second:,.0f} examples/s{waiting}"


def step_seed(seed: int, step: int, part: int) -> int:
    """Seed of all that is random inside the model at a step (dropout), for each part of an accumulated batch.

    The same for every process: layers draw for the global batch and each process uses its rows.
    """
    return int(np.random.SeedSequence([seed, step, part]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def parts_of(batch: Any, num_parts: int) -> list[Any]:
    """Split a batch, a named tuple of tensors (B, ...), into equal parts.

    Part p has the examples p, p + num_parts, ...: so it is the same part of the global batch, whatever the processes.
    """
    return [type(batch)(*(tensor[part::num_parts] for tensor in batch)) for part in range(num_parts)]


def training_batches(fabric: Fabric, task: Task, config: TrainingConfig) -> Batches:
    """Training batches of this process.

    Raises:
        UsageError: They cannot be taken in as many parts as the settings say.
    """
    batches = task.batches(Share(fabric.global_rank, fabric.world_size))
    if batches.share_size % config.gradient_accumulation:
        raise UsageError(
            f"gradient_accumulation {config.gradient_accumulation} does not divide the {batches.share_size} examples that a process has of "
            "each batch."
        )
    return batches


def train_step(
    fabric: Fabric,
    model: _FabricModule,
    optimizer: Optimizer,
    loss_of: Callable[[nn.Module, Any], Tensor],
    batch: Any,
    config: TrainingConfig,
    seeds: Sequence[int] = (),
) -> tuple[Tensor, Tensor]:
    """One step: forward, loss, backward, gradients clipped, optimizer.

    Args:
        fabric: Launched.
        model: Set up by Fabric.
        optimizer: Set up by Fabric.
        loss_of: Loss of a model on a batch.
        batch: On the device.
        config: Clipping, and how many parts the batch is taken in.
        seeds: Seeds of the random numbers of each part; none where the generators are seeded already.

    Returns:
        The loss and the gradient's norm before clipping, scalars on the device.
    """
    losses = []
    for part, examples in enumerate(parts_of(batch, config.gradient_accumulation)):
        if seeds:
            torch.manual_seed(seeds[part])
        with fabric.no_backward_sync(model, enabled=part + 1 < config.gradient_accumulation):
            loss = loss_of(model, examples) / config.gradient_accumulation
            fabric.backward(loss)
        losses.append(loss.detach())
    norm = fabric.clip_gradients(model, optimizer, max_norm=config.max_grad_norm, error_if_nonfinite=False)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return torch.stack(losses).sum(), cast("Tensor", norm)


def stepper(
    fabric: Fabric,
    model: _FabricModule,
    optimizer: Optimizer,
    loss_of: Callable[[nn.Module, Any], Tensor],
    config: TrainingConfig,
    seed: int,
    machine: MachineConfig,
) -> Callable[[Any, int], tuple[Tensor, Tensor]]:
    """What does the steps of a run: `train_step` at the step's rate, with the step's random numbers.

    On one GPU the compiled steps are recorded, and all batches must have one shape.

    Returns:
        A function of a batch on the device and the step's number, from 0; it gives what `train_step` gives.
    """

    def step(batch: Any, number: int) -> tuple[Tensor, Tensor]:
        set_rates(optimizer, rate_of(number, config))
        seeds = [step_seed(seed, number, part) for part in range(config.gradient_accumulation)]
        return train_step(fabric, model, optimizer, loss_of, batch, config, seeds)

    if not machine.captures(fabric):
        return step
    make_capturable(optimizer, fabric.device)
    captured = CapturedStep(lambda batch: train_step(fabric, model, optimizer, loss_of, batch, config), fabric.device)

    def replay(batch: Any, number: int) -> tuple[Tensor, Tensor]:
        set_rates(optimizer, rate_of(number, config))
        torch.manual_seed(step_seed(seed, number, 0))
        return captured(batch)

    return replay


def fit(
    fabric: Fabric,
    model: nn.Module,
    task: Task,
    config: TrainingConfig,
    folder: Path,
    seed: int,
    machine: MachineConfig | None = None,
    on_log: Callable[[Pace], None] | None = None,
    wandb_run: WandbRun | None = None,
) -> Fitted:
    """Train a model, or go on training it where a former call was stopped.

    SIGTERM and Ctrl-C end the run after the step at hand, with a checkpoint, wherever they reach the main thread of
    one of its processes.

    Args:
        fabric: Launched; gives device, precision and processes.
        model: As initialized for this run; its weights are replaced when there is a checkpoint.
        task: Data, loss and evaluation.
        config: Steps, rates and intervals.
        folder: Receives `model/` (the best model), `metrics.csv`, `tensorboard/` and, until the end, `checkpoint.pt`.
        seed: Decides batches and dropout.
        machine: How batches are read, whether the network is compiled, what batch norm does over processes.
        on_log: Called at every line of the training log, for a progress bar.
        wandb_run: The run as Weights & Biases shall know it, where it is logged there.

    Returns:
        The best model's metrics. `model` holds the weights of the last step.

    Raises:
        Interrupted: The run was asked to stop; its checkpoint is written.
        Yt8mError: The loss is no longer a number, or the disk is full.
    """
    return _Training(fabric, model, task, config, folder, seed, machine or MachineConfig(), wandb_run).to_the_end(
        on_log
    )


class _Training:
    """A run of `fit`: what its parts share."""

    def __init__(
        self,
        fabric: Fabric,
        model: nn.Module,
        task: Task,
        config: TrainingConfig,
        folder: Path,
        seed: int,
        machine: MachineConfig,
        wandb_run: WandbRun | None,
    ) -> None:
        self.fabric, self.model, self.task, self.config = fabric, model, task, config
        self.folder, self.seed, self.machine = folder, seed, machine
        split_over_processes(model, fabric.global_rank, fabric.world_size, machine.sync_batch_norm)
        self.batches = training_batches(fabric, task, config)
        optimizer = make_optimizer(model, config, task.encoder_parameters(model))
        self.compiles = machine.compiles(fabric.device)
        network = cast("nn.Module", torch.compile(model)) if self.compiles else model
        self.wrapped, self.optimizer = fabric.setup(network, optimizer)
        average = averaging(model, config.averaging, config.steps)
        self.state = TrainingState(model, optimizer, fabric.strategy.precision, average)
        if fabric.is_global_zero:
            for name in (CHECKPOINT_FILE, MODEL_FOLDER, METRICS_FILE):
                clear_leftovers(folder / name)
        fabric.barrier()
        if (folder / CHECKPOINT_FILE).exists():
            self.state.load(folder / CHECKPOINT_FILE, fabric.device)
        self.log = MetricsLog(folder, fabric, self.state.progress["step"], wandb_run=wandb_run)
        self.writer = CheckpointWriter(folder / CHECKPOINT_FILE, self.log.flush)

    def to_the_end(self, on_log: Callable[[Pace], None] | None) -> Fitted:
        progress = self.state.progress
        with self.log, self.writer, StopRequest(self.fabric) as stop:
            try:
                if self._evaluation_is_due():
                    self._evaluate(stop.check)
                if not self._is_over():
                    self._steps(stop, on_log)
            except StopRequestedError:
                self._save()
                self.writer.wait()
                self.fabric.barrier()
                raise Interrupted(
                    f"{self.folder}: stopped as asked after step {progress['step']:,} of {self.config.steps:,}; the same "
                    "command goes on from there."
                ) from None
        metrics = self.log.values("valid", progress["best_step"])
        return Fitted(progress["best_step"], metrics, progress["step"], progress["seconds"])

    def _steps(self, stop: StopRequest, on_log: Callable[[Pace], None] | None) -> None:
        config, progress, device = self.config, self.state.progress, self.fabric.device
        pins = device.type == "cuda"
        loader = step_loader(self.batches, progress["step"], config.steps, self.machine.num_workers, pins)
        # A compiled network is compiled for one number of frames.
        moved = on_device(loader, device, self.batches.max_frames if self.compiles else None)
        self.wrapped.train()
        step = stepper(self.fabric, self.wrapped, self.optimizer, self.task.loss, config, self.seed, self.machine)
        clock = _Clock(progress["seconds"], progress["step"], config.batch_size, device)
        while not self._is_over():
            with clock.waiting():
                batch = next(moved)
            loss, norm = step(batch, progress["step"])
            clock.worked()
            self.state.losses.append(loss)
            progress["step"] += 1
            progress["seconds"] = clock.seconds()
            if self.state.average:
                self.state.average.update(self.model, progress["step"])
            if self._is_due(config.log_every):
                self._log(norm, clock, on_log)
            self.writer.check()
            stop.check()
            if self._evaluation_is_due():
                self._evaluate(stop.check)
                progress["seconds"] = clock.seconds()
                clock.lap(progress["step"])
            if self._is_due(config.checkpoint_every) or self._is_over():
                self._save()

    def _is_due(self, interval: int) -> bool:
        step = self.state.progress["step"]
        return step > 0 and (step % interval == 0 or step == self.config.steps)

    def _evaluation_is_due(self) -> bool:
        progress = self.state.progress
        return self._is_due(self.config.evaluate_every) and progress["evaluated_step"] < progress["step"]

    def _is_over(self) -> bool:
        """Whether all steps are done, or the evaluations have not become better for too long."""
        progress, config = self.state.progress, self.config
        if progress["step"] >= config.steps:
            return True
        waited = (progress["evaluated_step"] - progress["best_step"]) // config.evaluate_every
        return config.patience is not None and progress["best_step"] >= 0 and waited >= config.patience

    def _log(self, norm: Tensor, clock: _Clock, on_log: Callable[[Pace], None] | None) -> None:
        step, losses = self.state.progress["step"], self.state.losses
        # Over all processes, so that all of them stop where one has no number.
        average = float(cast("Tensor", self.fabric.all_reduce(torch.stack(losses).mean(), reduce_op="mean")))
        losses.clear()
        _require_number(average, "loss", self.folder, step, self.config)
        rate = rate_of(step, self.config)
        self.log.write("train", step, {"loss": average, "rate": rate, "grad_norm": float(norm)})
        pace = Pace(step, average, *clock.lap(step))
        self.log.watch(step, {"examples_per_second": pace.examples_per_second, "waiting_for_data": pace.waiting})
        if on_log:
            on_log(pace)

    def _save(self) -> None:
        if self.fabric.is_global_zero:
            self.writer.write(self.state)

    def _evaluate(self, check: Callable[[], None]) -> None:
        """Judge the model on the held-out videos, and keep it when it is the best so far."""
        progress, config = self.state.progress, self.config
        if self.fabric.world_size > 1 and not self.machine.sync_batch_norm:
            # Running statistics are each process's own; judged is the model that is saved, the first one's.
            for buffer in self.model.buffers():
                torch.distributed.broadcast(buffer, 0)
        judged = self.model if self.state.average is None else self.state.average.judged(self.model, self._show)
        judged.eval()
        metrics = self.task.evaluate(self.fabric, judged, check)
        self.wrapped.train()
        _require_number(metrics["loss"], "held-out loss", self.folder, progress["step"], config)
        self.log.write("valid", progress["step"], metrics)
        progress["evaluated_step"] = progress["step"]
        value = metrics[config.monitor]
        if DIRECTIONS[config.monitor] == "min":
            better = not progress["best_value"] <= value
        else:
            better = not progress["best_value"] >= value
        if progress["best_step"] < 0 or (better and not np.isnan(value)):
            progress["best_value"], progress["best_step"] = value, progress["step"]
            if self.fabric.is_global_zero:
                self.task.save(self.folder / MODEL_FOLDER, judged, progress["step"], metrics)
        self.fabric.barrier()

    def _show(self, model: nn.Module, number: int) -> None:
        """Send a training batch through a model."""
        torch.manual_seed(step_seed(self.seed, number, 0))
        with self.fabric.autocast():
            self.task.loss(model, self.fabric.to_device(self.batches[number]))


class _Clock:
    """Seconds of a run, and what they were spent on since the last look.

    Args:
        before: Seconds of former tries.
        step: Steps done.
        batch_size: Examples in a step.
        device: Where the steps are computed.
    """

    def __init__(self, before: float, step: int, batch_size: int, device: torch.device) -> None:
        self._before, self._step, self._batch_size = before, step, batch_size
        self._started = self._lap_started = time.monotonic()
        self._waited = 0.0
        self._done = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def worked(self) -> None:
        """A step was handed to the device."""
        if self._done is not None:
            self._done.record()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time inside is spent waiting for data, unless a GPU still had work at its end."""
        begun = time.monotonic()
        yield
        if self._done is None or self._done.query():  # type: ignore[no-untyped-call]
            self._waited += time.monotonic() - begun

    def seconds(self) -> float:
        """Seconds in all."""
        return self._before + time.monotonic() - self._started

    def lap(self, step: int) -> tuple[float, float]:
        """Examples a second and the share of time spent waiting for data, since the last call."""
        now = time.monotonic()
        elapsed = max(now - self._lap_started, 1e-9)
        rate, waiting = (step - self._step) * self._batch_size / elapsed, self._waited / elapsed
        self._lap_started, self._step, self._waited = now, step, 0.0
        return rate, waiting


def _require_number(loss: float, name: str, folder: Path, step: int, config: TrainingConfig) -> None:
    if not np.isfinite(loss):
        raise Yt8mError(
            f"{folder}: the {name} is {loss} at step {step}; the rate {config.peak_lr:g} is too high, or the data broken."
        )
