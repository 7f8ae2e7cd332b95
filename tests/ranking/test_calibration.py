"""Calibration against scikit-learn and against models whose probabilities are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from tests.support.codes import sigmoid
from yt8m.ranking.calibration import (
    NUM_BINS,
    Calibration,
    JointCounts,
    RatedCounts,
    bins_of,
    ensemble_digest,
    fit_parameters,
    read_calibration,
    write_calibration,
)
from yt8m.ranking.ensemble import MergeConfig, Merger
from yt8m.scoring.reliability import reliability_of


def calibration(low: float, high: float, offset: float) -> Calibration:
    return Calibration(low=low, high=high, offset=offset, ensemble="digest", num_ratings=1)


def counted(scores: NDArray[np.float32], positives: NDArray[np.bool_], weights: NDArray[np.float64]) -> RatedCounts:
    bins = bins_of(scores)
    return RatedCounts(
        len(scores), np.bincount(bins, weights * positives, NUM_BINS), np.bincount(bins, weights, NUM_BINS)
    )


def joint_of(parts: list[NDArray[np.float32]], ensemble: NDArray[np.float32]) -> JointCounts:
    joint = JointCounts.empty(len(parts))
    joint.add([part[:, None] for part in parts], ensemble[:, None])
    return joint


def error_of(values: NDArray[np.float32], positives: NDArray[np.bool_]) -> float:
    return reliability_of(values, positives, np.arange(len(values)) % 100).error


scores_drawn = st.lists(st.floats(0, 1, width=32), min_size=2, max_size=20)
slopes = st.floats(0, 5)


@given(scores=scores_drawn, low=slopes, high=slopes, offset=st.floats(-9, 9))
def test_the_map_is_monotonic_and_equal_scores_stay_equal(
    scores: list[float], low: float, high: float, offset: float
) -> None:
    ordered = np.sort(np.array([*scores, scores[0], 0, 1], np.float32))
    found = calibration(low, high, offset)(ordered)
    assert found.dtype == np.float32
    assert ((found >= 0) & (found <= 1)).all()
    assert (np.diff(found) >= 0).all()
    assert (np.diff(found)[np.diff(ordered) == 0] == 0).all()


def test_the_map_is_the_formula_of_beta_calibration() -> None:
    scores = np.array([0.001, 0.2, 0.5, 0.99], np.float32)
    odds = scores**1.5 / (1 - scores) ** 0.4 * np.exp(-1.2)
    np.testing.assert_allclose(calibration(1.5, 0.4, -1.2)(scores), odds / (1 + odds), rtol=1e-5)


def test_the_fit_of_a_single_model_is_that_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(-2, 2, 20_000)
    scores = sigmoid(logits).astype(np.float32)
    positives = generator.random(20_000) < sigmoid(0.6 * logits - 1)
    weights = generator.choice([1.0, 4.0], 20_000)
    found = fit_parameters([counted(scores, positives, weights)], joint_of([scores], scores))
    features = np.stack([np.log(scores), -np.log1p(-scores)], axis=1)
    expected = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(features, positives, weights)
    assert found == pytest.approx([*expected.coef_[0], *expected.intercept_], abs=0.02)


@pytest.mark.parametrize("noise", [0.7, 1.5])
def test_an_ensemble_of_models_that_hold_out_different_ratings_is_calibrated(noise: float) -> None:
    """Three overconfident models with errors of their own; the map of a single model would be too flat."""
    generator = np.random.default_rng(1)

    def drawn(size: int) -> tuple[list[NDArray[np.float32]], NDArray[np.float32], NDArray[np.bool_]]:
        truth = generator.normal(-3, 2, size)
        of_models = [sigmoid(truth + 1 + generator.normal(0, noise, size)).astype(np.float32) for _ in range(3)]
        merged = sigmoid(np.mean([np.log(s / (1 - s)) for s in of_models], axis=0)).astype(np.float32)
        return of_models, merged, generator.random(size) < sigmoid(truth)

    rated = []
    for model in range(3):
        of_models, _, positives = drawn(30_000)
        rated.append(counted(of_models[model], positives, np.ones(30_000)))
    of_models, merged, _ = drawn(60_000)
    found = fit_parameters(rated, joint_of(of_models, merged))
    assert found is not None
    _, merged, positives = drawn(200_000)
    likely = merged > 0.1
    before, after = (error_of(values[likely], positives[likely]) for values in (merged, calibration(*found)(merged)))
    assert before > 0.1
    assert after < 0.012
    pooled = fit_parameters([rated[0]], joint_of([of_models[0]], of_models[0]))
    assert pooled is not None
    assert error_of(calibration(*pooled)(merged)[likely], positives[likely]) > 2 * after


def test_scores_that_contradict_the_ratings_have_one_probability() -> None:
    generator = np.random.default_rng(2)
    scores = generator.random(5000).astype(np.float32)
    positives = generator.random(5000) < 0.5 * (1 - scores)
    found = fit_parameters([counted(scores, positives, np.ones(5000))], joint_of([scores], scores))
    assert found is not None
    assert found[:2] == pytest.approx((0, 0), abs=1e-3)
    assert sigmoid(np.array(found[2])) == pytest.approx(positives.mean(), abs=1e-3)


@pytest.mark.parametrize("value", [True, False])
def test_ratings_of_one_kind_determine_nothing(value: bool) -> None:
    scores = np.linspace(0.1, 0.9, 50, dtype=np.float32)
    counts = counted(scores, np.full(50, value), np.ones(50))
    assert fit_parameters([counts], joint_of([scores], scores)) is None
    assert fit_parameters([], JointCounts.empty(0)) is None


def test_bins_are_a_hundredth_of_a_logit_wide() -> None:
    scores = np.array([0, 0.25, 0.5, 0.75, 1, np.nan], np.float32)
    logits = -24 + bins_of(scores) / 100
    assert logits.tolist() == pytest.approx([-24, -np.log(3), 0, np.log(3), 17, -24], abs=0.0051)


# --- Which ensemble it is for ----------------------------------------------------------------------------------------

DIGESTS = {"a": "1", "b": "2", "video": "3"}


def digest(
    names: str = "ab", shifts: tuple[int, ...] = (0,), digests: dict[str, str] = DIGESTS, **settings: object
) -> str:
    return ensemble_digest(Merger(MergeConfig.model_validate(settings), names), digests, shifts)


def test_the_digest_of_an_ensemble_depends_on_all_that_decides_its_scores() -> None:
    prior = {"models": ["video"], "video_exponent": 0.5}
    others = [
        digest("a"),
        digest(weights={"a": 2}),
        digest(method="geometric"),
        digest(shifts=(0, 1)),
        digest(video_prior=prior),
        digest(video_prior=prior | {"video_exponent": 0.4}),
        digest(candidates={"models": ["video"], "min_video_probability": 0.1}),
        digest(digests=DIGESTS | {"b": "4"}),
    ]
    assert len({digest(), *others}) == 9
    # Not on names, the scale of the weights, the order of shifts, or models of weight 0.
    assert digest(weights={"a": 3, "b": 3}) == digest()
    assert digest("xy", digests={"x": "2", "y": "1"}) == digest()
    assert digest("abc", weights={"c": 0}, digests=DIGESTS | {"c": "9"}) == digest()
    assert digest(shifts=(1, 0)) == digest(shifts=(0, 1))


def test_a_calibration_is_kept_in_a_folder(tmp_path: Path) -> None:
    assert read_calibration(tmp_path) is None
    kept = calibration(1.25, 0.5, -0.1)
    write_calibration(tmp_path, kept)
    assert read_calibration(tmp_path) == kept
    (tmp_path / "calibration.yaml").write_text("low: -1\n")
    assert read_calibration(tmp_path) is None
    merger = Merger(MergeConfig(), "ab")
    assert kept.of(merger, DIGESTS, [0]) is None
    own = kept.model_copy(update={"ensemble": digest()})
    assert own.of(merger, DIGESTS, [0]) is own
