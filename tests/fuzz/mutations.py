"""Mutations of records and shards that use the wire format, so that many of them pass the first checks of a reader.

A mutation picks a field by descending the tree at random, so the few fields of the context are chosen as often as the
many frames. Three of four mutations update the lengths around the field, the others leave them wrong. Records and
shards depend on a seed and a number alone.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from tests.fuzz.fields import Field, Path, every_field, replaced, tree
from tests.fuzz.seeds import valid_record
from tests.support.wire import bytes_feature, delimited, entry, frame_list, packed_integers, varint
from yt8m.shards.tfrecord import frame_record, masked_crc32c

NUMBERS = (
    *(0, 1, 2, 3, 4, 5, 8, 10, 26, 127, 128, 129, 255, 1000, 1023, 1024, 1025, 1027, 1030, 1031, 3861, 3862),
    *(2**exponent + step for exponent in (14, 21, 28, 31, 32, 35, 56, 63) for step in (-1, 0, 1)),
    2**64 - 1,
)
FLOATS = tuple(map(float, ("nan", "inf", "-inf", "1e38", "-0.0", "0.5", "2", "1e-45")))
BAD_IDS = (b"\xff\xfe", b"", b"a" * 64, b"a" * 65, b"a" * 5000, b"a b", b"ab\0", b"\xed\xa0\x80", "ä".encode()[:1])
NAMES = ("id", "video_id", "labels", "segment_labels", "segment_start_times", "segment_end_times", "segment_scores")
LIST_NAMES = ("rgb", "audio", "audio_embedding", "mean_rgb", "mean_audio")

FieldChange = Callable[[np.random.Generator, bytes, Field], bytes]
"""Returns the bytes that replace a field."""

PayloadChange = Callable[[np.random.Generator, bytes], bytes]

T = TypeVar("T")


def mutated_record(seed: int, number: int) -> bytes:
    """A valid record after up to five mutations, rarely none."""
    rng = np.random.default_rng([seed, number])
    payload = valid_record(rng)
    for _ in range(min(int(rng.geometric(0.45)) - (rng.random() < 0.1), 5)):
        payload = _changed(rng, payload)
    return payload


def mutated_shard(seed: int, number: int) -> tuple[list[bytes], bytes]:
    """Up to 30 records, half of them valid, and their shard after up to two mutations of its framing."""
    rng = np.random.default_rng([seed, number, 1])
    records = []
    for _ in range(int(rng.integers(0, 31))):
        payload = valid_record(rng)
        # Mostly unique ids: videos with repeated ids are dropped and never read.
        payload = _with_id(rng, payload) if rng.random() < 0.8 else payload
        records.append(_changed(rng, payload) if rng.random() < 0.5 else payload)
    shard = b"".join(map(frame_record, records))
    for _ in range(int(rng.choice([0, 1, 2], p=[0.3, 0.5, 0.2]))):
        shard = _framing_changed(rng, shard)
    return records, shard


def _changed(rng: np.random.Generator, payload: bytes) -> bytes:
    match rng.choice(["bytes", "section", "field"], p=[0.25, 0.15, 0.6]):
        case "bytes":
            return _one_of(rng, BYTE_CHANGES)(rng, payload)
        case "section":
            return _add_section(rng, payload)
    path = _some_path(rng, payload)
    new = _one_of(rng, FIELD_CHANGES)(rng, payload, path[-1])
    return replaced(payload, path, new, update_lengths=rng.random() < 0.75)


def _one_of(rng: np.random.Generator, choices: tuple[T, ...]) -> T:
    return choices[rng.integers(len(choices))]


def _some_path(rng: np.random.Generator, payload: bytes) -> Path:
    """The path of a field, chosen child by child; that of the record if there is none."""
    path = [tree(payload)]
    while path[-1].children and (len(path) == 1 or rng.random() < 0.75):
        path.append(_one_of(rng, path[-1].children))
    return tuple(path)


def _with_id(rng: np.random.Generator, payload: bytes) -> bytes:
    return payload + delimited(1, entry("id", bytes_feature(b"%08x" % rng.integers(2**32))))


# --- Mutations of bytes -----------------------------------------------------------------------------------------------


def _place(rng: np.random.Generator, payload: bytes) -> int:
    """A byte position: mostly in a header or a short field, rarely in a frame."""
    if rng.random() < 0.15:
        return int(rng.integers(0, len(payload) + 1))
    places = [
        at
        for field in every_field(_some_path(rng, payload)[-1])
        for at in range(field.start, min(field.end, field.begin + (2 if field.children else 16)))
    ]
    return places[rng.integers(len(places))] if places else 0


def _flip_bit(rng: np.random.Generator, payload: bytes) -> bytes:
    changed = bytearray(payload)
    at = _place(rng, payload)
    if at < len(changed):
        changed[at] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _set_byte(rng: np.random.Generator, payload: bytes) -> bytes:
    at = _place(rng, payload)
    value = _one_of(rng, (0, 1, 0x7F, 0x80, 0xFF, int(rng.integers(256))))
    return payload[:at] + bytes([value]) + payload[at + 1 :]


def _truncate(rng: np.random.Generator, payload: bytes) -> bytes:
    return payload[: _place(rng, payload)]


def _insert(rng: np.random.Generator, payload: bytes) -> bytes:
    at = _place(rng, payload)
    return payload[:at] + rng.bytes(int(rng.integers(1, 12))) + payload[at:]


def _span(rng: np.random.Generator, payload: bytes) -> tuple[int, int]:
    first, second = sorted((_place(rng, payload), _place(rng, payload)))
    return (first, second) if rng.random() < 0.3 else (first, first + int(rng.integers(1, 9)))


def _delete_span(rng: np.random.Generator, payload: bytes) -> bytes:
    start, stop = _span(rng, payload)
    return payload[:start] + payload[stop:]


def _duplicate_span(rng: np.random.Generator, payload: bytes) -> bytes:
    start, stop = _span(rng, payload)
    return payload[:stop] + payload[start:stop] * int(rng.integers(1, 4)) + payload[stop:]


def _swap_spans(rng: np.random.Generator, payload: bytes) -> bytes:
    first, second, third = sorted(_place(rng, payload) for _ in range(3))
    return payload[:first] + payload[second:third] + payload[first:second] + payload[third:]


def _overwrite_number(rng: np.random.Generator, payload: bytes) -> bytes:
    at, number = _place(rng, payload), _some_number(rng)
    return payload[:at] + number + payload[at + (len(number) if rng.random() < 0.5 else 1) :]


def _splice(rng: np.random.Generator, payload: bytes) -> bytes:
    other = valid_record(rng)
    return payload[: _place(rng, payload)] + other[_place(rng, other) :]


BYTE_CHANGES: tuple[PayloadChange, ...] = (
    *(_flip_bit, _set_byte, _truncate, _insert, _delete_span, _duplicate_span, _swap_spans, _overwrite_number, _splice),
)


# --- Mutations of fields ----------------------------------------------------------------------------------------------


def _some_number(rng: np.random.Generator) -> bytes:
    """An extreme number, at times padded to more bytes than it needs or than any number has."""
    number = varint(_one_of(rng, NUMBERS))
    return _padded(number, int(rng.integers(2, 13))) if rng.random() < 0.25 else number


def _padded(number: bytes, length: int) -> bytes:
    missing = length - len(number)
    return number if missing <= 0 else number[:-1] + bytes([number[-1] | 0x80]) + b"\x80" * (missing - 1) + b"\0"


def _key(field: Field) -> bytes:
    return varint(8 * field.number + field.wire_type)


def _raw(payload: bytes, field: Field) -> bytes:
    return payload[field.start : field.end]


def _content(payload: bytes, field: Field) -> bytes:
    return payload[field.begin : field.end]


def _with_content(field: Field, content: bytes) -> bytes:
    """The field with other content and its length updated."""
    if field.number == 0:
        return content
    return _key(field) + (varint(len(content)) if field.wire_type == 2 else b"") + content


def _delete(rng: np.random.Generator, payload: bytes, field: Field) -> bytes:
    return b""


def _repeat(rng: np.random.Generator, payload: bytes, field: Field) -> bytes:
    raw = _raw(payload, field)
    # A message may have at most 1,000 parts.
    return raw * _one_of(rng, (2, 2, 3, 999, 1001) if len(raw) < 40 else (2, 2, 3))


def _renumber(rng: np.random.Generator, payload: bytes, field: Field) -> bytes:
    number = _one_of(rng, (0, 1, 2, 3, 4, 15, 16, 2**29 - 1, 2**29, 2**32 + 1))
    return varint(8 * number + field.wire_type) + _raw(payload, field)[len(_key(field)) :]


def _retype(rng: np.random.Generator, payload: bytes, field: Field) -> bytes:
    return (
        varint(8 * field.number + _one_of(rng, (0, 1, 2, 5) if rng.random() < 0.7 else (3, 4, 6, 7)))
        + _raw(payload, field)[len(_key(field)) :]
    )


def _pad_key(rng: np.random.Generator, payload: bytes, field: Field) -> bytes:
    return _padded(_key(field), int(rng.integers(2, 12))) + _raw(payload, field)[len(_key(field)) :]


def _pad_length(rng: np.random.Generator, payload: bytes, field: Field) -> bytes:
    length = _padded(varint(field.end - field.begin), int(rng.integers(2, 12)))
    return _key(field) + length + _content(payload, field)


def _change_length(rng: np.random.Generator, payload: bytes, field: Field) -> bytes:
    length = field.end - field.begin
    near = varint(max(0, length + int(rng.choice([-1000, -2, -1, 1, 2, 1000]))))
    return _key(field) + (near if rng.random() < 0.5 else _some_number(rng)) + _content(payload, field)


def _resize(rng: np.random.Generator, payload: bytes, field: Field) -> bytes:
    """Shorten or extend the content, most often by one byte."""
    content = _content(payload, field)
    match rng.integers(4):
        case 0:
            content = content[:-1]
        case 1:
            content = content[: int(rng.integers(0, len(content) + 1))]
        case 2:
            content += b"\0"
        case _:
            content += rng.bytes(int(rng.integers(1, 40)))
    return _with_content(field, content)


def _nest(rng: np.random.Generator, payload: bytes, field: Field) -> bytes:
    raw = _raw(payload, field)
    for _ in range(_one_of(rng, (1, 1, 2, 50))):
        raw = delimited(int(rng.integers(1, 4)), raw)
    return raw


def _unnest(rng: np.random.Generator, payload: bytes, field: Field) -> bytes:
    return _content(payload, field)


def _group(rng: np.random.Generator, payload: bytes, field: Field) -> bytes:
    """Complete or incomplete groups, a deprecated form of nesting that protobuf still parses."""
    number = int(rng.integers(1, 17))
    start, stop = varint(8 * number + 3), varint(8 * (number + int(rng.random() < 0.15)) + 4)
    match rng.integers(4):
        case 0:
            return start + stop + _raw(payload, field)
        case 1:
            return _raw(payload, field) + start
        case 2:
            return stop + _raw(payload, field)
        case _:
            return start + _raw(payload, field) + stop


def _split(rng: np.random.Generator, payload: bytes, field: Field) -> bytes:
    """A message in two parts, split between its fields; equivalent in protobuf."""
    cuts = [child.start for child in field.children] or [field.begin + int(rng.integers(0, 4))]
    cut = _one_of(rng, tuple(cuts))
    return b"".join(_with_content(field, part) for part in (payload[field.begin : cut], payload[cut : field.end]))


def _shuffle(rng: np.random.Generator, payload: bytes, field: Field) -> bytes:
    children = [_raw(payload, child) for child in field.children]
    rng.shuffle(children)
    return _with_content(field, b"".join(children)) if children else _raw(payload, field)


def _double_child(rng: np.random.Generator, payload: bytes, field: Field) -> bytes:
    """A copy of one field at the end, which overrides or extends the first one."""
    again = _raw(payload, _one_of(rng, field.children)) if field.children else rng.bytes(2)
    return _with_content(field, _content(payload, field) + again)


def _transplant(rng: np.random.Generator, payload: bytes, field: Field) -> bytes:
    """A field of another record, in place of this one or after it."""
    other = valid_record(rng)
    foreign = _raw(other, _some_path(rng, other)[-1])
    return foreign if rng.random() < 0.5 else _raw(payload, field) + foreign


def _rename(rng: np.random.Generator, payload: bytes, field: Field) -> bytes:
    name = _one_of(rng, (*NAMES, *LIST_NAMES, "", "unknown")).encode()
    name = _one_of(rng, (name, name, b"\xff\xfe", name + b"\xc3"))
    if field.children and field.children[0].number == 1 and not field.children[0].is_message:
        return _with_content(field, delimited(1, name) + payload[field.children[0].end : field.end])
    return delimited(1, name)


def _replace_value(rng: np.random.Generator, payload: bytes, field: Field) -> bytes:
    if field.wire_type == 0:
        return _key(field) + _some_number(rng)
    if field.wire_type == 5:
        return _key(field) + struct.pack("<f", _one_of(rng, FLOATS))
    numbers = b"".join(_some_number(rng) for _ in range(rng.integers(0, 4)))
    return _with_content(field, numbers if rng.random() < 0.7 else _one_of(rng, BAD_IDS))


FIELD_CHANGES: tuple[FieldChange, ...] = (
    *(_delete, _repeat, _renumber, _retype, _pad_key, _pad_length, _change_length, _resize, _nest, _unnest, _group),
    *(_split, _shuffle, _double_child, _transplant, _rename, _replace_value),
)


# --- Added sections ---------------------------------------------------------------------------------------------------


def _odd_entry(rng: np.random.Generator) -> bytes:
    """A context with one entry of invalid values."""
    numbers = [_one_of(rng, NUMBERS) for _ in range(rng.integers(0, 5))]
    floats = struct.pack("<5f", *(_one_of(rng, FLOATS) for _ in range(5)))
    values = (
        bytes_feature(*[_one_of(rng, BAD_IDS) for _ in range(rng.integers(0, 3))]),
        packed_integers(*numbers),
        delimited(2, delimited(1, floats[: int(rng.choice([0, 4, 8, 12, 20, 7]))])),
        delimited(3, delimited(1, b"".join(_some_number(rng) for _ in range(3)))),
        b"",
    )
    if rng.random() < 0.3:
        return delimited(1, entry(_one_of(rng, ("id", "video_id")), values[0]))
    return delimited(1, entry(_one_of(rng, (*NAMES, *LIST_NAMES)), _one_of(rng, values)))


def _odd_list(rng: np.random.Generator) -> bytes:
    """Feature lists with one entry, whose frames have slightly wrong sizes."""
    frames = [
        bytes([number]) * _one_of(rng, (0, 1, 127, 128, 128, 129, 1023, 1024, 1024, 1025))
        for number in range(rng.integers(0, 3))
    ]
    return delimited(2, entry(_one_of(rng, LIST_NAMES), frame_list(frames)))


def _add_section(rng: np.random.Generator, payload: bytes) -> bytes:
    """Another section before or after the others; protobuf merges sections, and the last entry of a name is used."""
    section = _odd_entry(rng) if rng.random() < 0.7 else _odd_list(rng)
    return payload + section if rng.random() < 0.7 else section + payload


# --- Mutations of the framing -----------------------------------------------------------------------------------------


def _starts(shard: bytes) -> list[int]:
    """Starts of records, as far as the lengths are valid."""
    starts, at = [], 0
    while at + 12 <= len(shard):
        starts.append(at)
        at += 16 + int(struct.unpack_from("<Q", shard, at)[0])
    return starts


def _some_start(rng: np.random.Generator, shard: bytes) -> int:
    return _one_of(rng, tuple(_starts(shard)) or (0,))


def _header(length: int) -> bytes:
    raw = struct.pack("<Q", length)
    return raw + struct.pack("<I", masked_crc32c(raw))


def _wrong_length(rng: np.random.Generator, shard: bytes) -> bytes:
    """A wrong length with a correct checksum."""
    at = _some_start(rng, shard)
    length = struct.unpack_from("<Q", shard.ljust(at + 8, b"\0"), at)[0]
    near = tuple(max(0, length + step) for step in (-16, -1, 1, 16))
    return shard[:at] + _header(_one_of(rng, near + NUMBERS)) + shard[at + 12 :]


def _damage_header(rng: np.random.Generator, shard: bytes) -> bytes:
    at = _some_start(rng, shard) + int(rng.integers(12))
    return shard[:at] + bytes([int(rng.integers(256))]) + shard[at + 1 :]


def _damage_payload(rng: np.random.Generator, shard: bytes) -> bytes:
    changed = bytearray(shard)
    if changed:
        changed[rng.integers(len(changed))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _cut_shard(rng: np.random.Generator, shard: bytes) -> bytes:
    near_start = _some_start(rng, shard) + int(rng.integers(0, 20))
    return shard[: _one_of(rng, (near_start, int(rng.integers(0, len(shard) + 1))))]


def _trail_garbage(rng: np.random.Generator, shard: bytes) -> bytes:
    garbage = (rng.bytes(int(rng.integers(1, 40))), bytes(int(rng.integers(1, 40))), shard[:100], _header(2**40))
    return shard + _one_of(rng, garbage)


def _empty(rng: np.random.Generator, shard: bytes) -> bytes:
    return _one_of(rng, (b"", frame_record(b""), b"\0"))


def _move_records(rng: np.random.Generator, shard: bytes) -> bytes:
    first, second = sorted((_some_start(rng, shard), _some_start(rng, shard)))
    middle = shard[first:second]
    return shard[:first] + _one_of(rng, (b"", middle * 2, middle[::-1])) + shard[second:]


SHARD_CHANGES: tuple[PayloadChange, ...] = (
    *(_wrong_length, _damage_header, _damage_payload, _damage_payload, _cut_shard, _trail_garbage, _move_records),
)


def _framing_changed(rng: np.random.Generator, shard: bytes) -> bytes:
    return _empty(rng, shard) if rng.random() < 0.03 else _one_of(rng, SHARD_CHANGES)(rng, shard)
