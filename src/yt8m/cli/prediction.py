"""Commands for prediction: predict, merge, locate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from yt8m.cli.checks import require_suffix
from yt8m.cli.extraction import WeightsOption, load_extractor
from yt8m.cli.options import (
    AcceleratorOption,
    JsonOption,
    MergeOption,
    ModelsArgument,
    RunOption,
    ShardsOption,
    TableOption,
    ThresholdOption,
    TopKOption,
    VocabularyOption,
    WeightOption,
    merge_config,
)
from yt8m.cli.output import console_beside, load_catalog, print_json, print_problems
from yt8m.errors import UsageError, counted
from yt8m.ranking import MAX_SEGMENTS


def predict(
    models: ModelsArgument = None,
    run_folder: RunOption = None,
    shards: ShardsOption = None,
    vocabulary: VocabularyOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="The submission to write.")] = None,
    store: Annotated[
        Path | None,
        typer.Option(
            "--store",
            help="Folder to keep all probabilities in, for `yt8m merge`: 2 bytes per segment, class and model.",
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Replace a --store that contains predictions of other models, finished or not."
        ),
    ] = False,
    table: TableOption = None,
    weight: WeightOption = None,
    merge: MergeOption = None,
    shift: Annotated[
        list[int] | None,
        typer.Option(
            "--shift",
            min=-5,
            max=5,
            help="Test-time shift: seconds to move the frames seen of a segment by. Repeatable; the probabilities are "
            "averaged (--shift -1 --shift 0 --shift 1).",
        ),
    ] = None,
    top_k: TopKOption = MAX_SEGMENTS,
    accelerator: AcceleratorOption = "auto",
    precision: Annotated[str, typer.Option(help="32-true, bf16-mixed or 16-mixed.")] = "32-true",
) -> None:
    r"""Predict every segment of some shards with one or more models, in one pass, and rank the segments.

    Writes the best segments of each class as a submission (--out), or keeps all probabilities (--store), so that models
    can be added and weighted later without predicting again, or both. An interrupted prediction resumes with the same
    command. With torchrun, several processes share the work; the result is the same. With --run, the models are merged as
    in the run.

    ```sh
    yt8m predict --run build/demo/run --out submission.csv
    yt8m predict runs/a/finetune/*/model --store predictions --shards data/segment/test
    ```
    """
    from yt8m.runs.finished import ensemble_of_run, origin_of
    from yt8m.runtime.machine import MachineConfig
    from yt8m.settings import validated

    if out is None and store is None and table is None:
        raise UsageError("There is nothing to write: give --out (a submission), --store or --table.")
    _require_models_or_run("predict", models, run_folder)
    of_run = None if run_folder is None else ensemble_of_run(run_folder)
    folders: Sequence[Path] | dict[str, Path] = (models or []) if of_run is None else of_run.folders
    shifts = sorted(set(shift or ([0] if of_run is None else of_run.settings.shifts)))
    machine = validated(
        MachineConfig, {"accelerator": accelerator, "precision": precision}, "--accelerator, --precision"
    )
    config = merge_config(weight, merge, None if of_run is None else of_run.settings)
    origin = origin_of(folders.values() if isinstance(folders, dict) else folders, run_folder)
    classes, catalog = origin.find_classes(vocabulary), load_catalog(origin.find_shards(shards))

    from yt8m.runs.predicting import PredictionOutputs, predict_folders

    outputs = PredictionOutputs(out, table, store, top_k, overwrite)
    calibration = None if of_run is None else of_run.calibration
    names = predict_folders(folders, catalog, classes, config, outputs, machine, shifts, calibration)
    for path, what in ((store, "probabilities"), (out, "submission"), (table, "table")):
        if path is not None and names is not None:
            console_beside(out, table).print(f"{path}: {what} of {', '.join(names)}")


def merge(
    predictions: Annotated[
        list[Path] | None, typer.Argument(metavar="[STORE]...", help="Folders of stored predictions.")
    ] = None,
    run_folder: RunOption = None,
    shards: ShardsOption = None,
    vocabulary: VocabularyOption = None,
    *,
    out: Annotated[Path, typer.Option("--out", help="The submission to write.")],
    table: TableOption = None,
    weight: WeightOption = None,
    overrides: MergeOption = None,
    top_k: TopKOption = MAX_SEGMENTS,
) -> None:
    r"""Merge stored predictions into a submission: the best segments of every class.

    The result is bit-identical to predicting with all the models together. With --run, the models of a run's ensemble are
    merged as in the run, if its recipe had `ensemble.store: true`.

    ```sh
    yt8m merge predictions --out submission.csv
    yt8m merge a b --weight best=2 --set method=geometric --out submission.csv
    yt8m merge --run runs/a --set method=geometric --out submission.csv
    ```
    """
    from yt8m.prediction.store import Store
    from yt8m.runs.finished import ensemble_of_run, origin_of_stores, store_of_run

    if bool(predictions) == (run_folder is not None):
        raise UsageError("yt8m merge needs either folders of stored predictions, or --run DIR, the folder of a run.")
    of_run = None if run_folder is None else ensemble_of_run(run_folder)
    folders = (predictions or []) if run_folder is None else [store_of_run(run_folder)]
    config = merge_config(weight, overrides, None if of_run is None else of_run.settings)
    origin = origin_of_stores(folders)
    catalog, classes = load_catalog(origin.find_shards(shards)), origin.find_classes(vocabulary)
    for folder in folders:
        Store.open(folder)

    from yt8m.runs.predicting import PredictionOutputs, merge_stores

    outputs = PredictionOutputs(out, table, None, top_k)
    members = None if of_run is None else of_run.members
    names = merge_stores(folders, catalog, classes, config, outputs, members)
    console_beside(out, table).print(f"{out}: {config.method} mean of {len(names)} models ({', '.join(names)})")


def locate(
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="A video file, the id of a video, or a shard.")],
    models: ModelsArgument = None,
    run_folder: RunOption = None,
    shards: ShardsOption = None,
    vocabulary: VocabularyOption = None,
    top: Annotated[int, typer.Option(min=1, help="Concepts to show, the most probable first.")] = 10,
    threshold: ThresholdOption = 0.5,
    limit: Annotated[int, typer.Option(min=1, help="Videos of a shard to show.")] = 3,
    picture: Annotated[
        Path | None,
        typer.Option(
            "--svg", callback=require_suffix(".svg"), help="Also write the timelines as an SVG of 80 columns."
        ),
    ] = None,
    chapters: Annotated[
        Path | None,
        typer.Option(
            "--chapters",
            callback=require_suffix(".vtt", ".ffmetadata"),
            help="Also write the moments as chapters: WebVTT (.vtt) or FFmpeg's metadata (.ffmetadata).",
        ),
    ] = None,
    clips: Annotated[
        Path | None, typer.Option("--clips", help="Folder for clips of the moments, cut out of a video file.")
    ] = None,
    weights: WeightsOption = None,
    accelerator: AcceleratorOption = "auto",
    as_json: JsonOption = False,
) -> None:
    r"""Show the timeline of a video: its most probable concepts, and when they are on screen.

    A row has the concept's name, a bar over the video's time, its highest probability, and the times at which it reaches
    --threshold. Several models are averaged. All segments are shown; a dashed axis marks those that are never rated.

    The features of a video file are extracted first (see `yt8m extract`), and kept in the user's cache.

    ```sh
    yt8m locate holiday.mp4 --run runs/a --clips moments
    yt8m locate SjJ3 --run runs/a
    yt8m locate SjJ3 runs/a/finetune/*/model --shards data/segment/test
    yt8m locate test0000.tfrecord --run runs/a
    ```
    """
    from yt8m.dataset.frames import FrameReader
    from yt8m.locate.locate import find_video, load_ensemble, load_ensemble_of_run, read_shard, timelines
    from yt8m.locate.moments import moments_of, write_chapters, write_clips
    from yt8m.locate.timeline import write_svg
    from yt8m.runs.finished import ensemble_of_run, origin_of
    from yt8m.runtime.console import err, out
    from yt8m.runtime.progress import terminal_progress
    from yt8m.shards.names import is_shard_name

    _require_models_or_run("locate", models, run_folder)
    folders = (models or []) if run_folder is None else ensemble_of_run(run_folder).folders.values()
    origin = origin_of(folders, run_folder)
    classes = origin.find_classes(vocabulary)
    is_shard = is_shard_name(Path(video).name)
    is_video_file = not is_shard and shards is None and Path(video).is_file()
    if clips is not None and not is_video_file:
        raise UsageError("--clips cuts moments out of a video file; give one instead of an id or a shard.")
    if is_video_file:
        extractor = load_extractor(accelerator, weights)
        from yt8m.extraction.extract import extract_one

        reader, rows = read_shard(extract_one(Path(video), extractor, terminal_progress)), [0]
    elif is_shard:
        reader = read_shard(Path(video))
        print_problems(reader.catalog)
        rows = list(range(min(limit, len(reader.catalog))))
    else:
        reader = FrameReader(load_catalog(origin.find_shards(shards)))
        rows = [find_video(reader.catalog, video)]
    ensemble = (
        load_ensemble(models or [], classes, accelerator)
        if run_folder is None
        else load_ensemble_of_run(run_folder, classes, accelerator)
    )
    shown = timelines(reader, ensemble, rows, classes, top, threshold)
    if as_json:
        print_json([timeline.as_dict() for timeline in shown])
    else:
        for number, timeline in enumerate(shown):
            if number:
                out.print()
            out.print(timeline)
    if is_shard and (num_others := len(reader.catalog) - len(rows)):
        err.print(f"\n... and {counted(num_others, 'more video')}; --limit shows more")
    if picture is not None:
        write_svg(picture, shown, f"yt8m locate {Path(video).name}")
    moments = [moment for timeline in shown for moment in moments_of(timeline)]
    if chapters is not None:
        write_chapters(chapters, moments)
    for clip in [] if clips is None else write_clips(Path(video), clips, moments):
        err.print(clip)


def _require_models_or_run(command: str, models: Sequence[Path] | None, run_folder: Path | None) -> None:
    """UsageError unless either models or a run is given."""
    if bool(models) == (run_folder is not None):
        raise UsageError(
            f"yt8m {command} needs either model folders, or --run DIR, the folder of a run with an ensemble."
        )
