"""Plots: numbers of pixels of each color."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from numpy.typing import NDArray

from yt8m.runtime.plotting import BLUE, GRAY, ORANGE
from yt8m.scoring.plots import plot_scores, plot_timeline
from yt8m.scoring.scores import ScoreRow


def pixels_of(path: Path, color: str) -> int:
    """Number of pixels of a picture with exactly this color."""
    wanted = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
    picture = np.rint(matplotlib.image.imread(path)[..., :3] * 255)
    return int((picture == wanted).all(axis=-1).sum())


def test_the_length_of_a_bar_is_proportional_to_the_score(tmp_path: Path) -> None:
    row = ScoreRow("one", "agnostic", 0.8, 0.2)
    plot_scores(tmp_path / "scores.png", [row], 1000)
    rated, dense = (pixels_of(tmp_path / "scores.png", color) for color in (BLUE, ORANGE))
    # The legend's squares of equal size keep the ratio slightly below 4.
    assert 3.3 < rated / dense < 4.1


def test_an_unknown_score_has_no_bar(tmp_path: Path) -> None:
    plot_scores(tmp_path / "scores.png", [ScoreRow("one", "agnostic", 0.8, None)], 1000)
    assert pixels_of(tmp_path / "scores.png", BLUE) > 1000
    assert pixels_of(tmp_path / "scores.png", ORANGE) == 0
    rows = [ScoreRow("dbof", "agnostic", 0.85, None), ScoreRow("mixture", "mixture", 0.84996, 0.19)]
    plot_scores(tmp_path / "mixed.png", rows, 1000)
    assert pixels_of(tmp_path / "mixed.png", ORANGE) > 1000


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
