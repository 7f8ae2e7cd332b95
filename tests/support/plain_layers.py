"""Plain formulas of layers, computed from the parameters of a module, as references for it."""

from __future__ import annotations

import torch
from torch import Tensor

from yt8m.models.layers.batch_norm import MaskedBatchNorm
from yt8m.models.layers.gating import SqueezeExcite


def plain_batch_norm(norm: MaskedBatchNorm, rows: Tensor) -> Tensor:
    """Batch norm of (N, channels) without padding, with batch or running statistics as the module."""
    mean, variance = norm.running_mean, norm.running_var
    if norm.training:
        mean, variance = rows.mean(0), ((rows - rows.mean(0)) ** 2).mean(0)
    normalized = (rows - mean) / torch.sqrt(variance + 1e-5)
    return normalized if norm.weight is None or norm.bias is None else normalized * norm.weight + norm.bias


def plain_gate(gate: SqueezeExcite, rows: Tensor) -> Tensor:
    """x * sigmoid(W2 BN(ReLU(W1 BN(x)))) of (N, channels), with batch or running statistics as the module."""
    hidden = (plain_batch_norm(gate.squeeze_norm, rows) @ gate.squeeze.weight.T + gate.squeeze.bias).clamp(min=0)
    logits = plain_batch_norm(gate.excite_norm, hidden) @ gate.excite.weight.T + gate.excite.bias
    return rows / (1 + torch.exp(-logits))
