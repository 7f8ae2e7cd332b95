"""Commands for results: check, evaluate."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from yt8m.cli.options import JsonOption
from yt8m.cli.output import load_catalog, print_json
from yt8m.errors import UsageError, Yt8mError, counted
from yt8m.ranking import MAX_SEGMENTS

if TYPE_CHECKING:
    from yt8m.submission.check import Checked

SubmissionArgument = Annotated[Path, typer.Argument(help="The submission; it may be compressed (gzip, ZIP).")]


def check(
    path: Annotated[Path, typer.Argument(help="A submission, or the folder of a run, a model or stored predictions.")],
    shards: Annotated[
        Path | None, typer.Option("--shards", help="Folder of the predicted shards: check ids and starts.")
    ] = None,
    vocabulary: Annotated[Path | None, typer.Option(help="segment_vocabulary.csv: check classes.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Check a submission, or the checksums of a run, a model or stored predictions.

    A submission: whether it would be accepted, and everything that is wrong with it.

    Checks the header, the classes, the number of segments, repeated ones, and their format; with --shards also whether
    each video exists and is long enough. Lists the first 20 problems, counts all by kind, and remarks on what is allowed
    but lowers the score. The exit status is 0 where the file would be accepted, 1 where not.

    A folder: whether models, checkpoints, stored predictions, submissions and tables in it are as they were written. The
    exit status is 1 where one is damaged or missing.

    ```sh
    yt8m check submission.csv --shards data/segment/test --vocabulary data/segment_vocabulary.csv
    yt8m check runs/try
    ```
    """
    from yt8m.runtime.progress import terminal_progress

    if path.is_dir():
        if shards is not None or vocabulary is not None:
            raise UsageError(f"{path}: is a folder; --shards and --vocabulary are for the file of a submission.")
        _check_folder(path, as_json)
        return
    from yt8m.submission.check import check_submission
    from yt8m.vocabulary import Vocabulary

    classes = None if vocabulary is None else Vocabulary.load(vocabulary)
    catalog = None if shards is None else load_catalog(shards)
    checked = check_submission(path, classes, catalog, terminal_progress)
    if as_json:
        print_json({"is_accepted": checked.is_accepted, "num_problems": checked.num_problems} | asdict(checked))
    else:
        _print_check(checked)
    if not checked.is_accepted:
        problems = counted(checked.num_problems, "problem")
        raise Yt8mError(f"{checked.path}: would not be accepted: {problems}, as listed above.")


def evaluate(
    submission: SubmissionArgument,
    truth: Annotated[Path, typer.Option(help="A folder of rated shards, or a CSV file: video,label,start,score.")],
    dense: Annotated[
        bool,
        typer.Option(
            "--dense", help="The CSV file (video,label,start) lists all positives; other segments are negative."
        ),
    ] = False,
    vocabulary: Annotated[
        Path | None, typer.Option(help="segment_vocabulary.csv: refuse other classes, and name classes.")
    ] = None,
    k: Annotated[int, typer.Option("--k", min=1, help="Length that the list of each class is cut to.")] = MAX_SEGMENTS,
    per_class: Annotated[Path | None, typer.Option(help="CSV file to write the AP of each class to.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Score a submission: MAP@K over the classes with a rated positive.

    Lists are cut to K first, then segments not rated for the class are dropped; AP is the sum over hits of the precision
    at the hit, divided by the number of rated positives. A class that the file does not list has an AP of 0.

    ```sh
    yt8m evaluate submission.csv --truth data/segment/test_ratings.csv
    yt8m evaluate submission.csv --truth data/segment/test_positives.csv --dense
    ```
    """
    from yt8m.runtime.console import err, out
    from yt8m.scoring.map_at_k import map_at_k, write_class_scores
    from yt8m.scoring.truth import load_truth
    from yt8m.vocabulary import Vocabulary

    classes = None if vocabulary is None else Vocabulary.load(vocabulary)
    if truth.is_dir() and not dense:
        load_catalog(truth)
    score = map_at_k(submission, load_truth(truth, dense, classes), k, classes)
    num_listed, num_videos = score.little_overlap or (1, 1)
    if not num_listed:
        raise Yt8mError(
            f"{submission}: lists none of the {counted(num_videos, 'video')} of {truth}; expected a truth of the videos "
            "that were predicted."
        )
    repeated, contradictory = score.num_repeated_ratings, score.num_contradictory_ratings
    if as_json:
        print_json(asdict(score) | {"num_classes": score.num_classes})
    else:
        out.print(f"{score.mean_average_precision:.6f} MAP@{k:,}{' (dense)' if dense else ''}")
        out.print(
            f"{score.num_classes:,} classes with a positive counted, {score.num_absent:,} of them absent from the file; "
            f"{score.num_ignored:,} other classes of the file not counted"
        )
        if repeated or contradictory:
            out.print(f"truth: {repeated:,} repeated ratings, {contradictory:,} contradictory ones")
    if score.little_overlap is not None:
        err.print(
            f"warning: {submission} lists only {num_listed:,} of the {counted(num_videos, 'video')} of {truth}, so the "
            "others count as missed."
        )
    if per_class is not None:
        write_class_scores(per_class, score, classes)
        err.print(f"{per_class}: AP of each class")


def _check_folder(folder: Path, as_json: bool) -> None:
    """Verify the checksums in a folder, and print what was verified."""
    from rich.table import Table

    from yt8m.runs.integrity import check_folder
    from yt8m.runtime.console import format_bytes, out, wide
    from yt8m.runtime.progress import terminal_progress

    parts = check_folder(folder, terminal_progress)
    damaged = [part for part in parts if part.status == "damaged"]
    if as_json:
        print_json({"path": folder, "is_intact": not damaged, "parts": [asdict(part) for part in parts]})
    else:
        table = Table("what", "kind", "size", "status", box=None)
        table.columns[2].justify = "right"
        for part in parts:
            table.add_row(str(part.path), part.kind, format_bytes(part.num_bytes), part.status)
        wide(120).print(table)
        for part in damaged:
            out.print(part.problem)
    if damaged:
        raise Yt8mError(
            f"{folder}: {len(damaged)} of {counted(len(parts), 'part')} damaged or missing, as listed above."
        )


def _print_check(checked: Checked) -> None:
    from yt8m.runtime.console import out

    for sentence in checked.messages:
        out.print(sentence)
    if checked.num_problems > len(checked.messages):
        out.print(f"... and {checked.num_problems - len(checked.messages):,} more; all of them by kind:")
        for kind, count in checked.problems.items():
            out.print(f"    {kind.description}: {count:,}")
    for remark in checked.remarks:
        out.print(f"remark: {remark}.")
    for what in checked.not_checked:
        out.print(f"not checked: {what}.")
    if checked.is_accepted:
        out.print(
            f"{checked.path}: would be accepted: {checked.num_classes:,} classes, {checked.num_segments:,} segments"
        )
