"""The mixture of experts."""

from __future__ import annotations

import math
from typing import Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from yt8m.models.layers.batch_norm import MaskedBatchNorm
from yt8m.models.layers.blocks import row_blocks
from yt8m.models.layers.dropout import Dropout
from yt8m.settings import Settings

_LARGEST_LOGIT = 40.0
"""Experts and gates are told apart up to odds of e^40; products of two such odds are still normal float32 numbers."""


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
        for block in row_blocks(expert_logits):
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
        for block in row_blocks(expert_logits):
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
