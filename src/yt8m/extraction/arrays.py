"""NumPy's files and archives from other people: bounded, and without pickles. Archives are never extracted to paths."""

import io
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yt8m.errors import UsageError, Yt8mError

MAX_ARRAY_BYTES = 2**27
"""Largest array to accept."""

MAX_ARCHIVE_BYTES = 2**28
"""Most bytes that an archive may expand to. That of Inception-v3 has 97 MB."""

_MAX_MEMBERS = 1000
_MAX_HEADER_BYTES = 10_000
_BLOCK_BYTES = 2**20


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """Read a file.

    Raises:
        UsageError: It cannot be read.
        Yt8mError: It is larger than this.
    """
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}).") from None
    if len(content) > max_bytes:
        raise Yt8mError(f"{path}: has more than {max_bytes:,} bytes, which no file of this kind has.")
    return content


def parse_npy(content: bytes, source: str) -> NDArray[Any]:
    """Parse an array of floating-point or unsigned 8-bit numbers in NumPy's format.

    Args:
        content: Bytes of a .npy file.
        source: The file, for messages.

    Raises:
        Yt8mError: It is damaged, or contains something else.
    """
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[
            version
        ]
        shape, is_fortran, dtype = read_header(file, max_header_size=_MAX_HEADER_BYTES)
    # Headers are Python literals, so damage raises nearly anything: SyntaxError, KeyError, TypeError, MemoryError...
    except Exception as error:
        reason = " ".join(str(error).split())[:80].rstrip(". ")
        raise Yt8mError(f"{source}: is damaged, or is no array of NumPy ({reason or type(error).__name__}).") from None
    if dtype.hasobject or dtype.kind not in "fu" or dtype.itemsize > 8 or (dtype.kind == "u" and dtype.itemsize > 1):
        what = "pickled objects, which are not read" if dtype.hasobject else str(dtype)[:60]
        raise Yt8mError(f"{source}: contains {what}; expected floating-point numbers or bytes.")
    num_bytes = dtype.itemsize
    for size in shape:
        num_bytes *= size
    if num_bytes > MAX_ARRAY_BYTES or num_bytes != len(content) - file.tell():
        raise Yt8mError(
            f"{source}: is damaged: its shape {str(shape)[:60]} needs {num_bytes:,} bytes, and it has "
            f"{len(content) - file.tell():,}."
        )
    values = np.frombuffer(content, dtype, offset=file.tell())
    return values.reshape(shape, order="F" if is_fortran else "C")


def read_npz(path: Path, max_bytes: int = MAX_ARRAY_BYTES) -> dict[str, NDArray[Any]]:
    """Read the arrays of a .npz file by name.

    Args:
        path: The file.
        max_bytes: Most bytes of all arrays.

    Raises:
        UsageError: It cannot be read.
        Yt8mError: It is damaged, too large, or contains anything but numbers.
    """
    return parse_npz(read_bounded(path, max_bytes), path, max_bytes)


def parse_npz(content: bytes, path: Path, max_bytes: int = MAX_ARRAY_BYTES) -> dict[str, NDArray[Any]]:
    """Parse the content of a .npz file; `path` is for messages.

    Raises:
        Yt8mError: It is damaged, too large, or contains anything but numbers.
    """
    arrays: dict[str, NDArray[Any]] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            if len(members) > _MAX_MEMBERS:
                raise Yt8mError(f"{path}: is an archive of {len(members):,} files; expected a few arrays.")
            remaining = max_bytes
            for member in members:
                # The announced size may be wrong.
                with archive.open(member) as file:
                    expanded = file.read(remaining + 1)
                remaining -= len(expanded)
                if remaining < 0:
                    raise Yt8mError(f"{path}: expands to more than {max_bytes:,} bytes.")
                name = member.filename.removesuffix(".npy")
                arrays[name] = parse_npy(expanded, f"{path}, {name[:60]}")
    except Yt8mError:
        raise
    # BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError (encrypted), OverflowError...
    except Exception as error:
        raise Yt8mError(f"{path}: is damaged, or is no .npz file ({_reason(error)}).") from None
    return arrays


def read_tgz(path: Path, max_bytes: int, names: tuple[str, ...]) -> dict[str, bytes]:
    """Read files from a tar archive that is compressed with gzip.

    Args:
        path: The archive.
        max_bytes: Most bytes of the archive.
        names: Names of the files, in whatever folder of the archive.

    Returns:
        Their contents by name.

    Raises:
        UsageError: The archive cannot be read.
        Yt8mError: It is damaged, expands to too much, or lacks a file.
    """
    expanded = _gunzip(read_bounded(path, max_bytes), path)
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(expanded), mode="r:") as archive:
            for count, member in enumerate(archive):
                if count == _MAX_MEMBERS:
                    raise Yt8mError(f"{path}: is an archive of more than {_MAX_MEMBERS:,} files.")
                name = member.name.rpartition("/")[2]
                # A sparse file has any size in a few bytes.
                if name in names and member.isreg() and not member.issparse() and member.size <= len(expanded):
                    file = archive.extractfile(member)
                    found[name] = b"" if file is None else file.read()
    except Yt8mError:
        raise
    # TarError, ValueError, OverflowError, UnicodeDecodeError, RecursionError...
    except Exception as error:
        raise Yt8mError(f"{path}: is damaged, or is no tar archive ({_reason(error)}).") from None
    missing = [name for name in names if name not in found]
    if missing:
        raise Yt8mError(f"{path}: does not contain {', '.join(missing)}; it is another archive.")
    return found


def _gunzip(content: bytes, path: Path) -> bytes:
    """Expand a gzip file, and verify its checksum."""
    stream = zlib.decompressobj(wbits=31)
    expanded = bytearray()
    try:
        for begin in range(0, len(content), _BLOCK_BYTES):
            block = content[begin : begin + _BLOCK_BYTES]
            while block and not stream.eof:
                expanded += stream.decompress(block, _BLOCK_BYTES)
                block = stream.unconsumed_tail
                if len(expanded) > MAX_ARCHIVE_BYTES:
                    raise Yt8mError(f"{path}: expands to more than {MAX_ARCHIVE_BYTES:,} bytes.")
    except zlib.error as error:
        raise Yt8mError(f"{path}: is damaged, or is not compressed with gzip ({_reason(error)}).") from None
    if not stream.eof:
        raise Yt8mError(f"{path}: is incomplete: its end is missing.")
    return bytes(expanded)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:80].rstrip(". ") or type(error).__name__
