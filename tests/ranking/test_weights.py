"""Weights found on out-of-fold predictions against a grid search, and the predictions against a slow loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from tests.support.codes import MAX_LOGIT_ERROR, codes_of, sigmoid
from tests.support.tiny_models import (
    DBOF,
    NEXTVLAD,
    NUM_CLASSES,
    SegmentClassifier,
    agnostic,
    aware,
    fold_classifiers,
    slow_logits,
    videos_of,
)
from tests.support.tiny_shards import TinyVideo, random_videos, write_shards
from yt8m.dataset.frames import FrameReader
from yt8m.dataset.indexing import index_folder
from yt8m.ranking.ensemble import MergeConfig, Merger
from yt8m.ranking.weights import PENALTY, FoldPredictions, FoundWeights, find_weights, predict_out_of_fold
from yt8m.scoring.map_at_k import average_precision
from yt8m.vocabulary import Vocabulary

Method = Literal["arithmetic", "geometric"]


def fold_of(seed: int, quality: Mapping[str, float], num_ratings: int = 800) -> FoldPredictions:
    """Predictions of models of the given quality (0 is noise), calibrated except for their confidence."""
    generator = np.random.default_rng(seed)
    values = generator.random(num_ratings) < 0.3
    signed = np.where(values, 1.0, -1.0)
    logits = [
        2 * of_model * signed + generator.normal(size=num_ratings) * (1.5 if of_model else 2) - 0.8
        for of_model in quality.values()
    ]
    return FoldPredictions(list(quality), np.stack([sigmoid(each) for each in logits]).astype(np.float32), values)


def slow_loss(fold: FoldPredictions, weights: Sequence[float], method: Method) -> float:
    """Cross-entropy in nats per rating, by a loop."""
    total = sum(weights)
    losses = []
    for rating, value in enumerate(fold.values.tolist()):
        predicted = [float(p) for p in fold.probabilities[:, rating]]
        if method == "arithmetic":
            merged = sum(w * p for w, p in zip(weights, predicted, strict=True)) / total
        else:
            merged = float(np.exp(sum(w * np.log(p) for w, p in zip(weights, predicted, strict=True)) / total))
        losses.append(-np.log(merged if value else 1 - merged))
    return float(np.mean(losses))


def mean_weight(found: FoundWeights) -> float:
    return float(np.mean(list(found.weights.values())))


# --- Finding weights -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["arithmetic", "geometric"])
def test_noise_has_a_small_weight_and_the_cross_entropy_decreases(method: Method) -> None:
    fold = fold_of(0, {"good": 1.0, "noise": 0.0})
    found = find_weights([fold], {"good": "a", "noise": "b"}, method)
    assert found.weights["good"] > 4 * found.weights["noise"]
    assert found.loss < found.equal_loss - 0.05
    assert found.num_ratings == 800
    assert mean_weight(found) == pytest.approx(1, abs=1e-4)
    assert found.equal_loss == pytest.approx(slow_loss(fold, [1, 1], method), abs=1e-6)
    weights = [found.weights["good"], found.weights["noise"]]
    assert found.loss == pytest.approx(slow_loss(fold, weights, method), abs=1e-4)


@pytest.mark.parametrize("method", ["arithmetic", "geometric"])
@pytest.mark.parametrize("quality", [(1.0, 0.4), (0.7, 0.7), (0.2, 1.2)])
def test_the_optimum_equals_that_of_a_grid_search(method: Method, quality: tuple[float, float]) -> None:
    fold = fold_of(3, {"one": quality[0], "two": quality[1]}, 300)
    found = find_weights([fold], {"one": "a", "two": "b"}, method)
    predicted = fold.probabilities.astype(np.float64)
    best = (np.inf, 0.0)
    for logarithm in np.linspace(-8, 8, 16_001):
        weight = 1 / (1 + np.exp(-logarithm))
        merged = (
            weight * predicted[0] + (1 - weight) * predicted[1]
            if method == "arithmetic"
            else predicted[0] ** weight * predicted[1] ** (1 - weight)
        )
        loss = -np.mean(np.log(np.where(fold.values, merged, 1 - merged)))
        # The penalty is smallest if the logarithms of the two weights are opposite numbers.
        best = min(best, (loss + PENALTY * 2 * (logarithm / 2) ** 2, logarithm))
    ratio = found.weights["one"] / found.weights["two"]
    assert np.log(ratio) == pytest.approx(best[1], abs=5e-3)
    assert mean_weight(found) == pytest.approx(1, abs=1e-4)


def test_families_share_a_weight_across_folds() -> None:
    folds = [
        fold_of(1, {"a0": 1.0, "b0": 0.3}),
        fold_of(2, {"b1": 0.3, "a1": 1.0, "a2": 0.9}),
        fold_of(4, {"b2": 0.3, "c2": 0.0}),
    ]
    families = {name: name[0] for fold in folds for name in fold.models}
    found = find_weights(folds, families, "arithmetic")
    of_family = {family: {found.weights[name] for name in families if families[name] == family} for family in "abc"}
    assert all(len(weights) == 1 for weights in of_family.values())
    a, b, c = (weights.pop() for weights in of_family.values())
    assert a > b > c
    assert mean_weight(found) == pytest.approx(1, abs=1e-4)
    assert found.num_ratings == 2400
    losses = [slow_loss(fold, [found.weights[name] for name in fold.models], "arithmetic") for fold in folds]
    assert found.loss == pytest.approx(np.mean(losses), abs=1e-4)


def test_folds_of_one_family_are_ignored() -> None:
    informative = fold_of(1, {"a0": 1.0, "b0": 0.3})
    alone = fold_of(2, {"b1": 0.0, "b2": 3.0}, 5000)
    families = {"a0": "a", "b0": "b", "b1": "b", "b2": "b"}
    found = find_weights([alone, informative], families, "arithmetic")
    assert found.num_ratings == 800
    expected = find_weights([informative], families, "arithmetic")
    assert found == expected
    assert found.weights["b1"] == found.weights["b0"]


@pytest.mark.parametrize("method", ["arithmetic", "geometric"])
def test_without_a_fold_of_two_families_all_weights_are_one(method: Method) -> None:
    folds = [fold_of(1, {"a0": 1.0}), fold_of(2, {"b0": 0.2, "b1": 1.0})]
    found = find_weights(folds, {"a0": "a", "b0": "b", "b1": "b"}, method)
    assert found == FoundWeights({"a0": 1.0, "b0": 1.0, "b1": 1.0}, 0.0, 0.0, 0)
    assert find_weights([], {"a": "a"}, method).weights == {"a": 1.0}


def test_weights_are_one_without_evidence() -> None:
    same = fold_of(1, {"a": 0.8}).probabilities
    fold = FoldPredictions(["a", "b"], np.concatenate([same, same]), fold_of(1, {"a": 0.8}).values)
    found = find_weights([fold], {"a": "a", "b": "b", "of a fold without ratings": "c"}, "geometric")
    assert found.weights == pytest.approx(dict.fromkeys(found.weights, 1.0), abs=1e-3)


@pytest.mark.parametrize("method", ["arithmetic", "geometric"])
def test_wrong_predictions_of_0_and_1_give_finite_weights(method: Method) -> None:
    probabilities = np.array([[0, 1, 0, 1], [0.5, 0.5, 0.5, 0.5]], np.float32)
    fold = FoldPredictions(["sure", "unsure"], probabilities, np.array([True, False, False, True]))
    found = find_weights([fold], {"sure": "a", "unsure": "b"}, method)
    assert np.isfinite([*found.weights.values(), found.loss, found.equal_loss]).all()
    assert found.weights["unsure"] > found.weights["sure"]


@pytest.mark.parametrize("method", ["arithmetic", "geometric"])
def test_found_weights_improve_the_ranking_of_unseen_ratings(method: Method) -> None:
    quality = {"good": 0.7, "fair": 0.4, "noise": 0.0}
    families = {name: name for name in quality}
    for seed in range(5):
        held_out, unseen = fold_of(seed, quality), fold_of(100 + seed, quality, 4000)
        found = find_weights([held_out], families, method)
        logits = np.log(unseen.probabilities / (1 - unseen.probabilities))
        codes = {name: codes_of(of_model) for name, of_model in zip(quality, logits, strict=True)}

        def score(weights: dict[str, float]) -> float:
            merged = Merger(MergeConfig(method=method, weights=weights), quality)(codes)  # noqa: B023
            hits = unseen.values[np.argsort(-merged, kind="stable")]  # noqa: B023
            return average_precision(hits, int(hits.sum()))

        assert score(found.weights) > score({}) + 0.03


# --- Out-of-fold predictions -----------------------------------------------------------------------------------------

LABEL_IDS = [7, 3, 11, 5, 19]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary(np.array(LABEL_IDS, np.int64), tuple(map(str, LABEL_IDS)))


def rated_videos() -> list[TinyVideo]:
    """Rated videos: some at their start and end, one without ratings, one too short for a test set."""
    rated = random_videos(4, num_frames=(45, 80), label_ids=[*LABEL_IDS, 2], ratings_per_video=9)
    by_hand = [
        # The last segments of these videos have five, four and one frames.
        ((7, 0, 1.0), (3, 0, 0.0), (11, 5, 1.0), (5, 65, 1.0), (19, 60, 0.0)),
        ((3, 0, 1.0), (3, 60, 1.0), (7, 35, 0.0)),
        ((19, 0, 1.0), (5, 60, 0.0), (5, 55, 1.0)),
        (),
        ((7, 0, 0.0), (7, 5, 1.0)),
    ]
    lengths = [70, 64, 61, 90, 12]
    others = [
        TinyVideo(f"by-hand{number}", video.frames, (), ratings)
        for number, (video, ratings) in enumerate(zip(videos_of(lengths), by_hand, strict=True))
    ]
    return [*others[:3], *rated, *others[3:]]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> FrameReader:
    folder = tmp_path_factory.mktemp("rated")
    write_shards(folder, rated_videos(), num_shards=3)
    return FrameReader(index_folder(folder))


def slow_probability(model: SegmentClassifier, video: TinyVideo, start: int, class_index: int, shift: int) -> float:
    """Probability by a call of the complete model."""
    return float(torch.sigmoid(slow_logits(model, video.frames, start, shift).double())[class_index])


MODELS = {
    "agnostic": agnostic(DBOF, seed=1),
    "aware": aware(NEXTVLAD, DBOF, seed=2),
    "wide": agnostic(NEXTVLAD, margin=20, seed=3),
}


@pytest.mark.parametrize("shifts", [(0,), (-2, 0, 1)])
def test_predictions_of_ratings_equal_a_slow_loop(
    reader: FrameReader, vocabulary: Vocabulary, shifts: tuple[int, ...]
) -> None:
    held_out = np.array([True, True, True, True, False, True, False, True, True])
    folded = fold_classifiers(MODELS)
    found = predict_out_of_fold(reader, vocabulary, folded, held_out, shifts)
    expected: list[list[float]] = []
    values = []
    for video, is_held_out in zip(rated_videos(), held_out.tolist(), strict=True):
        # A catalog sorts the ratings of a video by start, then label.
        for label, start, value in (
            sorted(video.ratings, key=lambda rating: (rating[1], rating[0])) if is_held_out else ()
        ):
            if label not in LABEL_IDS:
                continue
            values.append(value > 0)
            column = LABEL_IDS.index(label)
            expected.append(
                [
                    float(np.mean([slow_probability(model, video, start, column, shift) for shift in shifts]))
                    for model in MODELS.values()
                ]
            )
    assert found.models == list(MODELS)
    assert found.values.tolist() == values
    assert found.probabilities.shape == (len(MODELS), len(values))
    assert len(values) > 20
    exact = np.array(expected).T
    assert (np.abs(found.probabilities - exact) <= 1e-5 + 1.02 * MAX_LOGIT_ERROR * exact * (1 - exact)).all()
    assert exact.std(axis=1).min() > 0.01
    assert len(LABEL_IDS) == NUM_CLASSES


@pytest.mark.parametrize("margin", [0, 3])
@pytest.mark.parametrize("shift", [-5, 5])
def test_a_shift_beyond_the_ends_of_a_video_gives_probabilities(
    reader: FrameReader, vocabulary: Vocabulary, margin: int, shift: int
) -> None:
    """The first and the last segment of a video are rated, and shifted out of it."""
    folded = fold_classifiers({"model": agnostic(margin=margin)})
    everything = np.ones(len(reader.catalog), np.bool_)
    found = predict_out_of_fold(reader, vocabulary, folded, everything, (shift, 0))
    assert np.isfinite(found.probabilities).all()


def test_ratings_of_one_segment_are_distinguished(tmp_path: Path, vocabulary: Vocabulary) -> None:
    """One segment has ratings of several classes, and one class has ratings of several segments."""
    [frames] = videos_of([60])
    ratings = ((19, 25, 1.0), (7, 30, 0.0), (11, 30, 1.0), (19, 30, 0.0))
    write_shards(tmp_path, [TinyVideo("aaaa", frames.frames, (), ratings)], num_shards=1)
    rated = FrameReader(index_folder(tmp_path))
    model = agnostic(seed=1)
    found = predict_out_of_fold(rated, vocabulary, fold_classifiers({"m": model}), np.array([True]))
    assert found.values.tolist() == [True, False, True, False]
    assert len(set(found.probabilities[0].tolist())) == 4
    expected = [slow_probability(model, frames, start, LABEL_IDS.index(label), 0) for label, start, _ in ratings]
    assert found.probabilities[0].tolist() == pytest.approx(expected, abs=1e-4)


def test_a_fold_without_ratings_has_no_predictions(reader: FrameReader, vocabulary: Vocabulary) -> None:
    folded = fold_classifiers({"agnostic": MODELS["agnostic"]})
    no_videos = np.zeros(len(reader.catalog), np.bool_)
    found = predict_out_of_fold(reader, vocabulary, folded, no_videos)
    assert found.probabilities.shape == (1, 0)
    assert find_weights([found], {"agnostic": "a"}, "arithmetic").weights == {"agnostic": 1.0}
