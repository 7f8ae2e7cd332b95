"""The submission format: its rules, and the problems of a file that violates them.

The header `Class,Segments` is followed by one line per class, `label_id,video:start video:start ...`, best segment first
(docs/method.md, "Metric"). Segments are handled as the bytes `video:start` of the file, which is read line by line: 1,000
classes of 100,000 segments are about 1 GB.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain, compress
from pathlib import Path
from typing import Self

from yt8m.errors import Yt8mError
from yt8m.ranking import MAX_SEGMENTS
from yt8m.shards.ids import ID_BYTE, SEGMENT_SECONDS
from yt8m.submission.opening import MAX_LINE_BYTES, opened_submission
from yt8m.vocabulary import Vocabulary

HEADER = b"Class,Segments"

MAX_LINES = 100_000
"""Lines of a file, empty ones included; the dataset has 3,862 classes."""

# A start has one spelling (no leading zeros), so equal segments are equal bytes. The quantifiers are possessive, so that
# a line of a million bytes is matched without a stack for backtracking.
_SEGMENT = ID_BYTE + rb"++:(?:0|5|[1-9][0-9]*[05])"
_SEGMENTS = re.compile(rb"(?:" + _SEGMENT + rb" )*+")
_ANY_START = re.compile(ID_BYTE + rb"+:(-?)(?:0|[1-9][0-9]*)")


class ProblemKind(StrEnum):
    """Kinds of problems of a submission; each has a description in the plural."""

    description: str

    def __new__(cls, value: str, description: str) -> Self:
        """Add a kind."""
        kind = str.__new__(cls, value)
        kind._value_ = value
        kind.description = description
        return kind

    HEADER = "header", "headers other than 'Class,Segments'"
    TOO_LONG = "too_long", "files or lines that are too long"
    NO_CLASS = "no_class", "files without a class"
    LINE = "line", "lines that are not a class id, a comma and segments"
    ENCODING = "encoding", "lines that are not UTF-8 text"
    CLASS_UNKNOWN = "class_unknown", "classes outside the vocabulary"
    CLASS_REPEATED = "class_repeated", "repeated classes"
    TOO_MANY = "too_many", f"classes with more than {MAX_SEGMENTS:,} segments"
    SPACES = "spaces", "empty items: doubled, leading or trailing spaces"
    NEGATIVE = "negative", "segments with a negative start"
    OFF_GRID = "off_grid", f"segments with a start that is not a multiple of {SEGMENT_SECONDS} seconds"
    MALFORMED = "malformed", "items that are not 'video:start'"
    REPEATED = "repeated", "segments repeated within a class"
    VIDEO_UNKNOWN = "video_unknown", "segments of videos that the shards do not contain"
    BEYOND_END = "beyond_end", "segments beyond the end of their video"


Report = Callable[[ProblemKind, str, int | None], None]
"""Receives a problem: its kind, what was found and expected, and the number of the line (None for the complete file)."""


@dataclass(frozen=True, eq=False)
class ClassLine:
    """The line of a class.

    Args:
        number: Number of the line, from 1.
        label_id: The class.
        num_items: Number of items in its list, valid or not.
        segments: The well-formed segments among the first 100,000 items, best first.
        places: Place of each segment in the list, from 1.
    """

    number: int
    label_id: int
    num_items: int
    segments: list[bytes]
    places: Sequence[int]


def parse_submission(lines: Iterable[bytes], vocabulary: Vocabulary | None, report: Report) -> Iterator[ClassLine]:
    """Parse a submission and report every problem that its text alone shows.

    The header must be there; each class must be a whole number, of the vocabulary, and occur once; its segments must be
    at most 100,000, well formed (`video:start`, the start a multiple of 5 without leading zeros) and distinct. Empty lines
    are skipped. Time and memory are in proportion to the size of the file, whatever it contains: of a list that is too
    long, only the first 100,000 segments are examined, and parsing ends at a line of more than `MAX_LINE_BYTES` or after
    `MAX_LINES`.

    Args:
        lines: The lines of the file; a longer one may be cut after `MAX_LINE_BYTES` and one byte.
        vocabulary: The allowed classes; without it all are.
        report: Receives each problem, in the order of the file.
    """
    allowed = None if vocabulary is None else frozenset(vocabulary.label_ids.tolist())
    first_lines: dict[int, int] = {}
    lines = iter(lines)
    first_line = next(lines, b"")
    header = first_line.rstrip(b"\r\n")
    start = 2
    if header != HEADER:
        report(ProblemKind.HEADER, f"expected the header {HEADER.decode()!r}, found {_excerpt(header)}", 1)
        if _parse_label_id(header) is not None:  # The header is missing: this is the line of a class.
            lines, start = chain([first_line], lines), 1
        elif _is_too_long(first_line, 1, report):
            return
    for number, line in enumerate(lines, start=start):
        if _is_too_long(line, number, report):
            return
        stripped = line.rstrip(b"\r\n")
        if not stripped:
            continue
        label_id = _parse_label_id(stripped)
        if label_id is None:
            message = f"expected a class id, a comma and segments, found {_excerpt(stripped)}"
            report(ProblemKind.LINE, message, number)
            continue
        if allowed is not None and label_id not in allowed:
            message = f"{label_id} is not a class of the vocabulary; expected an id (column Index), not a row number"
            report(ProblemKind.CLASS_UNKNOWN, message, number)
        first = first_lines.setdefault(label_id, number)
        if first != number:
            message = f"class {label_id} occurs a second time, after line {first}; expected one line per class"
            report(ProblemKind.CLASS_REPEATED, message, number)
        yield _parse_segments(number, label_id, stripped, report)
    if not first_lines:
        report(ProblemKind.NO_CLASS, "contains no class; expected one line per class below the header", None)


def read_submission(path: Path, vocabulary: Vocabulary | None = None) -> Iterator[tuple[int, list[bytes]]]:
    """Read a submission class by class and check it.

    Args:
        path: The file.
        vocabulary: The allowed classes; without it all are.

    Yields:
        (label_id, segments best first), a segment as the bytes `video:start`.

    Raises:
        UsageError: The file is missing or cannot be opened; raised by the first iteration, like all other errors.
        Yt8mError: The file is not a valid submission; the message is the first problem of `parse_submission`.
    """

    def refuse(_: ProblemKind, message: str, line: int | None) -> None:
        raise Yt8mError(located(path, line, message))

    with opened_submission(path) as opened:
        for line in parse_submission(opened.lines, vocabulary, refuse):
            yield line.label_id, line.segments


def _is_too_long(line: bytes, number: int, report: Report) -> bool:
    """Whether parsing ends at a line, which is then reported."""
    if len(line) > MAX_LINE_BYTES:
        message = f"the line has more than {MAX_LINE_BYTES:,} bytes; at most {MAX_SEGMENTS:,} segments are allowed"
    elif number > MAX_LINES:
        message = "expected one line per class, and no more lines"
    else:
        return False
    report(ProblemKind.TOO_LONG, f"{message}; the rest of the file is not read", number)
    return True


def located(path: Path, line: int | None, message: str) -> str:
    """The message of a problem as a sentence with its location."""
    return f"{path}{'' if line is None else f', line {line}'}: {message}."


def segment_message(label_id: int, place: int, segment: bytes, reason: str) -> str:
    """The message of a problem of one item of a class's list; `place` counts from 1."""
    return f"segment {place} of class {label_id} is {_excerpt(segment)}; {reason}"


def _parse_label_id(line: bytes) -> int | None:
    """The class id at the start of a line; None if the line does not start with an id and a comma."""
    label_id, comma, _ = line.partition(b",")
    # bytes.isdigit accepts only the ten ASCII digits.
    return int(label_id) if comma and label_id.isdigit() and len(label_id) <= 18 else None


def _parse_segments(number: int, label_id: int, line: bytes, report: Report) -> ClassLine:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as error:
        report(ProblemKind.ENCODING, f"byte {error.start} of the line is not UTF-8 text", number)
    listed = line.partition(b",")[2]
    items = listed.split(b" ", MAX_SEGMENTS) if listed else []
    num_items = len(items)
    if num_items > MAX_SEGMENTS:
        num_items += items.pop().count(b" ")
        listed = b" ".join(items)
        message = f"class {label_id} lists {num_items:,} segments; at most {MAX_SEGMENTS:,} are allowed"
        report(ProblemKind.TOO_MANY, message, number)
    malformed = _malformed(listed + b" ") if items else []
    if not malformed and len(set(items)) == len(items):
        return ClassLine(number, label_id, num_items, items, range(1, len(items) + 1))
    are_valid = bytearray(b"\1") * len(items)
    for place in malformed:
        are_valid[place - 1] = False
    segments = list(compress(items, are_valid))
    places = list(compress(range(1, len(items) + 1), are_valid))
    for place in sorted([*malformed, *_repeated(segments, places)]):
        item = items[place - 1]
        kind, reason = (
            _fault(item) if not are_valid[place - 1] else (ProblemKind.REPEATED, "the class lists it more than once")
        )
        report(kind, segment_message(label_id, place, item, reason), number)
    return ClassLine(number, label_id, num_items, segments, places)


def _malformed(items: bytes) -> list[int]:
    """The places of items that are no segments, each item followed by a space; the others are matched many at a time."""
    places: list[int] = []
    place = start = 0
    while start < len(items):
        match = _SEGMENTS.match(items, start)
        end = match.end() if match else start
        if end == len(items):
            break
        place += items.count(b" ", start, end) + 1
        places.append(place)
        start = items.index(b" ", end) + 1
    return places


def _repeated(segments: list[bytes], places: list[int]) -> list[int]:
    """The places of segments that are listed before."""
    if len(set(segments)) == len(segments):
        return []
    first_places: dict[bytes, int] = {}
    return [
        place
        for segment, place in zip(segments, places, strict=True)
        if first_places.setdefault(segment, place) != place
    ]


def _fault(item: bytes) -> tuple[ProblemKind, str]:
    """The problem of a malformed item, and what was expected."""
    if not item:
        return ProblemKind.SPACES, "expected single spaces between segments and none at the ends"
    match = _ANY_START.fullmatch(item)
    if match is None:
        return ProblemKind.MALFORMED, "expected 'video:start', the start in seconds without leading zeros"
    if match[1]:
        return ProblemKind.NEGATIVE, "expected a start of 0 or later"
    return ProblemKind.OFF_GRID, f"expected a start that is a multiple of {SEGMENT_SECONDS} seconds"


def _excerpt(text: bytes) -> str:
    """The first 40 characters of a text, quoted for a message."""
    start = text[:200].decode("utf-8", errors="replace")
    return repr(start[:40] + "..." if len(start) > 40 else start)
