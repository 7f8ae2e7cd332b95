"""Tables and pictures of scores: one row a model, and one video's timeline."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.table import Table

from yt8m.files import written_atomically
from yt8m.shards.records import SEGMENT_SECONDS

SCORES_FILE = "scores.csv"
TRUTH_COLOR, RATED_COLOR, DENSE_COLOR = "#b8b8b8", "#1f6fb4", "#e08a1e"


@dataclass(frozen=True)
class ScoreRow:
    """Scores of one ranking.

    Args:
        name: The model, or what was merged.
        kind: "agnostic", "aware", "mixture" or "random".
        map_at_k: MAP@K over the rated segments; None where no ratings are known.
        dense_map: MAP over all segments; None where not all positives are known.
    """

    name: str
    kind: str
    map_at_k: float | None
    dense_map: float | None


def score_table(rows: Sequence[ScoreRow], k: int) -> Table:
    """Lay scores out for the terminal, the best of each column in bold."""
    table = Table(title=None)
    table.add_column("ranking")
    table.add_column("kind")
    table.add_column(f"MAP@{k:,}", justify="right")
    table.add_column("dense MAP", justify="right")
    best = [max((value for value in column if value is not None), default=None) for column in _columns(rows)]
    for row in rows:
        cells = [_cell(value, top) for value, top in zip((row.map_at_k, row.dense_map), best, strict=True)]
        table.add_row(row.name, row.kind, *cells)
    return table


def _columns(rows: Sequence[ScoreRow]) -> tuple[list[float | None], list[float | None]]:
    return [row.map_at_k for row in rows], [row.dense_map for row in rows]


def _cell(value: float | None, best: float | None) -> str:
    if value is None:
        return "-"
    return f"[bold]{value:.4f}[/bold]" if value == best else f"{value:.4f}"


def write_scores(path: Path, rows: Sequence[ScoreRow]) -> None:
    """Write a CSV file `ranking,kind,map_at_k,dense_map`."""
    with written_atomically(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["ranking", "kind", "map_at_k", "dense_map"])
        for row in rows:
            values = ["" if value is None else f"{value:.6f}" for value in (row.map_at_k, row.dense_map)]
            writer.writerow([row.name, row.kind, *values])


def read_scores(path: Path) -> list[ScoreRow]:
    """Read what `write_scores` wrote."""
    with path.open(encoding="utf-8", newline="") as file:
        return [
            ScoreRow(
                row["ranking"],
                row["kind"],
                float(row["map_at_k"]) if row["map_at_k"] else None,
                float(row["dense_map"]) if row["dense_map"] else None,
            )
            for row in csv.DictReader(file)
        ]


def plot_scores(path: Path, rows: Sequence[ScoreRow], k: int) -> None:
    """Draw the table: two bars a ranking, MAP@K over rated segments and MAP over all segments.

    Args:
        path: The PNG file.
        rows: At least one.
        k: Where lists were cut.
    """
    figure = Figure(figsize=(8, 0.5 * len(rows) + 1.4), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(rows))[::-1]
    series = [(f"MAP@{k:,}, rated segments", RATED_COLOR, 0.2), ("MAP, all segments", DENSE_COLOR, -0.2)]
    for (label, color, shift), values in zip(series, _columns(rows), strict=True):
        if all(value is None for value in values):
            continue
        bars = axes.barh(places + shift, [value or 0 for value in values], 0.38, color=color, label=label)
        axes.bar_label(bars, ["" if value is None else f"{value:.3f}" for value in values], padding=3, fontsize=8)
    axes.set_yticks(places, [row.name if row.kind in (row.name, "") else f"{row.name} ({row.kind})" for row in rows])
    axes.set_xlim(0, 1.09)
    axes.set_xlabel("mean average precision")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=9)
    save_picture(path, figure)


def plot_timeline(
    path: Path,
    video_id: str,
    names: Sequence[str],
    start_seconds: NDArray[np.integer],
    probabilities: NDArray[np.floating],
    truth: NDArray[np.bool_] | None,
) -> None:
    """Draw when concepts are on screen in one video: the probability of a few classes over its segments.

    Args:
        path: The PNG file.
        video_id: The video.
        names: The classes, most interesting first.
        start_seconds: Start of each segment, increasing, (n,).
        probabilities: (n, number of classes).
        truth: Where each class really is, bool of the same shape; None where it is not known.
    """
    figure = Figure(figsize=(9, 0.62 * len(names) + 1.2), layout="constrained")
    panels = np.atleast_1d(figure.subplots(len(names), 1, sharex=True))
    edges = np.append(start_seconds, start_seconds[-1] + SEGMENT_SECONDS)
    for index, (axes, name) in enumerate(zip(panels, names, strict=True)):
        if truth is not None:
            label = "on screen" if index == 0 else None
            axes.stairs(truth[:, index].astype(float), edges, fill=True, color=TRUTH_COLOR, alpha=0.55, label=label)
        label = "predicted" if index == 0 else None
        axes.stairs(probabilities[:, index], edges, color=RATED_COLOR, linewidth=1.6, label=label)
        axes.set_ylim(0, 1.05)
        axes.set_yticks([0, 1], ["0", "1"], fontsize=7)
        axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9, parse_math=False)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("seconds")
    panels[-1].set_xlim(edges[0], edges[-1])
    figure.suptitle(f"Video {video_id}: probability that a concept is on screen", fontsize=11, x=0.01, ha="left")
    figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=9)
    save_picture(path, figure)


def save_picture(path: Path, figure: Figure) -> None:
    """Write a picture as a PNG file."""
    with written_atomically(path) as temporary:
        figure.savefig(temporary, dpi=130)
