"""MAP@K, the metric of the challenge (docs/method.md, "Metric"), without the faults of its public evaluator.

Google's definition: the list of a class is cut to K segments, then those not rated for the class are dropped; average
precision (AP) divides by all rated positives of the class. The mean is over the classes with a rated positive, whether
the submission names them or not.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from yt8m.errors import UsageError, Yt8mError
from yt8m.files import write_csv
from yt8m.ranking import MAX_SEGMENTS
from yt8m.scoring.truth import Truth
from yt8m.submission.format import read_submission
from yt8m.vocabulary import Vocabulary


@dataclass(frozen=True)
class Score:
    """MAP@K of a submission and its terms. Dictionaries are by label_id, in ascending order.

    Args:
        mean_average_precision: Mean of `average_precisions`.
        average_precisions: AP of each class with a rated positive.
        num_positives: Rated positives of each of these classes.
        num_listed: Segments that the submission lists for each of these classes, at most K; 0 for an absent class.
        num_absent: Number of these classes that the submission does not name.
        num_ignored: Classes of the submission without a rated positive: they do not count.
        num_repeated_ratings: See `Truth.num_repeated`.
        num_contradictory_ratings: See `Truth.num_contradictory`.
        is_dense: See `Truth.is_dense`.
        k: Length that the lists were cut to.
        little_overlap: If the submission lists less than half of the truth's videos: how many it lists, and how many there
            are; None otherwise.
    """

    mean_average_precision: float
    average_precisions: dict[int, float]
    num_positives: dict[int, int]
    num_listed: dict[int, int]
    num_absent: int
    num_ignored: int
    num_repeated_ratings: int
    num_contradictory_ratings: int
    is_dense: bool
    k: int
    little_overlap: tuple[int, int] | None

    @property
    def num_classes(self) -> int:
        """Number of classes with a rated positive, over which the mean is taken."""
        return len(self.average_precisions)


def average_precision(hits: ArrayLike, num_positives: int) -> float:
    """Sum over hits of the precision at the hit, divided by the number of positives.

    Args:
        hits: Whether each listed and rated segment is a positive, best first, bool (n,).
        num_positives: All rated positives, listed or not; at least 1.

    Returns:
        From 0 to 1.
    """
    places = np.flatnonzero(np.asarray(hits, np.bool_)) + 1  # of the hits, from 1
    precisions = np.arange(1, len(places) + 1) / places
    return math.fsum(precisions) / num_positives


def map_at_k(
    submission: Path | Iterable[tuple[int, Sequence[bytes]]],
    truth: Truth,
    k: int = MAX_SEGMENTS,
    vocabulary: Vocabulary | None = None,
) -> Score:
    """Score a submission by MAP@K (docs/method.md, "Metric").

    Args:
        submission: A file, or what `ranked_segments` yields: (label_id, segments best first), a segment as the bytes
            `video:start`.
        truth: Ratings, or all positives (dense).
        k: Length that each list is cut to, before unrated segments are dropped.
        vocabulary: Classes allowed in submission and truth; without it all are.

    Raises:
        Yt8mError: The submission is not valid (see `read_submission`); the truth has no positive, or a class that is not
            in the vocabulary.
    """
    if k < 1:
        raise UsageError(f"MAP@K needs a K of at least 1, found {k}.")
    num_positives = truth.num_positives(vocabulary)
    precisions = dict.fromkeys(num_positives, 0.0)
    num_listed = dict.fromkeys(num_positives, 0)
    named: set[int] = set()
    overlap = _Overlap(truth.video_ids())
    for label_id, segments in _checked_classes(submission, vocabulary):
        if label_id in named:
            raise Yt8mError(f"Class {label_id} occurs twice in the submission; expected one list per class.")
        named.add(label_id)
        overlap.add(segments)
        if label_id in num_positives:
            precisions[label_id] = average_precision(_hits(segments[:k], truth, label_id), num_positives[label_id])
            num_listed[label_id] = min(len(segments), k)
    return Score(
        mean_average_precision=math.fsum(precisions.values()) / len(precisions),
        average_precisions=precisions,
        num_positives=num_positives,
        num_listed=num_listed,
        num_absent=len(num_positives.keys() - named),
        num_ignored=len(named - num_positives.keys()),
        num_repeated_ratings=truth.num_repeated,
        num_contradictory_ratings=truth.num_contradictory,
        is_dense=truth.is_dense,
        k=k,
        little_overlap=overlap.little,
    )


class _Overlap:
    """Videos of the truth that a submission lists, counted until they are half of them.

    Args:
        video_ids: The truth's videos.
    """

    def __init__(self, video_ids: set[bytes]) -> None:
        self._num_videos = len(video_ids)
        self._unseen = video_ids

    @property
    def little(self) -> tuple[int, int] | None:
        """The number of videos listed and of all, if that is less than half."""
        num_listed = self._num_videos - len(self._unseen)
        return (num_listed, self._num_videos) if 2 * num_listed < self._num_videos else None

    def add(self, segments: Sequence[bytes]) -> None:
        """Count the videos of a class's list."""
        if self.little is not None:
            self._unseen = self._unseen.difference(segment.rpartition(b":")[0] for segment in segments)


def map_from_probabilities(
    probabilities: NDArray[np.floating],
    hashes: NDArray[np.uint64],
    rating_rows: ArrayLike,
    rating_classes: ArrayLike,
    rating_values: ArrayLike,
) -> float:
    """MAP of probabilities on rated segments, where each class ranks only the segments rated for it.

    Monitored during training to select checkpoints. It equals `map_at_k` of a complete ranking as long as no list is cut. A
    segment with several ratings for a class counts once, as positive if any of them is.

    Args:
        probabilities: Of n segments (repeats allowed), (n, C).
        hashes: `segment_hashes` of these segments, which break ties, uint64 (n,).
        rating_rows: Row of the segment of each rating, (m,).
        rating_classes: `class_index` of each rating, 0 to C - 1, (m,).
        rating_values: Positive above 0, (m,).

    Returns:
        Mean over the classes with a positive rating.

    Raises:
        Yt8mError: There is no positive rating, or the probability of a rated segment is not a number.
    """
    rows, classes = np.asarray(rating_rows, np.int64), np.asarray(rating_classes, np.int64)
    positive = np.asarray(rating_values) > 0  # (m,)
    if not positive.any():
        raise Yt8mError("There is no positive rating among the segments to score, so MAP is not defined.")
    rated, segments = probabilities[rows, classes], hashes[rows]  # (m,), (m,)
    if np.isnan(rated).any():
        raise Yt8mError("The probability of a rated segment is not a number (NaN), so MAP is not defined.")
    # Merge the ratings of each (class, segment): m ratings become p distinct pairs.
    by_segment = np.lexsort((segments, classes))
    is_first = _differs_from_previous(classes[by_segment]) | _differs_from_previous(segments[by_segment])
    first = np.flatnonzero(is_first)  # (p,)
    positive = np.logical_or.reduceat(positive[by_segment], first)  # (p,)
    distinct = by_segment[first]  # (p,)
    # Rank the pairs of each class, and split them where the class changes.
    best_first = np.lexsort((segments[distinct], -rated[distinct], classes[distinct]))
    starts = np.flatnonzero(_differs_from_previous(classes[distinct][best_first]))
    hits_of_classes = np.split(positive[best_first], starts[1:])
    precisions = [average_precision(hits, int(hits.sum())) for hits in hits_of_classes if hits.any()]
    return math.fsum(precisions) / len(precisions)


def write_class_scores(path: Path, score: Score, vocabulary: Vocabulary | None = None) -> None:
    """Write a CSV file `class_id,name,ap,positives,listed` with one row per class with a rated positive, sorted by id.

    Args:
        path: The file to write.
        score: The score.
        vocabulary: Names of the classes; without it the column is empty.

    Raises:
        Yt8mError: The disk is full or the folder cannot be written to.
    """
    names = {} if vocabulary is None else dict(zip(vocabulary.label_ids.tolist(), vocabulary.names, strict=True))
    rows = (
        (
            label_id,
            names.get(label_id, ""),
            f"{precision:.6f}",
            score.num_positives[label_id],
            score.num_listed[label_id],
        )
        for label_id, precision in score.average_precisions.items()
    )
    write_csv(path, ("class_id", "name", "ap", "positives", "listed"), rows)


def _hits(segments: Sequence[bytes], truth: Truth, label_id: int) -> list[bool]:
    """Whether each segment that is rated for a label is a positive, in the given order."""
    ratings = truth.ratings[label_id]
    if truth.is_dense:
        return [segment in ratings for segment in segments]
    return [ratings[segment] for segment in segments if segment in ratings]


def _checked_classes(
    submission: Path | Iterable[tuple[int, Sequence[bytes]]], vocabulary: Vocabulary | None
) -> Iterator[tuple[int, Sequence[bytes]]]:
    if isinstance(submission, Path):
        yield from read_submission(submission, vocabulary)
        return
    for label_id, segments in submission:
        if vocabulary is not None and vocabulary.class_indices(label_id) < 0:
            raise Yt8mError(f"The submission names the class {label_id}, which is not a class of the vocabulary.")
        if len(set(segments)) != len(segments):
            repeated = Counter(segments).most_common(1)[0][0]
            raise Yt8mError(f"Class {label_id} of the submission lists segment {repeated!r} more than once.")
        yield label_id, segments


def _differs_from_previous(values: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Whether each value differs from the previous one, bool (n,); True for the first."""
    return np.concatenate(([True], values[1:] != values[:-1]))
