"""Learning-rate finder (Smith 2017, "Cyclical learning rates for training neural networks", sec. 3.3).

A sweep trains while the learning rate rises exponentially. Suggested as the peak of a schedule is the learning rate where
the loss falls fastest, not where it is lowest: slightly above that, it rises again.
"""

import copy
import math
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from lightning_fabric import Fabric
from matplotlib.figure import Figure
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import nn

from yt8m.dataset.read_ahead import on_device, step_loader
from yt8m.files import write_csv
from yt8m.runtime.machine import MachineConfig
from yt8m.runtime.plotting import BLUE, GRAY, ORANGE, hide_frame, save_figure
from yt8m.runtime.progress import ProgressFactory, no_progress, track
from yt8m.settings import MAX_STEPS, Settings
from yt8m.training.config import TrainingConfig
from yt8m.training.loop import Task, training_batches
from yt8m.training.optimization import make_optimizer, set_learning_rates
from yt8m.training.step import step_seed, train_step

LR_TABLE_FILE, LR_PICTURE_FILE = "lr_finder.csv", "lr_finder.png"
DIVERGENCE_FACTOR = 4.0
"""The sweep ends when the smoothed loss exceeds this multiple of its minimum."""
SMOOTHING_WINDOW = 1 / 20
"""Time constant of the smoothed loss, as a fraction of the sweep: 10 of 200 steps, which is a decay of 0.9. Relative, so
that the lag covers the same range of learning rates for any number of steps."""


class LRSweepConfig(Settings):
    """Learning rates of a sweep."""

    steps: int = Field(default=200, ge=10, le=MAX_STEPS)
    """Number of steps, each at a higher learning rate than the one before."""
    lowest: float = Field(default=1e-6, gt=0, allow_inf_nan=False)
    """Learning rate of the first step."""
    highest: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Learning rate of the last step."""

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if self.lowest >= self.highest:
            raise ValueError(f"the lowest learning rate {self.lowest:g} is not below the highest, {self.highest:g}")
        return self

    @property
    def learning_rates(self) -> list[float]:
        """Learning rate of each step, spaced evenly on a log scale."""
        return [float(rate) for rate in np.geomspace(self.lowest, self.highest, self.steps)]


class Suggestion(NamedTuple):
    """Result of a sweep.

    Args:
        peak_lr: Learning rate where the smoothed loss falls fastest over log(learning rate), before its minimum.
        lowest_loss_lr: Learning rate at the minimum.
    """

    peak_lr: float
    lowest_loss_lr: float


@dataclass(frozen=True)
class LRCurve:
    """The loss over the learning rate.

    Args:
        sweep: Learning rates of the sweep.
        losses: Loss of each step, before its update of the weights.
        smoothed: Exponential moving average of the losses, with bias correction.
    """

    sweep: LRSweepConfig
    losses: list[float]
    smoothed: list[float]

    @property
    def suggestion(self) -> Suggestion | None:
        """The suggested learning rate; None if the loss never falls or the sweep ended too early.

        Excludes the first tenth of the sweep, where the average covers few batches. The slope at a step is that of a
        least-squares line through the smoothed losses of the tenth of the sweep around it, so that a single easy batch
        does not decide.
        """
        values = np.array(self.smoothed)
        values = values[np.isfinite(values)]
        first, half = self.sweep.steps // 10, max(1, self.sweep.steps // 20)
        if len(values) <= max(first, 2 * half):
            return None
        lowest = first + int(values[first:].argmin())
        # Steps are evenly spaced in log(learning rate): slopes over both differ by a constant factor.
        slopes = sliding_window_view(values, 2 * half + 1) @ np.arange(-half, half + 1)
        slopes = slopes[first - half : lowest + 1 - half]
        if not (slopes < 0).any():
            return None
        rates = self.sweep.learning_rates
        return Suggestion(rates[first + int(slopes.argmin())], rates[lowest])


def smooth_losses(sweep: LRSweepConfig, losses: Iterable[float]) -> LRCurve:
    """Smooth the losses of a sweep, and end it where they diverge.

    Args:
        sweep: Learning rates of the sweep.
        losses: Loss of each step; consumed until the smoothed loss exceeds `DIVERGENCE_FACTOR` times its minimum or is
            not finite.
    """
    curve = LRCurve(sweep, [], [])
    decay = max(0.0, 1 - 1 / (SMOOTHING_WINDOW * sweep.steps))
    average = weight = 0.0
    for loss in losses:
        average, weight = decay * average + (1 - decay) * loss, decay * weight + (1 - decay)
        curve.losses.append(loss)
        curve.smoothed.append(average / weight)
        if not math.isfinite(average) or curve.smoothed[-1] > DIVERGENCE_FACTOR * min(curve.smoothed):
            break
    return curve


def lr_sweep(
    fabric: Fabric,
    model: nn.Module,
    task: Task,
    config: TrainingConfig,
    sweep: LRSweepConfig,
    seed: int,
    machine: MachineConfig | None = None,
    progress: ProgressFactory = no_progress,
) -> LRCurve:
    """Train a copy of a model while the learning rate rises, with the batches and random numbers of `fit`'s first steps.

    Does not compile the network, which does not pay off for so few steps.

    Args:
        fabric: Launched, one process.
        model: As initialized; it is not changed.
        task: Data and loss.
        config: Training settings except the learning rates.
        sweep: Learning rates.
        seed: Seed of batches and dropout.
        machine: Number of worker processes.
        progress: Reports steps done.

    Raises:
        UsageError: A batch cannot be split into equal micro-batches.
    """
    batches = training_batches(fabric, task, config)
    trained = copy.deepcopy(model)
    wrapped, optimizer = fabric.setup(trained, make_optimizer(trained, config, task.encoder_parameters(trained)))
    num_workers = 0 if machine is None else machine.num_workers
    loader = step_loader(batches, 0, sweep.steps, num_workers, fabric.device.type == "cuda")
    moved = on_device(loader, fabric.device)

    def losses() -> Iterator[float]:
        wrapped.train()
        for number, rate in enumerate(track(sweep.learning_rates, "find-lr", progress)):
            set_learning_rates(optimizer, rate)
            seeds = [step_seed(seed, number, index) for index in range(config.gradient_accumulation)]
            yield float(train_step(fabric, wrapped, optimizer, task.loss, config, next(moved), seeds)[0])

    with closing(loader):
        return smooth_losses(sweep, losses())


def write_lr_curve(path: Path, curve: LRCurve) -> None:
    """Write a CSV file `step,lr,loss,smoothed` with one row per step, counted from 1."""
    rows = zip(curve.sweep.learning_rates, curve.losses, curve.smoothed, strict=False)
    write_csv(path, ("step", "lr", "loss", "smoothed"), ([step, *row] for step, row in enumerate(rows, start=1)))


def plot_lr_curve(path: Path, curve: LRCurve, name: str, peak_lr: float) -> None:
    """Plot the loss over the learning rate, with the suggested learning rate and that of the recipe.

    Args:
        path: The PNG file.
        curve: At least one step.
        name: Name of the model.
        peak_lr: Peak learning rate of the recipe.
    """
    rates, losses = curve.sweep.learning_rates[: len(curve.losses)], np.array(curve.losses)
    smoothed = np.array(curve.smoothed)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(rates, losses, color=GRAY, linewidth=0.9, label="batch")
    axes.plot(rates, smoothed, color=BLUE, linewidth=2.2, label="smoothed")
    if (suggestion := curve.suggestion) is not None:
        label = f"suggested: {suggestion.peak_lr:.2g}"
        axes.axvline(suggestion.peak_lr, color=ORANGE, linewidth=1.8, label=label)
    axes.axvline(peak_lr, color="#444444", linewidth=1.4, linestyle="--", label=f"recipe: {peak_lr:.2g}")
    axes.set_xscale("log")
    axes.set_ylim(*_loss_limits(losses, smoothed))
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss")
    hide_frame(axes)
    figure.suptitle(f"{name}: learning-rate sweep", fontsize=11, x=0.01, ha="left", parse_math=False)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    save_figure(path, figure)


def _loss_limits(losses: NDArray[np.float64], smoothed: NDArray[np.float64]) -> tuple[float | None, float | None]:
    """Limits of the loss axis: they show the descent and cut off the divergence."""
    if not np.isfinite(smoothed[0]):
        return None, None
    lowest = int(np.nanargmin(smoothed))
    top, bottom = losses[: lowest + 1].max(), losses[np.isfinite(losses)].min()
    margin = 0.05 * (top - bottom or abs(top) or 1.0)
    return float(bottom - margin), float(top + 5 * margin)
