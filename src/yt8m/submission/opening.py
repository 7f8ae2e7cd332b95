"""Open a submission: a plain file, or one compressed with gzip or in a ZIP archive.

No file, however it was made, takes more than a bounded amount of memory and of unpacking: lines have a maximum length, and
what unpacks to far more than text does is refused.
"""

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO

from yt8m.errors import UsageError, Yt8mError, counted, reason_of

MAX_LINE_BYTES = 2**25
"""Bytes of a line, its end included: 100,000 segments of 335 bytes."""

MAX_RATIO = 100
"""Bytes that a byte of an archive may unpack to; submissions are compressed to a third or a quarter."""
FREE_BYTES = 2**24
"""Unpacked bytes to which `MAX_RATIO` does not apply: small files may be compressed better."""
MAX_UNPACKED_BYTES = 2**34
"""Unpacked bytes of an archive; 3,862 classes of 100,000 segments are about 4 GB."""

_BUFFER_BYTES = 2**20
_PACKED_BYTES = 2**16
_MAX_DIRECTORY_BYTES = 2**20
"""Bytes that list the files of a ZIP archive."""
_GZIP = 31
"""`wbits` of zlib: a gzip header and the largest window."""
_MAX_MEMBERS = 100_000
"""Members of gzip data: some programs compress blocks of 64 KB one by one."""
_DAMAGE = (EOFError, ValueError, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError, struct.error)
"""What zlib and zipfile raise for damaged, encrypted or unusual archives."""


@dataclass(frozen=True, eq=False)
class OpenedSubmission:
    """An open submission.

    Args:
        lines: Its lines; one longer than `MAX_LINE_BYTES` is cut after one byte more, and its rest follows.
        num_bytes: Size of all lines; None for an archive or a pipe.
    """

    lines: Iterator[bytes]
    num_bytes: int | None


@contextmanager
def opened_submission(path: Path) -> Iterator[OpenedSubmission]:
    """Open a submission to read its lines; archives are recognized by their first bytes.

    Raises:
        UsageError: The file is missing or cannot be opened.
        Yt8mError: It is an archive that is damaged, contains other than one file, or unpacks to too much.
    """
    try:
        file: io.BufferedReader = io.BufferedReader(io.FileIO(path), _BUFFER_BYTES)
        with file:
            unpacked = _unpacked(path, file)
            num_bytes = os.fstat(file.fileno()).st_size if unpacked is file and file.seekable() else None
            yield OpenedSubmission(iter(partial(unpacked.readline, MAX_LINE_BYTES + 1), b""), num_bytes)
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such file; expected a submission.") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read as a submission ({error.strerror}).") from None


def _unpacked(path: Path, file: io.BufferedReader) -> io.BufferedReader:
    """The submission in an open file."""
    head = file.peek(4)[:4]
    if head.startswith(b"\x1f\x8b"):
        gzip = _Gzip(file)
        return io.BufferedReader(_Unpacked(path, gzip.read, lambda: gzip.num_packed), _BUFFER_BYTES)
    if head == b"PK\x03\x04":
        member, num_packed = _only_member(path, file)
        return io.BufferedReader(_Unpacked(path, member.read, lambda: num_packed), _BUFFER_BYTES)
    return file


class _Unpacked(io.RawIOBase):
    """An unpacked file of limited size.

    Args:
        path: The archive, for messages.
        read: Unpacks at most a number of bytes; nothing at the end.
        num_packed: Bytes of the archive that the bytes so far were unpacked from, or more.
    """

    def __init__(self, path: Path, read: Callable[[int], bytes], num_packed: Callable[[], int]) -> None:
        self._path, self._read, self._num_packed = path, read, num_packed
        self._num_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # what io.BufferedReader passes
        try:
            data = self._read(len(buffer))
        except _DAMAGE as error:
            raise _damaged(self._path, error) from None
        self._num_bytes += len(data)
        limit = min(FREE_BYTES + MAX_RATIO * self._num_packed(), MAX_UNPACKED_BYTES)
        if self._num_bytes > limit:
            raise Yt8mError(f"{self._path}: unpacks to more than {limit:,} bytes; expected the size of a submission.")
        buffer[: len(data)] = data
        return len(data)


def _damaged(path: Path, error: Exception) -> Yt8mError:
    return Yt8mError(f"{path}: is a damaged, incomplete or encrypted archive ({reason_of(error)}); make it again.")


class _Gzip:
    """Unpacks gzip data of one or several members. Python's own reader takes a name in a header byte by byte."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._member = zlib.decompressobj(_GZIP)
        self._num_members = 1
        self._data = b""
        self.num_packed = 0

    def read(self, size: int) -> bytes:
        while True:
            if self._member.eof:
                self._data = self._member.unused_data.lstrip(b"\0")  # a tape's padding
            if not self._data:
                self._data = self._file.read(_PACKED_BYTES)
                self.num_packed += len(self._data)
            if self._member.eof:
                if not self._data:
                    return b""
                self._member = zlib.decompressobj(_GZIP)
                self._num_members += 1
                if self._num_members > _MAX_MEMBERS:
                    raise zlib.error(f"it has more than {_MAX_MEMBERS:,} members")
            elif not self._data:
                raise EOFError("its end is missing")
            unpacked = self._member.decompress(self._data, size)
            self._data = self._member.unconsumed_tail
            if unpacked:
                return unpacked


class _SmallReads(io.BufferedReader):
    """A ZIP archive, of which zipfile reads the list of its files at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(
            size if size is not None and 0 <= size <= _MAX_DIRECTORY_BYTES else _MAX_DIRECTORY_BYTES + 1
        )
        if len(data) > _MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile("it contains too many files")
        return data


def _only_member(path: Path, file: io.BufferedReader) -> tuple[IO[bytes], int]:
    """The only file in a ZIP archive, without those that macOS adds, and its size in the archive."""
    if not file.seekable():
        raise UsageError(f"{path}: is a ZIP archive in a pipe; unpack it first (unzip -p).")
    try:
        archive = zipfile.ZipFile(_SmallReads(file.raw))
        members = [info for info in archive.infolist() if not (info.is_dir() or _is_added_by_macos(info.filename))]
        if len(members) != 1:
            raise Yt8mError(f"{path}: is an archive of {counted(len(members), 'file')}; expected one submission in it.")
        if members[0].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise Yt8mError(
                f"{path}: is a ZIP archive compressed in an unusual way; make it again, or unpack it first."
            )
        return archive.open(members[0]), members[0].compress_size
    except _DAMAGE as error:
        raise _damaged(path, error) from None


def _is_added_by_macos(name: str) -> bool:
    return name.startswith("__MACOSX/") or PurePosixPath(name).name == ".DS_Store"
