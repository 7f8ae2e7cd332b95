"""Plots: scores of rankings, and the timeline of a video."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from yt8m.errors import printable
from yt8m.runtime.plotting import BLUE, GRAY, ORANGE, hide_frame, save_figure
from yt8m.scoring.scores import ScoreRow
from yt8m.shards.records import SEGMENT_SECONDS


def plot_scores(path: Path, rows: Sequence[ScoreRow], k: int) -> None:
    """Plot two bars per ranking: MAP@K over rated segments and MAP over all segments.

    Args:
        path: The PNG file.
        rows: At least one.
        k: K of MAP@K.
    """
    figure = Figure(figsize=(8, 0.5 * len(rows) + 1.4), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(rows))[::-1]
    series = [
        (f"MAP@{k:,}, rated segments", BLUE, 0.2, [row.map_at_k for row in rows]),
        ("MAP, all segments", ORANGE, -0.2, [row.dense_map for row in rows]),
    ]
    for label, color, shift, values in series:
        if all(value is None for value in values):
            continue
        bars = axes.barh(places + shift, [value or 0 for value in values], 0.38, color=color, label=label)
        axes.bar_label(bars, ["" if value is None else f"{value:.3f}" for value in values], padding=3, fontsize=8)
    axes.set_yticks(places, [row.name if row.kind in (row.name, "") else f"{row.name} ({row.kind})" for row in rows])
    axes.set_xlim(0, 1.09)
    axes.set_xlabel("mean average precision")
    hide_frame(axes)
    figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=9)
    save_figure(path, figure)


def plot_timeline(
    path: Path,
    video_id: str,
    names: Sequence[str],
    start_seconds: NDArray[np.integer],
    probabilities: NDArray[np.floating],
    truth: NDArray[np.bool_] | None,
) -> None:
    """Plot the probability of a few classes over the segments of a video, and where they are on screen.

    Args:
        path: The PNG file.
        video_id: The video.
        names: The classes, top to bottom, n.
        start_seconds: Start of each segment, increasing, (S,).
        probabilities: (S, n).
        truth: Where each class is on screen, bool (S, n); None if unknown.
    """
    figure = Figure(figsize=(9, 0.62 * len(names) + 1.2), layout="constrained")
    panels = np.atleast_1d(figure.subplots(len(names), 1, sharex=True))
    edges = np.append(start_seconds, start_seconds[-1] + SEGMENT_SECONDS)
    for index, (axes, name) in enumerate(zip(panels, names, strict=True)):
        if truth is not None:
            label = "on screen" if index == 0 else None
            axes.stairs(truth[:, index].astype(float), edges, fill=True, color=GRAY, alpha=0.55, label=label)
        label = "predicted" if index == 0 else None
        axes.stairs(probabilities[:, index], edges, color=BLUE, linewidth=1.6, label=label)
        axes.set_ylim(0, 1.05)
        axes.set_yticks([0, 1], ["0", "1"], fontsize=7)
        axes.set_ylabel(printable(name), rotation=0, ha="right", va="center", fontsize=9, parse_math=False)
        hide_frame(axes)
    panels[-1].set_xlabel("seconds")
    panels[-1].set_xlim(edges[0], edges[-1])
    figure.suptitle(f"Video {video_id}: probability that a concept is on screen", fontsize=11, x=0.01, ha="left")
    figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=9)
    save_figure(path, figure)
