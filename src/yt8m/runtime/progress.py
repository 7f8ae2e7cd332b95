"""Progress reports: the protocol of the argument `progress` of library functions, and progress bars on the terminal."""

from collections.abc import Iterable, Iterator, Sized
from contextlib import AbstractContextManager, contextmanager
from typing import Literal, Protocol, TypeVar

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

from yt8m.runtime.console import err

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


@contextmanager
def terminal_progress(description: str, total: float | None = None, unit: Unit = "items") -> Iterator[ProgressTask]:
    """Show a progress bar on standard error if that is a terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        *(column() for column in _COLUMNS[unit]),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
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
