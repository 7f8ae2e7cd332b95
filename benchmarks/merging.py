"""Scores of the models of some runs, merged in each way, on a test set with ground truth.

Every segment is predicted once by all models (and again with test-time shifts) and stored; then each ensemble is ranked from
the store and scored. Runs are output folders of `yt8m run`.

    python benchmarks/merging.py --data build/spliced build/run-seed-0 build/run-seed-1
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from yt8m.dataset.frames import FrameReader
from yt8m.dataset.indexing import load_or_index
from yt8m.dataset.labels import fold_of_videos
from yt8m.inference.classifier import FoldedClassifier
from yt8m.inference.encoders import FoldedEncoder
from yt8m.models.saved import load_model
from yt8m.prediction.passes import PredictionPass, store_predictions
from yt8m.prediction.predict import predict, segments_of
from yt8m.prediction.store import Store, StoreIndex
from yt8m.ranking.ensemble import MergeConfig, Merger
from yt8m.ranking.rank import rank_stored
from yt8m.ranking.topk import TopK
from yt8m.ranking.weights import find_weights, predict_out_of_fold
from yt8m.runs.recipe import read_recipe
from yt8m.scoring.map_at_k import map_at_k
from yt8m.scoring.truth import GroundTruth
from yt8m.submission.writing import ranked_segments
from yt8m.vocabulary import Vocabulary

K = 100_000
DEVICE = torch.device("cpu")


def load(runs: Sequence[Path], kind: str, digest: str) -> dict[str, FoldedClassifier]:
    """Models of one kind of stage of all runs, by `RUN-NAME`."""
    encoders: dict[str, FoldedEncoder] = {}
    folders = {
        f"{run.name}/{folder.parent.name}": folder for run in runs for folder in sorted(run.glob(f"{kind}/*/model"))
    }
    return {
        name.replace("/", "-"): FoldedClassifier(
            load_model(folder, vocabulary_digest=digest), DEVICE, encoders=encoders
        )
        for name, folder in folders.items()
    }


def settings_to_try(videos: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Settings of the ensembles to score, by title."""
    tried: dict[str, dict[str, Any]] = {
        "arithmetic mean": {},
        "geometric mean": {"method": "geometric"},
        "mean of ranks": {"method": "rank"},
    }
    for a in (0.1, 0.2, 0.4):
        prior = {"models": list(videos), "video_exponent": a, "segment_exponent": 1 - a}
        tried[f"video^{a:g} x segment^{1 - a:g}"] = {"video_prior": prior}
    for least in (0.0005, 0.002, 0.01):
        candidates = {"models": list(videos), "min_video_probability": least}
        tried[f"candidates from video probability {least:g}"] = {"candidates": candidates}
    return tried


def main() -> None:
    """Predict, merge, score, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data", required=True, type=Path)
    options = parser.parse_args()
    classes = Vocabulary.load(options.data)
    members, videos = (load(options.runs, kind, classes.digest) for kind in ("finetune", "pretrain"))
    reader = FrameReader(load_or_index(options.data / "segment" / "test"))
    segments = segments_of(reader)
    truths = GroundTruth.find(options.data / "segment", reader.catalog, classes)
    print(f"{', '.join(members)}; {len(segments):,} segments")

    def score(title: str, ranking: Any) -> None:
        scores = [
            ""
            if truth is None
            else f"{map_at_k(ranked_segments(ranking, classes), truth, K, classes).mean_average_precision:.4f}"
            for truth in (truths.ratings, truths.positives)
        ]
        print(f"| {title} | {scores[0]} | {scores[1]} |", flush=True)

    def stored(folder: Path, models: dict[str, FoldedClassifier], shifts: Sequence[int]) -> Store:
        index = StoreIndex.of(models, segments, classes.digest, reader.catalog.digest, shifts, "32-true")
        store = store_predictions(PredictionPass(reader, segments, models, shifts), folder, index)
        if store is None:
            raise RuntimeError("not the first process")
        return store

    print("| ensemble | rated MAP | dense MAP |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        store = stored(Path(folder) / "as-they-are", members | videos, [0])
        stores = dict.fromkeys(members | videos, store)
        for name in members:
            score(f"{name} alone", rank_stored(stores, Merger(MergeConfig(), [name]), segments, K))
        for title, values in settings_to_try(list(videos)).items():
            merger = Merger(MergeConfig.model_validate(values), members)
            score(title, rank_stored(stores, merger, segments, K))
        families, folds = {}, {}
        for run in options.runs:
            recipe = read_recipe(run / "recipe.yaml")
            for name, stage in recipe.segment_models.items():
                families[f"{run.name}-{name}"] = f"{run.name}-{name}"
                folds.setdefault((stage.fold, recipe.folds), []).append(f"{run.name}-{name}")
        rated = FrameReader(load_or_index(options.data / "segment" / "train"))
        held_out = [
            predict_out_of_fold(
                rated, classes, {name: members[name] for name in names}, fold_of_videos(rated.catalog, count) == fold
            )
            for (fold, count), names in folds.items()
        ]
        found = find_weights(held_out, families, "arithmetic")
        merger = Merger(MergeConfig(weights=found.weights), members)
        score(f"weights fitted on {found.num_ratings:,} held-out ratings", rank_stored(stores, merger, segments, K))
        print(f"weights: {found.weights}; cross-entropy {found.loss:.4f}, with equal weights {found.equal_loss:.4f}")
        for shifts in ([-1, 0, 1], [-2, -1, 0, 1, 2]):
            moved = stored(Path(folder) / f"moved-{len(shifts)}", members, shifts)
            ranking = rank_stored(dict.fromkeys(members, moved), Merger(MergeConfig(), members), segments, K)
            score(f"shifts {', '.join(map(str, shifts))}", ranking)
    ranker = TopK(len(classes), K, segments)
    for batch in predict(reader, segments, members):
        ranker.update(batch.positions, Merger(MergeConfig(), members)(batch.codes).astype(np.float32))
    score("arithmetic mean, streamed", ranker.result())


if __name__ == "__main__":
    main()
