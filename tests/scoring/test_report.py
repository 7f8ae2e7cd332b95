from __future__ import annotations

import io
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from yt8m.scoring.report import (
    DENSE_COLOR,
    RATED_COLOR,
    TRUTH_COLOR,
    ScoreRow,
    plot_scores,
    plot_timeline,
    read_scores,
    score_table,
    write_scores,
)

ROWS = [
    ScoreRow("random", "random", 0.60004, 0.004),
    ScoreRow("dbof", "agnostic", 0.85, None),
    ScoreRow("mixture", "mixture", 0.84996, 0.19),
]


def shown(rows: list[ScoreRow], styled: bool = False) -> str:
    file = io.StringIO()
    console = Console(file=file, width=100, force_terminal=styled, color_system="standard" if styled else None)
    console.print(score_table(rows, 1000))
    return file.getvalue()


def test_table_shows_every_score() -> None:
    lines = shown(ROWS).splitlines()
    cells = [line.replace("┃", "│").strip("│").split("│") for line in lines if "│" in line or "┃" in line]
    assert [[cell.strip() for cell in row] for row in cells] == [
        ["ranking", "kind", "MAP@1,000", "dense MAP"],
        ["random", "random", "0.6000", "0.0040"],
        ["dbof", "agnostic", "0.8500", "-"],
        ["mixture", "mixture", "0.8500", "0.1900"],
    ]


def test_the_best_of_each_column_is_bold() -> None:
    lines = shown(ROWS, styled=True).splitlines()
    bold = {
        name: next(line for line in lines if name in line).count("\x1b[1m0") for name in ("random", "dbof", "mixture")
    }
    assert bold == {"random": 0, "dbof": 1, "mixture": 1}
    dbof = next(line for line in lines if "dbof" in line)
    assert "\x1b[1m0.8500" in dbof


def test_scores_go_to_a_file_and_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "scores.csv"
    write_scores(path, ROWS)
    assert path.read_text().splitlines() == [
        "ranking,kind,map_at_k,dense_map",
        "random,random,0.600040,0.004000",
        "dbof,agnostic,0.850000,",
        "mixture,mixture,0.849960,0.190000",
    ]
    assert read_scores(path) == ROWS
    write_scores(path, [])
    assert read_scores(path) == []


def pixels_of(path: Path, color: str) -> int:
    """How many pixels of a picture have exactly this color."""
    wanted = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
    picture = np.rint(matplotlib.image.imread(path)[..., :3] * 255)
    return int((picture == wanted).all(axis=-1).sum())


def test_bars_are_as_long_as_the_scores(tmp_path: Path) -> None:
    row = ScoreRow("one", "agnostic", 0.8, 0.2)
    plot_scores(tmp_path / "scores.png", [row], 1000)
    rated, dense = (pixels_of(tmp_path / "scores.png", color) for color in (RATED_COLOR, DENSE_COLOR))
    # The squares of the legend, alike for both, keep the ratio a little below 4.
    assert 3.3 < rated / dense < 4.1


def test_bars_of_an_unknown_score_are_left_out(tmp_path: Path) -> None:
    plot_scores(tmp_path / "scores.png", [ScoreRow("one", "agnostic", 0.8, None)], 1000)
    assert pixels_of(tmp_path / "scores.png", RATED_COLOR) > 1000
    assert pixels_of(tmp_path / "scores.png", DENSE_COLOR) == 0
    plot_scores(tmp_path / "mixed.png", ROWS, 1000)
    assert pixels_of(tmp_path / "mixed.png", DENSE_COLOR) > 1000


def timeline(path: Path, truth: NDArray[np.bool_] | None, names: list[str]) -> None:
    starts = np.arange(30, 80, 5)
    probabilities = np.random.default_rng(0).random((len(starts), len(names)))
    plot_timeline(path, "ab_c", names, starts, probabilities, truth)


@pytest.mark.parametrize("names", [["Train"], ["Train", "Coupé", "Cash $ and $x^", "_private"]])
def test_timeline_shades_what_is_on_screen(tmp_path: Path, names: list[str]) -> None:
    counts = []
    for number, share in enumerate([0.0, 0.5, 1.0]):
        truth = np.zeros((10, len(names)), np.bool_)
        truth[: round(10 * share)] = True
        timeline(tmp_path / f"{number}.png", truth, names)
        # The shade is more than half transparent over white, and lines and letters cover some of it.
        picture = np.rint(matplotlib.image.imread(tmp_path / f"{number}.png")[..., 0] * 255)
        shade = round(255 + 0.55 * (int(TRUTH_COLOR[1:3], 16) - 255))
        counts.append(int((abs(picture - shade) <= 1).sum()))
        assert pixels_of(tmp_path / f"{number}.png", RATED_COLOR) > 100
    assert counts[1] > counts[0] + 5000
    assert 1.7 < (counts[2] - counts[0]) / (counts[1] - counts[0]) < 2.3


def test_timeline_without_truth(tmp_path: Path) -> None:
    timeline(tmp_path / "timeline.png", None, ["Train", "Boat"])
    assert pixels_of(tmp_path / "timeline.png", RATED_COLOR) > 100
    assert [path.name for path in tmp_path.iterdir()] == ["timeline.png"]
