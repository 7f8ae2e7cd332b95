"""What a person sees while work goes on, and the tables at its end. Everything goes to the terminal through rich."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

T = TypeVar("T")

out = Console(highlight=False, soft_wrap=True)
"""Results: standard output."""


def wide(columns: int) -> Console:
    """Results that need so many columns, on however narrow a terminal."""
    return out if out.width >= columns else Console(highlight=False, soft_wrap=True, width=columns)


err = Console(stderr=True, highlight=False, soft_wrap=True)
"""Progress and errors: standard error."""


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    )


def tracked(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Go through items with a progress bar; `total` says how many where they do not."""
    with _bar() as bar:
        total = len(items) if total is None and isinstance(items, Sized) else total
        task = bar.add_task(description, total=total, note="")
        for item in items:
            yield item
            bar.advance(task)


@contextmanager
def step_bar(
    description: str, total: int, unit: str, shown: bool = True
) -> Iterator[Callable[[tuple[int, float, float, float]], None]]:
    """Show a bar for a run of training steps.

    Args:
        description: What is trained.
        total: Steps in all.
        unit: What a step has a batch of, in the plural.
        shown: Whether this process shows anything.

    Yields:
        A function to call with the steps done, the current loss, examples a second, and the share of the time spent
        waiting for data.
    """
    if not shown:
        yield lambda _: None
        return
    with _bar() as bar:
        task = bar.add_task(description, total=total, note="")

        def show(pace: tuple[int, float, float, float]) -> None:
            step, loss, speed, waiting = pace
            late = f", {waiting:.0%} waiting for data" if waiting >= 0.05 else ""
            bar.update(task, completed=step, note=f"loss {loss:.4g}, {speed:,.0f} {unit}/s{late}")

        yield show


@contextmanager
def byte_bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar for something measured in bytes.

    Yields:
        A function to call with the bytes done and the bytes in all.
    """
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def shard_bar(description: str) -> Iterator[Callable[[int, int, int, int | None], None]]:
    """Show a bar for shards on their way.

    Yields:
        A function to call with the shards done, the shards in all, the bytes done, and the bytes in all where known.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[note]}"),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(description, total=None, note="")
        yield lambda done, total, num_bytes, all_bytes: bar.update(
            task, completed=num_bytes, total=all_bytes, note=f"{done:,}/{total:,} shards"
        )
