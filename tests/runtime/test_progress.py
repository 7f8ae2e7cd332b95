"""Progress reports: counts of `track`, and bars on terminals only."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from rich.console import Console

from yt8m.runtime import progress
from yt8m.runtime.progress import ProgressTask, Unit, no_progress, terminal_progress, track


class Recorder:
    """A `ProgressFactory` that records tasks and reports."""

    def __init__(self) -> None:
        self.tasks: list[tuple[str, float | None, Unit]] = []
        self.completed: list[float] = []

    @contextmanager
    def __call__(self, description: str, total: float | None = None, unit: Unit = "items") -> Iterator[ProgressTask]:
        self.tasks.append((description, total, unit))
        yield lambda completed, total=None, note="": self.completed.append(completed)


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """The output to a terminal of 100 columns."""
    text = io.StringIO()
    monkeypatch.setattr(progress, "err", Console(file=text, force_terminal=True, width=100, color_system=None))
    return text


def test_track_reports_an_item_as_done_when_the_next_is_requested() -> None:
    recorder = Recorder()
    items = track("abc", "letters", recorder)
    assert (next(items), recorder.completed) == ("a", [])
    assert (next(items), recorder.completed) == ("b", [1])
    assert list(items) == ["c"]
    assert recorder.completed == [1, 2, 3]
    assert recorder.tasks == [("letters", 3, "items")]


@pytest.mark.parametrize("total", [None, 7])
def test_items_without_a_length_have_the_given_total(total: int | None) -> None:
    recorder = Recorder()
    assert list(track(iter([1, 2]), "numbers", recorder, total)) == [1, 2]
    assert recorder.tasks == [("numbers", total, "items")]


def test_track_without_items_reports_nothing() -> None:
    recorder = Recorder()
    assert list(track([], "none", recorder)) == []
    assert (recorder.tasks, recorder.completed) == ([("none", 0, "items")], [])


def test_no_progress_writes_nothing(screen: io.StringIO, capsys: pytest.CaptureFixture[str]) -> None:
    with no_progress("index", 10, "bytes") as report:
        report(5, total=20, note="half")
    assert screen.getvalue() == ""
    assert capsys.readouterr() == ("", "")


def test_a_terminal_shows_description_counts_and_note(screen: io.StringIO) -> None:
    with terminal_progress("index", 10) as report:
        report(4, note="loss 0.5")
    shown = screen.getvalue()
    assert "index" in shown
    assert "4/10" in shown
    assert "40%" in shown
    assert "loss 0.5" in shown


def test_a_total_can_be_reported_later(screen: io.StringIO) -> None:
    with terminal_progress("download", unit="bytes") as report:
        report(1_000_000)
        report(2_000_000, total=4_000_000)
    assert "2.0/4.0 MB" in screen.getvalue()


def test_there_is_no_bar_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    monkeypatch.setattr(progress, "err", Console(file=text, force_terminal=False))
    with terminal_progress("index", 10) as report:
        report(10)
    assert text.getvalue() == ""
