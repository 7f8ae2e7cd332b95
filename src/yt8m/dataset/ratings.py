"""Checks of the labels and ratings of a video: what cannot be used is reported and dropped, and the video is kept."""

import itertools
from collections.abc import Callable, Iterable
from typing import TypeVar

from yt8m.dataset.problems import Oddity, ShardProblems
from yt8m.errors import counted
from yt8m.shards.ids import SEGMENT_SECONDS
from yt8m.shards.records import VideoRecord
from yt8m.shards.tfrecord import Record


def known_labels(labels: tuple[int, ...], vocabulary_size: int, record: Record, problems: ShardProblems) -> list[int]:
    """Labels of the vocabulary, each once, increasing."""
    known = sorted({label for label in labels if 0 <= label < vocabulary_size})
    if len(known) != len(labels):
        unknown = [label for label in labels if not 0 <= label < vocabulary_size]
        if unknown:
            found = f"{counted(len(unknown), 'label')} outside the vocabulary, the first {unknown[0]}"
            problems.odd(Oddity.LABELS_UNKNOWN, record, found, len(unknown))
        repeated = len(labels) - len(unknown) - len(known)
        if repeated:
            problems.odd(Oddity.LABELS_REPEATED, record, counted(repeated, "repeated label"), repeated)
    return known


def ratings_of_record(
    video: VideoRecord, num_frames: int, vocabulary_size: int, record: Record, problems: ShardProblems
) -> list[tuple[int, int, int]]:
    """Valid ratings (label, start, value), sorted by (start, label); invalid ones are dropped, the video is kept."""
    if not (video.segment_labels or video.segment_start_times or video.segment_scores):
        return []
    labels, starts, scores = video.segment_labels, video.segment_start_times, video.segment_scores
    # Ends follow from the starts, so a record may omit them.
    ends = video.segment_end_times or tuple(start + SEGMENT_SECONDS for start in starts)
    if not len(labels) == len(starts) == len(ends) == len(scores):
        found = f"{len(labels)} labels, {len(starts)} starts, {len(ends)} ends and {len(scores)} scores of ratings"
        problems.odd(Oddity.RATINGS_UNPAIRED, record, found)
        return []

    def odd(oddity: Oddity, record: Record, found: str, count: int) -> None:
        problems.odd(oddity, record, found, count)

    given = zip(labels, starts, ends, scores, itertools.repeat(record), strict=False)
    return usable_ratings(given, num_frames, vocabulary_size, odd)


P = TypeVar("P")
"""Place of a rating: of what it was read from."""


def usable_ratings(
    given: Iterable[tuple[int, int, int, float, P]],
    num_frames: int,
    vocabulary_size: int,
    odd: Callable[[Oddity, P, str, int], None],
) -> list[tuple[int, int, int]]:
    """Valid ratings (label, start, value) of a video, sorted by (start, label); invalid ones are reported and dropped.

    Args:
        given: Label id, start and end in seconds, score and place of each rating.
        num_frames: Frames of the video.
        vocabulary_size: Labels from this number on are not valid.
        odd: Called with each irregularity, its place, what was found, and how many times it counts.
    """
    values: dict[tuple[int, int], set[int]] = {}
    places: dict[tuple[int, int], list[P]] = {}
    for label, start, end, score, place in given:
        rating = f"a rating of label {label} at second {start}"
        if not 0 <= label < vocabulary_size:
            odd(Oddity.RATINGS_UNKNOWN, place, f"{rating}, and the vocabulary has no such label", 1)
        elif not 0 <= start < num_frames:
            odd(Oddity.RATINGS_OUTSIDE, place, f"{rating} of a video of {num_frames:,} frames", 1)
        elif start % SEGMENT_SECONDS:
            odd(Oddity.RATINGS_OFF_GRID, place, f"{rating}, which is not a multiple of {SEGMENT_SECONDS}", 1)
        elif score not in (0.0, 1.0):
            odd(Oddity.RATINGS_SCORE, place, f"{rating} is {score:g}, neither 0 nor 1", 1)
        else:
            if end != start + SEGMENT_SECONDS:
                odd(Oddity.RATINGS_END, place, f"{rating} ends at second {end}", 1)
            values.setdefault((start, label), set()).add(int(score))
            places.setdefault((start, label), []).append(place)
    usable = []
    for (start, label), found_values in sorted(values.items()):
        count, place = len(places[start, label]), places[start, label][-1]
        rating = f"{count} ratings of label {label} at second {start}"
        if len(found_values) > 1:
            odd(Oddity.RATINGS_CONTRADICTORY, place, f"{rating} contradict each other", count)
            continue
        if count > 1:
            odd(Oddity.RATINGS_REPEATED, place, f"{rating} are equal", count - 1)
        usable.append((label, start, found_values.pop()))
    return usable
