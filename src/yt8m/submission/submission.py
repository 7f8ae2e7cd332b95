"""The submission file: for each class its segments, best first (SPEC: the metric).

A segment travels as the bytes `video:start` that stand in the file. Writing gathers rows of a table of such
bytes, reading goes line by line; both handle 1,000 classes of 100,000 segments (about 1 GB) without holding
the file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from yt8m.errors import UsageError, Yt8mError
from yt8m.files import written_atomically
from yt8m.prediction.segments import Segments
from yt8m.ranking.topk import MAX_SEGMENTS, Ranking
from yt8m.vocabulary import Vocabulary

HEADER = b"Class,Segments"

# A start has one spelling (no leading zeros), so equal segments are equal bytes. Possessive, so a line of a
# million bytes is matched without a stack of places to come back to.
_SEGMENT = rb"[^\s,:\x00]++:(?:0|5|[1-9][0-9]*[05])"
_ONE_SEGMENT = re.compile(_SEGMENT)
_SEGMENT_LIST = re.compile(rb"(?:" + _SEGMENT + rb"(?: (?!\Z)|\Z))*+")


def segment_names(segments: Segments) -> NDArray[np.bytes_]:
    """The bytes `video:start` of every segment, (S,), padded with NULs to the longest."""
    if not len(segments):
        return np.empty(0, "S1")
    video_ids = np.array([video_id.encode() for video_id in segments.video_ids], np.bytes_)
    starts, of_segment = np.unique(segments.start_seconds, return_inverse=True)
    endings = np.array([b":%d" % start for start in starts], np.bytes_)
    return np.strings.add(video_ids[segments.rows], endings[of_segment])


def ranked_segments(ranking: Ranking, vocabulary: Vocabulary) -> Iterator[tuple[int, list[bytes]]]:
    """Yield what `read_submission` would of the written file: (label_id, segments best first) a class."""
    names = segment_names(ranking.segments)
    for class_index, label_id in enumerate(label_ids_of(ranking, vocabulary)):
        yield label_id, names[ranking.positions(class_index)].tolist()


def write_submission(path: Path, ranking: Ranking, vocabulary: Vocabulary) -> None:
    """Write a ranking as a submission, a line a class in the vocabulary's row order; complete or not at all.

    Args:
        path: The file to write.
        ranking: A class of the ranking for each row of the vocabulary, at most 100,000 segments in each.
        vocabulary: The classes.

    Raises:
        Yt8mError: The disk is full or the folder cannot be written to.
        ValueError: The ranking has other classes than the vocabulary, or too many segments in one.
    """
    label_ids = label_ids_of(ranking, vocabulary)
    if any(len(keys) > MAX_SEGMENTS for keys in ranking.keys):
        raise ValueError(f"a submission holds at most {MAX_SEGMENTS} segments a class.")
    names = segment_names(ranking.segments)
    names = np.strings.add(names, b" ") if len(names) else names
    # As opaque items, gathering copies whole rows and keeps the NULs; they go all at once afterwards.
    table = names.view(f"V{names.itemsize}")
    with written_atomically(path) as temporary, temporary.open("wb") as file:
        file.write(HEADER + b"\n")
        for class_index, label_id in enumerate(label_ids):
            listed = table[ranking.positions(class_index)].tobytes().translate(None, b"\0")
            file.write(b"%d," % label_id + listed[:-1] + b"\n")


def read_submission(path: Path, vocabulary: Vocabulary | None = None) -> Iterator[tuple[int, list[bytes]]]:
    """Read a submission class by class, checking all of it on the way.

    Checked: the header, that each class is a whole number, occurs once and is of the vocabulary, and that its
    segments are at most 100,000, well formed (`video:start`, the start a multiple of 5 from 0 without leading
    zeros) and not repeated. Empty lines are passed over.

    Args:
        path: The file.
        vocabulary: The classes that may occur; without it any class may.

    Yields:
        (label_id, segments best first), a segment as the bytes `video:start`.

    Raises:
        UsageError: The file is missing or cannot be opened; at the first item asked for, like all other
            errors.
        Yt8mError: The file is not a valid submission; the sentence names the line.
    """
    known = None if vocabulary is None else frozenset(vocabulary.label_ids.tolist())
    lines_of_classes: dict[int, int] = {}
    try:
        with path.open("rb") as file:
            _check_header(path, file)
            for number, line in enumerate(file, start=2):
                stripped = line.rstrip(b"\r\n")
                if not stripped:
                    continue
                place = f"{path}, line {number}"
                label_id, segments = parse_line(place, stripped)
                if known is not None and label_id not in known:
                    raise Yt8mError(
                        f"{place}: {label_id} is not a class of the vocabulary; expected an id (its column "
                        "Index), not a position in it."
                    )
                if label_id in lines_of_classes:
                    raise Yt8mError(
                        f"{place}: class {label_id} occurs a second time, after line "
                        f"{lines_of_classes[label_id]}; expected one line a class."
                    )
                lines_of_classes[label_id] = number
                yield label_id, segments
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such file; expected a submission.") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read as a submission ({error.strerror}).") from None
    if not lines_of_classes:
        raise Yt8mError(f"{path}: holds no class; expected a line a class below the header.")


def first_repeated(segments: Sequence[bytes]) -> bytes | None:
    """The first segment of a list that occurs in it again, or None."""
    if len(set(segments)) == len(segments):
        return None
    counts = Counter(segments)
    return next(segment for segment in segments if counts[segment] > 1)


def label_ids_of(ranking: Ranking, vocabulary: Vocabulary) -> list[int]:
    """Ids of a ranking's classes.

    Raises:
        ValueError: The ranking has other classes than the vocabulary.
    """
    if len(ranking) != len(vocabulary):
        raise ValueError(f"the ranking has {len(ranking)} classes, the vocabulary {len(vocabulary)}.")
    label_ids: list[int] = vocabulary.label_ids.tolist()
    return label_ids


def shown(text: bytes) -> str:
    """Some bytes of a file for a message, not too many of them."""
    start = text[:200].decode("utf-8", errors="replace")
    return repr(start[:40] + "..." if len(start) > 40 else start)


def _check_header(path: Path, file: BinaryIO) -> None:
    header = file.readline(1000).rstrip(b"\r\n")
    if header != HEADER:
        raise Yt8mError(f"{path}, line 1: expected the header {HEADER.decode()!r}, found {shown(header)}.")


def is_segment(item: bytes) -> bool:
    """Whether an item of a line is a well-formed segment, `video:start`."""
    return _ONE_SEGMENT.fullmatch(item) is not None


def parse_class(line: bytes) -> int | None:
    """The class that a line is of; None where it does not begin with a class id and a comma."""
    class_id, comma, _ = line.partition(b",")
    # bytes.isdigit knows the ten ASCII digits only.
    return int(class_id) if comma and class_id.isdigit() and len(class_id) <= 18 else None


def parse_line(place: str, line: bytes) -> tuple[int, list[bytes]]:
    """Read the line of a class.

    Args:
        place: File and line, for errors.
        line: The line without its end.

    Returns:
        The label_id and the segments.

    Raises:
        Yt8mError: It is not UTF-8, has no class, or lists too many, malformed or repeated segments.
    """
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Yt8mError(f"{place}: byte {error.start} of the line is not UTF-8 text.") from None
    label_id = parse_class(line)
    if label_id is None:
        raise Yt8mError(f"{place}: expected a class id, a comma and segments, found {shown(line)}.")
    listed = line.partition(b",")[2]
    segments = listed.split(b" ") if listed else []
    if len(segments) > MAX_SEGMENTS:
        raise Yt8mError(
            f"{place}: class {label_id} lists {len(segments):,} segments; at most {MAX_SEGMENTS:,} are allowed."
        )
    if not _SEGMENT_LIST.fullmatch(listed):
        wrong = next(number for number, segment in enumerate(segments) if not is_segment(segment))
        raise Yt8mError(
            f"{place}: segment {wrong + 1} of class {label_id} is {shown(segments[wrong])}; expected "
            "'video:start', the start a multiple of 5 in seconds, and single spaces between segments."
        )
    repeated = first_repeated(segments)
    if repeated is not None:
        raise Yt8mError(f"{place}: class {label_id} lists segment {shown(repeated)} more than once.")
    return label_id, segments
