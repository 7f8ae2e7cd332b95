"""The model in a 2019 folder: its kind, the equivalent config, and the names of its modules."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yt8m.errors import UsageError
from yt8m.import_2019.config import AwareFile2019, DBoFConfig2019, NeXtVLADConfig2019, VideoFile2019
from yt8m.models.classifier import segment_encoder_config
from yt8m.models.config import (
    ClassifierConfig,
    ContextAgnosticClassifierConfig,
    ContextAwareClassifierConfig,
    FusionConfig,
    Kind,
    VideoClassifierConfig,
)
from yt8m.settings import validated

CONFIG_NAME = "config.yaml"
WEIGHTS_NAME = "model.pth"

_GATE = {"squeeze_norm": "bn1", "squeeze": "fc1", "excite_norm": "bn2", "excite": "fc2"}
_MIXTURE = {"expert_norm": "expert_fc.0", "experts": "expert_fc.2", "gate_norm": "gating_fc.0", "gate": "gating_fc.2"}
_DBOF = {
    "frame_projection": "encoder.0",
    **{f"frame_gate.{name}": f"encoder.3.{original}" for name, original in _GATE.items()},
    "pooled_norm": "intermediate_fc.0",
    "video_projection": "intermediate_fc.2",
    **{f"video_gate.{name}": f"intermediate_fc.4.{original}" for name, original in _GATE.items()},
}
_VLAD = {
    "": "",
    ".expansion": ".expansion_mapper",
    ".attention": ".attention_mapper",
    ".assignment": ".soft_assignment_mapper",
    ".descriptor_norm": ".final_bn",
}
_NEXTVLAD = {
    **{f"rgb{name}": f"video_encoder{original}" for name, original in _VLAD.items()},
    **{f"audio{name}": f"audio_encoder{original}" for name, original in _VLAD.items()},
    "projection": "intermediate_fc.0",
    **{f"gate.{name}": f"se_gating.{original}" for name, original in _GATE.items()},
}
_FUSION = {
    "fusion_norm": "intermediate_fc.0",
    "fusion": "intermediate_fc.2",
    **{f"fusion_gate.{name}": f"intermediate_fc.4.{original}" for name, original in _GATE.items()},
}
"""Module of this package -> module of 2019; weights, biases and running statistics have the same names in both."""

_PREFIX: dict[Kind, str] = {"video": "model.", "agnostic": "_model."}
"""Prefix of the tensor names of a network without context; it depends on the wrapper that was saved."""


@dataclass(frozen=True)
class SourceModel:
    """A model of 2019, identified by its `config.yaml` and the tensor names in `model.pth`.

    Args:
        kind: Kind of the classifier.
        config: The equivalent config.
        modules: Module of this package -> module of 2019.
        normalized: Modules of this package that are a Linear and a batch norm in 2019.
    """

    kind: Kind
    config: ClassifierConfig
    modules: Mapping[str, str]
    normalized: frozenset[str]


def _encoder_modules(
    prefix: str, prefix_2019: str, network: DBoFConfig2019 | NeXtVLADConfig2019
) -> tuple[dict[str, str], set[str]]:
    """Modules of an encoder with these prefixes, and those of them with a batch norm to fold."""
    table = _DBOF if isinstance(network, DBoFConfig2019) else _NEXTVLAD
    modules = {prefix + name: prefix_2019 + original for name, original in table.items()}
    has_norm = isinstance(network, NeXtVLADConfig2019) and network.add_batchnorm
    return modules, {f"{prefix}{modality}.assignment" for modality in ("rgb", "audio") if has_norm}


def identify_model(path: Path, values: Any, names: Collection[str]) -> SourceModel:
    """Identify the model of a folder.

    Args:
        path: Its `config.yaml`, for messages.
        values: Content of that file.
        names: Names of the tensors.

    Raises:
        UsageError: The settings are not those of a 2019 model.
    """
    sections = values.keys() if isinstance(values, dict) else set()
    if sections & {"context_base", "segment_base", "segment_w_context"}:
        return _aware_source(validated(AwareFile2019, values, str(path)))
    if "video" not in sections:
        raise UsageError(
            f"{path}: does not describe a 2019 model, which has a section 'video', or the sections "
            "'context_base', 'segment_base' and 'segment_w_context'."
        )
    file = validated(VideoFile2019, values, str(path))
    wrapped = any(name.startswith(_PREFIX["agnostic"]) for name in names)
    if "pure_segment" in sections and not wrapped:
        raise UsageError(
            f"{path}: has a section 'pure_segment', as for a segment classifier, whose tensors are named "
            f"{_PREFIX['agnostic']}..., but {WEIGHTS_NAME} contains none of these: the two files are of different models."
        )
    network = file.video.model
    kind: Kind = "agnostic" if wrapped else "video"
    config = VideoClassifierConfig(encoder=network.encoder, mixture=network.mixture)
    if kind == "agnostic":
        offset = file.pure_segment.training.offset
        config = ContextAgnosticClassifierConfig(**dict(config), margin_frames=offset)
    modules, normalized = _encoder_modules("encoder.", _PREFIX[kind], network)
    modules |= {f"mixture.{name}": _PREFIX[kind] + original for name, original in _MIXTURE.items()}
    return SourceModel(kind, config, modules, frozenset(normalized))


def _aware_source(file: AwareFile2019) -> SourceModel:
    context, segment, fusion = file.context_base.model, file.segment_base.model, file.segment_w_context.model
    config = ContextAwareClassifierConfig(
        context_encoder=context.encoder.model_copy(update={"max_frames": fusion.max_frames}),
        segment_encoder=segment_encoder_config(segment.encoder),
        fusion=FusionConfig(output_size=fusion.fcn_dim, se_reduction=fusion.se_reduction, dropout=fusion.p_drop),
        mixture=fusion.mixture,
        margin_frames=file.segment_w_context.training.offset,
    )
    context_modules, context_norms = _encoder_modules("context_encoder.", "context_model.", context)
    segment_modules, segment_norms = _encoder_modules("segment_encoder.", "segment_model.", segment)
    mixture = {f"mixture.{name}": original for name, original in _MIXTURE.items()}
    modules = {**context_modules, **segment_modules, **_FUSION, **mixture}
    return SourceModel("aware", config, modules, frozenset(context_norms | segment_norms))
