"""TFRecord framing: records, checksums, truncation and limits."""

from __future__ import annotations

import struct
from pathlib import Path

import google_crc32c
import pytest

from yt8m.errors import ShardError
from yt8m.shards import tfrecord
from yt8m.shards.tfrecord import frame_record, iterate_records, masked_crc32c

PATH = Path("some.tfrecord")
PAYLOADS = [b"first", b"", b"the third and longest"]
SHARD = b"".join(map(frame_record, PAYLOADS))
STARTS = [0, 21, 37, 74]  # a record is 16 bytes and its payload


def walk(data: bytes, *, verify: bool = True) -> tuple[list[tuple[int, int, bytes, str | None]], ShardError | None]:
    """All records of a shard, and the error that ends the iteration, if any."""
    found: list[tuple[int, int, bytes, str | None]] = []
    try:
        for record in iterate_records(data, PATH, verify=verify):
            damage = None if record.damage is None else str(record.damage)
            found.append((record.number, record.offset, bytes(record.payload), damage))
    except ShardError as error:
        return found, error
    return found, None


def test_checksums_equal_the_published_values() -> None:
    # The check value of CRC-32C for "123456789" is 0xE3069283; TFRecord rotates it right by 15 and adds 0xA282EAD8.
    assert masked_crc32c(b"123456789") == ((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8) % 2**32
    assert masked_crc32c(b"") == 0xA282EAD8


def test_records_have_numbers_and_offsets() -> None:
    found, error = walk(SHARD)
    assert error is None
    assert found == [(0, 12, PAYLOADS[0], None), (1, 33, PAYLOADS[1], None), (2, 49, PAYLOADS[2], None)]


def test_truncation_at_any_byte_is_an_error_after_the_complete_records() -> None:
    for length in range(len(SHARD)):
        found, error = walk(SHARD[:length])
        whole = max(i for i, start in enumerate(STARTS) if start <= length)
        assert [payload for _, _, payload, _ in found] == PAYLOADS[:whole]
        if length in STARTS:
            assert error is None
        else:
            assert error is not None
            assert (error.path, error.record, error.offset) == (PATH, whole, STARTS[whole])
            assert "the shard ends inside a record" in str(error)


def test_any_flipped_bit_is_detected() -> None:
    for bit in range(8 * len(SHARD)):
        data = bytearray(SHARD)
        data[bit // 8] ^= 1 << bit % 8
        found, error = walk(bytes(data))
        hit = max(i for i, start in enumerate(STARTS) if start <= bit // 8)
        if bit // 8 - STARTS[hit] < 12:
            assert error is not None
            assert (error.record, error.offset) == (hit, STARTS[hit])
            assert len(found) == hit
        else:
            assert error is None
            assert [damage is not None for _, _, _, damage in found] == [i == hit for i in range(3)]
            assert f"record {hit}, byte {STARTS[hit] + 12}: the checksum" in str(found[hit][3])


def test_without_verification_only_checksums_of_lengths_are_checked() -> None:
    damaged = bytearray(SHARD)
    damaged[13] ^= 1
    assert walk(bytes(damaged), verify=False)[0][0] == (0, 12, b"fhrst", None)
    damaged[0] ^= 1
    assert walk(bytes(damaged), verify=False)[1] is not None


def test_a_wrong_length_with_a_correct_checksum_ends_the_shard() -> None:
    length = struct.pack("<Q", 2**63)
    header = length + struct.pack("<I", masked_crc32c(length))
    found, error = walk(SHARD + header + b"some more bytes")
    assert len(found) == 3
    assert error is not None
    assert f"{2**63 + 4 - 15} bytes are missing" in str(error)


def test_a_record_above_the_size_limit_is_damaged_and_the_next_one_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tfrecord, "MAX_RECORD_BYTES", 10)
    found, error = walk(SHARD)
    assert error is None
    assert [damage is None for *_, damage in found] == [True, True, False]
    assert "21 bytes, expected at most 10" in str(found[2][3])


def test_checksums_are_computed_by_the_c_library() -> None:
    # The pure Python implementation would make indexing a thousand times slower.
    assert google_crc32c.implementation == "c"
