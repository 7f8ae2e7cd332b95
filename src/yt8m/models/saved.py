"""A model folder: `config.yaml` says what the network is and where it comes from, `model.safetensors` holds its weights.

The two are all it takes to rebuild the model; nothing of what trained it is imported, and nothing is ever unpickled.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from pydantic import Field, JsonValue
from torch import Tensor

from yt8m.errors import UsageError, Yt8mError
from yt8m.files import written_atomically
from yt8m.models.classifier import (
    Classifier,
    ClassifierConfig,
    ContextAgnosticClassifier,
    ContextAgnosticClassifierConfig,
    ContextAwareClassifier,
    ContextAwareClassifierConfig,
    Kind,
    VideoClassifier,
    VideoClassifierConfig,
)
from yt8m.settings import Settings, read_yaml, to_yaml, validated

FORMAT_VERSION = 1
CONFIG_NAME = "config.yaml"
WEIGHTS_NAME = "model.safetensors"

CLASSIFIERS: dict[Kind, tuple[type[ClassifierConfig], Any]] = {
    "video": (VideoClassifierConfig, VideoClassifier),
    "agnostic": (ContextAgnosticClassifierConfig, ContextAgnosticClassifier),
    "aware": (ContextAwareClassifierConfig, ContextAwareClassifier),
}
"""What the word `kind` of a model folder stands for: the class of its config, and the class of the model."""


class ModelDescription(Settings):
    """What `config.yaml` of a model folder says."""

    format_version: int
    """Version of this layout."""
    yt8m_version: str
    """Version of the package that wrote it."""
    kind: Kind
    """What the model classifies, and from what."""
    num_classes: int = Field(ge=1)
    """Columns of the model's output."""
    vocabulary: str
    """Digest of the vocabulary that the columns stand for (`Vocabulary.digest`)."""
    config: dict[str, Any]
    """The classifier's settings, as its kind defines them."""
    provenance: dict[str, JsonValue] = Field(default_factory=dict)
    """Whatever says where the weights come from: name, step, metrics, seed."""


def save_model(
    folder: Path,
    model: Classifier,
    *,
    vocabulary_digest: str,
    provenance: Mapping[str, JsonValue] | None = None,
) -> None:
    """Write a model folder; an existing folder of that name is replaced whole once the new one is complete.

    Args:
        folder: Where to.
        model: The classifier itself, not a compiled or distributed wrapper of it.
        vocabulary_digest: `Vocabulary.digest` of the classes that its columns stand for.
        provenance: Plain values (name, step, metrics, seed) to keep with it.

    Raises:
        Yt8mError: The folder cannot be written to, or the disk is full.
    """
    description = ModelDescription(
        format_version=FORMAT_VERSION,
        yt8m_version=_package_version(),
        kind=model.config.kind,
        num_classes=model.num_classes,
        vocabulary=vocabulary_digest,
        config=model.config.model_dump(mode="json"),
        provenance=dict(provenance or {}),
    )
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with written_atomically(folder) as unfinished:
        unfinished.mkdir()
        # Bytes written by Python, not by the library, whose report of a full disk is no OSError.
        _write(unfinished / WEIGHTS_NAME, safetensors.torch.save(tensors, {"format": "pt"}))
        _write(unfinished / CONFIG_NAME, to_yaml(description).encode())


def read_description(folder: Path) -> ModelDescription:
    """Read what a model folder says of its model, without its weights.

    Raises:
        UsageError: There is no such folder, it is no model folder, or its `config.yaml` is not understood.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: there is no such model folder.")
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (folder / name).is_file():
            raise UsageError(f"{folder}: is not a complete model folder, it has no {name}.")
    path = folder / CONFIG_NAME
    values = read_yaml(path)
    written = values.get("format_version") if isinstance(values, dict) else None
    if isinstance(written, int) and written > FORMAT_VERSION:
        raise UsageError(
            f"{path}: has format {written}, written by yt8m {values.get('yt8m_version')}; this yt8m reads formats up "
            f"to {FORMAT_VERSION}: use a newer one."
        )
    return validated(ModelDescription, values, str(path))


def load_model(folder: Path, *, vocabulary_digest: str | None = None, device: torch.device | str = "cpu") -> Classifier:
    """Rebuild the model of a folder, in eval mode.

    Args:
        folder: A model folder.
        vocabulary_digest: Digest of the vocabulary in use; None takes any model.
        device: Where its weights go.

    Raises:
        UsageError: There is no such model folder, its `config.yaml` is not understood, or its classes are not those
            of the vocabulary in use.
        Yt8mError: The weights cannot be read, or are not those of such a network.
    """
    description = read_description(folder)
    if vocabulary_digest is not None and description.vocabulary != vocabulary_digest:
        raise UsageError(
            f"{folder}: this model's {description.num_classes} classes are those of another vocabulary (digest "
            f"{description.vocabulary}) than the one in use ({vocabulary_digest}); use the vocabulary it was trained with."
        )
    config_type, model_type = CLASSIFIERS[description.kind]
    config = validated(config_type, description.config, f"{folder / CONFIG_NAME}, config")
    with torch.device("meta"):
        model: Classifier = model_type(config, description.num_classes)
    path = folder / WEIGHTS_NAME
    try:
        tensors = safetensors.torch.load_file(path, device=str(device))
    except (OSError, safetensors.SafetensorError) as error:
        raise Yt8mError(f"{path}: cannot be read as a safetensors file ({error}).") from None
    check_tensors(tensors, model.state_dict(), path)
    model.load_state_dict(tensors, assign=True)
    return model.eval()


def check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    """See that a file holds the tensors of the network that the `config.yaml` beside it describes.

    Args:
        found: What the file holds.
        expected: Names, shapes and types of what it should hold; values are not looked at.
        path: The file, for messages.

    Raises:
        Yt8mError: Some are missing, unknown, or of another shape or type; the sentence names them.
    """
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    misshapen = [
        f"{name} ({_shown(found[name])} instead of {_shown(tensor)})"
        for name, tensor in expected.items()
        if name in found and (found[name].shape != tensor.shape or found[name].dtype != tensor.dtype)
    ]
    problems = [
        f"{what} {', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"
        for what, names in (("missing", missing), ("unknown", extra), ("misshapen", misshapen))
        if names
    ]
    if problems:
        raise Yt8mError(f"{path}: these are not the weights of the network in {CONFIG_NAME}: {'; '.join(problems)}.")


def _shown(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {'x'.join(map(str, tensor.shape)) or 'scalar'}"


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _package_version() -> str:
    try:
        return version("yt8m")
    except PackageNotFoundError:
        return "unknown"
