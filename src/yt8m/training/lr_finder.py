"""A learning-rate finder: what the loss does while the rate rises exponentially.

After Smith 2017, "Cyclical learning rates for training neural networks", sec. 3.3. Too low a rate moves nothing, a good
one makes the loss fall, too high a one throws it up again; one short sweep through all of them shows where each begins.
Suggested as the peak of a schedule is the rate at which the loss falls fastest: where it is lowest, a little more would
make it rise.
"""

from __future__ import annotations

import copy
import csv
import math
from collections.abc import Iterable, Iterator
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
from yt8m.files import written_atomically
from yt8m.runtime.machine import MachineConfig
from yt8m.runtime.progress import ProgressFactory, no_progress, track
from yt8m.scoring.report import DENSE_COLOR, RATED_COLOR, TRUTH_COLOR, save_picture
from yt8m.settings import Settings
from yt8m.training.loop import Task, TrainingConfig, step_seed, train_step, training_batches
from yt8m.training.optimization import make_optimizer, set_rates

RATES_FILE, PICTURE_FILE = "rates.csv", "rates.png"
DIVERGED = 4.0
"""The sweep is over when the smoothed loss is so many times its lowest value."""
MEMORY = 1 / 20
"""Share of the sweep that the smoothed loss looks back on: of 200 steps 10, so that each average keeps 0.9 of the one
before. The lag behind the loss is the same stretch of the rates whatever the number of steps."""


class LRSweepConfig(Settings):
    """Which rates are tried."""

    steps: int = Field(default=200, ge=10)
    """Steps, each at a higher rate than the one before."""
    lowest: float = Field(default=1e-6, gt=0, allow_inf_nan=False)
    """Rate of the first step."""
    highest: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Rate of the last step."""

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if self.lowest >= self.highest:
            raise ValueError(f"the lowest rate {self.lowest:g} is not below the highest, {self.highest:g}")
        return self

    @property
    def rates(self) -> list[float]:
        """Rate of each step, equal factors apart."""
        found: list[float] = np.geomspace(self.lowest, self.highest, self.steps).tolist()
        return found


class Suggestion(NamedTuple):
    """What a sweep says.

    Args:
        peak_lr: Where the smoothed loss falls fastest over log(rate), before it is lowest.
        lowest_at: Where it is lowest.
    """

    peak_lr: float
    lowest_at: float


@dataclass(frozen=True)
class RateCurve:
    """What the loss did during a sweep.

    Args:
        sweep: The rates tried.
        losses: Loss of each step done, before the step moved the weights.
        smoothed: Exponential average of the losses up to each step, corrected for its start at zero.
    """

    sweep: LRSweepConfig
    losses: list[float]
    smoothed: list[float]

    @property
    def suggestion(self) -> Suggestion | None:
        """What to make of it; None where the loss never falls, or the sweep was over before that could be said.

        The first tenth of the sweep is not looked at, where averages are of few batches. The slope at a step is that of
        the least-squares line through the smoothed losses around it, a tenth of the sweep, so that one batch of easy
        examples does not decide.
        """
        values = np.array(self.smoothed)
        values = values[np.isfinite(values)]
        first, half = self.sweep.steps // 10, max(1, self.sweep.steps // 20)
        if len(values) <= max(first, 2 * half):
            return None
        lowest = first + int(values[first:].argmin())
        # Rates are equal factors apart: slopes over the steps are slopes over log(rate), but for a constant.
        slopes = sliding_window_view(values, 2 * half + 1) @ np.arange(-half, half + 1)
        slopes = slopes[first - half : lowest + 1 - half]
        if not (slopes < 0).any():
            return None
        return Suggestion(self.sweep.rates[first + int(slopes.argmin())], self.sweep.rates[lowest])


def follow(sweep: LRSweepConfig, losses: Iterable[float]) -> RateCurve:
    """Smooth the losses of a sweep as they come, until they diverge.

    Args:
        sweep: The rates tried.
        losses: Loss of each step; no more are asked for once the smoothed loss is `DIVERGED` times its lowest value,
            or no number.
    """
    curve = RateCurve(sweep, [], [])
    keep = max(0.0, 1 - 1 / (MEMORY * sweep.steps))
    average = weight = 0.0
    for loss in losses:
        average, weight = keep * average + (1 - keep) * loss, keep * weight + (1 - keep)
        curve.losses.append(loss)
        curve.smoothed.append(average / weight)
        if not math.isfinite(average) or curve.smoothed[-1] > DIVERGED * min(curve.smoothed):
            break
    return curve


def sweep_rates(
    fabric: Fabric,
    model: nn.Module,
    task: Task,
    config: TrainingConfig,
    sweep: LRSweepConfig,
    seed: int,
    machine: MachineConfig | None = None,
    progress: ProgressFactory = no_progress,
) -> RateCurve:
    """Train a copy of a model while the rate rises, with the batches and random numbers that a run of `fit` begins with.

    Nothing is compiled or recorded, which so few steps would not repay, and nothing is kept.

    Args:
        fabric: Launched, one process.
        model: As initialized; it stays as it is.
        task: Data and loss.
        config: Everything but the rates.
        sweep: The rates.
        seed: Decides batches and dropout.
        machine: How batches are read.
        progress: Reports steps done.

    Raises:
        UsageError: The settings do not go with each other.
    """
    batches = training_batches(fabric, task, config)
    trained = copy.deepcopy(model)
    wrapped, optimizer = fabric.setup(trained, make_optimizer(trained, config, task.encoder_parameters(trained)))
    num_workers = 0 if machine is None else machine.num_workers
    loader = step_loader(batches, 0, sweep.steps, num_workers, fabric.device.type == "cuda")
    moved = on_device(loader, fabric.device)

    def losses() -> Iterator[float]:
        wrapped.train()
        for number, rate in enumerate(track(sweep.rates, "find-lr", progress)):
            set_rates(optimizer, rate)
            seeds = [step_seed(seed, number, part) for part in range(config.gradient_accumulation)]
            yield float(train_step(fabric, wrapped, optimizer, task.loss, next(moved), config, seeds)[0])

    return follow(sweep, losses())


def write_rates(path: Path, curve: RateCurve) -> None:
    """Write a CSV file `step,rate,loss,smoothed`, a row a step, counted from 1."""
    rows = zip(curve.sweep.rates, curve.losses, curve.smoothed, strict=False)
    with written_atomically(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["step", "rate", "loss", "smoothed"])
        writer.writerows([step, *row] for step, row in enumerate(rows, start=1))


def plot_rates(path: Path, curve: RateCurve, name: str, peak_lr: float) -> None:
    """Draw the loss over the rate, with the rate suggested and the recipe's own.

    Args:
        path: The PNG file.
        curve: At least one step.
        name: The model.
        peak_lr: The recipe's.
    """
    rates, losses, smoothed = curve.sweep.rates[: len(curve.losses)], np.array(curve.losses), np.array(curve.smoothed)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(rates, losses, color=TRUTH_COLOR, linewidth=0.9, label="loss of each batch")
    axes.plot(rates, smoothed, color=RATED_COLOR, linewidth=2.2, label="smoothed")
    if (suggestion := curve.suggestion) is not None:
        label = f"suggested: {suggestion.peak_lr:.2g}"
        axes.axvline(suggestion.peak_lr, color=DENSE_COLOR, linewidth=1.8, label=label)
    axes.axvline(peak_lr, color="#444444", linewidth=1.4, linestyle="--", label=f"the recipe's: {peak_lr:.2g}")
    axes.set_xscale("log")
    axes.set_ylim(*_shown(losses, smoothed))
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss")
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{name}: loss while the rate rises", fontsize=11, x=0.01, ha="left", parse_math=False)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    save_picture(path, figure)


def _shown(losses: NDArray[np.float64], smoothed: NDArray[np.float64]) -> tuple[float | None, float | None]:
    """Ends of the axis of losses: the fall fills most of it, and the rise leaves it at the top."""
    if not np.isfinite(smoothed[0]):
        return None, None
    lowest = int(np.nanargmin(smoothed))
    top, bottom = losses[: lowest + 1].max(), losses[np.isfinite(losses)].min()
    margin = 0.05 * (top - bottom or abs(top) or 1.0)
    return float(bottom - margin), float(top + 5 * margin)
