"""The calibration of a run: kept with it, and used by every command that reads it."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.support.command import succeeds
from tests.support.tiny_run import FinishedRun
from yt8m.dataset.catalog import Catalog
from yt8m.ranking.calibration import Calibration
from yt8m.runs.records import read_record

CPU = ["--accelerator", "cpu"]


@pytest.fixture
def copy(tmp_path: Path, finished_run: FinishedRun) -> Path:
    """A copy of the finished run, which tests may change."""
    return Path(shutil.copytree(finished_run.out, tmp_path / "out"))


def calibration_of(run: Path) -> Calibration | None:
    record = read_record(run / "predict")
    assert record is not None
    return record.calibration


def columns_of(table: Path) -> dict[str, list]:
    columns: dict[str, list] = pq.read_table(table).to_pydict()
    return columns


@pytest.fixture(scope="module")
def stored_run(
    tmp_path_factory: pytest.TempPathFactory, finished_run: FinishedRun, tiny_dataset: Path, tiny_recipe: Path
) -> Path:
    """A run of the same recipe that stores all probabilities."""
    out = tmp_path_factory.mktemp("stored") / "out"
    succeeds("run", tiny_recipe, "--data", tiny_dataset, "--out", out, "--set", "ensemble.store=true")
    return out


def test_predict_and_merge_write_the_table_of_the_run(
    finished_run: FinishedRun, stored_run: Path, tmp_path: Path
) -> None:
    expected = (finished_run.out / "segments.parquet").read_bytes()
    assert (stored_run / "segments.parquet").read_bytes() == expected
    options = ["--table", tmp_path / "t.parquet", "--out", tmp_path / "s.csv"]
    succeeds("predict", "--run", finished_run.out, *options, "--store", tmp_path / "store", *CPU)
    assert (tmp_path / "t.parquet").read_bytes() == expected
    for arguments in (["--run", stored_run], [stored_run / "predict/store"], [tmp_path / "store"]):
        (tmp_path / "t.parquet").unlink()
        succeeds("merge", *arguments, *options)
        assert (tmp_path / "t.parquet").read_bytes() == expected


def test_the_table_has_the_calibrated_scores_in_the_same_order(
    finished_run: FinishedRun, models: list[object], tmp_path: Path
) -> None:
    calibration = calibration_of(finished_run.out)
    assert calibration is not None
    succeeds("predict", *models, "--table", tmp_path / "t.parquet", *CPU)
    scores, of_run = columns_of(tmp_path / "t.parquet"), columns_of(finished_run.out / "segments.parquet")
    values = np.array(scores.pop("score"), np.float32)
    assert of_run.pop("probability") == calibration(values).tolist()
    assert scores == of_run


def test_other_ensembles_have_scores(finished_run: FinishedRun, stored_run: Path, tmp_path: Path) -> None:
    options = ["--table", tmp_path / "t.parquet"]
    for changed in (["--weight", "bare=2"], ["--set", "method=geometric"], ["--shift", "1"]):
        succeeds("predict", "--run", finished_run.out, *changed, *options, *CPU)
        assert "score" in columns_of(tmp_path / "t.parquet")
    succeeds("merge", "--run", stored_run, "--weight", "bare=2", *options, "--out", tmp_path / "s.csv")
    assert "score" in columns_of(tmp_path / "t.parquet")
    # The same weights in other words are the same ensemble.
    succeeds("predict", "--run", finished_run.out, "--weight", "bare=2", "--weight", "aware=2", *options, *CPU)
    assert "probability" in columns_of(tmp_path / "t.parquet")


def test_a_model_that_was_trained_again_has_scores(
    copy: Path, tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    again = ["--set", "segment_models.bare.seed=5", "--only", "finetune/bare"]
    succeeds("run", tiny_recipe, "--data", tiny_dataset, "--out", copy, *again)
    succeeds("predict", "--run", copy, "--table", tmp_path / "t.parquet", *CPU)
    assert "score" in columns_of(tmp_path / "t.parquet")


def test_locate_shows_probabilities_of_a_run_and_scores_of_models(
    finished_run: FinishedRun, models: list[object], tiny_dataset: Path
) -> None:
    video = Catalog.load(tiny_dataset / "segment/test").video_ids[2]
    of_run, of_models = (
        json.loads(succeeds("locate", video, *arguments, *CPU, "--json").out)[0]["concepts"]
        for arguments in (["--run", finished_run.out], models)
    )
    calibration = calibration_of(finished_run.out)
    assert calibration is not None
    assert [concept["label_id"] for concept in of_run] == [concept["label_id"] for concept in of_models]
    scores = np.array([concept["scores"] for concept in of_models], np.float32)
    # JSON has four digits, and this map is steep.
    slope = (calibration.low + calibration.high) / scores.min()
    np.testing.assert_allclose([c["probabilities"] for c in of_run], calibration(scores), atol=1e-4 * slope)
    assert "\nprobability  " in succeeds("locate", video, "--run", finished_run.out, *CPU).out
    assert "\nscore  " in succeeds("locate", video, *models, *CPU).out


def test_ranks_have_no_probabilities(copy: Path, tiny_dataset: Path, tiny_recipe: Path) -> None:
    done = succeeds("run", tiny_recipe, "--data", tiny_dataset, "--out", copy, "--set", "ensemble.method=rank")
    assert "predict: scores are not calibrated to probabilities, because ranks have none\n" in done.err
    assert calibration_of(copy) is None
    assert "score" in columns_of(copy / "segments.parquet")
    assert not (copy / "predict/reliability.csv").exists()


def test_reliability_is_measured_where_there_is_truth(finished_run: FinishedRun) -> None:
    with (finished_run.out / "predict/reliability.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["truth"], row["value"]) for row in rows} >= {("rated", "score"), ("rated", "probability")}
    rated = [row for row in rows if row["truth"] == "rated"]
    assert all(float(row["ece_low"]) <= float(row["ece"]) <= float(row["ece_high"]) for row in rated)
    assert (finished_run.out / "predict/reliability.png").is_file()
