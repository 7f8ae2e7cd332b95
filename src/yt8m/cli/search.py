"""Command for finding moments: search."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from yt8m.cli.options import JsonOption, ShardsOption, ThresholdOption, VocabularyOption
from yt8m.cli.output import load_catalog, print_json
from yt8m.errors import UsageError, counted

if TYPE_CHECKING:
    from yt8m.search.moments import SearchResult
    from yt8m.search.search import Source


def search(
    concepts: Annotated[list[str], typer.Argument(metavar="CONCEPT...", help="Names of concepts, or ids of classes.")],
    run_folder: Annotated[
        Path | None, typer.Option("--run", help="Folder of a run: search the segments that it listed.")
    ] = None,
    table: Annotated[
        Path | None, typer.Option("--table", help="Parquet table to search instead, such as a run's segments.parquet.")
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option("--store", help="Stored predictions to search instead: the mean of their models, all segments."),
    ] = None,
    shards: ShardsOption = None,
    vocabulary: VocabularyOption = None,
    video: Annotated[str | None, typer.Option("--video", help="Only moments of the video with this id.")] = None,
    threshold: ThresholdOption = 0.5,
    limit: Annotated[int, typer.Option(min=0, help="Moments to list per concept, the best first; 0 for all.")] = 20,
    csv: Annotated[Path | None, typer.Option("--csv", help="Also write the moments as a CSV file.")] = None,
    as_json: JsonOption = False,
) -> None:
    r"""Find the moments of all videos at which a concept appears, the most probable first.

    Neighbouring segments that reach --threshold are one moment, from its start to its end, with the highest probability
    of its segments and their number. Names are found in any case, by their beginning, and with typing errors. In a pipe,
    the output is one line per moment, with tabs: class, video, start-end, probability, segments.

    ```sh
    yt8m search Surfing --run build/demo/run
    yt8m search "musical ensemble" guitar --run runs/a --threshold 0.8 --limit 0 --csv moments.csv
    yt8m search 17 --table segments.parquet --video SjJ3 --json
    ```
    """
    from yt8m.search.search import search as find
    from yt8m.search.search import write_moments

    source = _source(run_folder, table, store, shards, vocabulary)
    results = find(source, _class_indices(concepts, source), threshold, limit, video)
    if csv is not None:
        write_moments(csv, results)
    if as_json:
        print_json([result.as_dict() for result in results])
    else:
        _print(results, threshold, video)


def _source(
    run_folder: Path | None, table: Path | None, store: Path | None, shards: Path | None, vocabulary: Path | None
) -> Source:
    """What to search; UsageError unless exactly one place is given."""
    from yt8m.search.search import table_of_run
    from yt8m.submission.table import RankingTable

    if [run_folder, table, store].count(None) != 2:
        raise UsageError(
            "yt8m search needs one of --run DIR, the folder of a run; --table FILE, a segments.parquet; --store DIR, "
            "stored predictions."
        )
    if store is not None:
        from yt8m.prediction.store import Store
        from yt8m.runs.finished import origin_of_stores

        origin = origin_of_stores([store])
        catalog, classes = load_catalog(origin.find_shards(shards)), origin.find_classes(vocabulary)
        Store.open(store)

        from yt8m.search.stored import StoredSegments

        return StoredSegments.open(store, catalog, classes)
    return table_of_run(run_folder) if run_folder is not None else RankingTable.open(table or Path())


def _class_indices(concepts: Sequence[str], source: Source) -> list[int]:
    """Classes to search, without repeats; a name that was guessed is printed."""
    from yt8m.runtime.console import err
    from yt8m.search.concepts import find_concepts

    indices: dict[int, None] = {}
    for text in concepts:
        for found in find_concepts(text, source.vocabulary):
            indices[found.class_index] = None
            if found.is_guess:
                err.print(f"{text!r}: showing {source.vocabulary.names[found.class_index]!r}")
    return list(indices)


def _print(results: Sequence[SearchResult], threshold: float, video: str | None) -> None:
    """Print moments: a table per concept on a terminal, otherwise lines with tabs."""
    from rich.table import Table

    from yt8m.ranking import value_name
    from yt8m.runtime.console import err, out

    for number, result in enumerate(results):
        value = value_name(result.is_calibrated)
        if not result.moments:
            where = f"in video {video!r}" if video else "listed"
            reached = "" if result.highest is None else f"; the highest {value} is {result.highest:.3g}"
            what = f"no moment of {threshold:g} or more" if reached else "no segment"
            err.print(f"{result.name}: {what} {where}{reached}")
            continue
        if not out.is_terminal:
            for moment in result.moments:
                typer.echo(
                    f"{result.name}\t{moment.video_id}\t{moment.time}\t{moment.probability:.3f}\t{moment.num_segments}"
                )
            continue
        if number:
            out.print()
        out.print(
            f"{result.name} ({result.label_id}): {counted(result.num_moments, 'moment')} of {threshold:g} or more "
            f"in {counted(result.num_videos, 'video')}"
        )
        table = Table("video", "time", value, "segments", box=None, pad_edge=False)
        for column in table.columns[1:]:
            column.justify = "right"
        for moment in result.moments:
            table.add_row(moment.video_id, moment.time, f"{moment.probability:.3f}", str(moment.num_segments))
        out.print(table)
    hidden = sum(result.num_moments - len(result.moments) for result in results)
    if hidden:
        err.print(f"... and {counted(hidden, 'more moment')}; --limit 0 shows all")
