"""Probabilities on disk: what `predict --store` leaves for `submit`, so that models can be merged anew without predicting.

A folder of predictions holds `predictions.yaml` (what was predicted, by which models, from which videos, with which
vocabulary) and two files a model: `NAME.npy`, the 16-bit codes of its probabilities (`ranking.codes`), uint16 (C, S), a
class after the other as a ranking reads them; and `NAME.crc.npy`, a CRC32C of each class in each block of segments, by
which damage is found when they are read.

While it is written, the folder is called `FOLDER.unfinished` and has no `predictions.yaml`; `done.npy` says which blocks
of segments are on the disk. Whoever is killed goes on with the others; the folder gets its name when all are there, and
what was never written reads as "no probability".
"""

from __future__ import annotations

import tokenize
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import DTypeLike, NDArray
from pydantic import Field

from yt8m.errors import UsageError, Yt8mError
from yt8m.inference.classifier import FoldedClassifier
from yt8m.models.classifier import Kind
from yt8m.prediction.segments import Segments
from yt8m.settings import Settings, read_yaml, validated

FORMAT_VERSION = 2
SEGMENTS_PER_BLOCK = 8192
"""Segments that are written at a time: 16 KiB in a row on the disk for each class and model."""
INDEX_FILE = "predictions.yaml"
UNFINISHED_INDEX_FILE = "unfinished.yaml"
DONE_FILE = "done.npy"


class StoredModel(Settings):
    """A model of a folder of predictions."""

    kind: Kind
    """What it classifies, and from what."""
    digest: str
    """Digest of its settings and weights."""


class StoreIndex(Settings):
    """What a folder of predictions says of itself."""

    format_version: int = FORMAT_VERSION
    """Version of this layout."""
    models: dict[str, StoredModel]
    """The models by name."""
    vocabulary: str
    """Digest of the vocabulary."""
    catalog: str
    """Digest of the catalog whose segments were predicted."""
    num_segments: int = Field(ge=1)
    """S."""
    num_classes: int = Field(ge=1)
    """C."""
    shifts: list[int] = Field(default=[0])
    """Seconds by which segments were moved (test-time shifts); the mean of the probabilities was kept."""
    precision: str = "32-true"
    """Numbers of the matrix products."""
    device: str = "cpu"
    """Kind of device that computed: another one rounds otherwise."""
    segments_per_block: int = Field(default=SEGMENTS_PER_BLOCK, ge=1)
    """Segments of a block."""

    @classmethod
    def of(
        cls,
        models: Mapping[str, FoldedClassifier],
        segments: Segments,
        vocabulary: str,
        catalog: str,
        shifts: Sequence[int],
        precision: str,
    ) -> StoreIndex:
        """What a store of some models' predictions says of itself; see the fields."""
        return cls(
            models={name: StoredModel(kind=model.kind, digest=model.digest) for name, model in models.items()},
            vocabulary=vocabulary,
            catalog=catalog,
            num_segments=len(segments),
            num_classes=next(iter(models.values())).num_classes,
            shifts=list(shifts),
            precision=precision,
            device=next(iter(models.values())).device.type,
        )

    @property
    def num_blocks(self) -> int:
        """Blocks of segments, the last of which may be shorter."""
        return -(-self.num_segments // self.segments_per_block)

    def block(self, number: int) -> slice:
        """Segments of a block."""
        start = number * self.segments_per_block
        return slice(start, min(start + self.segments_per_block, self.num_segments))


def checksum(codes: NDArray[np.uint16]) -> int:
    """CRC32C of some codes."""
    value: int = google_crc32c.value(codes)
    return value


@dataclass(frozen=True, eq=False)
class Store:
    """Predictions of some models for the same segments."""

    folder: Path
    index: StoreIndex
    _known: dict[str, tuple[int, NDArray[np.uint32]]] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path) -> Store:
        """Open a folder of predictions.

        Raises:
            UsageError: It is not one, not finished, or of another version.
        """
        if (folder / UNFINISHED_INDEX_FILE).is_file() and not (folder / INDEX_FILE).is_file():
            raise UsageError(f"{folder}: this prediction is not finished; the same `yt8m predict` goes on with it.")
        if not folder.is_dir():
            hint = (
                "it is not finished; the same command goes on with it"
                if unfinished_folder(folder).is_dir()
                else "`yt8m predict --store` makes one"
            )
            raise UsageError(f"{folder}: there is no such folder of predictions; {hint}.")
        if not (folder / INDEX_FILE).is_file():
            raise UsageError(
                f"{folder}: is not a folder of predictions (it has no {INDEX_FILE}); `yt8m predict --store` makes one."
            )
        values = read_yaml(folder / INDEX_FILE)
        version = values.get("format_version") if isinstance(values, dict) else None
        if isinstance(version, int) and version != FORMAT_VERSION:
            raise UsageError(f"{folder}: predictions of version {version}, expected {FORMAT_VERSION}; predict again.")
        return cls(folder, validated(StoreIndex, values, str(folder / INDEX_FILE)))

    def codes(self, model: str, class_index: int) -> NDArray[np.uint16]:
        """What a model says of all segments for one class, as read from the disk and checked.

        Args:
            model: Name of the model.
            class_index: The class.

        Returns:
            uint16 (S,).

        Raises:
            Yt8mError: A file is missing, not of its shape, or damaged.
        """
        path, index = self.folder / f"{model}.npy", self.index
        if model not in self._known:
            codes = open_array(path, np.uint16, (index.num_classes, index.num_segments))
            mapped = open_array(self.folder / f"{model}.crc.npy", np.uint32, (index.num_blocks, index.num_classes))
            self._known[model] = (codes.offset, np.array(mapped))
        offset, checksums = self._known[model]
        # Read, not mapped: what is mapped counts as memory of this process until somebody else wants it.
        try:
            of_class = np.fromfile(
                path, np.uint16, index.num_segments, offset=offset + 2 * class_index * index.num_segments
            )
        except OSError as error:
            raise Yt8mError(f"{path}: cannot be read ({error.strerror}).") from None
        for number, expected in enumerate(checksums[:, class_index].tolist()):
            if checksum(of_class[index.block(number)]) != expected:
                raise Yt8mError(
                    f"{path}: is damaged (class position {class_index}, segments from "
                    f"{index.block(number).start}: the checksum is wrong); delete the folder and predict again."
                )
        return of_class


def open_array(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """Map a `.npy` file, or raise Yt8mError where it is not of this type and shape."""
    try:
        array = open_memmap(path, mode="r")
    except (OSError, ValueError, EOFError, SyntaxError, tokenize.TokenError) as error:
        raise Yt8mError(f"{path}: cannot be read ({' '.join(str(error).split())}).") from None
    if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
        raise Yt8mError(f"{path}: expected {np.dtype(dtype)} {shape}, found {array.dtype} {array.shape}.")
    return array


def unfinished_folder(folder: Path) -> Path:
    """Where predictions are written before they have their name."""
    return folder.with_name(f"{folder.name}.unfinished")
