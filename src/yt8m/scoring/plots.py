"""Plots: scores of rankings, and the timeline of a video."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MultipleLocator
from numpy.typing import NDArray

from yt8m.errors import printable
from yt8m.ranking import value_name
from yt8m.runtime.plotting import BLUE, DARK_GRAY, GRAY, ORANGE, hide_frame, save_figure
from yt8m.scoring.reliability import Reliability
from yt8m.scoring.scores import ScoreRow
from yt8m.shards.ids import SEGMENT_SECONDS


def plot_scores(path: Path, rows: Sequence[ScoreRow], k: int) -> None:
    """Plot the rankings as dots: MAP@K over rated segments on the left, MAP over all segments on the right.

    Bars are 95% intervals over videos, where they are measured. Each axis covers the models and ensembles only, so that their differences are visible; an arrow stands for a score
    outside of it, such as that of a random ranking. The submission, which is the last row, is bold and has a dashed line.

    Args:
        path: The PNG file.
        rows: At least one.
        k: K of MAP@K.
    """
    series = [
        (f"MAP@{k:,}, rated segments", [(row.map_at_k, row.map_margin or 0.0) for row in rows]),
        ("dense MAP, all segments", [(row.dense_map, row.dense_margin or 0.0) for row in rows]),
    ]
    series = [(title, values) for title, values in series if any(value is not None for value, _ in values)] or series[
        :1
    ]
    figure = Figure(figsize=(9, 0.32 * len(rows) + 1.7), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(series), sharey=True))
    groups = [_group(row) for row in rows]
    places = np.arange(len(rows))[::-1]
    for axes, (title, of_rows) in zip(panels, series, strict=True):
        values, margins = zip(*of_rows, strict=True)
        known = [value for value in values if value is not None]
        models = [value for value, group in zip(values, groups, strict=True) if value is not None and group != "random"]
        lowest, highest = min(models or known, default=0.0), max(models or known, default=1.0)
        widest = max(margin for margin, group in zip(margins, groups, strict=True) if group != "random" or not models)
        lowest, highest = lowest - widest, highest + widest
        margin = 0.12 * (highest - lowest) or 0.005
        left, right = lowest - margin, highest + 4 * margin  # room for the numbers
        axes.set_xlim(left, right)
        axes.hlines(places, left, right, color="#ececec", linewidth=0.8, zorder=0)
        if values[-1] is not None:
            axes.axvline(values[-1], color=GROUPS["ensemble"][0], linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        for place, value, interval, group in zip(places, values, margins, groups, strict=True):
            if value is None:
                continue
            color, marker = GROUPS[group]
            inside = left <= value <= right
            if inside and interval:
                axes.hlines(place, value - interval, value + interval, color=color, linewidth=1.4, alpha=0.6, zorder=2)
            axes.plot(max(value, left), place, marker if inside else "<", color=color, markersize=7, clip_on=False)
            axes.annotate(
                f"{value:.4f}" + ("" if inside else " (off the axis)"), (max(value + (interval if inside else 0), left), place), (7, 0), textcoords="offset points", va="center", fontsize=8.5,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.8},
            )  # fmt: skip
        axes.set_title(title, fontsize=10, loc="left")
        axes.tick_params(axis="x", labelsize=8)
        axes.tick_params(axis="y", length=0, pad=9)
        axes.locator_params(axis="x", nbins=5)
        axes.set_xticks([tick for tick in axes.get_xticks() if left <= tick <= min(right, 1)])
        hide_frame(axes)
        axes.spines["left"].set_visible(False)
    panels[0].set_yticks(places, [_label(row) for row in rows], fontsize=9.5, parse_math=False)
    panels[0].get_yticklabels()[-1].set_fontweight("bold")
    panels[0].set_ylim(-0.6, len(rows) - 0.4)
    bars = ", bars: 95% intervals over videos" if any(margin for _, values in series for _, margin in values) else ""
    figure.suptitle(f"Rankings of the test set: mean average precision{bars}", fontsize=12, x=0.01, ha="left")
    shown = [group for group in GROUPS if group in groups]
    handles = [
        Line2D([], [], color=color, marker=marker, linestyle="") for color, marker in map(GROUPS.__getitem__, shown)
    ]
    figure.legend(handles, shown, loc="outside lower left", ncols=len(shown), frameon=False, fontsize=9)
    save_figure(path, figure)


GROUPS = {"ensemble": (ORANGE, "D"), "single model": (BLUE, "o"), "random": (DARK_GRAY, "s")}
"""Color and marker of each group of rankings."""


def _group(row: ScoreRow) -> str:
    if row.kind in ("ensemble", "random"):
        return row.kind
    return "ensemble" if row.name == f"{row.kind} only" else "single model"


def _label(row: ScoreRow) -> str:
    """The name of a ranking, with its kind where the name does not contain it."""
    return row.name if row.kind in row.name or row.kind in ("", "ensemble") else f"{row.name} ({row.kind})"


def plot_reliability(path: Path, measured: Mapping[tuple[str, str], Reliability]) -> None:
    """Plot the share of positives over the predicted value, before and after calibration, a panel per truth.

    Args:
        path: The PNG file.
        measured: See `write_reliability`.
    """
    truths = [truth for truth in ("all", "rated") if (truth, "score") in measured]
    figure = Figure(figsize=(4.4 * len(truths), 4.3), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(truths), sharey=True))
    titles = {"all": "all segments and classes", "rated": "rated segments"}
    for axes, truth in zip(panels, truths, strict=True):
        axes.plot([0, 1], [0, 1], color=GRAY, linewidth=1, linestyle=(0, (4, 3)))
        for kind, color, marker in (("score", DARK_GRAY, "s"), ("probability", BLUE, "o")):
            found = measured[truth, kind]
            low, high = found.interval
            label = f"{kind}: ECE {found.error:.3f} ({low:.3f} to {high:.3f})"
            axes.plot(found.probabilities, found.shares, marker=marker, color=color, markersize=5, label=label)
        axes.set_title(titles[truth], fontsize=10, loc="left")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_aspect("equal")
        axes.set_xlabel("predicted", fontsize=9)
        axes.legend(loc="upper left" if truth == "all" else "lower right", fontsize=8, frameon=False)
        hide_frame(axes)
    panels[0].set_ylabel("share of positives", fontsize=9)
    figure.suptitle("Reliability before and after calibration", fontsize=12, x=0.01, ha="left")
    save_figure(path, figure)


def plot_timeline(
    path: Path,
    video_id: str,
    names: Sequence[str],
    start_seconds: NDArray[np.integer],
    probabilities: NDArray[np.floating],
    truth: NDArray[np.bool_] | None,
    is_calibrated: bool = False,
) -> None:
    """Plot the probability of a few classes over the segments of a video, and where they are on screen.

    Args:
        path: The PNG file.
        video_id: The video.
        names: The classes, top to bottom, n.
        start_seconds: Start of each segment, increasing, (S,).
        probabilities: (S, n).
        truth: Where each class is on screen, bool (S, n); None if unknown.
        is_calibrated: Whether the values are probabilities, not scores.
    """
    figure = Figure(figsize=(9, 0.5 * len(names) + 1.2), layout="constrained")
    panels = np.atleast_1d(figure.subplots(len(names), 1, sharex=True))
    edges = np.append(start_seconds, start_seconds[-1] + SEGMENT_SECONDS)
    for index, (axes, name) in enumerate(zip(panels, names, strict=True)):
        if truth is not None:
            label = "ground truth" if index == 0 else None
            axes.stairs(truth[:, index].astype(float), edges, fill=True, color=GRAY, alpha=0.55, label=label)
        label = f"predicted {value_name(is_calibrated)}" if index == 0 else None
        axes.stairs(probabilities[:, index], edges, color=BLUE, linewidth=1.6, label=label)
        axes.set_ylim(0, 1.05)
        axes.set_yticks([0, 1], ["0", "1"], fontsize=7)
        axes.set_ylabel(printable(name), rotation=0, ha="right", va="center", fontsize=9, parse_math=False)
        hide_frame(axes)
    panels[-1].set_xlim(edges[0], edges[-1])
    seconds = next(step for step in (30, 60, 120, 300, 600, 1800, 3600, 10**9) if edges[-1] - edges[0] <= 12 * step)
    panels[-1].xaxis.set_major_locator(MultipleLocator(seconds))
    panels[-1].xaxis.set_major_formatter(lambda seconds, _: f"{int(seconds) // 60}:{int(seconds) % 60:02}")
    panels[-1].set_xlabel("time in the video, minutes:seconds")
    values = "probabilities" if is_calibrated else "scores"
    figure.suptitle(f"Video {video_id}: the ensemble's {values}", fontsize=12, x=0.01, ha="left")
    figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=9)
    save_figure(path, figure)
