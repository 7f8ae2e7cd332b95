"""Calibrate an ensemble on out-of-fold predictions: each model's predictions of the ratings that it held out.

No rating is held out by all models, unless they share a fold, so each fold is predicted by the part of the ensemble that
held it out, and the ensemble and its parts are compared on segments that no model was trained on. docs/method.md,
"Calibration", has the equations.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from yt8m.dataset.frames import FrameReader
from yt8m.dataset.labels import Ratings, mined_negatives, rated_segments
from yt8m.dataset.sampling import num_evaluated_segments
from yt8m.inference.classifier import FoldedClassifier
from yt8m.prediction.predict import NO_SHIFT, predict
from yt8m.prediction.segments import Segments
from yt8m.ranking.calibration import (
    NUM_BINS,
    Calibration,
    JointCounts,
    RatedCounts,
    bins_of,
    ensemble_digest,
    fit_parameters,
)
from yt8m.ranking.ensemble import Merger
from yt8m.runtime.progress import ProgressFactory, no_progress, track
from yt8m.vocabulary import Vocabulary

NUM_COMPARED = 8192
"""Segments on which an ensemble and its parts are compared, about."""


def calibrate(
    models: Mapping[str, FoldedClassifier],
    merger: Merger,
    held_out: Mapping[str, int],
    rated: FrameReader,
    folds: NDArray[np.integer],
    others: FrameReader,
    segments: Segments,
    vocabulary: Vocabulary,
    shifts: Sequence[int] = NO_SHIFT,
    progress: ProgressFactory = no_progress,
) -> Calibration | None:
    """Calibrate an ensemble.

    Args:
        models: Its models by name; others are not used.
        merger: Merges them.
        held_out: The fold that each segment model held out, by name.
        rated: The rated videos.
        folds: Fold of each of them, (N,).
        others: Videos that no model was trained on.
        segments: Their segments.
        vocabulary: The classes.
        shifts: Test-time shifts.
        progress: Reports folds predicted.

    Returns:
        The calibration; None where the scores are ranks, which have none, or the ratings do not determine it.
    """
    if merger.needs_all_segments:
        return None
    counts, parts = [], []
    for fold in track(sorted({held_out[name] for name in merger.shares}), "calibrate", progress):
        part = merger.part([name for name in merger.shares if held_out[name] == fold])
        of_fold = rated_counts(rated, vocabulary, models, part, folds == fold, shifts)
        if of_fold.num_ratings:
            counts.append(of_fold)
            parts.append(part)
    joint = JointCounts.empty(len(parts))
    used = {name: models[name] for name in merger.models}
    for predictions in predict(others, some_videos(segments, NUM_COMPARED), used, shifts=shifts):
        joint.add([part(predictions.codes) for part in parts], merger(predictions.codes))
    found = fit_parameters(counts, joint)
    if found is None:
        return None
    low, high, offset = found
    return Calibration(
        low=low,
        high=high,
        offset=offset,
        ensemble=ensemble_digest(merger, {name: models[name].digest for name in merger.models}, shifts),
        num_ratings=sum(of_fold.num_ratings for of_fold in counts),
    )


def rated_counts(
    reader: FrameReader,
    vocabulary: Vocabulary,
    models: Mapping[str, FoldedClassifier],
    merger: Merger,
    videos: NDArray[np.bool_],
    shifts: Sequence[int] = NO_SHIFT,
) -> RatedCounts:
    """Count the rated segments of some videos by their scores, as estimates for all segments of these videos.

    For each video, its ratings stand for all evaluated segments of the classes that are not mined negatives; these are
    negative at every segment.

    Args:
        reader: Frames and ratings.
        vocabulary: The segment classes.
        models: Models by name; those of the merger are used.
        merger: Merges models that held out the videos.
        videos: The held-out videos, bool (N,).
        shifts: Test-time shifts.
    """
    catalog = reader.catalog
    ratings = rated_segments(catalog, vocabulary, videos)
    segments, segment_of_rating = segments_of_ratings(reader, ratings)
    rows, video_of_rating = np.unique(ratings.rows, return_inverse=True)  # (V,) rated videos; (R,)
    video_of_segment = np.searchsorted(rows, segments.rows)  # (S,)
    negative = mined_negatives(catalog, vocabulary, rows)  # (V, C)
    negative[video_of_rating, ratings.class_indices] = False
    num_evaluated = np.maximum(num_evaluated_segments(catalog.num_frames[rows]), 1)  # (V,)
    num_ratings, num_rated = (
        np.bincount(places, minlength=len(rows)) for places in (video_of_rating, video_of_segment)
    )
    rating_weights = num_evaluated * (~negative).sum(1) / np.maximum(num_ratings, 1)  # (V,)
    segment_weights = num_evaluated / np.maximum(num_rated, 1)  # (V,)
    positives, totals = np.zeros(NUM_BINS), np.zeros(NUM_BINS)
    used = {name: models[name] for name in merger.models}
    for predictions in predict(reader, segments, used, shifts=shifts) if len(segments) else ():
        bins = bins_of(merger(predictions.codes))  # (n, C)
        inside = np.flatnonzero(
            (segment_of_rating >= predictions.start) & (segment_of_rating < predictions.start + len(bins))
        )
        of_rating = bins[segment_of_rating[inside] - predictions.start, ratings.class_indices[inside]]
        weights = rating_weights[video_of_rating[inside]]
        totals += np.bincount(of_rating, weights, NUM_BINS)
        positives += np.bincount(of_rating, weights * ratings.values[inside], NUM_BINS)
        places = video_of_segment[predictions.positions]
        is_negative = negative[places]  # (n, C)
        weights = np.broadcast_to(segment_weights[places][:, None], bins.shape)
        totals += np.bincount(bins[is_negative], weights[is_negative], NUM_BINS)
    return RatedCounts(len(ratings), positives, totals)


def segments_of_ratings(reader: FrameReader, ratings: Ratings) -> tuple[Segments, NDArray[np.int64]]:
    """The distinct segments of some ratings, and the segment of each rating, int64 (R,)."""
    seconds = int(ratings.start_seconds.max(initial=0)) + 1
    unique, segment_of_rating = np.unique(ratings.rows * seconds + ratings.start_seconds, return_inverse=True)
    rows, starts = np.divmod(unique, seconds)
    segments = Segments(reader.catalog.video_ids, rows.astype(np.int32), starts.astype(np.int32))
    return segments, segment_of_rating


def some_videos(segments: Segments, num_segments: int) -> Segments:
    """All segments of evenly spaced videos, about as many as asked for; all if there are fewer."""
    rows = np.unique(segments.rows)
    step = max(1, round(len(segments) / num_segments))
    chosen = np.isin(segments.rows, rows[::step])
    return Segments(segments.video_ids, segments.rows[chosen], segments.start_seconds[chosen])
