"""Check a submission: find every problem, not only the first.

The lines go through the parser of `read_submission`, so a file is accepted exactly if it can be read and scored. With the
catalog of the predicted shards, video ids and starts are checked as well, one class at a time.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yt8m.dataset.catalog import Catalog
from yt8m.dataset.sampling import CROP_START_SECONDS, num_evaluated_segments
from yt8m.errors import counted
from yt8m.runtime.progress import ProgressFactory, ProgressTask, no_progress
from yt8m.shards.ids import SEGMENT_SECONDS
from yt8m.submission.format import ProblemKind, located, parse_submission, segment_message
from yt8m.submission.opening import opened_submission
from yt8m.vocabulary import Vocabulary

MAX_MESSAGES = 20
"""Problems that get a message; the others are only counted."""

MAX_PROBLEMS = 100_000
"""Problems after which a check ends."""

BYTES_PER_REPORT = 2**24
"""Bytes between two reports of progress."""


@dataclass(frozen=True)
class Checked:
    """Result of a check.

    Args:
        path: The file.
        num_classes: Number of lines with a class.
        num_segments: Number of items that they list.
        problems: Number of problems of each kind found; empty if the file would be accepted.
        messages: A sentence for each of the first problems, in the order of the file.
        remarks: Sentences on what is allowed but lowers the score, without the period.
        not_checked: What requires the shards or the vocabulary, if they were not given; and the rest of a file with
            `MAX_PROBLEMS`.
    """

    path: Path
    num_classes: int
    num_segments: int
    problems: dict[ProblemKind, int]
    messages: tuple[str, ...]
    remarks: tuple[str, ...]
    not_checked: tuple[str, ...]

    @property
    def num_problems(self) -> int:
        """Total number of problems."""
        return sum(self.problems.values())

    @property
    def is_accepted(self) -> bool:
        """Whether there is no problem."""
        return not self.problems


def check_submission(
    path: Path,
    vocabulary: Vocabulary | None = None,
    catalog: Catalog | None = None,
    progress: ProgressFactory = no_progress,
) -> Checked:
    """Find all problems of a submission.

    Args:
        path: The file.
        vocabulary: The allowed classes; without it all are.
        catalog: The allowed videos; without it, ids and lengths of videos are not checked.
        progress: Reports bytes read.

    Raises:
        UsageError: The file is missing or cannot be opened. Problems of its content are returned, not raised.
    """
    problems: Counter[ProblemKind] = Counter()
    messages: list[str] = []

    num_reported = 0

    def report(kind: ProblemKind, message: str, line: int | None) -> None:
        nonlocal num_reported
        problems[kind] += 1
        num_reported += 1
        if num_reported >= MAX_PROBLEMS:
            raise _TooManyProblemsError
        if len(messages) < MAX_MESSAGES:
            messages.append(located(path, line, message))

    videos = None if catalog is None else _Videos(catalog)
    label_ids: set[int] = set()
    num_classes = num_segments = num_empty = num_never_rated = 0
    with (
        suppress(_TooManyProblemsError),
        opened_submission(path) as opened,
        progress(f"check {path}", opened.num_bytes, "bytes") as task,
    ):
        for line in parse_submission(_reported(opened.lines, task), vocabulary, report):
            label_ids.add(line.label_id)
            num_classes += 1
            num_segments += line.num_items
            num_empty += not line.num_items
            if videos is None or not line.segments:
                continue
            rows, is_inside, is_evaluated = videos.look_up(line.segments)
            num_never_rated += int(np.count_nonzero(is_inside & ~is_evaluated))
            wrong = np.flatnonzero(~is_inside)
            for index in wrong[:MAX_MESSAGES].tolist():
                kind, reason = videos.problem(int(rows[index]))
                message = segment_message(line.label_id, line.places[index], line.segments[index], reason)
                report(kind, message, line.number)
            num_unknown = int(np.count_nonzero(rows[wrong[MAX_MESSAGES:]] < 0))
            problems[ProblemKind.VIDEO_UNKNOWN] += num_unknown
            problems[ProblemKind.BEYOND_END] += len(wrong[MAX_MESSAGES:]) - num_unknown

    remarks = []
    missing = [] if vocabulary is None else [label for label in vocabulary.label_ids.tolist() if label not in label_ids]
    if vocabulary is not None and missing:
        few = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
        remarks.append(
            f"the file omits {len(missing):,} of the {len(vocabulary):,} classes ({few}): allowed, but a class with a "
            "rated positive counts 0"
        )
    if num_empty:
        remarks.append(f"{counted(num_empty, 'empty list')}: allowed, but a class with a rated positive counts 0")
    if num_never_rated:
        remarks.append(
            f"{counted(num_never_rated, 'segment')} among the first six or last two of a video, which are never rated: "
            "allowed, but they use up places in the list"
        )
    not_checked = []
    if num_reported >= MAX_PROBLEMS:
        not_checked.append(f"the rest of the file, after {MAX_PROBLEMS:,} problems")
    if videos is None:
        not_checked.append("whether the videos exist and how long they are (--shards DIR)")
    if vocabulary is None:
        not_checked.append("whether the classes are those of the challenge (--vocabulary CSV)")
    return Checked(
        path, num_classes, num_segments, dict(+problems), tuple(messages), tuple(remarks), tuple(not_checked)
    )


def _reported(lines: Iterable[bytes], task: ProgressTask) -> Iterator[bytes]:
    """Yield lines and report their bytes."""
    done = reported = 0
    for line in lines:
        yield line
        done += len(line)
        if done >= reported + BYTES_PER_REPORT:
            task(done)
            reported = done


class _TooManyProblemsError(Exception):
    """Ends the parsing of a submission."""


class _Videos:
    """Ids and lengths of the videos of a catalog."""

    def __init__(self, catalog: Catalog) -> None:
        self._folder = catalog.folder
        self._num_frames = catalog.num_frames.astype(np.int64)
        self._evaluated_ends = CROP_START_SECONDS + SEGMENT_SECONDS * num_evaluated_segments(self._num_frames)
        self._order = np.argsort(catalog.ids)
        self._width = catalog.ids.itemsize
        self._ids = _comparable(catalog.ids[self._order])
        self._num_digits = len(str(int(self._num_frames.max())))

    def look_up(self, segments: list[bytes]) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
        """Look up n well-formed segments; vectorized, because a list has up to 100,000.

        Returns:
            Row of the video, -1 if its id is unknown; whether the segment starts before the end of a known video; and
            whether it is then one that the challenge rates; each (n,).
        """
        padding = bytes(self._width + self._num_digits)
        text = np.frombuffer(b" ".join(segments) + b" " + padding, np.uint8)
        ends, colons = np.flatnonzero(text == ord(" ")), np.flatnonzero(text == ord(":"))  # (n,), (n,)
        begins = np.concatenate([[0], ends[:-1] + 1])
        lengths, num_digits = colons - begins, ends - colons - 1
        ids = np.empty((len(ends), self._width), np.uint8)
        for column in range(self._width):
            ids[:, column] = text[begins + column] * (column < lengths)
        wanted = _comparable(ids.view(f"S{self._width}")[:, 0])  # (n, width) bytes -> (n,) ids
        places = np.minimum(np.searchsorted(self._ids, wanted), len(self._ids) - 1)
        is_known = (self._ids[places] == wanted) & (lengths <= self._width)
        starts = np.zeros(len(ends), np.int64)
        for column in range(self._num_digits):
            digits = text[colons + 1 + column].astype(np.int64) - ord("0")
            starts = np.where(column < num_digits, 10 * starts + digits, starts)
        rows = np.where(is_known, self._order[places], -1)
        # A start with more digits than the longest video is beyond the end of every video.
        is_inside = is_known & (num_digits <= self._num_digits) & (starts < self._num_frames[rows])
        is_evaluated = (starts >= CROP_START_SECONDS) & (starts < self._evaluated_ends[rows])
        return rows, is_inside, is_evaluated

    def problem(self, row: int) -> tuple[ProblemKind, str]:
        """The problem of a segment that is not inside the video in `row`, and the reason for its message."""
        if row < 0:
            return ProblemKind.VIDEO_UNKNOWN, f"there is no such video in {self._folder}"
        return ProblemKind.BEYOND_END, f"the video has {counted(int(self._num_frames[row]), 'second')}"


def _comparable(ids: NDArray[np.bytes_]) -> NDArray[Any]:
    """Ids in a form of the same order: numbers if they have at most 8 bytes, which are compared faster."""
    return ids.astype("S8").view(">u8").astype(np.uint64) if ids.itemsize <= 8 else ids
