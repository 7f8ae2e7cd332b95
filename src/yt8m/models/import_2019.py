"""The models of 2019: a folder that the challenge's 7th place published, read into a network of ours.

Such a folder holds `config.yaml` and `model.pth`, a pickled state dict. Of the pickle only tensors are ever made, and of
these only what the settings ask for, in the shapes that they ask for. The result is an ordinary model folder.

What those networks do otherwise than ours, and where it goes:

- They see the bytes 0 to 255: `input: bytes`. In DBoF that would fold into the first Linear as well, but its weights
  would be 64 times larger, so that a step of Adam would change them 64 times less than in the recipes it comes from.
  NeXtVLAD normalizes what it sees, and nothing folds.
- Mixtures average logits: `average: logits`.
- Logits of NeXtVLAD's assignment come as (cluster, group), ours as (group, cluster): rows are reordered, here and in the
  mixture, whose experts come as (class, expert).
- The assignment's batch norm takes row i for channel i mod K, so it mixes clusters and groups. In eval mode it is one
  factor and one offset a row, and is folded into the Linear (in float64): `assignment_batch_norm: false`.

What a batch is padded with, and frames outside a video, stay masked as ever: they fed zero bytes there, and divided
means by the length of the batch.
"""

from __future__ import annotations

import hashlib
import math
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, model_validator
from torch import Tensor

from yt8m.errors import UsageError, Yt8mError
from yt8m.files import written_atomically
from yt8m.models.classifier import (
    Classifier,
    ClassifierConfig,
    ContextAgnosticClassifierConfig,
    ContextAwareClassifier,
    ContextAwareClassifierConfig,
    FusionConfig,
    Kind,
    VideoClassifierConfig,
)
from yt8m.models.dbof import DBoFConfig
from yt8m.models.layers import FRAME_SIZE, MaskedBatchNorm, MixtureConfig
from yt8m.models.nextvlad import ModalityVLAD, NeXtVLADConfig
from yt8m.models.saved import CLASSIFIERS, check_tensors, load_model, save_model
from yt8m.settings import Settings, read_yaml, validated

CONFIG_NAME = "config.yaml"
WEIGHTS_NAME = "model.pth"

TOLERANCE = 1e-5
"""How far a probability of an imported model may be from the original's."""

_CROP = slice(30, -10)
"""Frames of a video that its networks see."""

_ALL_FRAMES = 1 << 20
"""A number of frames that no video has, for a `max_len` of -1: no limit."""

_EPS = 1e-5
"""What torch's batch norm adds to a variance."""

_BATCH = 32
"""Examples computed at once."""

_Size = Annotated[int, Field(ge=1, le=1 << 20)]
_Reduction = Annotated[int, Field(ge=0, le=1 << 20)]
_Share = Annotated[float, Field(ge=0, lt=1)]


# ----------------------------------------------------------------------------------------------------------- settings


class _Network(Settings):
    """What the settings of every network have; an expert's number was spelled in three ways."""

    fcn_dim: _Size
    """Size of the encoded video, or of the joint vector."""
    n_mixtures: _Size
    """Experts a class, the silent one not counted."""
    p_drop: _Share = 0.5
    """Dropout, of which NeXtVLAD's clusters get half."""
    max_len: Annotated[int, Field(ge=-1, le=_ALL_FRAMES)] = -1
    """Frames sampled from a longer video; no limit where it is not above 0."""
    per_class: bool = False
    """A gate for each class."""

    @model_validator(mode="before")
    @classmethod
    def _one_spelling(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        found = [key for key in ("n_mixtures", "n_mixture", "num_mixtures") if key in values]
        if len(found) > 1:
            raise ValueError(f"the number of experts is given more than once, as {' and '.join(found)}")
        return {("n_mixtures" if key in found else key): value for key, value in values.items()}

    @property
    def max_frames(self) -> int:
        return self.max_len if self.max_len > 0 else _ALL_FRAMES

    @property
    def mixture(self) -> MixtureConfig:
        return MixtureConfig(
            num_experts=self.n_mixtures, dropout=self.p_drop, per_class=self.per_class, average="logits"
        )


class _DBoF(_Network):
    type: Literal["dbof"]
    hidden_dim: _Size
    frame_se_reduction: _Reduction = 0
    video_se_reduction: _Reduction = 0

    @property
    def encoder(self) -> DBoFConfig:
        return DBoFConfig(
            hidden_size=self.hidden_dim,
            output_size=self.fcn_dim,
            frame_se_reduction=self.frame_se_reduction,
            video_se_reduction=self.video_se_reduction,
            dropout=self.p_drop,
            max_frames=self.max_frames,
            input="bytes",
        )


class _NeXtVLAD(_Network):
    type: Literal["nextvlad"]
    n_clusters: Annotated[int, Field(ge=2, le=1 << 20)]
    groups: Literal[1, 2, 4, 8, 16, 32, 64, 128]
    se_reduction: _Reduction = 0
    add_batchnorm: bool = False

    @property
    def encoder(self) -> NeXtVLADConfig:
        return NeXtVLADConfig(
            num_clusters=self.n_clusters,
            num_groups=self.groups,
            expansion=2,
            output_size=self.fcn_dim,
            se_reduction=self.se_reduction,
            cluster_dropout=self.p_drop / 2,
            max_frames=self.max_frames,
            input="bytes",
            assignment_batch_norm=False,
        )


class _Fusion(_Network):
    se_reduction: _Reduction = 0
    finetune_context: bool = False
    """Whether the context encoder was trained as well, which changes nothing of what it computes."""


class _Section(Settings):
    """A part of the file, which also says how the network was trained; nobody asks for that here."""

    model_config = ConfigDict(extra="ignore")


class _VideoSection(_Section):
    model: Annotated[_DBoF | _NeXtVLAD, Field(discriminator="type")]


class _Training(_Section):
    offset: Annotated[int, Field(ge=0, le=1000)] = 3
    """Frames seen before and after a segment."""


class _AgnosticSection(_Section):
    training: _Training = _Training()


class _AwareSection(_AgnosticSection):
    model: _Fusion


class _VideoFile(_Section):
    """`config.yaml` of a classifier of videos, or of segments without context, which has `pure_segment` beside it."""

    video: _VideoSection
    pure_segment: _AgnosticSection = _AgnosticSection()


class _AwareFile(_Section):
    """`config.yaml` of a classifier of segments with context."""

    context_base: _VideoSection
    segment_base: _VideoSection
    segment_w_context: _AwareSection


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
class _Source:
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


def _side(ours: str, theirs: str, network: _DBoF | _NeXtVLAD) -> tuple[dict[str, str], set[str]]:
    """Modules of an encoder that we call `ours` and they `theirs`, and those with a batch norm to fold."""
    table = _DBOF if isinstance(network, _DBoF) else _NEXTVLAD
    modules = {ours + mine: theirs + yours for mine, yours in table.items()}
    has_norm = isinstance(network, _NeXtVLAD) and network.add_batchnorm
    return modules, {f"{ours}{modality}.assignment" for modality in ("rgb", "audio") if has_norm}


def _source(path: Path, values: Any, names: Mapping[str, Tensor]) -> _Source:
    """Find out what a folder holds.

    Raises:
        UsageError: The settings are not those of such a model.
    """
    sections = values.keys() if isinstance(values, dict) else set()
    if sections & {"context_base", "segment_base", "segment_w_context"}:
        return _aware_source(validated(_AwareFile, values, str(path)))
    if "video" not in sections:
        raise UsageError(
            f"{path}: is not that of a model of 2019, which has a section 'video', or the sections 'context_base', "
            "'segment_base' and 'segment_w_context'."
        )
    file = validated(_VideoFile, values, str(path))
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
    return _Source(kind, config, modules, frozenset(normalized))


def _aware_source(file: _AwareFile) -> _Source:
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
    return _Source("aware", config, modules, frozenset(context_norms | segment_norms))


# ------------------------------------------------------------------------------------------------------------ tensors


def _unpickled(path: Path) -> dict[str, Tensor]:
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


def _check_values(tensors: Mapping[str, Tensor], path: Path) -> None:
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


def _expected(source: _Source, model: Classifier) -> dict[str, Tensor]:
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


def _translated(source: _Source, model: Classifier, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
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


# ------------------------------------------------------------------------------------------------------------- import


def read_model(folder: Path) -> Classifier:
    """Read a model of 2019 into a network of ours, in eval mode.

    Args:
        folder: Holds `config.yaml` and `model.pth`.

    Raises:
        UsageError: There is no such folder, or its `config.yaml` is not that of such a model.
        Yt8mError: `model.pth` is damaged, asks for more than tensors, or its tensors are not those of the settings.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: there is no such model folder.")
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (folder / name).is_file():
            raise UsageError(
                f"{folder}: has no {name}; the folder of a model of 2019 holds {CONFIG_NAME} and {WEIGHTS_NAME}."
            )
    path = folder / WEIGHTS_NAME
    values = read_yaml(folder / CONFIG_NAME)
    found = _unpickled(path)
    source = _source(folder / CONFIG_NAME, values, found)
    experts = found.get(f"{source.modules['mixture.experts']}.bias", torch.empty(0))
    num_classes = max(1, experts.numel() // source.config.mixture.num_experts)
    with torch.device("meta"):
        model: Classifier = CLASSIFIERS[source.kind][1](source.config, num_classes)
    check_tensors(found, _expected(source, model), path)
    _check_values(found, path)
    model.load_state_dict(_translated(source, model, found), assign=True)
    return model.eval()


@dataclass(frozen=True)
class Example:
    """What a model of 2019 made of some videos.

    Args:
        path: The file, for messages.
        video: uint8 (B, T, D), whole videos of one length; None where the file has none.
        segment: uint8 (B, T, D), a segment of each with its margins; None where the file has none.
        probabilities: (B, C).
    """

    path: Path
    video: NDArray[np.uint8] | None
    segment: NDArray[np.uint8] | None
    probabilities: NDArray[np.floating]


def read_example(path: Path) -> Example:
    """Read an example: a NumPy archive of `video` and `segment` (uint8), and `probabilities`.

    Raises:
        UsageError: There is no such file.
        Yt8mError: It is no such archive, or its arrays do not go together.
    """
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file.")
    try:
        # Opened here, since NumPy leaves a file open that turns out to be none of its own.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in ("video", "segment", "probabilities") if name in archive}
    # An array of the .npy format is no archive (TypeError, AttributeError); NumPy passes on what zipfile raises.
    except Exception as error:
        raise Yt8mError(f"{path}: cannot be read as a NumPy archive, .npz ({type(error).__name__}).") from None
    probabilities = arrays.pop("probabilities", None)
    if probabilities is None or probabilities.dtype.kind != "f" or probabilities.ndim != 2 or not len(probabilities):
        raise Yt8mError(f"{path}: expected an array 'probabilities' of floats, a row an example and a column a class.")
    for name, array in arrays.items():
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[::2] != (len(probabilities), FRAME_SIZE):
            raise Yt8mError(
                f"{path}: expected {name!r} as bytes, {len(probabilities)} x frames x {FRAME_SIZE}, found "
                f"{array.dtype} {' x '.join(map(str, array.shape))}."
            )
    return Example(path, arrays.get("video"), arrays.get("segment"), probabilities)


def largest_difference(model: Classifier, example: Example) -> float:
    """How far the probabilities of a model are from those of an example, at most.

    Args:
        model: A classifier in eval mode.
        example: What the original made of the same videos.

    Raises:
        Yt8mError: The example is not one for such a model.
    """
    num_classes = example.probabilities.shape[1]
    if num_classes != model.num_classes:
        raise Yt8mError(
            f"{example.path}: has probabilities of {num_classes:,} classes, the model {model.num_classes:,}."
        )
    kind, config = model.config.kind, model.config
    inputs = []
    if not isinstance(config, VideoClassifierConfig) or kind == "agnostic":
        inputs.append(_frames(example, "segment"))
    if isinstance(config, ContextAwareClassifierConfig):
        inputs.append(_seen(example, config.context_encoder.max_frames))
    elif kind == "video":
        inputs.append(_seen(example, config.encoder.max_frames))
    worst = 0.0
    for start in range(0, len(example.probabilities), _BATCH):
        rows = slice(start, start + _BATCH)
        batch = [(part := torch.from_numpy(array[rows]), torch.full((len(part),), part.shape[1])) for array in inputs]
        with torch.no_grad():
            if isinstance(model, ContextAwareClassifier):
                logits = model(*batch[0], model.encode_context(*batch[1]))
            else:
                logits = model(*batch[0])
        expected = torch.from_numpy(example.probabilities[rows].astype(np.float64))
        difference = (torch.sigmoid(logits).double() - expected).abs().max().item()
        # A probability that is no number is as wrong as can be.
        worst = max(worst, difference) if math.isfinite(difference) else math.inf
    return worst


def _frames(example: Example, name: Literal["video", "segment"]) -> NDArray[np.uint8]:
    array: NDArray[np.uint8] | None = getattr(example, name)
    if array is None or not array.shape[1]:
        raise Yt8mError(f"{example.path}: has no frames under {name!r}, which a model of this kind looks at.")
    return array


def _seen(example: Example, max_frames: int) -> NDArray[np.uint8]:
    """The frames of whole videos that the original looks at, where it takes all of them."""
    videos = _frames(example, "video")[:, _CROP]
    if not 0 < videos.shape[1] <= max_frames:
        raise Yt8mError(
            f"{example.path}: its videos keep {videos.shape[1]} frames without the first 30 and the last 10; expected 1 "
            f"to {max_frames}, since of more than its max_len the original picks at random."
        )
    return videos


@dataclass(frozen=True)
class Imported:
    """A model that was imported.

    Args:
        kind: What it classifies, and from what.
        num_classes: C.
        num_parameters: How many it has.
        difference: Largest difference of a probability from the example's; None where there was no example.
    """

    kind: Kind
    num_classes: int
    num_parameters: int
    difference: float | None


def import_model(
    folder: Path, out: Path, *, vocabulary_digest: str, num_classes: int, example: Path | None = None
) -> Imported:
    """Make a model folder of ours from one of 2019.

    Args:
        folder: Holds `config.yaml` and `model.pth`.
        out: The model folder to write; there must be nothing of that name.
        vocabulary_digest: `Vocabulary.digest` of the classes that its columns stand for.
        num_classes: Size of that vocabulary.
        example: File of what the original made of some videos (`read_example`), to hold the written model against.

    Raises:
        UsageError: A file or folder is missing, something is called `out` already, or the settings or the vocabulary
            are not those of such a model.
        Yt8mError: The weights or the example cannot be used, or a probability is more than `TOLERANCE` from the
            example's. Nothing is left under the name `out` then.
    """
    if out.exists():
        raise UsageError(f"{out}: exists already, and an import replaces nothing; name another folder.")
    expected = None if example is None else read_example(example)
    model = read_model(folder)
    if model.num_classes != num_classes:
        raise UsageError(
            f"{folder}: this model has {model.num_classes:,} classes, and the vocabulary {num_classes:,}; name its own "
            "with --vocabulary."
        )
    with (folder / WEIGHTS_NAME).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    difference = None
    with written_atomically(out) as unfinished:
        save_model(
            unfinished,
            model,
            vocabulary_digest=vocabulary_digest,
            provenance={"imported_from": f"{folder.resolve().name}/{WEIGHTS_NAME}", "sha256": digest},
        )
        if expected is not None:
            difference = largest_difference(load_model(unfinished, vocabulary_digest=vocabulary_digest), expected)
            if difference > TOLERANCE:
                raise Yt8mError(
                    f"{example}: a probability of the imported model is {difference:.2g} from the original's, more than "
                    f"{TOLERANCE:g}; {out} was not written."
                )
    return Imported(
        model.config.kind, model.num_classes, sum(parameter.numel() for parameter in model.parameters()), difference
    )
