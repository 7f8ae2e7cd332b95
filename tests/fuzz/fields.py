"""A plain parser of the protobuf wire format: a record as a tree of fields with their positions.

Unlike the reader under test it parses every message of the schema. So a mutation can change any field, with or without
updating the lengths around it, and the checker can determine which fields a record contains.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

from tests.support.wire import varint

Schema = Mapping[int, Any]
"""Field numbers of a message's messages, each with its own schema (tensorflow/core/example/{example,feature}.proto)."""

FEATURE: Schema = {1: {}, 2: {}, 3: {}}
RECORD: Schema = {1: {1: {2: FEATURE}}, 2: {1: {2: {1: FEATURE}}}}


@dataclass(frozen=True, slots=True)
class Field:
    """A field: its key is at `start`, its content (in a group: its fields) at `begin`, and it ends before `end`."""

    number: int
    wire_type: int
    start: int
    begin: int
    end: int
    is_message: bool
    children: tuple[Field, ...]


Path = tuple[Field, ...]
"""A field preceded by all messages that contain it, the record first."""


@lru_cache(maxsize=4)
def tree(payload: bytes) -> Field:
    """The record as a field with number 0 and without a header. An invalid message has no children."""
    return Field(0, 2, 0, 0, len(payload), True, _children(payload, 0, len(payload), RECORD))


def every_field(field: Field) -> Iterator[Field]:
    """A field and all fields inside it."""
    yield field
    for child in field.children:
        yield from every_field(child)


def replaced(payload: bytes, path: Path, new: bytes, *, update_lengths: bool) -> bytes:
    """The payload with a field replaced by other bytes; with `update_lengths` the lengths around it are updated."""
    if not update_lengths:
        return payload[: path[-1].start] + new + payload[path[-1].end :]
    for child, parent in pairwise(reversed(path)):
        new = payload[parent.begin : child.start] + new + payload[child.end : parent.end]
        if parent.number:
            new = varint(8 * parent.number + 2) + varint(len(new)) + new
    return new


def _children(payload: bytes, start: int, stop: int, schema: Schema) -> tuple[Field, ...]:
    try:
        return tuple(_fields(payload, start, stop, schema))
    except ValueError:
        return ()


def _fields(payload: bytes, start: int, stop: int, schema: Schema) -> Iterator[Field]:
    at = start
    while at < stop:
        field = _field(payload, at, stop, schema)
        yield field
        at = field.end


def _field(payload: bytes, start: int, stop: int, schema: Schema) -> Field:
    key, begin = _number(payload, start, stop)
    number, wire_type = divmod(key, 8)
    children: tuple[Field, ...] = ()
    match wire_type:
        case 0:
            end = _number(payload, begin, stop)[1]
        case 1:
            end = begin + 8
        case 2:
            length, begin = _number(payload, begin, stop)
            end = begin + length
            if number in schema and end <= stop:
                children = _children(payload, begin, end, schema[number])
        case 3:
            end = begin
            while True:
                key, behind = _number(payload, end, stop)
                if key % 8 == 4:
                    end = behind
                    break
                end = _field(payload, end, stop, {}).end
        case 5:
            end = begin + 4
        case _:
            raise ValueError("no such wire type")
    if end > stop:
        raise ValueError("a field ends after its message")
    return Field(number, wire_type, start, begin, end, wire_type == 2 and number in schema, children)


def _number(payload: bytes, at: int, stop: int) -> tuple[int, int]:
    if at < stop and payload[at] < 0x80:
        return payload[at], at + 1
    for end in range(at + 1, min(at + 10, stop) + 1):
        if payload[end - 1] < 0x80:
            return sum((byte & 0x7F) << 7 * i for i, byte in enumerate(payload[at:end])), end
    raise ValueError("no number")
