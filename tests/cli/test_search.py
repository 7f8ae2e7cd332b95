"""The command search."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.support.command import refused, succeeds, yt8m
from tests.support.rankings import make_segments
from tests.support.tiny_run import FinishedRun
from yt8m.ranking.topk import TopK
from yt8m.runtime import console
from yt8m.submission.table import write_table
from yt8m.vocabulary import Vocabulary

VOCABULARY = Vocabulary(np.array([11, 7, 30]), ("Food", "Car", "Cartoon"))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Food at 0:30-0:40 of `ab12` and 0:35 of `cd34`, Car nowhere, Cartoon everywhere."""
    segments = make_segments(["ab12", "cd34"], 3, first_start=30)
    ranker = TopK(3, 6, segments)
    food, car = [0.75, 0.875, 0.25, 0.125, 0.5, 0.0], [0.25, 0.125, 0.0, 0.0, 0.0, 0.0]
    ranker.update(np.arange(6), np.array([food, car, [1.0] * 6], np.float32).T)
    write_table(tmp_path / "t.parquet", ranker.result(), VOCABULARY)
    return tmp_path / "t.parquet"


def test_moments_are_lines_with_tabs_in_a_pipe(table: Path) -> None:
    shown = succeeds("search", "food", "--table", table)
    assert shown.out == "Food\tab12\t0:30-0:40\t0.875\t2\nFood\tcd34\t0:35-0:40\t0.500\t1\n"
    assert shown.err == ""
    assert succeeds("search", 11, "--table", table).out == shown.out
    both = succeeds("search", "Cartoon", "FOOD", 11, "--table", table, "--threshold", 0.2, "--limit", 1)
    assert both.out == "Cartoon\tab12\t0:30-0:45\t1.000\t3\nFood\tab12\t0:30-0:45\t0.875\t3\n"
    assert both.err == "... and 2 more moments; --limit 0 shows all\n"
    of_video = succeeds("search", "food", "--table", table, "--video", "cd34")
    assert of_video.out == "Food\tcd34\t0:35-0:40\t0.500\t1\n"


def test_moments_are_a_table_on_a_terminal(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console.out, "_force_terminal", True)
    monkeypatch.setattr(console.out, "_color_system", None)
    lines = [line.split() for line in succeeds("search", "food", "Car", "--table", table).out.splitlines()]
    assert " ".join(lines[0]) == "Food (11): 2 moments of 0.5 or more in 2 videos"
    assert lines[1:] == [
        ["video", "time", "score", "segments"],
        ["ab12", "0:30-0:40", "0.875", "2"],
        ["cd34", "0:35-0:40", "0.500", "1"],
    ]


def test_a_guess_and_an_empty_result_are_reported(table: Path) -> None:
    assert succeeds("search", "foodd", "--table", table).err == "'foodd': showing 'Food'\n"
    nothing = succeeds("search", "car", "--table", table)
    assert (nothing.out, nothing.err) == ("", "Car: no moment of 0.5 or more listed; the highest score is 0.25\n")
    of_video = succeeds("search", "food", "--table", table, "--video", "zz99")
    assert (of_video.out, of_video.err) == ("", "Food: no segment in video 'zz99'\n")


def test_json_and_csv_contain_the_moments_shown(table: Path, tmp_path: Path) -> None:
    path = tmp_path / "new" / "moments.csv"
    options = ["--table", table, "--limit", 1, "--csv", path]
    found = json.loads(succeeds("search", "food", "car", *options, "--json").out)
    moment = {"video_id": "ab12", "start": 30, "end": 40, "score": 0.875, "num_segments": 2}
    assert found == [
        {"label_id": 11, "name": "Food", "num_moments": 2, "num_videos": 2, "moments": [moment]},
        {"label_id": 7, "name": "Car", "num_moments": 0, "num_videos": 0, "moments": []},
    ]
    with path.open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["class", "name", "video", "start", "end", "score", "segments"],
            ["11", "Food", "ab12", "30", "40", "0.875", "2"],
        ]


def test_a_run_a_table_and_a_store_give_the_same_moments(
    finished_run: FinishedRun, models: list[object], tiny_vocabulary: Vocabulary, tmp_path: Path
) -> None:
    rows = pq.read_table(finished_run.out / "segments.parquet").to_pylist()
    label_id = int(tiny_vocabulary.label_ids[4])
    of_class = [row for row in rows if row["class"] == label_id]
    threshold = sorted(row["probability"] for row in of_class)[len(of_class) // 2]
    options = [label_id, "--threshold", threshold, "--limit", 0, "--json"]
    of_run = succeeds("search", *options, "--run", finished_run.out).out
    (found,) = json.loads(of_run)
    assert sum(moment["num_segments"] for moment in found["moments"]) == sum(
        row["probability"] >= threshold for row in of_class
    )
    best = of_class[0]
    assert found["moments"][0]["video_id"] == best["video"]
    assert found["moments"][0]["start"] <= best["start"] < found["moments"][0]["end"]
    assert succeeds("search", *options, "--table", finished_run.out / "segments.parquet").out == of_run
    assert all("probability" in moment for moment in found["moments"])
    succeeds("predict", "--run", finished_run.out, "--store", tmp_path / "of_run", "--accelerator", "cpu")
    assert succeeds("search", *options, "--store", tmp_path / "of_run").out == of_run
    # Model folders have no calibration.
    succeeds("predict", *models, "--store", tmp_path / "store", "--accelerator", "cpu")
    (found,) = json.loads(succeeds("search", label_id, "--threshold", 0, "--json", "--store", tmp_path / "store").out)
    assert all("score" in moment and "probability" not in moment for moment in found["moments"])


def test_search_refuses_invalid_arguments(table: Path, finished_run: FinishedRun, tmp_path: Path) -> None:
    assert refused(2, "search", "foot", "--table", table) == "There is no concept 'foot' (did you mean 'Food'?)."
    one = "yt8m search needs one of --run DIR, the folder of a run; --table FILE, a segments.parquet; --store DIR, "
    assert refused(2, "search", "food") == one + "stored predictions."
    assert refused(2, "search", "food", "--table", table, "--run", finished_run.out).startswith(one)
    absent = tmp_path / "absent"
    assert refused(2, "search", "food", "--table", absent) == f"{absent}: there is no such table."
    assert refused(2, "search", "food", "--run", absent).startswith(f"{absent}: expected the folder of a run with ")
    assert refused(2, "search", "food", "--store", absent).startswith(
        f"{absent}: there is no such folder of predictions"
    )
    (tmp_path / "text.parquet").write_text("Class,Segments\n")
    sentence = refused(2, "search", "food", "--table", tmp_path / "text.parquet")
    assert sentence.startswith(f"{tmp_path / 'text.parquet'}: cannot be read as a Parquet table (")
    (tmp_path / "cut.parquet").write_bytes(table.read_bytes()[:-40])
    assert "cannot be read as a Parquet table" in refused(2, "search", "food", "--table", tmp_path / "cut.parquet")
    pq.write_table(pq.read_table(table).drop_columns("start"), tmp_path / "other.parquet")
    sentence = refused(2, "search", "food", "--table", tmp_path / "other.parquet")
    assert "is not the table of a ranking, it has no column 'start'" in sentence
    assert yt8m("search", "--table", table).status == 2


def test_a_damaged_table_is_reported(table: Path) -> None:
    content = bytearray(table.read_bytes())
    content[4:200] = bytes(196)
    table.write_bytes(content)
    assert refused(1, "search", "food", "--table", table).startswith(f"{table}: cannot be read (")


def test_searching_a_table_does_not_import_torch(table: Path) -> None:
    code = (
        f"import sys; sys.argv = ['yt8m', 'search', 'food', '--table', {str(table)!r}]\n"
        "from yt8m.cli.main import main\nmain()"
    )
    check = "import atexit, sys; atexit.register(lambda: sys.stderr.write(str('torch' in sys.modules)))\n"
    ended = subprocess.run([sys.executable, "-c", check + code], capture_output=True, text=True, check=True)
    assert ended.stdout.startswith("Food\tab12")
    assert ended.stderr == "False"
