"""Stores of probabilities, which can be merged and ranked later without predicting again.

A store is a folder with `predictions.yaml` (models, catalog, vocabulary, shapes) and two files per model: `NAME.npy`, the
16-bit codes of its probabilities (see `quantization`), uint16 (C, S), class by class, as ranking reads them; and
`NAME.crc.npy`, a CRC32C of each class in each block of segments, checked when codes are read. `segment_vocabulary.csv`
lists the classes.

While it is written, the folder is `FOLDER.unfinished`, without `predictions.yaml`; `done.npy` lists the blocks that are on
the disk. A later process continues with the other blocks, and the folder is renamed when all are there. Codes that were
never written are 0, a missing probability.
"""

import tokenize
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import google_crc32c
import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import DTypeLike, NDArray
from pydantic import Field

from yt8m.errors import UsageError, Yt8mError, reason_of
from yt8m.files import end_of_links
from yt8m.models.config import Kind
from yt8m.prediction.segments import Segments
from yt8m.settings import MAX_SIZE, Settings, read_yaml, validated

if TYPE_CHECKING:
    from yt8m.inference.classifier import FoldedClassifier

FORMAT_VERSION = 2
SEGMENTS_PER_BLOCK = 8192
"""Segments to write at a time: 16 KiB in one piece for each class and model."""
INDEX_FILE = "predictions.yaml"
UNFINISHED_INDEX_FILE = "unfinished.yaml"
DONE_FILE = "done.npy"


class StoredModel(Settings):
    """A model of a store."""

    kind: Kind
    """Kind of classifier."""
    digest: str
    """Digest of its settings and weights."""


class StoreIndex(Settings):
    """The index of a store, `predictions.yaml`."""

    format_version: int = FORMAT_VERSION
    """Version of the format."""
    models: dict[str, StoredModel]
    """The models by name."""
    vocabulary: str
    """Digest of the vocabulary."""
    catalog: str
    """Digest of the catalog."""
    shards: str = ""
    """Folder of the shards, as an absolute path; it does not decide whether predictions can be resumed."""
    num_segments: int = Field(ge=1, le=2**40)
    """S."""
    num_classes: int = Field(ge=1, le=MAX_SIZE)
    """C."""
    shifts: list[int] = Field(default=[0])
    """Test-time shifts in seconds, whose probabilities are averaged."""
    precision: str = "32-true"
    """Precision of the matrix products."""
    device: str = "cpu"
    """Type of device; results of other types are rounded differently."""
    segments_per_block: int = Field(default=SEGMENTS_PER_BLOCK, ge=1, le=2**40)
    """Segments of a block."""

    @classmethod
    def of(
        cls,
        models: Mapping[str, "FoldedClassifier"],
        segments: Segments,
        vocabulary: str,
        catalog: str,
        shifts: Sequence[int],
        precision: str,
        shards: Path | None = None,
    ) -> Self:
        """Make the index of a store of some models' predictions; see the fields."""
        model = next(iter(models.values()))
        return cls(
            models={name: StoredModel(kind=model.kind, digest=model.digest) for name, model in models.items()},
            vocabulary=vocabulary,
            catalog=catalog,
            shards="" if shards is None else str(shards.resolve()),
            num_segments=len(segments),
            num_classes=model.num_classes,
            shifts=list(shifts),
            precision=precision,
            device=model.device.type,
        )

    def same_predictions(self, other: "StoreIndex") -> bool:
        """Whether another store has the same predictions, wherever their shards are."""
        return self.model_copy(update={"shards": other.shards}) == other

    @property
    def num_blocks(self) -> int:
        """Number of blocks; the last one may be shorter."""
        return -(-self.num_segments // self.segments_per_block)

    def block(self, number: int) -> slice:
        """Positions of the segments of a block."""
        start = number * self.segments_per_block
        return slice(start, min(start + self.segments_per_block, self.num_segments))


def checksum(codes: NDArray[np.uint16]) -> int:
    """CRC32C of codes."""
    value: int = google_crc32c.value(codes)
    return value


@dataclass(frozen=True, eq=False)
class Store:
    """Stored predictions of some models for the same segments."""

    folder: Path
    index: StoreIndex
    _files: dict[str, tuple[int, NDArray[np.uint32]]] = field(default_factory=dict)
    """Offset of the codes in each model's file, and their checksums, (blocks, C)."""

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a store.

        Raises:
            UsageError: The folder is not a store, not finished, or of another version.
        """
        if not (folder / INDEX_FILE).is_file():
            if unfinished_folder(folder).is_dir() or (folder / UNFINISHED_INDEX_FILE).is_file():
                raise UsageError(f"{folder}: is not finished; run the same `yt8m predict` to resume it.")
            found = f"is not a folder of predictions (it has no {INDEX_FILE})"
            found = found if folder.is_dir() else "there is no such folder of predictions"
            raise UsageError(f"{folder}: {found}; `yt8m predict --store` makes one.")
        values = read_yaml(folder / INDEX_FILE)
        version = values.get("format_version") if isinstance(values, dict) else None
        if isinstance(version, int) and version != FORMAT_VERSION:
            raise UsageError(f"{folder}: predictions of version {version}, expected {FORMAT_VERSION}; predict again.")
        return cls(folder, validated(StoreIndex, values, str(folder / INDEX_FILE)))

    def codes(self, model: str, class_index: int) -> NDArray[np.uint16]:
        """Read and verify the codes of a model's probabilities of a class.

        Args:
            model: Name of the model.
            class_index: The class.

        Returns:
            uint16 (S,).

        Raises:
            Yt8mError: A file is missing, of another shape, or damaged.
        """
        path, index = self.folder / f"{model}.npy", self.index
        if model not in self._files:
            codes = open_array(path, np.uint16, (index.num_classes, index.num_segments))
            checksums = open_array(self.folder / f"{model}.crc.npy", np.uint32, (index.num_blocks, index.num_classes))
            self._files[model] = (codes.offset, np.array(checksums))
        offset, of_blocks = self._files[model]
        # Read, not mapped, because mapped pages count as memory of this process until they are evicted.
        try:
            of_class = np.fromfile(
                path, np.uint16, index.num_segments, offset=offset + 2 * class_index * index.num_segments
            )
        except OSError as error:
            raise Yt8mError(f"{path}: cannot be read ({error.strerror}).") from None
        for number, expected in enumerate(of_blocks[:, class_index].tolist()):
            if checksum(of_class[index.block(number)]) != expected:
                raise Yt8mError(
                    f"{path}: is damaged (class position {class_index}, segments from "
                    f"{index.block(number).start}: the checksum is wrong); delete the folder and predict again."
                )
        return of_class


def open_array(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """Map a `.npy` file.

    Raises:
        Yt8mError: The file cannot be read, or is of another type or shape.
    """
    try:
        array = open_memmap(path, mode="r")
    except (OSError, ValueError, EOFError, SyntaxError, tokenize.TokenError) as error:
        raise Yt8mError(f"{path}: cannot be read ({reason_of(error)}).") from None
    if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
        raise Yt8mError(f"{path}: expected {np.dtype(dtype)} {shape}, found {array.dtype} {array.shape}.")
    return array


def unfinished_folder(folder: Path) -> Path:
    """Folder in which a store is written, beside its own; if that is a link, beside what it leads to."""
    folder = end_of_links(folder)
    return folder.with_name(f"{folder.name}.unfinished")
