"""Timelines at any width, with and without colors, in any encoding, as JSON and as SVG."""

from __future__ import annotations

import io
import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from yt8m.locate.timeline import BLOCKS, Timeline, block, clock, color, find_spans, write_svg


def printed(timeline: Timeline, width: int = 80, **options: object) -> str:
    file = io.StringIO()
    Console(file=file, width=width, highlight=False, **options).print(timeline)
    return file.getvalue()


def printed_encoded(timeline: Timeline, encoding: str) -> str:
    """The timeline as printed to a pipe of this encoding; raises an error if it cannot be encoded."""
    written = io.BytesIO()
    file = io.TextIOWrapper(written, encoding=encoding)
    Console(file=file, width=80, highlight=False).print(timeline)
    file.flush()
    return written.getvalue().decode(encoding)


def make_timeline(num_frames: int, *rows: tuple[str, list[float]], threshold: float = 0.5) -> Timeline:
    starts = np.arange(0, num_frames, 5, dtype=np.int32)
    columns = np.array([probabilities for _, probabilities in rows], np.float32).T
    names, label_ids = tuple(name for name, _ in rows), tuple(range(7, 7 + len(rows)))
    return Timeline("SjJ3", num_frames, label_ids, names, starts, columns, threshold, True)


def test_lines_of_a_small_timeline() -> None:
    # 12 segments, of which the challenge rates numbers 6 to 9; the last one is 3 seconds long.
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
        "probability  ▂ below 0.25  ▄ below 0.5  ▆ below 0.75  █ to 1",
        "a column is 5 s, on screen: 0.5 or more, ╌ never rated",
    ]


def test_values_that_are_not_calibrated_are_called_scores() -> None:
    timeline = replace(make_timeline(58, ("Surfing", [0.5] * 12)), is_calibrated=False)
    assert "score  ▂ below 0.25" in printed(timeline)
    assert "probabilit" not in printed(timeline)
    [concept] = timeline.as_dict()["concepts"]
    assert (concept["scores"], "probabilities" in concept) == ([0.5] * 12, False)


def test_columns_contain_several_segments_on_a_narrow_terminal() -> None:
    # 40 segments in 25 columns: two per column, of which the maximum is shown.
    high = [0.0] * 40
    high[0] = high[7] = high[38] = 1.0
    assert printed(make_timeline(200, ("Surfing", high)), width=63).splitlines()[3:] == [
        "Surfing  █  █               █  1.00  0:00-0:05, 0:35-0:40, +1",
        "         ┬╌╌───┬─────┬─────┬╌",
        "         0:00  1:00  2:00  3:00",
        "",
        "probability  ▂ below 0.25  ▄ below 0.5  ▆ below 0.75  █ to 1",
        "a column is 10 s, on screen: 0.5 or more, ╌ never rated",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (5, "0:05"), (65, "1:05"), (3599, "59:59"), (3600, "1:00:00"), (36_065, "10:01:05")]
)  # fmt: skip
def test_seconds_are_formatted_as_a_clock(seconds: int, text: str) -> None:
    assert clock(seconds) == text


def test_blocks_and_colors_depend_on_the_probability() -> None:
    levels = [block(number / 16) for number in range(17)]
    assert "".join(levels) == " ▁▁▂▂▃▃▄▄▅▅▆▆▇▇██"
    assert "".join(block(number / 8) for number in range(9)) == BLOCKS
    assert [color(p) for p in (0, 0.24, 0.25, 0.5, 0.74, 0.75, 1)] == [
        *("bright_black", "bright_black", "blue", "cyan", "cyan", "green", "green")
    ]


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 5))
def test_spans_cover_exactly_the_positive_seconds(is_on: list[bool], last: int) -> None:
    num_frames = 5 * (len(is_on) - 1) + last
    starts = np.arange(0, num_frames, 5, dtype=np.int32)
    expected = [second for second in range(num_frames) if is_on[second // 5]]
    spans = find_spans(starts, np.array(is_on), num_frames)
    assert [second for start, end in spans for second in range(start, end)] == expected
    # The number of spans is minimal.
    assert len(spans) == sum(now and not before for before, now in zip([False, *is_on], is_on, strict=False))


NAMES = st.lists(st.text("ab [/]é日本", min_size=1, max_size=40), min_size=1, max_size=4)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 4000), st.integers(60, 200), NAMES, st.integers(0, 2**32 - 1))
def test_at_any_width_a_bar_shows_the_maximum_of_each_column(
    num_frames: int, width: int, names: list[str], seed: int
) -> None:
    count = -(-num_frames // 5)
    probabilities = np.random.default_rng(seed).random((len(names), count), np.float32) ** 3
    timeline = make_timeline(num_frames, *zip(names, probabilities.tolist(), strict=True))
    lines = printed(timeline, width).splitlines()
    assert len(lines) == 8 + len(names)
    assert all(cell_len(line) <= width for line in lines)
    seconds = int(lines[-1].split()[3])
    at = lines[-5].index("┬")
    per_column = seconds // 5
    num_columns = -(-count // per_column)
    assert seconds % 5 == 0
    # With one segment less per column, the bar would not fit: names have 20 columns, times 22, peaks and gaps 10.
    assert per_column == 1 or -(-count // (per_column - 1)) > max(8, width - 52)
    for line, of_concept in zip(lines[3:], probabilities, strict=False):
        cells = [character for character in line for _ in range(cell_len(character))]
        bar = "".join(cells[at : at + num_columns])
        expected = [max(of_concept[k : k + per_column].tolist()) for k in range(0, count, per_column)]
        assert bar == "".join(" ▁▂▃▄▅▆▇█"[int(p * 8 + 0.5)] for p in expected)
        assert f"{of_concept.max():.2f}" in line[at - len(cells) + num_columns :]
    # Each tick is above its time, and columns that are never rated are dashed.
    ticks = [column for column, sign in enumerate(lines[-5][at:]) if sign == "┬"]
    times = lines[-4].split()
    assert [lines[-4].index(time, at + tick) - at for tick, time in zip(ticks, times, strict=True)] == ticks
    for tick, time in zip(ticks, times, strict=True):
        parts = [int(part) for part in time.split(":")]
        assert sum(part * 60**power for power, part in enumerate(reversed(parts))) // seconds == tick
    for column, sign in enumerate(lines[-5][at:]):
        rated = any(6 <= k < count - 2 for k in range(column * per_column, min((column + 1) * per_column, count)))
        assert sign in ("┬", "─" if rated else "╌")


def test_colors_do_not_change_the_text() -> None:
    timeline = make_timeline(58, ("Surfing", [0.9] * 12), ("Tennis", [0.3] * 12))
    plain = printed(timeline)
    colored = printed(timeline, force_terminal=True, color_system="standard")
    assert "\x1b[32m" in colored
    assert "\x1b[34m" in colored
    assert printed(timeline, force_terminal=True, color_system="standard", no_color=True).count("\x1b[3") == 0
    # The legend has the colors of the bars.
    for code, sign in (("90", "▂"), ("34", "▄"), ("36", "▆"), ("32", "█")):
        assert f"\x1b[{code}m  {sign}\x1b[0m" in colored
    # Only segments that are never rated are dim.
    dim, bright = r"(\x1b\[2;32m▇\x1b\[0m)", r"(\x1b\[32m▇\x1b\[0m)"
    assert re.search(rf"Surfing\x1b\[0m  {dim}{{6}}{bright}{{4}}{dim}{{2}}  ", colored)
    assert "\x1b" not in plain
    assert re.sub(r"\x1b\[[\d;]*m", "", colored) == plain


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp437"])
def test_bars_are_ascii_in_an_encoding_without_blocks(encoding: str) -> None:
    surfing = [0.0, 0.06, 0.07, 0.5, 0.49, 0.0, 0.8, 0.95, 1.0, 0.2, 0.7, 0.9]
    timeline = make_timeline(58, ("Surfing", surfing), ("Café 日本", [0.1] * 12))
    cafe = "Café" if encoding != "ascii" else "Caf?"
    assert printed_encoded(timeline, encoding).splitlines() == [
        "SjJ3, 0:58",
        "",
        "concept                peak  on screen",
        "Surfing    .== *@@:*#  1.00  0:15-0:20, 0:30-0:45, 0:50-0:58",
        f"{cafe} ??  ............  0.10  -",
        "         +.....+---..",
        "         0:00  0:30",
        "",
        "probability  : below 0.25  = below 0.5  * below 0.75  @ to 1",
        "a column is 5 s, on screen: 0.5 or more, . never rated",
    ]


def test_ascii_output_shortens_names_and_replaces_other_characters() -> None:
    timeline = replace(make_timeline(58, ("A concept with a long name", [0.1] * 12)), video_id="日本")
    lines = printed_encoded(timeline, "ascii").splitlines()
    assert lines[0] == "??, 0:58"
    assert lines[3] == "A concept with a lo.  ............  0.10  -"


def test_bars_are_blocks_in_utf_8() -> None:
    timeline = make_timeline(58, ("A concept with a long name", [0.9] * 12))
    shown = printed_encoded(timeline, "utf-8")
    assert shown == printed(timeline)
    assert shown.splitlines()[3].startswith("A concept with a lo…  ▇▇▇▇▇▇▇▇▇▇▇▇  0.90")


def test_the_dictionary_can_be_written_as_json() -> None:
    timeline = make_timeline(13, ("Surfing", [0.5, 0.123456, 1.0]), ("Tennis", [0.0, 0.1, 0.30009]))
    assert json.loads(json.dumps(timeline.as_dict())) == {
        "video_id": "SjJ3",
        "seconds": 13,
        "threshold": 0.5,
        "starts": [0, 5, 10],
        "concepts": [
            {
                "label_id": 7,
                "name": "Surfing",
                "peak": 1.0,
                "spans": [[0, 5], [10, 13]],
                "probabilities": [0.5, 0.1235, 1.0],
            },
            {"label_id": 8, "name": "Tennis", "peak": 0.3001, "spans": [], "probabilities": [0.0, 0.1, 0.3001]},
        ],
    }


def test_a_picture_contains_the_timelines_and_refers_to_no_other_file(tmp_path: Path) -> None:
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
    for level in ("below 0.25", "below 0.5", "below 0.75", "to 1"):
        assert level in words
    before = path.read_bytes()
    write_svg(path, [timeline, timeline], "yt8m locate SjJ3")
    assert path.read_bytes() == before


def test_a_picture_has_a_dark_variant_of_every_style(tmp_path: Path) -> None:
    timeline = make_timeline(58, ("Surfing", [0.1, 0.3, 0.6, 0.9] * 3))
    write_svg(tmp_path / "timeline.svg", [timeline], "title")
    [style] = [
        element.text or "" for element in ET.parse(tmp_path / "timeline.svg").iter() if element.tag.endswith("style")
    ]
    light, dark = style.split("@media (prefers-color-scheme: dark)")
    fills = [dict(re.findall(r"\.(yt8m-r\d+) \{ fill: (#[0-9a-f]{6})", part)) for part in (light, dark)]
    assert fills[0].keys() == fills[1].keys()
    assert len(fills[0]) >= 6
    assert all(fills[0][name] != fills[1][name] for name in fills[0])
    assert ".yt8m-frame > rect { fill: #0d1117; }" in dark
    assert ".yt8m-title { fill: #d6dbe1; }" in dark


def test_no_color_does_not_change_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timeline = make_timeline(58, ("Surfing", [0.9] * 12))
    write_svg(tmp_path / "expected.svg", [timeline], "title")
    monkeypatch.setenv("NO_COLOR", "1")
    write_svg(tmp_path / "found.svg", [timeline], "title")
    assert (tmp_path / "found.svg").read_bytes() == (tmp_path / "expected.svg").read_bytes()


def test_control_characters_are_not_printed_and_the_svg_stays_well_formed(tmp_path: Path) -> None:
    timeline = make_timeline(58, ("\x1b[31mred\x07 <&>\x9b", [0.9] * 12))
    timeline = replace(timeline, video_id="a\x1b]0;t\x07")
    shown = printed(timeline)
    assert shown.startswith("a\ufffd]0;t\ufffd, 0:58\n")
    assert "\ufffd[31mred\ufffd <&>\ufffd" in shown
    write_svg(tmp_path / "t.svg", [timeline], "title \x1b\x00 & <b>")
    texts = "".join(ET.parse(tmp_path / "t.svg").getroot().itertext())
    assert "\ufffd[31mred\ufffd\u00a0<&>\ufffd" in texts
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", (tmp_path / "t.svg").read_text(encoding="utf-8"))
