"""The timeline of a video: its most probable concepts and when they are on screen, for the terminal, as JSON and as SVG.

On the terminal a concept is one row: its name, a bar with one character per segment (or the maximum of several, if the
video is too long for the line), its highest probability, and the times at which it is on screen. The height of the bar
carries the same information as its color.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from yt8m.dataset.sampling import CROP_START_SECONDS, num_evaluated_segments
from yt8m.errors import printable
from yt8m.files import written_atomically
from yt8m.ranking import value_name
from yt8m.shards.ids import SEGMENT_SECONDS

Value = TypeVar("Value", np.bool_, np.float32)

THRESHOLD = 0.5
"""A concept is on screen in segments of at least this probability."""


BLOCKS = " ▁▂▃▄▅▆▇█"
"""Probability 0 to 1, in steps of an eighth."""

_AXIS, _NEVER_RATED, _TICK = "─╌┬"
_TO_ASCII = str.maketrans(BLOCKS + "─╌┬…", " .:-=+*#@-.+.")
"""For outputs whose encoding lacks these characters."""

COLORS = ("bright_black", "blue", "cyan", "green")
"""Probability 0 to 1, in steps of a quarter."""

_TICK_SECONDS = (15, 30, 60, 120, 300, 600, 900, 1800, 3600)
_MAX_NAME_COLUMNS = 20
_MAX_SPAN_COLUMNS = 22
_MIN_BAR_COLUMNS = 8
_GAP = 2


@dataclass(frozen=True, eq=False)
class Timeline:
    """Concepts of a video over time; rich prints it as wide as the terminal.

    Args:
        video_id: The video.
        num_frames: Number of frames, which is its length in seconds.
        label_ids: Dataset ids of the n concepts.
        names: Their names, n.
        starts: Start of each segment of the video in seconds, in steps of 5 from 0, int (S,).
        probabilities: From 0 to 1, float (S, n).
        threshold: A concept is on screen in segments of at least this probability.
        is_calibrated: Whether the probabilities are calibrated; otherwise they are called scores.
    """

    video_id: str
    num_frames: int
    label_ids: tuple[int, ...]
    names: tuple[str, ...]
    starts: NDArray[np.int32]
    probabilities: NDArray[np.float32]
    threshold: float = THRESHOLD
    is_calibrated: bool = False

    def as_dict(self) -> dict[str, Any]:
        """The timeline as plain values for JSON, times in seconds, probabilities (or scores) rounded to 4 digits."""
        probabilities = [[round(value, 4) for value in column] for column in self.probabilities.T.tolist()]
        concepts = zip(self.label_ids, self.names, self.spans(), probabilities, strict=True)
        return {
            "video_id": self.video_id,
            "seconds": self.num_frames,
            "threshold": self.threshold,
            "starts": self.starts.tolist(),
            "concepts": [
                {
                    "label_id": label_id,
                    "name": name,
                    "peak": max(values, default=0.0),
                    "spans": [list(span) for span in spans],
                    "probabilities" if self.is_calibrated else "scores": values,
                }
                for label_id, name, spans, values in concepts
            ],
        }

    def spans(self) -> list[list[tuple[int, int]]]:
        """Start and end in seconds of each time span that each concept is on screen, one list per concept."""
        return [find_spans(self.starts, column >= self.threshold, self.num_frames) for column in self.probabilities.T]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines in the characters of the output's encoding."""
        video_id, *names = (_encodable(printable(text), options.encoding) for text in (self.video_id, *self.names))
        own_characters = "".join(map(chr, _TO_ASCII))
        for line in self._lines(video_id, names, options.max_width):
            if _encodable(own_characters, options.encoding) != own_characters:
                line.plain = line.plain.translate(_TO_ASCII)
            yield line

    def _lines(self, video_id: str, names: Sequence[str], width: int) -> Iterator[Text]:
        """Yield the title, the column heads, each concept, the axis, its times, the colors, and the notes, a line each."""
        times = [[f"{clock(start)}-{clock(end)}" for start, end in spans] for spans in self.spans()]
        peaks = self.probabilities.max(axis=0, initial=0)  # (n,)
        longest_name = max([len("concept"), *map(cell_len, names)])
        longest_times = max([len("on screen"), *(len(", ".join(of_concept)) for of_concept in times)])
        # The times get the columns that the bars do not need, and at least a part of the line.
        name_columns = min(longest_name, _MAX_NAME_COLUMNS, max(width // 4, len("concept")))
        rest = width - name_columns - len("peak") - 3 * _GAP
        span_columns = min(longest_times, max(min(_MAX_SPAN_COLUMNS, width // 3), rest - len(self.starts)))
        per_column = max(1, -(-len(self.starts) // max(_MIN_BAR_COLUMNS, rest - span_columns)))
        num_columns = -(-len(self.starts) // per_column)
        bar_columns = max(num_columns, len("0:00"))
        span_columns = max(span_columns, rest - bar_columns)
        is_evaluated = self._evaluated(per_column)  # (columns,)
        gap = " " * _GAP

        yield Text(f"{video_id}, {clock(self.num_frames)}", style="bold")
        yield Text()
        between = " " * (name_columns - len("concept") + _GAP + bar_columns + _GAP)
        yield Text.assemble(*((part, "dim") for part in ("concept", between, "peak", gap, "on screen")))
        for name, column, peak, of_concept in zip(names, self.probabilities.T, peaks, times, strict=True):
            label = Text(name, style="bold" if of_concept else "")
            label.truncate(name_columns, overflow="ellipsis", pad=True)
            bar = _bar(column, per_column, is_evaluated)
            bar.pad_right(bar_columns - num_columns)
            listed = Text(_shortened(of_concept, span_columns) or "-", style="" if of_concept else "dim")
            yield Text.assemble(label, gap, bar, gap, (f"{peak:.2f}", color(float(peak))), gap, listed)
        indent = " " * (name_columns + _GAP)
        for parts in _axis(per_column, is_evaluated):
            yield Text.assemble(indent, *((part, "dim") for part in parts))
        yield Text()
        yield _legend(value_name(self.is_calibrated))
        notes = [f"a column is {per_column * SEGMENT_SECONDS} s", f"on screen: {self.threshold:g} or more"]
        if not is_evaluated.all():
            notes.append(f"{_NEVER_RATED} never rated")
        yield Text(", ".join(notes), style="dim")

    def _evaluated(self, per_column: int) -> NDArray[np.bool_]:
        """Whether each column has a segment that the challenge rates, (columns,)."""
        end = CROP_START_SECONDS + SEGMENT_SECONDS * int(num_evaluated_segments(np.array([self.num_frames]))[0])
        return _column_maxima((self.starts >= CROP_START_SECONDS) & (self.starts < end), per_column)


def find_spans(starts: NDArray[np.int32], is_on: NDArray[np.bool_], num_frames: int) -> list[tuple[int, int]]:
    """Time spans of consecutive segments at which something is on, as start and end in seconds.

    Args:
        starts: Start of each segment, increasing in steps of 5, int (S,).
        is_on: Whether it is on, (S,).
        num_frames: End of the video, which may be before the end of its last segment.
    """
    edges = np.flatnonzero(np.diff(is_on, prepend=False, append=False))
    return [
        (int(starts[first]), min(int(starts[end - 1]) + SEGMENT_SECONDS, num_frames))
        for first, end in edges.reshape(-1, 2).tolist()
    ]


def clock(seconds: int) -> str:
    """A time as 1:05 or 1:01:05."""
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def color(probability: float) -> str:
    """Color of a probability, by its quarter."""
    return COLORS[min(int(probability * len(COLORS)), len(COLORS) - 1)]


def block(probability: float) -> str:
    """Character of a probability, by the nearest eighth."""
    return BLOCKS[min(int(probability * 8 + 0.5), 8)]


def _legend(name: str) -> Text:
    """The bars of the four quarters of probability or score, in their heights and colors."""
    legend = Text.assemble((name, "dim"))
    for quarter, color_name in enumerate(COLORS):
        upper = (quarter + 1) / len(COLORS)
        legend.append(f"  {block(upper)}", style=color_name)
        legend.append(f" below {upper:g}" if upper < 1 else " to 1", style="dim")
    return legend


def _encodable(text: str, encoding: str) -> str:
    """A text with a question mark for each character that an encoding lacks."""
    return text.encode(encoding, "replace").decode(encoding)


def _column_maxima(values: NDArray[Value], per_column: int) -> NDArray[Value]:
    """The maximum of every `per_column` values, (S,) to (columns,)."""
    maxima: NDArray[Value] = np.maximum.reduceat(values, np.arange(0, len(values), per_column))
    return maxima


def _bar(probabilities: NDArray[np.float32], per_column: int, is_evaluated: NDArray[np.bool_]) -> Text:
    bar = Text()
    maxima = _column_maxima(probabilities, per_column).tolist()
    for probability, evaluated in zip(maxima, is_evaluated.tolist(), strict=True):
        bar.append(block(probability), style=color(probability) + ("" if evaluated else " dim"))
    return bar


def _shortened(times: Sequence[str], columns: int) -> str:
    """As many times as fit, and the number of the others."""
    for count in range(len(times), 0, -1):
        text = ", ".join(times[:count]) + (f", +{len(times) - count}" if count < len(times) else "")
        if len(text) <= columns or count == 1:
            return text
    return ""


def _axis(per_column: int, is_evaluated: NDArray[np.bool_]) -> tuple[list[str], list[str]]:
    """Parts of the axis and of the line of times below it; ticks are as close as their times fit."""
    seconds = per_column * SEGMENT_SECONDS
    duration = len(is_evaluated) * seconds
    axis = [_AXIS if evaluated else _NEVER_RATED for evaluated in is_evaluated.tolist()]
    min_step = (len(clock(duration)) + 1) * seconds
    step = next((tick for tick in _TICK_SECONDS if tick >= min_step), -(-min_step // 3600) * 3600)
    times: list[str] = []
    end = 0
    for time in range(0, duration, step):
        column = time // seconds
        axis[column] = _TICK
        times += [" " * (column - end), clock(time)]
        end = column + len(times[-1])
    return axis, times


def _theme(background: str, text: str, black: str, blue: str, cyan: str, green: str) -> TerminalTheme:
    """A theme of the colors that timelines have, as `rrggbb`; `black` is the bright one, a gray."""
    unused = text
    normal = (text, unused, green, unused, blue, unused, cyan, unused)
    rgb = [
        (int(color[:2], 16), int(color[2:4], 16), int(color[4:], 16)) for color in (background, text, *normal, black)
    ]
    return TerminalTheme(rgb[0], rgb[1], rgb[2:10], rgb[10:] * 8)


_LIGHT = _theme("fafaf8", "282c34", "a5a8af", "3c64be", "008796", "3c8232")
_DARK = _theme("0d1117", "d6dbe1", "5b626b", "5b8cf0", "35b3c4", "63b457")

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
    @media (prefers-color-scheme: dark) {{
    .{unique_id}-frame > rect {{ fill: BACKGROUND; }}
    .{unique_id}-title {{ fill: FOREGROUND; }}
    DARK_STYLES
    }}
    </style>
    <defs>
    <clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" /></clipPath>
    {lines}
    </defs>
    <g class="{unique_id}-frame">{chrome}</g>
    <g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
    {backgrounds}
    <g class="{unique_id}-matrix">{matrix}</g>
    </g>
</svg>
"""
"""A picture of a terminal that refers to no other file, not even a font. Viewers with a dark color scheme use the dark
styles, which are inserted after rich has filled in the rest."""


def write_svg(path: Path, timelines: Sequence[Timeline], title: str, columns: int = 80) -> None:
    """Draw timelines, one below the other, as a terminal shows them.

    Args:
        path: The SVG file.
        timelines: The timelines.
        title: Title of the picture.
        columns: Width of the terminal.

    Raises:
        Yt8mError: The disk is full or the folder cannot be written to.
    """
    console = Console(record=True, width=columns, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for number, timeline in enumerate(timelines):
        if number:
            console.print()
        console.print(timeline)
    options: dict[str, Any] = {"title": printable(title), "font_aspect_ratio": 0.602, "unique_id": "yt8m"}
    # Both have the same classes, because these are numbered in the order of the text.
    dark = console.export_svg(theme=_DARK, code_format="{styles}", clear=False, **options)
    drawn = console.export_svg(theme=_LIGHT, code_format=_SVG, **options)
    for name, value in (
        ("BACKGROUND", _DARK.background_color.hex),
        ("FOREGROUND", _DARK.foreground_color.hex),
        ("DARK_STYLES", dark),
    ):
        drawn = drawn.replace(name, value, 1)
    with written_atomically(path) as temporary:
        temporary.write_text(drawn, encoding="utf-8")
