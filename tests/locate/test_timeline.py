"""One video in the terminal: what a line says is what the probabilities say, at any width, with and without colors."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from yt8m.locate.timeline import Timeline, block, clock, color, spans, strongest, write_svg


def printed(timeline: Timeline, width: int = 80, **options: object) -> str:
    file = io.StringIO()
    Console(file=file, width=width, highlight=False, **options).print(timeline)
    return file.getvalue()


def make_timeline(num_frames: int, *rows: tuple[str, list[float]], threshold: float = 0.5) -> Timeline:
    starts = np.arange(0, num_frames, 5, dtype=np.int32)
    columns = np.array([probabilities for _, probabilities in rows], np.float32).T
    return Timeline("SjJ3", num_frames, tuple(name for name, _ in rows), starts, columns, threshold)


def test_a_timeline_worked_out_by_hand() -> None:
    # 12 segments, of which the challenge rates numbers 6 to 9; the last one has 3 seconds.
    surfing = [0.0, 0.06, 0.07, 0.5, 0.49, 0.0, 0.8, 0.95, 1.0, 0.2, 0.7, 0.9]
    tennis = [0.1] * 11 + [0.3]
    shown = printed(make_timeline(58, ("Surfing", surfing), ("Ski, Alpine [x]", tennis)))
    assert shown.splitlines() == [
        "SjJ3, 0:58",
        "",
        "concept                        peak  on screen",
        "Surfing            ▁▄▄ ▆██▂▆▇  1.00  0:15-0:20, 0:30-0:45, 0:50-0:58",
        "Ski, Alpine [x]  ▁▁▁▁▁▁▁▁▁▁▁▂  0.30  -",
        "                 ┬╌╌╌╌╌┬───╌╌",
        "                 0:00  0:30",
        "",
        "a column is 5 s, on screen: 0.5 or more, ╌ never rated",
    ]


def test_several_segments_a_column_where_the_line_is_short() -> None:
    # 40 segments and 25 columns left for them: two a column, of which the higher one counts.
    high = [0.0] * 40
    high[0] = high[7] = high[38] = 1.0
    assert printed(make_timeline(200, ("Surfing", high)), width=63).splitlines()[3:] == [
        "Surfing  █  █               █  1.00  0:00-0:05, 0:35-0:40, +1",
        "         ┬╌╌───┬─────┬─────┬╌",
        "         0:00  1:00  2:00  3:00",
        "",
        "a column is 10 s, on screen: 0.5 or more, ╌ never rated",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (5, "0:05"), (65, "1:05"), (3599, "59:59"), (3600, "1:00:00"), (36_065, "10:01:05")]
)  # fmt: skip
def test_clock(seconds: int, text: str) -> None:
    assert clock(seconds) == text


def test_blocks_and_colors_go_up_with_the_probability() -> None:
    levels = [block(number / 16) for number in range(17)]
    assert "".join(levels) == " ▁▁▂▂▃▃▄▄▅▅▆▆▇▇██"
    assert [color(p) for p in (0, 0.24, 0.25, 0.5, 0.74, 0.75, 1)] == [
        *("bright_black", "bright_black", "blue", "cyan", "cyan", "green", "green")
    ]


def test_the_strongest_are_those_of_the_highest_peaks() -> None:
    starts = np.array([0, 5], np.int32)
    probabilities = np.array([[0.1, 0.9, 0.3, 0.5], [0.2, 0.0, 0.3, 0.9]], np.float32)
    names = ["a", "b", "c", "d"]
    found = strongest("v", 10, names, starts, probabilities, top=3, threshold=0.25)
    assert found.names == ("b", "d", "c")
    np.testing.assert_array_equal(found.probabilities, probabilities[:, [1, 3, 2]])
    assert (found.video_id, found.num_frames, found.threshold) == ("v", 10, 0.25)
    assert strongest("v", 10, names, starts, probabilities).names == ("b", "d", "c", "a")


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 5))
def test_spans_cover_what_is_on_and_nothing_else(is_on: list[bool], last: int) -> None:
    num_frames = 5 * (len(is_on) - 1) + last
    starts = np.arange(0, num_frames, 5, dtype=np.int32)
    expected = [second for second in range(num_frames) if is_on[second // 5]]
    covered: list[int] = []
    listed = spans(starts, np.array(is_on), num_frames)
    for span in listed:
        first, end = (60 * int(time[:-3]) + int(time[-2:]) for time in span.split("-"))
        covered += range(first, end)
    assert covered == expected
    # As few as possible.
    assert len(listed) == sum(now and not before for before, now in zip([False, *is_on], is_on, strict=False))


NAMES = st.lists(st.text("ab [/]é日本", min_size=1, max_size=40), min_size=1, max_size=4)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 4000), st.integers(60, 200), NAMES, st.integers(0, 2**32 - 1))
def test_at_any_width_bars_are_the_highest_of_their_columns(
    num_frames: int, width: int, names: list[str], seed: int
) -> None:
    count = -(-num_frames // 5)
    probabilities = np.random.default_rng(seed).random((len(names), count), np.float32) ** 3
    timeline = make_timeline(num_frames, *zip(names, probabilities.tolist(), strict=True))
    lines = printed(timeline, width).splitlines()
    assert len(lines) == 7 + len(names)
    assert all(cell_len(line) <= width for line in lines)
    seconds = int(lines[-1].split()[3])
    at = lines[-4].index("┬")
    per_column = seconds // 5
    num_columns = -(-count // per_column)
    assert seconds % 5 == 0
    # With a segment a column less, the bar would not fit: names and times have 20 and 22 columns, peaks and gaps 10.
    assert per_column == 1 or -(-count // (per_column - 1)) > max(8, width - 52)
    for line, of_concept in zip(lines[3:], probabilities, strict=False):
        cells = [character for character in line for _ in range(cell_len(character))]
        bar = "".join(cells[at : at + num_columns])
        expected = [max(of_concept[k : k + per_column].tolist()) for k in range(0, count, per_column)]
        assert bar == "".join(" ▁▂▃▄▅▆▇█"[int(p * 8 + 0.5)] for p in expected)
        assert f"{of_concept.max():.2f}" in line[at - len(cells) + num_columns :]
    # Each tick is in the column of the time below it, and unrated columns are dashed.
    ticks = [column for column, sign in enumerate(lines[-4][at:]) if sign == "┬"]
    times = lines[-3].split()
    assert [lines[-3].index(time, at + tick) - at for tick, time in zip(ticks, times, strict=True)] == ticks
    for tick, time in zip(ticks, times, strict=True):
        parts = [int(part) for part in time.split(":")]
        assert sum(part * 60**power for power, part in enumerate(reversed(parts))) // seconds == tick
    for column, sign in enumerate(lines[-4][at:]):
        rated = any(6 <= k < count - 2 for k in range(column * per_column, min((column + 1) * per_column, count)))
        assert sign in ("┬", "─" if rated else "╌")


def test_colors_add_nothing_but_color() -> None:
    timeline = make_timeline(58, ("Surfing", [0.9] * 12), ("Tennis", [0.3] * 12))
    plain = printed(timeline)
    colored = printed(timeline, force_terminal=True, color_system="standard")
    assert "\x1b[32m" in colored
    assert "\x1b[34m" in colored
    assert printed(timeline, force_terminal=True, color_system="standard", no_color=True).count("\x1b[3") == 0
    # What is never rated is dim, and only there.
    dim, bright = r"(\x1b\[2;32m▇\x1b\[0m)", r"(\x1b\[32m▇\x1b\[0m)"
    assert re.search(rf"Surfing\x1b\[0m  {dim}{{6}}{bright}{{4}}{dim}{{2}}  ", colored)
    assert "\x1b" not in plain
    assert re.sub(r"\x1b\[[\d;]*m", "", colored) == plain


def test_a_picture_holds_what_the_terminal_shows_and_fetches_nothing(tmp_path: Path) -> None:
    timeline = make_timeline(58, ("Surfing & co", [0.9] * 12), ("Tennis", [0.3] * 12))
    path = tmp_path / "new" / "timeline.svg"
    write_svg(path, [timeline, timeline], "yt8m locate SjJ3")
    drawn = path.read_text(encoding="utf-8")
    words = "".join(ET.fromstring(drawn).itertext()).replace("\xa0", " ")
    for expected in ("yt8m locate SjJ3", "Surfing & co", "0.90", "0:00-0:58", "0:30", "never rated"):
        assert expected in words
    assert words.count("Surfing & co") == 2
    assert words.count("▇") == 24
    assert drawn.count("://") == drawn.count('xmlns="http://www.w3.org/2000/svg"') == 1
    assert "@font-face" not in drawn
    assert "url(" not in drawn.replace("url(#", "")
    before = path.read_bytes()
    write_svg(path, [timeline, timeline], "yt8m locate SjJ3")
    assert path.read_bytes() == before
