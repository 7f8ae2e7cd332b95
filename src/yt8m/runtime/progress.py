"""Progress reports: the protocol of the argument `progress` of library functions, and reports on standard error.

These are bars on a terminal, and a line every half minute where standard error is a pipe or a file.
"""

import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, TypeVar

from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from yt8m.runtime.console import err, format_bytes, format_duration

T = TypeVar("T")
Unit = Literal["items", "bytes"]


class ProgressTask(Protocol):
    """A task in progress."""

    def __call__(self, completed: float, total: float | None = None, note: str = "") -> None:
        """Report progress.

        Args:
            completed: Items or bytes done since the start of the task.
            total: New total, if it was not known or has changed.
            note: Text beside the bar.
        """


class ProgressFactory(Protocol):
    """Starts a task: `with progress("index", total, "bytes") as report: report(completed)`."""

    def __call__(
        self, description: str, total: float | None = None, unit: Unit = "items"
    ) -> AbstractContextManager[ProgressTask]:
        """Start a task.

        Args:
            description: Text before the bar.
            total: Items or bytes in all, if known.
            unit: Unit of the counts.
        """


@contextmanager
def no_progress(description: str, total: float | None = None, unit: Unit = "items") -> Iterator[ProgressTask]:
    """Report nothing."""
    yield lambda completed, total=None, note="": None


_COLUMNS: dict[Unit, tuple[type[ProgressColumn], ...]] = {
    "items": (MofNCompleteColumn, TaskProgressColumn, TimeElapsedColumn),
    "bytes": (DownloadColumn, TransferSpeedColumn),
}


LINE_SECONDS = 30.0
"""Seconds between lines of progress where standard error is no terminal."""


@dataclass
class _Lines:
    """Reports a task as a line on standard error, at most one per half minute for all tasks together.

    Args:
        description: Start of each line.
        total: Items or bytes in all, if known.
        unit: Unit of the counts.
    """

    description: str
    total: float | None
    unit: Unit
    started: float
    first: tuple[float, float] | None = None
    """Time and count of the first report: a resumed task does not start at 0."""

    last_line: ClassVar[float] = time.monotonic()

    def __call__(self, completed: float, total: float | None = None, note: str = "") -> None:
        now = time.monotonic()
        self.total = self.total if total is None else total
        self.first = self.first or (now, completed)
        if now - _Lines.last_line < LINE_SECONDS:
            return
        _Lines.last_line = now
        shown = format_bytes if self.unit == "bytes" else "{:,.0f}".format
        line = f"{self.description}: {shown(completed)}"
        if self.total:
            line += f" of {shown(self.total)} ({completed / self.total:.0%})"
        line += f", {format_duration(now - self.started)}"
        begun, at_first = self.first
        if self.total and completed > at_first:
            left = (now - begun) * (self.total - completed) / (completed - at_first)
            line += f", {format_duration(left)} left"
        err.print(f"{line}, {note}" if note else line)


@contextmanager
def terminal_progress(description: str, total: float | None = None, unit: Unit = "items") -> Iterator[ProgressTask]:
    """Report on standard error: a bar on a terminal, a line every half minute elsewhere, nothing with `--quiet`."""
    if not err.is_terminal or err.quiet:
        yield _Lines(description, total, unit, time.monotonic())
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        *(column() for column in _COLUMNS[unit]),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task(description, total=total, note="")
        yield lambda completed, total=None, note="": bar.update(task, completed=completed, total=total, note=note)


def track(
    items: Iterable[T], description: str, progress: ProgressFactory = terminal_progress, total: int | None = None
) -> Iterator[T]:
    """Iterate over items and report each one as done when the next is requested.

    Args:
        items: Items to yield.
        description: Text before the bar.
        progress: Receives the reports.
        total: Number of items, if they have no length.
    """
    total = len(items) if total is None and isinstance(items, Sized) else total
    with progress(description, total) as report:
        for completed, item in enumerate(items, start=1):
            yield item
            report(completed)
