"""Whether a submission would be accepted, and all that is wrong with it, not only the first thing.

Each line goes through the parser of `read_submission`, so what is accepted here is what can be read and scored. Where
the parser objects, the line is gone through item by item to name and count every fault. With the catalog of the shards
that were to be predicted, ids and starts are looked up as well, a class at a time.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yt8m.dataset.catalog import Catalog
from yt8m.dataset.sampling import CROP_START_SECONDS, num_evaluated_segments
from yt8m.errors import UsageError, Yt8mError
from yt8m.ranking.topk import MAX_SEGMENTS
from yt8m.runtime.progress import ProgressFactory, no_progress
from yt8m.shards.records import SEGMENT_SECONDS
from yt8m.submission.submission import HEADER, is_segment, parse_class, parse_line, shown
from yt8m.vocabulary import Vocabulary

MAX_LISTED = 20
"""Problems that are told one by one; the others are counted."""

_BYTES_PER_REPORT = 2**24


class Kind(StrEnum):
    """What may be wrong with a submission, as words that follow a number."""

    HEADER = "headers other than 'Class,Segments'"
    NO_CLASS = "files without a class"
    LINE = "lines that are not a class id, a comma and segments"
    ENCODING = "lines that are not UTF-8 text"
    CLASS_UNKNOWN = "classes that are not of the vocabulary"
    CLASS_REPEATED = "classes that occurred before"
    TOO_MANY = f"classes with more than {MAX_SEGMENTS:,} segments"
    SPACES = "empty items, where a space is doubled or stands at an end"
    NEGATIVE = "segments with a negative start"
    OFF_GRID = "segments with a start off the 5-second grid"
    MALFORMED = "items that are not 'video:start'"
    REPEATED = "segments that their class lists before"
    VIDEO_UNKNOWN = "segments of videos that are not in the shards"
    BEYOND_END = "segments beyond the end of their video"


@dataclass(frozen=True)
class Checked:
    """What was found in a submission.

    Args:
        path: The file.
        num_classes: Lines that name a class.
        num_segments: Items that they list.
        problems: Number of each kind of problem found; empty where the file would be accepted.
        listed: A sentence for each of the first problems, line by line.
        remarks: Sentences about what is allowed and costs score.
        not_looked_at: What could not be checked without the shards or the vocabulary, in words.
    """

    path: Path
    num_classes: int
    num_segments: int
    problems: dict[Kind, int]
    listed: tuple[str, ...]
    remarks: tuple[str, ...]
    not_looked_at: tuple[str, ...]

    @property
    def num_problems(self) -> int:
        """Problems in all."""
        return sum(self.problems.values())

    @property
    def is_accepted(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def check_submission(
    path: Path,
    vocabulary: Vocabulary | None = None,
    catalog: Catalog | None = None,
    progress: ProgressFactory = no_progress,
) -> Checked:
    """Find everything that is wrong with a submission.

    Args:
        path: The file.
        vocabulary: The classes that may occur; without it any class may.
        catalog: The videos that may occur; without it, ids and ends of videos are not looked at.
        progress: Reports bytes read.

    Raises:
        UsageError: The file is missing or cannot be opened. Whatever is wrong inside it is found, not raised.
    """
    check = _Check(path, vocabulary, None if catalog is None else _Videos(catalog))
    try:
        with path.open("rb") as file, progress(f"check {path}", path.stat().st_size, "bytes") as report:
            done = reported = 0
            for number, line in enumerate(file, start=1):
                check.line(number, line.rstrip(b"\r\n"))
                done += len(line)
                if done >= reported + _BYTES_PER_REPORT:
                    report(done)
                    reported = done
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such file; expected a submission.") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read as a submission ({error.strerror}).") from None
    return check.result()


class _Videos:
    """Where segments may lie: ids and lengths of videos, looked up a class at a time."""

    def __init__(self, catalog: Catalog) -> None:
        self.folder = catalog.folder
        self.num_frames = catalog.num_frames.astype(np.int64)
        self._ends = CROP_START_SECONDS + SEGMENT_SECONDS * num_evaluated_segments(self.num_frames)
        self._order = np.argsort(catalog.ids)
        self._width = catalog.ids.itemsize
        self._ids = _comparable(catalog.ids[self._order])
        self._num_digits = len(str(int(self.num_frames.max())))

    def find(self, listed: bytes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Look up well-formed segments joined by spaces, n of them, without an object for each.

        Returns:
            Row of the video, -1 where there is none of that id, and start in seconds, -1 where it is beyond the end of
            every video; both int64 (n,).
        """
        text = np.frombuffer(listed + b" " + bytes(self._width + self._num_digits), np.uint8)
        ends, colons = np.flatnonzero(text == ord(" ")), np.flatnonzero(text == ord(":"))
        begins = np.concatenate([[0], ends[:-1] + 1])
        lengths, num_digits = colons - begins, ends - colons - 1
        ids = np.empty((len(ends), self._width), np.uint8)
        for column in range(self._width):
            ids[:, column] = text[begins + column] * (column < lengths)
        wanted = _comparable(ids.view(f"S{self._width}")[:, 0])
        places = np.minimum(np.searchsorted(self._ids, wanted), len(self._ids) - 1)
        is_known = (self._ids[places] == wanted) & (lengths <= self._width)
        starts = np.zeros(len(ends), np.int64)
        for column in range(self._num_digits):
            digits = text[colons + 1 + column].astype(np.int64) - ord("0")
            starts = np.where(column < num_digits, 10 * starts + digits, starts)
        return np.where(is_known, self._order[places], -1), np.where(num_digits > self._num_digits, -1, starts)

    def are_inside(self, rows: NDArray[np.int64], starts: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether segments of known videos begin before their video ends."""
        return (starts >= 0) & (starts < self.num_frames[rows])

    def are_evaluated(self, rows: NDArray[np.int64], starts: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether segments inside known videos are among those that the challenge rates."""
        return (starts >= CROP_START_SECONDS) & (starts < self._ends[rows])


def _comparable(ids: NDArray[np.bytes_]) -> NDArray[Any]:
    """Ids in a form that keeps their order: as numbers where 8 bytes hold them, which are compared faster."""
    return ids.astype("S8").view(">u8").astype(np.uint64) if ids.itemsize <= 8 else ids


class _Check:
    """The state of a check: what was found in the lines so far."""

    def __init__(self, path: Path, vocabulary: Vocabulary | None, videos: _Videos | None) -> None:
        self._path = path
        self._vocabulary = vocabulary
        self._known = None if vocabulary is None else frozenset(vocabulary.label_ids.tolist())
        self._videos = videos
        self._lines_of_classes: dict[int, int] = {}
        self._problems: Counter[Kind] = Counter()
        self._listed: list[str] = []
        self._num_classes = self._num_segments = self._num_empty = self._num_unevaluated = 0
        self._number = 0

    def line(self, number: int, line: bytes) -> None:
        """Look at a line of the file, without its end."""
        self._number = number
        if number == 1:
            if line == HEADER:
                return
            self._add(Kind.HEADER, f"expected the header {HEADER.decode()!r}, found {shown(line)}")
            if parse_class(line) is None:
                return
        if line:
            self._class_line(line)

    def result(self) -> Checked:
        """All that was found."""
        if not self._number:
            self._number = 1
            self._add(Kind.HEADER, f"expected the header {HEADER.decode()!r}, found ''")
        if not self._num_classes:
            self._add(Kind.NO_CLASS, "holds no class; expected a line a class below the header", in_line=False)
        not_looked_at = []
        if self._videos is None:
            not_looked_at.append("whether the videos exist and how long they are (--shards DIR)")
        if self._vocabulary is None:
            not_looked_at.append("whether the classes are those of the challenge (--vocabulary CSV)")
        return Checked(
            self._path,
            self._num_classes,
            self._num_segments,
            dict(self._problems),
            tuple(self._listed),
            tuple(self._remarks()),
            tuple(not_looked_at),
        )

    def _remarks(self) -> Iterator[str]:
        if self._vocabulary is not None:
            missing = [label for label in self._vocabulary.label_ids.tolist() if label not in self._lines_of_classes]
            if missing:
                few = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
                yield (
                    f"{len(missing):,} of the {len(self._vocabulary):,} classes are missing ({few}): allowed, but each "
                    "that has a rated positive counts 0"
                )
        if self._num_empty:
            yield f"{self._num_empty:,} classes list no segment: allowed, but each that has a rated positive counts 0"
        if self._num_unevaluated:
            yield (
                f"{self._num_unevaluated:,} segments are among the first six or last two of their video, which are never "
                "rated: allowed, but they use up places and cannot count"
            )

    def _add(self, kind: Kind, sentence: str, count: int = 1, *, in_line: bool = True) -> None:
        self._problems[kind] += count
        if self._has_room:
            place = f"{self._path}, line {self._number}" if in_line else f"{self._path}"
            self._listed.append(f"{place}: {sentence}.")

    @property
    def _has_room(self) -> bool:
        return len(self._listed) < MAX_LISTED

    def _class_line(self, line: bytes) -> None:
        """Look at a line that should be one of a class."""
        label_id = parse_class(line)
        if label_id is None:
            self._add(Kind.LINE, f"expected a class id, a comma and segments, found {shown(line)}")
            return
        self._num_classes += 1
        if self._known is not None and label_id not in self._known:
            self._add(
                Kind.CLASS_UNKNOWN,
                f"{label_id} is not a class of the vocabulary; expected an id (its column Index), not a position in it",
            )
        if label_id in self._lines_of_classes:
            first = self._lines_of_classes[label_id]
            self._add(Kind.CLASS_REPEATED, f"class {label_id} occurs a second time, after line {first}")
        else:
            self._lines_of_classes[label_id] = self._number
        listed = line.partition(b",")[2]
        if not listed:
            self._num_empty += 1
            return
        numbers = None
        try:
            segments = parse_line("", line)[1]
            self._num_segments += len(segments)
        except Yt8mError:
            items = listed.split(b" ")
            self._num_segments += len(items)
            numbers, segments = self._faults(label_id, line, items)
            listed = b" ".join(segments)
        if self._videos is not None and segments:
            self._look_up(self._videos, label_id, listed, segments, numbers)

    def _faults(self, label_id: int, line: bytes, items: list[bytes]) -> tuple[list[int], list[bytes]]:
        """Name what is wrong with a line that the parser refuses; its well-formed segments, and their numbers from 1."""
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            self._add(Kind.ENCODING, f"byte {error.start} of the line is not UTF-8 text")
        if len(items) > MAX_SEGMENTS:
            self._add(
                Kind.TOO_MANY, f"class {label_id} lists {len(items):,} segments; at most {MAX_SEGMENTS:,} are allowed"
            )
        numbers: list[int] = []
        segments: list[bytes] = []
        seen: set[bytes] = set()
        for number, item in enumerate(items, start=1):
            if not is_segment(item):
                kind, expected = _what_is_wrong(item)
                self._add(kind, f"segment {number} of class {label_id} is {shown(item)}; {expected}")
                continue
            if item in seen:
                self._add(
                    Kind.REPEATED, f"segment {number} of class {label_id} is {shown(item)}, which it lists before"
                )
            seen.add(item)
            numbers.append(number)
            segments.append(item)
        return numbers, segments

    def _look_up(
        self, videos: _Videos, label_id: int, listed: bytes, segments: list[bytes], numbers: list[int] | None
    ) -> None:
        """Look for well-formed segments in the shards; `numbers` are their places in the line, where not 1, 2, ..."""
        rows, starts = videos.find(listed)
        known = rows >= 0
        inside = known & videos.are_inside(rows, starts)
        self._num_unevaluated += int(np.count_nonzero(inside & ~videos.are_evaluated(rows, starts)))
        wrong = np.flatnonzero(~inside)
        self._problems[Kind.VIDEO_UNKNOWN] += int(np.count_nonzero(~known))
        self._problems[Kind.BEYOND_END] += int(np.count_nonzero(known[wrong]))
        self._problems = +self._problems
        for place in wrong[: MAX_LISTED - len(self._listed)].tolist():
            number = place + 1 if numbers is None else numbers[place]
            why = (
                f"the video has {videos.num_frames[rows[place]]} seconds"
                if known[place]
                else f"there is no such video in {videos.folder}"
            )
            self._listed.append(
                f"{self._path}, line {self._number}: segment {number} of class {label_id} is {shown(segments[place])}; {why}."
            )


_NUMBER = re.compile(rb"[^\s,:\x00]+:(-?)(?:0|[1-9][0-9]*)")


def _what_is_wrong(item: bytes) -> tuple[Kind, str]:
    """The kind of a malformed item, and what was expected of it."""
    if not item:
        return Kind.SPACES, "expected single spaces between segments and none at the ends"
    match = _NUMBER.fullmatch(item)
    if match is None:
        return Kind.MALFORMED, "expected 'video:start', the start in seconds without leading zeros"
    if match[1]:
        return Kind.NEGATIVE, "expected a start of 0 or later"
    return Kind.OFF_GRID, "expected a start that is a multiple of 5 seconds"
