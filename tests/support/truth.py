"""Files of ground truth."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

Rating = tuple[str, int, int, float]
"""Video id, label id, start in seconds, 0 or 1."""


def write_ratings_csv(path: Path, ratings: Iterable[Rating], num_columns: int = 4) -> Path:
    """Write ratings as a CSV file; three columns make it a dense truth."""
    header = ("video", "label", "start", "score")
    path.write_text("\n".join(",".join(map(str, row[:num_columns])) for row in [header, *ratings]) + "\n")
    return path
