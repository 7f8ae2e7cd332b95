"""Layers as plain formulas, from the parameters of a module, to compare the module with."""

from __future__ import annotations

import torch
from torch import Tensor

from yt8m.models.layers.batch_norm import MaskedBatchNorm
from yt8m.models.layers.gating import SqueezeExcite


def plain_batch_norm(norm: MaskedBatchNorm, rows: Tensor) -> Tensor:
    """Batch norm of (N, channels) without padding, with the statistics of the module's mode."""
    mean, variance = norm.running_mean, norm.running_var
    if norm.training:
        mean, variance = rows.mean(0), ((rows - rows.mean(0)) ** 2).mean(0)
    normalized = (rows - mean) / torch.sqrt(variance + 1e-5)
    return normalized if norm.weight is None or norm.bias is None else normalized * norm.weight + norm.bias


def plain_gate(gate: SqueezeExcite, rows: Tensor) -> Tensor:
    """x * sigmoid(W2 BN(ReLU(W1 BN(x)))) of (N, channels), with the statistics of the module's mode."""
    hidden = (plain_batch_norm(gate.squeeze_norm, rows) @ gate.squeeze.weight.T + gate.squeeze.bias).clamp(min=0)
    logits = plain_batch_norm(gate.excite_norm, hidden) @ gate.excite.weight.T + gate.excite.bias
    return rows / (1 + torch.exp(-logits))
