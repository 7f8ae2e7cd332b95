"""Merging models: formulas in double precision, and data on which each option must improve the ranking."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.codes import codes_of
from tests.support.codes import exact_probabilities as exact
from yt8m.errors import UsageError
from yt8m.prediction.quantization import NUM_CODES, probabilities_of_codes
from yt8m.ranking.ensemble import CandidatesConfig, MergeConfig, Merger, VideoPriorConfig, model_weights, rank_scores
from yt8m.scoring.map_at_k import average_precision
from yt8m.settings import validated

Codes = dict[str, NDArray[np.uint16]]

SINGLE = 2.0**-23


def random_codes(names: str, shape: tuple[int, ...] = (60, 4), seed: int = 0) -> Codes:
    """Random codes of models; each model is named by one letter."""
    generator = np.random.default_rng(seed)
    return {name: generator.integers(1, NUM_CODES, shape, np.uint16) for name in names}


def merged(codes: Mapping[str, NDArray[np.uint16]], names: str = "", **settings: Any) -> NDArray[np.float32]:
    merger = Merger(MergeConfig(**settings), names or list(codes))
    found = merger(codes)
    assert found.dtype == np.float32
    assert found.shape == next(iter(codes.values())).shape
    return found


# --- Means -----------------------------------------------------------------------------------------------------------


def test_means_of_known_values() -> None:
    half, low = np.array([39322], np.uint16), np.array([1], np.uint16)
    # The logit of code 39322 is -24 + 40 * 39321 / 65534 = 0.00037.
    assert merged({"a": half, "b": low})[0] == pytest.approx(0.25, abs=1e-4)
    assert merged({"a": half, "b": low}, weights={"a": 3.0})[0] == pytest.approx(0.375, abs=1e-4)
    # The root of 1/2 is 0.70711, that of exp(-24) is exp(-12).
    assert merged({"a": half, "b": low}, method="geometric")[0] == pytest.approx(0.70711 * np.exp(-12), rel=1e-3)
    assert merged({"a": half, "b": low}, method="geometric", weights={"b": 0.0})[0] == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("names", ["a", "ab", "abcdefghijkl"])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_arithmetic_mean_equals_its_formula(names: str, weighted: bool) -> None:
    codes = random_codes(names)
    weights = dict(zip(names, np.random.default_rng(1).random(len(names)), strict=True)) if weighted else {}
    of_models = np.array([weights.get(name, 1.0) for name in names])
    expected = np.tensordot(of_models, np.stack([exact(codes[name]) for name in names]), 1) / of_models.sum()
    np.testing.assert_allclose(merged(codes, weights=weights), expected, rtol=(len(names) + 3) * SINGLE, atol=0)


@pytest.mark.parametrize("names", ["a", "ab", "abcdefghijkl"])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_geometric_mean_equals_its_formula(names: str, weighted: bool) -> None:
    codes = random_codes(names)
    weights = dict(zip(names, np.random.default_rng(2).random(len(names)), strict=True)) if weighted else {}
    of_models = np.array([weights.get(name, 1.0) for name in names])
    logarithms = np.tensordot(of_models, np.log(np.stack([exact(codes[name]) for name in names])), 1) / of_models.sum()
    # The rounding error of a logarithm of -24 is 24 times as large.
    tolerance = 24 * (len(names) + 4) * SINGLE
    np.testing.assert_allclose(
        merged(codes, method="geometric", weights=weights), np.exp(logarithms), rtol=tolerance, atol=0
    )


@pytest.mark.parametrize("method", ["arithmetic", "geometric", "rank"])
def test_the_order_of_models_does_not_change_the_result(method: str) -> None:
    codes = random_codes("abcd", (500,))
    weights = {"a": 0.1, "b": 0.7, "d": 3.0}
    expected = merged(codes, method=method, weights=weights)
    for order in itertools.permutations("abcd"):
        shuffled = {name: codes[name] for name in order}
        found = merged(shuffled, "".join(order), method=method, weights=dict(reversed(weights.items())))
        assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("method", ["arithmetic", "geometric"])
def test_merges_are_batch_invariant(method: str) -> None:
    codes = random_codes("abc", (203, 5))
    prior = VideoPriorConfig(models=["c"])
    settings = MergeConfig(method=method, weights={"b": 0.3}, video_prior=prior)
    merger = Merger(settings, "ab")
    everything = merger(codes)
    for size in (1, 7, 64):
        rows = [
            merger({name: part[start : start + size] for name, part in codes.items()}) for start in range(0, 203, size)
        ]
        assert np.concatenate(rows).tobytes() == everything.tobytes()
    columns = [merger({name: part[:, column] for name, part in codes.items()}) for column in range(5)]
    assert np.stack(columns, axis=1).tobytes() == everything.tobytes()


@pytest.mark.parametrize("method", ["arithmetic", "geometric"])
def test_the_mean_of_equal_probabilities_is_the_same_probability(method: str) -> None:
    generator = np.random.default_rng(1)
    agreed = np.arange(1, NUM_CODES, dtype=np.uint16)
    table = probabilities_of_codes()[1:]
    for count in (1, 2, 3, 7, 12, 49):
        names = [f"model{number:02d}" for number in range(count)]
        weights = dict(zip(names, (generator.random(count) ** 5 * 10 + 1e-6).tolist(), strict=True))
        for given in ({}, weights):
            found = Merger(MergeConfig(method=method, weights=given), names)(dict.fromkeys(names, agreed))
            assert found.min() > 0
            assert found.max() <= 1
            tolerance = (count + 2) * SINGLE * (24 if method == "geometric" else 1)
            np.testing.assert_allclose(found, table, rtol=tolerance, atol=0)


def test_a_single_model_is_not_changed() -> None:
    codes = np.arange(1, NUM_CODES, dtype=np.uint16)
    assert merged({"a": codes}).tobytes() == probabilities_of_codes()[1:].tobytes()


@pytest.mark.parametrize("method", ["arithmetic", "geometric", "rank"])
def test_models_of_weight_zero_are_not_used(method: str) -> None:
    codes = random_codes("ab", (80,))
    expected = merged(codes, method=method)
    codes["c"] = np.zeros(80, np.uint16)
    settings = MergeConfig(method=method, weights={"c": 0.0})
    merger = Merger(settings, "cab")
    assert merger.models == ["a", "b"]
    assert merger(codes).tobytes() == expected.tobytes()
    del codes["c"]
    assert merger(codes).tobytes() == expected.tobytes()


@pytest.mark.parametrize("method", ["arithmetic", "geometric", "rank"])
def test_a_missing_probability_of_any_model_gives_nan(method: str) -> None:
    codes = random_codes("abv", (50,))
    for name, place in (("a", 3), ("b", 40), ("v", 17)):
        codes[name][place] = 0
    settings = {"method": method, "video_prior": VideoPriorConfig(models=["v"])}
    assert np.flatnonzero(np.isnan(merged(codes, "ab", **settings))).tolist() == [3, 17, 40]
    settings = {"method": method, "candidates": CandidatesConfig(models=["v"], min_video_probability=1.0)}
    # The same applies where the video classifier excludes all segments.
    found = merged(codes, "ab", **settings)
    assert np.isnan(found[17])
    assert (np.delete(found, [3, 17, 40]) == 0).all()


# --- Ranks -----------------------------------------------------------------------------------------------------------


def slow_rank_scores(codes: NDArray[np.uint16]) -> list[float]:
    """1 - rank / (S + 1), with the mean rank for ties."""
    scores = []
    for code in codes.tolist():
        better = sum(other > code for other in codes.tolist())
        equal = sum(other == code for other in codes.tolist())
        ranks = range(better + 1, better + equal + 1)
        scores.append(1 - sum(ranks) / len(ranks) / (len(codes) + 1))
    return scores


@pytest.mark.parametrize("levels", [1, 2, 9, NUM_CODES - 1])
@pytest.mark.parametrize("count", [1, 2, 3, 40])
def test_ranks_against_a_slow_loop(levels: int, count: int) -> None:
    generator = np.random.default_rng(count)
    spread = {name: generator.integers(NUM_CODES - levels, NUM_CODES, count, np.uint16) for name in "ab"}
    expected = {name: slow_rank_scores(codes) for name, codes in spread.items()}
    np.testing.assert_allclose(rank_scores(spread["a"])[spread["a"]], expected["a"], rtol=SINGLE)
    mean = (np.array(expected["a"]) + 3 * np.array(expected["b"])) / 4
    found = merged(spread, method="rank", weights={"b": 3.0})
    np.testing.assert_allclose(found, mean, rtol=4 * SINGLE)
    assert ((found > 0) & (found < 1)).all()


def test_ranks_depend_on_all_segments_of_a_class() -> None:
    merger = Merger(MergeConfig(method="rank"), "ab")
    assert merger.needs_all_segments
    assert not Merger(MergeConfig(method="geometric"), "ab").needs_all_segments
    codes = random_codes("ab", (60,))
    everything = merger(codes)
    parts = [merger({name: part[half] for name, part in codes.items()}) for half in (slice(0, 30), slice(30, 60))]
    assert not np.allclose(np.concatenate(parts), everything)


# --- Video classifiers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["arithmetic", "geometric"])
@pytest.mark.parametrize(("a", "b"), [(0.2, 0.8), (0.0, 1.0), (1.0, 0.5), (2.5, 3.0)])
def test_the_video_prior_multiplies_powers_of_probabilities(method: str, a: float, b: float) -> None:
    codes = random_codes("stuv")
    # Keep the products far above the smallest number in single precision.
    codes = {name: np.maximum(part, 40_000 if a + b > 4 else 1).astype(np.uint16) for name, part in codes.items()}
    prior = VideoPriorConfig(models=["v", "u"], video_exponent=a, segment_exponent=b)
    segment = merged(codes, "st", method=method).astype(np.float64)
    expected = ((exact(codes["u"]) + exact(codes["v"])) / 2) ** a * segment**b
    np.testing.assert_allclose(merged(codes, "st", method=method, video_prior=prior), expected, rtol=1e-5, atol=0)


def test_the_order_and_repeats_of_the_prior_models_do_not_matter() -> None:
    codes = random_codes("suvw")
    expected = merged(codes, "s", video_prior=VideoPriorConfig(models=["u", "v", "w"]))
    for order in (["w", "v", "u"], ["v", "v", "u", "w", "v"]):
        assert merged(codes, "s", video_prior=VideoPriorConfig(models=order)).tobytes() == expected.tobytes()


def test_candidates_exclude_segments_below_the_threshold() -> None:
    codes = random_codes("stuv", (3000,))
    threshold = 0.3
    of_video = (exact(codes["u"]) + exact(codes["v"])) / 2
    assert (np.abs(of_video - threshold) > 1e-6).all()
    excluded = of_video < threshold
    assert 0.2 < excluded.mean() < 0.8
    plain = merged(codes, "st")
    found = merged(codes, "st", candidates=CandidatesConfig(models=["u", "v"], min_video_probability=threshold))
    assert (found[excluded] == 0).all()
    assert found[~excluded].tobytes() == plain[~excluded].tobytes()
    both = merged(
        codes,
        "st",
        video_prior=VideoPriorConfig(models=["v"]),
        candidates=CandidatesConfig(models=["u", "v"], min_video_probability=threshold),
    )
    prior = merged(codes, "st", video_prior=VideoPriorConfig(models=["v"]))
    assert both.tobytes() == np.where(excluded, np.float32(0), prior).tobytes()


def test_a_probability_at_the_threshold_is_a_candidate() -> None:
    codes = {"s": np.array([30_000], np.uint16), "v": np.array([31_000], np.uint16)}
    at = float(probabilities_of_codes()[31_000])
    above = float(np.nextafter(np.float32(at), np.float32(1)))
    assert merged(codes, "s", candidates=CandidatesConfig(models=["v"], min_video_probability=at))[0] > 0
    assert merged(codes, "s", candidates=CandidatesConfig(models=["v"], min_video_probability=above))[0] == 0


def test_a_merger_lists_the_models_it_uses() -> None:
    settings = MergeConfig(
        weights={"b": 0.0},
        video_prior=VideoPriorConfig(models=["w", "v"]),
        candidates=CandidatesConfig(models=["v", "x"], min_video_probability=0.1),
    )
    assert settings.video_models == ["v", "w", "x"]
    assert Merger(settings, "cab").models == ["a", "c", "v", "w", "x"]
    assert MergeConfig().video_models == []


# --- Data on which each option must improve the ranking --------------------------------------------------------------


NUM_VIDEOS, PER_VIDEO, NUM_CLASSES = 120, 20, 8


def scores(codes: Codes, truth: NDArray[np.bool_], names: str, **settings: Any) -> NDArray[np.float64]:
    """Average precision of each class, (S, C) -> (C,)."""
    merger = Merger(MergeConfig(**settings), names)
    found = []
    for column in range(truth.shape[1]):
        # One class at a time, as the mean of ranks requires.
        probabilities = merger({name: part[:, column] for name, part in codes.items()})
        hits = truth[np.argsort(-probabilities, kind="stable"), column]
        found.append(average_precision(hits, int(hits.sum())))
    return np.array(found)


class SimulatedData:
    """Random truth of segments, (S, C): each class occurs in some videos, and in some of their segments."""

    def __init__(self, seed: int) -> None:
        self.generator = np.random.default_rng(seed)
        in_video = self.generator.random((NUM_VIDEOS, NUM_CLASSES)) < 0.2
        self.in_video = np.repeat(in_video, PER_VIDEO, axis=0)
        self.truth = self.in_video & (self.generator.random(self.in_video.shape) < 0.4)

    def noise(self, scale: float, per_video: bool = False) -> NDArray[np.float64]:
        """Normal noise per segment, or per video."""
        if per_video:
            return np.repeat(self.generator.normal(size=(NUM_VIDEOS, NUM_CLASSES)) * scale, PER_VIDEO, axis=0)
        return self.generator.normal(size=self.truth.shape) * scale


def assert_improves(
    make: Callable[[SimulatedData], Codes], names: str, without: dict[str, Any], option: dict[str, Any], margin: float
) -> None:
    """The option improves the mean over classes by the margin, on each of five random data sets."""
    for seed in range(5):
        simulated = SimulatedData(seed)
        codes = make(simulated)
        before = scores(codes, simulated.truth, names, **without)
        after = scores(codes, simulated.truth, names, **without, **option)
        assert after.mean() > before.mean() + margin, (seed, before.mean(), after.mean())
        assert before.mean() > 1.5 * simulated.truth.mean(), "the baseline is better than chance"


def test_weights_improve_the_ranking_if_a_model_is_noise() -> None:
    def make(simulated: SimulatedData) -> Codes:
        logits = {"g": 3.0 * simulated.truth - 4 + simulated.noise(1), "n": -2 + simulated.noise(2)}
        return {name: codes_of(values) for name, values in logits.items()}

    assert_improves(make, "gn", {}, {"weights": {"n": 0.1}}, 0.1)
    assert_improves(make, "gn", {"method": "geometric"}, {"weights": {"n": 0.1}}, 0.1)


def test_a_geometric_mean_improves_the_ranking_if_a_model_is_overconfident() -> None:
    def make(simulated: SimulatedData) -> Codes:
        logits = {name: 2.0 * simulated.truth - 4 + simulated.noise(1) for name in "abc"}
        wild = simulated.generator.random(simulated.truth.shape) < 0.05
        logits["c"] = np.where(wild, 9.0, logits["c"])
        return {name: codes_of(values) for name, values in logits.items()}

    assert_improves(make, "abc", {}, {"method": "geometric"}, 0.1)


def test_a_mean_of_ranks_improves_the_ranking_if_a_model_has_another_scale() -> None:
    def make(simulated: SimulatedData) -> Codes:
        # Both models rank equally well, but the probabilities of the second are below 0.001.
        logits = {
            "a": 2 * (simulated.truth + simulated.noise(0.6)),
            "b": 2 * (simulated.truth + simulated.noise(0.6)) - 12,
        }
        return {name: codes_of(values) for name, values in logits.items()}

    assert_improves(make, "ab", {}, {"method": "rank"}, 0.05)


def test_the_video_prior_improves_the_ranking_if_the_video_classifier_is_better() -> None:
    def make(simulated: SimulatedData) -> Codes:
        logits = {
            "s": 2.0 * simulated.truth - 4 + simulated.noise(0.5) + simulated.noise(2, per_video=True),
            "v": 5.0 * simulated.in_video - 4 + simulated.noise(1, per_video=True),
        }
        return {name: codes_of(values) for name, values in logits.items()}

    prior = VideoPriorConfig(models=["v"], video_exponent=1.0, segment_exponent=1.0)
    assert_improves(make, "s", {}, {"video_prior": prior}, 0.1)
    # The default exponents, those of the 3rd place, improve the ranking as well.
    assert_improves(make, "s", {}, {"video_prior": VideoPriorConfig(models=["v"])}, 0.03)


def test_candidates_improve_the_ranking_if_segments_look_alike() -> None:
    def make(simulated: SimulatedData) -> Codes:
        alike = ~simulated.in_video & np.repeat(
            simulated.generator.random((NUM_VIDEOS, NUM_CLASSES)) < 0.1, PER_VIDEO, axis=0
        )
        logits = {
            "s": np.where(alike, 6.0, 4.0 * simulated.truth - 4) + simulated.noise(1),
            "v": 5.0 * simulated.in_video - 4 + simulated.noise(0.7, per_video=True),
        }
        return {name: codes_of(values) for name, values in logits.items()}

    assert_improves(make, "s", {}, {"candidates": CandidatesConfig(models=["v"], min_video_probability=0.15)}, 0.2)


# --- Settings --------------------------------------------------------------------------------------------------------


def test_weights_are_by_name_and_default_to_one() -> None:
    settings = validated(MergeConfig, {"weights": {"aware": 2, "agnostic": 0.5}}, "recipe")
    assert settings.method == "arithmetic"
    assert (settings.video_prior, settings.candidates) == (None, None)
    assert model_weights(settings, ["other", "agnostic", "aware"]).tolist() == [1.0, 0.5, 2.0]
    assert model_weights(MergeConfig(), ["a", "b"]).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ({"awear": 1.0}, r"a weight for 'awear', which is not one of its models \(did you mean 'aware'\?\)"),
        ({"aware": 0.0, "agnostic": 0.0}, "sum above 0"),
        ({"aware": 1e39}, "sum above 0 that fits in single precision"),
        ({"aware": 1e-60, "agnostic": 0.0}, "sum above 0"),
    ],
)
def test_invalid_weights_are_refused(weights: dict[str, float], sentence: str) -> None:
    settings = MergeConfig(weights=weights)
    with pytest.raises(UsageError, match=sentence):
        model_weights(settings, ["aware", "agnostic"])
    with pytest.raises(UsageError, match=sentence):
        Merger(settings, ["aware", "agnostic"])


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"metod": "arithmetic"}, "unknown key 'metod' .*'method'"),
        ({"method": "harmonic"}, "'method': expected 'arithmetic', 'geometric' or 'rank', found 'harmonic'"),
        ({"weights": {"a": -1.0}}, r"weights\.a.*greater than or equal to 0"),
        ({"weights": {"a": float("nan")}}, r"weights\.a"),
        ({"weights": {"a": "2"}}, r"weights\.a.*valid number"),
        ({"video_prior": {}}, r"'video_prior\.models' is missing"),
        ({"video_prior": {"models": []}}, r"video_prior\.models.*at least 1 item"),
        ({"video_prior": {"models": ["v"], "segment_exponent": 0}}, r"segment_exponent': expected greater than 0"),
        ({"video_prior": {"models": ["v"], "video_exponent": -1}}, r"video_exponent': expected greater than or equal"),
        ({"video_prior": {"models": ["v"], "video_exponent": float("inf")}}, "video_exponent"),
        ({"candidates": {"models": ["v"]}}, r"'candidates\.min_video_probability' is missing"),
        ({"candidates": {"models": ["v"], "min_video_probability": 0}}, "expected greater than 0"),
        ({"candidates": {"models": ["v"], "min_video_probability": 1.5}}, "expected less than or equal to 1"),
    ],
)
def test_invalid_settings_are_refused(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        validated(MergeConfig, values, str(Path("recipe.yaml")))
