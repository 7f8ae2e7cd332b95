"""Squeeze-and-excitation gating."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from yt8m.models.layers.batch_norm import MaskedBatchNorm, normalized_linear


class SqueezeExcite(nn.Module):
    """The gate `x * sigmoid(W2 BN(ReLU(W1 BN(x))))` over channels (docs/method.md, "SE gating").

    Args:
        channels: Size of x.
        reduction: Ratio of channels to hidden units.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.squeeze_norm = MaskedBatchNorm(channels)
        self.squeeze = nn.Linear(channels, hidden)
        self.excite_norm = MaskedBatchNorm(hidden)
        self.excite = nn.Linear(hidden, channels)

    def gate_logits(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits of the gate, (..., channels), for features (..., channels) with mask (...) or None."""
        hidden = F.relu(normalized_linear(self.squeeze_norm, self.squeeze, features, mask))
        return normalized_linear(self.excite_norm, self.excite, hidden, mask)

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Gate features (..., channels); with a mask (...), batch statistics are those of the valid frames."""
        return features * torch.sigmoid(self.gate_logits(features, mask))


def squeeze_excite(channels: int, reduction: int) -> SqueezeExcite | None:
    """The gate, or None for a reduction of 0 (no gating)."""
    return SqueezeExcite(channels, reduction) if reduction else None
