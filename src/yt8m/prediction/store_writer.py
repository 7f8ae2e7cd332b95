"""Write a store, block by block: resumable, and by several processes."""

import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import DTypeLike, NDArray

from yt8m.errors import UsageError, Yt8mError
from yt8m.files import end_of_links, replace_folder, writing_error, written_atomically
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
"""Most seconds of work that a kill can cost, besides the current block."""

_REMAINS = "the blocks written so far are kept. Free some space and run the same command again"


class _File:
    """A `.npy` file to overwrite parts of, at positions of elements."""

    def __init__(self, path: Path) -> None:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        self._offset, self._itemsize = array.offset, array.dtype.itemsize
        self._descriptor = os.open(path, os.O_WRONLY)

    def write(self, values: NDArray[Any], position: int) -> None:
        data = memoryview(values.tobytes())
        offset = self._offset + position * self._itemsize
        while data:
            written = os.pwrite(self._descriptor, data, offset)
            data, offset = data[written:], offset + written

    def sync(self) -> None:
        os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


class StoreWriter:
    """Writes predictions as they are made; several processes may write different blocks of one store.

    One process calls `prepare` before any other call, and `finish` after all have closed their writers.

    Args:
        folder: The store.
        index: Its index.
    """

    def __init__(self, folder: Path, index: StoreIndex) -> None:
        self.folder, self.index = end_of_links(folder), index
        self._work = unfinished_folder(folder)
        self._files: dict[str, _File] = {}
        self._buffers: dict[str, NDArray[np.uint16]] = {}
        """Codes of the current block, (C, segments per block), by model."""
        self._next: int | None = None
        """Position of the next segment of the current block."""
        self._written: list[int] = []
        self._synced = time.monotonic()

    def prepare(self) -> None:
        """Make the unfinished folder, unless a finished or unfinished one with the same index exists.

        Raises:
            UsageError: The folder contains something else.
            Yt8mError: There is not enough space on the disk.
        """
        folder, index = self.folder, self.index
        # A kill leaves hidden files, which are incomplete.
        found = {path.name for path in self._work.glob("[!.]*")}
        if found and not found & {UNFINISHED_INDEX_FILE, DONE_FILE}:
            raise UsageError(
                f"{self._work}: exists and is not an unfinished prediction; move it away, or give another folder."
            )
        if (folder / INDEX_FILE).is_file() and _has_index(folder / INDEX_FILE, index):
            # What a kill left while the folder was finished or replaced, and an unfinished prediction with another index.
            for name in (DONE_FILE, UNFINISHED_INDEX_FILE):
                (folder / name).unlink(missing_ok=True)
            for left in (self._work, Path(f"{self._work}.old")):
                shutil.rmtree(left, ignore_errors=True)
            return
        if folder.exists() and not (folder / INDEX_FILE).is_file():
            raise UsageError(f"{folder}: exists and is not a folder of predictions; give a new folder.")
        if self._can_resume():
            return
        shutil.rmtree(self._work, ignore_errors=True)
        self._check_space()
        try:
            self._work.mkdir(parents=True)
            with written_atomically(self._work / UNFINISHED_INDEX_FILE) as temporary:
                temporary.write_text(to_yaml(index), encoding="utf-8")
            for name, (dtype, shape) in self._arrays().items():
                _allocate(self._work / name, dtype, shape)
        except (OSError, Yt8mError) as error:
            shutil.rmtree(self._work, ignore_errors=True)
            raise writing_error(error, folder, is_of_path=True) if isinstance(error, OSError) else error from None

    def _arrays(self) -> dict[str, tuple[DTypeLike, tuple[int, ...]]]:
        """Type and shape of every `.npy` file of the unfinished folder."""
        index = self.index
        arrays: dict[str, tuple[DTypeLike, tuple[int, ...]]] = {DONE_FILE: (np.uint8, (index.num_blocks,))}
        for name in index.models:
            arrays[f"{name}.npy"] = (np.uint16, (index.num_classes, index.num_segments))
            arrays[f"{name}.crc.npy"] = (np.uint32, (index.num_blocks, index.num_classes))
        return arrays

    def _can_resume(self) -> bool:
        """Whether the unfinished folder has this index and every file, complete."""
        try:
            for name, (dtype, shape) in self._arrays().items():
                open_array(self._work / name, dtype, shape)
        except Yt8mError:
            return False
        return _has_index(self._work / UNFINISHED_INDEX_FILE, self.index)

    def _check_space(self) -> None:
        needed = 2 * self.index.num_segments * self.index.num_classes * len(self.index.models)
        existing = next(parent for parent in [self.folder, *self.folder.absolute().parents] if parent.exists())
        free = shutil.disk_usage(existing).free
        if needed > free:
            raise Yt8mError(
                f"{self.folder}: the predictions need {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free. "
                "Free some space, store fewer models at a time, or rank them without storing."
            )

    def pending(self) -> list[slice]:
        """Blocks of segments still to predict, in order."""
        if not self._work.is_dir():
            return []
        done = open_array(self._work / DONE_FILE, np.uint8, (self.index.num_blocks,))
        return [self.index.block(number) for number in np.flatnonzero(done == 0).tolist()]

    def write(self, predictions: Predictions) -> None:
        """Write the predictions of some segments. The segments of a block come in order; a batch is within one block.

        Raises:
            Yt8mError: The disk is full.
            ValueError: The segments are out of order.
        """
        start, stop = predictions.start, predictions.start + len(predictions)
        number, offset = divmod(start, self.index.segments_per_block)
        block = self.index.block(number)
        if offset == 0:
            self._next = start
        if start != self._next or stop > block.stop:
            raise ValueError(f"segments {start} to {stop} are not the next of a block")
        for name in self.index.models:
            if name not in self._buffers:
                shape = (self.index.num_classes, self.index.segments_per_block)
                self._buffers[name] = np.empty(shape, np.uint16)
            self._buffers[name][:, offset : offset + len(predictions)] = predictions.codes[name].T
        self._next = stop
        if stop == block.stop:
            self._flush(number, block)
            self._next = None

    def _flush(self, number: int, block: slice) -> None:
        """Write a block that is complete."""
        index = self.index
        try:
            for name in index.models:
                checksums = np.empty(index.num_classes, np.uint32)
                for class_index, codes in enumerate(self._buffers[name][:, : block.stop - block.start]):
                    self._file(f"{name}.npy").write(codes, class_index * index.num_segments + block.start)
                    checksums[class_index] = checksum(codes)
                self._file(f"{name}.crc.npy").write(checksums, number * index.num_classes)
            self._written.append(number)
            if time.monotonic() - self._synced > SYNC_SECONDS:
                self._sync()
        except OSError as error:
            raise writing_error(error, self.folder, _REMAINS) from error

    def _file(self, name: str) -> _File:
        if name not in self._files:
            self._files[name] = _File(self._work / name)
        return self._files[name]

    def _sync(self) -> None:
        """Flush the written blocks to the disk, and only then mark them as done."""
        if self._written:
            for name, file in self._files.items():
                if name != DONE_FILE:
                    file.sync()
            done = self._file(DONE_FILE)
            for number in self._written:
                done.write(np.ones(1, np.uint8), number)
            done.sync()
        self._written.clear()
        self._synced = time.monotonic()

    def close(self) -> None:
        """Flush the written blocks to the disk; an incomplete block is discarded."""
        try:
            self._sync()
        except OSError as error:
            raise writing_error(error, self.folder, _REMAINS) from error
        finally:
            for file in self._files.values():
                file.close()
            self._files.clear()

    def finish(self) -> Store:
        """Rename the finished folder, and open it.

        Raises:
            Yt8mError: A block was not predicted.
        """
        if not self._work.is_dir():
            return Store.open(self.folder)
        if missing := len(self.pending()):
            raise Yt8mError(f"{self.folder}: {missing:,} of {self.index.num_blocks:,} blocks were not predicted.")
        try:
            (self._work / INDEX_FILE).write_text(to_yaml(self.index), encoding="utf-8")
            replace_folder(self._work, self.folder)
            for name in (DONE_FILE, UNFINISHED_INDEX_FILE):
                (self.folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise writing_error(error, self.folder, _REMAINS) from error
        return Store(self.folder, self.index)


def read_unfinished_index(folder: Path) -> StoreIndex | None:
    """Index of the unfinished predictions of a store; None where there are none, or none that can be resumed."""
    return _read_index(unfinished_folder(folder) / UNFINISHED_INDEX_FILE)


def _read_index(path: Path) -> StoreIndex | None:
    try:
        return validated(StoreIndex, read_yaml(path), str(path))
    except UsageError:
        return None


def _has_index(path: Path, index: StoreIndex) -> bool:
    """Whether a file contains this index."""
    found = _read_index(path)
    return found is not None and found.same_predictions(index)


def _allocate(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> None:
    """Make a `.npy` file of zeros, and reserve its space on the disk; it appears when it is complete."""
    with written_atomically(path) as temporary:
        open_memmap(temporary, mode="w+", dtype=dtype, shape=shape)
        if hasattr(os, "posix_fallocate"):
            with temporary.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)
