"""What commands print: JSON for scripts, catalogs and their problems, durations."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from yt8m.errors import Yt8mError, counted, printable
from yt8m.files import is_standard_output

if TYPE_CHECKING:
    from rich.console import Console

    from yt8m.dataset.catalog import Catalog


def print_json(value: Any) -> None:
    """Print a value as JSON on standard output, with escapes if its encoding is not Unicode; paths become strings."""
    is_unicode = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().startswith("utf")
    text = json.dumps(value, indent=2, ensure_ascii=not is_unicode, default=str)
    # JSON escapes only some of the characters that terminals obey.
    typer.echo(re.sub("[\x7f-\x9f\u2028-\u202e\u2066-\u2069]", lambda found: f"\\u{ord(found[0]):04x}", text))


def console_beside(*outputs: Path | None) -> Console:
    """Where to print about files that were written: standard error if one of them is standard output itself."""
    from yt8m.runtime.console import err, out

    return err if any(path is not None and is_standard_output(path) for path in outputs) else out


def load_catalog(folder: Path) -> Catalog:
    """Load the catalog of a folder of shards, or index the folder first; print damaged records, one line each."""
    from yt8m.dataset.indexing import load_or_index
    from yt8m.runtime.progress import terminal_progress

    catalog = load_or_index(folder, progress=terminal_progress)
    print_problems(catalog)
    return catalog


def index_folders(folder: Path, parts: Sequence[Path], verify: bool, strict: bool = False) -> None:
    """Index folders of shards; print what each contains, what is irregular and what is damaged.

    Args:
        folder: Names the dataset in the error.
        parts: The folders of shards.
        verify: Whether to verify checksums.
        strict: Whether the first problem is an error.

    Raises:
        Yt8mError: Records are damaged. The catalogs of the others are written.
    """
    from yt8m.dataset.catalog import FILE_NAME
    from yt8m.dataset.indexing import damaged_places, index_and_save
    from yt8m.dataset.layout import shard_list, writable_catalog_folder
    from yt8m.dataset.problems import REPORT_NAME
    from yt8m.runtime.console import out
    from yt8m.runtime.progress import terminal_progress

    damaged = 0
    for part in parts:
        catalog = index_and_save(part, verify=verify, strict=strict, progress=terminal_progress)
        listed, place = shard_list(part), writable_catalog_folder(part)
        out.print(
            f"{place / FILE_NAME}: {len(catalog):,} videos, {int(catalog.num_frames.sum()):,} frames, "
            f"{len(catalog.rating_labels):,} ratings, {len(catalog.shards):,} shards"
            + (f" (those in {listed.path})" if listed else "")
        )
        for oddity, count in catalog.oddities.items():
            out.print(f"    {oddity}: {count:,}")
        if (place / REPORT_NAME).is_file():
            out.print(f"    all of them, with their places: {place / REPORT_NAME}")
        print_problems(catalog)
        damaged += catalog.num_problems
    if damaged:
        raise Yt8mError(f"{folder}: {damaged_places(damaged)} skipped, as listed above.")


def verify_folders(folder: Path, parts: Sequence[Path]) -> None:
    """Compare all records of folders of shards with their catalogs; index folders without one.

    Args:
        folder: Names the dataset in the error.
        parts: The folders of shards.

    Raises:
        Yt8mError: Shards have changed, or records are damaged.
    """
    from yt8m.dataset.indexing import usable_catalog
    from yt8m.dataset.verification import changes
    from yt8m.runtime.console import out
    from yt8m.runtime.progress import terminal_progress

    num_changes = 0
    for part in parts:
        catalog = usable_catalog(part)
        if catalog is None or not catalog.has_checksums:
            index_folders(folder, [part], verify=True)
            continue
        found = changes(catalog, terminal_progress)
        for change in found:
            typer.echo(printable(str(change)), err=True)
        if not found:
            out.print(f"{part}: {counted(len(catalog.shards), 'shard')} as indexed, every record verified")
        num_changes += len(found)
    if num_changes:
        raise Yt8mError(
            f"{folder}: {counted(num_changes, 'change')} since it was indexed, as listed above; `yt8m index {folder}` "
            "indexes the shards as they are now."
        )


def print_problems(catalog: Catalog) -> None:
    """Print damaged records on standard error, one line each, with `--quiet` too."""
    for problem in catalog.problems:
        typer.echo(printable(str(problem)), err=True)
    if catalog.num_problems > len(catalog.problems):
        typer.echo(f"... and {catalog.num_problems - len(catalog.problems):,} more", err=True)
