"""Folded layers: linear layers, gates and mixtures with batch norm folded in, as matrix products of fixed shapes."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from yt8m.models.layers.batch_norm import EPS, MaskedBatchNorm
from yt8m.models.layers.gating import SqueezeExcite
from yt8m.models.layers.mixture import MixtureOfExperts, averaged_logits, mixture_logits

_OUTPUT_MULTIPLE = 32
"""Outputs of a product are padded to a multiple of this, for which libraries use one order of sums for all rows. For other
numbers, a row's bits may depend on its position, and a product with 4,005 outputs takes a third longer."""


class FoldedLinear:
    """A linear layer with constant weights: `weight x + bias` in the type of its weight.

    Args:
        weight: (out, in), float64.
        bias: (out,), float64.
        dtype: Type of the product.
        device: Device.
    """

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype, device: torch.device) -> None:
        self._size = len(weight)
        filler = -len(weight) % _OUTPUT_MULTIPLE
        self.weight = F.pad(weight, (0, 0, 0, filler)).to(dtype).to(device)
        self.bias = F.pad(bias, (0, filler)).to(dtype).to(device)

    def __call__(self, features: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return F.linear(features.to(self.weight.dtype), self.weight, self.bias)[..., : self._size]


def norm_as_affine(norm: MaskedBatchNorm) -> tuple[Tensor, Tensor]:
    """Scale and shift of a batch norm in eval mode, float64 (copies * num_features,) each, on the CPU."""
    scale = torch.rsqrt(norm.running_var.double().cpu() + EPS)
    shift = -norm.running_mean.double().cpu() * scale
    if norm.weight is not None and norm.bias is not None:
        weight = norm.weight.detach().double().cpu()
        scale, shift = scale * weight, shift * weight + norm.bias.detach().double().cpu()
    return scale.repeat(norm.copies), shift.repeat(norm.copies)


def linear_parameters(linear: nn.Linear) -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear layer, float64 on the CPU."""
    weight = linear.weight.detach().double().cpu()
    bias = weight.new_zeros(len(weight)) if linear.bias is None else linear.bias.detach().double().cpu()
    return weight, bias


def fold_norm_into_linear(norm: MaskedBatchNorm, linear: nn.Linear) -> tuple[Tensor, Tensor]:
    """Weight and bias of `linear(norm(x))` as one linear layer, float64 on the CPU."""
    (scale, shift), (weight, bias) = norm_as_affine(norm), linear_parameters(linear)
    return weight * scale, bias + weight @ shift


class FoldedGate:
    """An SE gate over channels: `x * sigmoid(W2 relu(W1 x))`."""

    def __init__(self, gate: SqueezeExcite, dtype: torch.dtype, device: torch.device) -> None:
        self._squeeze = FoldedLinear(*fold_norm_into_linear(gate.squeeze_norm, gate.squeeze), dtype, device)
        self._excite = FoldedLinear(*fold_norm_into_linear(gate.excite_norm, gate.excite), dtype, device)

    def __call__(self, features: Tensor, out: Tensor | None = None) -> Tensor:
        """(..., channels) -> (..., channels), in `out` if given."""
        gate = self._excite(self._squeeze(features).relu_()).sigmoid_()
        return torch.mul(gate, features, out=gate if out is None else out)


def fold_gate(gate: SqueezeExcite | None, dtype: torch.dtype, device: torch.device) -> FoldedGate | None:
    """Fold a gate; None where there is none."""
    return None if gate is None else FoldedGate(gate, dtype, device)


class FoldedMixture:
    """The mixture of experts, in float32: experts and gate in one matrix product."""

    def __init__(self, mixture: MixtureOfExperts, device: torch.device) -> None:
        experts = fold_norm_into_linear(mixture.expert_norm, mixture.experts)
        gate = fold_norm_into_linear(mixture.gate_norm, mixture.gate)
        weight, bias = (torch.cat(pair) for pair in zip(experts, gate, strict=True))
        self._linear = FoldedLinear(weight, bias, torch.float32, device)
        self._sizes = [len(experts[1]), len(gate[1])]
        self._experts, self._classes = mixture.num_experts, mixture.num_classes
        self._gate_classes = mixture.gate_classes
        self._mixed = averaged_logits if mixture.averages_logits else mixture_logits

    def __call__(self, features: Tensor) -> Tensor:
        """(S, in_features) -> logits, float32 (S, C)."""
        experts, gate = torch.split(self._linear(features.float()), self._sizes, 1)  # (S, N C), (S, (N + 1) C or N + 1)
        return self._mixed(
            experts.reshape(-1, self._experts, self._classes), gate.reshape(-1, self._experts + 1, self._gate_classes)
        )
