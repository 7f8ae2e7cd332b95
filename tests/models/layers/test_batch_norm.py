"""Masked batch norm, compared with `nn.BatchNorm1d` on the valid rows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.support.tiny_models import randomize
from yt8m.models.layers.batch_norm import MaskedBatchNorm, normalized_linear
from yt8m.models.layers.input import frame_mask

LENGTHS = torch.tensor([5, 1, 3, 4])


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("shape", [(6, 3), (4, 5, 3)])
@pytest.mark.parametrize("affine", [True, False])
def test_masked_batch_norm_equals_batch_norm_without_padding(shape: tuple[int, ...], affine: bool) -> None:
    ours, plain = MaskedBatchNorm(3, affine=affine).double(), nn.BatchNorm1d(3, affine=affine).double()
    if affine:
        randomize(ours)
    assert ours.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(ours.state_dict())
    for mask in (None, torch.ones(shape[:-1], dtype=torch.bool)):
        for training in (True, True, False):
            ours.train(training)
            plain.train(training)
            a = (torch.randn(shape, dtype=torch.float64) * 3 + 1).requires_grad_()
            b = a.detach().clone().requires_grad_()
            upstream = torch.randn(shape, dtype=torch.float64)
            out_a, out_b = ours(a, mask), plain(b.reshape(-1, 3)).view(shape)
            out_a.backward(upstream)
            out_b.backward(upstream)
            torch.testing.assert_close(out_a, out_b, atol=1e-12, rtol=1e-12)
            torch.testing.assert_close(a.grad, b.grad, atol=1e-12, rtol=1e-12)
    for name, expected in plain.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], expected, atol=1e-12, rtol=1e-12)
    for (name, p), (_, q) in zip(ours.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-11, rtol=1e-11, msg=name)


@pytest.mark.usefixtures("blocks")
def test_masked_batch_norm_ignores_padding() -> None:
    ours, plain = MaskedBatchNorm(3).double(), nn.BatchNorm1d(3).double()
    mask = frame_mask(LENGTHS, 5)
    a = torch.randn(4, 5, 3, dtype=torch.float64)
    a[~mask] = 1e6
    a.requires_grad_()
    b = a.detach()[mask].requires_grad_()
    upstream = torch.randn(4, 5, 3, dtype=torch.float64)
    out = ours(a, mask)
    (out * upstream * mask.unsqueeze(-1)).sum().backward()
    expected = plain(b)
    (expected * upstream[mask]).sum().backward()
    torch.testing.assert_close(out[mask], expected)
    torch.testing.assert_close(a.grad[mask], b.grad)
    assert a.grad[~mask].abs().max() == 0
    torch.testing.assert_close(ours.running_mean, plain.running_mean)
    torch.testing.assert_close(ours.running_var, plain.running_var)


def test_copies_of_a_channel_share_statistics_weight_and_bias() -> None:
    ours, plain = MaskedBatchNorm(3, copies=4).double(), nn.BatchNorm1d(3).double()
    randomize(ours)
    plain.load_state_dict(ours.state_dict())
    mask = frame_mask(LENGTHS, 5)
    x = torch.randn(4, 5, 4, 3, dtype=torch.float64) + torch.arange(4).view(4, 1)
    for training in (True, False):
        ours.train(training)
        plain.train(training)
        out = ours(x.flatten(2), mask).view_as(x)
        torch.testing.assert_close(out[mask].view(-1, 3), plain(x[mask].view(-1, 3)))
    torch.testing.assert_close(ours.running_var, plain.running_var)


def test_a_single_valid_frame_is_normalized_to_the_bias() -> None:
    norm = MaskedBatchNorm(3)
    nn.init.normal_(norm.bias)
    x = torch.randn(1, 4, 3, requires_grad=True)
    mask = frame_mask(torch.tensor([1]), 4)
    out = norm(x, mask)
    torch.testing.assert_close(out[0, 0], norm.bias)
    out[mask].sum().backward()
    assert x.grad.isfinite().all()
    assert norm.running_var.isfinite().all()
    torch.testing.assert_close(norm.running_var, torch.full((3,), 0.9))


@pytest.mark.usefixtures("blocks")
def test_variance_is_accurate_for_a_large_mean() -> None:
    x = torch.randn(400, 2, dtype=torch.float64) + 1e4
    out = MaskedBatchNorm(2)(x.float())
    expected = (x.float().double() - x.float().double().mean(0)) / x.float().double().std(0, correction=0)
    torch.testing.assert_close(out.double(), expected, atol=2e-3, rtol=0)


@pytest.mark.usefixtures("blocks")
def test_the_gradient_of_masked_batch_norm_is_correct() -> None:
    norm = MaskedBatchNorm(2).double()
    randomize(norm)
    mask = frame_mask(LENGTHS, 5)
    x = torch.randn(4, 5, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: norm(y, mask)[mask], x)


@pytest.mark.parametrize("hidden", [2, 50], ids=["folded into the weight", "applied to the features"])
@pytest.mark.parametrize("training", [True, False])
def test_normalized_linear_equals_norm_then_linear(hidden: int, training: bool) -> None:
    norm, linear = MaskedBatchNorm(3).double(), nn.Linear(3, hidden).double()
    randomize(norm)
    norm.train(training)
    mask = frame_mask(LENGTHS, 5)
    x = torch.randn(4, 5, 3, dtype=torch.float64)
    results = []
    for apply in (lambda y: normalized_linear(norm, linear, y, mask), lambda y: linear(norm(y, mask))):
        y = x.clone().requires_grad_()
        out = apply(y)[mask]
        parameters = [*norm.parameters(), *linear.parameters()]
        results.append([out, *torch.autograd.grad(out.square().sum(), [y, *parameters])])
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-11, rtol=1e-11)


def test_normalized_linear_in_bfloat16_cancels_a_large_mean() -> None:
    norm, linear = MaskedBatchNorm(64), nn.Linear(64, 8)
    x = (torch.randn(500, 64) + 8 * torch.randn(64)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        out = normalized_linear(norm, linear, x, None)
    expected = linear(norm(x.float()))
    assert out.dtype == torch.bfloat16
    assert (out.float() - expected).abs().max() < 0.05
