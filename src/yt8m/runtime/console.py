"""The terminal: results go to standard output, messages and progress to standard error, both through rich."""

from __future__ import annotations

from rich.console import Console

out = Console(highlight=False, soft_wrap=True)
"""Results: standard output."""

err = Console(stderr=True, highlight=False, soft_wrap=True)
"""Messages and progress: standard error."""


def wide(columns: int) -> Console:
    """Standard output for a table that needs so many columns, however narrow the terminal."""
    return out if out.width >= columns else Console(highlight=False, soft_wrap=True, width=columns)
