"""What the frames of a dataset are: `features.yaml` beside its shards. YouTube-8M's are the default.

A frame is one second of a video: a vector per modality (`rgb`, what is seen, and `audio`), stored as bytes or as
half-precision numbers. Catalogs and model folders contain this description, and a model refuses other features than those
that it was trained on.
"""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from yt8m.errors import UsageError
from yt8m.settings import MAX_SIZE, Settings, read_yaml, to_yaml, validated

FEATURES_FILE = "features.yaml"
MODALITIES: tuple[Literal["rgb", "audio"], ...] = ("rgb", "audio")
"""Modalities in the order of a frame's bytes."""


class Modality(Settings):
    """The vector of one modality. A byte q stands for `q * scale + offset`; a half-precision number stands for itself."""

    size: int = Field(ge=1, le=2**16)
    """Numbers of a frame."""
    scale: float | list[float] = 4 / 255
    """Step between two bytes: of all numbers, or of each."""
    offset: float | list[float] = 4 / 512 - 2
    """Value of the byte 0: of all numbers, or of each."""

    @model_validator(mode="after")
    def _one_per_number(self) -> Self:
        for name in ("scale", "offset"):
            values = getattr(self, name)
            if isinstance(values, list) and len(values) != self.size:
                raise ValueError(f"{name}: expected one number or {self.size:,}, found {len(values):,}")
        if not np.all(np.asarray(self.scale) > 0):
            raise ValueError("scale: expected numbers above 0")
        return self


class Extractor(Settings):
    """Where features come from."""

    name: str = Field(min_length=1, max_length=200)
    """Name of the extractor."""
    digest: str = Field("", max_length=200)
    """Hash of its weights."""


class Features(Settings):
    """The features of a dataset; the defaults are YouTube-8M's."""

    name: str = Field("youtube8m", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    """Name, which messages use."""
    dtype: Literal["uint8", "float16"] = "uint8"
    """Type of a frame's numbers in shards: bytes, or half-precision numbers, little-endian."""
    rgb: Modality | None = Modality(size=1024)
    """What is seen; null without."""
    audio: Modality | None = Modality(size=128)
    """What is heard; null without."""
    frames_per_second: int = Field(1, ge=1, le=MAX_SIZE)
    """Frames of a second of video: 1."""
    extractor: Extractor | None = None
    """What made the features."""

    @field_validator("frames_per_second")
    @classmethod
    def _one_frame_per_second(cls, value: int) -> int:
        if value != 1:
            raise ValueError("times are numbers of frames, so only 1 frame per second is supported")
        return value

    @model_validator(mode="after")
    def _some_modality(self) -> Self:
        if self.rgb is None and self.audio is None:
            raise ValueError("expected rgb, audio or both")
        return self

    @property
    def modalities(self) -> dict[str, Modality]:
        """The modalities that there are, by name, in the order of a frame's bytes."""
        found = {name: getattr(self, name) for name in MODALITIES}
        return {name: modality for name, modality in found.items() if modality is not None}

    @property
    def item_bytes(self) -> int:
        """Bytes of a number."""
        return np.dtype(self.dtype).itemsize

    def bytes_of(self, name: str) -> int:
        """Bytes of a modality in a frame; 0 without it."""
        modality = self.modalities.get(name)
        return 0 if modality is None else modality.size * self.item_bytes

    @cached_property
    def frame_bytes(self) -> int:
        """Bytes of a frame."""
        return sum(map(self.bytes_of, MODALITIES))

    @cached_property
    def size(self) -> int:
        """D, numbers of a frame."""
        return sum(modality.size for modality in self.modalities.values())

    def missing(self, name: str) -> NDArray[np.uint8]:
        """Bytes, uint8 (bytes of the modality,), that stand for a modality which a video lacks: those nearest to 0.

        docs/method.md, "Features of own videos", has the reason. In YouTube-8M it is the byte 127.
        """
        modality = self.modalities.get(name)
        if modality is None or self.dtype != "uint8":
            return np.zeros(self.bytes_of(name), np.uint8)
        nearest = np.rint(-np.asarray(modality.offset) / np.asarray(modality.scale)).clip(0, 255)
        return np.broadcast_to(nearest.astype(np.uint8), modality.size).copy()

    def __str__(self) -> str:
        sizes = ", ".join(f"{name} {modality.size:,}" for name, modality in self.modalities.items())
        return f"{self.name} ({sizes}{', half precision' if self.dtype == 'float16' else ''})"

    @cached_property
    def digest(self) -> str:
        """Hash of the description."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    def require_same(self, other: "Features", what: str) -> None:
        """Require that other features are these.

        Args:
            other: The features that there are.
            what: Subject of the message, such as "model/: was trained on".

        Raises:
            UsageError: They differ; the message says in what.
        """
        if self == other:
            return
        if self.name != other.name:
            raise UsageError(f"{what} features {self.name!r}, and these are {other.name!r}.")
        differing = [name for name in type(self).model_fields if getattr(self, name) != getattr(other, name)]
        raise UsageError(f"{what} other features {self.name!r} than these: {', '.join(differing)} differ.")

    def save(self, folder: Path | str) -> None:
        """Write `features.yaml` into a folder of shards."""
        (Path(folder) / FEATURES_FILE).write_text(to_yaml(self), encoding="utf-8")

    @classmethod
    def of_folder(cls, folder: Path) -> "Features":
        """Features of a folder of shards: those of its `features.yaml`, or of the dataset folder's; YouTube-8M's without.

        Raises:
            UsageError: The file is not valid.
        """
        for place in (folder, folder.parent, folder.parent.parent):
            path = place / FEATURES_FILE
            if path.is_file():
                return validated(cls, read_yaml(path), str(path))
        return YOUTUBE8M


YOUTUBE8M = Features()
"""Features of YouTube-8M: 1,024 bytes of Inception-v3 and 128 of VGGish, each after a PCA."""
