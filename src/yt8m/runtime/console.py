"""The terminal: results on standard output, messages and progress on standard error, both through rich."""

import io
import sys
from typing import Any

from rich.console import Console

from yt8m.errors import printable


class _Terminal(Console):
    """A console that does not pass on the control characters of names and messages."""

    def print(self, *objects: Any, **options: Any) -> None:
        kept = (printable(each, "\n\t") if isinstance(each, str) else each for each in objects)
        super().print(*kept, **options)


out = _Terminal(markup=False, highlight=False, soft_wrap=True)
"""Results: standard output."""

err = _Terminal(stderr=True, markup=False, highlight=False, soft_wrap=True)
"""Messages and progress: standard error; `--quiet` sets its attribute `quiet`."""


def replace_unprintable() -> None:
    """Let characters that standard output cannot encode be replaced by question marks, instead of raising an error.

    The bytes of file names that are no text stay as they are in UTF-8. Standard error replaces them already.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        is_unicode = sys.stdout.encoding.lower().startswith("utf")
        sys.stdout.reconfigure(errors="surrogateescape" if is_unicode else "replace")


def wide(columns: int) -> Console:
    """Standard output for a table of this many columns of text, even on a narrower terminal."""
    return out if out.width >= columns else _Terminal(markup=False, highlight=False, soft_wrap=True, width=columns)


def format_duration(seconds: float) -> str:
    """Format a duration by its two largest units: 34 s, 12 min 34 s, 25 h 0 min, 3 d 4 h."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def format_bytes(num_bytes: float) -> str:
    """A number of bytes for people: `1.23 GB`."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:,.2f} {unit}"
    return f"{num_bytes:,.0f} bytes"
