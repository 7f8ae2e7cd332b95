"""Mixture of experts, compared with sums over the experts."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.plain_layers import plain_batch_norm
from tests.support.tiny_models import randomize
from yt8m.models.config import MixtureConfig
from yt8m.models.layers.mixture import MixtureOfExperts, averaged_logits, mixture_logits


def plain_probabilities(experts: Tensor, gates: Tensor) -> Tensor:
    """sum_k softmax(gates)_k sigmoid(experts_k) without the last gate; (B, N, C) and (B, N + 1, C or 1) -> (B, C)."""
    weights = torch.exp(gates) / torch.exp(gates).sum(1, keepdim=True)
    total = torch.zeros_like(experts[:, 0])
    for k in range(experts.shape[1]):
        total = total + weights[:, k] / (1 + torch.exp(-experts[:, k]))
    return total


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("gate_classes", [1, 5])
def test_mixture_logits_equal_the_formula(gate_classes: int) -> None:
    experts = torch.randn(6, 3, 5, dtype=torch.float64, requires_grad=True)
    gates = torch.randn(6, 4, gate_classes, dtype=torch.float64, requires_grad=True)
    expected = plain_probabilities(experts, gates)
    torch.testing.assert_close(torch.sigmoid(mixture_logits(experts, gates)), expected, atol=1e-14, rtol=1e-12)
    assert torch.autograd.gradcheck(mixture_logits, (experts, gates))


def test_mixture_logit_is_accurate_in_both_tails() -> None:
    gates = torch.tensor([0.3, -0.2, 0.1, -1.0])
    weights = [math.exp(g) / sum(math.exp(float(h)) for h in gates) for g in gates]
    for z in (-30.0, -12.0, 0.0, 12.0, 30.0):
        experts = [z, z - 1, z + 2]
        p = sum(w / (1 + math.exp(-e)) for w, e in zip(weights, experts, strict=False))
        q = weights[3] + sum(w / (1 + math.exp(e)) for w, e in zip(weights, experts, strict=False))
        ours = mixture_logits(torch.tensor(experts).view(1, 3, 1), gates.view(1, 4, 1))
        assert ours.item() == pytest.approx(math.log(p) - math.log(q), rel=2e-6, abs=2e-6)


def test_without_the_zero_expert_logits_equal_those_of_the_experts() -> None:
    gates = torch.tensor([0.0, 0.0, -1e4]).view(1, 3, 1)
    for z in (-25.0, 25.0):
        assert mixture_logits(torch.full((1, 2, 1), z), gates).item() == pytest.approx(z, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mixture_is_finite_at_extreme_logits_and_gradients_do_not_vanish(dtype: torch.dtype) -> None:
    values = torch.tensor([-3e38, -1e4, -100.0, 0.0, 100.0, 1e4, 3e38], dtype=dtype)
    experts = torch.cartesian_prod(values, values).unsqueeze(-1).requires_grad_()
    for gate in torch.cartesian_prod(*[torch.tensor([-1e4, -100.0, 0.0, 1e4], dtype=dtype)] * 3):
        gates = gate.view(1, 3, 1).repeat(len(experts), 1, 1).requires_grad_()
        logits = mixture_logits(experts, gates)
        assert logits.isfinite().all()
        for target in (0.0, 1.0):
            loss = F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target), reduction="sum")
            grads = torch.autograd.grad(loss, [experts, gates], retain_graph=True)
            assert all(grad.isfinite().all() for grad in grads)
    saturated = torch.full((1, 2, 1), -1e4, dtype=dtype, requires_grad=True)
    mixture_logits(saturated, torch.zeros(1, 3, 1, dtype=dtype)).sum().backward()
    torch.testing.assert_close(saturated.grad, torch.full_like(saturated, 0.5))


def plain_averaged_logits(experts: Tensor, gates: Tensor) -> Tensor:
    """Probabilities of sum_k softmax(gates)_k experts_k without the last gate; shapes as above."""
    weights = torch.exp(gates) / torch.exp(gates).sum(1, keepdim=True)
    total = 0 * weights[:, -1] + torch.zeros_like(experts[:, 0])
    for k in range(experts.shape[1]):
        total = total + weights[:, k] * experts[:, k]
    return 1 / (1 + torch.exp(-total))


def test_averaged_logits_of_an_example() -> None:
    experts = torch.tensor([[[2.0, -4.0], [6.0, 8.0]]])
    shared = torch.log(torch.tensor([[[1.0], [2.0], [5.0]]]))
    torch.testing.assert_close(averaged_logits(experts, shared), torch.tensor([[14 / 8, 12 / 8]]))
    gates = torch.log(torch.tensor([[[1.0, 3.0], [1.0, 0.5], [2.0, 0.5]]]))
    torch.testing.assert_close(averaged_logits(experts, gates), torch.tensor([[8 / 4, -8 / 4]]))
    zero_expert = torch.tensor([0.0, 0.0, 1e4]).view(1, 3, 1)
    assert torch.sigmoid(averaged_logits(experts, zero_expert)).tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize("gate_classes", [1, 5])
def test_averaged_logits_equal_the_formula(gate_classes: int) -> None:
    experts = torch.randn(6, 3, 5, dtype=torch.float64, requires_grad=True)
    gates = torch.randn(6, 4, gate_classes, dtype=torch.float64, requires_grad=True)
    expected = plain_averaged_logits(experts, gates)
    torch.testing.assert_close(torch.sigmoid(averaged_logits(experts, gates)), expected, atol=1e-14, rtol=1e-12)
    assert torch.autograd.gradcheck(averaged_logits, (experts, gates))


@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("average", ["probabilities", "logits"])
@pytest.mark.parametrize("training", [False, True])
def test_module_and_its_gradients_equal_the_formula(per_class: bool, average: str, training: bool) -> None:
    settings = {"num_experts": 3, "per_class": per_class, "average": average, "dropout": 0.0}
    moe = MixtureOfExperts(6, 5, MixtureConfig.model_validate(settings)).double().train(training)
    randomize(moe)
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)

    experts = plain_batch_norm(moe.expert_norm, x) @ moe.experts.weight.T + moe.experts.bias
    gates = plain_batch_norm(moe.gate_norm, x) @ moe.gate.weight.T + moe.gate.bias
    plain = plain_averaged_logits if average == "logits" else plain_probabilities
    expected = plain(experts.view(4, 3, 5), gates.view(4, 4, -1))
    ours = torch.sigmoid(moe(x))
    torch.testing.assert_close(ours, expected, atol=1e-12, rtol=1e-12)
    upstream = torch.randn(4, 5, dtype=torch.float64)
    leaves = [x, *moe.parameters()]
    for found, plain_grad in zip(
        torch.autograd.grad(ours, leaves, upstream), torch.autograd.grad(expected, leaves, upstream), strict=True
    ):
        torch.testing.assert_close(found, plain_grad, atol=1e-11, rtol=1e-11)
    assert moe.gate.weight.shape == ((20, 6) if per_class else (4, 6))


def test_experts_and_gate_have_separate_dropout_in_training() -> None:
    moe = MixtureOfExperts(64, 3, MixtureConfig(dropout=0.5))
    inputs: dict[str, Tensor] = {}
    for name in ("experts", "gate"):
        getattr(moe, name).register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0]}))
    x = torch.randn(32, 64)
    moe.train()(x)
    assert 0.4 < (inputs["experts"] == 0).float().mean() < 0.6
    assert 0.4 < (inputs["gate"] == 0).float().mean() < 0.6
    assert not torch.equal(inputs["experts"] == 0, inputs["gate"] == 0)
    moe.eval()(x)
    assert (inputs["experts"] == 0).sum() == 0


def test_untrained_experts_predict_the_initial_probability() -> None:
    moe = MixtureOfExperts(6, 5, MixtureConfig(initial_probability=0.02)).eval()
    with torch.no_grad():
        moe.gate.weight.zero_()
        moe.gate.bias.zero_()
        probabilities = torch.sigmoid(moe(torch.zeros(1, 6)))
    torch.testing.assert_close(probabilities, torch.full((1, 5), 0.02 * 4 / 5))


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_mixture_is_float32_under_autocast(average: Literal["probabilities", "logits"]) -> None:
    moe = MixtureOfExperts(16, 5, MixtureConfig(average=average)).eval()
    x = torch.randn(4, 16)
    with torch.autocast("cpu", torch.bfloat16):
        logits = moe(x)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, moe(x))
