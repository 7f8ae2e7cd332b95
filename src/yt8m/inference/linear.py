"""Linear layers, gates and mixtures with batch norm folded in, in products of fixed shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from yt8m.models.layers.batch_norm import MaskedBatchNorm
from yt8m.models.layers.gating import SqueezeExcite
from yt8m.models.layers.mixture import MixtureOfExperts, averaged_logits, mixture_logits


class Chunks(NamedTuple):
    """How much is computed at a time, always exactly so much.

    Args:
        frames: Frames described at a time.
        windows: Segments.
        gathered: Numbers gathered for windows: on a CPU, what stays in its cache until they are summed.
    """

    frames: int
    windows: int
    gathered: int


_ON_CPU = Chunks(frames=1024, windows=512, gathered=1 << 20)
_ON_DEVICE = Chunks(frames=4096, windows=2048, gathered=1 << 27)
VIDEOS_PER_CHUNK = 64


def chunks_of(device: torch.device) -> Chunks:
    """What a device computes at a time."""
    return _ON_CPU if device.type == "cpu" else _ON_DEVICE


_OUTPUTS = 32
"""Outputs of a product are filled up to a multiple of this. Libraries have one way for such products, whatever the row;
for a few odd outputs a row's bits may depend on where it stands, and for 4,005 the product takes a third longer."""


class FoldedLinear:
    """A linear layer with constants: `weight x + bias` in the type that its weight has.

    Args:
        weight: (out, in), float64.
        bias: (out,), float64.
        dtype: Type of the product.
        device: Where the weights belong.
    """

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype, device: torch.device) -> None:
        self._size = len(weight)
        filler = -len(weight) % _OUTPUTS
        self.weight = F.pad(weight, (0, 0, 0, filler)).to(dtype).to(device)
        self.bias = F.pad(bias, (0, filler)).to(dtype).to(device)

    def __call__(self, features: Tensor) -> Tensor:
        """Features (..., in) -> (..., out)."""
        return F.linear(features.to(self.weight.dtype), self.weight, self.bias)[..., : self._size]


def affine_of_norm(norm: MaskedBatchNorm) -> tuple[Tensor, Tensor]:
    """What a batch norm does in eval mode: `x * scale + shift`, float64 (copies * num_features,) each, on the CPU."""
    scale = torch.rsqrt(norm.running_var.double().cpu() + norm.eps)
    shift = -norm.running_mean.double().cpu() * scale
    if norm.weight is not None and norm.bias is not None:
        weight = norm.weight.detach().double().cpu()
        scale, shift = scale * weight, shift * weight + norm.bias.detach().double().cpu()
    return scale.repeat(norm.copies), shift.repeat(norm.copies)


def weight_and_bias(linear: nn.Linear) -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear layer, float64 on the CPU."""
    weight = linear.weight.detach().double().cpu()
    return weight, torch.zeros(
        len(weight), dtype=weight.dtype
    ) if linear.bias is None else linear.bias.detach().double().cpu()


def fold_norm_into_linear(norm: MaskedBatchNorm, linear: nn.Linear) -> tuple[Tensor, Tensor]:
    """`linear(norm(x))` as one linear layer."""
    (scale, shift), (weight, bias) = affine_of_norm(norm), weight_and_bias(linear)
    return weight * scale, bias + weight @ shift


class FoldedGate:
    """An SE gate over channels: `x * sigmoid(W2 relu(W1 x))`."""

    def __init__(self, gate: SqueezeExcite, dtype: torch.dtype, device: torch.device) -> None:
        self._squeeze = FoldedLinear(*fold_norm_into_linear(gate.squeeze_norm, gate.squeeze), dtype, device)
        self._excite = FoldedLinear(*fold_norm_into_linear(gate.excite_norm, gate.excite), dtype, device)

    def __call__(self, features: Tensor, out: Tensor | None = None) -> Tensor:
        """Features (..., channels) -> the same, in `out` where that is given."""
        gate = self._excite(self._squeeze(features).relu_()).sigmoid_()
        return torch.mul(gate, features, out=gate if out is None else out)


def folded_gate(gate: SqueezeExcite | None, dtype: torch.dtype, device: torch.device) -> FoldedGate | None:
    """A folded gate, or None where there is no gate."""
    return None if gate is None else FoldedGate(gate, dtype, device)


def in_chunks(function: Callable[..., Tensor], size: int, *tensors: Tensor) -> Tensor:
    """Apply a function to `size` rows at a time, always so many: the last chunk is filled up with its first row.

    Args:
        function: Rows of each tensor -> as many rows.
        size: Rows of a chunk.
        tensors: As many rows each, at least one.
    """
    results = []
    for start in range(0, len(tensors[0]), size):
        parts = [tensor[start : start + size] for tensor in tensors]
        results.append(function(*(pad_rows(part, size) for part in parts))[: len(parts[0])])
    return results[0] if len(results) == 1 else torch.cat(results)


def pad_rows(rows: Tensor, size: int) -> Tensor:
    """Rows filled up to `size` with the first of them."""
    filler = size - len(rows)
    return torch.cat([rows, rows[:1].expand(filler, *rows.shape[1:])]) if filler else rows


class FoldedMixture:
    """The mixture of experts, in float32: experts and gate are one matrix product."""

    def __init__(self, mixture: MixtureOfExperts, device: torch.device) -> None:
        experts, gate = (
            fold_norm_into_linear(norm, linear)
            for norm, linear in ((mixture.expert_norm, mixture.experts), (mixture.gate_norm, mixture.gate))
        )
        weight, bias = (torch.cat(pair) for pair in zip(experts, gate, strict=True))
        self._linear = FoldedLinear(weight, bias, torch.float32, device)
        self._sizes = [len(experts[1]), len(gate[1])]
        self._experts, self._classes = mixture.num_experts, mixture.num_classes
        self._gate_classes = mixture.gate_classes
        self._mixed = averaged_logits if mixture.averages_logits else mixture_logits

    def __call__(self, features: Tensor) -> Tensor:
        """Encoded (S, in_features) -> logits, float32 (S, C)."""
        experts, gate = torch.split(self._linear(features.float()), self._sizes, 1)
        return self._mixed(
            experts.reshape(-1, self._experts, self._classes), gate.reshape(-1, self._experts + 1, self._gate_classes)
        )
