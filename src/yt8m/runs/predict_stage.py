"""The last stage of a run: predict the test set with the trained models, merge, rank, write the submission, score it."""

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from yt8m.dataset.labels import fold_of_videos
from yt8m.inference.classifier import FoldedClassifier
from yt8m.inference.encoders import FoldedEncoder
from yt8m.prediction.passes import PredictionPass
from yt8m.prediction.predict import segments_of
from yt8m.prediction.store import StoreIndex
from yt8m.ranking.calibration import Calibration, write_calibration
from yt8m.ranking.ensemble import Merger
from yt8m.ranking.out_of_fold import calibrate
from yt8m.ranking.rank import rank_segments
from yt8m.ranking.streaming import remove_partial_rankings
from yt8m.ranking.weights import find_weights, predict_out_of_fold
from yt8m.runs.comparison import ranking_specs, report_reliability, score_rankings, write_timeline
from yt8m.runs.predicting import shared_pass
from yt8m.runs.records import STORE_FOLDER
from yt8m.runs.stages import RunStage
from yt8m.runs.training import load_base, load_segment_model
from yt8m.runtime.progress import track
from yt8m.runtime.stopping import StopRequest
from yt8m.scoring.scores import SCORES_FILE, ScoreRow, read_scores
from yt8m.submission.table import TABLE_FILE, write_table
from yt8m.submission.writing import write_submission
from yt8m.training.config import MODEL_FOLDER

SUBMISSION_FILE = "submission.csv"


@dataclass(frozen=True, eq=False)
class RunScores:
    """The result of a run: a row of scores per ranking (none without ground truth), and the number of segments."""

    rows: list[ScoreRow]
    num_segments: int


def is_complete(stage: RunStage) -> bool:
    """Whether prediction is finished with these settings and inputs, and all its files are there."""
    out, folder = stage.context.out, stage.folder
    files = [out / SUBMISSION_FILE, out / TABLE_FILE, folder / SCORES_FILE]
    files += [folder / STORE_FOLDER] if stage.recipe.ensemble.store else []
    return stage.is_finished and all(map(Path.exists, files))


def previous_scores(stage: RunStage) -> RunScores:
    """The result of prediction that is complete."""
    record = stage.record
    return RunScores(read_scores(stage.folder / SCORES_FILE), (record and record.num_segments) or 0)


def predict(stage: RunStage) -> RunScores | None:
    """Predict every test segment with the ensemble's models, write `submission.csv`, score it where there is truth.

    All processes share the work.

    Returns:
        The scores; None on all processes but the first.

    Raises:
        UsageError: A model is not trained with the recipe's settings.
        Interrupted: The processes received a signal to stop; the next run resumes.
    """
    context, recipe, folder = stage.context, stage.recipe, stage.folder
    fabric, ensemble, vocabulary = context.fabric, recipe.ensemble, context.vocabulary
    submission, table, store_folder = context.out / SUBMISSION_FILE, context.out / TABLE_FILE, folder / STORE_FOLDER
    reader = context.reader("segment/test")
    segments = segments_of(reader)
    encoders: dict[str, FoldedEncoder] = {}
    models = {
        name: FoldedClassifier(load(context, name), fabric.device, recipe.machine.matmul_dtype, encoders)
        for load, names in ((load_segment_model, context.predicted_models), (load_base, ensemble.video_models))
        for name in names
    }
    started = time.monotonic()
    if fabric.is_global_zero:
        stage.begin(submission, table)
    fabric.barrier()
    weights = _found_weights(stage, models) if ensemble.find_weights else {}
    if weights:
        ensemble = ensemble.model_copy(update={"weights": weights})
    kinds = {name: recipe.segment_models[name].kind for name in context.predicted_models}
    specs = ranking_specs(kinds, ensemble, recipe.ensemble_models, context.compares)
    index = StoreIndex.of(
        models,
        segments,
        vocabulary.digest,
        reader.catalog.digest,
        ensemble.shifts,
        recipe.machine.precision,
        reader.catalog.folder,
    )
    needs_store = ensemble.store or any(spec.merger and spec.merger.needs_all_segments for spec in specs)
    with StopRequest(fabric) as stop:
        work = shared_pass(fabric, stop, reader, segments, models, ensemble.shifts)
        rankings = rank_segments(
            work,
            specs,
            recipe.top_k,
            folder,
            stage.fingerprint,
            recipe.seed,
            (store_folder, index) if needs_store else None,
        )
    if rankings is None:
        return None
    merger = specs[-1].merger
    calibration = None if merger is None else _calibrated(stage, work, merger)
    write_submission(submission, rankings[-1], vocabulary)
    write_table(table, rankings[-1], vocabulary, calibration=calibration)
    if merger is not None:
        write_timeline(folder / "timeline.png", work, merger, calibration, context.truth, vocabulary)
    if ensemble.store:
        vocabulary.save(store_folder)
        if calibration is not None:
            write_calibration(store_folder, calibration)
    elif store_folder.is_dir():
        shutil.rmtree(store_folder)
    remove_partial_rankings(folder)
    report_reliability(folder, rankings[-1], calibration, context.truth, vocabulary, context.report)
    rows = score_rankings(folder, specs, rankings, context.truth, recipe.top_k, vocabulary, context.progress)
    seconds = time.monotonic() - started
    stage.finish(
        seconds,
        num_segments=len(segments),
        ensemble_weights=weights,
        calibration=calibration,
        models=_model_folders(stage),
        results=[submission, table],
    )
    context.report(f"predict: {len(segments):,} segments with {len(models)} models, {seconds:.0f} s")
    return RunScores(rows, len(segments))


def _model_folders(stage: RunStage) -> dict[str, str]:
    """Folders of the ensemble's models by name, relative to the run's where they are in it."""
    recipe = stage.recipe
    folders = {name: f"finetune/{name}/{MODEL_FOLDER}" for name in recipe.ensemble_models}
    for name in recipe.ensemble.video_models:
        trained = recipe.trained_models.get(name)
        folders[name] = f"pretrain/{name}/{MODEL_FOLDER}" if trained is None else str(Path(trained).resolve())
    return folders


def _calibrated(stage: RunStage, work: PredictionPass, merger: Merger) -> Calibration | None:
    """Calibrate the ensemble on the ratings that its models held out; the first process calls this."""
    context, recipe = stage.context, stage.recipe
    rated = context.reader("segment/train")
    calibration = calibrate(
        work.models,
        merger,
        {name: recipe.segment_models[name].fold for name in merger.segment_models},
        rated,
        fold_of_videos(rated.catalog, recipe.folds),
        work.reader,
        work.segments,
        context.vocabulary,
        work.shifts,
        context.progress,
    )
    if calibration is None:
        why = "ranks have none" if merger.needs_all_segments else "the held-out ratings do not determine any"
        context.report(f"predict: scores are not calibrated to probabilities, because {why}")
    else:
        context.report(f"predict: probabilities calibrated on {calibration.num_ratings:,} held-out ratings")
    return calibration


def _found_weights(stage: RunStage, models: Mapping[str, FoldedClassifier]) -> dict[str, float]:
    """Weights of the ensemble's models, fitted to each one's predictions of the fold that it held out."""
    context, recipe = stage.context, stage.recipe
    reader = context.reader("segment/train")
    members = sorted(recipe.ensemble_models)
    held_out = {name: recipe.segment_models[name].fold for name in members}
    folds = [
        predict_out_of_fold(
            reader,
            context.vocabulary,
            {name: models[name] for name in members if held_out[name] == fold},
            fold_of_videos(reader.catalog, recipe.folds) == fold,
            recipe.ensemble.shifts,
        )
        for fold in track(sorted(set(held_out.values())), "weights", context.progress)
    ]
    # Models that differ in nothing but fold and seed share a weight.
    families = {
        name: json.dumps(recipe.segment_models[name].model_dump(mode="json", exclude={"fold", "seed"}), sort_keys=True)
        for name in members
    }
    found = find_weights(folds, families, "geometric" if recipe.ensemble.method == "geometric" else "arithmetic")
    if not found.num_ratings:
        context.report("predict: no fold was held out by models of two kinds, so all weights stay 1")
    else:
        listed = ", ".join(f"{name} {weight:g}" for name, weight in found.weights.items())
        context.report(
            f"predict: weights found on {found.num_ratings:,} held-out ratings: {listed} (cross-entropy "
            f"{found.loss:.4f}, with equal weights {found.equal_loss:.4f})"
        )
    return found.weights
