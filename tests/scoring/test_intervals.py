"""The margin of MAP against resampled submissions, scored one by one."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.rankings import make_ranking, make_segments, make_vocabulary
from yt8m.scoring.intervals import MapBootstrap
from yt8m.scoring.map_at_k import map_at_k
from yt8m.scoring.truth import Truth
from yt8m.submission.writing import ranked_segments

VIDEOS = [f"v{number:03}" for number in range(30)]


@pytest.mark.parametrize("is_dense", [False, True])
def test_the_margin_is_that_of_scores_of_resampled_videos(is_dense: bool) -> None:
    segments, vocabulary = make_segments(VIDEOS, 12), make_vocabulary(7, 3, 11)
    ranking, scores = make_ranking(segments, 3, 200)
    generator = np.random.default_rng(1)
    # Classes of some videos, at the segments that are probable.
    of_videos = generator.random((30, 3)) < 0.4
    positive = of_videos[segments.rows] & (generator.random(scores.shape) < scores)
    rated = generator.random(scores.shape) < 0.5
    places, columns = np.nonzero(positive if is_dense else rated)
    ids = [VIDEOS[row] for row in segments.rows[places]]
    labels, starts = vocabulary.label_ids[columns], segments.start_seconds[places]
    values = None if is_dense else positive[places, columns].astype(float)
    truth = Truth.from_arrays(ids, labels, starts, values)
    found = MapBootstrap(segments, truth, vocabulary, 400).margin(ranking, 150)

    listed = dict(ranked_segments(ranking, vocabulary))
    resampled = []
    for _ in range(200):
        counts = np.bincount(generator.integers(0, 30, 30), minlength=30)
        weights = dict(zip((name.encode() for name in VIDEOS), counts.tolist(), strict=True))

        def copies(name: bytes, weights: dict[bytes, int] = weights) -> list[bytes]:
            video, start = name.split(b":")
            return [b"%s-%d:%s" % (video, copy, start) for copy in range(weights[video])]

        ratings = {
            label: {copy: value for name, value in of_label.items() for copy in copies(name)}
            for label, of_label in truth.ratings.items()
        }
        ratings = {label: of_label for label, of_label in ratings.items() if any(of_label.values())}
        lists = [(label, [copy for name in names[:150] for copy in copies(name)]) for label, names in listed.items()]
        score = map_at_k(lists, Truth(ratings, is_dense, 0, 0))
        resampled.append(score.mean_average_precision)
    assert found == pytest.approx(1.96 * np.std(resampled), rel=0.15)
    assert found > 0.01


def test_videos_that_are_alike_have_no_margin() -> None:
    segments, vocabulary = make_segments(VIDEOS, 1), make_vocabulary(7)
    ranking, _ = make_ranking(segments, 1, 30)
    truth = Truth.from_arrays(VIDEOS, [7] * 30, [0] * 30, [1] * 30)
    assert MapBootstrap(segments, truth, vocabulary).margin(ranking, 30) == pytest.approx(0, abs=1e-6)


def test_lists_without_hits_have_no_margin() -> None:
    segments, vocabulary = make_segments(VIDEOS, 2), make_vocabulary(7, 3)
    ranking, _ = make_ranking(segments, 2, 60)
    truth = Truth.from_arrays(["other"], [7], [0], [1])
    assert MapBootstrap(segments, truth, vocabulary).margin(ranking, 60) == 0
