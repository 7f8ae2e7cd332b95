"""Weights of the 2019 implementation: read safely, renamed, folded."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yt8m.errors import UsageError, Yt8mError
from yt8m.import_2019.config import AwareFile2019, DBoFConfig2019, NeXtVLADConfig2019, VideoFile2019
from yt8m.models.classifier import (
    Classifier,
    ClassifierConfig,
    ContextAgnosticClassifierConfig,
    ContextAwareClassifierConfig,
    FusionConfig,
    Kind,
    VideoClassifierConfig,
)
from yt8m.models.layers.batch_norm import MaskedBatchNorm
from yt8m.models.nextvlad import ModalityVLAD, NeXtVLADConfig
from yt8m.settings import validated

WEIGHTS_NAME = "model.pth"

_EPS = 1e-5
"""What torch's batch norm adds to a variance."""


# -------------------------------------------------------------------------------------------------------------- names

_GATE = {"squeeze_norm": "bn1", "squeeze": "fc1", "excite_norm": "bn2", "excite": "fc2"}
_MIXTURE = {"expert_norm": "expert_fc.0", "experts": "expert_fc.2", "gate_norm": "gating_fc.0", "gate": "gating_fc.2"}
_DBOF = {
    "frame_projection": "encoder.0",
    **{f"frame_gate.{ours}": f"encoder.3.{theirs}" for ours, theirs in _GATE.items()},
    "pooled_norm": "intermediate_fc.0",
    "video_projection": "intermediate_fc.2",
    **{f"video_gate.{ours}": f"intermediate_fc.4.{theirs}" for ours, theirs in _GATE.items()},
}
_VLAD = {
    "": "",
    ".expansion": ".expansion_mapper",
    ".attention": ".attention_mapper",
    ".assignment": ".soft_assignment_mapper",
    ".descriptor_norm": ".final_bn",
}
_NEXTVLAD = {
    **{f"rgb{ours}": f"video_encoder{theirs}" for ours, theirs in _VLAD.items()},
    **{f"audio{ours}": f"audio_encoder{theirs}" for ours, theirs in _VLAD.items()},
    "projection": "intermediate_fc.0",
    **{f"gate.{ours}": f"se_gating.{theirs}" for ours, theirs in _GATE.items()},
}
_FUSION = {
    "fusion_norm": "intermediate_fc.0",
    "fusion": "intermediate_fc.2",
    **{f"fusion_gate.{ours}": f"intermediate_fc.4.{theirs}" for ours, theirs in _GATE.items()},
}
"""Our module -> theirs; what is within them (weight, bias, running statistics) has the same names."""

_PREFIX: dict[Kind, str] = {"video": "model.", "agnostic": "_model."}
"""What the names of a network without context begin with, by the wrapper that it was saved in."""


@dataclass(frozen=True)
class SourceModel:
    """What `config.yaml`, and the names in `model.pth`, say of a folder.

    Args:
        kind: What the model classifies.
        config: Its settings in our words.
        modules: Our module -> theirs.
        normalized: Those of our modules that are a Linear and a batch norm of theirs.
    """

    kind: Kind
    config: ClassifierConfig
    modules: Mapping[str, str]
    normalized: frozenset[str]


def _side(ours: str, theirs: str, network: DBoFConfig2019 | NeXtVLADConfig2019) -> tuple[dict[str, str], set[str]]:
    """Modules of an encoder that we call `ours` and they `theirs`, and those with a batch norm to fold."""
    table = _DBOF if isinstance(network, DBoFConfig2019) else _NEXTVLAD
    modules = {ours + mine: theirs + yours for mine, yours in table.items()}
    has_norm = isinstance(network, NeXtVLADConfig2019) and network.add_batchnorm
    return modules, {f"{ours}{modality}.assignment" for modality in ("rgb", "audio") if has_norm}


def source_model(path: Path, values: Any, names: Mapping[str, Tensor]) -> SourceModel:
    """Find out what a folder holds.

    Raises:
        UsageError: The settings are not those of such a model.
    """
    sections = values.keys() if isinstance(values, dict) else set()
    if sections & {"context_base", "segment_base", "segment_w_context"}:
        return _aware_source(validated(AwareFile2019, values, str(path)))
    if "video" not in sections:
        raise UsageError(
            f"{path}: is not that of a model of 2019, which has a section 'video', or the sections 'context_base', "
            "'segment_base' and 'segment_w_context'."
        )
    file = validated(VideoFile2019, values, str(path))
    wrapped = any(name.startswith(_PREFIX["agnostic"]) for name in names)
    if "pure_segment" in sections and not wrapped:
        raise UsageError(
            f"{path}: has a section 'pure_segment', as that of a segment classifier has, whose tensors are named "
            f"{_PREFIX['agnostic']}..., and none in {WEIGHTS_NAME} is: these are not the two files of one model."
        )
    network = file.video.model
    kind: Kind = "agnostic" if wrapped else "video"
    config = VideoClassifierConfig(encoder=network.encoder, mixture=network.mixture)
    if kind == "agnostic":
        offset = file.pure_segment.training.offset
        config = ContextAgnosticClassifierConfig(**dict(config), margin_frames=offset)
    modules, normalized = _side("encoder.", _PREFIX[kind], network)
    modules |= {f"mixture.{ours}": _PREFIX[kind] + theirs for ours, theirs in _MIXTURE.items()}
    return SourceModel(kind, config, modules, frozenset(normalized))


def _aware_source(file: AwareFile2019) -> SourceModel:
    context, segment, fusion = file.context_base.model, file.segment_base.model, file.segment_w_context.model
    segment_encoder = segment.encoder
    if isinstance(segment_encoder, NeXtVLADConfig):
        segment_encoder = segment_encoder.model_copy(update={"cut_after_linear": True})
    config = ContextAwareClassifierConfig(
        context_encoder=context.encoder.model_copy(update={"max_frames": fusion.max_frames}),
        segment_encoder=segment_encoder,
        fusion=FusionConfig(output_size=fusion.fcn_dim, se_reduction=fusion.se_reduction, dropout=fusion.p_drop),
        mixture=fusion.mixture,
        margin_frames=file.segment_w_context.training.offset,
    )
    of_context, context_norms = _side("context_encoder.", "context_model.", context)
    of_segment, segment_norms = _side("segment_encoder.", "segment_model.", segment)
    mixture = {f"mixture.{ours}": theirs for ours, theirs in _MIXTURE.items()}
    modules = {**of_context, **of_segment, **_FUSION, **mixture}
    return SourceModel("aware", config, modules, frozenset(context_norms | segment_norms))


# ------------------------------------------------------------------------------------------------------------ tensors


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read tensors by name, and make nothing else of the pickle.

    Raises:
        Yt8mError: The file is damaged, or holds or asks for anything but tensors by name.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                # Compressed records could say a terabyte in a megabyte; torch.save compresses nothing.
                if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
                    raise Yt8mError(f"{path}: is compressed inside, which torch.save never does; it was not read.")
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Yt8mError:
        raise
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise Yt8mError(
            f"{path}: asks for {asked[1]} when it is unpickled, where only tensors are allowed; nothing of it was run."
            if asked
            else f"{path}: is no pickle of tensors by name, as torch.save writes it; nothing of it was run."
        ) from None
    # What else a damaged file raises depends on where the damage is: EOFError, KeyError, RuntimeError, struct.error...
    except Exception as error:
        problem = " ".join(str(error).split())[:80].rstrip(". ")
        raise Yt8mError(
            f"{path}: is damaged, or no file that torch.save wrote ({problem or type(error).__name__})."
        ) from None
    if not isinstance(found, dict):
        raise Yt8mError(f"{path}: holds a {type(found).__name__}, expected a state dict: tensors by name.")
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise Yt8mError(
                f"{path}: holds a {type(tensor).__name__} under {str(name)[:60]!r}, expected a state dict: tensors by name."
            )
        # A view may repeat one number a billion times: what is copied or computed later has to lie in the file.
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or not tensor.is_contiguous():
            raise Yt8mError(f"{path}: {name} is not stored number by number, as the tensors of a state dict are.")
    return {name: tensor.detach() for name, tensor in found.items()}


def check_values(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise Yt8mError where a tensor cannot belong to a trained model."""
    for what, is_wrong in (
        ("values that are not finite", lambda name, tensor: not tensor.isfinite().all()),
        ("variances below zero", lambda name, tensor: name.endswith(".running_var") and (tensor < 0).any()),
    ):
        names = [name for name, tensor in tensors.items() if is_wrong(name, tensor)]
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise Yt8mError(f"{path}: there are {what} in {', '.join(names[:5])}{more}.")


def _rows(model: Classifier) -> dict[str, tuple[int, int]]:
    """Modules whose rows they lay out (first, second) and we lay out (second, first), with these two numbers."""
    mixture = model.mixture
    rows = {"mixture.experts": (mixture.num_classes, mixture.num_experts)}
    if mixture.gate_classes > 1:
        rows["mixture.gate"] = (mixture.num_classes, mixture.num_experts + 1)
    for name, module in model.named_modules():
        if isinstance(module, ModalityVLAD):
            rows[f"{name}.assignment"] = (module.num_clusters, module.num_groups)
    return rows


def _is_convolution(theirs: str) -> bool:
    """Whether a Linear of ours is a convolution of width 1 in their network: the gate over a frame's channels."""
    return theirs.endswith(("encoder.3.fc1", "encoder.3.fc2"))


def expected_weights(source: SourceModel, model: Classifier) -> dict[str, Tensor]:
    """Their tensors, by their names, as they must be for a network of ours; without values."""
    rows, expected = _rows(model), dict[str, Tensor]()
    for name, tensor in model.state_dict().items():
        module, _, leaf = name.rpartition(".")
        theirs = source.modules[module]
        if module not in source.normalized:
            is_wider = leaf == "weight" and _is_convolution(theirs)
            expected[f"{theirs}.{leaf}"] = tensor.unsqueeze(-1) if is_wider else tensor
        elif leaf == "weight":
            expected[f"{theirs}.0.weight"] = tensor
        else:
            with torch.device("meta"):
                norm = MaskedBatchNorm(rows[module][0])
            expected |= {f"{theirs}.1.bn.{part}": value for part, value in norm.state_dict().items()}
    return expected


def translated_weights(source: SourceModel, model: Classifier, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors, by our names, made of theirs."""
    rows, translated = _rows(model), {}
    for name in model.state_dict():
        module, _, leaf = name.rpartition(".")
        theirs = source.modules[module]
        if module in source.normalized:
            tensor = _folded(found, theirs, num_groups=rows[module][1])[leaf]
        else:
            tensor = found[f"{theirs}.{leaf}"]
            if leaf == "weight" and _is_convolution(theirs):
                tensor = tensor.squeeze(-1)
        if module in rows:
            tensor = tensor.reshape(*rows[module], *tensor.shape[1:]).transpose(0, 1).flatten(0, 1)
        translated[name] = tensor.contiguous()
    return translated


def _folded(found: Mapping[str, Tensor], theirs: str, num_groups: int) -> dict[str, Tensor]:
    """Weight and bias of the Linear that a Linear and its batch norm are in eval mode; row i is channel i mod K."""
    weight, bias, mean, variance = (
        found[f"{theirs}.1.bn.{part}"].double() for part in ("weight", "bias", "running_mean", "running_var")
    )
    scale = weight / torch.sqrt(variance + _EPS)
    offset = bias - mean * scale
    linear = found[f"{theirs}.0.weight"].double() * scale.repeat(num_groups).unsqueeze(1)
    return {"weight": linear.float(), "bias": offset.repeat(num_groups).float()}
