"""Weight averaging: formulas, evaluation and saving, and resuming."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from tests.support.tiny_tasks import (
    CONFIG,
    LinearTask,
    StoppedError,
    digest,
    fit_linear,
    linear_model,
    stop_at,
    video_case,
)
from yt8m.errors import Yt8mError
from yt8m.models.layers.batch_norm import MaskedBatchNorm
from yt8m.models.saved import load_model
from yt8m.settings import validated
from yt8m.training.averaging import WeightAverage, recompute_batch_norm
from yt8m.training.config import AveragingConfig
from yt8m.training.loop import Trainer

EMA = AveragingConfig(type="ema", decay=0.6)
SWA = AveragingConfig(type="swa", start=0.5, every=2, norm_batches=3)


def values(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def moved(model: nn.Module, step: int) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.full_like(parameter, float(step**2)))


def test_ema_follows_its_formula() -> None:
    model = linear_model()
    average = WeightAverage(model, EMA, 10)
    expected = 0.0
    for step in range(1, 11):
        moved(model, step)
        average.update(model, step)
        kept = min(0.6, step / (9 + step))
        expected = float(step**2) if step == 1 else kept * expected + (1 - kept) * step**2
        evaluated = average.model_to_evaluate(model, lambda *_: pytest.fail("EMA averages the statistics themselves"))
        torch.testing.assert_close(values(evaluated), torch.full_like(values(evaluated), expected))


def test_swa_is_the_mean_of_every_other_step_of_the_second_half() -> None:
    model = linear_model()
    average = WeightAverage(model, SWA, 10)
    for step in range(1, 11):
        moved(model, step)
        average.update(model, step)
        if step < 7:
            assert average.model_to_evaluate(model, lambda *_: None) is model
    evaluated = average.model_to_evaluate(model, lambda *_: None)
    torch.testing.assert_close(values(evaluated), torch.full_like(values(evaluated), (7**2 + 9**2) / 2))


def test_without_averaging_the_trained_weights_are_saved(tmp_path: Path) -> None:
    result, model = fit_linear(tmp_path)
    assert CONFIG.averaging == AveragingConfig()
    assert (tmp_path / "model" / "weights.txt").read_text() == f"10 {result.metrics} {digest(model)}"


def test_recomputed_statistics_are_the_mean_over_the_batches() -> None:
    norm = MaskedBatchNorm(3)
    norm.running_mean.fill_(100.0)
    batches = [torch.randn(8, 3) + number for number in range(4)]
    recompute_batch_norm(norm.eval(), 4, lambda model, number: model(batches[number]))
    torch.testing.assert_close(norm.running_mean, torch.stack([batch.mean(0) for batch in batches]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([batch.var(0) for batch in batches]).mean(0))
    assert norm.momentum == 0.1
    assert not norm.training


@pytest.mark.parametrize("config", [EMA, SWA], ids=["ema", "swa"])
def test_the_average_is_evaluated_and_saved(config: AveragingConfig, tiny_dataset: Path, tmp_path: Path) -> None:
    model, task = video_case(tiny_dataset)
    fabric = Fabric(accelerator="cpu", devices=1)
    settings = CONFIG.model_copy(update={"peak_lr": 1e-2, "averaging": config, "evaluate_every": 10})
    result = Trainer(fabric, model, task, settings, tmp_path, 3).fit()
    saved = load_model(tmp_path / "model")
    assert task.evaluate(fabric, saved) == result.metrics
    assert task.evaluate(fabric, model.eval()) != result.metrics
    # Averaging does not change the trained weights.
    plain, plain_task = video_case(tiny_dataset)
    Trainer(
        fabric, plain, plain_task, settings.model_copy(update={"averaging": AveragingConfig()}), tmp_path / "plain", 3
    ).fit()
    assert digest(plain) == digest(model)


@pytest.mark.parametrize("config", [EMA, SWA], ids=["ema", "swa"])
@pytest.mark.parametrize("stop", [3, 8, 10])
def test_a_run_with_an_average_resumes_to_the_same_result(config: AveragingConfig, stop: int, tmp_path: Path) -> None:
    settings = CONFIG.model_copy(update={"averaging": config})
    fit_linear(tmp_path / "uninterrupted", config=settings)
    with pytest.raises(StoppedError):
        fit_linear(tmp_path / "stopped", LinearTask(stop_at(stop)), settings)
    fit_linear(tmp_path / "stopped", config=settings)
    for name in ("metrics.csv", "model/weights.txt"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "uninterrupted" / name).read_bytes()


def test_invalid_averaging_settings_are_refused() -> None:
    for values_, key in (({"type": "mean"}, "type"), ({"decay": 1.0}, "decay"), ({"every": 0}, "every")):
        with pytest.raises(Yt8mError, match=rf"^a: .*'{key}'"):
            validated(AveragingConfig, values_, "a")
