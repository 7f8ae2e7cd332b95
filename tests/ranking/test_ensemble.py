"""Means of models: close to exact arithmetic, within bounds, and the same bits however they are batched."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from yt8m.errors import UsageError
from yt8m.ranking.ensemble import EnsembleSettings, model_weights, weighted_mean
from yt8m.settings import validated


def test_a_mean_worked_by_hand():
    first, second = np.array([[0.0, 1.0]], np.float32), np.array([[0.5, 0.25]], np.float32)
    assert weighted_mean([first, second], [1, 1]).tolist() == [[0.25, 0.625]]
    assert weighted_mean([first, second], [1, 3]).tolist() == [[0.375, 0.4375]]
    assert weighted_mean([first, second], [0, 2]).tolist() == second.tolist()


def test_close_to_exact_fractions_and_independent_of_batches():
    generator = np.random.default_rng(0)
    models = [generator.random((50, 4), np.float32) for _ in range(12)]
    weights = generator.random(12).astype(np.float32)
    merged = weighted_mean(models, weights)
    for place in np.ndindex(50, 4):
        total = sum(Fraction(float(w)) * Fraction(float(m[place])) for w, m in zip(weights, models, strict=True))
        exact = float(total / sum(Fraction(float(w)) for w in weights))
        assert abs(merged[place] - exact) < 13 * 2**-24
    parts = [weighted_mean([m[start : start + 7] for m in models], weights) for start in range(0, 50, 7)]
    assert np.concatenate(parts).tobytes() == merged.tobytes()
    assert merged.dtype == np.float32


def test_a_mean_of_ones_is_one_whatever_the_weights():
    generator = np.random.default_rng(1)
    for num_models in (2, 3, 7, 12, 49):
        weights = generator.random(num_models) ** 5 * 10
        assert weighted_mean([np.ones(3, np.float32)] * num_models, weights).tolist() == [1.0, 1.0, 1.0]
        near_one = np.full(3, np.nextafter(np.float32(1), np.float32(0)))
        assert weighted_mean([near_one] * num_models, weights).max() <= 1


def test_arrays_and_weights_must_fit():
    ones = np.ones((2, 2), np.float32)
    with pytest.raises(ValueError, match="a weight a model"):
        weighted_mean([ones, ones], [1])
    with pytest.raises(ValueError, match="a weight a model"):
        weighted_mean([], [])
    with pytest.raises(ValueError, match="float32 arrays of one shape"):
        weighted_mean([ones, ones[:1]], [1, 1])
    with pytest.raises(ValueError, match="float32 arrays of one shape"):
        weighted_mean([ones, ones.astype(np.float64)], [1, 1])


def test_weights_come_by_name_and_default_to_one():
    settings = validated(EnsembleSettings, {"weights": {"aware": 2, "agnostic": 0.5}}, "recipe")
    assert settings.method == "arithmetic"
    assert model_weights(settings, ["other", "agnostic", "aware"]).tolist() == [1.0, 0.5, 2.0]
    assert model_weights(EnsembleSettings(), ["a", "b"]).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ({"awear": 1.0}, r"a weight to 'awear', which is not one of its models \(did you mean 'aware'\?\)"),
        ({"aware": 0.0, "agnostic": 0.0}, "sum above 0"),
        ({"aware": 1e39}, "sum above 0 that single precision can hold"),
        ({"aware": 1e-60, "agnostic": 0.0}, "sum above 0"),
    ],
)
def test_weights_that_cannot_be_meant_are_refused(weights, sentence):
    with pytest.raises(UsageError, match=sentence):
        model_weights(EnsembleSettings(weights=weights), ["aware", "agnostic"])


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"metod": "arithmetic"}, "unknown key 'metod' .*'method'"),
        ({"method": "harmonic"}, "'method': expected 'arithmetic', found 'harmonic'"),
        ({"weights": {"a": -1.0}}, r"weights\.a.*greater than or equal to 0"),
        ({"weights": {"a": float("nan")}}, r"weights\.a"),
        ({"weights": {"a": "2"}}, r"weights\.a.*valid number"),
    ],
)
def test_settings_are_strict(values, sentence):
    with pytest.raises(UsageError, match=sentence):
        validated(EnsembleSettings, values, str(Path("recipe.yaml")))
