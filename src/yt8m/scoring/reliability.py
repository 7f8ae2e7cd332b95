"""Reliability: how often predictions of a probability come true, and their expected calibration error.

Predictions are grouped into bins of equal width by the probability that they state. A bin is reliable where the share of
positives is the mean probability; the expected calibration error (ECE) is the mean of the absolute differences, weighted
by the predictions of a bin (Naeini, Cooper, Hauskrecht: "Obtaining well calibrated probabilities using Bayesian binning",
2015). Its interval is that of a bootstrap over videos, because the segments of a video are alike. An ECE is never negative, so noise
raises it, that of resampling too: the interval is moved down by the mean difference of the resampled errors to the error.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yt8m.files import write_csv
from yt8m.ranking.topk import Ranking
from yt8m.scoring.truth import Truth
from yt8m.submission.writing import segment_names
from yt8m.vocabulary import Vocabulary

RELIABILITY_FILE = "reliability.csv"
LOWEST_SCORE = 0.1
"""With exact truth of all segments, most predictions are near 0 and right; those of lower scores are left out."""
NUM_BINS = 10
NUM_RESAMPLES = 1000
INTERVAL = (2.5, 97.5)
"""Percentiles of an interval."""


@dataclass(frozen=True, eq=False)
class Reliability:
    """Reliability of some predictions.

    Args:
        counts: Predictions of each bin, int64 (bins,).
        probabilities: Their mean probability, float64 (bins,); NaN where there is none.
        shares: Share of positives among them, float64 (bins,); NaN where there is none.
        error: Expected calibration error.
        interval: Its 95% interval, from a bootstrap over videos.
    """

    counts: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    shares: NDArray[np.float64]
    error: float
    interval: tuple[float, float]


def reliability_of(
    probabilities: NDArray[np.floating], positives: NDArray[np.bool_], videos: NDArray[np.integer], seed: int = 0
) -> Reliability:
    """Measure the reliability of predictions.

    Args:
        probabilities: From 0 to 1, (n,).
        positives: Whether each prediction is of a positive, (n,).
        videos: Video of each prediction, whole numbers from 0, (n,).
        seed: Of the bootstrap.
    """
    bins = np.minimum((np.asarray(probabilities, np.float64) * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    _, videos = np.unique(videos, return_inverse=True)
    num_videos = int(videos.max(initial=-1)) + 1
    cells, size = videos * NUM_BINS + bins, num_videos * NUM_BINS

    def of_videos(values: NDArray[np.generic] | None) -> NDArray[np.float64]:
        """Sum of the values of each video and bin, (videos, bins)."""
        return np.bincount(cells, values, size).astype(np.float64).reshape(num_videos, NUM_BINS)

    counts, stated, true = of_videos(None), of_videos(np.asarray(probabilities, np.float64)), of_videos(positives)

    def error(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """ECE where each video counts as often as its weight; weights are (..., videos)."""
        errors: NDArray[np.float64] = np.abs(weights @ (stated - true)).sum(-1) / np.maximum(
            (weights @ counts).sum(-1), 1
        )
        return errors

    resamples = np.random.default_rng(seed).multinomial(
        num_videos, np.full(num_videos, 1 / max(num_videos, 1)), NUM_RESAMPLES
    )
    measured, resampled = float(error(np.ones(num_videos))), error(resamples.astype(np.float64))
    bias = float(resampled.mean()) - measured
    low, high = np.maximum(np.percentile(resampled, INTERVAL) - bias, 0).tolist()
    totals = counts.sum(0)
    with np.errstate(invalid="ignore"):
        means, shares = stated.sum(0) / totals, true.sum(0) / totals
    return Reliability(totals.astype(np.int64), means, shares, measured, (low, high))


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Predictions whose truth is known.

    Args:
        scores: Score of each, float32 (n,).
        positives: Whether it is of a positive, bool (n,).
        videos: Row of its video, int32 (n,).
    """

    scores: NDArray[np.float32]
    positives: NDArray[np.bool_]
    videos: NDArray[np.int32]


def outcomes_of(ranking: Ranking, truth: Truth, vocabulary: Vocabulary, lowest: float = 0.0) -> Outcomes:
    """The listed segments of a ranking whose truth is known: those that are rated, or all if the truth is dense.

    Args:
        ranking: One class for each row of the vocabulary.
        truth: Ratings, or all positives.
        vocabulary: The classes.
        lowest: Lowest score of a segment.
    """
    names = segment_names(ranking.segments)
    scores, positives, videos = [], [], []
    for class_index, label_id in enumerate(vocabulary.label_ids.tolist()):
        of_label = truth.ratings.get(label_id, {})
        listed = ranking.probabilities(class_index)
        num_high = int(np.count_nonzero(listed >= np.float32(lowest)))  # the list is sorted
        positions = ranking.positions(class_index)[:num_high]
        if not truth.is_dense:
            known = np.array([name in of_label for name in names[positions].tolist()], np.bool_)
            positions, listed = positions[known], listed[:num_high][known]
        scores.append(listed[: len(positions)])
        positives.append(np.array([of_label.get(name, False) for name in names[positions].tolist()], np.bool_))
        videos.append(ranking.segments.rows[positions])
    return Outcomes(np.concatenate(scores), np.concatenate(positives), np.concatenate(videos))


def write_reliability(path: Path, measured: Mapping[tuple[str, str], Reliability]) -> None:
    """Write a CSV file with one row per truth, kind of value and bin.

    The columns: `truth`, `value`, the bounds of the bin (`from`, `to`), `segments`, `mean`, `positives` (their share),
    and the expected calibration error of all bins with its interval (`ece`, `ece_low`, `ece_high`).

    Args:
        path: The file.
        measured: Reliability by truth ("rated" or "all" segments) and kind of value ("score" or "probability").
    """
    rows = []
    for (truth, kind), found in measured.items():
        error = [f"{value:.6f}" for value in (found.error, *found.interval)]
        for number, count in enumerate(found.counts.tolist()):
            means = [f"{of_bin[number]:.6f}" if count else "" for of_bin in (found.probabilities, found.shares)]
            rows.append((truth, kind, number / NUM_BINS, (number + 1) / NUM_BINS, count, *means, *error))
    columns = ("truth", "value", "from", "to", "segments", "mean", "positives", "ece", "ece_low", "ece_high")
    write_csv(path, columns, rows)
