"""The bytes of a shard, read through a descriptor.

Shards are not mapped: access to a map beyond the end of a file that another process truncates kills the process without
a message, where a read is short.
"""

import os
import stat
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from yt8m.errors import ShardError

WINDOW_BYTES = 2**20
"""Bytes that a `ShardWindow` reads at a time, if no slice is longer."""

SAMPLE_BLOCKS = 4
SAMPLE_BLOCK_BYTES = 2**17
"""A sample of a shard is this many blocks from its first byte to its last; all bytes of a shard shorter than that."""


class ShardFile:
    """A shard, open for reading until it is closed or collected.

    Args:
        path: The shard.

    Attributes:
        path: The shard.
        num_bytes: Its size when it was opened.
        mtime_ns: Its modification time when it was opened.

    Raises:
        ShardError: The shard is missing, cannot be opened, or is no regular file.
    """

    _descriptor = -1

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # A pipe is opened without waiting for a writer, to be refused below.
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            status = os.fstat(self._descriptor)
        except OSError as error:
            if path.is_symlink() and not path.exists():
                raise ShardError(path, f"is a link to {path.readlink()}, which does not exist.") from None
            raise ShardError(path, f"cannot be opened ({error.strerror}).") from None
        if not stat.S_ISREG(status.st_mode):
            raise ShardError(path, "is no regular file.")
        self.num_bytes, self.mtime_ns = status.st_size, status.st_mtime_ns

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; reading it is an error from then on."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def has_changed(self) -> bool:
        """Whether size or modification time differ from those when the file was opened."""
        status = os.fstat(self._descriptor)
        return (status.st_size, status.st_mtime_ns) != (self.num_bytes, self.mtime_ns)

    def require_unchanged(self) -> None:
        """Require that nothing has written to the shard since it was opened.

        Raises:
            ShardError: Its size or modification time differ.
        """
        if self.has_changed():
            raise ShardError(
                self.path, "was changed by another process while it was read; run again when that is done."
            )

    def read_into(self, target: NDArray[np.uint8], position: int) -> None:
        """Fill an array, contiguous, with the bytes from a position on.

        Raises:
            ShardError: The shard ends before, or cannot be read.
        """
        try:
            count = os.preadv(self._descriptor, (target.data,), position)
            if count == target.nbytes:
                return
            rest = target.reshape(-1)
            while count:
                rest, position = rest[count:], position + count
                if not len(rest):
                    return
                count = os.preadv(self._descriptor, (rest.data,), position)
        except OSError as error:
            raise ShardError(self.path, f"cannot be read ({error.strerror}).", offset=position) from None
        raise ShardError(
            self.path, "ends here, and is longer in the catalog: another process truncated it.", offset=position
        )

    def sample_checksum(self) -> int:
        """CRC32C of a sample of the shard, to recognize other bytes in a file of the same size.

        Raises:
            ShardError: The shard cannot be read.
        """
        size = self.num_bytes
        if size <= SAMPLE_BLOCKS * SAMPLE_BLOCK_BYTES:
            blocks = np.empty((1, size), np.uint8)
            starts = [0]
        else:
            blocks = np.empty((SAMPLE_BLOCKS, SAMPLE_BLOCK_BYTES), np.uint8)
            starts = [i * (size - SAMPLE_BLOCK_BYTES) // (SAMPLE_BLOCKS - 1) for i in range(SAMPLE_BLOCKS)]
        for block, start in zip(blocks, starts, strict=True):
            self.read_into(block, start)
        return crc32c(blocks.reshape(-1))


class ShardWindow:
    """The bytes of a shard as a sequence, of which slices are taken from the first byte to the last.

    Args:
        file: The shard.

    Raises:
        ShardError: It is empty.
    """

    def __init__(self, file: ShardFile) -> None:
        if not file.num_bytes:
            raise ShardError(file.path, "the file is empty.")
        self._file = file
        self._start = self._stop = 0
        self._allocate(WINDOW_BYTES)

    def __len__(self) -> int:
        return self._file.num_bytes

    def __getitem__(self, span: slice) -> memoryview:
        """The bytes of a slice: valid until the next one, which does not start before this.

        Raises:
            ShardError: The shard has become shorter, or cannot be read.
        """
        start, stop, _ = span.indices(len(self))
        if stop > self._stop:
            self._move(start, stop)
        return self._view[start - self._start : stop - self._start]

    def _move(self, start: int, stop: int) -> None:
        """Move the window so that it has the bytes from `start` to `stop` at least."""
        kept = self._buffer[start - self._start : self._stop - self._start]
        if stop - start > len(self._buffer):
            self._allocate(stop - start)
        self._buffer[: len(kept)] = kept
        position, self._start = start + len(kept), start
        self._stop = min(start + len(self._buffer), len(self))
        self._file.read_into(self._buffer[len(kept) : self._stop - start], position)

    def _allocate(self, num_bytes: int) -> None:
        self._buffer = np.empty(num_bytes, np.uint8)
        self._view = self._buffer.data.toreadonly()


def crc32c(data: NDArray[Any], before: int = 0) -> int:
    """CRC32C of the bytes of an array, contiguous; continued from that of the bytes before them."""
    fixed = data.view(np.uint8)
    fixed.flags.writeable = False  # the library accepts no others
    checksum: int = google_crc32c.extend(before, fixed)
    return checksum
