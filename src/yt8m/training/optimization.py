"""AdamW with weight decay on weight matrices only, and the slanted triangular schedule (docs/method.md, "Optimization")."""

from collections.abc import Collection

import torch
from torch import Tensor, nn

from yt8m.models.layers.batch_norm import MaskedBatchNorm
from yt8m.training.config import OptimizationConfig


def slanted_triangular(step: int, steps: int, warmup: float) -> float:
    """Learning rate of a step relative to the peak: linear up over the first `warmup`, then linear down to zero.

    Args:
        step: From 0; the peak is at `warmup * steps`. Step `steps` gives 0.
        steps: Total number of steps.
        warmup: Fraction of the steps that rise.
    """
    peak = warmup * steps
    if step < peak:
        return (step + 1) / (peak + 1)
    # With warmup 1, step `steps` is the peak: avoid 0 / 0.
    return (steps - step) / (steps - peak) if step < steps else 0.0


def decaying_parameters(module: nn.Module) -> dict[str, bool]:
    """Decide for each parameter whether weight decay applies to it.

    It does not for norm layers, biases, and the names in a module's `parameters_without_decay` (the centroids of
    NeXtVLAD: like a bias, a centroid is an offset of the features, which decay would pull away from the data). Norm
    layers are recognized by class, not by name.

    Returns:
        Name of the parameter, as in `named_parameters()` and in the same order -> whether it decays.
    """
    norms = (MaskedBatchNorm, nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    exempt: set[int] = set()
    for owner in module.modules():
        exempt_names = {"bias", *getattr(owner, "parameters_without_decay", ())}
        for name, parameter in owner.named_parameters(recurse=False):
            if isinstance(owner, norms) or name in exempt_names:
                exempt.add(id(parameter))
    return {name: id(parameter) not in exempt for name, parameter in module.named_parameters()}


def make_optimizer(
    model: nn.Module, config: OptimizationConfig, encoder_parameters: Collection[nn.Parameter] = ()
) -> torch.optim.AdamW:
    """Make AdamW over the trained parameters; `set_learning_rates` sets the learning rates of a step.

    Args:
        model: Parameters that require no gradient (a frozen encoder) are excluded.
        config: Peak learning rate and weight decay.
        encoder_parameters: Parameters trained at `encoder_lr_factor` times the learning rate.
    """
    encoder_ids = {id(parameter) for parameter in encoder_parameters}
    decaying = decaying_parameters(model)
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((decaying[name], id(parameter) in encoder_ids), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "weight_decay": config.weight_decay if decays else 0.0,
                "lr_factor": config.encoder_lr_factor if is_encoder else 1.0,
            }
            for (decays, is_encoder), parameters in groups.items()
        ],
        lr=config.peak_lr,
        fused=True,
    )


def learning_rate(step: int, config: OptimizationConfig) -> float:
    """Learning rate of a step, from 0, of all but the encoder parameters."""
    return config.peak_lr * slanted_triangular(step, config.steps, config.warmup)


def set_learning_rates(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of every parameter group, times the group's factor."""
    for group in optimizer.param_groups:
        group_rate = learning_rate * group["lr_factor"]
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(group_rate)
        else:
            group["lr"] = group_rate
