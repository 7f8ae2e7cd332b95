"""Intervals of MAP from a bootstrap over videos: how far a score would move with other videos of the same kind."""

import numpy as np
from numpy.typing import NDArray

from yt8m.prediction.segments import Segments
from yt8m.ranking.topk import Ranking
from yt8m.scoring.truth import Truth
from yt8m.submission.writing import segment_names
from yt8m.vocabulary import Vocabulary

NUM_RESAMPLES = 200
_STANDARD_ERRORS = 1.96
"""Half of a 95% interval of a normal distribution."""


class MapBootstrap:
    """The margin of MAP@K of several rankings of the same segments, with the same resampled videos.

    A video that a resample contains twice counts twice: its segments have the weight 2 in every precision.

    Args:
        segments: The ranked segments.
        truth: Ratings, or all positives.
        vocabulary: The classes.
        num_resamples: Resamples of the videos.
        seed: Of the resamples.
    """

    def __init__(
        self,
        segments: Segments,
        truth: Truth,
        vocabulary: Vocabulary,
        num_resamples: int = NUM_RESAMPLES,
        seed: int = 0,
    ) -> None:
        self._rows = segments.rows
        self._is_dense = truth.is_dense
        num_videos = len(segments.video_ids)
        used = np.unique(segments.rows)
        resamples = np.random.default_rng(seed).multinomial(len(used), np.full(len(used), 1 / len(used)), num_resamples)
        self._weights = np.zeros((num_videos, num_resamples), np.float32)  # (N, resamples)
        self._weights[used] = resamples.T
        places = {name: place for place, name in enumerate(segment_names(segments).tolist())}
        self._known: list[tuple[NDArray[np.int64], NDArray[np.bool_]]] = []
        """Positions of the segments with known truth, and whether each is positive, of each class."""
        for label_id in vocabulary.label_ids.tolist():
            rated = [(places[name], value) for name, value in truth.ratings.get(label_id, {}).items() if name in places]
            positions = np.array([place for place, _ in rated], np.int64)
            self._known.append((positions, np.array([value for _, value in rated], np.bool_)))

    def margin(self, ranking: Ranking, k: int) -> float:
        """Half of the 95% interval of a ranking's MAP@K: 1.96 standard deviations of the resampled scores."""
        sums = np.zeros(self._weights.shape[1])
        counts = np.zeros(self._weights.shape[1])
        truth = np.zeros(len(self._rows), np.int8)  # 0 unknown or negative, 1 rated negative, 2 positive
        for class_index, (positions, values) in enumerate(self._known):
            if not values.any():
                continue
            totals = self._weights[self._rows[positions[values]]].sum(0)  # (resamples,)
            truth[positions] = 1 + values
            listed = ranking.positions(class_index)[:k]
            of_listed = truth[listed]
            if not self._is_dense:
                listed, of_listed = listed[of_listed > 0], of_listed[of_listed > 0]
            truth[positions] = 0
            with np.errstate(invalid="ignore", divide="ignore"):
                sums += np.nan_to_num(self._hit_precisions(self._rows[listed], of_listed == 2).sum(0) / totals)
            counts += totals > 0
        return float(_STANDARD_ERRORS * np.std(sums / np.maximum(counts, 1), ddof=1))

    def _hit_precisions(self, rows: NDArray[np.int32], is_hit: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Weight times precision at each hit, (hits, resamples), of listed segments in the videos `rows`."""
        last = int(np.flatnonzero(is_hit)[-1]) + 1 if is_hit.any() else 0
        videos, of_listed = np.unique(rows[:last], return_inverse=True)
        hits = np.flatnonzero(is_hit)
        # The segments of each video that are listed up to each hit, (hits, videos).
        interval: NDArray[np.int64] = np.cumsum(is_hit[:last]) - is_hit[:last]
        counts = np.bincount(interval * len(videos) + of_listed, minlength=len(hits) * len(videos))
        up_to = np.cumsum(counts.reshape(len(hits), len(videos)), axis=0, dtype=np.float32)
        listed = up_to @ self._weights[videos]  # (hits, resamples)
        weights = self._weights[rows[hits]]
        precisions: NDArray[np.float32] = np.cumsum(weights, axis=0) / np.maximum(listed, 1)
        return weights * precisions
