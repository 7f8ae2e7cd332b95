"""Model folders: `config.yaml` describes a network and its origin, `model.safetensors` contains its weights.

The two files suffice to rebuild the model; `segment_vocabulary.csv` lists the ids and names of its classes, where they are
known. Loading neither imports training code nor unpickles anything. `config.yaml` has checksums of the weights and of its
own values, which are verified whenever the model is loaded.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import safetensors
import safetensors.torch
import torch
from pydantic import JsonValue
from torch import Tensor

from yt8m import __version__
from yt8m.errors import UsageError, Yt8mError, reason_of
from yt8m.features import Features
from yt8m.files import file_checksum, shown_checksum, written_atomically
from yt8m.models.classifier import Classifier, ContextAgnosticClassifier, ContextAwareClassifier, VideoClassifier
from yt8m.models.config import (
    ClassifierConfig,
    ContextAgnosticClassifierConfig,
    ContextAwareClassifierConfig,
    Kind,
    VideoClassifierConfig,
)
from yt8m.models.description import CONFIG_NAME, FORMAT_VERSION, WEIGHTS_NAME, ModelDescription, read_config
from yt8m.settings import parse_yaml, to_yaml, validated
from yt8m.vocabulary import Vocabulary

CLASSIFIERS: dict[Kind, tuple[type[ClassifierConfig], Any]] = {
    "video": (VideoClassifierConfig, VideoClassifier),
    "agnostic": (ContextAgnosticClassifierConfig, ContextAgnosticClassifier),
    "aware": (ContextAwareClassifierConfig, ContextAwareClassifier),
}
"""Classes of the config and of the model for each `kind`."""


def save_model(
    folder: Path,
    model: Classifier,
    *,
    vocabulary_digest: str,
    classes: Vocabulary | None = None,
    provenance: Mapping[str, JsonValue] | None = None,
) -> None:
    """Write a model folder atomically; an existing folder of that name is replaced.

    Args:
        folder: The model folder to write.
        model: The classifier itself, not a compiled or distributed wrapper of it.
        vocabulary_digest: `Vocabulary.digest` of the model's classes.
        classes: The classes themselves, where their names are known.
        provenance: Origin of the weights (name, step, metrics, seed), as plain values.

    Raises:
        Yt8mError: The folder cannot be written, or the disk is full.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    # Written by Python, since safetensors does not report a full disk as an OSError.
    weights = safetensors.torch.save(tensors, {"format": "pt"})
    description = ModelDescription(
        format_version=FORMAT_VERSION,
        yt8m_version=__version__,
        kind=model.config.kind,
        num_classes=model.num_classes,
        vocabulary=vocabulary_digest,
        features=model.features,
        config=model.config.model_dump(mode="json"),
        provenance=dict(provenance or {}),
        weights_checksum=shown_checksum(google_crc32c.value(weights)),
    )
    # Of the values as they are read: YAML does not preserve every control character.
    checksum = _config_checksum(parse_yaml(to_yaml(description)))
    description = description.model_copy(update={"config_checksum": checksum})
    with written_atomically(folder) as unfinished:
        unfinished.mkdir()
        _write(unfinished / WEIGHTS_NAME, weights)
        _write(unfinished / CONFIG_NAME, to_yaml(description).encode())
        if classes is not None:
            classes.save(unfinished)


def load_model(
    folder: Path | str,
    *,
    vocabulary_digest: str | None = None,
    features: Features | None = None,
    device: torch.device | str = "cpu",
) -> Classifier:
    """Load a model from its folder, in eval mode.

    Args:
        folder: A model folder, as a path or a string.
        vocabulary_digest: Digest of the vocabulary in use; None to accept any.
        features: Features of the videos in use; None to accept any.
        device: Device of the weights.

    Raises:
        UsageError: There is no such model folder, its `config.yaml` is not valid, or the model has another vocabulary
            or was trained on other features.
        Yt8mError: A file is damaged, or the weights do not fit the network.
    """
    folder = Path(folder)
    description, values = read_config(folder)
    if vocabulary_digest is not None and description.vocabulary != vocabulary_digest:
        raise UsageError(
            f"{folder}: the model's {description.num_classes} classes are of another vocabulary (digest "
            f"{description.vocabulary}) than the one in use ({vocabulary_digest}); use the vocabulary it was trained with."
        )
    if features is not None:
        description.features.require_same(features, f"{folder}: the model was trained on")
    config_type, model_type = CLASSIFIERS[description.kind]
    config = validated(config_type, description.config, f"{folder / CONFIG_NAME}, config")
    with torch.device("meta"):
        model: Classifier = model_type(config, description.num_classes, description.features)
    path = folder / WEIGHTS_NAME
    _verify(description, values, folder)
    try:
        tensors = safetensors.torch.load_file(path, device=str(device))
    except (OSError, safetensors.SafetensorError) as error:
        raise Yt8mError(f"{path}: cannot be read as a safetensors file ({reason_of(error)}).") from None
    check_tensors(tensors, model.state_dict(), path)
    model.load_state_dict(tensors, assign=True)
    # What is derived from the settings.
    return model.to(device).eval()


def _verify(description: ModelDescription, values: Mapping[str, Any], folder: Path) -> None:
    """Compare both files of a model folder with their checksums, where there are any.

    Raises:
        Yt8mError: A file was damaged or replaced.
    """
    if description.config_checksum not in (None, _config_checksum(values)):
        raise Yt8mError(
            f"{folder / CONFIG_NAME}: has changed since it was written (its checksum is wrong); restore it from a copy, or "
            "delete the line 'config_checksum' if you changed it yourself."
        )
    path = folder / WEIGHTS_NAME
    if description.weights_checksum not in (None, shown_checksum(file_checksum(path))):
        raise Yt8mError(
            f"{path}: was damaged or replaced (its checksum is not that in {CONFIG_NAME}); restore the model folder from a "
            "copy, or train the model again (in a run, after deleting the folder of its stage)."
        )


def _config_checksum(values: Mapping[str, Any]) -> str:
    covered = {name: value for name, value in values.items() if name != "config_checksum"}
    return shown_checksum(google_crc32c.value(json.dumps(covered, sort_keys=True, default=str).encode()))


def check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    """Check names, shapes and types of the tensors in a file against those of the network.

    Args:
        found: Tensors in the file.
        expected: Tensors of the network; their values are ignored.
        path: The file, for messages.

    Raises:
        Yt8mError: Tensors are missing, unknown, or of another shape or type; the message names them.
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
        raise Yt8mError(f"{path}: the weights do not fit the network in {CONFIG_NAME}: {'; '.join(problems)}.")


def _shown(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {'x'.join(map(str, tensor.shape)) or 'scalar'}"


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
