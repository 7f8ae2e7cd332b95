"""MAP@K (SPEC: the metric): the challenge's measure without the faults of its public evaluator.

A class's list is cut to K, then segments not rated for the class are dropped; average precision divides by
all rated positives of the class. The mean runs over the classes with a rated positive, whether the submission
names them or not.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from yt8m.errors import UsageError, Yt8mError
from yt8m.files import written_atomically
from yt8m.ranking.topk import MAX_SEGMENTS
from yt8m.submission.submission import first_repeated, read_submission
from yt8m.vocabulary import Vocabulary

RATING_COLUMNS = ("video", "label", "start", "score")
POSITIVE_COLUMNS = ("video", "label", "start")


@dataclass(frozen=True, eq=False)
class Truth:
    """What is known of segments.

    Args:
        ratings: For a label_id, the rated segments (the bytes `video:start`): True where rated positive by
            any rating.
        is_dense: True where only positives are held and every other segment counts as a negative.
        num_rows: Ratings as given.
        num_repeated: Ratings of a segment and label that had been rated before; they change nothing but a
            contradiction.
        num_contradictory: Segments and labels rated both ways; they count as positive.
    """

    ratings: dict[int, dict[bytes, bool]]
    is_dense: bool
    num_rows: int
    num_repeated: int
    num_contradictory: int

    @classmethod
    def from_arrays(
        cls,
        video_ids: Iterable[str | bytes],
        label_ids: ArrayLike,
        start_seconds: ArrayLike,
        values: ArrayLike | None = None,
    ) -> Truth:
        """Make a truth from parallel columns.

        Args:
            video_ids: Video of each rating, n.
            label_ids: Its label, a dataset id, (n,).
            start_seconds: First second of its segment, (n,).
            values: Its rating, positive above 0, (n,); left out for a dense truth, of positives only.

        Raises:
            ValueError: The columns are not of one length.
        """
        labels: list[int] = np.asarray(label_ids, np.int64).tolist()
        starts: list[int] = np.asarray(start_seconds, np.int64).tolist()
        rated: list[float] = [1.0] * len(labels) if values is None else np.asarray(values).tolist()
        videos = (video.encode() if isinstance(video, str) else video for video in video_ids)
        return cls._from_rows(zip(videos, labels, starts, rated, strict=True), is_dense=values is None)

    @classmethod
    def _from_rows(cls, rows: Iterable[tuple[bytes, int, int, float]], *, is_dense: bool) -> Truth:
        ratings: dict[int, dict[bytes, bool]] = {}
        contradictory: set[tuple[int, bytes]] = set()
        num_rows = 0
        for video_id, label_id, start, value in rows:
            num_rows += 1
            segment = b"%s:%d" % (video_id, start)
            of_label = ratings.setdefault(label_id, {})
            is_positive = value > 0
            known = of_label.setdefault(segment, is_positive)
            if known != is_positive:
                contradictory.add((label_id, segment))
                of_label[segment] = True
        num_distinct = sum(map(len, ratings.values()))
        return cls(ratings, is_dense, num_rows, num_rows - num_distinct, len(contradictory))


@dataclass(frozen=True, eq=False)
class Score:
    """MAP@K of a submission, and what it was made of. Dictionaries go by label_id, in ascending order.

    Args:
        mean_average_precision: Mean of `average_precisions`.
        average_precisions: AP of each class with a rated positive.
        num_positives: Rated positives of each of these classes.
        num_listed: Segments that the submission lists for each of these classes, at most K; 0 for an absent
            one.
        num_absent: How many of these classes the submission does not name.
        num_ignored: Classes of the submission without a rated positive: they cannot count.
        k: Where the lists were cut.
        truth: What was scored against.
    """

    mean_average_precision: float
    average_precisions: dict[int, float]
    num_positives: dict[int, int]
    num_listed: dict[int, int]
    num_absent: int
    num_ignored: int
    k: int
    truth: Truth

    @property
    def num_classes(self) -> int:
        """Classes with a rated positive: those that the mean runs over."""
        return len(self.average_precisions)


def load_ratings_csv(path: Path) -> Truth:
    """Read ratings from a CSV file with the columns `video,label,start,score`; others are passed over.

    Args:
        path: The file. `label` is a dataset id, `start` in seconds, a rating is positive where `score` is
            above 0.

    Raises:
        UsageError: The file is missing or cannot be opened.
        Yt8mError: It is empty, lacks a column, or holds something else than such numbers; the sentence names
            the line.
    """
    return Truth._from_rows(_csv_rows(path, RATING_COLUMNS), is_dense=False)


def load_positives_csv(path: Path) -> Truth:
    """Read a dense truth from a CSV file with the columns `video,label,start`: all positives, nothing else.

    Every segment that the file does not name for a label is then a negative of that label.

    Raises:
        UsageError: The file is missing or cannot be opened.
        Yt8mError: As for `load_ratings_csv`; and where there is a column `score`, for then it is a file of
            ratings.
    """
    return Truth._from_rows(_csv_rows(path, POSITIVE_COLUMNS), is_dense=True)


def average_precision(hits: ArrayLike, num_positives: int) -> float:
    """Sum over hits of the precision at the hit, divided by all positives.

    Args:
        hits: Whether each listed and rated segment is a positive, best first, bool (n,).
        num_positives: All rated positives, listed or not; at least 1.

    Returns:
        From 0 to 1.
    """
    places = np.flatnonzero(np.asarray(hits, np.bool_)) + 1
    precisions = np.arange(1, len(places) + 1) / places
    return math.fsum(precisions) / num_positives


def map_at_k(
    submission: Path | Iterable[tuple[int, Sequence[bytes]]],
    truth: Truth,
    k: int = MAX_SEGMENTS,
    vocabulary: Vocabulary | None = None,
) -> Score:
    """Score a submission (SPEC: the metric).

    Args:
        submission: A file, or what goes through classes as `ranked_segments` does: (label_id, segments best
            first), a segment as the bytes `video:start`.
        truth: Ratings, or all positives (dense).
        k: Where each list is cut, before unrated segments are dropped.
        vocabulary: The classes that submission and truth may name; without it any.

    Raises:
        Yt8mError: The submission is not valid (see `read_submission`); the truth has no positive, or a class
            that is not of the vocabulary.
    """
    if k < 1:
        raise UsageError(f"MAP@K needs a K of at least 1, found {k}.")
    if vocabulary is not None:
        unknown = truth.ratings.keys() - set(vocabulary.label_ids.tolist())
        if unknown:
            raise Yt8mError(
                f"The truth rates the label {min(unknown)}, which is not a class of the vocabulary; expected "
                "ratings of its classes, by their ids (the column Index)."
            )
    num_positives = {label_id: sum(of_label.values()) for label_id, of_label in sorted(truth.ratings.items())}
    num_positives = {label_id: count for label_id, count in num_positives.items() if count}
    if not num_positives:
        raise Yt8mError("The truth holds no positive rating, so there is nothing to score.")
    precisions = dict.fromkeys(num_positives, 0.0)
    num_listed = dict.fromkeys(num_positives, 0)
    named: set[int] = set()
    for label_id, segments in _valid_classes(submission, vocabulary):
        if label_id in named:
            raise Yt8mError(f"Class {label_id} occurs twice in the submission; expected one list a class.")
        named.add(label_id)
        if label_id in num_positives:
            hits = _hits(segments[:k], truth, label_id)
            precisions[label_id] = average_precision(hits, num_positives[label_id])
            num_listed[label_id] = min(len(segments), k)
    return Score(
        mean_average_precision=math.fsum(precisions.values()) / len(precisions),
        average_precisions=precisions,
        num_positives=num_positives,
        num_listed=num_listed,
        num_absent=len(num_positives.keys() - named),
        num_ignored=len(named - num_positives.keys()),
        k=k,
        truth=truth,
    )


def map_from_probabilities(
    probabilities: NDArray[np.floating],
    hashes: NDArray[np.uint64],
    rating_rows: ArrayLike,
    rating_classes: ArrayLike,
    rating_values: ArrayLike,
) -> float:
    """MAP of probabilities on rated segments, where a class ranks only what is rated for it.

    What checkpoints are chosen by: the same as `map_at_k` of a full ranking as long as no list is cut. A
    segment rated again for a class counts once, as positive if any rating is.

    Args:
        probabilities: Of segments (which may repeat), (n, C).
        hashes: `segment_hashes` of these segments, which break ties, uint64 (n,).
        rating_rows: Row of the segment of each rating, (m,).
        rating_classes: Class position, 0 to C - 1, of each rating, (m,).
        rating_values: Positive above 0, (m,).

    Returns:
        Mean over the classes with a positive rating.

    Raises:
        Yt8mError: There is no positive rating, or the probability of a rated segment is not a number.
    """
    rows, classes = np.asarray(rating_rows, np.int64), np.asarray(rating_classes, np.int64)
    positive = np.asarray(rating_values) > 0
    if not positive.any():
        raise Yt8mError("There is no positive rating among the segments to score, so MAP is not defined.")
    ranked_by, segments = probabilities[rows, classes], hashes[rows]
    if np.isnan(ranked_by).any():
        raise Yt8mError("The probability of a rated segment is not a number (NaN), so MAP is not defined.")
    by_segment = np.lexsort((segments, classes))
    is_first = _differs_from_before(classes[by_segment]) | _differs_from_before(segments[by_segment])
    first = np.flatnonzero(is_first)
    positive = np.logical_or.reduceat(positive[by_segment], first)
    chosen = by_segment[first]
    best_first = np.lexsort((segments[chosen], -ranked_by[chosen], classes[chosen]))
    starts = np.flatnonzero(_differs_from_before(classes[chosen][best_first]))
    of_classes = np.split(positive[best_first], starts[1:])
    precisions = [average_precision(hits, int(hits.sum())) for hits in of_classes if hits.any()]
    return math.fsum(precisions) / len(precisions)


def write_class_scores(path: Path, score: Score, vocabulary: Vocabulary | None = None) -> None:
    """Write a CSV file `class_id,name,ap,positives,listed`, a line for each class that counted, by id.

    Args:
        path: The file to write.
        score: What to write.
        vocabulary: Where names come from; empty names without it.

    Raises:
        Yt8mError: The disk is full or the folder cannot be written to.
    """
    names: dict[int, str] = {}
    if vocabulary is not None:
        names = dict(zip(vocabulary.label_ids.tolist(), vocabulary.names, strict=True))
    with written_atomically(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["class_id", "name", "ap", "positives", "listed"])
        for label_id, precision in score.average_precisions.items():
            counts = (score.num_positives[label_id], score.num_listed[label_id])
            table.writerow([label_id, names.get(label_id, ""), f"{precision:.6f}", *counts])


def _hits(segments: Sequence[bytes], truth: Truth, label_id: int) -> list[bool]:
    """Of the segments that are rated for a label, which are positive, in their order."""
    of_label = truth.ratings[label_id]
    if truth.is_dense:
        return [segment in of_label for segment in segments]
    return [of_label[segment] for segment in segments if segment in of_label]


def _valid_classes(
    submission: Path | Iterable[tuple[int, Sequence[bytes]]], vocabulary: Vocabulary | None
) -> Iterator[tuple[int, Sequence[bytes]]]:
    if isinstance(submission, Path):
        yield from read_submission(submission, vocabulary)
        return
    for label_id, segments in submission:
        if vocabulary is not None and vocabulary.class_indices(label_id) < 0:
            raise Yt8mError(f"The submission names the class {label_id}, which is not a class of the vocabulary.")
        repeated = first_repeated(segments)
        if repeated is not None:
            raise Yt8mError(f"Class {label_id} of the submission lists segment {repeated!r} more than once.")
        yield label_id, segments


def _differs_from_before(values: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Where a value is not the one before it, bool (n,); True at the first."""
    return np.concatenate(([True], values[1:] != values[:-1]))


def _csv_rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[bytes, int, int, float]]:
    """Rows of a truth file: video id, label_id, start in seconds, rating (1 where the file has none)."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            places = _column_places(path, next(reader, []), columns)
            is_empty = True
            for row in reader:
                if row:
                    is_empty = False
                    yield _csv_row(f"{path}, line {reader.line_num}", row, places)
    except FileNotFoundError:
        raise UsageError(
            f"{path}: there is no such file; expected a CSV file with the columns {','.join(columns)}."
        ) from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read as a CSV file ({error.strerror}).") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise Yt8mError(f"{path}: is not a CSV file in UTF-8 ({error}).") from None
    if is_empty:
        raise Yt8mError(f"{path}: holds no rows below its header; expected a rated segment on each.")


def _column_places(path: Path, header: list[str], columns: tuple[str, ...]) -> list[int]:
    missing = [column for column in columns if column not in header]
    if missing:
        hint = ""
        if missing == ["score"]:
            hint = " (a file of positives only, where all other segments are negatives, is a dense truth)"
        raise Yt8mError(
            f"{path}, line 1: expected a header with the columns {','.join(columns)}, "
            f"found {','.join(header)[:80]!r}{hint}."
        )
    if columns == POSITIVE_COLUMNS and "score" in header:
        raise Yt8mError(
            f"{path}, line 1: has a column 'score', so it holds ratings and not positives only; "
            "expected a dense truth with the columns video,label,start."
        )
    return [header.index(column) for column in columns]


def _csv_row(place: str, row: list[str], places: list[int]) -> tuple[bytes, int, int, float]:
    if len(row) <= max(places):
        raise Yt8mError(f"{place}: expected {max(places) + 1} values or more, found {len(row)}.")
    video_id, label, start, *rest = (row[place_in_row] for place_in_row in places)
    if not video_id:
        raise Yt8mError(f"{place}: the video id is empty.")
    if not _is_count(label):
        raise Yt8mError(f"{place}: expected a whole number as label, found {label!r}.")
    if not _is_count(start) or int(start) % 5:
        raise Yt8mError(f"{place}: expected a start in seconds, a multiple of 5 from 0, found {start!r}.")
    return video_id.encode(), int(label), int(start), _rating(place, rest[0]) if rest else 1.0


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 18


def _rating(place: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise Yt8mError(f"{place}: expected a number as score, found {text!r}.")
    return value
