"""One video in the terminal: its strongest concepts, and when they are on screen.

A concept is a row: its name, a bar with a character a segment (several where the video is too long for the line, and then
the highest of them counts), its highest probability, and the times at which it is on screen. Heights say what colours say,
so nothing is lost where there are none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from yt8m.dataset.sampling import CROP_START_SECONDS, num_evaluated_segments
from yt8m.files import written_atomically
from yt8m.shards.records import SEGMENT_SECONDS

Number = TypeVar("Number", np.bool_, np.float32)

THRESHOLD = 0.5
"""A concept is on screen in the segments that are more likely to show it than not."""

BLOCKS = " ▁▂▃▄▅▆▇█"
"""Probability 0 to 1, in steps of an eighth."""

COLORS = ("bright_black", "blue", "cyan", "green")
"""Probability 0 to 1, in steps of a quarter."""

_TICKS = (15, 30, 60, 120, 300, 600, 900, 1800, 3600)
_NAME_COLUMNS = 20
_SPAN_COLUMNS = 22
_LEAST_BAR = 8
_GAP = 2


@dataclass(frozen=True, eq=False)
class Timeline:
    """Concepts of a video over its time, to be printed by rich as wide as the terminal is.

    Args:
        video_id: The video.
        num_frames: Its frames, that is its seconds.
        names: The concepts, K.
        starts: First second of all segments of the video, in steps of 5 from 0, int (n,).
        probabilities: From 0 to 1, float (n, K).
        threshold: A concept is on screen in segments of at least this probability.
    """

    video_id: str
    num_frames: int
    names: tuple[str, ...]
    starts: NDArray[np.int32]
    probabilities: NDArray[np.float32]
    threshold: float = THRESHOLD

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """A line each for the title, the headings, every concept, the axis, its times, and what the signs mean."""
        peaks = self.probabilities.max(axis=0, initial=0)
        times = [spans(self.starts, column >= self.threshold, self.num_frames) for column in self.probabilities.T]
        longest_name = max([len("concept"), *map(cell_len, self.names)])
        longest_times = max([len("on screen"), *(len(", ".join(of_concept)) for of_concept in times)])
        # What the bars leave goes to the times, and a part of the line is theirs in any case.
        name_columns = min(longest_name, _NAME_COLUMNS, max(options.max_width // 4, len("concept")))
        rest = options.max_width - name_columns - len("peak") - 3 * _GAP
        span_columns = min(longest_times, max(min(_SPAN_COLUMNS, options.max_width // 3), rest - len(self.starts)))
        per_column = max(1, -(-len(self.starts) // max(_LEAST_BAR, rest - span_columns)))
        num_columns = -(-len(self.starts) // per_column)
        bar_columns = max(num_columns, len("0:00"))
        span_columns = max(span_columns, rest - bar_columns)
        is_evaluated = self._evaluated(per_column)
        gap = " " * _GAP

        yield Text(f"{self.video_id}, {clock(self.num_frames)}", style="bold")
        yield Text()
        between = " " * (name_columns - len("concept") + _GAP + bar_columns + _GAP)
        yield Text.assemble(*((part, "dim") for part in ("concept", between, "peak", gap, "on screen")))
        for name, column, peak, of_concept in zip(self.names, self.probabilities.T, peaks, times, strict=True):
            label = Text(name, style="bold" if of_concept else "")
            label.truncate(name_columns, overflow="ellipsis", pad=True)
            bar = _bar(column, per_column, is_evaluated)
            bar.pad_right(bar_columns - num_columns)
            listed = Text(_shortened(of_concept, span_columns) or "-", style="" if of_concept else "dim")
            yield Text.assemble(label, gap, bar, gap, (f"{peak:.2f}", color(float(peak))), gap, listed)
        indent = " " * (name_columns + _GAP)
        for signs in _axis(per_column, is_evaluated):
            yield Text.assemble(indent, *((sign, "dim") for sign in signs))
        yield Text()
        notes = [f"a column is {per_column * SEGMENT_SECONDS} s", f"on screen: {self.threshold:g} or more"]
        if not is_evaluated.all():
            notes.append("╌ never rated")
        yield Text(", ".join(notes), style="dim")

    def _evaluated(self, per_column: int) -> NDArray[np.bool_]:
        """Which columns hold a segment that the challenge rates, (columns,)."""
        end = CROP_START_SECONDS + SEGMENT_SECONDS * int(num_evaluated_segments(np.array([self.num_frames]))[0])
        return _columns((self.starts >= CROP_START_SECONDS) & (self.starts < end), per_column)


def strongest(
    video_id: str,
    num_frames: int,
    names: Sequence[str],
    starts: NDArray[np.int32],
    probabilities: NDArray[np.float32],
    top: int = 10,
    threshold: float = THRESHOLD,
) -> Timeline:
    """The timeline of a video's strongest concepts: those of the highest probability in any segment, highest first.

    Args:
        video_id: The video.
        num_frames: Its frames.
        names: All concepts, C.
        starts: First second of all its segments, int (n,).
        probabilities: From 0 to 1, float (n, C).
        top: Concepts to show.
        threshold: See `Timeline`.
    """
    chosen = np.argsort(-probabilities.max(axis=0, initial=0), kind="stable")[:top]
    shown = tuple(names[column] for column in chosen.tolist())
    return Timeline(video_id, num_frames, shown, starts, probabilities[:, chosen], threshold)


def spans(starts: NDArray[np.int32], is_on: NDArray[np.bool_], num_frames: int) -> list[str]:
    """Times at which something is on, as `0:30-0:55`: segments that follow one another are one span.

    Args:
        starts: First second of all segments, increasing in steps of 5, int (n,).
        is_on: Whether it is on, (n,).
        num_frames: Where the last segment ends, if the video ends before it.
    """
    edges = np.flatnonzero(np.diff(is_on, prepend=False, append=False))
    return [
        f"{clock(int(starts[first]))}-{clock(min(int(starts[last - 1]) + SEGMENT_SECONDS, num_frames))}"
        for first, last in edges.reshape(-1, 2).tolist()
    ]


def clock(seconds: int) -> str:
    """A time as people write it: 1:05, or 1:01:05."""
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def color(probability: float) -> str:
    """Color of a probability, by its quarter."""
    return COLORS[min(int(probability * len(COLORS)), len(COLORS) - 1)]


def block(probability: float) -> str:
    """Character of a probability, as high as it is: the nearest eighth."""
    return BLOCKS[min(int(probability * 8 + 0.5), 8)]


def _columns(values: NDArray[Number], per_column: int) -> NDArray[Number]:
    """The highest of every `per_column` values, (n,) to (columns,)."""
    highest: NDArray[Number] = np.maximum.reduceat(values, np.arange(0, len(values), per_column))
    return highest


def _bar(probabilities: NDArray[np.float32], per_column: int, is_evaluated: NDArray[np.bool_]) -> Text:
    bar = Text()
    for probability, evaluated in zip(_columns(probabilities, per_column).tolist(), is_evaluated.tolist(), strict=True):
        bar.append(block(probability), style=color(probability) + ("" if evaluated else " dim"))
    return bar


def _shortened(listed: Sequence[str], columns: int) -> str:
    """As many spans as have room, and how many there are more."""
    for count in range(len(listed), 0, -1):
        text = ", ".join(listed[:count]) + (f", +{len(listed) - count}" if count < len(listed) else "")
        if len(text) <= columns or count == 1:
            return text
    return ""


def _axis(per_column: int, is_evaluated: NDArray[np.bool_]) -> tuple[list[str], list[str]]:
    """The line below the bars and the times below it, in pieces; ticks are as near as their times have room."""
    seconds = per_column * SEGMENT_SECONDS
    duration = len(is_evaluated) * seconds
    line = ["─" if evaluated else "╌" for evaluated in is_evaluated.tolist()]
    room = (len(clock(duration)) + 1) * seconds
    step = next((tick for tick in _TICKS if tick >= room), -(-room // 3600) * 3600)
    labels: list[str] = []
    end = 0
    for time in range(0, duration, step):
        column = time // seconds
        line[column] = "┬"
        labels += [" " * (column - end), clock(time)]
        end = column + len(labels[-1])
    return line, labels


# ------------------------------------------------------------------------------------------------------------ a picture

_THEME = TerminalTheme(
    (250, 250, 248),
    (40, 44, 52),
    [(40, 44, 52), (190, 60, 50), (60, 130, 50), (160, 110, 0), (60, 100, 190), (150, 70, 150), (0, 135, 150), (90, 90, 90)],
    [(165, 168, 175), (190, 60, 50), (60, 130, 50), (160, 110, 0), (60, 100, 190), (150, 70, 150), (0, 135, 150), (0, 0, 0)],
)  # fmt: skip

_SVG = """\
<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" xmlns="http://www.w3.org/2000/svg">
    <style>
    .{unique_id}-matrix {{
        font-family: "DejaVu Sans Mono", Menlo, Consolas, monospace;
        font-size: {char_height}px;
        line-height: {line_height}px;
    }}
    .{unique_id}-title {{ font-size: 16px; font-family: "DejaVu Sans Mono", Menlo, Consolas, monospace; }}
    {styles}
    </style>
    <defs>
    <clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" /></clipPath>
    {lines}
    </defs>
    {chrome}
    <g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
    {backgrounds}
    <g class="{unique_id}-matrix">{matrix}</g>
    </g>
</svg>
"""
"""A picture of a terminal, which fetches nothing from anywhere, not even a font."""


def write_svg(path: Path, timelines: Sequence[Timeline], title: str, columns: int = 80) -> None:
    """Draw timelines as a terminal shows them.

    Args:
        path: The SVG file.
        timelines: One below the other.
        title: What stands above them.
        columns: Width of the terminal.

    Raises:
        Yt8mError: The disk is full or the folder cannot be written to.
    """
    with Path("/dev/null").open("w") as nowhere:
        console = Console(record=True, width=columns, file=nowhere, force_terminal=True, color_system="truecolor")
        for number, timeline in enumerate(timelines):
            if number:
                console.print()
            console.print(timeline)
    drawn = console.export_svg(title=title, theme=_THEME, code_format=_SVG, font_aspect_ratio=0.602, unique_id="yt8m")
    with written_atomically(path) as temporary:
        temporary.write_text(drawn, encoding="utf-8")
