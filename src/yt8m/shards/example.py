"""One record's wire format: its context features, and where its frames lie.

A frame-level record is a `tf.train.SequenceExample`, a video-level one a `tf.train.Example`. The frames of a list are
byte strings of one size, each behind the same few header bytes, so an offset and a stride are all it takes to see them
as an array: comparing those headers proves it, and no frame is parsed. Everything else protobuf allows (fields in any
order, repeated, split or unknown ones) is understood the way protobuf does, and a record that breaks the rules is a
`MalformedRecordError`, after work and memory in proportion to its size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from yt8m.errors import ShardError
from yt8m.shards.tfrecord import iterate_records, map_shard

NUM_RGB = 1024
"""Bytes of a frame's visual features, and numbers of a video's mean."""

NUM_AUDIO = 128
"""Bytes of a frame's audio features, and numbers of a video's mean."""

SEGMENT_SECONDS = 5
"""Length of a segment, in seconds and so in frames (SPEC: the data)."""

MAX_VALUES = 2**20
"""Most numbers that a list of the context may hold; a video of an hour fully rated for 1,000 classes has 720,000."""

MAX_PARTS = 1000
"""Most pieces that one message may be split into; every known writer makes one."""

MAX_ID_BYTES = 64

MAX_KEY_BYTES = 5
"""Most bytes of a field's key, and of its length: protobuf reads no more, even of one padded with zeros."""

Payload = bytes | memoryview
Span = tuple[int, int]
"""First byte and end of a piece of a payload."""


class MalformedRecordError(Exception):
    """A record that is not what it should be.

    Args:
        message: A sentence that says what was found.
        offset: Where, in bytes from the start of the payload.
    """

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message, offset)
        self.message = message
        self.offset = offset


class WrongDatasetError(MalformedRecordError):
    """A sound record of something else: AudioSet, or the other level of YouTube-8M."""


@dataclass(frozen=True, slots=True)
class FrameLayout:
    """Where the frames of one feature lie.

    Args:
        num_frames: How many there are, at least 1.
        offset: First byte of the first frame, from the start of the payload.
        stride: Bytes from one frame to the next; 0 where they are not equally spaced (see `frame_offsets`).
    """

    num_frames: int
    offset: int
    stride: int


@dataclass(frozen=True, slots=True)
class VideoRecord:
    """A frame-level record (SPEC: the data), as it stands: nothing about labels and ratings has been checked.

    Args:
        id: The video's id.
        labels: Label ids.
        segment_labels: Label id of each rating. The four lists are parallel where the record is right.
        segment_start_times: Seconds.
        segment_end_times: Seconds.
        segment_scores: 0 or 1.
        rgb: Where the frames of 1,024 bytes lie.
        audio: Where the frames of 128 bytes lie.
    """

    id: str
    labels: tuple[int, ...]
    segment_labels: tuple[int, ...]
    segment_start_times: tuple[int, ...]
    segment_end_times: tuple[int, ...]
    segment_scores: tuple[float, ...]
    rgb: FrameLayout
    audio: FrameLayout


class VideoLevelRecord(NamedTuple):
    """A video-level record: mean_rgb float32 (1024,) and mean_audio float32 (128,), not quantized."""

    id: str
    labels: tuple[int, ...]
    mean_rgb: NDArray[np.float32]
    mean_audio: NDArray[np.float32]


# Wire types, and the numbers of the fields of the messages (tensorflow/core/example/{example,feature}.proto).
VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5
CONTEXT, FEATURE_LISTS = 1, 2
MAP_ENTRY, MAP_KEY, MAP_VALUE = 1, 1, 2
BYTES_LIST, FLOAT_LIST, INT64_LIST = 1, 2, 3
VALUE = 1
FEATURE = 1

_ID, _OLD_ID, _LABELS = b"id", b"video_id", b"labels"
_SEGMENT_LABELS, _SEGMENT_STARTS = b"segment_labels", b"segment_start_times"
_SEGMENT_ENDS, _SEGMENT_SCORES = b"segment_end_times", b"segment_scores"
_RGB, _AUDIO, _AUDIOSET = b"rgb", b"audio", b"audio_embedding"
_MEAN_RGB, _MEAN_AUDIO = b"mean_rgb", b"mean_audio"
_CONTEXT_NAMES = frozenset(
    [_ID, _OLD_ID, _LABELS, _SEGMENT_LABELS, _SEGMENT_STARTS, _SEGMENT_ENDS, _SEGMENT_SCORES, _MEAN_RGB, _MEAN_AUDIO]
)
_LIST_NAMES = frozenset([_RGB, _AUDIO, _AUDIOSET])
_KIND_NAMES = {BYTES_LIST: "byte strings", FLOAT_LIST: "floats", INT64_LIST: "whole numbers"}

_AUDIOSET_FOUND = (
    "this is an AudioSet shard (audio_embedding, no rgb), not frame-level data of YouTube-8M; "
    "its frame-level partitions are 2/frame and 3/frame."
)
_VIDEO_LEVEL_FOUND = (
    "this is a video-level shard (one mean_rgb a video), and frame-level ones are needed; "
    "YouTube-8M has them in the partitions 2/frame and 3/frame."
)
_FRAME_LEVEL_FOUND = "this is a frame-level shard, and video-level ones (mean_rgb) are needed; YouTube-8M has them in the partition 2/video."


def encode_varint(number: int) -> bytes:
    """A non-negative whole number as protobuf writes it."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def delimited_header(field: int, num_bytes: int) -> bytes:
    """The bytes in front of a field's content of a given length."""
    return encode_varint(field << 3 | LENGTH_DELIMITED) + encode_varint(num_bytes)


def frame_header(num_bytes: int) -> bytes:
    """The bytes in front of each frame of a feature list, as every known writer makes them.

    A frame is the one value of a BytesList, of a Feature, of the list.
    """
    header = b""
    for field in (VALUE, BYTES_LIST, FEATURE):
        header = delimited_header(field, num_bytes + len(header)) + header
    return header


_HEADERS = {size: frame_header(size) for size in (NUM_RGB, NUM_AUDIO)}


def read_video(payload: Payload) -> VideoRecord:
    """Read a frame-level record, all but the frames themselves.

    Args:
        payload: The record's bytes.

    Raises:
        WrongDatasetError: The record is AudioSet's or video-level.
        MalformedRecordError: It is damaged, or a feature is missing, empty or of the wrong size.
    """
    context_parts, list_parts = _sections(payload)
    context = _map(payload, context_parts, _CONTEXT_NAMES)
    lists = _map(payload, list_parts, _LIST_NAMES)
    _require_frames(context, lists)
    return VideoRecord(
        id=_id(payload, context),
        labels=_integers(payload, context, _LABELS),
        segment_labels=_integers(payload, context, _SEGMENT_LABELS),
        segment_start_times=_integers(payload, context, _SEGMENT_STARTS),
        segment_end_times=_integers(payload, context, _SEGMENT_ENDS),
        segment_scores=tuple(_floats(payload, context, _SEGMENT_SCORES).tolist()),
        rgb=_layout(payload, lists, _RGB, NUM_RGB),
        audio=_layout(payload, lists, _AUDIO, NUM_AUDIO),
    )


def frame_offsets(payload: Payload) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where each frame begins, from the start of the payload: the slow way, for frames that are not equally spaced.

    Returns:
        Offsets of the rgb frames (1,024 bytes each) and of the audio frames (128 bytes each), int64.

    Raises:
        MalformedRecordError: As `read_video`.
    """
    _, list_parts = _sections(payload)
    lists = _map(payload, list_parts, _LIST_NAMES)
    return _walk_frames(payload, lists, _RGB, NUM_RGB), _walk_frames(payload, lists, _AUDIO, NUM_AUDIO)


def read_video_level(payload: Payload) -> VideoLevelRecord:
    """Read a video-level record.

    Args:
        payload: The record's bytes.

    Raises:
        WrongDatasetError: The record is frame-level.
        MalformedRecordError: It is damaged, or a feature is missing or of the wrong size.
    """
    context_parts, list_parts = _sections(payload)
    context = _map(payload, context_parts, _CONTEXT_NAMES)
    if _MEAN_RGB not in context:
        lists = _map(payload, list_parts, _LIST_NAMES)
        if _RGB in lists:
            raise WrongDatasetError(_FRAME_LEVEL_FOUND, 0)
        if _AUDIOSET in lists:
            raise WrongDatasetError(_AUDIOSET_FOUND, 0)
    return VideoLevelRecord(
        _id(payload, context),
        _integers(payload, context, _LABELS),
        _mean(payload, context, _MEAN_RGB, NUM_RGB),
        _mean(payload, context, _MEAN_AUDIO, NUM_AUDIO),
    )


def read_video_level_shard(path: Path) -> Iterator[VideoLevelRecord]:
    """Read the records of a video-level shard, checksums verified.

    Args:
        path: The shard.

    Raises:
        ShardError: It cannot be opened, is damaged, or is of something else.
    """
    for record in iterate_records(map_shard(path), path):
        if record.damage is not None:
            raise record.damage
        try:
            yield read_video_level(record.payload)
        except MalformedRecordError as error:
            raise ShardError(path, error.message, record=record.number, offset=record.offset + error.offset) from None


def _varint(data: Payload, at: int, stop: int, max_bytes: int = 10) -> tuple[int, int]:
    """Read an unsigned number of up to 64 bits; return it and where it ends."""
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
    """Read signed numbers of up to 64 bits that fill a span."""
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


def _fields(data: Payload, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """Walk over the fields of a message.

    Yields:
        Field number, wire type, and first byte and end of the content (of a number: of its bytes).

    Raises:
        MalformedRecordError: A field does not end where the message allows, or has no valid number or type.
    """
    at = start
    while at < stop:
        field_start = at
        # Keys and most lengths are of one byte, which need not be a call.
        key = data[at]
        at += 1
        if key >= 0x80:
            key, at = _varint(data, field_start, stop, MAX_KEY_BYTES)
        wire_type = key & 7
        if wire_type == LENGTH_DELIMITED:
            if at < stop and data[at] < 0x80:
                begin = at + 1
                at = begin + data[at]
            else:
                length, begin = _varint(data, at, stop, MAX_KEY_BYTES)
                at = begin + length
        elif wire_type == VARINT:
            begin = at
            _, at = _varint(data, at, stop)
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
    """Remember one more piece of a message: protobuf joins the pieces, as if their bytes stood one after the other."""
    if begin < end:
        if len(parts) == MAX_PARTS:
            raise MalformedRecordError(f"a message is split into more than {MAX_PARTS} parts.", begin)
        parts.append((begin, end))


def _sections(payload: Payload) -> tuple[list[Span], list[Span]]:
    """Find the context and the feature lists of a SequenceExample; an Example is one that has a context alone."""
    context: list[Span] = []
    lists: list[Span] = []
    for number, wire_type, begin, end in _fields(payload, 0, len(payload)):
        if wire_type == LENGTH_DELIMITED and number in (CONTEXT, FEATURE_LISTS):
            _add_part(context if number == CONTEXT else lists, begin, end)
    return context, lists


def _map(payload: Payload, parts: list[Span], names: frozenset[bytes]) -> dict[bytes, list[Span]]:
    """Entries of a map of messages, those with certain names only; of several with one name the last counts."""
    entries: dict[bytes, list[Span]] = {}
    for start, stop in parts:
        for number, wire_type, begin, end in _fields(payload, start, stop):
            if number == MAP_ENTRY and wire_type == LENGTH_DELIMITED:
                name, value = _map_entry(payload, begin, end)
                if name in names:
                    entries[name] = value
    return entries


def _map_entry(payload: Payload, start: int, stop: int) -> tuple[bytes, list[Span]]:
    name = b""
    value: list[Span] = []
    for number, wire_type, begin, end in _fields(payload, start, stop):
        if wire_type == LENGTH_DELIMITED and number == MAP_KEY:
            name = bytes(payload[begin:end])
        elif wire_type == LENGTH_DELIMITED and number == MAP_VALUE:
            _add_part(value, begin, end)
    return name, value


def _require_frames(context: dict[bytes, list[Span]], lists: dict[bytes, list[Span]]) -> None:
    if _RGB not in lists:
        if _AUDIOSET in lists:
            raise WrongDatasetError(_AUDIOSET_FOUND, 0)
        if _MEAN_RGB in context or _MEAN_AUDIO in context:
            raise WrongDatasetError(_VIDEO_LEVEL_FOUND, 0)
    for name in (_RGB, _AUDIO):
        if name not in lists:
            raise MalformedRecordError(f"the record has no {name.decode()} frames.", 0)


def _feature(payload: Payload, parts: list[Span]) -> tuple[int, list[Span]]:
    """Kind of a Feature (0 where it has none) and the pieces of its list; of several kinds the last counts."""
    kind = 0
    values: list[Span] = []
    for start, stop in parts:
        for number, wire_type, begin, end in _fields(payload, start, stop):
            if wire_type == LENGTH_DELIMITED and number in _KIND_NAMES:
                if number != kind:
                    kind, values = number, []
                _add_part(values, begin, end)
    return kind, values


def _values_of(payload: Payload, context: dict[bytes, list[Span]], name: bytes, wanted: int) -> list[Span]:
    """The pieces of a context feature's list, none where the feature is absent or empty."""
    parts = context.get(name, [])
    kind, values = _feature(payload, parts)
    if kind not in (0, wanted):
        message = f"the feature {name.decode()} holds {_KIND_NAMES[kind]}, expected {_KIND_NAMES[wanted]}."
        raise MalformedRecordError(message, parts[0][0])
    return values


def _integers(payload: Payload, context: dict[bytes, list[Span]], name: bytes) -> tuple[int, ...]:
    numbers: list[int] = []
    for start, stop in _values_of(payload, context, name, INT64_LIST):
        for number, wire_type, begin, end in _fields(payload, start, stop):
            if number != VALUE or wire_type not in (VARINT, LENGTH_DELIMITED):
                continue
            # Ten bytes are the most that a number takes.
            if end - begin > 10 * MAX_VALUES:
                raise _too_many(name, begin)
            numbers += _packed_varints(payload, begin, end)
            if len(numbers) > MAX_VALUES:
                raise _too_many(name, begin)
    return tuple(numbers)


def _floats(payload: Payload, context: dict[bytes, list[Span]], name: bytes) -> NDArray[np.float32]:
    raw = bytearray()
    for start, stop in _values_of(payload, context, name, FLOAT_LIST):
        for number, wire_type, begin, end in _fields(payload, start, stop):
            if number != VALUE or wire_type not in (FIXED32, LENGTH_DELIMITED):
                continue
            if (end - begin) % 4:
                raise MalformedRecordError(f"the feature {name.decode()} holds a part of a float.", begin)
            raw += payload[begin:end]
            if len(raw) > 4 * MAX_VALUES:
                raise _too_many(name, begin)
    return np.frombuffer(raw, np.dtype("<f4"))


def _too_many(name: bytes, offset: int) -> MalformedRecordError:
    return MalformedRecordError(f"the feature {name.decode()} holds more than {MAX_VALUES:,} numbers.", offset)


def _mean(payload: Payload, context: dict[bytes, list[Span]], name: bytes, size: int) -> NDArray[np.float32]:
    values = _floats(payload, context, name)
    if len(values) != size:
        raise MalformedRecordError(f"the feature {name.decode()} holds {len(values):,} numbers, expected {size:,}.", 0)
    return values


def _only_bytes(payload: Payload, parts: list[Span], what: str, offset: int) -> Span:
    """Where the one byte string of a Feature lies."""
    found: Span | None = None
    kind, values = _feature(payload, parts)
    for start, stop in values if kind == BYTES_LIST else []:
        for number, wire_type, begin, end in _fields(payload, start, stop):
            if number == VALUE and wire_type == LENGTH_DELIMITED:
                if found is not None:
                    raise MalformedRecordError(f"{what} holds more than one byte string.", begin)
                found = (begin, end)
    if found is None:
        raise MalformedRecordError(f"{what} holds no byte string.", offset)
    return found


def _id(payload: Payload, context: dict[bytes, list[Span]]) -> str:
    """The video's id: `id`, or `video_id` in older releases."""
    name = _ID if _ID in context else _OLD_ID
    parts = context.get(name)
    if not parts:
        raise MalformedRecordError("the record has no id.", 0)
    begin, end = _only_bytes(payload, parts, "the id", parts[0][0])
    raw = bytes(payload[begin : min(end, begin + MAX_ID_BYTES + 1)])
    try:
        video_id = raw.decode() if len(raw) <= MAX_ID_BYTES else ""
    except UnicodeDecodeError:
        raise MalformedRecordError(f"the id {raw!r} is not UTF-8.", begin) from None
    if not video_id.isprintable() or not video_id or " " in video_id:
        message = f"the id {raw!r} is not one of 1 to {MAX_ID_BYTES} bytes without spaces and control characters."
        raise MalformedRecordError(message, begin)
    return video_id


def _layout(payload: Payload, lists: dict[bytes, list[Span]], name: bytes, size: int) -> FrameLayout:
    """See whether the frames are equally spaced behind the usual header; walk over them where they are not."""
    parts = lists[name]
    header = _HEADERS[size]
    stride = len(header) + size
    if len(parts) == 1:
        start, stop = parts[0]
        num_frames, rest = divmod(stop - start, stride)
        if num_frames and not rest:
            headers = np.ndarray((num_frames, len(header)), np.uint8, payload, start, (stride, 1))
            if headers.tobytes() == header * num_frames:
                return FrameLayout(num_frames, start + len(header), stride)
    offsets = _walk_frames(payload, lists, name, size)
    steps = np.diff(offsets)
    evenly = bool((steps == steps[:1]).all())
    return FrameLayout(len(offsets), int(offsets[0]), (int(steps[0]) if len(steps) else stride) if evenly else 0)


def _walk_frames(payload: Payload, lists: dict[bytes, list[Span]], name: bytes, size: int) -> NDArray[np.int64]:
    """Where each frame begins, found by parsing every one: int64 (T,), T at least 1."""
    offsets: list[int] = []
    for start, stop in lists.get(name, []):
        for number, wire_type, begin, end in _fields(payload, start, stop):
            if number != FEATURE or wire_type != LENGTH_DELIMITED:
                continue
            what = f"frame {len(offsets)} of {name.decode()}"
            first, last = _only_bytes(payload, [(begin, end)], what, begin)
            if last - first != size:
                raise MalformedRecordError(f"{what} has {last - first:,} bytes, expected {size:,}.", first)
            offsets.append(first)
    if not offsets:
        raise MalformedRecordError(f"the record has no {name.decode()} frames.", 0)
    return np.array(offsets, np.int64)
