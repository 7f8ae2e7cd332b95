"""Pooling over valid frames: maximum and mean, with or without a gate.

Shapes: B videos or segments (b in a block), T frames.
"""

from typing import Any, cast

import torch
from torch import Tensor

from yt8m.models.layers.blocks import row_blocks, statistics_dtype


def masked_max_pool(features: Tensor, mask: Tensor) -> Tensor:
    """Maximum over the valid frames: (B, T, channels) and (B, T) -> (B, channels)."""
    return features.masked_fill(~mask.unsqueeze(-1), -torch.inf).amax(1)


def masked_mean_pool(features: Tensor, mask: Tensor) -> Tensor:
    """Mean over the valid frames, divided by their number: (B, T, channels) and (B, T) -> (B, channels)."""
    weights = mask.to(features.dtype)
    total = (features * weights.unsqueeze(-1)).sum(1)
    return total / weights.sum(1, keepdim=True).clamp(min=1)


class _GatedPool(torch.autograd.Function):
    """Maximum and mean over frames of `features * sigmoid(gate_logits)`, without keeping that product.

    The backward pass computes the product again, in blocks of videos; ties of the maximum share the gradient, as in
    `torch.amax`.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, gate_logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        dtype = statistics_dtype(features)
        weights = mask.to(dtype).unsqueeze(-1)  # (B, T, 1)
        penalty = torch.zeros_like(weights).masked_fill_(~mask.unsqueeze(-1), -torch.inf)
        shape = (features.shape[0], features.shape[2])
        maximum, mean = features.new_empty(shape, dtype=dtype), features.new_empty(shape, dtype=dtype)
        for block in row_blocks(features):
            gated = torch.sigmoid(gate_logits[block].to(dtype)).mul_(features[block])  # (b, T, channels)
            mean[block] = (gated * weights[block]).sum(1)  # (b, channels)
            maximum[block] = gated.add_(penalty[block]).amax(1)  # (b, channels)
        mean /= weights.sum(1).clamp(min=1)
        ctx.save_for_backward(features, gate_logits, weights, penalty)
        return maximum, mean

    @staticmethod
    def backward(ctx: Any, grad_maximum: Tensor, grad_mean: Tensor) -> tuple[Tensor, Tensor, None]:
        features, gate_logits, weights, penalty = ctx.saved_tensors
        grad_features, grad_logits = torch.empty_like(features), torch.empty_like(gate_logits)
        grad_mean = (grad_mean / weights.sum(1).clamp(min=1)).unsqueeze(1)  # (B, 1, channels)
        for block in row_blocks(features):
            gate = torch.sigmoid(gate_logits[block].to(weights.dtype))  # (b, T, channels)
            gated = gate * features[block]
            # Not saved in the forward pass, where a compiler may round the product differently.
            masked = gated + penalty[block]
            largest = (masked == masked.amax(1, keepdim=True)).to(weights.dtype)
            grad_per_tie = grad_maximum[block].unsqueeze(1) / largest.sum(1, keepdim=True)  # (b, 1, channels)
            grad = largest.mul_(grad_per_tie).add_(grad_mean[block] * weights[block])  # (b, T, channels)
            grad_features[block] = grad * gate
            grad_logits[block] = grad.mul_(gated).mul_(1 - gate)
        return grad_features, grad_logits, None


def gated_max_mean_pool(features: Tensor, gate_logits: Tensor | None, mask: Tensor) -> Tensor:
    """Gate and pool: masked maximum and masked mean of `features * sigmoid(gate_logits)`.

    Args:
        features: (B, T, channels).
        gate_logits: (B, T, channels), or None for no gate.
        mask: bool (B, T), at least one frame per video.

    Returns:
        (B, 2 * channels): maxima, then means; at least float32.
    """
    if gate_logits is None:
        features = features.to(statistics_dtype(features))
        return torch.cat([masked_max_pool(features, mask), masked_mean_pool(features, mask)], dim=1)
    pooled = _GatedPool.apply(features, gate_logits, mask)  # type: ignore[no-untyped-call]
    return torch.cat(cast("tuple[Tensor, Tensor]", pooled), dim=1)
