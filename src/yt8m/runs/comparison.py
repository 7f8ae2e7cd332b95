"""Compare the rankings of a run: each model, each kind of model, the ensemble, a random order."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from yt8m.prediction.passes import PredictionPass
from yt8m.prediction.predict import predict
from yt8m.ranking.calibration import Calibration
from yt8m.ranking.ensemble import MergeConfig, Merger
from yt8m.ranking.rank import RankingSpec
from yt8m.ranking.topk import Ranking
from yt8m.runtime.progress import ProgressFactory, no_progress, track
from yt8m.scoring.intervals import MapBootstrap
from yt8m.scoring.map_at_k import Score, map_at_k, write_class_scores
from yt8m.scoring.plots import plot_reliability, plot_scores, plot_timeline
from yt8m.scoring.reliability import LOWEST_SCORE, RELIABILITY_FILE, outcomes_of, reliability_of, write_reliability
from yt8m.scoring.scores import SCORES_FILE, ScoreRow, write_scores
from yt8m.scoring.truth import GroundTruth, Truth
from yt8m.submission.writing import ranked_segments
from yt8m.vocabulary import Vocabulary

TIMELINE_CLASSES = 8


def ranking_specs(
    kinds: Mapping[str, str], ensemble: MergeConfig, members: Sequence[str], compare: bool
) -> list[RankingSpec]:
    """Rankings to make of a set of models; the last is the submission.

    Args:
        kinds: "agnostic" or "aware" for each segment model, by name.
        ensemble: How to merge the ensemble.
        members: The ensemble's models.
        compare: Whether to make more than the submission.
    """
    submission = RankingSpec("ensemble", "ensemble", Merger(ensemble, members))
    if not compare:
        return [submission]

    def merger_of(names: Sequence[str]) -> Merger:
        """A merger of some of the models like that of the ensemble, without its video classifiers."""
        weights = {name: weight for name, weight in ensemble.weights.items() if name in names}
        return Merger(MergeConfig(method=ensemble.method, weights=weights), names)

    specs = [RankingSpec("random", "random", None)]
    specs += [RankingSpec(name, kind, Merger(MergeConfig(), [name])) for name, kind in kinds.items()]
    for kind in dict.fromkeys(kinds.values()):
        alike = [name for name in members if kinds[name] == kind and ensemble.weights.get(name, 1.0) > 0]
        if alike:
            specs.append(RankingSpec(f"{kind} only", kind, merger_of(alike)))
    if ensemble.video_models:
        specs.append(RankingSpec("segment models only", "ensemble", merger_of(members)))
    return [*specs, submission]


def score_rankings(
    folder: Path,
    specs: Sequence[RankingSpec],
    rankings: Sequence[Ranking],
    truth: GroundTruth,
    top_k: int,
    vocabulary: Vocabulary,
    progress: ProgressFactory = no_progress,
) -> list[ScoreRow]:
    """Score rankings against the ground truth; write `scores.csv`, `scores.png` and `class_scores.csv`.

    Args:
        folder: Receives the files.
        specs: The rankings' names and kinds; the last is the submission.
        rankings: The rankings.
        truth: Ground truth of the test set.
        top_k: K of MAP@K.
        vocabulary: The segment classes.
        progress: Reports rankings scored.

    Returns:
        One row per ranking; empty without ground truth.
    """
    if not truth.is_known:
        write_scores(folder / SCORES_FILE, [])
        return []

    def score(ranking: Ranking, known: Truth | None) -> Score | None:
        return None if known is None else map_at_k(ranked_segments(ranking, vocabulary), known, top_k, vocabulary)

    bootstraps = [
        None if known is None else MapBootstrap(rankings[0].segments, known, vocabulary)
        for known in (truth.ratings, truth.positives)
    ]
    rows, rated = [], None
    for spec, ranking in track(list(zip(specs, rankings, strict=True)), "score", progress):
        rated, dense = score(ranking, truth.ratings), score(ranking, truth.positives)
        values = [None if found is None else found.mean_average_precision for found in (rated, dense)]
        margins = [None if bootstrap is None else bootstrap.margin(ranking, top_k) for bootstrap in bootstraps]
        rows.append(ScoreRow(spec.name, spec.kind, *values, *margins))
    if rated is not None:  # of the submission
        write_class_scores(folder / "class_scores.csv", rated, vocabulary)
    write_scores(folder / SCORES_FILE, rows)
    plot_scores(folder / "scores.png", rows, top_k)
    return rows


def report_reliability(
    folder: Path,
    ranking: Ranking,
    calibration: Calibration | None,
    truth: GroundTruth,
    vocabulary: Vocabulary,
    report: Callable[[str], None],
) -> None:
    """Measure the reliability of a ranking's scores and probabilities on known truth, in `reliability.csv` and `.png`.

    Args:
        folder: Receives the files.
        ranking: The submission.
        calibration: Makes probabilities of its scores; without it nothing is measured.
        truth: Ground truth of the test set.
        vocabulary: The classes.
        report: Receives the expected calibration errors in a sentence.
    """
    if calibration is None:
        return
    measured = {}
    for name, known, lowest in (("rated", truth.ratings, 0.0), ("all", truth.positives, LOWEST_SCORE)):
        if known is None:
            continue
        found = outcomes_of(ranking, known, vocabulary, lowest)
        if len(found.scores):
            for kind, values in (("score", found.scores), ("probability", calibration(found.scores))):
                measured[name, kind] = reliability_of(values, found.positives, found.videos)
    if not measured:
        return
    write_reliability(folder / RELIABILITY_FILE, measured)
    plot_reliability(folder / "reliability.png", measured)
    if ("all", "score") in measured:
        before, after = (measured["all", kind] for kind in ("score", "probability"))
        report(
            f"predict: expected calibration error {before.error:.3f} before and {after.error:.3f} after calibration (95% "
            f"interval {after.interval[0]:.3f} to {after.interval[1]:.3f}), all segments of {LOWEST_SCORE:g} or more"
        )


def write_timeline(
    path: Path,
    work: PredictionPass,
    merger: Merger,
    calibration: Calibration | None,
    truth: GroundTruth,
    vocabulary: Vocabulary,
) -> None:
    """Plot the timeline of the video with the most distinct sets of concepts; without dense truth, of the first video."""
    row = _most_varied_video(work, truth)
    segments, video_id = work.segments, work.reader.catalog.id_of(row)
    if merger.needs_all_segments:
        # Means of probabilities are easier to read than ranks.
        merger = Merger(merger.settings.model_copy(update={"method": "arithmetic"}), merger.segment_models)
    positions = np.flatnonzero(segments.rows == row)
    batch = slice(int(positions[0]), int(positions[-1]) + 1)
    [predictions] = predict(work.reader, segments, work.models, [batch], work.shifts)
    probabilities = merger(predictions.codes)  # (segments, C)
    if calibration is not None:
        probabilities = calibration(probabilities)
    starts = segments.start_seconds[segments.rows == row]
    positives = None
    strength = probabilities.max(axis=0)
    if truth.positives is not None:
        positives = np.zeros(probabilities.shape, np.bool_)
        for column, label_id in enumerate(vocabulary.label_ids.tolist()):
            of_label: Iterable[bytes] = truth.positives.ratings.get(label_id, {})
            positives[:, column] = [f"{video_id}:{start}".encode() in of_label for start in starts.tolist()]
        strength = strength + positives.any(axis=0)
    chosen = np.argsort(-strength, kind="stable")[:TIMELINE_CLASSES]
    if positives is not None:
        # In the order of appearance; classes that never appear last.
        appears = np.where(positives.any(axis=0), positives.argmax(axis=0), len(positives))[chosen]
        chosen = chosen[np.argsort(appears, kind="stable")]
    plot_timeline(
        path,
        video_id,
        [vocabulary.names[column] for column in chosen.tolist()],
        starts,
        probabilities[:, chosen],
        None if positives is None else positives[:, chosen],
        calibration is not None,
    )


def _most_varied_video(work: PredictionPass, truth: GroundTruth) -> int:
    """Row of the video with the most distinct sets of concepts; without dense truth, of the first video."""
    if truth.positives is None:
        return int(work.segments.rows[0])
    concepts: dict[bytes, dict[bytes, set[int]]] = {}
    for label_id, of_label in truth.positives.ratings.items():
        for segment in of_label:
            concepts.setdefault(segment.split(b":")[0], {}).setdefault(segment, set()).add(label_id)
    num_sets = {video: len({frozenset(labels) for labels in of_video.values()}) for video, of_video in concepts.items()}
    rows: list[int] = np.unique(work.segments.rows).tolist()
    return max(rows, key=lambda row: (num_sets.get(bytes(work.reader.catalog.ids[row]), 0), -row))
