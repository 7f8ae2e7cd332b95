"""Write a store: resumable, several processes."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import DTypeLike, NDArray

from yt8m.errors import UsageError, Yt8mError
from yt8m.files import replace_folder, writing_error
from yt8m.prediction.predict import Predictions
from yt8m.prediction.store import (
    DONE_FILE,
    INDEX_FILE,
    UNFINISHED_INDEX_FILE,
    Store,
    StoreIndex,
    checksum,
    open_array,
    unfinished_folder,
)
from yt8m.settings import read_yaml, to_yaml, validated

SYNC_SECONDS = 30.0
"""How much work a kill may cost at most, beside the block at hand."""

_REMAINS = "what is written stays. Free some space and run the same command again"


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
        if found and not found & {UNFINISHED_INDEX_FILE, DONE_FILE}:
            raise UsageError(
                f"{self._work}: exists and is not an unfinished prediction; move it away, or give another folder."
            )
        if (folder / INDEX_FILE).is_file() and _same(folder / INDEX_FILE, index):
            # An unfinished try of something else is given up.
            shutil.rmtree(self._work, ignore_errors=True)
            return False
        if folder.exists() and not (folder / INDEX_FILE).is_file():
            raise UsageError(f"{folder}: exists and is not a folder of predictions; give a new folder.")
        if self._work.is_dir():
            names = [f"{name}{ending}" for name in index.models for ending in (".npy", ".crc.npy")]
            is_whole = all((self._work / name).is_file() for name in [*names, DONE_FILE])
            if is_whole and _same(self._work / UNFINISHED_INDEX_FILE, index):
                return True
            shutil.rmtree(self._work)
        self._check_space()
        try:
            self._work.mkdir(parents=True)
            (self._work / UNFINISHED_INDEX_FILE).write_text(to_yaml(index), encoding="utf-8")
            for name in index.models:
                _allocate(self._work / f"{name}.npy", np.uint16, (index.num_classes, index.num_segments))
                _allocate(self._work / f"{name}.crc.npy", np.uint32, (index.num_blocks, index.num_classes))
            # Last: a folder without it is begun anew.
            _allocate(self._work / DONE_FILE, np.uint8, (index.num_blocks,))
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
        return open_array(self._work / DONE_FILE, np.uint8, (self.index.num_blocks,)).astype(np.bool_)

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
                    of_block[class_index] = checksum(row)
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
            self._done = self._done or _File(self._work / DONE_FILE)
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
            (self._work / INDEX_FILE).write_text(to_yaml(self.index), encoding="utf-8")
            replace_folder(self._work, self.folder)
            for name in (DONE_FILE, UNFINISHED_INDEX_FILE):
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
