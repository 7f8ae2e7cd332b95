"""Protobuf's wire format, as far as `tf.train.Example` and `tf.train.SequenceExample` need it.

A record that protobuf refuses is refused, wherever it is damaged: features that are not read are checked as well. Of
what protobuf accepts, only groups (a deprecated wire type), messages in too many parts and lists of too many numbers
are refused. Work and memory are in proportion to the record's size, whatever its bytes are.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

MAX_VALUES = 2**20
"""Most values of a context feature; a video of an hour, fully rated for 1,000 classes, has 720,000."""

MAX_PARTS = 1000
"""Most parts that a message may be split into; every known writer writes one."""

MAX_KEY_BYTES = 5
"""Most bytes of a field's key, and of its length: protobuf reads no more, even if they are padded with zeros."""

Payload = bytes | memoryview
Span = tuple[int, int]
"""Start and end of a range of bytes of a payload."""


class MalformedRecordError(Exception):
    """A record that is malformed.

    Args:
        message: A sentence that describes what was found.
        offset: Byte offset in the payload.
    """

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message, offset)
        self.message = message
        self.offset = offset


class WrongDatasetError(MalformedRecordError):
    """An intact record of another dataset: AudioSet, or the other level of YouTube-8M."""


class UnusableIdError(MalformedRecordError):
    """A record with an id that a submission cannot hold."""


# Wire types and field numbers of the messages (tensorflow/core/example/{example,feature}.proto).
VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5
CONTEXT, FEATURE_LISTS = 1, 2
MAP_ENTRY, MAP_KEY, MAP_VALUE = 1, 1, 2
BYTES_LIST, FLOAT_LIST, INT64_LIST = 1, 2, 3
VALUE = 1
FEATURE = 1
_KIND_NAMES = {BYTES_LIST: "byte strings", FLOAT_LIST: "floats", INT64_LIST: "whole numbers"}


def encode_varint(number: int) -> bytes:
    """Encode a non-negative integer as a protobuf varint."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def delimited_header(field: int, num_bytes: int) -> bytes:
    """The key and length that precede a length-delimited field."""
    return encode_varint(field << 3 | LENGTH_DELIMITED) + encode_varint(num_bytes)


def read_varint(data: Payload, at: int, stop: int, max_bytes: int = 10) -> tuple[int, int]:
    """Read an unsigned varint of up to 64 bits; return the number and the offset after it."""
    number = 0
    for shift in range(0, 7 * max_bytes, 7):
        if at == stop:
            raise MalformedRecordError("the record breaks off inside a number.", at)
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number & 0xFFFFFFFFFFFFFFFF, at
    raise MalformedRecordError(f"a number is longer than {max_bytes} bytes.", at)


def _packed_varints(data: Payload, start: int, stop: int) -> list[int]:
    """Read the signed varints of up to 64 bits that fill a range of bytes."""
    numbers: list[int] = []
    number = shift = 0
    for byte in bytes(data[start:stop]):
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            number &= 0xFFFFFFFFFFFFFFFF
            numbers.append(number - (1 << 64) if number >> 63 else number)
            number = shift = 0
        else:
            shift += 7
            if shift == 70:
                raise MalformedRecordError("a number is longer than 10 bytes.", start)
    if shift:
        raise MalformedRecordError("the record breaks off inside a number.", stop)
    return numbers


def iter_fields(data: Payload, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """Iterate over the fields of a message.

    Yields:
        Field number, wire type, and start and end of the content (of a number: of its bytes).

    Raises:
        MalformedRecordError: A field extends beyond the message, or has an invalid number or wire type.
    """
    at = start
    while at < stop:
        field_start = at
        # Keys and most lengths are one byte: no call for those.
        key = data[at]
        at += 1
        if key >= 0x80:
            key, at = read_varint(data, field_start, stop, MAX_KEY_BYTES)
        wire_type = key & 7
        if wire_type == LENGTH_DELIMITED:
            if at < stop and data[at] < 0x80:
                begin = at + 1
                at = begin + data[at]
            else:
                length, begin = read_varint(data, at, stop, MAX_KEY_BYTES)
                at = begin + length
        elif wire_type == VARINT:
            begin = at
            _, at = read_varint(data, at, stop)
        elif wire_type in (FIXED32, FIXED64):
            begin = at
            at += 4 if wire_type == FIXED32 else 8
        else:
            message = f"a field has the wire type {wire_type}, which these records do not use."
            raise MalformedRecordError(message, field_start)
        if at > stop:
            message = f"a field goes {at - stop:,} bytes beyond the end of its message."
            raise MalformedRecordError(message, field_start)
        if not 0 < key >> 3 < 1 << 29:
            raise MalformedRecordError(f"a field has the impossible number {key >> 3}.", field_start)
        yield key >> 3, wire_type, begin, at


def _add_part(parts: list[Span], begin: int, end: int) -> None:
    """Add a part of a message; protobuf concatenates the parts."""
    if begin < end:
        if len(parts) == MAX_PARTS:
            raise MalformedRecordError(f"a message is split into more than {MAX_PARTS} parts.", begin)
        parts.append((begin, end))


def parse_sections(payload: Payload) -> tuple[list[Span], list[Span]]:
    """Locate the context and the feature lists of a SequenceExample; an Example has a context only."""
    context: list[Span] = []
    lists: list[Span] = []
    for number, wire_type, begin, end in iter_fields(payload, 0, len(payload)):
        if wire_type == LENGTH_DELIMITED and number in (CONTEXT, FEATURE_LISTS):
            _add_part(context if number == CONTEXT else lists, begin, end)
    return context, lists


Check = Callable[[Payload, list[Span]], None]
"""Checks the parts of a message that is not read."""


def parse_map(payload: Payload, parts: list[Span], names: frozenset[bytes], check: Check) -> dict[bytes, list[Span]]:
    """Entries with the given names of a map of messages; the last of repeated names counts, as in protobuf.

    The values of all other entries are only checked, by `check`.
    """
    entries: dict[bytes, list[Span]] = {}
    for start, stop in parts:
        for number, wire_type, begin, end in iter_fields(payload, start, stop):
            if number == MAP_ENTRY and wire_type == LENGTH_DELIMITED:
                name, value = _map_entry(payload, begin, end)
                unread = entries.pop(name, None) if name in names else value
                if unread is not None:
                    check(payload, unread)
                if name in names:
                    entries[name] = value
    return entries


def _map_entry(payload: Payload, start: int, stop: int) -> tuple[bytes, list[Span]]:
    name = b""
    value: list[Span] = []
    for number, wire_type, begin, end in iter_fields(payload, start, stop):
        if wire_type == LENGTH_DELIMITED and number == MAP_KEY:
            name = bytes(payload[begin:end])
            if not name.isascii() and not _is_utf8(name):
                raise MalformedRecordError(f"the name {name[:40]!r} of a feature is not UTF-8.", begin)
        elif wire_type == LENGTH_DELIMITED and number == MAP_VALUE:
            _add_part(value, begin, end)
    return name, value


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def parse_feature(payload: Payload, parts: list[Span]) -> tuple[int, list[Span]]:
    """Kind of a Feature (0 where it has none) and the parts of its list; the last of several kinds counts."""
    kind = 0
    values: list[Span] = []
    for start, stop in parts:
        for number, wire_type, begin, end in iter_fields(payload, start, stop):
            if wire_type == LENGTH_DELIMITED and number in _KIND_NAMES:
                if number != kind:
                    _check_values(payload, kind, values)
                    kind, values = number, []
                _add_part(values, begin, end)
    return kind, values


def check_feature(payload: Payload, parts: list[Span]) -> None:
    """Check a Feature that is not read.

    Raises:
        MalformedRecordError: It is damaged.
    """
    _check_values(payload, *parse_feature(payload, parts))


def check_feature_list(payload: Payload, parts: list[Span]) -> None:
    """Check a FeatureList that is not read.

    Raises:
        MalformedRecordError: It is damaged.
    """
    for start, stop in parts:
        for number, wire_type, begin, end in iter_fields(payload, start, stop):
            if number == FEATURE and wire_type == LENGTH_DELIMITED:
                check_feature(payload, [(begin, end)])


def _check_values(payload: Payload, kind: int, parts: list[Span]) -> None:
    for start, stop in parts:
        for number, wire_type, begin, end in iter_fields(payload, start, stop):
            if number == VALUE and wire_type == LENGTH_DELIMITED:
                if kind == INT64_LIST:
                    _packed_varints(payload, begin, end)
                elif kind == FLOAT_LIST and (end - begin) % 4:
                    raise MalformedRecordError("a feature contains a part of a float.", begin)


def _values_of(payload: Payload, context: dict[bytes, list[Span]], name: bytes, *wanted: int) -> tuple[int, list[Span]]:
    """Kind and parts of the list of a context feature; the first kind and no parts where it is absent or empty."""
    parts = context.get(name, [])
    kind, values = parse_feature(payload, parts)
    if kind not in (0, *wanted):
        message = f"the feature {name.decode()} contains {_KIND_NAMES[kind]}, expected {_KIND_NAMES[wanted[0]]}."
        raise MalformedRecordError(message, parts[0][0])
    return kind or wanted[0], values


def read_integers(payload: Payload, context: dict[bytes, list[Span]], name: bytes) -> tuple[int, ...]:
    """Values of a feature of whole numbers; none where it is absent. Floats are accepted if all are whole."""
    kind, parts = _values_of(payload, context, name, INT64_LIST, FLOAT_LIST)
    if kind == INT64_LIST:
        return tuple(_integers(payload, parts, name))
    floats = _floats(payload, parts, name)
    fractional = ~(np.isfinite(floats) & (floats == np.trunc(floats)))
    if fractional.any():
        message = f"the feature {name.decode()} contains {floats[fractional][0]:g}, expected {_KIND_NAMES[INT64_LIST]}."
        raise MalformedRecordError(message, parts[0][0])
    return tuple(map(int, floats.tolist()))


def read_floats(payload: Payload, context: dict[bytes, list[Span]], name: bytes) -> NDArray[np.float32]:
    """Values of a float feature; none where it is absent."""
    return _floats(payload, _values_of(payload, context, name, FLOAT_LIST)[1], name)


def read_scores(payload: Payload, context: dict[bytes, list[Span]], name: bytes) -> tuple[float, ...]:
    """Values of a feature of floats or whole numbers; none where it is absent."""
    kind, parts = _values_of(payload, context, name, FLOAT_LIST, INT64_LIST)
    if kind == INT64_LIST:
        return tuple(map(float, _integers(payload, parts, name)))
    return tuple(_floats(payload, parts, name).tolist())


def _integers(payload: Payload, parts: list[Span], name: bytes) -> list[int]:
    numbers: list[int] = []
    for start, stop in parts:
        for number, wire_type, begin, end in iter_fields(payload, start, stop):
            if number != VALUE or wire_type not in (VARINT, LENGTH_DELIMITED):
                continue
            # A number takes at most ten bytes.
            if end - begin > 10 * MAX_VALUES:
                raise _too_many(name, begin)
            numbers += _packed_varints(payload, begin, end)
            if len(numbers) > MAX_VALUES:
                raise _too_many(name, begin)
    return numbers


def _floats(payload: Payload, parts: list[Span], name: bytes) -> NDArray[np.float32]:
    raw = bytearray()
    for start, stop in parts:
        for number, wire_type, begin, end in iter_fields(payload, start, stop):
            if number != VALUE or wire_type not in (FIXED32, LENGTH_DELIMITED):
                continue
            if (end - begin) % 4:
                raise MalformedRecordError(f"the feature {name.decode()} contains a part of a float.", begin)
            raw += payload[begin:end]
            if len(raw) > 4 * MAX_VALUES:
                raise _too_many(name, begin)
    return np.frombuffer(raw, np.dtype("<f4"))


def _too_many(name: bytes, offset: int) -> MalformedRecordError:
    return MalformedRecordError(f"the feature {name.decode()} contains more than {MAX_VALUES:,} numbers.", offset)


def only_bytes(payload: Payload, parts: list[Span], what: str, offset: int) -> Span:
    """Start and end of the one byte string of a Feature."""
    found: Span | None = None
    kind, values = parse_feature(payload, parts)
    for start, stop in values if kind == BYTES_LIST else []:
        for number, wire_type, begin, end in iter_fields(payload, start, stop):
            if number == VALUE and wire_type == LENGTH_DELIMITED:
                if found is not None:
                    raise MalformedRecordError(f"{what} contains more than one byte string.", begin)
                found = (begin, end)
    if found is None:
        raise MalformedRecordError(f"{what} contains no byte string.", offset)
    return found
