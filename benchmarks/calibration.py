"""Reliability of an ensemble's scores on spliced test sets with exact truth, calibrated in several ways.

Each RUN is the folder of a finished run on a spliced dataset (DATA): its models predict the ratings that they held out and
the test set. Calibrations are fitted to the former and measured on the latter, which is held out from the fit, as expected
calibration error (ECE) with its 95% interval (bootstrap over videos): of all test segments and classes with a score of 0.1
or more, and of the rated ones. Needs scikit-learn.

    python benchmarks/calibration.py build/demo/data:build/demo/run ...
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from yt8m.dataset.frames import FrameReader
from yt8m.dataset.indexing import load_or_index
from yt8m.dataset.labels import fold_of_videos
from yt8m.inference.classifier import load_folded
from yt8m.prediction.predict import predict, segments_of
from yt8m.ranking.calibration import (
    HIGHEST_LOGIT,
    LOWEST_LOGIT,
    NUM_BINS,
    Calibration,
    JointCounts,
    RatedCounts,
    fit_parameters,
)
from yt8m.ranking.ensemble import Merger
from yt8m.ranking.out_of_fold import rated_counts, segments_of_ratings
from yt8m.ranking.topk import Ranking, TopK
from yt8m.runs.finished import ensemble_of_run
from yt8m.runs.recipe import RECIPE_FILE, read_recipe
from yt8m.scoring.reliability import LOWEST_SCORE, Reliability, outcomes_of, reliability_of
from yt8m.scoring.truth import GroundTruth
from yt8m.vocabulary import Vocabulary

Map = Callable[[NDArray[np.float32]], NDArray[np.float64]]
CENTERS = 1 / (1 + np.exp(-np.linspace(LOWEST_LOGIT, HIGHEST_LOGIT, NUM_BINS)))
FAMILIES = ("temperature", "Platt", "beta", "isotonic")


def features(family: str, scores: NDArray[np.floating]) -> NDArray[np.float64]:
    """What a family is linear in, (n, features)."""
    inside = np.clip(scores.astype(np.float64), 1e-10, 1 - 1e-7)
    if family == "beta":
        return np.stack([np.log(inside), -np.log1p(-inside)], axis=1)
    return (np.log(inside) - np.log1p(-inside))[:, None]


def fitted(family: str, counts: RatedCounts) -> Map:
    """A map of a family, of maximum likelihood."""
    used = np.flatnonzero(counts.totals)
    scores = np.tile(CENTERS[used], 2)
    values = np.repeat([1, 0], len(used))
    weights = np.concatenate([counts.positives[used], np.maximum(counts.totals - counts.positives, 0)[used]])
    if family == "isotonic":
        isotonic = IsotonicRegression(out_of_bounds="clip").fit(scores, values, weights)
        return isotonic.predict
    model = LogisticRegression(C=np.inf, fit_intercept=family != "temperature", tol=1e-9, max_iter=5000)
    model.fit(features(family, scores), values, weights)
    return lambda given: model.predict_proba(features(family, given))[:, 1]


def of_ratings_alone(
    reader: FrameReader, vocabulary: Vocabulary, models: dict, merger: Merger, videos: NDArray[np.bool_]
) -> RatedCounts:
    """The ratings of some videos with equal weights, without mined negatives."""
    from yt8m.dataset.labels import rated_segments
    from yt8m.ranking.calibration import bins_of

    ratings = rated_segments(reader.catalog, vocabulary, videos)
    segments, segment_of_rating = segments_of_ratings(reader, ratings)
    used = {name: models[name] for name in merger.models}
    bins = np.concatenate([bins_of(merger(batch.codes)) for batch in predict(reader, segments, used)])
    of_rating = bins[segment_of_rating, ratings.class_indices]
    positives = np.bincount(of_rating[ratings.values], minlength=NUM_BINS).astype(np.float64)
    return RatedCounts(len(ratings), positives, np.bincount(of_rating, minlength=NUM_BINS).astype(np.float64))


def summed(counts: list[RatedCounts]) -> RatedCounts:
    """Counts of several parts as if they were of one."""
    return RatedCounts(
        sum(of_part.num_ratings for of_part in counts),
        np.sum([of_part.positives for of_part in counts], axis=0),
        np.sum([of_part.totals for of_part in counts], axis=0),
    )


def measure(data: Path, run: Path) -> Iterator[tuple[str, list[Reliability]]]:
    """Yield the name of each way, and the reliability of all segments and of the rated ones."""
    recipe, vocabulary, ensemble = read_recipe(run / RECIPE_FILE), Vocabulary.load(data), ensemble_of_run(run)
    models = load_folded(ensemble.folders, vocabulary.digest, torch.device("cpu"))
    merger = Merger(ensemble.settings, ensemble.members)
    rated, test = (FrameReader(load_or_index(data / "segment" / part)) for part in ("train", "test"))
    folds = fold_of_videos(rated.catalog, recipe.folds)
    held_out = {name: recipe.segment_models[name].fold for name in merger.shares}
    own_folds = sorted(set(held_out.values()))
    parts = [merger.part([name for name in held_out if held_out[name] == fold]) for fold in own_folds]
    chosen = list(zip(parts, own_folds, strict=True))
    weighted = [rated_counts(rated, vocabulary, models, part, folds == fold) for part, fold in chosen]
    unweighted = [of_ratings_alone(rated, vocabulary, models, part, folds == fold) for part, fold in chosen]
    in_sample = [rated_counts(rated, vocabulary, models, merger, folds == fold) for fold in own_folds]

    segments = segments_of(test)
    ranker, joint = TopK(len(vocabulary), len(segments), segments), JointCounts.empty(len(parts))
    for batch in predict(test, segments, models):
        scores = merger(batch.codes)
        ranker.update(batch.positions, scores)
        joint.add([part(batch.codes) for part in parts], scores)
    ranking: Ranking = ranker.result()
    truth = GroundTruth.find(data / "segment", test.catalog, vocabulary)
    assert truth.positives is not None
    assert truth.ratings is not None
    everything = outcomes_of(ranking, truth.positives, vocabulary)
    likely = everything.scores >= np.float32(LOWEST_SCORE)
    sets = [
        (everything.scores[likely], everything.positives[likely], everything.videos[likely]),
        tuple(vars(outcomes_of(ranking, truth.ratings, vocabulary)).values()),
    ]

    def reliability(way: Map) -> list[Reliability]:
        return [reliability_of(way(scores), positives, videos) for scores, positives, videos in sets]

    yield "scores", reliability(lambda scores: scores.astype(np.float64))
    for family in FAMILIES:
        yield f"ratings alone, parts as one, {family}", reliability(fitted(family, summed(unweighted)))
    for family in FAMILIES:
        yield f"weighted, parts as one, {family}", reliability(fitted(family, summed(weighted)))
    yield "weighted, all models, in-sample, beta", reliability(fitted("beta", summed(in_sample)))
    found = fit_parameters(weighted, joint)
    assert found is not None
    low, high, offset = found
    ours = Calibration(low=low, high=high, offset=offset, ensemble="", num_ratings=0)
    yield "**yt8m: weighted, parts compared, beta**", reliability(lambda scores: ours(scores).astype(np.float64))
    bins = np.histogram(everything.scores, _edges())[0].astype(np.float64)
    positives = np.histogram(everything.scores[everything.positives], _edges())[0].astype(np.float64)
    yield "bound: beta fitted to the test truth itself", reliability(fitted("beta", RatedCounts(0, positives, bins)))


def _edges() -> NDArray[np.float64]:
    """Edges of the bins of scores, (bins + 1,)."""
    logits = np.linspace(LOWEST_LOGIT, HIGHEST_LOGIT, NUM_BINS)
    inner = 1 / (1 + np.exp(-(logits[1:] + logits[:-1]) / 2))
    return np.concatenate([[-1], inner, [2]])


def main() -> None:
    """Measure each run, and print a table of all and the bins of ours."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="DATA:RUN")
    rows: dict[str, list[str]] = {}
    shown = []
    for text in parser.parse_args().runs:
        data, run = map(Path, text.split(":"))
        for name, measured in measure(data, run):
            cells = [f"{m.error:.3f} ({m.interval[0]:.3f} to {m.interval[1]:.3f})" for m in measured]
            rows.setdefault(name, []).extend(cells)
            if name == "scores" or name.startswith("**"):
                shown += [(f"{run}, {name}, {what}", m) for what, m in zip(("all", "rated"), measured, strict=True)]
    for name, cells in rows.items():
        print(f"| {name} | {' | '.join(cells)} |")
    for name, measured in shown:
        print(f"\n{name}\n")
        for counts, mean, share in zip(measured.counts, measured.probabilities, measured.shares, strict=True):
            print(f"| {mean:.3f} | {share:.3f} | {counts:,} |" if counts else "| - | - | 0 |")


if __name__ == "__main__":
    main()
