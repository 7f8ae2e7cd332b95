"""Problems that indexing finds: counted, described, and listed in a report."""

import csv
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from yt8m.errors import ShardError, counted
from yt8m.files import written_atomically
from yt8m.shards.tfrecord import Record

MAX_PROBLEMS = 200
"""Damaged places that a catalog describes; the report lists more."""

MAX_REPORTED = 10_000
"""Problems to list per shard; the others are counted, since a completely damaged shard would have millions."""

REPORT_NAME = "catalog_report.csv"


class Oddity(StrEnum):
    """Irregularities of records that are not damaged, and how each is handled."""

    IDS_UNUSABLE = "videos with an id that a submission cannot hold (dropped)"
    IDS_REPEATED = "videos with an id that occurred before (dropped)"
    RGB_MISSING = "videos without rgb frames (kept, with values of 0)"
    AUDIO_MISSING = "videos without audio frames (kept, with values of 0)"
    LENGTHS_DIFFER = "videos with more rgb than audio frames or the reverse (cut to the shorter)"
    NO_LABELS = "videos without labels (kept)"
    LABELS_REPEATED = "labels that a video repeats (kept once)"
    LABELS_UNKNOWN = "labels outside the vocabulary (dropped)"
    RATINGS_UNPAIRED = "videos with lists of ratings of different lengths (their ratings dropped)"
    RATINGS_OUTSIDE = "ratings outside the video (dropped)"
    RATINGS_OFF_GRID = "ratings not at a multiple of 5 seconds (dropped)"
    RATINGS_UNKNOWN = "ratings of labels outside the vocabulary (dropped)"
    RATINGS_SCORE = "ratings other than 0 and 1 (dropped)"
    RATINGS_END = "ratings that do not end 5 seconds after their start (kept)"
    RATINGS_REPEATED = "repeated ratings (kept once)"
    RATINGS_CONTRADICTORY = "contradictory ratings (all dropped)"

    ROWS_UNREADABLE = "rows of labels.csv and ratings.csv that are none (dropped)"
    ROWS_OF_OTHERS = "rows of labels.csv and ratings.csv of videos that the shards do not contain (dropped)"

    @property
    def done(self) -> str:
        """How it is handled: the words in parentheses."""
        return self.value[self.value.index("(") + 1 : -1]


class Problem(NamedTuple):
    """A problem of a shard or of one of its records.

    Args:
        shard: Name of the shard.
        record: Number of the record; None for the shard itself.
        offset: Byte offset in the shard; None for the shard itself.
        is_damage: Whether data is lost; otherwise it is an `Oddity`.
        found: What was found, without a full stop.
        done: How it was handled.
    """

    shard: str
    record: int | None
    offset: int | None
    is_damage: bool
    found: str
    done: str


OnProblem = Callable[[Problem], None]
"""Called with each problem as it is found, in order."""


class ShardProblems:
    """Problems of one shard: counted, and passed on up to a limit."""

    def __init__(self, path: Path, on_problem: OnProblem) -> None:
        self.oddities: Counter[Oddity] = Counter()
        self.sentences: list[str] = []
        self.num_damaged = 0
        self._path = path
        self._on_problem = on_problem
        self._num_problems = 0

    def damage(self, error: ShardError, done: str) -> None:
        """Add damage, and how it was handled."""
        self.num_damaged += 1
        found = error.message.removesuffix(".")
        if self.num_damaged <= MAX_PROBLEMS:
            self.sentences.append(f"{str(error).removesuffix('.')}; {done}.")
        self._add(Problem(self._path.name, error.record, error.offset, True, found, done))

    def odd(self, oddity: Oddity, record: Record | None, found: str, count: int = 1) -> None:
        """Add an irregularity of a record, or of a file without records, which counts `count` times."""
        self.oddities[oddity] += count
        number, offset = (None, None) if record is None else (record.number, record.offset)
        self._add(Problem(self._path.name, number, offset, False, found, oddity.done))

    def close(self) -> None:
        """Report how many problems were not passed on."""
        if self._num_problems > MAX_REPORTED:
            more = counted(self._num_problems - MAX_REPORTED, "more problem")
            self._on_problem(Problem(self._path.name, None, None, True, more, "not listed"))

    def _add(self, problem: Problem) -> None:
        self._num_problems += 1
        if self._num_problems <= MAX_REPORTED:
            self._on_problem(problem)


@contextmanager
def report_written(path: Path) -> Iterator[OnProblem]:
    """Write each problem to a CSV file, which exists only where there are any."""
    with ExitStack() as stack:
        rows: Any = None

        def write(problem: Problem) -> None:
            nonlocal rows
            if rows is None:
                temporary = stack.enter_context(written_atomically(path))
                rows = csv.writer(
                    stack.enter_context(temporary.open("w", encoding="utf-8", errors="backslashreplace", newline=""))
                )
                rows.writerow(("shard", "record", "byte", "kind", "found", "done"))
            kind = "damage" if problem.is_damage else "oddity"
            rows.writerow((problem.shard, problem.record, problem.offset, kind, problem.found, problem.done))

        yield write
    if rows is None:
        path.unlink(missing_ok=True)
