"""Pooling, compared with loops over the valid frames."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from yt8m.models.layers.input import frame_mask
from yt8m.models.layers.pooling import gated_max_mean_pool, masked_max_pool, masked_mean_pool

LENGTHS = torch.tensor([5, 1, 3, 4])


def test_pooling_equals_that_of_each_video_without_padding() -> None:
    x = torch.randn(4, 5, 3) - 5
    mask = frame_mask(LENGTHS, 5)
    x[~mask] = 1e4
    for i, length in enumerate(LENGTHS.tolist()):
        valid = x[i, :length]
        torch.testing.assert_close(masked_max_pool(x, mask)[i], valid.max(0).values)
        torch.testing.assert_close(masked_mean_pool(x, mask)[i], valid.sum(0) / length)


@pytest.mark.usefixtures("blocks")
def test_gated_pool_and_its_gradient_equal_gate_then_pool() -> None:
    mask = frame_mask(LENGTHS, 5)
    x = torch.randn(4, 5, 3, dtype=torch.float64)
    x[0, 1] = x[0, 3]  # a tie of the maximum, with equal gates
    logits = torch.randn(4, 5, 3, dtype=torch.float64)
    logits[0, 1] = logits[0, 3]
    upstream = torch.randn(4, 6, dtype=torch.float64)

    def plain(x: Tensor, logits: Tensor) -> Tensor:
        gated = x * torch.sigmoid(logits)
        return torch.cat([masked_max_pool(gated, mask), masked_mean_pool(gated, mask)], 1)

    results = []
    for pool in (lambda x, g: gated_max_mean_pool(x, g, mask), plain):
        a, b = x.clone().requires_grad_(), logits.clone().requires_grad_()
        out = pool(a, b)
        results.append([out, *torch.autograd.grad(out, [a, b], upstream)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-13, rtol=1e-13)
    assert results[0][1][~mask].abs().max() == 0


def test_gated_pool_ignores_padding() -> None:
    mask = frame_mask(LENGTHS, 5)
    x, logits = torch.randn(4, 5, 3), torch.randn(4, 5, 3)
    before = gated_max_mean_pool(x, logits, mask), gated_max_mean_pool(x, None, mask)
    x[~mask], logits[~mask] = 1e9, 50
    after = gated_max_mean_pool(x, logits, mask), gated_max_mean_pool(x, None, mask)
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])
