"""Scores of rankings as a table and as a CSV file."""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich.console import Console

from yt8m.scoring.scores import ScoreRow, read_scores, score_table, write_scores

ROWS = [
    ScoreRow("random", "random", 0.60004, 0.004),
    ScoreRow("dbof", "agnostic", 0.85, None, 0.01),
    ScoreRow("ensemble", "ensemble", 0.84996, 0.19, 0.011, 0.02),
]


def shown(rows: list[ScoreRow], styled: bool = False) -> str:
    file = io.StringIO()
    console = Console(file=file, width=100, force_terminal=styled, color_system="standard" if styled else None)
    console.print(score_table(rows, 1000))
    return file.getvalue()


def test_the_table_contains_every_score() -> None:
    lines = shown(ROWS).splitlines()
    cells = [line.replace("┃", "│").strip("│").split("│") for line in lines if "│" in line or "┃" in line]
    assert [[cell.strip() for cell in row] for row in cells] == [
        ["ranking", "kind", "MAP@1,000", "dense MAP"],
        ["random", "random", "0.6000", "0.0040"],
        ["dbof", "agnostic", "0.8500", "-"],
        ["ensemble", "ensemble", "0.8500", "0.1900"],
    ]


def test_no_score_is_set_off() -> None:
    rows = [line for line in shown(ROWS, styled=True).splitlines() if re.search(r"0\.\d{4}", line)]
    assert len(rows) == 3
    assert not [row for row in rows if "\x1b[1m" in row]


def test_scores_round_trip_through_a_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "scores.csv"
    write_scores(path, ROWS)
    assert path.read_text().splitlines() == [
        "ranking,kind,map_at_k,dense_map,map_margin,dense_margin",
        "random,random,0.600040,0.004000,,",
        "dbof,agnostic,0.850000,,0.010000,",
        "ensemble,ensemble,0.849960,0.190000,0.011000,0.020000",
    ]
    assert read_scores(path) == ROWS
    path.write_text("ranking,kind,map_at_k,dense_map\nrandom,random,0.600040,\n")  # of an earlier version
    assert read_scores(path) == [ScoreRow("random", "random", 0.60004, None)]
    write_scores(path, [])
    assert read_scores(path) == []
