"""A plain encoder of the protobuf wire format, for records that no writer creates."""

from __future__ import annotations

from typing import Any


def varint(number: int) -> bytes:
    number %= 1 << 64
    encoded = b""
    while number >= 0x80:
        encoded += bytes([number % 0x80 + 0x80])
        number //= 0x80
    return encoded + bytes([number])


def delimited(field: int, content: bytes) -> bytes:
    return varint(8 * field + 2) + varint(len(content)) + content


def entry(name: str, value: bytes) -> bytes:
    """An entry of a map, as a field of the message that contains the map."""
    return delimited(1, delimited(1, name.encode()) + delimited(2, value))


def bytes_feature(*values: bytes) -> bytes:
    return delimited(1, b"".join(delimited(1, value) for value in values))


def packed_integers(*values: int) -> bytes:
    return delimited(3, delimited(1, b"".join(map(varint, values))))


def unpacked_integers(*values: int) -> bytes:
    return delimited(3, b"".join(varint(8) + varint(value) for value in values))


def frame_list(frames: list[bytes]) -> bytes:
    return b"".join(delimited(1, bytes_feature(frame)) for frame in frames)


def record(context: bytes, lists: bytes) -> bytes:
    return delimited(1, context) + delimited(2, lists)


def protobuf_frames(message: Any, name: str) -> list[bytes]:
    """Frames of a feature list of a parsed SequenceExample."""
    return [feature.bytes_list.value[0] for feature in message.feature_lists.feature_list[name].feature]
