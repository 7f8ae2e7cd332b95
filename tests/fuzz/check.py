"""Checks that every reader must pass for any record and any shard.

A reader returns or raises `MalformedRecordError`, within limits of time and memory. It rejects what the protobuf parser
rejects, and what it returns equals what protobuf finds in the same bytes. It rejects no valid record: `video_fault` and
`video_level_fault` derive the validity of a record from its protobuf message.
"""

from __future__ import annotations

import math
import re
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import google_crc32c
import numpy as np
from google.protobuf.message import DecodeError

from tests.fuzz.fields import Field, every_field, tree
from tests.support.rows import labels_of, ratings_of
from tests.support.wire import delimited, protobuf_frames
from yt8m.dataset.catalog import Catalog
from yt8m.dataset.frames import FrameReader
from yt8m.dataset.indexing import index_folder
from yt8m.errors import Yt8mError
from yt8m.shards import records
from yt8m.shards.records import FrameLayout, VideoRecord
from yt8m.shards.wire import MalformedRecordError, UnusableIdError, WrongDatasetError
from yt8m.shards.writer import message_class

SIZES = {"rgb": 1024, "audio": 128}
INTEGERS = ("labels", "segment_labels", "segment_start_times", "segment_end_times")
MEANS = {"mean_rgb": 1024, "mean_audio": 128}
WRONG = "another dataset"
BAD_ID = "an id that no submission can hold"

MAX_SECONDS = (0.1, 20e-6)
"""Time limit of a reader: per record, and per byte of it."""
MAX_PEAK_BYTES = (2**16, 64)
"""Memory limit: per record, and per byte. A number of 2 bytes becomes an object of 32 bytes and 2 or 3 pointers."""

T = TypeVar("T")


class DefectError(Exception):
    """A check failed."""


@dataclass(frozen=True)
class Outcome:
    """Results of the readers for one record.

    Args:
        kinds: One or two lines per reader: what it accepted, or why it rejected, without numbers and quoted bytes.
        seconds: Processor time of the slowest reader.
        peak_bytes: Largest memory of a reader.
    """

    kinds: tuple[str, ...]
    seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class _Result:
    found: Any
    error: MalformedRecordError | None
    seconds: float
    peak_bytes: int


def check_record(payload: bytes) -> Outcome:
    """Check the results of every reader for a record.

    Raises:
        DefectError: A check failed.
    """
    video = _run(records.read_video, payload)
    offsets = _run(records.frame_offsets, payload)
    video_level = _run(records.read_video_level, payload)
    message, example = parsed(payload, "SequenceExample"), parsed(payload, "Example")
    is_within_limits = _is_within_limits(tree(payload))
    _agree("read_video", video, message, video_fault, is_within_limits)
    # An Example has no feature lists: it is read without parsing them, unless it is to be found out what the record is.
    level = example if example is not None and "mean_rgb" in example.features.feature else message
    _agree("read_video_level", video_level, level, video_level_fault, is_within_limits)
    if message is not None:
        # Frames are located only in records that `read_video` accepts.
        _agree("frame_offsets", offsets, message, lists_fault, is_within_limits)
    if video.found is not None:
        _same_video(payload, video.found, message)
        if offsets.found is None:
            raise DefectError("read_video accepts what frame_offsets refuses")
        _same_frames(payload, offsets.found, message)
    if video_level.found is not None:
        _same_means(video_level.found, example)
    results = (video, offsets, video_level)
    return Outcome(
        (
            *(f"read_video: {kind}" for kind in _kinds(video, _video_shapes)),
            *(f"read_video_level: {kind}" for kind in _kinds(video_level, _video_level_shapes)),
        ),
        max(result.seconds for result in results),
        max(result.peak_bytes for result in results),
    )


# --- Rules ------------------------------------------------------------------------------------------------------------


def video_fault(message: Any) -> str | None:
    """Why a SequenceExample is no valid frame-level record by the rules of records.py, or None."""
    context, lists = message.context.feature, message.feature_lists.feature_list
    other = lists.keys() & {"audio_embedding", "RGB/feature/floats", "AUDIO/feature/floats"}
    if not lists.keys() & SIZES.keys() and (other or any(name in context for name in MEANS)):
        return WRONG
    if lists_fault(message) == WRONG:
        return WRONG
    if context_fault := _id_fault(context) or _integers_fault(context, INTEGERS):
        return context_fault
    if _kind_of(context, "segment_scores") == "bytes_list":
        return "scores that are no numbers"
    if fault := lists_fault(message):
        return fault
    return None if any(lists[name].feature for name in SIZES if name in lists) else "no frames"


def lists_fault(message: Any) -> str | None:
    """Why the frames of a SequenceExample are invalid, or None: each must be one string of the right size.

    A list whose first frame is floats is another dataset's.
    """
    lists = message.feature_lists.feature_list
    for name, size in SIZES.items():
        for number, feature in enumerate(lists[name].feature if name in lists else []):
            if number == 0 and feature.WhichOneof("kind") == "float_list":
                return WRONG
            if [len(value) for value in feature.bytes_list.value] != [size]:
                return f"a frame of {name} of the wrong size"
    return None


def video_level_fault(message: Any) -> str | None:
    """Why an Example, or a SequenceExample without mean_rgb, is no valid video-level record, or None."""
    if not hasattr(message, "features"):
        lists = message.feature_lists.feature_list
        return WRONG if "rgb" in lists or "audio_embedding" in lists else "no means"
    context = message.features.feature
    for name, size in MEANS.items():
        if name not in context or len(context[name].float_list.value) != size:
            return f"{name} of the wrong size"
    return _id_fault(context) or _integers_fault(context, ("labels",))


def _id_fault(context: Any) -> str | None:
    name = "id" if "id" in context else "video_id"
    if name not in context or len(context[name].bytes_list.value) != 1:
        return "not one id"
    raw = context[name].bytes_list.value[0]
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return BAD_ID
    is_allowed = 1 <= len(raw) <= 64 and all(c.isprintable() and c not in " ,:" for c in text)
    return None if is_allowed else BAD_ID


def _integers_fault(context: Any, names: Iterable[str]) -> str | None:
    for name in names:
        kind = _kind_of(context, name)
        if kind == "bytes_list":
            return f"{name} that are no numbers"
        values = [] if kind is None else getattr(context[name], kind).value
        if len(values) > 2**20 or not all(math.isfinite(value) and value == int(value) for value in values):
            return f"{name} that are no list of whole numbers that is short enough"
    return None


def _kind_of(context: Any, name: str) -> str | None:
    return context[name].WhichOneof("kind") if name in context else None


def _is_within_limits(record: Field) -> bool:
    """Whether a record is within the limits of records.py: no groups, no message in more than 1,000 parts."""
    every = list(every_field(record))
    return all(field.wire_type != 3 for field in every) and sum(field.is_message for field in every) <= 1000


# --- Protobuf ---------------------------------------------------------------------------------------------------------


def parsed(payload: bytes, name: str) -> Any:
    """A record as protobuf parses it, or None if protobuf rejects it.

    A map is equivalent to repeated entries, whose unknown fields are skipped, and C++ reads it so. Python's parser drops
    entries with unknown fields instead, so these fields are removed before parsing.
    """
    message = parsed_by_python(payload, name)
    plainer = payload if message is None else without_unknown_in_entries(payload)
    return message if plainer == payload else parsed_by_python(plainer, name)


def parsed_by_python(payload: bytes, name: str) -> Any:
    """A record as the parser of Python's protobuf package parses it, or None if it rejects it."""
    try:
        return message_class(name).FromString(payload)
    except DecodeError:
        return None


def without_unknown_in_entries(payload: bytes) -> bytes:
    """A record without the unknown fields of entries of maps."""

    def raw(field: Field) -> bytes:
        return payload[field.start : field.end]

    def plainer_section(section: Field) -> bytes:
        return delimited(section.number, b"".join(map(plainer_entry, section.children)))

    def plainer_entry(entry: Field) -> bytes:
        known = [child for child in entry.children if child.number in (1, 2) and child.wire_type == 2]
        return raw(entry) if len(known) == len(entry.children) else delimited(1, b"".join(map(raw, known)))

    # Fields without children, including unknown ones, are kept.
    fields = tree(payload).children
    return b"".join(plainer_section(field) if field.children else raw(field) for field in fields)


# --- Readers ----------------------------------------------------------------------------------------------------------


def _run(reader: Callable[[bytes], Any], payload: bytes) -> _Result:
    """Run a reader and check its errors, time and memory.

    Raises:
        DefectError: It raised another error than `MalformedRecordError`, or took too much time or memory.
    """
    result = _run_once(reader, payload)
    allowed = MAX_SECONDS[0] + MAX_SECONDS[1] * len(payload)
    if result.seconds > allowed:
        # Other processes may have delayed the first run.
        result = min(result, _run_once(reader, payload), key=lambda result: result.seconds)
        if result.seconds > allowed:
            raise DefectError(f"{reader.__name__} takes {result.seconds:.2f} s for {len(payload):,} bytes")
    if result.peak_bytes > MAX_PEAK_BYTES[0] + MAX_PEAK_BYTES[1] * len(payload):
        raise DefectError(f"{reader.__name__} takes {result.peak_bytes:,} bytes of memory for {len(payload):,}")
    error = result.error
    if error is not None:
        if not 0 <= error.offset <= len(payload):
            raise DefectError(f"an error at byte {error.offset} of {len(payload)}")
        if not (error.message.isprintable() and error.message.endswith(".") and len(error.message) < 500):
            raise DefectError(f"an error that is no sentence: {error.message!r}")
    return result


def _run_once(reader: Callable[[bytes], Any], payload: bytes) -> _Result:
    found = error = None
    tracemalloc.start()
    start = time.process_time()
    try:
        found = reader(payload)
    except MalformedRecordError as malformed:
        error = malformed
    except Exception as other:
        raise DefectError(f"{reader.__name__} raises {type(other).__name__}: {other}") from other
    finally:
        seconds = time.process_time() - start
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return _Result(found, error, seconds, peak_bytes)


def _agree(
    reader: str, result: _Result, message: Any, fault_of: Callable[[Any], str | None], is_within_limits: bool
) -> None:
    """Check that a reader rejects a record if protobuf does or it has a fault, and, within the limits, only then."""
    fault = "a form that protobuf rejects" if message is None else fault_of(message)
    if result.error is None and fault is not None:
        raise DefectError(f"the record has {fault}, and {reader} accepts it")
    if message is None or not is_within_limits:
        return
    if result.error is not None and fault is None:
        raise DefectError(f"the record has no fault, and {reader} raises: {result.error.message}")
    if isinstance(result.error, WrongDatasetError) != (fault == WRONG):
        raise DefectError(f"the record has {fault}, and {reader} takes it for {result.error}")


def _same(what: str, found: T, expected: T) -> None:
    if found != expected:
        raise DefectError(f"{what}: {found!r:.200}, and protobuf finds {expected!r:.200}")


def _same_video(payload: bytes, found: VideoRecord, message: Any) -> None:
    context = message.context.feature
    _same("id", found.id, _protobuf_id(context))
    for name in INTEGERS:
        _same(name, getattr(found, name), _protobuf_integers(context, name))
    # Compared as bytes, because NaN is not equal to itself.
    scores = _protobuf_scores(context)
    _same("segment_scores", np.array(found.segment_scores, float).tobytes(), np.array(scores, float).tobytes())
    for name, layout in (("rgb", found.rgb), ("audio", found.audio)):
        frames = protobuf_frames(message, name)
        _same(f"number of frames of {name}", layout.num_frames, len(frames))
        if layout.stride:
            starts = range(layout.offset, layout.offset + layout.num_frames * layout.stride, layout.stride)
            _same(name, [payload[at : at + SIZES[name]] for at in starts], frames)


def _same_frames(payload: bytes, found: tuple[Any, Any], message: Any) -> None:
    for (name, size), offsets in zip(SIZES.items(), found, strict=True):
        _same(name, [payload[at : at + size] for at in offsets.tolist()], protobuf_frames(message, name))


def _same_means(found: records.VideoLevelRecord, message: Any) -> None:
    context = message.features.feature
    _same("id", found.id, _protobuf_id(context))
    _same("labels", found.labels, _protobuf_integers(context, "labels"))
    for name in MEANS:
        values = getattr(found, name).astype(float)
        _same(name, values.tobytes(), np.array(context[name].float_list.value, float).tobytes())


def _protobuf_id(context: Any) -> str:
    text: str = context["id" if "id" in context else "video_id"].bytes_list.value[0].decode()
    return text


def _protobuf_integers(context: Any, name: str) -> tuple[int, ...]:
    return (*context[name].int64_list.value, *map(int, context[name].float_list.value))


def _protobuf_scores(context: Any) -> list[float]:
    scores = context["segment_scores"]
    return [*scores.float_list.value, *map(float, scores.int64_list.value)]


def _kinds(result: _Result, shapes: Callable[[Any], Iterable[str]]) -> list[str]:
    if result.error is None:
        return [f"accepted, {shape}" for shape in shapes(result.found)]
    return [f"rejected: {without_particulars(result.error.message)}"]


def without_particulars(message: str) -> str:
    """An error message without numbers, file names and quoted bytes, so that equal reasons compare equal."""
    message = re.sub(r"""b?'(\\.|[^'])*'|b?"(\\.|[^"])*"|(?<!\w)/[^\s:,]+""", "...", message)
    return re.sub(r"\d[\d,]*", "N", message)


def _video_shapes(found: VideoRecord) -> Iterator[str]:
    counts = {len(column) for column in (found.segment_labels, found.segment_start_times, found.segment_scores)}
    ratings = "uneven ratings" if len(counts) > 1 else "no ratings" if counts == {0} else "ratings"
    yield f"{'labels' if found.labels else 'no labels'}, {ratings}"
    lengths = "equally many" if found.rgb.num_frames == found.audio.num_frames else "not equally many"
    yield f"{_spacing(found.rgb, 1033)} rgb, {_spacing(found.audio, 137)} audio, {lengths}"


def _video_level_shapes(found: records.VideoLevelRecord) -> Iterator[str]:
    yield "labels" if found.labels else "no labels"


def _spacing(layout: FrameLayout, usual: int) -> str:
    return "unequally spaced" if not layout.stride else "usual" if layout.stride == usual else "widely spaced"


# --- Shards -----------------------------------------------------------------------------------------------------------


def plain_records(shard: bytes) -> tuple[list[bytes | None], bool]:
    """The payloads of a shard, None for a wrong checksum, and whether the shard ends at the end of a record."""
    payloads: list[bytes | None] = []
    at = 0
    while at < len(shard):
        header = shard[at : at + 12]
        if len(header) < 12 or _masked(header[:8]) != header[8:]:
            return payloads, False
        end = at + 12 + int.from_bytes(header[:8], "little")
        if end + 4 > len(shard):
            return payloads, False
        payload = shard[at + 12 : end]
        payloads.append(payload if _masked(payload) == shard[end : end + 4] else None)
        at = end + 4
    return payloads, True


def _masked(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32)


def check_shard(shard: bytes, path: Path) -> str:
    """Index a folder with one shard and read all of its videos.

    Args:
        shard: Content of the shard.
        path: A new file `*.tfrecord` in an empty folder. It is removed at the end.

    Returns:
        The outcome, without numbers.

    Raises:
        DefectError: A check failed.
    """
    path.write_bytes(shard)
    try:
        return _check_written(shard, path)
    finally:
        path.unlink()


def _check_written(shard: bytes, path: Path) -> str:
    payloads, is_whole = plain_records(shard)
    rows: dict[int, VideoRecord] = {}
    num_problems = 0 if is_whole else 1
    other_dataset = False
    for number, payload in enumerate(payloads):
        try:
            if payload is None:
                num_problems += 1
            else:
                rows[number] = records.read_video(payload)
        except UnusableIdError:
            continue
        except MalformedRecordError as error:
            num_problems += 1
            other_dataset |= isinstance(error, WrongDatasetError) and not rows
    try:
        catalog = index_folder(path.parent)
    except Yt8mError as error:
        if rows and not other_dataset:
            raise DefectError(f"{len(rows)} records are sound, and: {error}") from error
        return f"index_folder: rejected: {without_particulars(str(error))}"
    except Exception as error:
        raise DefectError(f"index_folder raises {type(error).__name__}: {error}") from error
    if other_dataset:
        raise DefectError("a shard that begins with another dataset's record is accepted")
    firsts = {row.id: number for number, row in reversed(rows.items())}
    kept = sorted(firsts.values())
    _same("records that are rows", catalog.record_number.tolist(), kept)
    _same("problems", catalog.num_problems, num_problems)
    for row, number in enumerate(kept):
        payload = payloads[number]
        if payload is not None:
            _same_row(catalog, row, payload)
    parts = ["some records" if num_problems else "all records"]
    parts += ["repeated ids"] if len(kept) < len(rows) else []
    parts += [] if is_whole else ["the rest of the shard lost"]
    return f"index_folder: accepted, {', '.join(parts)}"


def _same_row(catalog: Catalog, row: int, payload: bytes) -> None:
    message = parsed(payload, "SequenceExample")
    context = message.context.feature
    rgb, audio = (protobuf_frames(message, name) for name in SIZES)
    # For a list that is missing, the bytes that are nearest to a value of 0.
    rgb, audio = rgb or [b"\x7f" * 1024] * len(audio), audio or [b"\x7f" * 128] * len(rgb)
    # The longer list is truncated.
    frames = [first + second for first, second in zip(rgb, audio, strict=False)]
    _same("id", catalog.id_of(row), _protobuf_id(context))
    _same("num_frames", int(catalog.num_frames[row]), len(frames))
    labels = sorted({label for label in _protobuf_integers(context, "labels") if 0 <= label < 3862})
    _same("labels", labels_of(catalog, row).tolist(), labels)
    ratings = ratings_of(catalog, row)
    columns = (ratings.start_seconds.tolist(), ratings.label_ids.tolist(), ratings.values.tolist())
    _same("ratings", list(zip(*columns, strict=True)), plain_ratings(context, len(frames)))
    try:
        read = FrameReader(catalog).read(row)
    except Exception as error:
        raise DefectError(f"FrameReader.read raises {type(error).__name__}: {error}") from error
    _same("frames", [bytes(frame) for frame in read], frames)


def plain_ratings(context: Any, num_frames: int) -> list[tuple[int, int, int]]:
    """The valid ratings (start, label, value): inside the video, at a multiple of 5, 0 or 1, not contradictory."""
    labels, starts, ends = (_protobuf_integers(context, name) for name in INTEGERS[1:])
    scores = _protobuf_scores(context)
    if not len(labels) == len(starts) == len(scores) or len(ends) not in (0, len(starts)):
        return []
    usable = {
        (start, label, score)
        for label, start, score in zip(labels, starts, scores, strict=True)
        if 0 <= label < 3862 and 0 <= start < num_frames and start % 5 == 0 and score in (0, 1)
    }
    return sorted(
        (start, label, int(score)) for start, label, score in usable if (start, label, 1 - score) not in usable
    )
