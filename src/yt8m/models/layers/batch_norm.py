"""Batch norm over valid frames only, over one process or several."""

from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from yt8m.models.layers.blocks import row_blocks, statistics_dtype

EPS = 1e-5
"""Added to variances."""


class _MaskedMoments(torch.autograd.Function):
    """Mean and variance of the columns of (N, channels) over the rows of weight 1, in one pass over the rows.

    Each block's mean and squared deviations are merged (Chan, Golub, LeVeque 1979), as accurate as the two-pass formula.
    The gradient of both is one expression per row.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weights: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        counts, means, deviations = [], [], []
        for block in row_blocks(rows):
            values, weight = rows[block].to(weights.dtype), weights[block].unsqueeze(1)
            counts.append(weight.sum())
            means.append((values * weight).sum(0) / counts[-1].clamp(min=1))
            deviations.append((values - means[-1]).square_().mul_(weight).sum(0))
        block_counts = torch.stack(counts).unsqueeze(1)  # (blocks, 1)
        block_means = torch.stack(means)  # (blocks, channels)
        mean = (block_means * block_counts).sum(0) / count
        between = ((block_means - mean).square() * block_counts).sum(0)
        variance = (torch.stack(deviations).sum(0) + between) / count
        ctx.save_for_backward(rows, weights, count, mean)
        return mean, variance

    @staticmethod
    def backward(ctx: Any, grad_mean: Tensor, grad_variance: Tensor) -> tuple[Tensor, None, None]:
        rows, weights, count, mean = ctx.saved_tensors
        grad_rows = torch.empty_like(rows)
        constant, slope = grad_mean / count, 2 * grad_variance / count
        for block in row_blocks(rows):
            deviation = rows[block].to(weights.dtype) - mean
            grad_rows[block] = deviation.mul_(slope).add_(constant).mul_(weights[block].unsqueeze(1))
        return grad_rows, None, None


class _SumOverProcesses(torch.autograd.Function):
    """Sum of a tensor over all processes; its gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return cast("Tensor", _SumOverProcesses.apply(grad))  # type: ignore[no-untyped-call]


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _moments_over_processes(mean: Tensor, variance: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Merge each process's mean and variance (channels,) over `count` rows into those over all rows."""

    def summed(tensor: Tensor) -> Tensor:
        return cast("Tensor", _SumOverProcesses.apply(tensor))  # type: ignore[no-untyped-call]

    sums = summed(torch.cat([mean * count, count.reshape(1)]))
    total = sums[-1]
    merged = sums[:-1] / total
    return merged, summed((variance + (mean - merged).square()) * count) / total, total


class MaskedBatchNorm(nn.Module):
    """Batch norm over the valid frames only; parameters and buffers are named as in `nn.BatchNorm1d`.

    Equal to `nn.BatchNorm1d` where every frame is valid, in training and in eval mode. A single valid frame in a training
    batch is normalized to the bias. Statistics are at least float32. With several processes they are those of the global
    batch if `synchronized` is set (`split_over_processes`), and each process's own otherwise.

    Args:
        num_features: Channels.
        affine: Whether to learn a weight and a bias per channel.
        copies: Input channels are `copies` x `num_features`, and the copies of a channel share statistics, weight
            and bias (one cluster's logits in all groups).
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, num_features: int, *, affine: bool = True, copies: int = 1) -> None:
        super().__init__()
        self.num_features, self.copies, self.momentum = num_features, copies, 0.1
        self.synchronized = False
        self.weight = nn.Parameter(torch.ones(num_features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features)) if affine else None
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def statistics(self, features: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, scale and bias to normalize with, `(features - mean) * scale + bias`.

        In training mode the statistics are the batch's, and the running ones are updated.

        Args:
            features: (..., copies * num_features).
            mask: bool (...), or None where everything is valid.

        Returns:
            Each (copies * num_features,), at least float32.
        """
        if self.training:
            mean, variance = self._batch_moments(features, mask)
        else:
            mean, variance = self.running_mean, self.running_var
        scale = torch.rsqrt(variance + EPS)
        if self.weight is not None and self.bias is not None:
            scale, bias = scale * self.weight, cast("Tensor", self.bias)
        else:
            bias = torch.zeros_like(mean)
        return mean.repeat(self.copies), scale.repeat(self.copies), bias.repeat(self.copies)

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalize features (..., copies * num_features) with mask bool (...), None where everything is valid.

        Returns:
            Same shape, at least float32; undefined at masked places.
        """
        mean, scale, bias = self.statistics(features, mask)
        return torch.addcmul(bias, features - mean, scale)

    def _batch_moments(self, features: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        rows = features.reshape(-1, features.shape[-1])  # (N, copies * num_features)
        dtype = statistics_dtype(rows)
        weights = torch.ones_like(rows[:, 0], dtype=dtype) if mask is None else mask.reshape(-1).to(dtype)
        count = weights.sum().clamp(min=1)
        mean, variance = cast("tuple[Tensor, Tensor]", _MaskedMoments.apply(rows, weights, count))  # type: ignore[no-untyped-call]
        if self.synchronized:
            mean, variance, count = _moments_over_processes(mean, variance, count)
        if self.copies > 1:
            means, variances = mean.view(self.copies, -1), variance.view(self.copies, -1)
            mean = means.mean(0)
            variance = (variances + (means - mean).square()).mean(0)
            count = count * self.copies
        with torch.no_grad():
            unbiased = variance * (count / (count - 1).clamp(min=1))
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
            self.num_batches_tracked.add_(1)
        return mean, variance


def normalized_linear(norm: MaskedBatchNorm, linear: nn.Linear, features: Tensor, mask: Tensor | None) -> Tensor:
    """`linear(norm(features, mask))`, normalizing the smaller of the two: the features or the weight.

    With many more frames than output channels it is the weight: `W ((x - mean) scale + bias) + b` is a linear layer with
    the weight `W scale`, so that the normalized (B, T, channels) tensor is not needed.

    Args:
        norm: The batch norm.
        linear: The linear layer after it.
        features: (..., channels).
        mask: bool (...), or None where everything is valid.

    Returns:
        (..., output channels).
    """
    if features.shape[:-1].numel() <= linear.out_features:
        return cast("Tensor", linear(norm(features, mask)))
    device = features.device.type
    with torch.autocast(device, enabled=False):
        mean, scale, bias = norm.statistics(features, mask)  # (channels,) each
        weight = linear.weight * scale  # (output channels, channels)
        shift = linear.bias + linear.weight @ bias  # (output channels,)
    if torch.is_autocast_enabled(device):
        # Rounded before the mean is subtracted, so that a channel's mean still cancels exactly.
        weight = weight.to(torch.get_autocast_dtype(device))
    with torch.autocast(device, enabled=False):
        shift = shift - weight.to(shift.dtype) @ mean
    return F.linear(features, weight, shift)
