"""Mixture of experts: predicts the probabilities of all classes from an encoded video or segment.

Shapes: B videos or segments (b in a block), N experts, C classes. The gate has C columns, or 1 that all classes share.
"""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from yt8m.models.config import MixtureConfig
from yt8m.models.layers.batch_norm import MaskedBatchNorm
from yt8m.models.layers.blocks import row_blocks
from yt8m.models.layers.dropout import Dropout

_LARGEST_LOGIT = 40.0
"""Bound of expert and gate logits: products of two odds of e^40 are still normal float32 numbers."""


class _MixtureLogit(torch.autograd.Function):
    """Logit of `p = sum_k gate_k sigmoid(z_k)`, where the last gate is that of an expert that always predicts 0.

    Both `p` and `1 - p = gate_zero + sum_k gate_k sigmoid(-z_k)` are sums of positive terms, so nothing cancels and
    `log p - log(1-p)` is accurate at both ends, with two sigmoids per expert, half the cost of two logsumexp. Logits are
    bounded to +-40 (gates to e^-40), which keeps both sums far from underflow; the gradient passes through the bound, so
    that a saturated expert can recover.

    With u_k = gate_k sigmoid(z_k) / p and v_k = gate_k sigmoid(-z_k) / (1-p) the gradient is
    u_k sigmoid(-z_k) + v_k sigmoid(z_k) for an expert and u_k - v_k for its gate's logit: always bounded.
    """

    @staticmethod
    def forward(ctx: Any, expert_logits: Tensor, gate_logits: Tensor) -> Tensor:
        logits = torch.empty_like(expert_logits[:, 0])  # (B, C)
        for block in row_blocks(expert_logits):
            positive, negative, gate = _mixture_terms(expert_logits[block], gate_logits[block])
            p = positive.mul_(gate[:, :-1]).sum(1)  # (b, C)
            q = negative.mul_(gate[:, :-1]).sum(1).add_(gate[:, -1])  # (b, C), 1 - p
            logits[block] = p.log_().sub_(q.log_())
        ctx.save_for_backward(expert_logits, gate_logits)
        return logits

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        expert_logits, gate_logits = ctx.saved_tensors
        grad_experts, grad_gates = torch.empty_like(expert_logits), torch.empty_like(gate_logits)
        shared = gate_logits.shape[2] == 1
        for block in row_blocks(expert_logits):
            positive, negative, gate = _mixture_terms(expert_logits[block], gate_logits[block])
            u, v = positive * gate[:, :-1], negative * gate[:, :-1]  # (b, N, C)
            p = u.sum(1, keepdim=True)  # (b, 1, C)
            q = v.sum(1, keepdim=True).add_(gate[:, -1:])  # (b, 1, C)
            upstream = grad[block].unsqueeze(1)  # (b, 1, C)
            u.mul_(upstream / p)
            v.mul_(upstream / q)
            zero = -gate[:, -1:] * (upstream / q)  # (b, 1, C)
            experts = u - v  # (b, N, C)
            if shared:
                zero, experts = zero.sum(2, keepdim=True), experts.sum(2, keepdim=True)  # (b, 1 or N, 1)
            grad_gates[block, -1:], grad_gates[block, :-1] = zero, experts
            grad_experts[block] = u.mul_(negative).add_(v.mul_(positive))
        return grad_experts, grad_gates


def _mixture_terms(expert_logits: Tensor, gate_logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """sigmoid(z), sigmoid(-z), (b, N, C) each, and the gates' probabilities, (b, N + 1, C or 1)."""
    bounded = expert_logits.clamp(-_LARGEST_LOGIT, _LARGEST_LOGIT)
    gate = torch.log_softmax(gate_logits, 1).clamp_(min=-_LARGEST_LOGIT).exp_()
    return torch.sigmoid(bounded), bounded.neg_().sigmoid_(), gate


class MixtureOfExperts(nn.Module):
    """Mixture of experts: the gated mean of the experts' probabilities of a class (docs/method.md, "Mixture of experts").

    `p = sum_k gate_k sigmoid(z_k)`, where the gate is a softmax over the experts and one more that always predicts zero;
    or, if logits are averaged, `logit p = sum_k gate_k z_k`. Experts and gate each have their own batch norm and dropout.
    Everything is float32 under autocast too: bfloat16 has steps of 0.06 at the logits of rare classes, too coarse to rank.

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
        """Features (B, in_features) -> logits of the mixed probabilities, (B, C)."""
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(self.experts.weight.dtype)
            experts = self.experts(self.expert_dropout(self.expert_norm(features)))  # (B, N C)
            gate = self.gate(self.gate_dropout(self.gate_norm(features)))  # (B, (N + 1) C) or (B, N + 1)
            mixed = averaged_logits if self.averages_logits else mixture_logits
            return mixed(
                experts.view(-1, self.num_experts, self.num_classes),
                gate.view(-1, self.num_experts + 1, self.gate_classes),
            )


def mixture_logits(expert_logits: Tensor, gate_logits: Tensor) -> Tensor:
    """Logits of the mixture of the experts' probabilities, finite for any input.

    Args:
        expert_logits: (B, N, C).
        gate_logits: (B, N + 1, C or 1); the last is the zero expert's.

    Returns:
        (B, C), `logit(sum_k gate_k sigmoid(z_k))`, between -80 and 40 or so. Differentiable once.
    """
    return cast("Tensor", _MixtureLogit.apply(expert_logits, gate_logits))  # type: ignore[no-untyped-call]


def averaged_logits(expert_logits: Tensor, gate_logits: Tensor) -> Tensor:
    """Gated mean of the experts' logits, `sum_k gate_k z_k`; arguments and result as for `mixture_logits`."""
    return (torch.softmax(gate_logits, 1)[:, :-1] * expert_logits).sum(1)
