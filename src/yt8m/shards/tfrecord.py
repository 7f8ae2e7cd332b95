"""TFRecord framing: where each record lies in a shard, and whether its bytes are what was written.

A record is its length (uint64, little endian), the masked CRC32C of those eight bytes, the payload, and the payload's
masked CRC32C (SPEC: the data). A payload with a bad checksum loses that record alone, since its length still says where
the next one begins; a bad length, or an end in the middle of a record, loses the rest of the shard.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import numpy as np

from yt8m.errors import ShardError

MAX_RECORD_BYTES = 64 * 2**20
"""Longest payload that is read. A video of 300 frames takes 350 kB; 64 MiB would be one of 15 hours."""

_LENGTH = struct.Struct("<Q")
_CHECKSUM = struct.Struct("<I")
_HEADER = struct.Struct("<QI")
_MASK_DELTA = 0xA282EAD8


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a shard.

    Args:
        number: Its number in the shard, from 0.
        offset: Where the payload begins in the shard, in bytes.
        payload: The payload, a view into the shard.
        damage: Why the payload cannot be trusted, or None where nothing is known against it.
    """

    number: int
    offset: int
    payload: memoryview
    damage: ShardError | None


def masked_crc32c(data: bytes | memoryview) -> int:
    """CRC32C in the form that TFRecord files keep: rotated right by 15 bits, plus a constant."""
    # The library takes plain bytes and read-only arrays, not memoryviews: the array spares a copy of every payload.
    crc: int = google_crc32c.value(np.frombuffer(data, np.uint8) if len(data) else b"")
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def frame_record(payload: bytes) -> bytes:
    """The bytes of one record as they stand in a shard."""
    length = _LENGTH.pack(len(payload))
    return b"".join([length, _CHECKSUM.pack(masked_crc32c(length)), payload, _CHECKSUM.pack(masked_crc32c(payload))])


def map_shard(path: Path) -> mmap.mmap:
    """Map a shard into memory, read-only.

    Raises:
        ShardError: The shard is missing, empty, or cannot be opened.
    """
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:
        raise ShardError(path, "the file is empty.") from None
    except OSError as error:
        raise ShardError(path, f"cannot be opened ({error.strerror}).") from None


def iterate_records(data: bytes | mmap.mmap, path: Path, *, verify: bool = True) -> Iterator[Record]:
    """Walk over the records of a shard.

    Args:
        data: The bytes of the shard.
        path: Its name, for messages.
        verify: Whether to compute the checksum of each payload. That of the length is always looked at, so an absurd
            length is noticed before anything is done with it.

    Yields:
        The records in order. One whose payload is damaged comes with `damage` set, and the walk goes on behind it.

    Raises:
        ShardError: The shard ends in the middle of a record, or a length cannot be trusted; nothing behind it can
            be found. The records before it have been yielded.
    """
    view = memoryview(data).toreadonly()
    start = number = 0
    while start < len(view):
        offset = start + _HEADER.size
        if offset > len(view):
            message = f"the shard ends inside a record's header ({len(view) - start} of {_HEADER.size} bytes)."
            raise ShardError(path, message, record=number, offset=start)
        length, checksum = _HEADER.unpack_from(view, start)
        if checksum != masked_crc32c(view[start : start + _LENGTH.size]):
            raise ShardError(path, "the checksum of the record's length is wrong.", record=number, offset=start)
        missing = offset + length + _CHECKSUM.size - len(view)
        if missing > 0:
            message = f"the shard ends inside a record ({missing} bytes are missing)."
            raise ShardError(path, message, record=number, offset=start)
        payload = view[offset : offset + length]
        damage = None
        if length > MAX_RECORD_BYTES:
            damage = f"a record of {length:,} bytes, expected at most {MAX_RECORD_BYTES:,}."
        elif verify and _CHECKSUM.unpack_from(view, offset + length)[0] != masked_crc32c(payload):
            damage = "the checksum of the record's payload is wrong."
        error = None if damage is None else ShardError(path, damage, record=number, offset=offset)
        yield Record(number, offset, payload, error)
        start = offset + length + _CHECKSUM.size
        number += 1
