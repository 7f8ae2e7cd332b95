"""The command line: one function a command, which parses, calls and prints. A command's docstring is its help."""

from __future__ import annotations

import errno
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from yt8m.errors import UsageError, Yt8mError
from yt8m.runtime.environment import prepare_environment

if TYPE_CHECKING:
    from yt8m.dataset.catalog import Catalog
    from yt8m.dataset.describe import Description, Spread
    from yt8m.ranking.ensemble import MergeConfig
    from yt8m.runs.comparison import Comparison
    from yt8m.runs.run import Run
    from yt8m.submission.check import Checked

app = typer.Typer(
    help="Find the moments in videos where a concept appears: train, merge, rank and score temporal localizers on "
    "YouTube-8M features.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""

DataOption = Annotated[
    Path,
    typer.Option(
        "--data",
        help="Dataset folder: video/train, video/valid, segment/train, segment/test, segment_vocabulary.csv.",
        show_default=False,
    ),
]
RecipeArgument = Annotated[
    str, typer.Argument(help="A recipe's YAML file, or the name of one that comes with yt8m.", show_default=False)
]
SetOption = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer reads it at run time
    typer.Option("--set", help="Override a setting, path=value; may be given again.", show_default=False),
]
OutOption = Annotated[Path, typer.Option("--out", help="Folder for what the run makes.", show_default=False)]


def _version(wanted: bool) -> None:
    if wanted:
        from yt8m import __version__

        typer.echo(f"yt8m {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def download(
    data: Annotated[Path, typer.Argument(help="The dataset folder to fill.", show_default=False)],
    partitions: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(
            metavar="[PARTITION]...",
            help="Of the official dataset: 2/frame/train, 2/frame/validate, 2/frame/test, 2/video/train, "
            "2/video/validate, 2/video/test, 3/frame/validate, 3/frame/test. Without any: what training and prediction "
            "take.",
            show_default=False,
        ),
    ] = None,
    mirror: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="The nearest official mirror: us (where none is named), eu or asia.", show_default=False),
    ] = None,
    shard: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--shard", help="Only this part of each partition, like 1/100.", show_default=False),
    ] = None,
    listed: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--list",
            help="Only the shards that this file names, one a line (video/train/train0001.tfrecord).",
            show_default=False,
        ),
    ] = None,
    connections: Annotated[int, typer.Option(min=1, max=64, help="Shards to fetch at once.")] = 4,
    indexed: Annotated[bool, typer.Option("--index/--no-index", help="Index the folders of frames afterwards.")] = True,
    check: Annotated[
        bool,
        typer.Option("--check", help="Read again the shards that were found whole before, and compare their MD5s."),
    ] = False,
    server: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Another server with the same layout: URL/2/download_plans/frame_train.json, URL/2/frame/train/NAME, "
            "URL/csv/2/vocabulary.csv.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Fetch the official dataset, or a part of it, into a dataset folder.

    The frames of the four default partitions go to video/train, video/valid, segment/train and segment/test (1.5 TB),
    those of 2/frame/test to video/test, and video-level features to video_level, as sources for `yt8m splice`. A shard
    gets its name only when its MD5 is the official one. However a download is stopped, the same command goes on: what
    is whole is not fetched again, and half a shard is completed.

        yt8m download data --mirror eu
        yt8m download data 3/frame/validate 3/frame/test
        yt8m download data --shard 1/100
        yt8m download data 2/video/validate --connections 8
    """
    from yt8m.dataset.indexing import current_catalog
    from yt8m.download.download import download as fetch
    from yt8m.download.plan import DEFAULT_PARTITIONS, Fraction, official_server, other_server
    from yt8m.download.transfer import Patience, in_words
    from yt8m.runtime.console import err, out
    from yt8m.runtime.progress import terminal_progress

    if server is not None and mirror is not None:
        raise UsageError("--mirror names an official server, and --server another one; give one of them.")
    reports = fetch(
        data,
        partitions or DEFAULT_PARTITIONS,
        official_server(mirror or "us") if server is None else other_server(server),
        fraction=None if shard is None else Fraction.parse(shard),
        listed=listed,
        connections=connections,
        check=check,
        patience=Patience(seed=os.getpid()),
        progress=terminal_progress,
        say=lambda sentence: err.print(sentence, markup=False),
    )
    folders = []
    for report in reports:
        lacking = f" of {report.num_shards:,}" if report.num_whole < report.num_shards else ""
        out.print(
            f"{report.folder}: {report.num_whole:,}{lacking} shards, {in_words(report.num_bytes)}, "
            f"{report.num_before:,} of them there before",
            markup=False,
        )
        if report.is_frame_level:
            folders.append(report.folder)
    if indexed:
        _index_parts(data, [folder for folder in folders if current_catalog(folder) is None], verify=True)


@app.command()
def index(
    folder: Annotated[Path, typer.Argument(help="A dataset folder, or any folder of shards.", show_default=False)],
    verify: Annotated[bool, typer.Option(help="Check the checksum of every record.")] = True,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail at the first problem, be it damage or an oddity.")
    ] = False,
) -> None:
    """Write the catalog of each folder of shards.

    A catalog (`catalog.parquet`, beside the shards) has a row a video: where its frames lie, its labels and ratings.
    Damaged records are left out and named, one line each; the exit status is then 1. What is merely odd is mended.
    Where anything was found, `catalog_report.csv` lists it: shard, record, byte, what was found, what was done.

    A `shards.txt` in a folder of shards, one name a line, says which of them to use; in a dataset folder its lines are
    paths (video/train/train0001.tfrecord), and parts that it does not name are used whole.

        yt8m index data
        yt8m index data/video/train --strict
    """
    _index_parts(folder, _parts(folder), verify, strict)


@app.command()
def describe(
    folder: Annotated[Path, typer.Argument(help="A dataset folder, or any folder of shards.", show_default=False)],
) -> None:
    """Say what a dataset holds: videos, frames, labels, ratings per class, and what is odd about it.

    Folders that are not indexed yet are indexed first. Damaged records are left out and named, one line each.

        yt8m describe data
    """
    from yt8m.dataset.describe import describe as count
    from yt8m.runtime.console import err, out
    from yt8m.vocabulary import FILE_NAME, Vocabulary

    place = folder / FILE_NAME
    vocabulary = Vocabulary.load(folder) if place.is_file() else None
    if vocabulary is not None:
        out.print(f"{place}: {len(vocabulary):,} segment classes", markup=False)
    elif folder.is_dir():
        err.print(f"{place} is not there, so classes are counted without it.", markup=False)
    for part in _parts(folder):
        catalog = _indexed(part)
        _print_description(count(catalog, vocabulary))


@app.command()
def splice(
    out_folder: Annotated[Path, typer.Argument(metavar="OUT", help="The dataset folder to make.", show_default=False)],
    sources: Annotated[
        str, typer.Option(help="A folder of video-level shards, or `builtin` for sources that yt8m invents.")
    ] = "builtin",
    vocabulary: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="segment_vocabulary.csv of the sources' dataset; needless with builtin ones.", show_default=False
        ),
    ] = None,
    pretrain: Annotated[
        int, typer.Option(min=1, help="Videos to pre-train on; a tenth more is made to validate.")
    ] = 1200,
    segments: Annotated[int, typer.Option(min=1, help="Rated videos to fine-tune on.")] = 480,
    test: Annotated[int, typer.Option(min=1, help="Test videos.")] = 160,
    seed: Annotated[int, typer.Option(min=0, help="Decides everything.")] = 0,
) -> None:
    """Make a frame-level dataset with exact truth by joining video-level features.

    A spliced video joins 1 to 4 sources; a segment is positive for a label exactly where its source carries it. The
    truth of the test set goes to segment/test_ratings.csv and segment/test_positives.csv.

        yt8m splice build/spliced
        yt8m splice build/spliced --sources 2/video/validate --vocabulary segment_vocabulary.csv --pretrain 3000
    """
    from yt8m.runtime.console import out
    from yt8m.runtime.progress import terminal_progress
    from yt8m.synthetic.invented import invented_sources, invented_vocabulary
    from yt8m.synthetic.splice import Sizes, read_sources, write_dataset
    from yt8m.vocabulary import Vocabulary

    sizes = Sizes(train=pretrain, valid=max(1, pretrain // 10), rated=segments, test=test)
    total = sizes.train + sizes.valid + sizes.rated + sizes.test
    if sources == "builtin":
        if vocabulary is not None:
            raise UsageError("--vocabulary goes with --sources DIR; the builtin sources have their own vocabulary.")
        classes = invented_vocabulary()
        means = invented_sources(max(1000, 3 * total), classes)
    else:
        if vocabulary is None:
            raise UsageError("--sources DIR needs --vocabulary, the segment_vocabulary.csv of that dataset.")
        classes = Vocabulary.load(vocabulary)
        means = read_sources(Path(sources), terminal_progress)
    write_dataset(out_folder, means, classes, sizes, seed, terminal_progress)
    out.print(
        f"{out_folder}: {total:,} videos spliced from {len(means):,} sources, {len(classes):,} classes", markup=False
    )


@app.command()
def run(
    recipe: RecipeArgument,
    data: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--data",
            help="Dataset folder: video/train, video/valid, segment/train, segment/test, segment_vocabulary.csv.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", help="Folder for what the run makes.", show_default=False),
    ] = None,
    only: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Only this kind of stage (pretrain, finetune, predict) or stage (pretrain/NAME).", show_default=False
        ),
    ] = None,
    overrides: SetOption = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Say what each stage takes (parameters, memory, time on this machine), and do nothing; needs no data.",
        ),
    ] = False,
) -> None:
    """Run a recipe: pre-train, fine-tune, predict, merge, and score where the truth is known.

    Each stage has its own folder in OUT. Finished stages are skipped when run again with the same settings and data; an
    interrupted one goes on from its last checkpoint. The result is OUT/submission.csv.

    Ctrl-C and SIGTERM end training after the step at hand, with everything saved and exit status 75.

        yt8m run recipes/demo.yaml --data build/spliced --out runs/demo
        yt8m run seventh-place --data /data --out /out --only pretrain/dbof-3 --set machine.precision=bf16-mixed
        yt8m run seventh-place --dry-run
    """
    if dry_run:
        _estimate(recipe, overrides, data, only)
        return
    for option, folder in (("--data", data), ("--out", out)):
        if folder is None:
            raise UsageError(f"Missing option {option}; only --dry-run goes without.")
    if data is not None and out is not None:
        started, comparison = _make_run(f"run {recipe}", recipe, overrides, data, out, only)
        if comparison is not None:
            _print_results(started, comparison)


@app.command()
def pretrain(
    recipe: RecipeArgument,
    model: Annotated[str, typer.Argument(help="A base model of the recipe.", show_default=False)],
    data: DataOption,
    out: OutOption,
    overrides: SetOption = None,
) -> None:
    """Pre-train one base model of a recipe on video labels.

    yt8m pretrain recipes/seventh-place.yaml dbof-3 --data /data --out /out
    """
    _make_run(f"pretrain {recipe} {model}", recipe, overrides, data, out, f"pretrain/{model}")


@app.command()
def finetune(
    recipe: RecipeArgument,
    model: Annotated[str, typer.Argument(help="A segment model of the recipe.", show_default=False)],
    data: DataOption,
    out: OutOption,
    overrides: SetOption = None,
) -> None:
    """Fine-tune one segment model of a recipe on rated segments; its base models must be trained in OUT.

    yt8m finetune recipes/seventh-place.yaml nextvlad-fold-2 --data /data --out /out
    """
    _make_run(f"finetune {recipe} {model}", recipe, overrides, data, out, f"finetune/{model}")


@app.command()
def find_rate(
    recipe: RecipeArgument,
    model: Annotated[str, typer.Argument(help="A base model or a segment model of the recipe.", show_default=False)],
    data: DataOption,
    out: OutOption,
    steps: Annotated[int, typer.Option(help="Steps, each at a higher rate than the one before.")] = 200,
    lowest: Annotated[float, typer.Option(help="Rate of the first step.")] = 1e-6,
    highest: Annotated[float, typer.Option(help="Rate of the last step.")] = 1.0,
    overrides: SetOption = None,
) -> None:
    """Find a peak learning rate for a model: train a copy of it while the rate rises, and draw what the loss does.

    Suggests the rate at which the smoothed loss falls fastest. OUT/find-rate/MODEL has the picture (rates.png) and its
    numbers (rates.csv); the model's own stage stays as it is. For a segment model, its base models must be trained in OUT.

        yt8m find-rate recipes/demo.yaml dbof --data build/spliced --out runs/demo
    """
    from yt8m.runs.recipe import find_recipe, read_recipe
    from yt8m.runs.run import Run
    from yt8m.runtime.console import out as terminal
    from yt8m.settings import validated
    from yt8m.training.lr_finder import LRSweepConfig

    sweep = validated(LRSweepConfig, {"steps": steps, "lowest": lowest, "highest": highest}, "find-rate")
    settings = read_recipe(find_recipe(recipe), overrides)
    settings.machine.require_one_process("find-rate")
    found = Run(settings, data, out).find_rate(model, sweep)
    terminal.print(
        f"{model}: suggested peak_lr {found.suggestion.peak_lr:.2g} (the loss is lowest at "
        f"{found.suggestion.lowest_at:.2g}); the recipe has {found.peak_lr:g}; picture: {found.picture}",
        markup=False,
    )


WeightOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--weight",
        help="Weight of a model, NAME=NUMBER; 1 for those not named. May be given again.",
        show_default=False,
    ),
]
MergeOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--set",
        help="How models are merged, path=value as in a recipe's ensemble (method=geometric, "
        "video_prior.models=[NAME], video_prior.video_exponent=0.2); may be given again.",
        show_default=False,
    ),
]
TableOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--table", help="Also write the list as a Parquet table, with probabilities.", show_default=False),
]
TopKOption = Annotated[int, typer.Option("--top-k", min=1, max=100_000, help="Segments to list for each class.")]


@app.command()
def predict(
    models: Annotated[list[Path], typer.Argument(help="Model folders of segment classifiers.", show_default=False)],
    shards: Annotated[Path, typer.Option("--shards", help="Folder of the shards to predict.", show_default=False)],
    vocabulary: Annotated[Path, typer.Option(help="segment_vocabulary.csv.", show_default=False)],
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", help="The submission to write.", show_default=False),
    ] = None,
    store: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--store",
            help="Folder to keep all probabilities in, for `yt8m submit`: 2 bytes for each segment, class and model.",
            show_default=False,
        ),
    ] = None,
    table: TableOption = None,
    weight: WeightOption = None,
    merge: MergeOption = None,
    shift: Annotated[
        Optional[list[int]],  # noqa: UP045
        typer.Option(
            "--shift",
            min=-5,
            max=5,
            help="Seconds by which to move what is seen of a segment; may be given again, and the mean is taken "
            "(--shift -1 --shift 0 --shift 1).",
            show_default=False,
        ),
    ] = None,
    top_k: TopKOption = 100_000,
    accelerator: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    precision: Annotated[str, typer.Option(help="32-true, bf16-mixed or 16-mixed.")] = "32-true",
) -> None:
    r"""Predict every segment of some shards with one or more models, in one pass, and rank them.

    Writes the best segments of each class as a submission (--out), or keeps all probabilities (--store), so that models
    can be added and weighed anew without predicting again, or both. A prediction that was stopped goes on with the same
    command. With torchrun, several processes share the work; the result is the same.

        yt8m predict runs/demo/finetune/*/model --shards data/segment/test --vocabulary data/segment_vocabulary.csv \
            --out submission.csv
        yt8m predict runs/demo/finetune/*/model --shards data/segment/test --vocabulary data/segment_vocabulary.csv \
            --store predictions
    """
    from yt8m.runs.predicting import Wanted, predict_folders
    from yt8m.runtime.console import out as terminal
    from yt8m.runtime.machine import MachineConfig
    from yt8m.settings import validated

    if out is None and store is None and table is None:
        raise UsageError("There is nothing to make: give --out, a submission to write, or --store, or --table.")
    shifts = sorted(set(shift or [0]))
    machine = validated(
        MachineConfig, {"accelerator": accelerator, "precision": precision}, "--accelerator, --precision"
    )
    wanted = Wanted(out, table, store, top_k)
    settings = _ensemble(weight, merge)
    names = predict_folders(models, _indexed(shards), vocabulary, settings, wanted, machine, shifts)
    for path, what in ((store, "probabilities"), (out, "the submission"), (table, "the table")):
        if path is not None and names is not None:
            terminal.print(f"{path}: {what} of {', '.join(names)}", markup=False)


@app.command()
def submit(
    predictions: Annotated[list[Path], typer.Argument(help="Folders of predictions.", show_default=False)],
    shards: Annotated[Path, typer.Option("--shards", help="Folder of the shards predicted.", show_default=False)],
    vocabulary: Annotated[Path, typer.Option(help="segment_vocabulary.csv.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="The submission to write.", show_default=False)],
    table: TableOption = None,
    weight: WeightOption = None,
    merge: MergeOption = None,
    top_k: TopKOption = 100_000,
) -> None:
    """Merge stored predictions into a submission: the best segments of every class.

    What comes out is what predicting all the models together would give, to the last bit.

        yt8m submit predictions --shards data/segment/test --vocabulary data/segment_vocabulary.csv --out submission.csv
        yt8m submit a b --weight best=2 --set method=geometric --shards data/segment/test \
            --vocabulary data/segment_vocabulary.csv --out submission.csv
    """
    from yt8m.runs.predicting import Wanted, merge_stores
    from yt8m.runtime.console import out as terminal

    settings = _ensemble(weight, merge)
    names = merge_stores(predictions, _indexed(shards), vocabulary, settings, Wanted(out, table, None, top_k))
    terminal.print(f"{out}: the {settings.method} mean of {len(names)} models ({', '.join(names)})", markup=False)


@app.command()
def check(
    submission: Annotated[Path, typer.Argument(help="The submission.", show_default=False)],
    shards: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--shards", help="Folder of the shards predicted: look up ids and starts.", show_default=False),
    ] = None,
    vocabulary: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="segment_vocabulary.csv: look up classes.", show_default=False),
    ] = None,
) -> None:
    """Say whether a submission would be accepted, and everything that is wrong with it.

    Looked at are the header, the classes, the number of segments, repeated ones, and their spelling; with --shards also
    whether each video exists and is that long. The first 20 problems are named, all are counted by kind, and what is
    allowed but costs score is remarked. The exit status is 0 where the file would be accepted, 1 where not.

        yt8m check submission.csv --shards data/segment/test --vocabulary data/segment_vocabulary.csv
    """
    from yt8m.runtime.progress import terminal_progress
    from yt8m.submission.check import check_submission
    from yt8m.vocabulary import Vocabulary

    classes = None if vocabulary is None else Vocabulary.load(vocabulary)
    catalog = None if shards is None else _indexed(shards)
    _print_check(check_submission(submission, classes, catalog, terminal_progress))


@app.command()
def locate(
    video: Annotated[
        str, typer.Argument(metavar="VIDEO", help="A video's id, or a shard (*.tfrecord).", show_default=False)
    ],
    vocabulary: Annotated[Path, typer.Option(help="segment_vocabulary.csv.", show_default=False)],
    models: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Argument(help="Model folders of segment classifiers.", show_default=False),
    ] = None,
    run_folder: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--run", help="A run's folder instead of models: the ensemble of its recipe.", show_default=False),
    ] = None,
    shards: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--shards", help="Folder of the shards that hold the video.", show_default=False),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Concepts to show, the strongest first.")] = 10,
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Probability from which a concept is on screen.")
    ] = 0.5,
    limit: Annotated[int, typer.Option(min=1, help="Videos of a shard to show.")] = 3,
    picture: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--svg", help="Also draw what is shown, as SVG of 80 columns.", show_default=False),
    ] = None,
    accelerator: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
) -> None:
    r"""Show one video's timeline: its strongest concepts, and when they are on screen.

    A row has the concept's name, a bar over the video's time, its highest probability and the times from --threshold on.
    Several models are merged by their mean. All segments are shown; a dashed axis marks those that are never rated.

        yt8m locate SjJ3 --run runs/demo --shards data/segment/test --vocabulary data/segment_vocabulary.csv
        yt8m locate test0000.tfrecord runs/demo/finetune/*/model --vocabulary data/segment_vocabulary.csv
    """
    from yt8m.dataset.frames import FrameReader
    from yt8m.locate.locate import find_video, load_ensemble, load_ensemble_of_run, read_shard, timelines
    from yt8m.locate.timeline import write_svg
    from yt8m.runtime.console import out
    from yt8m.vocabulary import Vocabulary

    if bool(models) == (run_folder is not None):
        raise UsageError("yt8m locate needs either model folders or --run DIR, a run's folder whose ensemble it takes.")
    classes = Vocabulary.load(vocabulary)
    if video.endswith(".tfrecord"):
        reader = read_shard(Path(video))
        _print_problems(reader.catalog)
        rows = list(range(min(limit, len(reader.catalog))))
    elif shards is not None:
        reader = FrameReader(_indexed(shards))
        rows = [find_video(reader.catalog, video)]
    else:
        raise UsageError(
            f"{video}: to find a video by its id takes --shards DIR, the folder of its shard; or give a shard (*.tfrecord)."
        )
    ensemble = (
        load_ensemble(models or [], classes, accelerator)
        if run_folder is None
        else load_ensemble_of_run(run_folder, classes, accelerator)
    )
    shown = timelines(reader, ensemble, rows, classes, top, threshold)
    for number, timeline in enumerate(shown):
        if number:
            out.print()
        out.print(timeline)
    if video.endswith(".tfrecord") and len(rows) < len(reader.catalog):
        out.print(f"\n... and {len(reader.catalog) - len(rows):,} more videos; --limit shows more")
    if picture is not None:
        write_svg(picture, shown, f"yt8m locate {Path(video).name}")


@app.command()
def evaluate(
    submission: Annotated[Path, typer.Argument(help="The submission.", show_default=False)],
    truth: Annotated[
        Path, typer.Option(help="A folder of rated shards, or a CSV file: video,label,start,score.", show_default=False)
    ],
    dense: Annotated[
        bool,
        typer.Option("--dense", help="The CSV file (video,label,start) lists all positives; the rest is negative."),
    ] = False,
    vocabulary: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="segment_vocabulary.csv: refuse other classes, and name classes.", show_default=False),
    ] = None,
    k: Annotated[int, typer.Option("--k", min=1, help="Where each class's list is cut.")] = 100_000,
    per_class: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="CSV file to write the AP of each class to.", show_default=False),
    ] = None,
) -> None:
    """Score a submission: MAP@K over the classes with a rated positive.

    Lists are cut to K first, then segments not rated for the class are dropped; AP is the sum over hits of the precision
    at the hit, divided by all rated positives. A class that the file leaves out counts 0.

        yt8m evaluate submission.csv --truth data/segment/test_ratings.csv
        yt8m evaluate submission.csv --truth data/segment/test_positives.csv --dense
    """
    from yt8m.runtime.console import out
    from yt8m.scoring.map_at_k import map_at_k, write_class_scores
    from yt8m.scoring.truth import load_truth
    from yt8m.vocabulary import Vocabulary

    classes = None if vocabulary is None else Vocabulary.load(vocabulary)
    if truth.is_dir() and not dense:
        _indexed(truth)
    score = map_at_k(submission, load_truth(truth, dense, classes), k, classes)
    out.print(f"{score.mean_average_precision:.6f} MAP@{k:,}{' (dense)' if dense else ''}")
    out.print(
        f"{score.num_classes:,} classes with a positive counted, {score.num_absent:,} of them absent from the file; "
        f"{score.num_ignored:,} other classes of the file do not count"
    )
    if score.truth.num_repeated or score.truth.num_contradictory:
        out.print(
            f"truth: {score.truth.num_repeated:,} repeated ratings, {score.truth.num_contradictory:,} contradictory ones"
        )
    if per_class is not None:
        write_class_scores(per_class, score, classes)
        out.print(f"{per_class}: AP of each class", markup=False)


@app.command("import-2019")
def import_2019(
    folder: Annotated[
        Path, typer.Argument(help="A model's folder of 2019: config.yaml and model.pth.", show_default=False)
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The model folder to make.", show_default=False)],
    check: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="What the original made of some videos (example.npz: video, segment, probabilities); a probability "
            "more than 1e-5 from it is an error, and OUT is not written.",
            show_default=False,
        ),
    ] = None,
    vocabulary: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="segment_vocabulary.csv that the model's classes are the rows of; without it, the challenge's own.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Make an ordinary model folder of a model that the 7th place of 2019 published.

    A classifier of videos, of segments, or of segments with context, as config.yaml and the tensors say. It predicts and
    is merged like any other, and gives the original's probabilities. Of model.pth only tensors are unpickled.

    It can be trained further in Python, but for two parts: the context encoder of a classifier with context stays frozen,
    also where it was trained in 2019, and the batch norm of NeXtVLAD's assignment is folded into the layer before it.

        yt8m import-2019 models_2019/aware-1 models/aware-1 --check models_2019/aware-1/example.npz
    """
    from yt8m.import_2019.example import TOLERANCE
    from yt8m.import_2019.importing import import_model
    from yt8m.runtime.console import out as terminal
    from yt8m.vocabulary import OFFICIAL_DIGEST, OFFICIAL_SIZE, Vocabulary

    classes = None if vocabulary is None else Vocabulary.load(vocabulary)
    digest, size = (OFFICIAL_DIGEST, OFFICIAL_SIZE) if classes is None else (classes.digest, len(classes))
    made = import_model(folder, out, vocabulary_digest=digest, num_classes=size, example=check)
    terminal.print(
        f"{out}: {made.kind} classifier of {made.num_classes:,} classes, {made.num_parameters:,} parameters",
        markup=False,
    )
    if made.difference is not None:
        terminal.print(
            f"{check}: probabilities differ by {made.difference:.2g} at most ({TOLERANCE:g} is allowed)", markup=False
        )


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Where everything goes.")] = Path("build/demo"),
    seed: Annotated[int, typer.Option(min=0, help="Decides the data.")] = 0,
) -> None:
    """See it all work, in a few minutes, on data that yt8m makes itself.

    Splices a small dataset from invented sources, pre-trains two video classifiers, fine-tunes context-agnostic and
    context-aware segment classifiers, predicts, merges and scores, and prints one table. A demo that was interrupted
    goes on.

        yt8m demo
    """
    from yt8m.runs.demo import run_demo
    from yt8m.runtime.notifications import announced

    started = time.monotonic()
    with announced(f"yt8m demo {folder}") as announcement:
        done, comparison = run_demo(folder, seed)
        announcement.result = _in_a_line(done, comparison)
    _print_results(done, comparison)
    typer.echo(f"{time.monotonic() - started:.0f} s in all; everything is in {folder}")


# ------------------------------------------------------------------------------------------------------------ printing


def _make_run(
    command: str, recipe: str, overrides: list[str] | None, data: Path, out: Path, only: str | None
) -> tuple[Run, Comparison | None]:
    from yt8m.runs.recipe import find_recipe, read_recipe
    from yt8m.runs.run import Run
    from yt8m.runtime.notifications import announced

    with announced(f"yt8m {command} --out {out}") as announcement:
        settings = read_recipe(find_recipe(recipe), overrides)
        started = Run(settings, data, out)
        comparison = started.run(only)
        announcement.result = _in_a_line(started, comparison, only)
    return started, comparison


def _estimate(recipe: str, overrides: list[str] | None, data: Path | None, only: str | None) -> None:
    """Print what the stages of a recipe take."""
    from rich.table import Table

    from yt8m.runs.estimate import available_memory, costs, device_in_words, stages
    from yt8m.runs.recipe import find_recipe, read_recipe
    from yt8m.runtime.console import out, wide
    from yt8m.runtime.machine import make_fabric
    from yt8m.runtime.progress import track
    from yt8m.vocabulary import Vocabulary

    settings = read_recipe(find_recipe(recipe), overrides)
    num_classes = 1000 if data is None else len(Vocabulary.load(data))
    machine = settings.machine.model_copy(update={"devices": 1, "num_nodes": 1})
    fabric = make_fabric(machine)
    chosen = [stage for stage in stages(settings, num_classes) if only is None or only in (stage.name, stage.kind)]
    if not chosen:
        raise UsageError(f"--only {only}: the recipe trains no such stage.")
    found = list(track(costs(chosen, settings.machine, fabric), "estimate", total=len(chosen)))
    table = Table("stage", "params", "trained", "batch", "TFLOP", "memory", "step", "per s", "steps", "time", box=None)
    for column in table.columns:
        column.no_wrap, column.justify = True, "left" if column.header == "stage" else "right"
    for cost in found:
        training = cost.stage.training
        table.add_row(
            cost.stage.name,
            f"{cost.parameters / 1e6:,.1f}M",
            f"{cost.trained / 1e6:,.1f}M",
            f"{cost.examples} x {cost.stage.num_frames}"
            + (f" in {training.gradient_accumulation}" if training.gradient_accumulation > 1 else ""),
            f"{cost.flops / 1e12:.3f}",
            f"{cost.memory / 2**30:.2f} GiB",
            f"{cost.seconds:.3g} s" if cost.seconds >= 0.1 else f"{cost.seconds * 1e3:.3g} ms",
            f"{cost.examples / cost.seconds:,.0f}",
            f"{training.steps:,}",
            _duration(cost.total_seconds),
        )
    table.add_row("all", *[""] * 8, _duration(sum(cost.total_seconds for cost in found)))
    wide(120).print(table)
    processes = settings.machine.devices * settings.machine.num_nodes
    each = "" if processes == 1 else f", each of {processes} processes with its part of the batches"
    out.print(
        f"TFLOP: matrix products of a step. Steps timed on {device_in_words(fabric, settings.machine)}{each}. Memory is that of one process's tensors; "
        f"batches read ahead take up to {max(cost.ahead for cost in found) / 2**20:,.0f} MiB, the libraries 0.5 to 1 GiB. "
        "Reading, evaluation and prediction come on top.",
        markup=False,
    )
    if (available := available_memory(fabric.device)) is not None:
        for cost in found:
            if cost.memory > available:
                out.print(
                    f"{cost.stage.name} needs more than the {available / 2**30:.1f} GiB here: set its training.gradient_accumulation "
                    f"to {cost.parts_to_fit(available)} or more.",
                    markup=False,
                )


def _duration(seconds: float) -> str:
    """A time as people say it: 4 min, 2 h 05 min, 3 d 4 h."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def _in_a_line(done: Run, comparison: Comparison | None, only: str | None = None) -> str:
    """What a message says of a finished run: the scores of its submission, or the metrics of its only stage."""
    from yt8m.runs.run import read_stage

    values: dict[str, float | None] = {}
    if comparison is not None and comparison.rows:
        row = comparison.rows[-1]
        values = {f"MAP@{done.recipe.top_k:,}": row.map_at_k, "dense MAP": row.dense_map}
    elif comparison is None and only and (stage := read_stage(done.out / only)):
        values = dict(stage.metrics)
    return ", ".join(f"{name} {value:.4f}" for name, value in values.items() if value is not None)


def _parts(folder: Path) -> list[Path]:
    from yt8m.dataset.layout import dataset_parts

    return dataset_parts(folder)


def _index_parts(folder: Path, parts: Sequence[Path], verify: bool, strict: bool = False) -> None:
    """Index some folders of shards, and print what each holds and what is wrong with it."""
    from yt8m.dataset.catalog import FILE_NAME
    from yt8m.dataset.indexing import REPORT_NAME, damaged_places, index_and_save
    from yt8m.dataset.layout import shard_list
    from yt8m.runtime.console import out
    from yt8m.runtime.progress import terminal_progress

    damaged = 0
    for part in parts:
        catalog = index_and_save(part, verify=verify, strict=strict, progress=terminal_progress)
        listed = shard_list(part)
        out.print(
            f"{part / FILE_NAME}: {len(catalog):,} videos, {int(catalog.num_frames.sum()):,} frames, "
            f"{len(catalog.rating_labels):,} ratings, {len(catalog.shards):,} shards"
            + (f" (those of {listed.path})" if listed else ""),
            markup=False,
        )
        for oddity, count in catalog.oddities.items():
            out.print(f"    {count:,} {oddity}", markup=False)
        if (part / REPORT_NAME).is_file():
            out.print(f"    all of it, with its place: {part / REPORT_NAME}", markup=False)
        _print_problems(catalog)
        damaged += catalog.num_problems
    if damaged:
        raise Yt8mError(f"{folder}: {damaged_places(damaged)} left out of the catalogs, as listed above.")


def _indexed(folder: Path) -> Catalog:
    from yt8m.dataset.indexing import load_or_index
    from yt8m.runtime.progress import terminal_progress

    catalog = load_or_index(folder, progress=terminal_progress)
    _print_problems(catalog)
    return catalog


def _print_problems(catalog: Catalog) -> None:
    from yt8m.runtime.console import err

    for problem in catalog.problems:
        err.print(problem, markup=False, soft_wrap=True)
    if catalog.num_problems > len(catalog.problems):
        err.print(f"... and {catalog.num_problems - len(catalog.problems):,} more of the kind.")


def _print_description(description: Description) -> None:
    from rich.table import Table

    from yt8m.runtime.console import out

    d = description
    rows = [
        ("shards", f"{d.num_shards:,} ({d.num_bytes / 1e9:.2f} GB)"),
        ("videos", f"{d.num_videos:,} ({d.hours:,.1f} hours)"),
        ("frames", f"{d.num_frames:,}, a video {_spread(d.frames_per_video)}"),
        ("labels", f"{d.labels_per_video:.2f} a video; {d.videos_without_labels:,} videos without any"),
    ]
    if d.videos_with_classes is not None:
        rows.append(("segment classes", f"{d.videos_with_classes:,} videos carry a label among them"))
    rows.append(("evaluated segments", f"{d.evaluated_segments:,}"))
    if d.ratings:
        rows.append(("ratings", f"{d.ratings:,} ({d.positive_ratings:,} positive) of {d.rated_segments:,} segments"))
        rows.append(("rated classes", f"{d.classes_rated:,}"))
    if d.ratings_per_class is not None:
        rows.append(("ratings a class", _spread(d.ratings_per_class)))
    rows += [("odd", f"{count:,} {oddity}") for oddity, count in d.oddities.items() if count]
    if d.num_problems:
        rows.append(("damaged", f"{d.num_problems:,} places, left out"))
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in rows:
        table.add_row(name, value)
    out.print(str(d.folder), markup=False)
    out.print(table)


def _spread(spread: Spread) -> str:
    return f"{spread.minimum:,} to {spread.maximum:,}, median {spread.median:,.0f}"


def _print_check(checked: Checked) -> None:
    """Print what is wrong with a submission and whether it would be accepted.

    Raises:
        Yt8mError: It would not.
    """
    from yt8m.runtime.console import out

    for sentence in checked.listed:
        out.print(sentence, markup=False)
    if checked.num_problems > len(checked.listed):
        out.print(f"... and {checked.num_problems - len(checked.listed):,} more; all of them by kind:")
        for kind, count in checked.problems.items():
            out.print(f"    {count:,} {kind}", markup=False)
    for remark in checked.remarks:
        out.print(f"remark: {remark}.", markup=False)
    for what in checked.not_looked_at:
        out.print(f"not looked at: {what}.", markup=False)
    if not checked.is_accepted:
        problems = "1 problem" if checked.num_problems == 1 else f"{checked.num_problems:,} problems"
        raise Yt8mError(f"{checked.path}: would not be accepted: {problems}, as listed above.")
    out.print(
        f"{checked.path}: would be accepted: {checked.num_classes:,} classes, {checked.num_segments:,} segments",
        markup=False,
    )


def _print_results(done: Run, comparison: Comparison) -> None:
    """Print the table that a run ends with: scores where there is truth, and seconds of the stages."""
    from rich.table import Table

    from yt8m.runs.run import SUBMISSION_FILE
    from yt8m.runtime.console import out
    from yt8m.scoring.report import score_table

    if comparison.rows:
        out.print(score_table(comparison.rows, done.recipe.top_k))
    stages = Table("stage", "seconds")
    stages.columns[1].justify = "right"
    for stage, seconds in done.stage_seconds().items():
        stages.add_row(stage, f"{seconds:,.0f}")
    out.print(stages)
    out.print(
        f"{done.out / SUBMISSION_FILE}: the best segments of {len(done.vocabulary):,} classes, "
        f"of {comparison.num_segments:,} segments predicted",
        markup=False,
    )
    pictures = sorted((done.out / "predict").glob("*.png"))
    out.print(f"pictures: {', '.join(map(str, pictures))}", markup=False)


def _ensemble(weights: Sequence[str] | None, merge: Sequence[str] | None) -> MergeConfig:
    """How models are merged, as options say it."""
    from yt8m.ranking.ensemble import MergeConfig
    from yt8m.settings import overridden, validated

    values = overridden({"weights": _weights(weights or [])}, merge or [])
    return validated(MergeConfig, values, "--set")


def _weights(given: Sequence[str]) -> dict[str, float]:
    weights = {}
    for text in given:
        name, separator, number = text.rpartition("=")
        try:
            weights[name] = float(number)
        except ValueError:
            separator = ""
        if not (separator and name and 0 <= weights[name] < float("inf")):
            raise UsageError(f"--weight {text}: expected NAME=NUMBER, the number not negative.")
    return weights


# -------------------------------------------------------------------------------------------------------------- errors


@contextmanager
def _sentences() -> Iterator[None]:
    """Turn what a person can mend into one sentence on standard error and an exit status; let defects through."""
    try:
        yield
    except Yt8mError as error:
        _leave(str(error), error.exit_code)
    except SystemExit as left:
        # Typer ends an interrupted command with this status and says nothing.
        if left.code != INTERRUPTED:
            raise
        _leave(
            "Interrupted; the same command starts again: a download goes on with what it has, and training from its "
            "last checkpoint.",
            INTERRUPTED,
        )
    except BrokenPipeError:
        # Whoever read the output has enough of it; standard output must not be flushed again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EMFILE):
            raise
        _leave(f"{error.filename or 'A file'}: {error.strerror}.", 1)


def _leave(sentence: str, status: int) -> None:
    print(f"yt8m: {sentence}", file=sys.stderr)  # noqa: T201 - plain, so that paths stay whole and can be copied
    sys.exit(status)


def main() -> None:
    """Entry point of the `yt8m` command."""
    prepare_environment()
    warnings.filterwarnings("ignore", module="lightning_fabric|torch")
    with _sentences():
        app()


if __name__ == "__main__":
    main()
