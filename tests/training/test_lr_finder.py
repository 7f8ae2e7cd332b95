"""Learning-rate finder: training steps, the end of the sweep, and the suggested learning rate."""

from __future__ import annotations

import csv
import itertools
import math
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from tests.support.tiny_tasks import CONFIG, LinearTask, NumberBatches, Numbers, digest, linear_model
from yt8m.errors import UsageError
from yt8m.settings import validated
from yt8m.training.config import TrainingConfig
from yt8m.training.lr_finder import LRCurve, LRSweepConfig, lr_sweep, plot_lr_curve, smooth_losses, write_lr_curve
from yt8m.training.step import step_seed


def squared_error(model: nn.Module, batch: Numbers) -> Tensor:
    return (model(batch.inputs).squeeze(1) - batch.targets).square().mean()


class SquaresTask(LinearTask):
    """Least squares on any micro-batch."""

    def loss(self, model: nn.Module, batch: Numbers) -> Tensor:
        return squared_error(model, batch)


def run_sweep(
    sweep: LRSweepConfig, config: TrainingConfig = CONFIG, model: nn.Module | None = None, seed: int = 3
) -> LRCurve:
    fabric = Fabric(accelerator="cpu", devices=1)
    return lr_sweep(fabric, linear_model() if model is None else model, SquaresTask(), config, sweep, seed)


# --- Training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient_accumulation", [1, 2])
def test_losses_equal_those_of_a_plain_training_loop(gradient_accumulation: int) -> None:
    """The plain loop includes learning rates, weight decay, dropout seeds, micro-batches and gradient clipping."""
    sweep = LRSweepConfig(steps=12, lowest=1e-3, highest=0.5)
    config = CONFIG.model_copy(update={"gradient_accumulation": gradient_accumulation, "max_grad_norm": 1.0})
    curve = run_sweep(sweep, config, linear_model().eval())
    model = linear_model()
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    optimizer = torch.optim.AdamW(
        [
            {"params": [layer.weight for layer in layers], "weight_decay": 0.1},
            {"params": [layer.bias for layer in layers], "weight_decay": 0.0},
        ],
        fused=True,
    )
    expected, rate = [], 1e-3
    for step in range(12):
        for group in optimizer.param_groups:
            group["lr"] = sweep.learning_rates[step]
        assert sweep.learning_rates[step] == pytest.approx(rate)
        batch, loss = NumberBatches()[step], torch.zeros(())
        for part in range(gradient_accumulation):
            torch.manual_seed(step_seed(3, step, part))
            one = (
                squared_error(model, Numbers(*(tensor[part::gradient_accumulation] for tensor in batch)))
                / gradient_accumulation
            )
            one.backward()  # type: ignore[no-untyped-call]
            loss = loss + one.detach()
        expected.append(loss.item())
        torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        rate *= 500 ** (1 / 11)
    assert curve.losses == expected
    assert len(set(curve.losses)) == 12


def test_the_model_is_not_changed() -> None:
    model = linear_model().eval()
    before = digest(model)
    run_sweep(LRSweepConfig(steps=20, highest=1e-1), model=model)
    assert digest(model) == before
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_micro_batches_of_unequal_size_are_refused() -> None:
    with pytest.raises(UsageError, match="gradient_accumulation 3 does not divide the 8 examples"):
        run_sweep(LRSweepConfig(), CONFIG.model_copy(update={"gradient_accumulation": 3}))


class Quadratic(nn.Module):
    """A matrix of one weight, initially `start`."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((1, 1), start))

    def forward(self) -> Tensor:
        return self.weight.sum()


class QuadraticTask(LinearTask):
    """A loss of 1 + (weight - target)^2 / 2 for any batch."""

    def __init__(self, target: float) -> None:
        super().__init__()
        self.target = target

    def loss(self, model: nn.Module, batch: Numbers) -> Tensor:
        loss: Tensor = 1 + (model() - self.target).square() / 2
        return loss


def test_weight_decay_limits_the_learning_rate() -> None:
    """AdamW first multiplies a weight by 1 - lr * decay: above lr = 2 / decay it diverges."""
    config = CONFIG.model_copy(update={"weight_decay": 20.0})
    sweep = LRSweepConfig(steps=200, lowest=1e-5, highest=1.0)
    curve = lr_sweep(Fabric(accelerator="cpu", devices=1), Quadratic(1.0), QuadraticTask(0.0), config, sweep, 0)
    stopped_at = sweep.learning_rates[len(curve.losses) - 1]
    # The smoothed loss lags by a few steps.
    assert 2 / 20 < stopped_at < 5 * 2 / 20
    assert max(loss for rate, loss in zip(sweep.learning_rates, curve.losses, strict=False) if rate < 2 / 20) == 1.5
    assert curve.suggestion is not None
    assert curve.suggestion.peak_lr < 2 / 20


def test_the_suggestion_on_a_quadratic_is_halfway_to_the_minimum() -> None:
    """While the gradient keeps its sign, each step of Adam moves a weight by the learning rate.

    With a factor f between learning rates, the distance after a step is lr / (1 - 1 / f). Over log(lr), the loss
    (1 - distance)^2 falls fastest at a distance of 1/2, at half the learning rate that reaches the target.
    """
    config = CONFIG.model_copy(update={"weight_decay": 0.0})
    sweep = LRSweepConfig(steps=400, lowest=1e-6, highest=1.0)
    curve = lr_sweep(Fabric(accelerator="cpu", devices=1), Quadratic(0.0), QuadraticTask(1.0), config, sweep, 0)
    reached = 1 - 1e-6 ** (1 / 399)
    lag = 1e6 ** (1 / 20)
    assert curve.suggestion is not None
    assert reached / 2 < curve.suggestion.peak_lr < reached / 2 * lag * 1.5
    assert curve.suggestion.peak_lr < reached < curve.suggestion.lowest_loss_lr


# --- Smoothing and suggestion ----------------------------------------------------------------------------------------


def falling(steps: int, center: float, width: float = 6.0) -> list[float]:
    """Losses that fall from 2 to 1, fastest at step `center`."""
    return [1 + 1 / (1 + math.exp((step - center) / width)) for step in range(steps)]


def test_smoothed_losses_are_weighted_means() -> None:
    losses = np.random.default_rng(0).uniform(1, 2, 200).tolist()
    curve = smooth_losses(LRSweepConfig(), losses)
    for step in (0, 1, 50, 199):
        weights = 0.9 ** np.arange(step, -1, -1)
        assert curve.smoothed[step] == pytest.approx(np.dot(weights, losses[: step + 1]) / weights.sum())


@pytest.mark.parametrize("steps", [100, 200, 1000])
def test_the_suggestion_lags_behind_the_steepest_descent_like_the_average(steps: int) -> None:
    sweep = LRSweepConfig(steps=steps)
    suggestion = smooth_losses(sweep, falling(steps, steps * 0.5, steps * 0.04)).suggestion
    assert suggestion is not None
    # An exponential average of a slope lags by keep / (1 - keep) steps.
    lag = steps / 20 - 1
    assert sweep.learning_rates.index(suggestion.peak_lr) == pytest.approx(steps * 0.5 + lag, abs=0.015 * steps)
    assert suggestion.lowest_loss_lr == sweep.learning_rates[-1]


def test_a_single_easy_batch_does_not_change_the_suggestion() -> None:
    losses = falling(200, 100, 8.0)
    plain = smooth_losses(LRSweepConfig(), losses).suggestion
    losses[50] -= 0.7
    disturbed = smooth_losses(LRSweepConfig(), losses).suggestion
    assert plain is not None
    assert disturbed == plain
    # The difference of neighbouring steps would select that batch.
    assert np.diff(smooth_losses(LRSweepConfig(), losses).smoothed)[20:].argmin() == 29


def test_the_suggestion_is_robust_to_noise() -> None:
    steps = []
    for seed in range(20):
        noise = np.random.default_rng(seed).normal(0, 0.1, 200)
        suggestion = smooth_losses(LRSweepConfig(), (np.array(falling(200, 100, 8.0)) + noise).tolist()).suggestion
        assert suggestion is not None
        steps.append(LRSweepConfig().learning_rates.index(suggestion.peak_lr))
    assert max(abs(step - 109) for step in steps) <= 14


def test_a_descent_after_the_minimum_is_ignored() -> None:
    """After a spike, the loss decreases faster than before, at a learning rate that is too high."""
    losses = falling(200, 80, 8.0)
    losses[150:160] = [3.0] * 10
    curve = smooth_losses(LRSweepConfig(), losses)
    assert len(curve.losses) == 200
    suggestion = curve.suggestion
    assert suggestion is not None
    assert LRSweepConfig().learning_rates.index(suggestion.peak_lr) == pytest.approx(89, abs=3)


def test_the_sweep_ends_at_four_times_the_lowest_smoothed_loss() -> None:
    rest = iter(range(200, 250))
    losses = falling(150, 80)
    curve = smooth_losses(LRSweepConfig(), itertools.chain(losses, [20.0, 30.0], rest))
    assert curve.smoothed[-1] > 4 * min(curve.smoothed) >= curve.smoothed[-2]
    assert curve.losses == [*losses, 20.0, 30.0][: len(curve.losses)]
    assert next(rest) == 200


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_the_sweep_ends_where_the_loss_is_not_finite(loss: float) -> None:
    rest = iter(range(50))
    curve = smooth_losses(LRSweepConfig(), itertools.chain(falling(150, 80), [loss], rest))
    assert len(curve.losses) == len(curve.smoothed) == 151
    assert next(rest) == 0
    assert curve.suggestion == smooth_losses(LRSweepConfig(), falling(150, 80)).suggestion
    assert curve.suggestion is not None


@pytest.mark.parametrize(
    "losses", [[1 + step / 100 for step in range(200)], [1.0] * 200, [1.0, 9.0], falling(200, 5, 2.0)[:21], [math.nan]]
)
def test_without_a_descent_there_is_no_suggestion(losses: list[float]) -> None:
    assert smooth_losses(LRSweepConfig(), losses).suggestion is None


def test_a_suggestion_from_the_minimum_number_of_steps() -> None:
    suggestion = smooth_losses(LRSweepConfig(steps=10), falling(10, 5, 1.0)).suggestion
    assert suggestion is not None
    assert LRSweepConfig(steps=10).learning_rates.index(suggestion.peak_lr) == 5


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"lowest": 0.1, "highest": 0.1}, "find-lr: the lowest learning rate 0.1 is not below the highest, 0.1."),
        ({"steps": 9}, "find-lr: 'steps': expected greater than or equal to 10, found 9."),
        ({"lowest": 0.0}, "find-lr: 'lowest': expected greater than 0, found 0.0."),
        ({"highest": math.inf}, "find-lr: 'highest': expected a finite number, found inf."),
    ],
)
def test_invalid_sweeps_are_refused(values: dict[str, float], expected: str) -> None:
    with pytest.raises(UsageError) as raised:
        validated(LRSweepConfig, values, "find-lr")
    assert str(raised.value) == expected


# --- Table and plot --------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_file(tmp_path: Path) -> None:
    sweep = LRSweepConfig(steps=30, lowest=1e-4)
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        torch.manual_seed(ord(name))
        write_lr_curve(tmp_path / name, run_sweep(sweep, seed=seed))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()


def test_the_table_has_one_row_per_step(tmp_path: Path) -> None:
    curve = smooth_losses(LRSweepConfig(), [*falling(150, 80), math.nan])
    write_lr_curve(tmp_path / "lr_finder.csv", curve)
    with (tmp_path / "lr_finder.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["step", "lr", "loss", "smoothed"]
    assert [int(row[0]) for row in rows] == list(range(1, 152))
    assert [float(row[1]) for row in rows] == curve.sweep.learning_rates[:151]
    assert [float(row[2]) for row in rows[:-1]] == curve.losses[:-1]
    assert [float(row[3]) for row in rows[:-1]] == curve.smoothed[:-1]
    assert rows[-1][2:] == ["nan", "nan"]


def columns_of(picture: Path, color: str) -> list[int]:
    """Columns of a picture that are mostly of one color."""
    pixels = matplotlib.image.imread(picture)[:, :, :3]
    wanted = np.array([int(color[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    return np.flatnonzero((np.abs(pixels - wanted).max(2) < 0.02).mean(0) > 0.4).tolist()


def test_the_plot_shows_both_learning_rates(tmp_path: Path) -> None:
    curve = smooth_losses(LRSweepConfig(), [*falling(170, 100), 5.0, 9.0, 100.0])
    assert curve.suggestion is not None
    plot_lr_curve(tmp_path / "lr_finder.png", curve, "model_$1", 1e-5)
    suggested, recipe = (
        columns_of(tmp_path / "lr_finder.png", "#d97706"),
        columns_of(tmp_path / "lr_finder.png", "#444444"),
    )
    assert 1 <= len(suggested) <= 5
    assert 1 <= len(recipe) <= 5
    assert max(recipe) < min(suggested)
    plot_lr_curve(tmp_path / "other.png", curve, "model_$1", 0.1)
    assert min(columns_of(tmp_path / "other.png", "#444444")) > max(columns_of(tmp_path / "other.png", "#d97706"))


@pytest.mark.parametrize("losses", [[math.nan], [math.inf], [1.0], [1.0] * 200, [1.0, 2.0, math.inf], [0.0] * 50])
def test_any_curve_can_be_plotted(losses: list[float], tmp_path: Path) -> None:
    plot_lr_curve(tmp_path / "lr_finder.png", smooth_losses(LRSweepConfig(), losses), "dbof", 1e-3)
    assert columns_of(tmp_path / "lr_finder.png", "#d97706") == []
    assert [path.name for path in tmp_path.iterdir()] == ["lr_finder.png"]
