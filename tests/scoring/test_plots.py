"""Plots: numbers of pixels of each color."""

from __future__ import annotations

import itertools
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.typing import NDArray

from yt8m.runtime.plotting import BLUE, GRAY, ORANGE
from yt8m.scoring import plots
from yt8m.scoring.plots import plot_scores, plot_timeline
from yt8m.scoring.scores import ScoreRow


def pixels_of(path: Path, color: str) -> int:
    """Number of pixels of a picture with exactly this color."""
    wanted = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
    picture = np.rint(matplotlib.image.imread(path)[..., :3] * 255)
    return int((picture == wanted).all(axis=-1).sum())


def columns_of(path: Path, color: str) -> list[int]:
    """Columns of a picture that contain this color."""
    wanted = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
    picture = np.rint(matplotlib.image.imread(path)[..., :3] * 255)
    return np.flatnonzero((picture == wanted).all(axis=-1).any(axis=0)).tolist()


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved."""
    figures: list[Figure] = []
    save = plots.save_figure

    def save_and_keep(path: Path, figure: Figure) -> None:
        figures.append(figure)
        save(path, figure)

    monkeypatch.setattr(plots, "save_figure", save_and_keep)
    return figures


ROWS = [
    ScoreRow("random", "random", 0.5, 0.01),
    ScoreRow("agnostic-dbof", "agnostic", 0.91, 0.2),
    ScoreRow("bare", "aware", 0.92, 0.25),
    ScoreRow("agnostic only", "agnostic", 0.91, 0.2),
    ScoreRow("ensemble", "ensemble", 0.93, 0.3),
]


def test_scores_are_dots_on_an_axis_that_shows_the_differences_of_models(tmp_path: Path, drawn: list[Figure]) -> None:
    plot_scores(tmp_path / "scores.png", ROWS, 1000)
    [figure] = drawn
    assert figure.get_suptitle() == "Rankings of the test set: mean average precision"
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "MAP@1,000, rated segments",
        "dense MAP, all segments",
    ]
    for axes, column in zip(figure.axes, ("map_at_k", "dense_map"), strict=True):
        low, high = axes.get_xlim()
        values = [getattr(row, column) for row in ROWS]
        assert low < values[1]
        assert values[-1] < high
        assert (high - low) < 3 * (values[-1] - values[1])
        # A score off the axis is an arrow at its edge, with the score.
        dots = [line for line in axes.lines if len(line.get_xdata()) == 1]
        assert [float(dot.get_xdata()[0]) for dot in dots] == pytest.approx([low, *values[1:]])
        assert [dot.get_marker() for dot in dots] == ["<", "o", "o", "D", "D"]
        shown = [text.get_text() for text in axes.texts]
        assert shown == [f"{values[0]:.4f} (off the axis)", *(f"{value:.4f}" for value in values[1:])]


def test_labels_repeat_no_kind_and_the_legend_names_the_groups(tmp_path: Path, drawn: list[Figure]) -> None:
    plot_scores(tmp_path / "scores.png", ROWS, 1000)
    [figure] = drawn
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == ["random", "agnostic-dbof", "bare (aware)", "agnostic only", "ensemble"]
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["ensemble", "single model", "random"]


def test_an_unknown_score_has_no_dot(tmp_path: Path, drawn: list[Figure]) -> None:
    plot_scores(tmp_path / "scores.png", [ScoreRow("one", "agnostic", 0.8, None)], 1000)
    rows = [ScoreRow("dbof", "agnostic", 0.85, None), ScoreRow("ensemble", "ensemble", 0.84996, 0.19)]
    plot_scores(tmp_path / "mixed.png", rows, 1000)
    assert [len(figure.axes) for figure in drawn] == [1, 2]
    assert [text.get_text() for text in drawn[1].axes[1].texts] == ["0.1900"]
    assert all(tick <= 1 for figure in drawn for axes in figure.axes for tick in axes.get_xticks())
    # The pictures have dots of the groups' colors.
    assert pixels_of(tmp_path / "scores.png", BLUE) > 50
    assert columns_of(tmp_path / "scores.png", ORANGE) != columns_of(tmp_path / "mixed.png", ORANGE) != []


@pytest.mark.parametrize("seconds", [60, 300, 3600, 36_000])
def test_the_times_of_a_timeline_do_not_overlap(tmp_path: Path, drawn: list[Figure], seconds: int) -> None:
    starts = np.arange(30, 30 + seconds, 5)
    plot_timeline(tmp_path / "timeline.png", "abcd", ["Train"], starts, np.zeros((len(starts), 1)), None)
    labels = [text for text in drawn[0].axes[-1].get_xticklabels() if text.get_text()]
    boxes = [label.get_window_extent() for label in labels]
    assert len(boxes) >= 2
    assert all(box.x1 < following.x0 for box, following in itertools.pairwise(boxes))
    assert "0:30" in [label.get_text() for label in labels] or seconds > 360


def timeline(path: Path, truth: NDArray[np.bool_] | None, names: list[str]) -> None:
    starts = np.arange(30, 80, 5)
    probabilities = np.random.default_rng(0).random((len(starts), len(names)))
    plot_timeline(path, "ab_c", names, starts, probabilities, truth)


@pytest.mark.parametrize("names", [["Train"], ["Train", "Coupé", "Cash $ and $x^", "_private"]])
def test_a_timeline_shades_positive_segments(tmp_path: Path, names: list[str]) -> None:
    counts = []
    for number, fraction in enumerate([0.0, 0.5, 1.0]):
        truth = np.zeros((10, len(names)), np.bool_)
        truth[: round(10 * fraction)] = True
        timeline(tmp_path / f"{number}.png", truth, names)
        # The fill is transparent over white; lines and letters cover some of it.
        picture = np.rint(matplotlib.image.imread(tmp_path / f"{number}.png")[..., 0] * 255)
        shade = round(255 + 0.55 * (int(GRAY[1:3], 16) - 255))
        counts.append(int((abs(picture - shade) <= 1).sum()))
        assert pixels_of(tmp_path / f"{number}.png", BLUE) > 100
    assert counts[1] > counts[0] + 5000
    assert 1.7 < (counts[2] - counts[0]) / (counts[1] - counts[0]) < 2.3


def test_a_timeline_can_be_plotted_without_truth(tmp_path: Path) -> None:
    timeline(tmp_path / "timeline.png", None, ["Train", "Boat"])
    assert pixels_of(tmp_path / "timeline.png", BLUE) > 100
    assert [path.name for path in tmp_path.iterdir()] == ["timeline.png"]
