"""Records of shards: context features, and where the frames are.

A frame-level record is a `tf.train.SequenceExample`, a video-level one a `tf.train.Example`. The frames of a list are
byte strings of one size, each after the same few header bytes, so an offset and a stride locate them all: comparing those
headers proves it without parsing a frame. Everything else that protobuf allows (fields in any order, repeated, split or
unknown ones) is read as protobuf reads it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from yt8m.errors import ShardError
from yt8m.features import YOUTUBE8M, Features
from yt8m.shards.contents import ShardFile, ShardWindow
from yt8m.shards.ids import MAX_ID_BYTES, id_fault
from yt8m.shards.tfrecord import iterate_records
from yt8m.shards.wire import (
    BYTES_LIST,
    FEATURE,
    FLOAT_LIST,
    LENGTH_DELIMITED,
    VALUE,
    MalformedRecordError,
    Payload,
    Span,
    UnusableIdError,
    WrongDatasetError,
    check_feature,
    check_feature_list,
    delimited_header,
    iter_fields,
    only_bytes,
    parse_feature,
    parse_map,
    parse_sections,
    read_floats,
    read_integers,
    read_scores,
)

MEAN_SIZES = {"mean_rgb": 1024, "mean_audio": 128}
"""Numbers of a video-level record's means."""


@dataclass(frozen=True, slots=True)
class FrameLayout:
    """Where the frames of one modality are.

    Args:
        num_frames: Number of frames; 0 where the record lacks the modality.
        offset: Byte offset of the first frame in the payload.
        stride: Bytes from one frame to the next; 0 where they are not equally spaced (see `frame_offsets`).
    """

    num_frames: int
    offset: int
    stride: int


@dataclass(frozen=True, slots=True)
class VideoRecord:
    """A frame-level record as read: labels and ratings are not validated (docs/method.md, "Data format").

    Args:
        id: The video's id.
        labels: Label ids.
        segment_labels: Label id of each rating. The four lists are parallel in a valid record.
        segment_start_times: Seconds.
        segment_end_times: Seconds.
        segment_scores: 0 or 1.
        rgb: Its frames of what is seen.
        audio: Its frames of what is heard.
    """

    id: str
    labels: tuple[int, ...]
    segment_labels: tuple[int, ...]
    segment_start_times: tuple[int, ...]
    segment_end_times: tuple[int, ...]
    segment_scores: tuple[float, ...]
    rgb: FrameLayout
    audio: FrameLayout

    @property
    def lengths(self) -> list[int]:
        """Numbers of frames of the modalities that there are."""
        return [layout.num_frames for layout in (self.rgb, self.audio) if layout.num_frames]


class VideoLevelRecord(NamedTuple):
    """A video-level record: mean_rgb float32 (1024,) and mean_audio float32 (128,), not quantized."""

    id: str
    labels: tuple[int, ...]
    mean_rgb: NDArray[np.float32]
    mean_audio: NDArray[np.float32]


_ID, _OLD_ID, _LABELS = b"id", b"video_id", b"labels"
_SEGMENT_LABELS, _SEGMENT_STARTS = b"segment_labels", b"segment_start_times"
_SEGMENT_ENDS, _SEGMENT_SCORES = b"segment_end_times", b"segment_scores"
_RGB, _AUDIO, _AUDIOSET = b"rgb", b"audio", b"audio_embedding"
_MEAN_RGB, _MEAN_AUDIO = b"mean_rgb", b"mean_audio"
_VIDEO_LEVEL_NAMES = frozenset([_ID, _OLD_ID, _LABELS, _MEAN_RGB, _MEAN_AUDIO])
_CONTEXT_NAMES = _VIDEO_LEVEL_NAMES | {_SEGMENT_LABELS, _SEGMENT_STARTS, _SEGMENT_ENDS, _SEGMENT_SCORES}
MEDIAPIPE_LISTS = {"rgb": "RGB/feature/floats", "audio": "AUDIO/feature/floats"}
"""Lists of floats in the SequenceExamples of MediaPipe, by modality."""

_MEDIAPIPE = frozenset(name.encode() for name in MEDIAPIPE_LISTS.values())
_LIST_NAMES = frozenset([_RGB, _AUDIO, _AUDIOSET]) | _MEDIAPIPE

_NO_FRAMES = FrameLayout(0, 0, 0)

_AUDIOSET_FOUND = (
    "this is an AudioSet shard (audio_embedding, no rgb), not frame-level data of YouTube-8M; "
    "its frame-level partitions are 2/frame and 3/frame."
)
_VIDEO_LEVEL_FOUND = (
    "this is a video-level shard (one mean_rgb per video), and frame-level ones are needed; "
    "YouTube-8M has them in the partitions 2/frame and 3/frame."
)
_FLOATS_FOUND = (
    "this is a frame-level shard of floats, and bytes are needed; `yt8m extract --from-features SHARD --out FOLDER` "
    "converts it."
)
_FRAME_LEVEL_FOUND = "this is a frame-level shard, and video-level ones (mean_rgb) are needed; YouTube-8M has them in the partition 2/video."


@lru_cache
def frame_header(num_bytes: int) -> bytes:
    """The bytes before each frame of a feature list, as every known writer encodes it.

    A frame is the only value of a BytesList, in a Feature, in the list.
    """
    header = b""
    for field in (VALUE, BYTES_LIST, FEATURE):
        header = delimited_header(field, num_bytes + len(header)) + header
    return header


@lru_cache
def row_bytes(num_bytes: int) -> int:
    """Bytes of a frame with its header, as every known writer encodes it; 0 without frames."""
    return len(frame_header(num_bytes)) + num_bytes if num_bytes else 0


def read_video(payload: Payload, features: Features = YOUTUBE8M) -> VideoRecord:
    """Read a frame-level record, except the frames themselves.

    Args:
        payload: The record.
        features: What frames the dataset has. A record may lack a modality; others than these are not read.

    Raises:
        WrongDatasetError: The record is AudioSet's or video-level, or its frames are floats.
        UnusableIdError: Its id is one that a submission cannot hold.
        MalformedRecordError: It is damaged, or has no frames, or frames of another size.
    """
    context_parts, list_parts = parse_sections(payload)
    context = parse_map(payload, context_parts, _CONTEXT_NAMES, check_feature)
    lists = parse_map(payload, list_parts, _LIST_NAMES, check_feature_list)
    _require_frames(context, lists)
    for name in (_MEAN_RGB, _MEAN_AUDIO):
        check_feature(payload, context.get(name, []))
    for unread in (_AUDIOSET, *_MEDIAPIPE):
        check_feature_list(payload, lists.get(unread, []))
    rgb, audio = (_layout(payload, lists, name, features) for name in (_RGB, _AUDIO))
    if not (rgb.num_frames or audio.num_frames):
        raise MalformedRecordError(f"the record has no {' or '.join(features.modalities)} frames.", 0)
    return VideoRecord(
        id=_id(payload, context),
        labels=read_integers(payload, context, _LABELS),
        segment_labels=read_integers(payload, context, _SEGMENT_LABELS),
        segment_start_times=read_integers(payload, context, _SEGMENT_STARTS),
        segment_end_times=read_integers(payload, context, _SEGMENT_ENDS),
        segment_scores=read_scores(payload, context, _SEGMENT_SCORES),
        rgb=rgb,
        audio=audio,
    )


def frame_offsets(payload: Payload, features: Features = YOUTUBE8M) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Byte offset of each frame in the payload: the slow way, for frames that are not equally spaced.

    Returns:
        Offsets of the rgb frames and of the audio frames, int64; empty where there are none.

    Raises:
        MalformedRecordError: As `read_video`.
    """
    _, list_parts = parse_sections(payload)
    lists = parse_map(payload, list_parts, _LIST_NAMES, check_feature_list)
    rgb, audio = (_walk_frames(payload, lists, name, features.bytes_of(name.decode())) for name in (_RGB, _AUDIO))
    return rgb, audio


def read_video_level(payload: Payload) -> VideoLevelRecord:
    """Read a video-level record.

    Raises:
        WrongDatasetError: The record is frame-level.
        UnusableIdError: Its id is one that a submission cannot hold.
        MalformedRecordError: It is damaged, or a feature is missing or of the wrong size.
    """
    context_parts, list_parts = parse_sections(payload)
    context = parse_map(payload, context_parts, _VIDEO_LEVEL_NAMES, check_feature)
    if _MEAN_RGB not in context:
        lists = parse_map(payload, list_parts, _LIST_NAMES, check_feature_list)
        if _RGB in lists:
            raise WrongDatasetError(_FRAME_LEVEL_FOUND, 0)
        if _AUDIOSET in lists:
            raise WrongDatasetError(_AUDIOSET_FOUND, 0)
    return VideoLevelRecord(
        _id(payload, context),
        read_integers(payload, context, _LABELS),
        _mean(payload, context, _MEAN_RGB),
        _mean(payload, context, _MEAN_AUDIO),
    )


def read_video_level_shard(path: Path) -> Iterator[VideoLevelRecord]:
    """Read the records of a video-level shard, checksums verified.

    Raises:
        ShardError: It cannot be opened, is damaged, or is of another dataset.
    """
    for record in iterate_records(ShardWindow(ShardFile(path)), path):
        if record.damage is not None:
            raise record.damage
        try:
            yield read_video_level(record.payload)
        except MalformedRecordError as error:
            raise ShardError(path, error.message, record=record.number, offset=record.offset + error.offset) from None


def _require_frames(context: dict[bytes, list[Span]], lists: dict[bytes, list[Span]]) -> None:
    if _RGB in lists or _AUDIO in lists:
        return
    if _MEDIAPIPE & lists.keys():
        raise WrongDatasetError(_FLOATS_FOUND, 0)
    if _AUDIOSET in lists:
        raise WrongDatasetError(_AUDIOSET_FOUND, 0)
    if _MEAN_RGB in context or _MEAN_AUDIO in context:
        raise WrongDatasetError(_VIDEO_LEVEL_FOUND, 0)


def _mean(payload: Payload, context: dict[bytes, list[Span]], name: bytes) -> NDArray[np.float32]:
    values, size = read_floats(payload, context, name), MEAN_SIZES[name.decode()]
    if len(values) != size:
        raise MalformedRecordError(
            f"the feature {name.decode()} contains {len(values):,} numbers, expected {size:,}.", 0
        )
    return values


def _id(payload: Payload, context: dict[bytes, list[Span]]) -> str:
    """The id of the video: `id`, or `video_id` in older releases."""
    parts = context.get(_ID)
    if parts is None:
        parts = context.get(_OLD_ID)
    else:
        check_feature(payload, context.get(_OLD_ID, []))
    if not parts:
        raise MalformedRecordError("the record has no id.", 0)
    begin, end = only_bytes(payload, parts, "the id", parts[0][0])
    raw = bytes(payload[begin : min(end, begin + MAX_ID_BYTES + 1)])
    fault = id_fault(raw)
    if fault is not None:
        raise UnusableIdError(f"the id {raw!r} {fault}, so a submission cannot hold it.", begin)
    return raw.decode()


def _layout(payload: Payload, lists: dict[bytes, list[Span]], name: bytes, features: Features) -> FrameLayout:
    """Locate the frames: check that they are equally spaced after the usual header, and parse them where not."""
    size = features.bytes_of(name.decode())
    parts = lists.get(name, [])
    if not size:
        check_feature_list(payload, parts)
        return _NO_FRAMES
    header = frame_header(size)
    stride = len(header) + size
    if len(parts) == 1:
        start, stop = parts[0]
        num_frames, rest = divmod(stop - start, stride)
        if num_frames and not rest:
            headers = np.ndarray((num_frames, len(header)), np.uint8, payload, start, (stride, 1))
            if headers.tobytes() == header * num_frames:
                return FrameLayout(num_frames, start + len(header), stride)
    offsets = _walk_frames(payload, lists, name, size)
    if not len(offsets):
        return _NO_FRAMES
    steps = np.diff(offsets)
    evenly = bool((steps == steps[:1]).all())
    return FrameLayout(len(offsets), int(offsets[0]), (int(steps[0]) if len(steps) else stride) if evenly else 0)


def _walk_frames(payload: Payload, lists: dict[bytes, list[Span]], name: bytes, size: int) -> NDArray[np.int64]:
    """Byte offset of each frame, found by parsing every one: int64 (T,)."""
    offsets: list[int] = []
    for start, stop in lists.get(name, []) if size else []:
        for number, wire_type, begin, end in iter_fields(payload, start, stop):
            if number != FEATURE or wire_type != LENGTH_DELIMITED:
                continue
            if not offsets and parse_feature(payload, [(begin, end)])[0] == FLOAT_LIST:
                raise WrongDatasetError(_FLOATS_FOUND, begin)
            what = f"frame {len(offsets)} of {name.decode()}"
            first, last = only_bytes(payload, [(begin, end)], what, begin)
            if last - first != size:
                raise MalformedRecordError(f"{what} has {last - first:,} bytes, expected {size:,}.", first)
            offsets.append(first)
    return np.array(offsets, np.int64)
