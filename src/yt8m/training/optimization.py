"""AdamW with decay where it belongs, and the slanted triangular schedule (SPEC: optimization)."""

from __future__ import annotations

from collections.abc import Collection

import torch
from pydantic import Field
from torch import Tensor, nn

from yt8m.settings import Settings
from yt8m.training.optimizer_groups import decaying_parameters


class OptimizationConfig(Settings):
    """How the weights move."""

    steps: int = Field(gt=0)
    """Optimizer steps."""
    batch_size: int = Field(default=128, gt=0)
    """Videos or segments in a step, over all processes."""
    gradient_accumulation: int = Field(default=1, gt=0)
    """Parts that a process takes its share of a batch in, one after the other, to need less memory; gradients are
    summed over them. Batch norm sees each part by itself."""
    peak_lr: float = Field(gt=0)
    """Highest learning rate of the schedule."""
    weight_decay: float = Field(ge=0)
    """Decay of weight matrices; biases and the weights of norm layers have none."""
    warmup: float = Field(default=0.25, ge=0, le=1)
    """Share of the steps during which the rate rises."""
    max_grad_norm: float = Field(default=10.0, gt=0)
    """The gradient's norm is clipped here."""
    encoder_lr_factor: float = Field(default=0.5, ge=0)
    """Rate of a context-aware model's segment encoder, as a share of that of its new layers."""


def slanted_triangular(step: int, steps: int, warmup: float) -> float:
    """Rate at a step as a share of the peak: linear up over the first `warmup`, then linear down to zero.

    Args:
        step: From 0; the peak is reached at `warmup * steps`.
        steps: Steps in all; the rate of step `steps` would be 0.
        warmup: Share of the steps that rise.
    """
    peak = warmup * steps
    if step < peak:
        return (step + 1) / (peak + 1)
    # Asked for step `steps` as well, once the last step is done: where all steps rise, that is the peak.
    return (steps - step) / (steps - peak) if step < steps else 0.0


def make_optimizer(
    model: nn.Module, config: OptimizationConfig, slow: Collection[nn.Parameter] = ()
) -> torch.optim.AdamW:
    """Make AdamW over the parameters that are trained; `set_rates` gives it the rates of a step.

    Args:
        model: Parameters that need no gradient (a frozen encoder) are left out.
        config: Rates and decay.
        slow: Parameters that learn at `encoder_lr_factor` of the rate.
    """
    slow_ids = {id(parameter) for parameter in slow}
    decaying = decaying_parameters(model)
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((decaying[name], id(parameter) in slow_ids), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "weight_decay": config.weight_decay if decay else 0.0,
                "factor": config.encoder_lr_factor if is_slow else 1.0,
            }
            for (decay, is_slow), parameters in groups.items()
        ],
        lr=config.peak_lr,
        fused=True,
    )


def rate_of(step: int, config: OptimizationConfig) -> float:
    """Rate of a step, from 0, of the parameters that are not slow."""
    return config.peak_lr * slanted_triangular(step, config.steps, config.warmup)


def set_rates(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its share of a rate."""
    for group in optimizer.param_groups:
        own = rate * group["factor"]
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(own)
        else:
            group["lr"] = own
