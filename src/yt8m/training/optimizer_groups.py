"""Layers shared by all networks: dequantized masked frames, masked batch norm, gating, pooling, mixture of experts.

Shapes: B videos or segments, T frames, D=1152 features, K clusters, G groups, C classes.

Layers that act on frames take (features, mask), and nothing they compute depends on what stands at masked frames.
The three functions with a hand-written gradient go block by block through memory on a CPU: what they avoid is writing
and reading again tensors of (B, T, channels), which is what the plain formulas spend their time on.
"""

from __future__ import annotations

from torch import nn

from yt8m.models.layers.batch_norm import MaskedBatchNorm

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
