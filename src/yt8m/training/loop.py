"""The one training loop.

A task says what a batch is, what its loss is and how the model is judged; the loop walks the steps, keeps the best
model, checkpoints, logs and resumes. Devices, precision and processes are Lightning Fabric's. Step s depends on the
weights before it and on (seed, s) alone, so a run that was killed goes on to the same end.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from pydantic import Field, model_validator
from torch import Tensor, nn

from yt8m.dataset.loading import Share
from yt8m.dataset.read_ahead import step_loader
from yt8m.errors import Yt8mError
from yt8m.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from yt8m.training.metrics_log import MetricsLog
from yt8m.training.optimization import OptimizationConfig, make_optimizer

CHECKPOINT_FILE = "checkpoint.pt"
Direction = Literal["min", "max"]

DIRECTIONS: dict[str, Direction] = {"loss": "min", "auc": "max", "map": "max"}
"""Metrics a best model can be chosen by, and which way is better."""


class TrainingConfig(OptimizationConfig):
    """One training run: how the weights move, and how often we look."""

    evaluate_every: int = Field(default=1000, gt=0)
    """Steps between evaluations on the held-out videos; the last step is always evaluated."""
    checkpoint_every: int = Field(default=500, gt=0)
    """Steps between checkpoints, which a killed run resumes from."""
    log_every: int = Field(default=20, gt=0)
    """Steps between lines of the training log."""
    choose_by: Literal["loss", "auc", "map"] = "auc"
    """What the best model is chosen by, on the held-out videos."""

    @model_validator(mode="after")
    def _checkpoints_fall_on_log_lines(self) -> Self:
        if self.checkpoint_every % self.log_every:
            # A log line averages the steps since the last one; a run that resumes between two would lose some.
            raise ValueError(
                f"checkpoint_every {self.checkpoint_every} must be a multiple of log_every {self.log_every}"
            )
        return self


class Task(Protocol):
    """What a stage trains, on what, judged by what."""

    def batches(self, share: Share) -> Any:
        """Training batches of this process."""

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Loss of a batch, a scalar."""

    def evaluate(self, fabric: Fabric, model: nn.Module) -> dict[str, float]:
        """Metrics on the held-out videos, at least those of `DIRECTIONS`."""

    def slow_parameters(self, model: nn.Module) -> list[nn.Parameter]:
        """Parameters that learn at the slower rate."""

    def save(self, folder: Path, model: nn.Module, step: int, metrics: dict[str, float]) -> None:
        """Write the model folder."""


@dataclass(frozen=True)
class Fitted:
    """What a run ended with: the best model's step and metrics, and seconds of training in all."""

    best_step: int
    metrics: dict[str, float]
    seconds: float


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of all that is random inside the model at a step (dropout), different for every process."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def fit(
    fabric: Fabric,
    model: nn.Module,
    task: Task,
    config: TrainingConfig,
    folder: Path,
    seed: int,
    num_workers: int = 0,
    on_step: Callable[[int, float], None] | None = None,
) -> Fitted:
    """Train a model, or go on training it where a former call was stopped.

    Args:
        fabric: Launched; gives device, precision and processes.
        model: As initialized for this run; its weights are replaced when there is a checkpoint.
        task: Data, loss and evaluation.
        config: Steps, rates and intervals.
        folder: Receives `model/` (the best model), `metrics.csv`, `tensorboard/` and, until the end, `checkpoint.pt`.
        seed: Decides batches and dropout.
        num_workers: Processes that read ahead.
        on_step: Called with the steps done and the loss, for a progress bar.

    Returns:
        The best model's metrics. `model` holds the weights of the last step.

    Raises:
        Yt8mError: The loss is no longer a number.
    """
    optimizer, schedule = make_optimizer(model, config, task.slow_parameters(model))
    wrapped, optimizer = fabric.setup(model, optimizer)
    checkpoint = folder / CHECKPOINT_FILE
    progress = Progress(step=0, best_value=float("nan"), best_step=-1, seconds=0.0)
    if checkpoint.exists():
        progress = load_checkpoint(checkpoint, model, optimizer, schedule, fabric.device)
    log = MetricsLog(folder, fabric, progress["step"])
    batches = task.batches(Share(fabric.global_rank, fabric.world_size))
    loader = step_loader(batches, progress["step"], config.steps, num_workers, fabric.device.type == "cuda")
    wrapped.train()
    started, before = time.monotonic(), progress["seconds"]
    losses: list[Tensor] = []
    for step, host_batch in enumerate(loader, start=progress["step"]):
        batch = fabric.to_device(host_batch)
        torch.manual_seed(step_seed(seed, step, fabric.global_rank))
        loss = task.loss(wrapped, batch)
        fabric.backward(loss)
        grad_norm = fabric.clip_gradients(wrapped, optimizer, max_norm=config.max_grad_norm, error_if_nonfinite=False)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        losses.append(loss.detach())
        done = step + 1
        progress["step"] = done
        progress["seconds"] = before + time.monotonic() - started
        if done % config.log_every == 0 or done == config.steps:
            # Over all processes, so that all of them stop where one has no number.
            average = float(cast("Tensor", fabric.all_reduce(torch.stack(losses).mean(), reduce_op="mean")))
            losses.clear()
            _require_number(average, "loss", folder, done, config)
            norm = float("nan") if grad_norm is None else float(grad_norm)
            log.write("train", done, {"loss": average, "rate": float(max(schedule.get_last_lr())), "grad_norm": norm})
            if on_step:
                on_step(done, average)
        if done % config.evaluate_every == 0 or done == config.steps:
            _evaluate(fabric, model, wrapped, task, config, folder, log, progress)
        if done % config.checkpoint_every == 0 or done == config.steps:
            save_checkpoint(fabric, checkpoint, model, optimizer, schedule, progress)
    log.close()
    return Fitted(progress["best_step"], log.values("valid", progress["best_step"]), progress["seconds"])


def _evaluate(
    fabric: Fabric,
    model: nn.Module,
    wrapped: nn.Module,
    task: Task,
    config: TrainingConfig,
    folder: Path,
    log: MetricsLog,
    progress: Progress,
) -> None:
    """Judge the model on the held-out videos, and keep it when it is the best so far."""
    if fabric.world_size > 1:
        # Batch norm's running statistics are each process's own; judged is the model that is saved, the first one's.
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, 0)
    wrapped.eval()
    metrics = task.evaluate(fabric, model)
    wrapped.train()
    _require_number(metrics["loss"], "held-out loss", folder, progress["step"], config)
    log.write("valid", progress["step"], metrics)
    value = metrics[config.choose_by]
    if DIRECTIONS[config.choose_by] == "min":
        better = not progress["best_value"] <= value
    else:
        better = not progress["best_value"] >= value
    if progress["best_step"] < 0 or (better and not np.isnan(value)):
        progress["best_value"], progress["best_step"] = value, progress["step"]
        if fabric.is_global_zero:
            task.save(folder / "model", model, progress["step"], metrics)
    fabric.barrier()


def _require_number(loss: float, name: str, folder: Path, step: int, config: TrainingConfig) -> None:
    if not np.isfinite(loss):
        raise Yt8mError(
            f"{folder}: the {name} is {loss} at step {step}; the rate {config.peak_rate:g} is too high, or the data broken."
        )
