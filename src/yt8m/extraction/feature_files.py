"""Files of features that other programs extracted, converted to records of frame-level shards.

There are MediaPipe's `features.pb` (one serialized SequenceExample with lists of floats), shards whose frames are floats
or bytes, such as those of the official extractor of 2017, and NumPy's archives (`.npz`), one per video. Floats are
quantized as the dataset's are.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from yt8m.errors import ShardError, Yt8mError, printable
from yt8m.extraction.arrays import MAX_ARCHIVE_BYTES, parse_npz, read_bounded
from yt8m.extraction.output import NO_SOUND, sound_of_frames
from yt8m.extraction.pca import quantize
from yt8m.extraction.videos import Video, id_of_digest, path_text
from yt8m.features import YOUTUBE8M
from yt8m.shards.contents import ShardFile, ShardWindow
from yt8m.shards.ids import id_fault
from yt8m.shards.names import SHARD_NAMES, is_shard_name
from yt8m.shards.records import MEDIAPIPE_LISTS
from yt8m.shards.tfrecord import iterate_records
from yt8m.shards.writer import encode_video, message_class

_MEDIAPIPE, _NUMPY = ".pb", ".npz"

FILE_NAMES = f"*{_MEDIAPIPE}, *{_NUMPY}, {SHARD_NAMES}"
"""Names of files of features, for messages."""


def is_feature_file(path: Path) -> bool:
    """Whether a file has the name of a file of features."""
    return path.suffix.lower() in (_MEDIAPIPE, _NUMPY) or is_shard_name(path.name)


def read_features(path: Path) -> Iterator[tuple[Video, bytes]]:
    """Read the videos of a file of features.

    An id in a shard that a submission can hold is kept. Other videos get one that is derived from their content.

    Yields:
        A row of `videos.csv`, without a shard, and the record of a frame-level shard; of a video that cannot be read, the
        row says why, and the record is empty. The row's path is that of the file, or, of a record, its original id.
    """
    file = Video("", path_text(path), 0, 0)
    try:
        status = path.stat()
    except OSError as error:
        yield replace(file, note=f"cannot be read ({error.strerror})"), b""
        return
    file = replace(file, num_bytes=status.st_size, mtime_ns=status.st_mtime_ns)
    for number, content in _contents(path):
        row = file if number is None else replace(file, path=f"{file.path}, record {number}")
        try:
            if isinstance(content, Yt8mError):
                raise content
            found = _of_archive(content, path) if path.suffix.lower() == _NUMPY else _of_record(content)
        except Yt8mError as error:
            reason = error.message if isinstance(error, ShardError) else str(error).removeprefix(f"{path}: ")
            yield replace(row, note=printable(reason.removesuffix("."))), b""
            continue
        notes = found.notes
        video_id = id_of_digest(hashlib.sha256(content).digest())
        if number is not None and found.original_id:
            notes = [f"record {number} of {file.path}", *notes]
            row = replace(row, path=printable(found.original_id.decode("utf-8", "backslashreplace")))
            video_id = video_id if id_fault(found.original_id) else found.original_id.decode()
        row = replace(row, video_id=video_id, seconds=len(found.frames), note="; ".join(notes))
        yield row, encode_video(video_id, found.frames, found.labels, ratings=found.ratings)


def _contents(path: Path) -> Iterator[tuple[int | None, bytes | Yt8mError]]:
    """The serialized videos of a file with their numbers, or why they cannot be read; without a number, of files of one."""
    try:
        if path.suffix.lower() in (_MEDIAPIPE, _NUMPY):
            yield None, read_bounded(path, MAX_ARCHIVE_BYTES)
            return
        for record in iterate_records(ShardWindow(ShardFile(path)), path):
            yield record.number, record.damage or bytes(record.payload)
    except Yt8mError as error:
        yield error.record if isinstance(error, ShardError) else None, error


@dataclass(frozen=True, eq=False)
class _Features:
    """Features of a video: frames uint8 (T, 1152), what the context has, and what was odd."""

    frames: NDArray[np.uint8]
    notes: list[str]
    original_id: bytes = b""
    labels: Sequence[int] = ()
    ratings: Sequence[tuple[int, int, float]] = ()


def _of_archive(content: bytes, path: Path) -> _Features:
    """Features of an `.npz` file with `rgb` (T, 1024) and `audio` (T, 128)."""
    arrays = parse_npz(content, path)
    if "rgb" not in arrays:
        raise Yt8mError(f"contains {', '.join(arrays)[:100] or 'nothing'}; expected rgb and audio.")
    quantized = []
    for name in ("rgb", "audio"):
        size = YOUTUBE8M.bytes_of(name)
        values = arrays.get(name, np.empty((0, size), np.uint8))
        if values.ndim != 2 or values.shape[1] != size:
            raise Yt8mError(f"{name} has the shape {values.shape}, expected (seconds, {size:,}).")
        quantized.append(_bytes(values, name))
    return _Features(*_aligned(*quantized))


def _of_record(payload: bytes) -> _Features:
    """Features of a serialized SequenceExample."""
    message: Any = message_class("SequenceExample")()
    try:
        message.ParseFromString(payload)
    except DecodeError:
        raise Yt8mError("is damaged, or is no SequenceExample.") from None
    context, lists = message.context.feature, message.feature_lists.feature_list
    found = {}
    for name, other in MEDIAPIPE_LISTS.items():
        used = next((known for known in (name, other) if known in lists), None)
        found[name] = _frames(lists[used], used, YOUTUBE8M.bytes_of(name)) if used else NO_SOUND
    if not len(found["rgb"]):
        expected = " and ".join(f"{name} ({other})" for name, other in MEDIAPIPE_LISTS.items())
        raise Yt8mError(f"contains no frames of rgb; expected the lists {expected}.")
    frames, notes = _aligned(found["rgb"], found["audio"])
    of = [
        f"of {printable(place.decode(errors='replace'))}" for place in [_bytes_of(context, "clip/data_path")] if place
    ]
    scores = [*_integers(context, "segment_scores"), *_floats(context, "segment_scores")]
    columns = (_integers(context, "segment_labels"), _integers(context, "segment_start_times"), scores)
    is_usable = len({len(column) for column in columns}) == 1 and all(0 <= start < 2**31 for start in columns[1])
    return _Features(
        frames,
        [*of, *notes, *([] if is_usable else ["its ratings cannot be used"])],
        _bytes_of(context, "id") or _bytes_of(context, "video_id"),
        _integers(context, "labels"),
        list(zip(*columns, strict=True)) if is_usable else (),
    )


def _bytes_of(context: Any, name: str) -> bytes:
    """The one byte string of a feature; empty without."""
    values = context[name].bytes_list.value if name in context else []
    return bytes(values[0]) if len(values) == 1 else b""


def _integers(context: Any, name: str) -> list[int]:
    """Whole numbers of a feature; none where it is absent."""
    return list(context[name].int64_list.value) if name in context else []


def _floats(context: Any, name: str) -> list[float]:
    """Floats of a feature; none where it is absent."""
    return list(context[name].float_list.value) if name in context else []


def _frames(feature_list: Any, name: str, size: int) -> NDArray[np.uint8]:
    """Frames of a list, as bytes (T, size)."""
    frames = []
    for number, feature in enumerate(feature_list.feature):
        values = (
            np.array(feature.float_list.value, np.float32)
            if feature.WhichOneof("kind") == "float_list"
            else np.frombuffer(b"".join(feature.bytes_list.value), np.uint8)
        )
        if len(values) != size:
            raise Yt8mError(f"frame {number} of {name} has {len(values):,} numbers, expected {size:,}.")
        frames.append(_bytes(values, f"frame {number} of {name}"))
    return np.stack(frames) if frames else np.empty((0, size), np.uint8)


def _bytes(values: NDArray[Any], what: str) -> NDArray[np.uint8]:
    """Bytes as they are, and numbers quantized."""
    if values.dtype == np.uint8:
        return values
    if not np.isfinite(values).all():
        raise Yt8mError(f"{what} contains numbers that are not finite.")
    return quantize(values)


def _aligned(rgb: NDArray[np.uint8], audio: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], list[str]]:
    """Frames uint8 (T, 1152), as many as of rgb, and what was odd. The official extractor writes zeros for sound."""
    if not len(rgb):
        raise Yt8mError("contains no frames.")
    sound, notes = sound_of_frames(audio if audio.any() else NO_SOUND, len(rgb))
    return np.concatenate([rgb, sound], axis=1), notes
