"""Layers shared by all networks: dequantized masked frames, masked batch norm, gating, pooling, mixture of experts.

Shapes: B videos or segments, T frames, D=1152 features, K clusters, G groups, C classes.

Layers that act on frames take (features, mask), and nothing they compute depends on what stands at masked frames.
The three functions with a hand-written gradient go block by block through memory on a CPU: what they avoid is writing
and reading again tensors of (B, T, channels), which is what the plain formulas spend their time on.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from pydantic import Field
from torch import Tensor, nn

from yt8m.settings import Settings

RGB_SIZE = 1024
AUDIO_SIZE = 128
FRAME_SIZE = RGB_SIZE + AUDIO_SIZE

InputValues = Literal["dequantized", "bytes"]
"""What networks see of a byte: the value it stands for, or the number 0 to 255."""

_BLOCK_ELEMENTS = 1 << 20
"""Elements of a block on a CPU: 4 MB of float32, which the cache keeps from one operation to the next. Smaller blocks
gain little, and make threads wait for each other so often that a busy machine stalls (measured: up to tenfold)."""

_LARGEST_LOGIT = 40.0
"""Experts and gates are told apart up to odds of e^40; products of two such odds are still normal float32 numbers."""


def _blocks(rows: Tensor) -> Iterator[slice]:
    """Slices of the first dimension: cache-sized on a CPU, all at once on a device or while compiling (which fuses)."""
    count = rows.shape[0]
    if rows.device.type != "cpu" or torch.compiler.is_compiling() or count == 0:
        yield slice(0, count)
        return
    step = max(1, _BLOCK_ELEMENTS * count // max(rows.numel(), 1))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def _statistics_dtype(features: Tensor) -> torch.dtype:
    """Float32 at least: sums over thousands of bfloat16 frames would lose most of their digits."""
    return torch.promote_types(features.dtype, torch.float32)


# ---------------------------------------------------------------------------------------------------------- frames


def dequantize(frames: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Turn bytes into the values they stand for: `q * 4/255 + 4/512 - 2` (SPEC: the data, quantization).

    Args:
        frames: uint8 of any shape.
        dtype: Type of the result; computed in float32 at least.

    Returns:
        Values from -1.9921875 to 2.0078125, same shape.

    Raises:
        TypeError: The frames are not bytes; values that are dequantized already would be taken for bytes.
    """
    values = as_numbers(frames, torch.promote_types(dtype, torch.float32))
    return values.mul_(4 / 255).add_(4 / 512 - 2).to(dtype)


def as_numbers(frames: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Turn bytes into the numbers 0 to 255, a new tensor; each is exact in any floating-point type.

    Args:
        frames: uint8 of any shape.
        dtype: Type of the result.

    Raises:
        TypeError: The frames are not bytes.
    """
    if frames.dtype != torch.uint8:
        raise TypeError(f"expected frames as bytes (uint8), found {frames.dtype}")
    return frames.to(dtype)


def frame_mask(lengths: Tensor, num_frames: int) -> Tensor:
    """Mark the frames that exist.

    Args:
        lengths: Number of frames of each video, int64 (B,).
        num_frames: T, the length that the batch is padded to.

    Returns:
        bool (B, T), true where valid.
    """
    return torch.arange(num_frames, device=lengths.device) < lengths.unsqueeze(1)


class FrameInput(nn.Module):
    """The first lines of every network: bytes and lengths in, (features, mask) out, on whatever device they are.

    Args:
        batch_norm: Also normalize each feature by its mean and deviation over the batch's valid frames (running
            statistics in eval mode). It has no weight and bias of its own, since every encoder goes on with a linear
            layer; so no gradient is ever computed for (B, T, D) inputs.
        values: What a byte becomes: the value it stands for (`dequantized`), or the number 0 to 255 itself (`bytes`).
    """

    def __init__(self, batch_norm: bool = False, values: InputValues = "dequantized") -> None:
        super().__init__()
        self.values = values
        self.norm = MaskedBatchNorm(FRAME_SIZE, affine=False) if batch_norm else None

    def forward(self, frames: Tensor, lengths: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Make features of bytes, and mask them.

        Args:
            frames: uint8 (B, T, D); anything may stand beyond a video's length.
            lengths: int64 (B,), at least 1.
            dtype: Type of the features.

        Returns:
            Features (B, T, D), zero at padding, and the mask, bool (B, T).
        """
        mask = frame_mask(lengths, frames.shape[1])
        features = dequantize(frames, dtype) if self.values == "dequantized" else as_numbers(frames, dtype)
        if self.norm is not None:
            mean, scale, _ = self.norm.statistics(features, mask)
            features = features.sub_(mean.to(dtype)).mul_(scale.to(dtype))
        return features.mul_(mask.unsqueeze(-1)), mask


class Encoder(nn.Module, ABC):
    """Frames of a video or segment -> one vector. What an encoder adds is `encode`.

    Args:
        output_size: Size of the vector.
        input_batch_norm: See `FrameInput`.
        input_values: See `FrameInput`.
    """

    def __init__(self, output_size: int, input_batch_norm: bool, input_values: InputValues = "dequantized") -> None:
        super().__init__()
        self.output_size = output_size
        self.frame_input = FrameInput(input_batch_norm, input_values)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Encode.

        Args:
            frames: uint8 (B, T, D), T at least 1; what stands beyond a video's length has no influence.
            lengths: int64 (B,), from 1 to T.

        Returns:
            (B, output_size). In eval mode a video's row depends on that video alone.
        """
        dtype = next(self.parameters()).dtype
        features, mask = self.frame_input(frames, lengths, dtype)
        return self.encode(features, mask)

    @abstractmethod
    def encode(self, features: Tensor, mask: Tensor) -> Tensor:
        """Encode features (B, T, D) with their mask (B, T) into (B, output_size)."""


# ------------------------------------------------------------------------------------------------------ batch norm


class _MaskedMoments(torch.autograd.Function):
    """Mean and variance of the columns of (N, channels) over the rows of weight 1, in one reading of the rows.

    Each block's mean and squared deviations are merged (Chan, Golub, LeVeque 1979), which is as accurate as the
    two-pass formula. The gradient of both together is one expression a row.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weights: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        counts, means, deviations = [], [], []
        for block in _blocks(rows):
            values, weight = rows[block].to(weights.dtype), weights[block].unsqueeze(1)
            counts.append(weight.sum())
            means.append((values * weight).sum(0) / counts[-1].clamp(min=1))
            deviations.append((values - means[-1]).square_().mul_(weight).sum(0))
        block_counts, block_means = torch.stack(counts).unsqueeze(1), torch.stack(means)
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
        for block in _blocks(rows):
            deviation = rows[block].to(weights.dtype) - mean
            grad_rows[block] = deviation.mul_(slope).add_(constant).mul_(weights[block].unsqueeze(1))
        return grad_rows, None, None


class _SumOverProcesses(torch.autograd.Function):
    """Sum of a tensor over all processes; its gradient is the sum of theirs."""

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
    """Merge each process's mean and variance (channels,) of `count` rows into those of all rows, on every process."""

    def summed(tensor: Tensor) -> Tensor:
        return cast("Tensor", _SumOverProcesses.apply(tensor))  # type: ignore[no-untyped-call]

    sums = summed(torch.cat([mean * count, count.reshape(1)]))
    total = sums[-1]
    merged = sums[:-1] / total
    return merged, summed((variance + (mean - merged).square()) * count) / total, total


class MaskedBatchNorm(nn.Module):
    """Batch normalization over the valid frames only; parameters and buffers are named as in `nn.BatchNorm1d`.

    Equal to `nn.BatchNorm1d` where every frame is valid, in training and in eval mode. One valid frame in a training
    batch is no error: it is normalized to the bias. Statistics are float32 at least. With several processes they are
    those of the global batch where `synchronized` is set (`split_over_processes`), and each process's own otherwise.

    Args:
        num_features: Channels.
        affine: Whether to learn a weight and a bias a channel.
        copies: Input channels are `copies` x `num_features`, and the copies of a channel share statistics, weight
            and bias (one cluster's logits in all groups).
        eps: Added to the variance.
        momentum: Share of a batch in the running statistics.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self, num_features: int, *, affine: bool = True, copies: int = 1, eps: float = 1e-5, momentum: float = 0.1
    ) -> None:
        super().__init__()
        self.num_features, self.copies, self.eps, self.momentum = num_features, copies, eps, momentum
        self.synchronized = False
        self.weight = nn.Parameter(torch.ones(num_features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features)) if affine else None
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def extra_repr(self) -> str:
        """What printing the module shows."""
        return f"{self.num_features}, copies={self.copies}, affine={self.weight is not None}"

    def statistics(self, features: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """What to normalize with: the output is `(features - mean) * scale + bias`.

        In training mode the statistics are the batch's, and the running ones are updated.

        Args:
            features: (..., copies * num_features).
            mask: bool (...), or None where everything is valid.

        Returns:
            mean, scale and bias, each (copies * num_features,), float32 at least.
        """
        if self.training:
            mean, variance = self._batch_moments(features, mask)
        else:
            mean, variance = self.running_mean, self.running_var
        scale = torch.rsqrt(variance + self.eps)
        if self.weight is not None and self.bias is not None:
            scale, bias = scale * self.weight, cast("Tensor", self.bias)
        else:
            bias = torch.zeros_like(mean)
        return mean.repeat(self.copies), scale.repeat(self.copies), bias.repeat(self.copies)

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalize.

        Args:
            features: (..., copies * num_features).
            mask: bool (...), or None where everything is valid.

        Returns:
            The same shape, float32 at least; what stands at masked places is of no use.
        """
        mean, scale, bias = self.statistics(features, mask)
        return torch.addcmul(bias, features - mean, scale)

    def _batch_moments(self, features: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        rows = features.reshape(-1, features.shape[-1])
        dtype = _statistics_dtype(rows)
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
    """`linear(norm(features, mask))`, normalizing on whichever side is smaller: the features or the weight.

    With many more frames than output channels it is the weight: `W ((x - mean) scale + bias) + b` is a linear layer
    with the weight `W scale`, so that the normalized (B, T, channels) tensor is never made.

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
        mean, scale, bias = norm.statistics(features, mask)
        weight = linear.weight * scale
        shift = linear.bias + linear.weight @ bias
    if torch.is_autocast_enabled(device):
        # Rounded before the mean is taken off, so that a channel's mean still cancels to the last digit.
        weight = weight.to(torch.get_autocast_dtype(device))
    with torch.autocast(device, enabled=False):
        shift = shift - weight.to(shift.dtype) @ mean
    return F.linear(features, weight, shift)


# --------------------------------------------------------------------------------------------------------- dropout


class Dropout(nn.Module):
    """Dropout that drops the same of a batch however many processes share it.

    A process draws for the whole global batch and uses its own rows of it; batches are small here, a vector a video.
    With one process this is `torch.nn.Dropout`.

    Args:
        p: Share of what is dropped in training; the rest is scaled by 1 / (1 - p).
        whole: Drop the last dimension whole: (B, clusters, features) loses clusters.
    """

    def __init__(self, p: float, whole: bool = False) -> None:
        super().__init__()
        self.p, self.whole = p, whole
        self.rank, self.num_processes = 0, 1

    def extra_repr(self) -> str:
        """What printing the module shows."""
        return f"{self.p}, whole={self.whole}"

    def forward(self, features: Tensor) -> Tensor:
        """Drop in training: (B, ...), any shape -> the same."""
        if not self.training or self.p == 0:
            return features
        if self.num_processes == 1:
            return F.dropout1d(features, self.p) if self.whole else F.dropout(features, self.p)
        rows = len(features)
        shape = (*features.shape[1:-1], 1) if self.whole else features.shape[1:]
        kept = features.new_empty((rows * self.num_processes, *shape)).bernoulli_(1 - self.p)
        return features * kept[self.rank * rows : (self.rank + 1) * rows] / (1 - self.p)


def split_over_processes(module: nn.Module, rank: int, num_processes: int, sync_batch_norm: bool = True) -> None:
    """Prepare a network for batches that several processes share: each sees an equal part, the network the whole.

    Dropout drops what one process would drop. Batch norm takes the statistics of the global batch, at the price of two
    small sums over all processes a layer, in each direction; or of the process's part where `sync_batch_norm` is off.

    Args:
        module: Changed in place; its weights are not.
        rank: Which process this is. Process `rank` has the part `rank` of every global batch.
        num_processes: Processes in all; torch.distributed is set up where there is more than one.
        sync_batch_norm: Whether batch norm looks at the global batch.
    """
    for layer in module.modules():
        if isinstance(layer, Dropout):
            layer.rank, layer.num_processes = rank, num_processes
        elif isinstance(layer, MaskedBatchNorm):
            layer.synchronized = sync_batch_norm and num_processes > 1


# ---------------------------------------------------------------------------------------------- gating and pooling


class SqueezeExcite(nn.Module):
    """The gate `x * sigmoid(W2 BN(ReLU(W1 BN(x))))` over channels (SPEC: SE gating).

    Args:
        channels: Size of x.
        reduction: How many times narrower the hidden layer is.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.squeeze_norm = MaskedBatchNorm(channels)
        self.squeeze = nn.Linear(channels, hidden)
        self.excite_norm = MaskedBatchNorm(hidden)
        self.excite = nn.Linear(hidden, channels)

    def gate_logits(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits of the gate, (..., channels), of features (..., channels) with a mask (...) or none."""
        hidden = F.relu(normalized_linear(self.squeeze_norm, self.squeeze, features, mask))
        return normalized_linear(self.excite_norm, self.excite, hidden, mask)

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Gate features (..., channels); with a mask (...) the statistics are those of the valid frames."""
        return features * torch.sigmoid(self.gate_logits(features, mask))


def squeeze_excite(channels: int, reduction: int | None) -> SqueezeExcite | None:
    """The gate, or None where the reduction is 0 or None (gating off)."""
    return SqueezeExcite(channels, reduction) if reduction else None


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

    The gradient goes through the product again, a few videos at a time; ties of the maximum share it evenly, as in
    `torch.amax`.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, gate_logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        dtype = _statistics_dtype(features)
        weights = mask.to(dtype).unsqueeze(-1)
        penalty = torch.zeros_like(weights).masked_fill_(~mask.unsqueeze(-1), -torch.inf)
        shape = (features.shape[0], features.shape[2])
        maximum, mean = features.new_empty(shape, dtype=dtype), features.new_empty(shape, dtype=dtype)
        for block in _blocks(features):
            gated = torch.sigmoid(gate_logits[block].to(dtype)).mul_(features[block])
            mean[block] = (gated * weights[block]).sum(1)
            maximum[block] = gated.add_(penalty[block]).amax(1)
        mean /= weights.sum(1).clamp(min=1)
        ctx.save_for_backward(features, gate_logits, weights, penalty)
        return maximum, mean

    @staticmethod
    def backward(ctx: Any, grad_maximum: Tensor, grad_mean: Tensor) -> tuple[Tensor, Tensor, None]:
        features, gate_logits, weights, penalty = ctx.saved_tensors
        grad_features, grad_logits = torch.empty_like(features), torch.empty_like(gate_logits)
        grad_mean = (grad_mean / weights.sum(1).clamp(min=1)).unsqueeze(1)
        for block in _blocks(features):
            gate = torch.sigmoid(gate_logits[block].to(weights.dtype))
            gated = gate * features[block]
            # The maximum is found anew: a compiler may round the product differently here than in the forward pass.
            masked = gated + penalty[block]
            largest = (masked == masked.amax(1, keepdim=True)).to(weights.dtype)
            share = grad_maximum[block].unsqueeze(1) / largest.sum(1, keepdim=True)
            grad = largest.mul_(share).add_(grad_mean[block] * weights[block])
            grad_features[block] = grad * gate
            grad_logits[block] = grad.mul_(gated).mul_(1 - gate)
        return grad_features, grad_logits, None


def gated_max_mean_pool(features: Tensor, gate_logits: Tensor | None, mask: Tensor) -> Tensor:
    """Gate and pool: masked maximum beside masked mean of `features * sigmoid(gate_logits)`.

    Args:
        features: (B, T, channels).
        gate_logits: (B, T, channels), or None for no gate.
        mask: bool (B, T), at least one frame a video.

    Returns:
        (B, 2 * channels): maxima, then means; float32 at least.
    """
    if gate_logits is None:
        features = features.to(_statistics_dtype(features))
        return torch.cat([masked_max_pool(features, mask), masked_mean_pool(features, mask)], dim=1)
    pooled = _GatedPool.apply(features, gate_logits, mask)  # type: ignore[no-untyped-call]
    return torch.cat(cast("tuple[Tensor, Tensor]", pooled), dim=1)


# ---------------------------------------------------------------------------------------------- mixture of experts


class _MixtureLogit(torch.autograd.Function):
    """Logit of `p = sum_k gate_k sigmoid(z_k)`, the last gate belonging to an expert that always says 0.

    Both `p = sum_k gate_k sigmoid(z_k)` and `1 - p = gate_silent + sum_k gate_k sigmoid(-z_k)` are sums of positive
    terms, so nothing cancels and `log p - log(1-p)` is right to the last digits at either end; two sigmoids an expert
    are all it costs, where two logsumexp need twice the transcendental functions and several passes more. Logits
    beyond +-40 count as +-40 (a gate below e^-40 likewise), which keeps both sums far from underflow; the gradient
    passes through that bound, so that an expert can always come back.

    With the shares u_k = gate_k sigmoid(z_k) / p and v_k = gate_k sigmoid(-z_k) / (1-p) the gradient is
    u_k sigmoid(-z_k) + v_k sigmoid(z_k) for an expert and u_k - v_k for its gate's logit: always bounded.
    """

    @staticmethod
    def forward(ctx: Any, expert_logits: Tensor, gate_logits: Tensor) -> Tensor:
        logits = torch.empty_like(expert_logits[:, 0])
        for block in _blocks(expert_logits):
            positive, negative, gate = _mixture_terms(expert_logits[block], gate_logits[block])
            yes = positive.mul_(gate[:, :-1]).sum(1)
            no = negative.mul_(gate[:, :-1]).sum(1).add_(gate[:, -1])
            logits[block] = yes.log_().sub_(no.log_())
        ctx.save_for_backward(expert_logits, gate_logits)
        return logits

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        expert_logits, gate_logits = ctx.saved_tensors
        grad_experts, grad_gates = torch.empty_like(expert_logits), torch.empty_like(gate_logits)
        shared = gate_logits.shape[2] == 1
        for block in _blocks(expert_logits):
            positive, negative, gate = _mixture_terms(expert_logits[block], gate_logits[block])
            yes_share, no_share = positive * gate[:, :-1], negative * gate[:, :-1]
            yes = yes_share.sum(1, keepdim=True)
            no = no_share.sum(1, keepdim=True).add_(gate[:, -1:])
            upstream = grad[block].unsqueeze(1)
            yes_share.mul_(upstream / yes)
            no_share.mul_(upstream / no)
            silent = -gate[:, -1:] * (upstream / no)
            experts = yes_share - no_share
            if shared:
                silent, experts = silent.sum(2, keepdim=True), experts.sum(2, keepdim=True)
            grad_gates[block, -1:], grad_gates[block, :-1] = silent, experts
            grad_experts[block] = yes_share.mul_(negative).add_(no_share.mul_(positive))
        return grad_experts, grad_gates


def _mixture_terms(expert_logits: Tensor, gate_logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """sigmoid(z), sigmoid(-z) (rows, experts, classes) and the gates' probabilities (rows, experts + 1, classes or 1)."""
    bounded = expert_logits.clamp(-_LARGEST_LOGIT, _LARGEST_LOGIT)
    gate = torch.log_softmax(gate_logits, 1).clamp_(min=-_LARGEST_LOGIT).exp_()
    return torch.sigmoid(bounded), bounded.neg_().sigmoid_(), gate


class MixtureConfig(Settings):
    """The mixture of experts at the end of every classifier."""

    num_experts: int = Field(4, ge=1)
    """Experts a class, the silent one not counted."""
    dropout: float = Field(0.5, ge=0, lt=1)
    """Share of features dropped in front of the experts, and another share in front of the gate."""
    per_class: bool = False
    """A gate for each class instead of one that all classes share."""
    average: Literal["probabilities", "logits"] = "probabilities"
    """What is averaged over the experts: probabilities, as in the paper, or logits, as in its authors' code of 2019,
    where the silent expert's logit of 0 pulls a class towards a half and not to nothing."""
    initial_probability: float = Field(0.005, gt=0, lt=1)
    """What untrained experts say of every class; near the share of videos that show one, so that training need not
    begin by unlearning a half. Fresh weights only."""


class MixtureOfExperts(nn.Module):
    """Probability of a class = mean of its experts' probabilities, weighted by a gate that may also choose silence.

    `p = sum_k gate_k sigmoid(z_k)`, gate = softmax over the experts and one more that always predicts zero; or, where
    logits are averaged, `logit p = sum_k gate_k z_k`, the silent expert's z being 0. Batch norm and dropout of their
    own stand before the experts and before the gate (SPEC: mixture of experts). All of it runs in float32 under autocast: bfloat16 has steps of 0.06 at the logits of a rare class, and a ranking is made of
    these numbers.

    Args:
        in_features: Size of the encoded video.
        num_classes: C.
        config: Settings.
    """

    def __init__(self, in_features: int, num_classes: int, config: MixtureConfig) -> None:
        super().__init__()
        self.num_classes, self.num_experts = num_classes, config.num_experts
        self.gate_classes = num_classes if config.per_class else 1
        self.averages_logits = config.average == "logits"
        self.expert_norm = MaskedBatchNorm(in_features)
        self.expert_dropout = Dropout(config.dropout)
        self.experts = nn.Linear(in_features, config.num_experts * num_classes)
        nn.init.constant_(self.experts.bias, math.log(config.initial_probability / (1 - config.initial_probability)))
        self.gate_norm = MaskedBatchNorm(in_features)
        self.gate_dropout = Dropout(config.dropout)
        self.gate = nn.Linear(in_features, (config.num_experts + 1) * self.gate_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, in_features) -> logits of the mixed probabilities, (B, C); `torch.sigmoid` gives these."""
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(self.experts.weight.dtype)
            experts = self.experts(self.expert_dropout(self.expert_norm(features)))
            gate = self.gate(self.gate_dropout(self.gate_norm(features)))
            mixed = averaged_logits if self.averages_logits else mixture_logits
            return mixed(
                experts.view(-1, self.num_experts, self.num_classes),
                gate.view(-1, self.num_experts + 1, self.gate_classes),
            )


def mixture_logits(expert_logits: Tensor, gate_logits: Tensor) -> Tensor:
    """Logits of the mixture of experts' probabilities, finite whatever the input.

    Args:
        expert_logits: (B, experts, C).
        gate_logits: (B, experts + 1, C), or (B, experts + 1, 1) for a gate shared by all classes; the last is the
            silent expert's.

    Returns:
        (B, C), `logit(sum_k gate_k sigmoid(z_k))`, between -80 and 40 or so. Differentiable once.
    """
    return cast("Tensor", _MixtureLogit.apply(expert_logits, gate_logits))  # type: ignore[no-untyped-call]


def averaged_logits(expert_logits: Tensor, gate_logits: Tensor) -> Tensor:
    """Average of the experts' logits, the silent expert's being 0.

    Args:
        expert_logits: (B, experts, C).
        gate_logits: (B, experts + 1, C), or (B, experts + 1, 1) for a gate shared by all classes; the last is the
            silent expert's.

    Returns:
        (B, C), `sum_k gate_k z_k` over the experts that speak.
    """
    return (torch.softmax(gate_logits, 1)[:, :-1] * expert_logits).sum(1)


# --------------------------------------------------------------------------------------------------- weight decay


def decaying_parameters(module: nn.Module) -> dict[str, bool]:
    """Say of each parameter whether weight decay applies to it (SPEC: none on biases and norm weights).

    Decided by the kind of module that owns a parameter, never by matching names: norm layers do not decay, nor does
    any `bias`, nor what a module lists in `parameters_without_decay` (NeXtVLAD's centroids: a centroid is an offset
    taken from the features, as a bias is, and pulling it to zero pulls it away from the data).

    Args:
        module: Any module.

    Returns:
        Name of the parameter, as in `named_parameters()` and in the same order -> whether it decays.
    """
    norms = (MaskedBatchNorm, nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    kept: set[int] = set()
    for owner in module.modules():
        exempt = set(getattr(owner, "parameters_without_decay", ())) | {"bias"}
        for name, parameter in owner.named_parameters(recurse=False):
            if isinstance(owner, norms) or name in exempt:
                kept.add(id(parameter))
    return {name: id(parameter) not in kept for name, parameter in module.named_parameters()}
