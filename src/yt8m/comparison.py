"""The end of the road: predict the test set in one pass, rank, write the submission, and score what there is truth for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from yt8m.dataset.frames import FrameReader
from yt8m.display import tracked
from yt8m.ranking.ensemble import weighted_mean
from yt8m.ranking.predict import Predictions, SegmentClassifier, predict, segments_of
from yt8m.ranking.submission import ranked_segments, write_submission
from yt8m.ranking.topk import Ranking, Segments, TopK
from yt8m.scoring.map_at_k import Truth, load_positives_csv, load_ratings_csv, map_at_k, write_class_scores
from yt8m.scoring.report import SCORES_FILE, ScoreRow, plot_scores, plot_timeline, write_scores
from yt8m.scoring.truth import truth_of_catalog
from yt8m.vocabulary import Vocabulary

RATINGS_FILE = "test_ratings.csv"
POSITIVES_FILE = "test_positives.csv"
TIMELINE_CLASSES = 8


@dataclass(frozen=True, eq=False)
class Merge:
    """One ranking to make: a weighted mean of models, or a random order.

    Args:
        name: What the table calls it.
        kind: "agnostic", "aware", "mixture" or "random".
        weights: A weight a model; empty for a random order.
    """

    name: str
    kind: str
    weights: Mapping[str, float]


def merges(kinds: Mapping[str, str], weights: Mapping[str, float], compare: bool) -> list[Merge]:
    """Rankings to make of a set of models; the submission's is the last.

    Args:
        kinds: "agnostic" or "aware" for each model, by name.
        weights: Weights of the ensemble's models.
        compare: Whether to make more than the submission's.
    """
    mixture = Merge("mixture", "mixture", weights)
    if not compare:
        return [mixture]
    singles = [Merge(name, kind, {name: 1.0}) for name, kind in kinds.items()]
    alike = [
        Merge(f"{kind} only", kind, {name: weight for name, weight in weights.items() if kinds[name] == kind})
        for kind in dict.fromkeys(kinds.values())
    ]
    return [Merge("random", "random", {}), *singles, *(merge for merge in alike if merge.weights), mixture]


def merged(merge: Merge, batch: Predictions, num_classes: int, seed: int) -> NDArray[np.float32]:
    """Probabilities of one merge for a batch, float32 (n, C); a random order depends on (seed, first position) alone."""
    if not merge.weights:
        rng = np.random.default_rng([seed, int(batch.positions[0])])
        return rng.random((len(batch.positions), num_classes), dtype=np.float32)
    return weighted_mean([batch.probabilities[name] for name in merge.weights], list(merge.weights.values()))


@dataclass(frozen=True, eq=False)
class Truths:
    """What is known of the test set: ratings, and all positives; either may be missing."""

    ratings: Truth | None
    positives: Truth | None

    @classmethod
    def find(cls, folder: Path, reader: FrameReader, vocabulary: Vocabulary) -> Truths:
        """Look beside the test shards for `test_ratings.csv` and `test_positives.csv`; rated shards rate themselves.

        Raises:
            Yt8mError: A file cannot be read, or nothing can be scored against it.
        """
        ratings = positives = None
        if (folder / RATINGS_FILE).is_file():
            ratings = load_ratings_csv(folder / RATINGS_FILE)
        elif len(reader.catalog.rating_labels):
            ratings = truth_of_catalog(reader.catalog, vocabulary)
        if (folder / POSITIVES_FILE).is_file():
            positives = load_positives_csv(folder / POSITIVES_FILE)
        for truth in (ratings, positives):
            if truth is not None:
                # Scored here with nothing, a truth that cannot be used says so before anything is predicted.
                map_at_k([], truth, vocabulary=vocabulary)
        return cls(ratings, positives)

    @property
    def digest(self) -> str:
        """Fingerprint of all that is known."""
        digest = hashlib.sha256()
        for truth in (self.ratings, self.positives):
            known = {} if truth is None else truth.ratings
            for label_id, of_label in sorted(known.items()):
                digest.update(repr((label_id, sorted(of_label.items()))).encode())
            digest.update(b"|")
        return digest.hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class Comparison:
    """What prediction left: the table's rows (none without truth) and the number of segments ranked."""

    rows: list[ScoreRow]
    num_segments: int


def predict_and_score(
    reader: FrameReader,
    models: Mapping[str, SegmentClassifier],
    wanted: Sequence[Merge],
    top_k: int,
    vocabulary: Vocabulary,
    truths: Truths,
    submission: Path,
    folder: Path,
    device: torch.device,
    seed: int,
) -> Comparison:
    """Predict every segment once, rank it for every merge, write the last one's submission, and score all.

    Args:
        reader: The test videos.
        models: Segment classifiers by name, on `device`.
        wanted: Rankings to make; the last one is the submission.
        top_k: Segments listed for a class.
        vocabulary: The segment classes.
        truths: What to score against.
        submission: The file to write.
        folder: Receives `timeline.png`, and where there is truth `scores.csv`, `class_scores.csv` and `scores.png`.
        device: Where the models are.
        seed: Of the random order.
    """
    segments = segments_of(reader)
    rankers = [TopK(len(vocabulary), top_k, segments) for _ in wanted]
    shown = _video_to_show(reader, segments, truths)
    timeline: list[NDArray[np.float32]] = []
    batches = predict(reader, models, device, progress=lambda items: tracked(items, "predict"))
    for batch in batches:
        for merge, ranker in zip(wanted, rankers, strict=True):
            probabilities = merged(merge, batch, len(vocabulary), seed)
            ranker.update(batch.positions, probabilities)
        timeline.append(probabilities[segments.rows[batch.positions] == shown])
    rankings = [ranker.result() for ranker in rankers]
    write_submission(submission, rankings[-1], vocabulary)
    video_id = reader.catalog.id_of(shown)
    _write_timeline(folder / "timeline.png", video_id, shown, segments, np.concatenate(timeline), truths, vocabulary)
    if truths.ratings is None and truths.positives is None:
        write_scores(folder / SCORES_FILE, [])
        return Comparison([], len(segments))
    rows = [
        ScoreRow(
            merge.name,
            merge.kind,
            _score(ranking, truths.ratings, top_k, vocabulary),
            _score(ranking, truths.positives, top_k, vocabulary),
        )
        for merge, ranking in tracked(list(zip(wanted, rankings, strict=True)), "score")
    ]
    if truths.ratings is not None:
        score = map_at_k(ranked_segments(rankings[-1], vocabulary), truths.ratings, top_k, vocabulary)
        write_class_scores(folder / "class_scores.csv", score, vocabulary)
    write_scores(folder / SCORES_FILE, rows)
    plot_scores(folder / "scores.png", rows, top_k)
    return Comparison(rows, len(segments))


def _score(ranking: Ranking, truth: Truth | None, top_k: int, vocabulary: Vocabulary) -> float | None:
    if truth is None:
        return None
    return map_at_k(ranked_segments(ranking, vocabulary), truth, top_k, vocabulary).mean_average_precision


def _video_to_show(reader: FrameReader, segments: Segments, truths: Truths) -> int:
    """Row of the video with most to see: the most different sets of concepts where the truth is known, else the first."""
    first = int(segments.rows[0])
    if truths.positives is None:
        return first
    at: dict[bytes, dict[bytes, set[int]]] = {}
    for label_id, of_label in truths.positives.ratings.items():
        for segment in of_label:
            at.setdefault(segment.split(b":")[0], {}).setdefault(segment, set()).add(label_id)
    changes = {video: len({frozenset(labels) for labels in of_video.values()}) for video, of_video in at.items()}
    rows: list[int] = np.unique(segments.rows).tolist()
    return max(rows, key=lambda row: (changes.get(bytes(reader.catalog.ids[row]), 0), -row))


def _write_timeline(
    path: Path,
    video_id: str,
    row: int,
    segments: Segments,
    probabilities: NDArray[np.float32],
    truths: Truths,
    vocabulary: Vocabulary,
) -> None:
    """Plot the classes that are there, or else seem to be, in one video."""
    starts = segments.start_seconds[segments.rows == row]
    truth = None
    strength = probabilities.max(axis=0)
    if truths.positives is not None:
        truth = np.zeros(probabilities.shape, np.bool_)
        for column, label_id in enumerate(vocabulary.label_ids.tolist()):
            of_label: Iterable[bytes] = truths.positives.ratings.get(label_id, {})
            truth[:, column] = [f"{video_id}:{start}".encode() in of_label for start in starts.tolist()]
        strength = strength + truth.any(axis=0)
    chosen = np.argsort(-strength, kind="stable")[:TIMELINE_CLASSES]
    if truth is not None:
        # In the order of appearance; what never appears comes last.
        appears = np.where(truth.any(axis=0), truth.argmax(axis=0), len(truth))[chosen]
        chosen = chosen[np.argsort(appears, kind="stable")]
    plot_timeline(
        path,
        video_id,
        [vocabulary.names[column] for column in chosen.tolist()],
        starts,
        probabilities[:, chosen],
        None if truth is None else truth[:, chosen],
    )
