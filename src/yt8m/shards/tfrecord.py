"""TFRecord framing: where the records of a shard are, and whether their bytes are intact.

A record is its length (uint64, little endian), the masked CRC32C of those eight bytes, the payload, and the payload's
masked CRC32C. A payload with a wrong checksum costs only that record, since its length still locates the next one; a
wrong length, or an end in the middle of a record, costs the rest of the shard.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import numpy as np

from yt8m.errors import ShardError
from yt8m.shards.contents import ShardWindow, crc32c
from yt8m.shards.foreign import HEAD_BYTES, describe_foreign_file

MAX_RECORD_BYTES = 64 * 2**20
"""Longest payload to read. A video of 300 frames takes 350 kB; 64 MiB would be one of 15 hours."""

_LENGTH = struct.Struct("<Q")
_CHECKSUM = struct.Struct("<I")
_HEADER = struct.Struct("<QI")
HEADER_BYTES = _HEADER.size
"""Bytes of a record before its payload."""

FRAMING_BYTES = _HEADER.size + _CHECKSUM.size
"""Bytes of a record besides its payload."""

_MASK_DELTA = 0xA282EAD8


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a shard.

    Args:
        number: Its number in the shard, from 0.
        offset: Byte offset of the payload in the shard.
        payload: The payload, a view into the shard: valid until the next record. Empty where it is too long.
        checksum: The masked CRC32C of the payload that the shard has.
        damage: Why the payload is damaged; None where it is intact.
    """

    number: int
    offset: int
    payload: memoryview
    checksum: int
    damage: ShardError | None


def masked_crc32c(data: bytes | memoryview) -> int:
    """CRC32C as TFRecord files store it: rotated right by 15 bits, plus a constant."""
    # The library accepts bytes and read-only arrays, not memoryviews; the array avoids copying the payload.
    crc: int = google_crc32c.value(np.frombuffer(data, np.uint8) if len(data) else b"")
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def frame_record(payload: bytes) -> bytes:
    """Frame a payload as a record of a shard."""
    length = _LENGTH.pack(len(payload))
    return b"".join([length, _CHECKSUM.pack(masked_crc32c(length)), payload, _CHECKSUM.pack(masked_crc32c(payload))])


def framing_checksum(framing: list[tuple[int, int]]) -> int:
    """A checksum of a shard of intact records: CRC32C of the offset and checksum of each, as int64."""
    return crc32c(np.array(framing, np.int64).reshape(-1))


def iterate_records(data: bytes | ShardWindow, path: Path, *, verify: bool = True) -> Iterator[Record]:
    """Iterate over the records of a shard.

    Args:
        data: The bytes of the shard.
        path: Its path, for messages.
        verify: Whether to verify the checksum of each payload. That of the length is always verified, so an invalid
            length is never used.

    Yields:
        The records in order. A record with a damaged payload has `damage` set, and iteration continues after it.

    Raises:
        ShardError: The shard ends inside a record, or a length is damaged, so that the rest cannot be located; or the
            file is no TFRecord file. The records before have been yielded.
    """
    view = memoryview(data) if isinstance(data, bytes) else data
    start = number = 0
    while start < len(view):
        offset = start + _HEADER.size
        if offset > len(view):
            message = f"the shard ends inside a record's header ({len(view) - start} of {_HEADER.size} bytes)."
            raise ShardError(path, message, record=number, offset=start)
        header = view[start:offset]
        length, checksum = _HEADER.unpack(header)
        if checksum != masked_crc32c(header[: _LENGTH.size]):
            foreign = describe_foreign_file(view[:HEAD_BYTES]) if number == 0 else None
            message = foreign or "the checksum of the record's length is wrong."
            raise ShardError(path, message, record=number, offset=start)
        missing = offset + length + _CHECKSUM.size - len(view)
        if missing > 0:
            message = f"the shard ends inside a record ({missing} bytes are missing)."
            raise ShardError(path, message, record=number, offset=start)
        end = offset + length
        damage = None
        if length > MAX_RECORD_BYTES:
            damage = f"a record of {length:,} bytes, expected at most {MAX_RECORD_BYTES:,}."
            payload, trailer = view[end:end], view[end : end + _CHECKSUM.size]
        else:
            both = view[offset : end + _CHECKSUM.size]
            payload, trailer = both[:length], both[length:]
        (checksum,) = _CHECKSUM.unpack(trailer)
        if damage is None and verify and checksum != masked_crc32c(payload):
            damage = "the checksum of the record's payload is wrong."
        error = None if damage is None else ShardError(path, damage, record=number, offset=offset)
        yield Record(number, offset, payload, checksum, error)
        start = end + _CHECKSUM.size
        number += 1
