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

import os
import shutil
import time
import tokenize
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import DTypeLike, NDArray
from pydantic import Field

from yt8m.errors import UsageError, Yt8mError
from yt8m.files import replace_folder, writing_error
from yt8m.models.classifier import Kind
from yt8m.models.folded import FoldedClassifier
from yt8m.ranking.ensemble import Merger
from yt8m.ranking.predict import Predictions
from yt8m.ranking.topk import Ranking, Segments, best_of_class
from yt8m.settings import Settings, read_yaml, to_yaml, validated

FORMAT_VERSION = 2
SEGMENTS_PER_BLOCK = 8192
"""Segments that are written at a time: 16 KiB in a row on the disk for each class and model."""

SYNC_SECONDS = 30.0
"""How much work a kill may cost at most, beside the block at hand."""

_REMAINS = "what is written stays. Free some space and run the same command again"
_INDEX = "predictions.yaml"
_UNFINISHED_INDEX = "unfinished.yaml"
_DONE = "done.npy"


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


def _checksum(codes: NDArray[np.uint16]) -> int:
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
        if (folder / _UNFINISHED_INDEX).is_file() and not (folder / _INDEX).is_file():
            raise UsageError(f"{folder}: this prediction is not finished; the same `yt8m predict` goes on with it.")
        if not folder.is_dir():
            hint = (
                "it is not finished; the same command goes on with it"
                if unfinished_folder(folder).is_dir()
                else "`yt8m predict --store` makes one"
            )
            raise UsageError(f"{folder}: there is no such folder of predictions; {hint}.")
        if not (folder / _INDEX).is_file():
            raise UsageError(
                f"{folder}: is not a folder of predictions (it has no {_INDEX}); `yt8m predict --store` makes one."
            )
        values = read_yaml(folder / _INDEX)
        version = values.get("format_version") if isinstance(values, dict) else None
        if isinstance(version, int) and version != FORMAT_VERSION:
            raise UsageError(f"{folder}: predictions of version {version}, expected {FORMAT_VERSION}; predict again.")
        return cls(folder, validated(StoreIndex, values, str(folder / _INDEX)))

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
            codes = _mapped(path, np.uint16, (index.num_classes, index.num_segments))
            mapped = _mapped(self.folder / f"{model}.crc.npy", np.uint32, (index.num_blocks, index.num_classes))
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
            if _checksum(of_class[index.block(number)]) != expected:
                raise Yt8mError(
                    f"{path}: is damaged (class position {class_index}, segments from "
                    f"{index.block(number).start}: the checksum is wrong); delete the folder and predict again."
                )
        return of_class


def _mapped(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> np.memmap[Any, Any]:
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


class StoreWriter:
    """Writes predictions as they come; several processes may, each other blocks of segments.

    `prepare` is called once, by one process, before any other calls anything; `finish` once, after all have closed.

    Args:
        folder: The folder to make.
        index: What it will hold.
    """

    def __init__(self, folder: Path, index: StoreIndex) -> None:
        self.folder, self.index = folder, index
        self._work = unfinished_folder(folder)
        self._files: dict[str, tuple[_File, _File]] = {}
        self._done: _File | None = None
        self._buffers: dict[str, NDArray[np.uint16]] = {}
        self._block: int | None = None
        self._filled = 0
        self._written: list[int] = []
        self._synced = time.monotonic()

    def prepare(self) -> bool:
        """Make the unfinished folder, or find the one that a former try of the same left.

        Returns:
            Whether there is anything left to predict: the folder may hold all of it already.

        Raises:
            UsageError: The folder holds something else than predictions.
            Yt8mError: There is not enough space on the disk.
        """
        folder, index = self.folder, self.index
        found = {path.name for path in self._work.iterdir()} if self._work.is_dir() else set()
        if found and not found & {_UNFINISHED_INDEX, _DONE}:
            raise UsageError(
                f"{self._work}: exists and is not an unfinished prediction; move it away, or give another folder."
            )
        if (folder / _INDEX).is_file() and _same(folder / _INDEX, index):
            # An unfinished try of something else is given up.
            shutil.rmtree(self._work, ignore_errors=True)
            return False
        if folder.exists() and not (folder / _INDEX).is_file():
            raise UsageError(f"{folder}: exists and is not a folder of predictions; give a new folder.")
        if self._work.is_dir():
            names = [f"{name}{ending}" for name in index.models for ending in (".npy", ".crc.npy")]
            is_whole = all((self._work / name).is_file() for name in [*names, _DONE])
            if is_whole and _same(self._work / _UNFINISHED_INDEX, index):
                return True
            shutil.rmtree(self._work)
        self._check_space()
        try:
            self._work.mkdir(parents=True)
            (self._work / _UNFINISHED_INDEX).write_text(to_yaml(index), encoding="utf-8")
            for name in index.models:
                _allocate(self._work / f"{name}.npy", np.uint16, (index.num_classes, index.num_segments))
                _allocate(self._work / f"{name}.crc.npy", np.uint32, (index.num_blocks, index.num_classes))
            # Last: a folder without it is begun anew.
            _allocate(self._work / _DONE, np.uint8, (index.num_blocks,))
        except OSError as error:
            shutil.rmtree(self._work, ignore_errors=True)
            raise writing_error(error, folder) from error
        return True

    def _check_space(self) -> None:
        needed = 2 * self.index.num_segments * self.index.num_classes * len(self.index.models)
        existing = next(parent for parent in [self.folder, *self.folder.absolute().parents] if parent.exists())
        free = shutil.disk_usage(existing).free
        if needed > free:
            raise Yt8mError(
                f"{self.folder}: the predictions need {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free. "
                "Free some space, store fewer models at a time, or rank them without storing."
            )

    def _is_done(self) -> NDArray[np.bool_]:
        return _mapped(self._work / _DONE, np.uint8, (self.index.num_blocks,)).astype(np.bool_)

    def pending(self) -> list[slice]:
        """Blocks of segments that are still to be predicted, in order."""
        if not self._work.is_dir():
            return []
        return [self.index.block(number) for number in np.flatnonzero(~self._is_done()).tolist()]

    def write(self, predictions: Predictions) -> None:
        """Take what models say of some segments.

        The segments of a block come one after the other, in order, and a batch has none of two blocks.

        Raises:
            Yt8mError: The disk is full.
            ValueError: The segments come in another order.
        """
        block, inside = divmod(predictions.start, self.index.segments_per_block)
        place = self.index.block(block)
        count = len(predictions)
        if inside == 0:
            self._block, self._filled = block, 0
        if block != self._block or inside != self._filled or predictions.start + count > place.stop:
            raise ValueError(f"segments {predictions.start} to {predictions.start + count} are not the next of a block")
        for name in self.index.models:
            if name not in self._buffers:
                shape = (self.index.num_classes, self.index.segments_per_block)
                self._buffers[name] = np.empty(shape, np.uint16)
            self._buffers[name][:, inside : inside + count] = predictions.codes[name].T
        self._filled += count
        if predictions.start + count == place.stop:
            self._flush(block, place)

    def _flush(self, block: int, place: slice) -> None:
        """Write a block that is complete."""
        count = place.stop - place.start
        try:
            for name in self.index.models:
                codes, checksums = self._opened(name)
                of_block = np.empty(self.index.num_classes, np.uint32)
                for class_index, row in enumerate(self._buffers[name][:, :count]):
                    codes.write(row, class_index * self.index.num_segments + place.start)
                    of_block[class_index] = _checksum(row)
                checksums.write(of_block, block * self.index.num_classes)
            self._written.append(block)
            self._block = None
            if time.monotonic() - self._synced > SYNC_SECONDS:
                self.sync()
        except OSError as error:
            raise writing_error(error, self.folder, _REMAINS) from error

    def _opened(self, name: str) -> tuple[_File, _File]:
        if name not in self._files:
            self._files[name] = (_File(self._work / f"{name}.npy"), _File(self._work / f"{name}.crc.npy"))
        return self._files[name]

    def sync(self) -> None:
        """Put on the disk what was written, and only then say that it is there."""
        if self._written:
            for files in self._files.values():
                for file in files:
                    file.sync()
            self._done = self._done or _File(self._work / _DONE)
            for block in self._written:
                self._done.write(np.ones(1, np.uint8), block)
            self._done.sync()
        self._written.clear()
        self._synced = time.monotonic()

    def close(self) -> None:
        """Put everything on the disk; what is missing of a block is given up."""
        try:
            self.sync()
        except OSError as error:
            raise writing_error(error, self.folder, _REMAINS) from error
        finally:
            for file in [*(file for files in self._files.values() for file in files), self._done]:
                if file is not None:
                    file.close()
            self._files.clear()
            self._done = None

    def finish(self) -> Store:
        """Give the folder its name.

        Raises:
            Yt8mError: A segment was not predicted.
        """
        if not self._work.is_dir():
            return Store.open(self.folder)
        missing = int((~self._is_done()).sum())
        if missing:
            raise Yt8mError(f"{self.folder}: {missing:,} of {self.index.num_blocks:,} blocks were not predicted.")
        try:
            (self._work / _INDEX).write_text(to_yaml(self.index), encoding="utf-8")
            replace_folder(self._work, self.folder)
            for name in (_DONE, _UNFINISHED_INDEX):
                (self.folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise writing_error(error, self.folder, _REMAINS) from error
        return Store(self.folder, self.index)


class _File:
    """A `.npy` file to write parts of, by position of their first element."""

    def __init__(self, path: Path) -> None:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        self._offset, self._itemsize = array.offset, array.dtype.itemsize
        self._descriptor = os.open(path, os.O_WRONLY)

    def write(self, values: NDArray[Any], position: int) -> None:
        data = memoryview(values.tobytes())
        at = self._offset + position * self._itemsize
        while data:
            written = os.pwrite(self._descriptor, data, at)
            data, at = data[written:], at + written

    def sync(self) -> None:
        os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


def _same(path: Path, index: StoreIndex) -> bool:
    """Whether a former try was to make the same."""
    try:
        return bool(validated(StoreIndex, read_yaml(path), str(path)) == index)
    except UsageError:
        return False


def _allocate(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> None:
    """A `.npy` file of zeros whose space on the disk is taken now rather than found missing later."""
    open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def rank_stored(
    stores: Mapping[str, Store],
    merger: Merger,
    segments: Segments,
    k: int,
    progress: Callable[[Sequence[int]], Iterable[int]] = lambda classes: classes,
) -> Ranking:
    """Merge stored probabilities and rank them, class by class: the same ranking as of probabilities that stream.

    Args:
        stores: For each model that the merger looks at, by name, the store that holds it; all of the same catalog.
        merger: How models are merged.
        segments: What was predicted.
        k: Segments to list for a class.
        progress: Wraps the classes.

    Raises:
        Yt8mError: A file is damaged, or a segment has no probability.
    """
    index = next(iter(stores.values())).index
    keys = []
    for class_index in progress(range(index.num_classes)):
        codes = {name: stores[name].codes(name, class_index) for name in merger.models}
        keys.append(best_of_class(segments, merger(codes), k, f" for class position {class_index}"))
    return Ranking(segments, tuple(keys))
