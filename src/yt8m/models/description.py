"""`config.yaml` of a model folder: the description of its network and of the origin of its weights. Reads without torch."""

from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, JsonValue

from yt8m.errors import UsageError
from yt8m.features import YOUTUBE8M, Features
from yt8m.models.config import Kind
from yt8m.settings import MAX_SIZE, Settings, read_yaml, validated

FORMAT_VERSION = 1
CONFIG_NAME = "config.yaml"
WEIGHTS_NAME = "model.safetensors"


class ModelDescription(Settings):
    """Content of a model folder's `config.yaml`."""

    # A metric in the provenance may be undefined.
    model_config = ConfigDict(allow_inf_nan=True)

    format_version: int
    """Version of the format."""
    yt8m_version: str
    """Version of yt8m that wrote the folder."""
    kind: Kind
    """Kind of the classifier."""
    num_classes: int = Field(ge=1, le=MAX_SIZE)
    """Columns of the model's output."""
    vocabulary: str
    """Digest of the vocabulary that the columns follow (`Vocabulary.digest`)."""
    features: Features = YOUTUBE8M
    """The features that the model was trained on."""
    config: dict[str, Any]
    """Settings of the classifier, by its kind."""
    provenance: dict[str, JsonValue] = Field(default_factory=dict)
    """Origin of the weights: name, step, metrics, seed."""
    weights_checksum: str | None = None
    """CRC32C of `model.safetensors`; None in folders of earlier versions."""
    config_checksum: str | None = None
    """CRC32C of the values above; None in folders of earlier versions."""


def read_description(folder: Path) -> ModelDescription:
    """Read the description in a model folder, without the weights.

    Raises:
        UsageError: The folder does not exist, is not a model folder, or its `config.yaml` is not valid.
    """
    return read_config(folder)[0]


def read_config(folder: Path) -> tuple[ModelDescription, dict[str, Any]]:
    """Read the description in a model folder, and the values of its file; errors as of `read_description`."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: there is no such model folder.")
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (folder / name).is_file():
            raise UsageError(f"{folder}: is not a complete model folder, {name} is missing.")
    path = folder / CONFIG_NAME
    values = read_yaml(path)
    written = values.get("format_version") if isinstance(values, dict) else None
    if isinstance(written, int) and written > FORMAT_VERSION:
        raise UsageError(
            f"{path}: has format {written}, written by yt8m {values.get('yt8m_version')}; this version reads formats up "
            f"to {FORMAT_VERSION}: use a newer yt8m."
        )
    return validated(ModelDescription, values, str(path)), values
