"""Scores of several rankings: a CSV file and a table for the terminal."""

import csv
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from rich.table import Table

from yt8m.files import write_csv

SCORES_FILE = "scores.csv"


@dataclass(frozen=True)
class ScoreRow:
    """Scores of one ranking.

    Args:
        name: The model, or the models merged.
        kind: "agnostic", "aware", "ensemble" or "random".
        map_at_k: MAP@K over the rated segments; None without ratings.
        dense_map: MAP over all segments; None if not all positives are known.
        map_margin: Half of the 95% interval of `map_at_k` over videos; None if not measured.
        dense_margin: That of `dense_map`.
    """

    name: str
    kind: str
    map_at_k: float | None
    dense_map: float | None
    map_margin: float | None = None
    dense_margin: float | None = None


def score_table(rows: Sequence[ScoreRow], k: int) -> Table:
    """Make a table for the terminal. No score is set off: without a measure of noise, the best one may be chance."""
    table = Table("ranking", "kind")
    table.add_column(f"MAP@{k:,}", justify="right")
    table.add_column("dense MAP", justify="right")
    for row in rows:
        cells = ("-" if value is None else f"{value:.4f}" for value in (row.map_at_k, row.dense_map))
        table.add_row(row.name, row.kind, *cells)
    return table


def write_scores(path: Path, rows: Sequence[ScoreRow]) -> None:
    """Write a CSV file `ranking,kind,map_at_k,dense_map,map_margin,dense_margin`."""
    cells = (["" if value is None else f"{value:.6f}" for value in astuple(row)[2:]] for row in rows)
    names = [field.name for field in fields(ScoreRow)]
    write_csv(
        path, ("ranking", *names[1:]), ([row.name, row.kind, *of_row] for row, of_row in zip(rows, cells, strict=True))
    )


def read_scores(path: Path) -> list[ScoreRow]:
    """Read a file that `write_scores` wrote."""
    with path.open(encoding="utf-8", newline="") as file:
        _, *rows = csv.reader(file)
    return [ScoreRow(name, kind, *(float(cell) if cell else None for cell in cells)) for name, kind, *cells in rows]
