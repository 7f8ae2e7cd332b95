"""Layers of several processes, compared with one process and the global batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from yt8m.models.layers.batch_norm import MaskedBatchNorm
from yt8m.models.layers.distributed import split_over_processes
from yt8m.models.layers.dropout import Dropout
from yt8m.models.layers.input import frame_mask


def double(tensor: Tensor) -> None:
    """The sum over two processes with equal tensors, in place."""
    tensor.mul_(2)


@pytest.mark.parametrize("copies", [1, 2])
def test_synchronized_batch_norm_uses_the_batches_of_all_processes(
    copies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs and gradients of two processes with the same batch equal those of one process with the batch twice."""
    monkeypatch.setattr(torch.distributed, "all_reduce", double)
    alone, shared = (MaskedBatchNorm(6 // copies, copies=copies).double() for _ in range(2))
    split_over_processes(shared, 1, 2)
    features = (10 + torch.randn(3, 4, 6, dtype=torch.double)).requires_grad_()
    mask = frame_mask(torch.tensor([4, 1, 2]), 4)
    weights = torch.randn(3, 4, 6, dtype=torch.double) * mask.unsqueeze(-1)
    ours = shared(features, mask)
    theirs = alone(torch.cat([features, features]), mask.repeat(2, 1))
    torch.testing.assert_close(ours[mask], theirs[:3][mask], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(shared.running_var, alone.running_var, rtol=1e-12, atol=0)
    (ours * weights).sum().backward()
    found, features.grad = features.grad, None
    (theirs * weights.repeat(2, 1, 1)).sum().backward()
    # Each process has half of the gradient of the features.
    torch.testing.assert_close(2 * found, features.grad, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(2 * shared.weight.grad, alone.weight.grad, rtol=1e-10, atol=1e-12)


def test_batch_norm_is_synchronized_if_requested_and_with_several_processes() -> None:
    norm = MaskedBatchNorm(2)
    for arguments, expected in (((0, 2), True), ((0, 2, False), False), ((0, 1), False)):
        split_over_processes(nn.Sequential(norm), *arguments)
        assert norm.synchronized is expected


@pytest.mark.parametrize("rows", [False, True])
def test_several_processes_drop_the_same_values_as_one(rows: bool) -> None:
    features = torch.randn(12, 6, 5)
    dropout = Dropout(0.4, rows)
    torch.manual_seed(2)
    expected = dropout(features)
    parts = []
    for rank in range(3):
        split_over_processes(dropout, rank, 3)
        torch.manual_seed(2)
        parts.append(dropout(features[4 * rank : 4 * rank + 4]))
    torch.testing.assert_close(torch.cat(parts), expected)
    assert (expected == 0).any()
