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


# --- Lines -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that progress reports see, in seconds; change its only element."""
    now = [1000.0]
    monkeypatch.setattr(progress, "LINE_SECONDS", 30.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress._Lines, "last_line", now[0])
    return now


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """The output to a pipe, which is narrower than the lines."""
    text = io.StringIO()
    monkeypatch.setattr(progress, "err", Console(file=text, force_terminal=False, soft_wrap=True, width=20))
    return text


def test_a_pipe_receives_a_line_every_half_minute(clock: list[float], pipe: io.StringIO) -> None:
    with terminal_progress("pretrain dbof", 1500) as report:
        report(500)  # resumed at this step
        for step in range(501, 1500):
            clock[0] += 0.125
            report(step, note="loss 0.5")
    assert pipe.getvalue().splitlines() == [
        "pretrain dbof: 740 of 1,500 (49%), 30 s, 1 min 35 s left, loss 0.5",
        "pretrain dbof: 980 of 1,500 (65%), 1 min 0 s, 1 min 5 s left, loss 0.5",
        "pretrain dbof: 1,220 of 1,500 (81%), 1 min 30 s, 35 s left, loss 0.5",
        "pretrain dbof: 1,460 of 1,500 (97%), 2 min 0 s, 5 s left, loss 0.5",
    ]


def test_short_tasks_share_the_half_minute(clock: list[float], pipe: io.StringIO) -> None:
    for number in range(7):
        with terminal_progress(f"fetch {number}", unit="bytes") as report:
            clock[0] += 11
            report(2_500_000)
    assert pipe.getvalue() == "fetch 2: 2.50 MB, 11 s\nfetch 5: 2.50 MB, 11 s\n"


def test_a_short_task_prints_no_line(clock: list[float], pipe: io.StringIO) -> None:
    with terminal_progress("index", 10) as report:
        clock[0] += 29
        report(10)
    assert pipe.getvalue() == ""


@pytest.mark.parametrize("is_terminal", [True, False])
def test_quiet_output_contains_no_progress(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    text = io.StringIO()
    monkeypatch.setattr(progress, "err", Console(file=text, force_terminal=is_terminal, quiet=True))
    with terminal_progress("index", 10) as report:
        clock[0] += 100
        report(10)
    assert text.getvalue() == ""
