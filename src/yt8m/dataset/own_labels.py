"""Own labels and ratings: those of `labels.csv` and `ratings.csv` beside the shards, added to a catalog.

They are checked like those in records. A row that cannot be used is reported with its line, and the others are used.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yt8m.dataset.catalog import RATING_COLUMNS, Catalog
from yt8m.dataset.own_files import LABELS_FILE, RATINGS_FILE, Row, digest_of, read_files, rows_of
from yt8m.dataset.problems import Oddity, OnProblem, ShardProblems
from yt8m.dataset.ratings import usable_ratings
from yt8m.extraction.videos import VIDEOS_FILE, read_videos
from yt8m.shards.ids import SEGMENT_SECONDS
from yt8m.vocabulary import MAX_LABEL_ID


def with_own_labels(catalog: Catalog, on_problem: OnProblem) -> Catalog:
    """Add the labels and ratings of the files beside the shards of a catalog.

    A video is named by its id, or, where the folder has the table of an extraction, by its path or file name there. Label
    ids are those of any vocabulary.

    Args:
        catalog: The catalog, with the labels and ratings of the records.
        on_problem: Called with each row that cannot be used.

    Raises:
        UsageError: A file is not readable as CSV, or lacks a column.
    """
    contents = read_files(catalog.folder)
    if not contents:
        return catalog
    row_of = _finder(catalog, has_table=VIDEOS_FILE in contents)
    oddities = Counter(catalog.oddities)
    changed: dict[str, Any] = {}
    for name, add in ((LABELS_FILE, _with_labels), (RATINGS_FILE, _with_ratings)):
        if name in contents:
            problems = ShardProblems(catalog.folder / name, on_problem)
            changed |= add(catalog, _usable_rows(catalog.folder / name, contents[name], row_of, problems), problems)
            problems.close()
            oddities.update({oddity.value: count for oddity, count in problems.oddities.items()})
    starts = changed.get("label_starts", catalog.label_starts)
    oddities[Oddity.NO_LABELS.value] = int((np.diff(starts) == 0).sum())
    found = {oddity.value: oddities[oddity.value] for oddity in Oddity if oddities[oddity.value]}
    return replace(catalog, oddities=found, own_labels=digest_of(contents), **changed)


def _finder(catalog: Catalog, has_table: bool) -> Callable[[str], int | None]:
    """A function from the name of a video to its row; None where the shards do not contain it, or several do."""
    rows = {video_id: row for row, video_id in enumerate(catalog.video_ids)}
    named: dict[str, set[str]] = {}
    table = read_videos(catalog.folder) if has_table else []
    for video in filter(lambda video: video.is_extracted, table):
        for name in (video.path, Path(video.path).name):
            named.setdefault(name, set()).add(video.video_id)

    def row_of(name: str) -> int | None:
        ids = {name} if name in rows else named.get(name, set())
        return rows.get(next(iter(ids))) if len(ids) == 1 else None

    return row_of


def _usable_rows(
    path: Path, content: bytes, row_of: Callable[[str], int | None], problems: ShardProblems
) -> list[tuple[int, Row]]:
    """Rows of a file with the row of their video in the catalog."""
    usable = []
    for given in rows_of(path, content):
        row = row_of(given.video)
        if given.fault:
            problems.odd(Oddity.ROWS_UNREADABLE, None, f"line {given.line}: {given.fault}")
        elif row is None:
            problems.odd(Oddity.ROWS_OF_OTHERS, None, f"line {given.line}: no video, or several, {given.video[:80]!r}")
        else:
            usable.append((row, given))
    return usable


def _with_labels(catalog: Catalog, given: list[tuple[int, Row]], problems: ShardProblems) -> dict[str, Any]:
    """Columns of labels: those of the catalog and the given ones."""
    added: set[tuple[int, int]] = set()
    for row, (line, _, label, *_) in given:
        if label > MAX_LABEL_ID:
            problems.odd(Oddity.LABELS_UNKNOWN, None, f"line {line}: the label {label}, above {MAX_LABEL_ID:,}")
        elif (row, label) in added:
            problems.odd(Oddity.LABELS_REPEATED, None, f"line {line}: the label {label} again")
        else:
            added.add((row, label))
    rows = np.repeat(np.arange(len(catalog)), np.diff(catalog.label_starts))
    pairs = np.stack([rows, catalog.label_values.astype(np.int64)], axis=1)
    pairs = np.unique(np.concatenate([pairs, np.array(sorted(added), np.int64).reshape(-1, 2)]), axis=0)
    return {
        "label_values": np.ascontiguousarray(pairs[:, 1], np.int32),
        "label_starts": _starts(pairs[:, 0], len(catalog)),
    }


def _with_ratings(catalog: Catalog, given: list[tuple[int, Row]], problems: ShardProblems) -> dict[str, Any]:
    """Columns of ratings: those of the catalog and the given ones, checked together."""
    of_row: dict[int, list[tuple[int, int, int, float, int | None]]] = {}
    for row, (line, _, label, start, score, _) in given:
        of_row.setdefault(row, []).append((label, start, start + SEGMENT_SECONDS, score, line))

    def odd(oddity: Oddity, line: int | None, found: str, count: int) -> None:
        problems.odd(oddity, None, f"line {line}: {found}", count)

    columns = np.stack([getattr(catalog, name).astype(np.int64) for name in RATING_COLUMNS], axis=1)
    kept = ~np.isin(catalog.rating_rows, list(of_row))
    parts = [np.column_stack([catalog.rating_rows[kept], columns[kept]])]
    for row, ratings in sorted(of_row.items()):
        before = columns[catalog.rating_starts[row] : catalog.rating_starts[row + 1]].tolist()
        known = [(label, start, start + SEGMENT_SECONDS, float(value), None) for label, start, value in before]
        usable = usable_ratings([*known, *ratings], int(catalog.num_frames[row]), MAX_LABEL_ID + 1, odd)
        parts.append(np.array([(row, *rating) for rating in usable], np.int64).reshape(-1, 4))
    # (ratings, 4): row, label, start, value
    table = np.concatenate(parts)
    table = table[np.lexsort((table[:, 1], table[:, 2], table[:, 0]))]
    names = enumerate(RATING_COLUMNS.items(), start=1)
    return {name: np.ascontiguousarray(table[:, i], kind) for i, (name, kind) in names} | {
        "rating_starts": _starts(table[:, 0], len(catalog))
    }


def _starts(rows: NDArray[np.int64], num_rows: int) -> NDArray[np.int64]:
    """Starts of each row's values in a column that is sorted by row."""
    return np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=num_rows))]).astype(np.int64)
