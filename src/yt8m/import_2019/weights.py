"""Weights of the 2019 implementation: checked, and converted to a state dict of this package."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from yt8m.errors import Yt8mError
from yt8m.import_2019.source import SourceModel
from yt8m.models.classifier import Classifier
from yt8m.models.layers.batch_norm import EPS, MaskedBatchNorm
from yt8m.models.nextvlad import ModalityVLAD


def check_values(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Check that all values are finite and all variances at least 0; raise Yt8mError otherwise."""
    for problem, is_wrong in (
        ("values that are not finite", lambda name, tensor: not tensor.isfinite().all()),
        ("variances below zero", lambda name, tensor: name.endswith(".running_var") and (tensor < 0).any()),
    ):
        names = [name for name, tensor in tensors.items() if is_wrong(name, tensor)]
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise Yt8mError(f"{path}: there are {problem} in {', '.join(names[:5])}{more}.")


def _row_layouts(model: Classifier) -> dict[str, tuple[int, int]]:
    """Modules whose rows are laid out (first, second) in 2019 and (second, first) here, with these two numbers."""
    mixture = model.mixture
    rows = {"mixture.experts": (mixture.num_classes, mixture.num_experts)}
    if mixture.gate_classes > 1:
        rows["mixture.gate"] = (mixture.num_classes, mixture.num_experts + 1)
    for name, module in model.named_modules():
        if isinstance(module, ModalityVLAD):
            rows[f"{name}.assignment"] = (module.num_clusters, module.num_groups)
    return rows


def _is_convolution(original: str) -> bool:
    """Whether a Linear is a convolution of width 1 in 2019: in the gate over a frame's channels."""
    return original.endswith(("encoder.3.fc1", "encoder.3.fc2"))


def expected_tensors(source: SourceModel, model: Classifier) -> dict[str, Tensor]:
    """Names, shapes and types of the 2019 tensors for a network of this package; the values are meaningless."""
    rows, expected = _row_layouts(model), dict[str, Tensor]()
    for name, tensor in model.state_dict().items():
        module, _, leaf = name.rpartition(".")
        original = source.modules[module]
        if module not in source.normalized:
            is_wider = leaf == "weight" and _is_convolution(original)
            expected[f"{original}.{leaf}"] = tensor.unsqueeze(-1) if is_wider else tensor
        elif leaf == "weight":
            expected[f"{original}.0.weight"] = tensor
        else:
            with torch.device("meta"):
                norm = MaskedBatchNorm(rows[module][0])
            expected |= {f"{original}.1.bn.{part}": value for part, value in norm.state_dict().items()}
    return expected


def convert_tensors(source: SourceModel, model: Classifier, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert 2019 tensors to the state dict of a network of this package."""
    rows, converted = _row_layouts(model), {}
    for name in model.state_dict():
        module, _, leaf = name.rpartition(".")
        original = source.modules[module]
        if module in source.normalized:
            tensor = _fold_norm(found, original, num_groups=rows[module][1])[leaf]
        else:
            tensor = found[f"{original}.{leaf}"]
            if leaf == "weight" and _is_convolution(original):
                tensor = tensor.squeeze(-1)
        if module in rows:
            tensor = tensor.reshape(*rows[module], *tensor.shape[1:]).transpose(0, 1).flatten(0, 1)
        converted[name] = tensor.contiguous()
    return converted


def _fold_norm(found: Mapping[str, Tensor], original: str, num_groups: int) -> dict[str, Tensor]:
    """Fold a Linear (K G, in) and its batch norm (K,) in eval mode; row i is normalized as channel i mod K."""
    weight, bias, mean, variance = (
        found[f"{original}.1.bn.{part}"].double() for part in ("weight", "bias", "running_mean", "running_var")
    )
    scale = weight / torch.sqrt(variance + EPS)  # (K,)
    offset = bias - mean * scale  # (K,)
    linear = found[f"{original}.0.weight"].double() * scale.repeat(num_groups).unsqueeze(1)
    return {"weight": linear.float(), "bias": offset.repeat(num_groups).float()}
