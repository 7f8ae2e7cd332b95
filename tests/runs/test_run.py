"""A recipe's stages on a tiny dataset: what they leave, what is skipped, and what happens when they are stopped."""

from __future__ import annotations

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

import yt8m
import yt8m.runs.run
import yt8m.training.loop
from tests.conftest import FinishedRun
from tests.support.command import refused, succeeds
from yt8m.dataset.catalog import FILE_NAME, Catalog
from yt8m.models.saved import load_model, read_description
from yt8m.prediction.predict import Predictions, predict
from yt8m.prediction.store import StoreIndex
from yt8m.runs.comparison import predict_and_score
from yt8m.runs.run import StageRecord, fingerprint, read_stage
from yt8m.submission.submission import read_submission
from yt8m.training.loop import Trainer
from yt8m.vocabulary import Vocabulary

STAGES = ["pretrain/dbof", "pretrain/nextvlad", "finetune/bare", "finetune/aware", "predict"]
RANKINGS = ["random", "bare", "aware", "agnostic only", "aware only", "mixture"]


@pytest.fixture
def copy(tmp_path: Path, finished_run: FinishedRun) -> Path:
    """A copy of the finished run, to change."""
    shutil.copytree(finished_run.out, tmp_path / "out")
    return tmp_path / "out"


def skipped(printed: str) -> list[str]:
    return [line.removesuffix(": finished before, skipped") for line in printed.splitlines() if "skipped" in line]


def scores(out: Path) -> list[dict[str, str]]:
    with (out / "predict" / "scores.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------------------------------------------ a finished run


def test_submission_lists_every_evaluated_segment_of_every_class(
    finished_run: FinishedRun, tiny_dataset: Path, tiny_vocabulary: Vocabulary
) -> None:
    catalog = Catalog.load(tiny_dataset / "segment/test")
    expected = {
        f"{video_id}:{start}".encode()
        for video_id, length in zip(catalog.video_ids, catalog.num_frames.tolist(), strict=True)
        for start in range(30, 5 * (-(-length // 5) - 2), 5)
    }
    found = dict(read_submission(finished_run.out / "submission.csv", tiny_vocabulary))
    assert list(found) == tiny_vocabulary.label_ids.tolist()
    assert len(expected) > 100
    assert all(set(segments) == expected for segments in found.values())
    assert len({tuple(segments) for segments in found.values()}) == len(found)


def test_the_table_lists_what_the_submission_does(finished_run: FinishedRun, tiny_vocabulary: Vocabulary) -> None:
    listed: dict[int, list[bytes]] = {}
    names = dict(zip(tiny_vocabulary.label_ids.tolist(), tiny_vocabulary.names, strict=True))
    before = (-1, 0.0)
    for row in pq.read_table(finished_run.out / "segments.parquet").to_pylist():
        listed.setdefault(row["class"], []).append(f"{row['video']}:{row['start']}".encode())
        assert row["name"] == names[row["class"]]
        assert 0 < row["probability"] < 1
        assert before[0] != row["class"] or row["probability"] <= before[1]
        before = (row["class"], row["probability"])
    assert listed == dict(read_submission(finished_run.out / "submission.csv"))


def test_stages_say_what_came_of_them(finished_run: FinishedRun) -> None:
    lines = finished_run.outcome.err.splitlines()
    assert [line.split(":")[0].replace(" ", "/") for line in lines] == STAGES
    for stage in STAGES:
        record = read_stage(finished_run.out / stage)
        assert record is not None
        assert record.status == "finished"
    assert not list(finished_run.out.rglob("checkpoint.pt"))
    assert not [path for path in finished_run.out.rglob("*") if path.name.startswith(".")]


def test_the_run_ends_with_the_table(finished_run: FinishedRun) -> None:
    rows = scores(finished_run.out)
    assert [row["ranking"] for row in rows] == RANKINGS
    for row in rows:
        line = next(line for line in finished_run.outcome.out.splitlines() if line.startswith(f"│ {row['ranking']} "))
        assert re.findall(r"\d\.\d{4}", line) == [f"{float(row[column]):.4f}" for column in ("map_at_k", "dense_map")]
        assert 0 < float(row["dense_map"]) <= float(row["map_at_k"]) <= 1
    # One agnostic and one aware model: the mean of all agnostic ones is that one.
    assert rows[1]["map_at_k"] == rows[3]["map_at_k"]
    for stage in STAGES:
        assert re.search(rf"│ {stage} +│ +\d+ │", finished_run.outcome.out)
    assert str(finished_run.out / "submission.csv") in finished_run.outcome.out


def test_models_load_and_say_where_they_come_from(finished_run: FinishedRun, tiny_vocabulary: Vocabulary) -> None:
    for stage in STAGES[:-1]:
        folder = finished_run.out / stage / "model"
        description = read_description(folder)
        assert description.provenance["name"] == stage.split("/")[1]
        assert description.provenance["step"] in (3, 6)
        model = load_model(folder, vocabulary_digest=tiny_vocabulary.digest)
        assert model.num_classes == len(tiny_vocabulary)
    aware, context = (load_model(finished_run.out / stage / "model") for stage in ("finetune/aware", "pretrain/dbof"))
    for name, tensor in context.state_dict().items():
        if name.startswith("encoder."):
            assert torch.equal(aware.state_dict()[f"context_{name}"], tensor), name


def test_pictures_and_class_scores_are_there(finished_run: FinishedRun, tiny_vocabulary: Vocabulary) -> None:
    for name in ("scores.png", "timeline.png"):
        picture = matplotlib.image.imread(finished_run.out / "predict" / name)
        assert picture.shape[0] > 200
        assert picture.std() > 0.05
        assert str(finished_run.out / "predict" / name) in finished_run.outcome.out
    with (finished_run.out / "predict/class_scores.csv").open(newline="") as file:
        of_classes = list(csv.DictReader(file))
    assert {row["name"] for row in of_classes} <= set(tiny_vocabulary.names)
    mean = np.mean([float(row["ap"]) for row in of_classes])
    assert mean == pytest.approx(float(scores(finished_run.out)[-1]["map_at_k"]), abs=1e-5)


def test_the_recipe_kept_beside_makes_the_same_run(copy: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    shutil.copy(copy / "recipe.yaml", tmp_path / "kept.yaml")
    again = succeeds("run", tmp_path / "kept.yaml", "--data", tiny_dataset, "--out", copy)
    assert len(skipped(again.err)) == len(STAGES)


# ------------------------------------------------------------------------------------------------------------ skipping


def test_second_run_skips_every_stage_and_prints_the_same(
    copy: Path, finished_run: FinishedRun, tiny_dataset: Path, tiny_recipe: Path
) -> None:
    def times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.name != "recipe.yaml"}

    before = times()
    again = succeeds("run", tiny_recipe, "--data", tiny_dataset, "--out", copy)
    assert skipped(again.err) == [stage.replace("/", " ") for stage in STAGES]
    assert again.out == finished_run.outcome.out.replace(str(finished_run.out), str(copy))
    assert times() == before


def test_a_setting_retrains_only_what_depends_on_it(
    copy: Path, finished_run: FinishedRun, tiny_dataset: Path, tiny_recipe: Path
) -> None:
    override = "base_models.nextvlad.training.peak_lr=1e-3"
    changed = succeeds("run", tiny_recipe, "--data", tiny_dataset, "--out", copy, "--set", override)
    assert skipped(changed.err) == ["pretrain dbof", "finetune bare"]
    kept = {"pretrain/nextvlad", "finetune/aware", "predict"}
    for stage in kept:
        assert (
            f"{stage.replace('/', ' ')}: the settings or the data changed; the former result is kept in" in changed.err
        )
        former = copy / f"{stage}.before-1"
        assert (former / "stage.yaml").read_bytes() == (finished_run.out / stage / "stage.yaml").read_bytes()
    weights = "model/model.safetensors"
    for stage in STAGES[:-1]:
        same = (copy / stage / weights).read_bytes() == (finished_run.out / stage / weights).read_bytes()
        assert same == (stage not in kept)
    for name in ("segments.parquet", "submission.csv"):
        former = copy / "predict.before-1" / name
        assert former.read_bytes() == (finished_run.out / name).read_bytes()
        assert (copy / name).read_bytes() != former.read_bytes()
    assert scores(copy)[1] == scores(finished_run.out)[1]
    assert scores(copy)[2] != scores(finished_run.out)[2]

    back = succeeds("run", tiny_recipe, "--data", tiny_dataset, "--out", copy, "--only", "pretrain/nextvlad")
    assert "kept in" in back.err
    assert (copy / "pretrain/nextvlad.before-2").is_dir()
    assert (copy / "pretrain/nextvlad" / weights).read_bytes() == (
        finished_run.out / "pretrain/nextvlad" / weights
    ).read_bytes()


@pytest.mark.parametrize(
    "override",
    [
        "base_models.dbof.training.checkpoint_every=4",
        "segment_models.aware.training.log_every=1",
        "machine.num_workers=0",
        "description=The same in other words",
        "seed=0",
    ],
)
def test_what_changes_no_result_repeats_no_stage(
    copy: Path, tiny_dataset: Path, tiny_recipe: Path, override: str
) -> None:
    again = succeeds("run", tiny_recipe, "--data", tiny_dataset, "--out", copy, "--set", override)
    assert len(skipped(again.err)) == len(STAGES)


@pytest.mark.parametrize(
    ("kind", "settings", "inputs"),
    [("finetune", {"a": 1}, {"x": "1"}), ("pretrain", {"a": 2}, {"x": "1"}), ("pretrain", {"a": 1}, {"y": "1"})],
)
def test_fingerprints_tell_stages_apart(kind: str, settings: dict[str, int], inputs: dict[str, str]) -> None:
    one = fingerprint("pretrain", {"a": 1, "b": 2}, {"x": "1"})
    assert one == fingerprint("pretrain", {"b": 2, "a": 1}, {"x": "1"})
    assert one != fingerprint(kind, settings | {"b": 2}, inputs)


def test_a_stage_file_of_something_else_is_no_record(tmp_path: Path) -> None:
    assert read_stage(tmp_path) is None
    (tmp_path / "stage.yaml").write_text("- a list\n")
    assert read_stage(tmp_path) is None
    (tmp_path / "stage.yaml").write_text("fingerprint: abc\nstatus: finished\n")
    assert read_stage(tmp_path) == StageRecord("abc", "finished", 0.0, {})


@pytest.mark.parametrize("lost", ["submission.csv", "segments.parquet", "predict/scores.csv"])
def test_a_lost_result_is_made_again(
    copy: Path, finished_run: FinishedRun, tiny_dataset: Path, tiny_recipe: Path, lost: str
) -> None:
    (copy / lost).unlink()
    again = succeeds("run", tiny_recipe, "--data", tiny_dataset, "--out", copy, "--only", "predict")
    assert skipped(again.err) == []
    assert (copy / lost).read_bytes() == (finished_run.out / lost).read_bytes()
    assert not (copy / "predict.before-1").exists()


# -------------------------------------------------------------------------------------------------------------- merging


def test_ensemble_without_comparison(
    copy: Path, finished_run: FinishedRun, tiny_dataset: Path, tiny_recipe: Path
) -> None:
    """Without `compare`, only the ensemble's models are predicted, and the mixture is the only row."""
    shutil.rmtree(copy / "finetune" / "aware")
    changes = ["--set", "compare=false", "--set", "ensemble.models=[bare]", "--set", "top_k=7"]
    done = succeeds("run", tiny_recipe, "--data", tiny_dataset, "--out", copy, "--only", "predict", *changes)
    assert [row["ranking"] for row in scores(copy)] == ["mixture"]
    assert "MAP@7" in done.out
    found = dict(read_submission(copy / "submission.csv"))
    assert {len(segments) for segments in found.values()} == {7}
    # The score of the first seven is not that of the whole list.
    assert scores(copy)[0]["dense_map"] != scores(finished_run.out)[1]["dense_map"]


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
"""Settings of a recipe's ensemble, and the options of `predict` that say the same."""


@pytest.mark.parametrize("name", WAYS_TO_MERGE)
def test_every_way_to_merge_makes_the_submission_that_predict_makes(
    copy: Path, finished_run: FinishedRun, tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path, name: str
) -> None:
    settings, options = WAYS_TO_MERGE[name]
    changes = [part for setting in settings for part in ("--set", f"ensemble.{setting}")]
    arguments = ["run", tiny_recipe, "--data", tiny_dataset, "--out", copy, *changes]
    done = succeeds(*arguments)
    assert skipped(done.err) == [stage.replace("/", " ") for stage in STAGES[:-1]]
    assert (copy / "submission.csv").read_bytes() != (finished_run.out / "submission.csv").read_bytes()
    uses_videos = name in ("prior", "candidates", "all")
    more = ["segment models only"] if uses_videos else []
    assert [row["ranking"] for row in scores(copy)] == [*RANKINGS[:-1], *more, "mixture"]
    # Single models are ranked by what they say alone; only shifts change that.
    assert (scores(copy)[:3] == scores(finished_run.out)[:3]) == (name not in ("shifts", "all"))
    if name == "prior":
        assert scores(copy)[-2]["map_at_k"] == scores(finished_run.out)[-1]["map_at_k"]
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
    assert len(skipped(again.err)) == len(STAGES)
    assert again.out == done.out


def test_a_store_that_is_kept_can_be_merged_anew(
    copy: Path, finished_run: FinishedRun, tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    keep = ["--set", "ensemble.store=true"]
    succeeds("run", tiny_recipe, "--data", tiny_dataset, "--out", copy, *keep)
    for name in ("submission.csv", "segments.parquet", "predict/scores.csv", "predict/class_scores.csv"):
        assert (copy / name).read_bytes() == (finished_run.out / name).read_bytes(), name
    places = ["--shards", tiny_dataset / "segment/test", "--vocabulary", tiny_dataset]
    succeeds("submit", copy / "predict/store", *places, "--out", tmp_path / "s.csv")
    assert (tmp_path / "s.csv").read_bytes() == (copy / "submission.csv").read_bytes()
    shutil.rmtree(copy / "predict/store")
    again = succeeds("run", tiny_recipe, "--data", tiny_dataset, "--out", copy, *keep)
    assert skipped(again.err) == [stage.replace("/", " ") for stage in STAGES[:-1]]
    assert (copy / "predict/store").is_dir()


def test_weights_are_found_where_models_of_two_kinds_held_out_a_fold(
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
    # Four folds by shard, a video a shard.
    held_out = [row for row in range(len(catalog)) if row % 4 == 0]
    of_fold = sum(len(catalog.ratings_of(row).label_ids) for row in held_out)
    assert int(match[1]) == of_fold
    aware, bare = float(match[2]), float(match[3])
    assert aware + bare == pytest.approx(2, abs=1e-3)
    assert float(match[4]) <= float(match[5])
    record = read_stage(copy / "predict")
    assert record is not None
    assert record.metrics["weight of aware"] == aware
    assert record.metrics["weight of bare"] == bare

    given = ["--set", f"ensemble.weights={{aware: {aware}, bare: {bare}}}", "--set", "segment_models.aware.fold=0"]
    found = (copy / "submission.csv").read_bytes()
    succeeds("run", tiny_recipe, "--data", tiny_dataset, "--out", copy, *given)
    assert (copy / "submission.csv").read_bytes() == found


def test_without_truth_there_is_a_submission_and_no_score(
    copy: Path, finished_run: FinishedRun, tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_dataset, data)
    for name in ("test_ratings.csv", "test_positives.csv"):
        (data / "segment" / name).unlink()
    done = succeeds("run", tiny_recipe, "--data", data, "--out", copy)
    assert "MAP" not in done.out
    assert (copy / "predict/timeline.png").is_file()
    assert not (copy / "predict/scores.png").exists()
    assert (copy / "submission.csv").read_bytes() == (finished_run.out / "submission.csv").read_bytes()
    again = succeeds("run", tiny_recipe, "--data", data, "--out", copy)
    assert len(skipped(again.err)) == len(STAGES)
    assert again.out == done.out


def test_rated_test_shards_are_their_own_truth(
    copy: Path, tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_dataset, data)
    shutil.rmtree(data / "segment/test")
    shutil.copytree(data / "segment/train", data / "segment/test")
    for name in ("test_ratings.csv", "test_positives.csv"):
        (data / "segment" / name).unlink()
    succeeds("run", tiny_recipe, "--data", data, "--out", copy)
    assert [row["ranking"] for row in scores(copy)] == RANKINGS
    assert {row["dense_map"] for row in scores(copy)} == {""}
    score = succeeds("evaluate", copy / "submission.csv", "--truth", data / "segment/train").out
    assert score.split()[0] == scores(copy)[-1]["map_at_k"]


# ------------------------------------------------------------------------------------------------- before anything runs


def test_missing_parts_are_said_before_training(tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_dataset, data)
    shutil.rmtree(data / "segment/test")
    sentence = refused(2, "run", tiny_recipe, "--data", data, "--out", tmp_path / "out")
    assert sentence.startswith(f"{data / 'segment/test'}: there is no such folder")
    assert not (tmp_path / "out" / "pretrain").exists()


def test_a_stage_needs_only_its_own_data(copy: Path, tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_dataset, data)
    shutil.rmtree(data / "segment/test")
    done = succeeds("run", tiny_recipe, "--data", data, "--out", copy, "--only", "finetune")
    assert skipped(done.err) == ["finetune bare", "finetune aware"]
    shutil.rmtree(data / "segment/train")
    done = succeeds("run", tiny_recipe, "--data", data, "--out", copy, "--only", "pretrain")
    assert skipped(done.err) == ["pretrain dbof", "pretrain nextvlad"]


def test_more_folds_than_shards_are_said_before_training(tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    folds = ["--set", "folds=17"]
    sentence = refused(2, "run", tiny_recipe, "--data", tiny_dataset, "--out", tmp_path / "out", *folds)
    assert "17 folds by shard need at least 17 shards, found 16" in sentence
    assert not (tmp_path / "out" / "pretrain").exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("video,label,start,score\naaaa,99999,30,1\n", "The truth rates the label 99999"),
        ("video,label,start,score\naaaa,{label},30,0\n", "The truth holds no positive rating"),
        ("video,label,start,score\naaaa,{label},31,1\n", "line 2: expected a start in seconds"),
        ("nonsense\n", "line 1: expected a header"),
    ],
)
def test_a_truth_that_cannot_be_used_is_said_before_training(
    tiny_dataset: Path, tiny_recipe: Path, tiny_vocabulary: Vocabulary, tmp_path: Path, content: str, expected: str
) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_dataset, data)
    (data / "segment/test_ratings.csv").write_text(content.format(label=tiny_vocabulary.label_ids[0]))
    assert expected in refused(1, "run", tiny_recipe, "--data", data, "--out", tmp_path / "out")
    assert not (tmp_path / "out" / "pretrain").exists()


def test_a_stage_that_cannot_begin_leaves_the_former_result(
    copy: Path, finished_run: FinishedRun, tiny_dataset: Path, tiny_recipe: Path
) -> None:
    changes = ["--set", "base_models.dbof.seed=5"]
    sentence = refused(2, "finetune", tiny_recipe, "bare", "--data", tiny_dataset, "--out", copy, *changes)
    assert f"{copy / 'pretrain/dbof'}: was trained with other settings or data than the recipe's" in sentence
    stage = "finetune/bare/stage.yaml"
    assert (copy / stage).read_bytes() == (finished_run.out / stage).read_bytes()
    assert not (copy / "finetune/bare.before-1").exists()
    assert "was trained with other settings" in refused(
        2, "run", tiny_recipe, "--data", tiny_dataset, "--out", copy, "--only", "predict", "--set", "folds=5"
    )
    assert (copy / "predict/stage.yaml").read_bytes() == (finished_run.out / "predict/stage.yaml").read_bytes()


def test_base_models_have_to_be_trained_first(tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sentence = refused(2, "finetune", tiny_recipe, "bare", "--data", tiny_dataset, "--out", out)
    assert sentence == f"{out / 'pretrain/dbof'}: pretrain of 'dbof' is not finished; run that stage first."
    assert not (out / "finetune").exists()
    sentence = refused(2, "run", tiny_recipe, "--data", tiny_dataset, "--out", out, "--only", "predict")
    assert sentence == f"{out / 'finetune/bare'}: finetune of 'bare' is not finished; run that stage first."


# ------------------------------------------------------------------------------------------------------- damaged shards


def test_damage_found_on_the_way_stops_the_run_once(
    copy: Path, finished_run: FinishedRun, tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_dataset, data)
    test = data / "segment/test"
    for name in ("test0002.tfrecord", "test0005.tfrecord"):
        with (test / name).open("r+b") as file:
            file.truncate((test / name).stat().st_size - 1000)
    sentence = refused(1, "run", tiny_recipe, "--data", data, "--out", copy)
    assert sentence.startswith(
        f"{test}: 2 damaged places were found while indexing, the first: {test / 'test0002.tfrecord'}, record 0"
    )
    assert f"{test / 'catalog_report.csv'} lists all; run again to go on without them." in sentence
    report = (test / "catalog_report.csv").read_text().splitlines()
    assert [line.split(",")[:4] for line in report[1:]] == [
        [name, "0", "0", "damage"] for name in ("test0002.tfrecord", "test0005.tfrecord")
    ]
    catalog = Catalog.load(test)
    assert (len(catalog), catalog.num_problems, catalog.is_current()) == (6, 2, True)

    lost = set(Catalog.load(tiny_dataset / "segment/test").video_ids) - set(catalog.video_ids)
    again = succeeds("run", tiny_recipe, "--data", data, "--out", copy)
    assert [line.replace(" ", "/") for line in skipped(again.err)] == STAGES[:-1]

    def videos(out: Path) -> set[str]:
        of_classes = [segments for _, segments in read_submission(out / "submission.csv")]
        return {segment.decode().split(":")[0] for segments in of_classes for segment in segments}

    assert len(lost) == 2
    assert videos(finished_run.out) - videos(copy) == lost
    assert videos(copy) == set(catalog.video_ids)


def test_a_run_indexes_what_has_not_been(tiny_dataset: Path, tiny_recipe: Path, copy: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_dataset, data, ignore=shutil.ignore_patterns(FILE_NAME))
    # The same shards elsewhere are the same data: nothing is trained again.
    done = succeeds("run", tiny_recipe, "--data", data, "--out", copy)
    assert len(skipped(done.err)) == len(STAGES)
    parts = {path.parent.relative_to(data).as_posix() for path in data.rglob(FILE_NAME)}
    assert parts == {"video/train", "video/valid", "segment/train", "segment/test"}


# ------------------------------------------------------------------------------------------------------------- stopping


class Killed(BaseException):
    """Stands for a kill: nothing of the project catches it."""


def stop_at(place: str, number: int) -> Callable[..., object]:
    """Make a function that works until its call of this number, and then is killed right after it, or in front of it."""
    calls = 0
    functions: dict[str, Callable[..., object]] = {
        "checkpoint": Trainer.save_checkpoint,
        "evaluation": Trainer.evaluate,
        "end": yt8m.runs.run._write_stage,
        "table": predict_and_score,
    }

    def stopping(*arguments: object, **named: object) -> object:
        nonlocal calls
        calls += 1
        if place == "end" and calls == number:
            raise Killed
        result = functions[place](*arguments, **named)
        if place != "end" and calls == number:
            raise Killed
        return result

    return stopping


TARGETS = {
    "checkpoint": "yt8m.training.loop.Trainer.save_checkpoint",
    "evaluation": "yt8m.training.loop.Trainer.evaluate",
    "end": "yt8m.runs.run._write_stage",
    "table": "yt8m.runs.run.predict_and_score",
}


@pytest.mark.parametrize(
    ("place", "number"),
    [
        # aware is trained for 6 steps: checkpoints after 2, 4 and 6, evaluations after 3 and 6.
        ("checkpoint", 1),
        ("evaluation", 1),
        ("checkpoint", 2),
        ("evaluation", 2),
        ("checkpoint", 3),
        # The second record is the one that says that training is finished.
        ("end", 2),
    ],
)
def test_training_that_was_stopped_goes_on_to_the_same_end(
    copy: Path,
    finished_run: FinishedRun,
    tiny_dataset: Path,
    tiny_recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    number: int,
) -> None:
    shutil.rmtree(copy / "finetune/aware")
    command = ["finetune", tiny_recipe, "aware", "--data", tiny_dataset, "--out", copy]
    monkeypatch.setattr(TARGETS[place], stop_at(place, number))
    with pytest.raises(Killed):
        succeeds(*command)
    monkeypatch.undo()
    assert "finetune aware: goes on where it was stopped" in succeeds(*command).err
    for name in ("model/model.safetensors", "model/config.yaml", "metrics.csv"):
        expected = (finished_run.out / "finetune/aware" / name).read_bytes()
        assert (copy / "finetune/aware" / name).read_bytes() == expected, name


def test_prediction_that_was_stopped_is_made_again(
    copy: Path, finished_run: FinishedRun, tiny_dataset: Path, tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(copy / "predict")
    (copy / "submission.csv").unlink()
    command = ["run", tiny_recipe, "--data", tiny_dataset, "--out", copy]
    monkeypatch.setattr(TARGETS["table"], stop_at("table", 1))
    with pytest.raises(Killed):
        succeeds(*command)
    monkeypatch.undo()
    assert len(skipped(succeeds(*command).err)) == len(STAGES) - 1
    for name in ("submission.csv", "predict/scores.csv"):
        assert (copy / name).read_bytes() == (finished_run.out / name).read_bytes(), name


@pytest.mark.parametrize("store", [False, True])
def test_prediction_that_gets_a_signal_goes_on_where_it_was(
    copy: Path,
    finished_run: FinishedRun,
    tiny_dataset: Path,
    tiny_recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    store: bool,
) -> None:
    shutil.rmtree(copy / "predict")
    (copy / "submission.csv").unlink()
    make_index = StoreIndex.of

    def in_small_blocks(*arguments: Any) -> StoreIndex:
        return make_index(*arguments).model_copy(update={"segments_per_block": 16})

    monkeypatch.setattr(StoreIndex, "of", in_small_blocks)
    monkeypatch.setattr("yt8m.prediction.predict.SEGMENTS_PER_BATCH", 16)
    starts: list[int] = []

    def noted(*arguments: Any) -> Iterator[Predictions]:
        for predictions in predict(*arguments):
            starts.append(predictions.start)
            if len(starts) == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            yield predictions

    monkeypatch.setattr("yt8m.prediction.passes.predict", noted)
    command = ["run", tiny_recipe, "--data", tiny_dataset, "--out", copy, "--only", "predict"]
    command += ["--set", f"ensemble.store={str(store).lower()}"]
    assert "stopped as asked; the same command goes on" in refused(75, *command)
    assert not (copy / "submission.csv").exists()
    record = read_stage(copy / "predict")
    assert record is not None
    assert record.status == "started"
    assert "predict: goes on where it was stopped" in succeeds(*command).err
    assert starts == list(range(0, starts[-1] + 16, 16))
    for name in ("submission.csv", "segments.parquet", "predict/scores.csv"):
        assert (copy / name).read_bytes() == (finished_run.out / name).read_bytes(), name
    assert not list((copy / "predict").glob("*.part"))


KILLED_AFTER_A_CHECKPOINT = """
import os, signal
from yt8m.cli.main import main
from yt8m.training.checkpoint import CheckpointWriter

write = CheckpointWriter._write

def write_and_die(self, state):
    write(self, state)
    if self.path.parent.name == "nextvlad":
        os.kill(os.getpid(), signal.SIGKILL)

CheckpointWriter._write = write_and_die
main()
"""


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(yt8m.__file__).parents[1]), "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_a_killed_process_goes_on_to_the_same_end(
    finished_run: FinishedRun, tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ["run", str(tiny_recipe), "--data", str(tiny_dataset), "--out", str(out)]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_AFTER_A_CHECKPOINT, *arguments],
        check=False,
        capture_output=True,
        env=environment(),
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    record = read_stage(out / "pretrain/nextvlad")
    assert record is not None
    assert record.status == "started"
    assert (out / "pretrain/nextvlad/checkpoint.pt").is_file()
    done = succeeds(*arguments)
    assert skipped(done.err) == ["pretrain dbof"]
    assert "pretrain nextvlad: goes on where it was stopped" in done.err
    assert (out / "submission.csv").read_bytes() == (finished_run.out / "submission.csv").read_bytes()


@pytest.mark.slow
def test_two_processes_end_with_one_submission(
    tiny_dataset: Path, tiny_recipe: Path, tiny_vocabulary: Vocabulary, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    places = [str(tiny_recipe), "--data", str(tiny_dataset), "--out", str(out)]
    command = [sys.executable, "-m", "yt8m", "run", *places]
    ended = subprocess.run(
        [*command, "--set", "machine.devices=2"],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=200,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("mixture") == 2  # in its column and among the kinds, once
    assert len(dict(read_submission(out / "submission.csv", tiny_vocabulary))) == len(tiny_vocabulary)
    assert yaml.safe_load((out / "recipe.yaml").read_text())["machine"]["devices"] == 2


# ------------------------------------------------------------------------------------------- models from elsewhere


def with_trained_models(recipe: Path, path: Path, **folders: Path) -> Path:
    """The tiny recipe without base models of its own: they are in these folders."""
    values = yaml.safe_load(recipe.read_text())
    del values["base_models"]
    values["trained_models"] = {name: str(folder) for name, folder in folders.items()}
    path.write_text(yaml.safe_dump(values))
    return path


def test_models_that_are_trained_already_are_bases_like_the_others(
    finished_run: FinishedRun, tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    """No data to pre-train on is needed, and the segment models come to the same weights."""
    bases = {name: finished_run.out / "pretrain" / name / "model" for name in ("dbof", "nextvlad")}
    recipe = with_trained_models(tiny_recipe, tmp_path / "recipe.yaml", **bases)
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(tiny_dataset, data)
    shutil.rmtree(data / "video")
    succeeds("run", recipe, "--data", data, "--out", out)
    assert not (out / "pretrain").exists()
    for name in ("bare", "aware"):
        weights = f"finetune/{name}/model/model.safetensors"
        assert (out / weights).read_bytes() == (finished_run.out / weights).read_bytes()
    assert (out / "submission.csv").read_bytes() == (finished_run.out / "submission.csv").read_bytes()
    assert "finetune aware: finished before, skipped" in succeeds("run", recipe, "--data", data, "--out", out).err
    # Another model under that name is another base.
    other = tmp_path / "other"
    shutil.copytree(bases["dbof"], other)
    config = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(config.replace("seed: 0", "seed: 1"))
    assert (other / "config.yaml").read_text() != config
    changed = with_trained_models(tiny_recipe, tmp_path / "changed.yaml", **bases | {"dbof": other})
    said = succeeds("finetune", changed, "bare", "--data", data, "--out", out).err
    assert "the settings or the data changed" in said


def test_trained_models_that_cannot_be_bases(
    finished_run: FinishedRun, tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    good = finished_run.out / "pretrain/dbof/model"
    segment = finished_run.out / "finetune/bare/model"
    where = ["--data", tiny_dataset, "--out", tmp_path / "out"]
    for folder, sentence in (
        (tmp_path / "absent", "there is no such model folder"),
        (segment, "expected a classifier of whole videos, found a segment classifier"),
    ):
        recipe = with_trained_models(tiny_recipe, tmp_path / "recipe.yaml", dbof=good, nextvlad=folder)
        assert refused(2, "run", recipe, *where).startswith(f"{folder}: {sentence}")
    assert not list((tmp_path / "out").glob("finetune"))
