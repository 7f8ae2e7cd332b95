"""The prediction stage: ways to merge, weights found on held-out folds, the store, and the ground truth."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.support.command import succeeds
from tests.support.rows import ratings_of
from tests.support.tiny_run import RANKINGS, STAGE_TITLES, STAGES, FinishedRun, score_rows, skipped_stages
from yt8m.dataset.catalog import Catalog
from yt8m.runs.records import read_record
from yt8m.submission.format import read_submission


def test_without_comparison_only_the_ensemble_is_ranked(
    copy: Path, finished_run: FinishedRun, tiny_dataset: Path, tiny_recipe: Path
) -> None:
    """Without `compare`, only the ensemble's models predict, and the ensemble is the only row."""
    shutil.rmtree(copy / "finetune" / "aware")
    changes = ["--set", "compare=false", "--set", "ensemble.models=[bare]", "--set", "top_k=7"]
    done = succeeds("run", tiny_recipe, "--data", tiny_dataset, "--out", copy, "--only", "predict", *changes)
    assert [row["ranking"] for row in score_rows(copy)] == ["ensemble"]
    assert "MAP@7" in done.out
    found = dict(read_submission(copy / "submission.csv"))
    assert {len(segments) for segments in found.values()} == {7}
    # The score of the first seven segments differs from that of the complete list.
    assert score_rows(copy)[0]["dense_map"] != score_rows(finished_run.out)[1]["dense_map"]


WAYS_TO_MERGE: dict[str, tuple[list[str], list[object]]] = {
    "geometric": (["method=geometric", "weights.bare=2"], ["--set", "method=geometric", "--weight", "bare=2"]),
    "rank": (["method=rank"], ["--set", "method=rank", "--store", "store"]),
    "prior": (["video_prior.models=[dbof]"], ["--set", "video_prior.models=[dbof]"]),
    "candidates": (
        ["candidates={models: [nextvlad], min_video_probability: 0.0051}"],
        ["--set", "candidates={models: [nextvlad], min_video_probability: 0.0051}"],
    ),
    "shifts": (["shifts=[-1,0,1]"], ["--shift", "-1", "--shift", "0", "--shift", "1"]),
    "store": (["store=true", "weights.aware=0.5"], ["--weight", "aware=0.5"]),
    "all": (
        [
            "method=geometric",
            "video_prior={models: [nextvlad, dbof], video_exponent: 0.4}",
            "candidates={models: [dbof], min_video_probability: 0.004}",
            "shifts=[0,1]",
            "store=true",
        ],
        [
            *("--set", "method=geometric"),
            *("--set", "video_prior={models: [nextvlad, dbof], video_exponent: 0.4}"),
            *("--set", "candidates={models: [dbof], min_video_probability: 0.004}"),
            *("--shift", "1", "--shift", "0"),
        ],
    ),
}
"""Settings of a recipe's ensemble, and the equivalent options of `predict`."""


@pytest.mark.parametrize("name", WAYS_TO_MERGE)
def test_run_and_predict_write_the_same_submission(
    copy: Path, finished_run: FinishedRun, tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path, name: str
) -> None:
    settings, options = WAYS_TO_MERGE[name]
    changes = [part for setting in settings for part in ("--set", f"ensemble.{setting}")]
    arguments = ["run", tiny_recipe, "--data", tiny_dataset, "--out", copy, *changes]
    done = succeeds(*arguments)
    assert skipped_stages(done.err) == STAGE_TITLES[:-1]
    assert (copy / "submission.csv").read_bytes() != (finished_run.out / "submission.csv").read_bytes()
    uses_videos = name in ("prior", "candidates", "all")
    more = ["segment models only"] if uses_videos else []
    assert [row["ranking"] for row in score_rows(copy)] == [*RANKINGS[:-1], *more, "ensemble"]
    # Single models are ranked by their own probabilities; only shifts change these.
    assert (score_rows(copy)[:3] == score_rows(finished_run.out)[:3]) == (name not in ("shifts", "all"))
    if name == "prior":
        assert score_rows(copy)[-2]["map_at_k"] == score_rows(finished_run.out)[-1]["map_at_k"]
    assert (copy / "predict/store").is_dir() == (name in ("store", "all"))
    assert not list((copy / "predict").glob("*.part"))
    assert not (copy / "predict/store.unfinished").exists()

    folders = [copy / "finetune" / model / "model" for model in ("bare", "aware")]
    folders += [copy / "pretrain" / base / "model" for base in ("dbof", "nextvlad") if base in str(settings)]
    places = ["--shards", tiny_dataset / "segment/test", "--vocabulary", tiny_dataset, "--accelerator", "cpu"]
    placed = [tmp_path / option if option == "store" else option for option in options]
    succeeds("predict", *folders, *places, *placed, "--out", tmp_path / "s.csv")
    assert (tmp_path / "s.csv").read_bytes() == (copy / "submission.csv").read_bytes()

    again = succeeds(*arguments)
    assert len(skipped_stages(again.err)) == len(STAGES)
    assert again.out == done.out


def test_a_kept_store_can_be_merged_again(
    copy: Path, finished_run: FinishedRun, tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    keep = ["--set", "ensemble.store=true"]
    succeeds("run", tiny_recipe, "--data", tiny_dataset, "--out", copy, *keep)
    for name in ("submission.csv", "segments.parquet", "predict/scores.csv", "predict/class_scores.csv"):
        assert (copy / name).read_bytes() == (finished_run.out / name).read_bytes(), name
    places = ["--shards", tiny_dataset / "segment/test", "--vocabulary", tiny_dataset]
    succeeds("merge", copy / "predict/store", *places, "--out", tmp_path / "s.csv")
    assert (tmp_path / "s.csv").read_bytes() == (copy / "submission.csv").read_bytes()
    shutil.rmtree(copy / "predict/store")
    again = succeeds("run", tiny_recipe, "--data", tiny_dataset, "--out", copy, *keep)
    assert skipped_stages(again.err) == STAGE_TITLES[:-1]
    assert (copy / "predict/store").is_dir()


def test_weights_are_found_if_models_of_two_kinds_hold_out_the_same_fold(
    copy: Path, finished_run: FinishedRun, tiny_dataset: Path, tiny_recipe: Path
) -> None:
    find = ["--set", "ensemble.find_weights=true"]
    arguments = ["run", tiny_recipe, "--data", tiny_dataset, "--out", copy, *find]
    apart = succeeds(*arguments)
    assert "predict: no fold was held out by models of two kinds, so all weights stay 1\n" in apart.err
    assert (copy / "submission.csv").read_bytes() == (finished_run.out / "submission.csv").read_bytes()

    together = succeeds(*arguments, "--set", "segment_models.aware.fold=0")
    line = next(line for line in together.err.splitlines() if "weights found" in line)
    match = re.fullmatch(
        r"predict: weights found on (\d+) held-out ratings: aware (\S+), bare (\S+) "
        r"\(cross-entropy (\S+), with equal weights (\S+)\)",
        line,
    )
    assert match
    catalog = Catalog.load(tiny_dataset / "segment/train")
    # Four folds by shard, one video per shard.
    held_out = [row for row in range(len(catalog)) if row % 4 == 0]
    of_fold = sum(len(ratings_of(catalog, row).label_ids) for row in held_out)
    assert int(match[1]) == of_fold
    aware, bare = float(match[2]), float(match[3])
    assert aware + bare == pytest.approx(2, abs=1e-3)
    assert float(match[4]) <= float(match[5])
    record = read_record(copy / "predict")
    assert record is not None
    assert record.ensemble_weights == {"aware": aware, "bare": bare}

    given = ["--set", f"ensemble.weights={{aware: {aware}, bare: {bare}}}", "--set", "segment_models.aware.fold=0"]
    found = (copy / "submission.csv").read_bytes()
    succeeds("run", tiny_recipe, "--data", tiny_dataset, "--out", copy, *given)
    assert (copy / "submission.csv").read_bytes() == found


def test_without_truth_there_is_a_submission_and_no_score(
    copy: Path, data: Path, finished_run: FinishedRun, tiny_recipe: Path
) -> None:
    for name in ("test_ratings.csv", "test_positives.csv"):
        (data / "segment" / name).unlink()
    done = succeeds("run", tiny_recipe, "--data", data, "--out", copy)
    assert "MAP" not in done.out
    assert (copy / "predict/timeline.png").is_file()
    assert not (copy / "predict/scores.png").exists()
    assert (copy / "submission.csv").read_bytes() == (finished_run.out / "submission.csv").read_bytes()
    again = succeeds("run", tiny_recipe, "--data", data, "--out", copy)
    assert len(skipped_stages(again.err)) == len(STAGES)
    assert again.out == done.out


def test_ratings_of_the_test_shards_are_the_truth_without_csv_files(copy: Path, data: Path, tiny_recipe: Path) -> None:
    shutil.rmtree(data / "segment/test")
    shutil.copytree(data / "segment/train", data / "segment/test")
    for name in ("test_ratings.csv", "test_positives.csv"):
        (data / "segment" / name).unlink()
    succeeds("run", tiny_recipe, "--data", data, "--out", copy)
    assert [row["ranking"] for row in score_rows(copy)] == RANKINGS
    assert {row["dense_map"] for row in score_rows(copy)} == {""}
    score = succeeds("evaluate", copy / "submission.csv", "--truth", data / "segment/train").out
    assert score.split()[0] == score_rows(copy)[-1]["map_at_k"]
