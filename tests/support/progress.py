"""Recorded progress reports."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from yt8m.runtime.progress import ProgressTask, Unit


@dataclass
class RecordedProgress:
    """A `ProgressFactory` that records all reports.

    Args:
        on_report: Called with the description and the number of items or bytes done, at every report.
    """

    on_report: Callable[[str, float], None] = lambda _description, _completed: None
    reports: dict[str, list[tuple[float, float | None, str]]] = field(default_factory=dict)
    """Completed, total and note of each report, by description."""
    units: dict[str, Unit] = field(default_factory=dict)

    @contextmanager
    def __call__(self, description: str, total: float | None = None, unit: Unit = "items") -> Iterator[ProgressTask]:
        """Start a task."""
        self.units[description] = unit
        reports = self.reports.setdefault(description, [])
        started = total

        def report(completed: float, total: float | None = None, note: str = "") -> None:
            reports.append((completed, started if total is None else total, note))
            self.on_report(description, completed)

        yield report
