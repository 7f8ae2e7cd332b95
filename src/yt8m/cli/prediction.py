"""Commands for prediction: predict, merge, locate."""

from pathlib import Path
from typing import Annotated

import typer

from yt8m.cli.options import (
    AcceleratorOption,
    JsonOption,
    MergeOption,
    ShardsOption,
    TableOption,
    TopKOption,
    VocabularyOption,
    WeightOption,
    merge_config,
)
from yt8m.cli.output import console_beside, load_catalog, print_json, print_problems
from yt8m.errors import UsageError, counted
from yt8m.ranking import MAX_SEGMENTS


def predict(
    models: Annotated[list[Path], typer.Argument(help="Model folders of segment classifiers.")],
    shards: ShardsOption,
    vocabulary: VocabularyOption,
    out: Annotated[Path | None, typer.Option("--out", help="The submission to write.")] = None,
    store: Annotated[
        Path | None,
        typer.Option(
            "--store",
            help="Folder to keep all probabilities in, for `yt8m merge`: 2 bytes per segment, class and model.",
        ),
    ] = None,
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
    command. With torchrun, several processes share the work; the result is the same.

    ```sh
    yt8m predict runs/demo/finetune/*/model --out submission.csv \
        --shards data/segment/test --vocabulary data/segment_vocabulary.csv
    yt8m predict runs/demo/finetune/*/model --store predictions \
        --shards data/segment/test --vocabulary data/segment_vocabulary.csv
    ```
    """
    from yt8m.runs.predicting import PredictionOutputs, predict_folders
    from yt8m.runtime.machine import MachineConfig
    from yt8m.settings import validated

    if out is None and store is None and table is None:
        raise UsageError("There is nothing to write: give --out (a submission), --store or --table.")
    shifts = sorted(set(shift or [0]))
    machine = validated(
        MachineConfig, {"accelerator": accelerator, "precision": precision}, "--accelerator, --precision"
    )
    outputs = PredictionOutputs(out, table, store, top_k)
    config = merge_config(weight, merge)
    names = predict_folders(models, load_catalog(shards), vocabulary, config, outputs, machine, shifts)
    for path, what in ((store, "probabilities"), (out, "submission"), (table, "table")):
        if path is not None and names is not None:
            console_beside(out, table).print(f"{path}: {what} of {', '.join(names)}")


def merge(
    predictions: Annotated[list[Path], typer.Argument(help="Folders of stored predictions.")],
    shards: ShardsOption,
    vocabulary: VocabularyOption,
    out: Annotated[Path, typer.Option("--out", help="The submission to write.")],
    table: TableOption = None,
    weight: WeightOption = None,
    overrides: MergeOption = None,
    top_k: TopKOption = MAX_SEGMENTS,
) -> None:
    r"""Merge stored predictions into a submission: the best segments of every class.

    The result is bit-identical to predicting with all the models together.

    ```sh
    yt8m merge predictions --shards data/segment/test --vocabulary data/segment_vocabulary.csv --out submission.csv
    yt8m merge a b --weight best=2 --set method=geometric --out submission.csv \
        --shards data/segment/test --vocabulary data/segment_vocabulary.csv
    ```
    """
    from yt8m.runs.predicting import PredictionOutputs, merge_stores

    config = merge_config(weight, overrides)
    names = merge_stores(
        predictions, load_catalog(shards), vocabulary, config, PredictionOutputs(out, table, None, top_k)
    )
    console_beside(out, table).print(f"{out}: {config.method} mean of {len(names)} models ({', '.join(names)})")


def locate(
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="The id of a video, or a shard.")],
    vocabulary: VocabularyOption,
    models: Annotated[list[Path] | None, typer.Argument(help="Model folders of segment classifiers.")] = None,
    run_folder: Annotated[
        Path | None, typer.Option("--run", help="Folder of a run, instead of models: the ensemble of its recipe.")
    ] = None,
    shards: Annotated[
        Path | None, typer.Option("--shards", help="Folder of the shards that contain the video.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Concepts to show, the most probable first.")] = 10,
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Probability from which a concept counts as on screen.")
    ] = 0.5,
    limit: Annotated[int, typer.Option(min=1, help="Videos of a shard to show.")] = 3,
    picture: Annotated[
        Path | None, typer.Option("--svg", help="Also write the timelines as an SVG of 80 columns.")
    ] = None,
    accelerator: AcceleratorOption = "auto",
    as_json: JsonOption = False,
) -> None:
    r"""Show the timeline of a video: its most probable concepts, and when they are on screen.

    A row has the concept's name, a bar over the video's time, its highest probability, and the times at which it reaches
    --threshold. Several models are averaged. All segments are shown; a dashed axis marks those that are never rated.

    ```sh
    yt8m locate SjJ3 --run runs/demo --shards data/segment/test --vocabulary data/segment_vocabulary.csv
    yt8m locate test0000.tfrecord runs/demo/finetune/*/model --vocabulary data/segment_vocabulary.csv
    ```
    """
    from yt8m.dataset.frames import FrameReader
    from yt8m.dataset.layout import is_shard_name
    from yt8m.locate.locate import find_video, load_ensemble, load_ensemble_of_run, read_shard, timelines
    from yt8m.locate.timeline import write_svg
    from yt8m.runtime.console import err, out
    from yt8m.vocabulary import Vocabulary

    if bool(models) == (run_folder is not None):
        raise UsageError("yt8m locate needs either model folders, or --run DIR, the folder of a run with an ensemble.")
    classes = Vocabulary.load(vocabulary)
    is_shard = is_shard_name(Path(video).name) or (shards is None and Path(video).is_file())
    if is_shard:
        reader = read_shard(Path(video))
        print_problems(reader.catalog)
        rows = list(range(min(limit, len(reader.catalog))))
    elif shards is not None:
        reader = FrameReader(load_catalog(shards))
        rows = [find_video(reader.catalog, video)]
    else:
        raise UsageError(f"{video}: give --shards DIR, the folder of the video's shard; or a shard instead of an id.")
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
