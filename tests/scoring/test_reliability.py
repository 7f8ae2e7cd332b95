"""Reliability against scikit-learn and a slow loop."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from tests.support.rankings import make_ranking, make_segments
from yt8m.scoring.reliability import outcomes_of, reliability_of, write_reliability
from yt8m.scoring.truth import Truth
from yt8m.vocabulary import Vocabulary


def test_bins_are_those_of_scikit_learn_and_the_error_that_of_a_loop() -> None:
    generator = np.random.default_rng(0)
    probabilities = generator.random(2000)
    positives = generator.random(2000) < probabilities**2
    found = reliability_of(probabilities.astype(np.float32), positives, generator.integers(0, 50, 2000))
    shares, means = calibration_curve(positives, probabilities, n_bins=10)
    np.testing.assert_allclose(found.shares, shares, atol=1e-6)
    np.testing.assert_allclose(found.probabilities, means, atol=1e-6)
    error = 0.0
    for number in range(10):
        inside = (probabilities * 10).astype(int) == number
        error += abs(probabilities[inside].sum() - positives[inside].sum()) / 2000
    assert found.error == pytest.approx(error, abs=1e-6)
    assert found.interval[0] < found.error < found.interval[1]


def test_the_interval_is_that_of_resampled_videos() -> None:
    """Videos of which each is right or wrong as a whole: the error is the share of wrong ones, a binomial variable."""
    videos = np.repeat(np.arange(100), 20)
    wrong = videos < 30
    found = reliability_of(np.ones(2000, np.float32), ~wrong, videos)
    assert found.error == pytest.approx(0.3)
    deviation = np.sqrt(0.3 * 0.7 / 100)
    assert found.interval == pytest.approx((0.3 - 1.96 * deviation, 0.3 + 1.96 * deviation), abs=0.02)


def test_the_interval_of_a_small_error_contains_it() -> None:
    """Resampled errors of calibrated predictions are larger than the error, because noise is added to noise."""
    generator = np.random.default_rng(3)
    probabilities = generator.random(4000)
    found = reliability_of(probabilities, generator.random(4000) < probabilities, np.repeat(np.arange(80), 50))
    assert found.error < 0.02
    assert 0 <= found.interval[0] < found.error < found.interval[1] < 0.04


def test_probabilities_at_the_ends_are_in_the_outer_bins() -> None:
    found = reliability_of(np.array([0, 1, 0.1], np.float32), np.array([False, True, False]), np.zeros(3, np.int32))
    assert found.counts.tolist() == [1, 1, *[0] * 7, 1]
    assert np.isnan(found.shares[5])
    assert found.error == pytest.approx(0.1 / 3)


@pytest.mark.parametrize("is_dense", [False, True])
def test_outcomes_are_the_listed_segments_with_known_truth(is_dense: bool) -> None:
    segments = make_segments(["a", "b", "c"], 10)
    ranking, scores = make_ranking(segments, 2, 30)
    generator = np.random.default_rng(1)
    rated = [(int(s), c) for s in generator.choice(30, 12, replace=False) for c in range(2)]
    values = None if is_dense else (generator.random(len(rated)) < 0.5).astype(float)
    truth = Truth.from_arrays(
        [segments.video_ids[segments.rows[s]] for s, _ in rated],
        [[7, 3][c] for _, c in rated],
        [segments.start_seconds[s] for s, _ in rated],
        values,
    )
    found = outcomes_of(ranking, truth, Vocabulary(np.array([7, 3]), ("x", "y")), lowest=0.25)
    expected = set()
    for place in range(30):
        for column in range(2):
            score = float(scores[place, column])
            is_rated = (place, column) in rated
            if score >= 0.25 and (is_dense or is_rated):
                positive = is_rated and (values is None or bool(values[rated.index((place, column))]))
                expected.add((score, positive, int(segments.rows[place])))
    assert set(zip(found.scores.tolist(), found.positives.tolist(), found.videos.tolist(), strict=True)) == expected
    assert len(found.scores) == len(expected)


def test_the_file_has_a_row_per_bin(tmp_path: Path) -> None:
    found = reliability_of(np.array([0.25, 0.75], np.float32), np.array([False, True]), np.array([0, 1]))
    write_reliability(tmp_path / "r.csv", {("rated", "score"): found, ("rated", "probability"): found})
    with (tmp_path / "r.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20
    assert rows[2] == rows[2] | {"truth": "rated", "value": "score", "from": "0.2", "to": "0.3", "segments": "1"}
    assert (float(rows[2]["mean"]), float(rows[2]["positives"]), float(rows[2]["ece"])) == (0.25, 0.0, 0.25)
    assert rows[0]["mean"] == ""
