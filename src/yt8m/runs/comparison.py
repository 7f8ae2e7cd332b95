"""The end of the road: predict the test set in one pass, rank, write the submission, and score what there is truth for."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yt8m.dataset.frames import FrameReader
from yt8m.dataset.sampling import fractions, random_keys
from yt8m.prediction.passes import Pass, store_predictions
from yt8m.prediction.predict import batches_of, predict
from yt8m.prediction.segments import Segments
from yt8m.prediction.store import StoreIndex
from yt8m.ranking.ensemble import MergeConfig, Merger
from yt8m.ranking.rank import rank_stored
from yt8m.ranking.streaming import Merge, forget_ranking, rank_streaming
from yt8m.ranking.topk import Ranking, TopK
from yt8m.runtime.progress import terminal_progress, track
from yt8m.scoring.map_at_k import Truth, load_positives_csv, load_ratings_csv, map_at_k, write_class_scores
from yt8m.scoring.report import SCORES_FILE, ScoreRow, plot_scores, plot_timeline, write_scores
from yt8m.scoring.truth import truth_of_catalog
from yt8m.submission.submission import ranked_segments, write_submission
from yt8m.submission.table import write_table
from yt8m.vocabulary import Vocabulary

RATINGS_FILE = "test_ratings.csv"
POSITIVES_FILE = "test_positives.csv"
TIMELINE_CLASSES = 8


@dataclass(frozen=True, eq=False)
class RankingWanted:
    """One ranking to make: of a merge of models, or a random order.

    Args:
        name: What the table calls it.
        kind: "agnostic", "aware", "mixture" or "random".
        merger: How models are merged; None for a random order.
    """

    name: str
    kind: str
    merger: Merger | None


def rankings_wanted(
    kinds: Mapping[str, str], ensemble: MergeConfig, members: Sequence[str], compare: bool
) -> list[RankingWanted]:
    """Rankings to make of a set of models; the submission's is the last.

    Args:
        kinds: "agnostic" or "aware" for each segment model, by name.
        ensemble: How the ensemble's models are merged.
        members: The ensemble's models.
        compare: Whether to make more than the submission's.
    """
    mixture = RankingWanted("mixture", "mixture", Merger(ensemble, members))
    if not compare:
        return [mixture]

    def of(names: Sequence[str]) -> Merger:
        """The same mean of some of the models, without what classifiers of videos say."""
        weights = {name: weight for name, weight in ensemble.weights.items() if name in names}
        return Merger(MergeConfig(method=ensemble.method, weights=weights), names)

    wanted = [RankingWanted("random", "random", None)]
    wanted += [RankingWanted(name, kind, Merger(MergeConfig(), [name])) for name, kind in kinds.items()]
    for kind in dict.fromkeys(kinds.values()):
        alike = [name for name in members if kinds[name] == kind and ensemble.weights.get(name, 1.0) > 0]
        if alike:
            wanted.append(RankingWanted(f"{kind} only", kind, of(alike)))
    if ensemble.video_models:
        wanted.append(RankingWanted("segment models only", "mixture", of(members)))
    return [*wanted, mixture]


def random_probabilities(positions: NDArray[np.int64], num_classes: int, seed: int) -> NDArray[np.float32]:
    """Probabilities of a random order, float32 (n, C), which depend on (seed, position, class) alone."""
    return fractions(random_keys(seed, positions, num_classes)).astype(np.float32)


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


@dataclass(frozen=True, eq=False)
class Outputs:
    """Where what prediction makes goes.

    Args:
        submission: The file to write.
        table: The same as a table, with probabilities.
        folder: Receives `timeline.png`, and where there is truth `scores.csv`, `class_scores.csv` and `scores.png`.
        store: Folder of predictions, where they are stored before they are ranked.
        keep_store: Whether they are stored, and kept.
    """

    submission: Path
    table: Path
    folder: Path
    store: Path
    keep_store: bool


def predict_and_score(
    work: Pass,
    wanted: Sequence[RankingWanted],
    top_k: int,
    vocabulary: Vocabulary,
    truths: Truths,
    outputs: Outputs,
    precision: str,
    mark: str,
    seed: int,
) -> Comparison | None:
    """Predict every segment once, rank it for every merge, write the last one's submission, and score all.

    Args:
        work: The test videos, their segments and the models.
        wanted: Rankings to make; the last one is the submission.
        top_k: Segments listed for a class.
        vocabulary: The segment classes.
        truths: What to score against.
        outputs: Where everything goes.
        precision: Numbers of the matrix products.
        mark: Names everything that decides the result.
        seed: Of the random order.

    Returns:
        What was found; None on all processes but the first.

    Raises:
        Interrupted: The processes were asked to stop; the same goes on from there.
    """
    if outputs.keep_store or any(ranking.merger and ranking.merger.needs_whole_classes for ranking in wanted):
        rankings = _ranked_from_store(work, wanted, top_k, vocabulary, outputs, precision, seed)
    else:
        rankings = _ranked_streaming(work, wanted, top_k, len(vocabulary), outputs.folder, mark, seed)
    if rankings is None:
        return None
    write_submission(outputs.submission, rankings[-1], vocabulary)
    write_table(outputs.table, rankings[-1], vocabulary)
    segments, reader = work.segments, work.reader
    merger = wanted[-1].merger
    if merger is not None:
        shown = _video_to_show(reader, segments, truths)
        _write_timeline(outputs.folder / "timeline.png", work, shown, merger, truths, vocabulary)
    if not outputs.keep_store and outputs.store.is_dir():
        shutil.rmtree(outputs.store)
    forget_ranking(outputs.folder)
    if truths.ratings is None and truths.positives is None:
        write_scores(outputs.folder / SCORES_FILE, [])
        return Comparison([], len(segments))
    rows = [
        ScoreRow(
            ranking_wanted.name,
            ranking_wanted.kind,
            _score(ranking, truths.ratings, top_k, vocabulary),
            _score(ranking, truths.positives, top_k, vocabulary),
        )
        for ranking_wanted, ranking in track(list(zip(wanted, rankings, strict=True)), "score")
    ]
    if truths.ratings is not None:
        score = map_at_k(ranked_segments(rankings[-1], vocabulary), truths.ratings, top_k, vocabulary)
        write_class_scores(outputs.folder / "class_scores.csv", score, vocabulary)
    write_scores(outputs.folder / SCORES_FILE, rows)
    plot_scores(outputs.folder / "scores.png", rows, top_k)
    return Comparison(rows, len(segments))


def _ranked_streaming(
    work: Pass, wanted: Sequence[RankingWanted], top_k: int, num_classes: int, folder: Path, mark: str, seed: int
) -> list[Ranking] | None:
    """Rankings of all merges from probabilities that are not kept."""

    def merge(ranking: RankingWanted) -> Merge:
        merger = ranking.merger
        if merger is None:
            return lambda batch: random_probabilities(batch.positions, num_classes, seed)
        return lambda batch: merger(batch.codes)

    rankers = rank_streaming(work, [merge(ranking) for ranking in wanted], num_classes, top_k, folder, mark)
    return None if rankers is None else [ranker.result() for ranker in rankers]


def _ranked_from_store(
    work: Pass,
    wanted: Sequence[RankingWanted],
    top_k: int,
    vocabulary: Vocabulary,
    outputs: Outputs,
    precision: str,
    seed: int,
) -> list[Ranking] | None:
    """Rankings of all merges from probabilities that are stored first."""
    catalog = work.reader.catalog
    index = StoreIndex.of(work.models, work.segments, vocabulary.digest, catalog.digest, work.shifts, precision)
    store = store_predictions(work, outputs.store, index)
    if store is None:
        return None
    stores = dict.fromkeys(work.models, store)
    rankings = []
    for ranking in wanted:
        if ranking.merger is None:
            ranker = TopK(len(vocabulary), top_k, work.segments)
            for batch in batches_of([slice(0, len(work.segments))], work.segments_per_batch):
                positions = np.arange(batch.start, batch.stop)
                ranker.update(positions, random_probabilities(positions, len(vocabulary), seed))
            rankings.append(ranker.result())
            continue
        description = f"rank {ranking.name}"
        rankings.append(rank_stored(stores, ranking.merger, work.segments, top_k, terminal_progress, description))
    return rankings


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


def _write_timeline(path: Path, work: Pass, row: int, merger: Merger, truths: Truths, vocabulary: Vocabulary) -> None:
    """Plot the classes that are there, or else seem to be, in one video."""
    segments, video_id = work.segments, work.reader.catalog.id_of(row)
    if merger.needs_whole_classes:
        # Ranks among all segments say nothing to people.
        merger = Merger(merger.settings.model_copy(update={"method": "arithmetic"}), merger.segment_models)
    positions = np.flatnonzero(segments.rows == row)
    batch = slice(int(positions[0]), int(positions[-1]) + 1)
    [predictions] = predict(work.reader, segments, work.models, [batch], work.shifts)
    probabilities = merger(predictions.codes)
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
