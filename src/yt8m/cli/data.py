"""Commands for datasets: download, index, describe, splice."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from yt8m.cli.options import JsonOption
from yt8m.cli.output import index_folders, load_catalog, print_json, verify_folders
from yt8m.errors import UsageError, counted

if TYPE_CHECKING:
    from yt8m.dataset.describe import Description, Summary

FolderArgument = Annotated[Path, typer.Argument(help="A dataset folder, or any folder of shards.")]


def download(
    data: Annotated[Path, typer.Argument(help="The dataset folder to fill.")],
    partitions: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PARTITION",
            help="Partitions of the official dataset: 2/frame/train, 2/frame/validate, 2/frame/test, 2/video/train, "
            "2/video/validate, 2/video/test, 3/frame/validate, 3/frame/test. By default, those that training and "
            "prediction need.",
        ),
    ] = None,
    mirror: Annotated[
        str | None, typer.Option(help="The nearest official mirror: us (the default), eu or asia.")
    ] = None,
    shard: Annotated[
        str | None, typer.Option("--shard", help="Only this fraction of each partition, such as 1/100.")
    ] = None,
    listed: Annotated[
        Path | None,
        typer.Option("--list", help="Only the shards named in this file, one path per line, as in a shards.txt."),
    ] = None,
    connections: Annotated[int, typer.Option(min=1, max=64, help="Shards to fetch at once.")] = 4,
    indexed: Annotated[bool, typer.Option("--index/--no-index", help="Index frame-level folders afterwards.")] = True,
    check: Annotated[
        bool, typer.Option("--check", help="Read shards that are already complete again, and compare their MD5s.")
    ] = False,
    server: Annotated[
        str | None, typer.Option(help="URL of another server with the layout of the official ones.")
    ] = None,
) -> None:
    """Download the official dataset, or a part of it, into a dataset folder.

    The frames of the four default partitions go to video/train, video/valid, segment/train and segment/test (1.5 TB),
    those of 2/frame/test to video/test, and video-level features to video_level, as sources for `yt8m splice`.

    A shard gets its final name only when its MD5 matches the official one. An interrupted download resumes with the
    same command: complete shards are not fetched again, and partial ones are completed.

    Another server (--server URL) must have URL/2/download_plans/frame_train.json, URL/2/frame/train/NAME and
    URL/csv/2/vocabulary.csv, and so for the other partitions.

    ```sh
    yt8m download data --mirror eu
    yt8m download data 3/frame/validate 3/frame/test
    yt8m download data --shard 1/100
    yt8m download data 2/video/validate --connections 8
    ```
    """
    from yt8m.dataset.indexing import current_catalog
    from yt8m.download.download import download as fetch
    from yt8m.download.plan import DEFAULT_PARTITIONS, Fraction, official_server, other_server
    from yt8m.download.transfer import RetryPolicy
    from yt8m.runtime.console import err, format_bytes, out
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
        policy=RetryPolicy(seed=os.getpid()),
        progress=terminal_progress,
        report=err.print,
    )
    folders = []
    for report in reports:
        missing = f" of {report.num_shards:,}" if report.num_complete < report.num_shards else ""
        out.print(
            f"{report.folder}: {report.num_complete:,}{missing} shards, {format_bytes(report.num_bytes)}, "
            f"{report.num_before:,} of them present before"
        )
        if report.is_frame_level:
            folders.append(report.folder)
    if indexed:
        index_folders(data, [folder for folder in folders if current_catalog(folder) is None], verify=True)


def index(
    folder: FolderArgument,
    verify: Annotated[
        bool | None,
        typer.Option(
            "--verify/--no-verify",
            help="--verify only compares every record with the catalogs that exist; --no-verify indexes without "
            "verifying the checksums of records.",
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail at the first problem, damage or irregularity.")
    ] = False,
) -> None:
    """Write the catalog of each folder of shards.

    A catalog (`catalog.parquet`, beside the shards) has one row per video: where its frames are, its labels and ratings.
    Damaged records are skipped and listed, one line each; the exit status is then 1. Irregular ones are repaired.
    `catalog_report.csv` lists every problem: shard, record, byte, what was found, what was done.

    Where a folder cannot be written to, its catalog and report go to ~/.cache/yt8m/catalogs (or $XDG_CACHE_HOME). The
    environment variable YT8M_CATALOGS names another folder for all catalogs.

    `labels.csv` (columns video, label) and `ratings.csv` (video, label, start, score) beside the shards add labels and
    ratings to those in the records.

    A `shards.txt` in a folder of shards selects the shards to use, one name per line. In a dataset folder its lines are
    paths (video/train/train0001.tfrecord), and parts that it does not mention are used completely.

    ```sh
    yt8m index data
    yt8m index data/video/train --strict
    yt8m index data --verify
    ```
    """
    from yt8m.dataset.layout import dataset_parts

    if verify and strict:
        raise UsageError(
            "--verify compares shards with their catalogs, and --strict is for indexing; give one of them."
        )
    if verify:
        verify_folders(folder, dataset_parts(folder))
    else:
        index_folders(folder, dataset_parts(folder), verify is None, strict)


def describe(folder: FolderArgument, as_json: JsonOption = False) -> None:
    """Describe a dataset: videos, frames, labels, ratings per class, irregular records.

    Folders without a catalog are indexed first. Damaged records are skipped and listed, one line each.

    ```sh
    yt8m describe data
    yt8m describe data --json | jq '.[].num_videos'
    ```
    """
    from yt8m.dataset.describe import describe as count
    from yt8m.dataset.layout import dataset_parts
    from yt8m.runtime.console import err, out
    from yt8m.vocabulary import FILE_NAME, Vocabulary

    place = folder / FILE_NAME
    vocabulary = Vocabulary.load(folder) if place.is_file() else None
    if vocabulary is not None and not as_json:
        out.print(f"{place}: {len(vocabulary):,} segment classes")
    elif vocabulary is None and folder.is_dir():
        err.print(f"{place} is missing, so classes are counted without it.")
    descriptions = (count(load_catalog(part), vocabulary) for part in dataset_parts(folder))
    if as_json:
        print_json([asdict(description) for description in descriptions])
        return
    for description in descriptions:
        _print_description(description)


def splice(
    out_folder: Annotated[Path, typer.Argument(metavar="OUT", help="The dataset folder to create.")],
    sources: Annotated[
        str, typer.Option(help="A folder of video-level shards, or `builtin` for generated sources.")
    ] = "builtin",
    vocabulary: Annotated[
        Path | None, typer.Option(help="segment_vocabulary.csv of the sources' dataset; not needed with builtin ones.")
    ] = None,
    pretrain: Annotated[
        int, typer.Option(min=1, help="Videos for pre-training; a tenth as many are added for validation.")
    ] = 1200,
    segments: Annotated[int, typer.Option(min=1, help="Rated videos for fine-tuning.")] = 480,
    test: Annotated[int, typer.Option(min=1, help="Test videos.")] = 160,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Random seed.")] = 0,
) -> None:
    """Create a frame-level dataset with exact ground truth by joining video-level features.

    A spliced video joins 1 to 4 sources; a segment is positive for a label exactly where its source has that label. The
    ground truth of the test set goes to segment/test_ratings.csv and segment/test_positives.csv.

    ```sh
    yt8m splice build/spliced
    yt8m splice build/spliced --sources data/video_level/validate --vocabulary data/segment_vocabulary.csv
    ```
    """
    from yt8m.runtime.console import err, out
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
        means = read_sources(Path(sources), terminal_progress, err.print)
    write_dataset(out_folder, means, classes, sizes, seed, terminal_progress)
    out.print(f"{out_folder}: {total:,} videos spliced from {len(means):,} sources, {len(classes):,} classes")


def _print_description(d: Description) -> None:
    from rich.table import Table

    from yt8m.runtime.console import out

    rows = [
        ("shards", f"{d.num_shards:,} ({d.num_bytes / 1e9:.2f} GB)"),
        ("videos", f"{d.num_videos:,} ({d.hours:,.1f} hours)"),
        ("features", d.features),
        ("frames", f"{d.num_frames:,}, per video {_spread(d.frames_per_video)}"),
        ("labels", f"{d.labels_per_video:.2f} per video; {d.videos_without_labels:,} videos without any"),
    ]
    if d.videos_with_classes is not None:
        rows.append(("segment classes", f"{d.videos_with_classes:,} videos have a label among them"))
    rows.append(("evaluated segments", f"{d.evaluated_segments:,}"))
    if d.ratings:
        rows.append(("ratings", f"{d.ratings:,} ({d.positive_ratings:,} positive) of {d.rated_segments:,} segments"))
        rows.append(("rated classes", f"{d.classes_rated:,}"))
    if d.ratings_per_class is not None:
        rows.append(("ratings per class", _spread(d.ratings_per_class)))
    rows += [("irregular", f"{oddity}: {count:,}") for oddity, count in d.oddities.items() if count]
    if d.num_problems:
        rows.append(("damaged", f"{counted(d.num_problems, 'place')}, skipped"))
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in rows:
        table.add_row(name, value)
    out.print(str(d.folder))
    out.print(table)


def _spread(spread: Summary) -> str:
    return f"{spread.minimum:,} to {spread.maximum:,}, median {spread.median:,.0f}"
