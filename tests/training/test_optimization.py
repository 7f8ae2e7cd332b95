"""Parameter groups of the optimizer, and the learning-rate schedule."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from yt8m.models.classifier import ContextAwareClassifier, VideoClassifier
from yt8m.models.config import (
    ContextAwareClassifierConfig,
    DBoFConfig,
    FusionConfig,
    MixtureConfig,
    NeXtVLADConfig,
    VideoClassifierConfig,
)
from yt8m.models.layers.gating import SqueezeExcite
from yt8m.training.config import OptimizationConfig
from yt8m.training.optimization import (
    decaying_parameters,
    learning_rate,
    make_optimizer,
    set_learning_rates,
    slanted_triangular,
)
from yt8m.training.step import make_capturable

CONFIG = OptimizationConfig(steps=100, batch_size=4, peak_lr=1e-3, weight_decay=0.1)
DBOF = DBoFConfig(hidden_size=16, output_size=8)
NEXTVLAD = NeXtVLADConfig(num_clusters=4, num_groups=8, output_size=8)


def video_classifier(encoder: DBoFConfig | NeXtVLADConfig) -> VideoClassifier:
    return VideoClassifier(VideoClassifierConfig(encoder=encoder, mixture=MixtureConfig(num_experts=2)), 5)


def aware_classifier() -> ContextAwareClassifier:
    config = ContextAwareClassifierConfig(
        context_encoder=DBOF,
        segment_encoder=NEXTVLAD.model_copy(update={"cut_after_linear": True}),
        fusion=FusionConfig(output_size=8),
    )
    return ContextAwareClassifier(config, 5)


def group_of(optimizer: torch.optim.Optimizer) -> dict[int, dict[str, object]]:
    """The group of each parameter; no parameter may be in two groups."""
    found: dict[int, dict[str, object]] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert id(parameter) not in found
            found[id(parameter)] = group
    return found


@pytest.mark.parametrize(
    "build",
    [lambda: video_classifier(DBOF), lambda: video_classifier(NEXTVLAD), aware_classifier],
    ids=["dbof", "nextvlad", "aware"],
)
def test_every_trained_parameter_is_in_one_group_and_vectors_do_not_decay(build) -> None:  # type: ignore[no-untyped-def]
    model = build()
    optimizer = make_optimizer(model, CONFIG)
    groups = group_of(optimizer)
    assert groups.keys() == {id(p) for p in model.parameters() if p.requires_grad}
    decays = {name: groups[id(p)]["weight_decay"] for name, p in model.named_parameters() if p.requires_grad}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # Biases and the weights of norm layers are vectors; centroids are offsets like biases.
            expected = 0.0 if parameter.dim() == 1 or name.endswith("centroids") else 0.1
            assert decays[name] == expected, name
    assert {0.0, 0.1} == set(decays.values())


def test_biases_and_norms_do_not_decay() -> None:
    gate = SqueezeExcite(8, 2)
    assert decaying_parameters(nn.Sequential(gate, nn.BatchNorm1d(8), nn.LayerNorm(8))) == {
        "0.squeeze_norm.weight": False,
        "0.squeeze_norm.bias": False,
        "0.squeeze.weight": True,
        "0.squeeze.bias": False,
        "0.excite_norm.weight": False,
        "0.excite_norm.bias": False,
        "0.excite.weight": True,
        "0.excite.bias": False,
        "1.weight": False,
        "1.bias": False,
        "2.weight": False,
        "2.bias": False,
    }


def test_the_frozen_encoder_is_excluded_and_the_segment_encoder_has_half_the_learning_rate() -> None:
    model = aware_classifier()
    optimizer = make_optimizer(model, CONFIG, list(model.segment_encoder.parameters()))
    groups = group_of(optimizer)
    set_learning_rates(optimizer, learning_rate(0, CONFIG))
    first = slanted_triangular(0, 100, 0.25)
    for name, parameter in model.named_parameters():
        if name.startswith("context_encoder."):
            assert id(parameter) not in groups
        else:
            rate = 5e-4 if name.startswith("segment_encoder.") else 1e-3
            assert groups[id(parameter)]["lr"] == pytest.approx(rate * first), name
    assert len(optimizer.param_groups) == 4


def test_encoder_parameters_have_the_learning_rate_times_their_factor() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    config = OptimizationConfig(steps=4, peak_lr=0.1, weight_decay=0.5, warmup=0.0, encoder_lr_factor=0.2)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = make_optimizer(model, config, list(model[0].parameters()))
    set_learning_rates(optimizer, learning_rate(0, config))
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    optimizer.step()
    # AdamW's first step is lr * sign of the gradient, after weight decay by a factor of 1 - lr * decay.
    for parameter, old, rate in zip(model.parameters(), before, (0.02, 0.1), strict=True):
        torch.testing.assert_close(parameter.detach(), old * (1 - rate * 0.5) - rate)


@pytest.mark.parametrize(
    ("step", "fraction"),
    [(0, 1 / 26), (1, 2 / 26), (24, 25 / 26), (25, 1.0), (26, 74 / 75), (62, 38 / 75), (99, 1 / 75), (100, 0.0)],
)
def test_the_schedule_rises_over_a_quarter_and_falls_over_the_rest(step: int, fraction: float) -> None:
    assert slanted_triangular(step, 100, 0.25) == pytest.approx(fraction)


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.25, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 100])
def test_the_schedule_is_linear_on_both_sides_of_its_peak(steps: int, warmup: float) -> None:
    fractions = [slanted_triangular(step, steps, warmup) for step in range(steps + 1)]
    assert all(0 < fraction <= 1 for fraction in fractions[:-1])
    assert fractions[-1] == 0
    rising = [fraction for step, fraction in enumerate(fractions) if step < warmup * steps]
    falling = fractions[len(rising) :]
    for part, sign in ((rising, 1), (falling, -1)):
        changes = [after - before for before, after in itertools.pairwise(part)]
        assert all(change * sign > 0 for change in changes)
        assert changes == pytest.approx(changes[:1] * len(changes))


@pytest.mark.parametrize("warmup", [0.0, 0.25, 1.0])
def test_the_optimizer_follows_the_schedule_to_its_end(warmup: float) -> None:
    model = nn.Linear(2, 2)
    config = OptimizationConfig(steps=8, peak_lr=0.3, weight_decay=0.0, warmup=warmup)
    optimizer = make_optimizer(model, config)
    rates = []
    for step in range(9):
        set_learning_rates(optimizer, learning_rate(step, config))
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.3 * slanted_triangular(step, 8, warmup) for step in range(9)])
    assert rates[-1] == 0


def test_a_learning_rate_on_the_device_is_changed_in_place() -> None:
    optimizer = make_optimizer(nn.Linear(2, 2), CONFIG)
    make_capturable(optimizer, torch.device("cpu"))
    tensors = [group["lr"] for group in optimizer.param_groups]
    set_learning_rates(optimizer, 0.25)
    assert [tensor.item() for tensor in tensors] == [0.25] * len(tensors)
    assert all(group["lr"] is tensor for group, tensor in zip(optimizer.param_groups, tensors, strict=True))
