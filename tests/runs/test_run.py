"""A run of a recipe on a tiny dataset: its files, its output, skipped stages, and required data."""

from __future__ import annotations

import csv
import re
import shutil
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from tests.support.command import refused, succeeds
from tests.support.processes import run_python
from tests.support.tiny_run import RANKINGS, STAGE_TITLES, STAGES, FinishedRun, score_rows, skipped_stages
from tests.support.tiny_shards import random_videos, write_shard
from yt8m.dataset.catalog import FILE_NAME, Catalog
from yt8m.models.description import read_description
from yt8m.models.saved import load_model
from yt8m.runs.records import read_record
from yt8m.submission.format import read_submission
from yt8m.vocabulary import Vocabulary

# --- A finished run --------------------------------------------------------------------------------------------------


def test_the_submission_lists_every_evaluated_segment_of_every_class(
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


def test_the_table_lists_the_segments_of_the_submission(finished_run: FinishedRun, tiny_vocabulary: Vocabulary) -> None:
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


def test_every_stage_is_reported_and_recorded(finished_run: FinishedRun) -> None:
    lines = finished_run.outcome.err.splitlines()
    assert [*dict.fromkeys(line.split(":")[0].replace(" ", "/") for line in lines)] == STAGES
    for stage in STAGES:
        record = read_record(finished_run.out / stage)
        assert record is not None
        assert record.status == "finished"
    assert not list(finished_run.out.rglob("checkpoint.pt"))
    assert not [path for path in finished_run.out.rglob("*") if path.name.startswith(".")]


def test_scores_and_times_are_printed_last(finished_run: FinishedRun) -> None:
    rows = score_rows(finished_run.out)
    assert [row["ranking"] for row in rows] == RANKINGS
    for row in rows:
        line = next(line for line in finished_run.outcome.out.splitlines() if line.startswith(f"│ {row['ranking']} "))
        assert re.findall(r"\d\.\d{4}", line) == [f"{float(row[column]):.4f}" for column in ("map_at_k", "dense_map")]
        assert 0 < float(row["dense_map"]) <= float(row["map_at_k"]) <= 1
    # With a single agnostic model, the mean of the agnostic models is that model.
    assert rows[1]["map_at_k"] == rows[3]["map_at_k"]
    for stage in STAGES:
        assert re.search(rf"│ {stage} +│ +\d+ │", finished_run.outcome.out)
    assert str(finished_run.out / "submission.csv") in finished_run.outcome.out


def test_models_load_and_record_their_provenance(finished_run: FinishedRun, tiny_vocabulary: Vocabulary) -> None:
    for stage in STAGES[:-1]:
        folder = finished_run.model(stage)
        description = read_description(folder)
        assert description.provenance["name"] == stage.split("/")[1]
        assert description.provenance["step"] in (3, 6)
        model = load_model(folder, vocabulary_digest=tiny_vocabulary.digest)
        assert model.num_classes == len(tiny_vocabulary)
    aware, context = (load_model(finished_run.model(stage)) for stage in ("finetune/aware", "pretrain/dbof"))
    for name, tensor in context.state_dict().items():
        if name.startswith("encoder."):
            assert torch.equal(aware.state_dict()[f"context_{name}"], tensor), name


def test_plots_and_class_scores_are_written(finished_run: FinishedRun, tiny_vocabulary: Vocabulary) -> None:
    for name in ("scores.png", "timeline.png"):
        picture = matplotlib.image.imread(finished_run.out / "predict" / name)
        assert picture.shape[0] > 200
        assert picture.std() > 0.05
        assert str(finished_run.out / "predict" / name) in finished_run.outcome.out
    with (finished_run.out / "predict/class_scores.csv").open(newline="") as file:
        of_classes = list(csv.DictReader(file))
    assert {row["name"] for row in of_classes} <= set(tiny_vocabulary.names)
    mean = np.mean([float(row["ap"]) for row in of_classes])
    assert mean == pytest.approx(float(score_rows(finished_run.out)[-1]["map_at_k"]), abs=1e-5)


def test_a_run_of_the_saved_recipe_skips_every_stage(copy: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    shutil.copy(copy / "recipe.yaml", tmp_path / "kept.yaml")
    again = succeeds("run", tmp_path / "kept.yaml", "--data", tiny_dataset, "--out", copy)
    assert len(skipped_stages(again.err)) == len(STAGES)


def test_a_failing_or_partial_run_keeps_the_recipe_of_the_run(
    copy: Path, tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    before = (copy / "recipe.yaml").read_bytes()
    places = ["--data", tiny_dataset, "--out", copy]
    other = ["--set", "base_models.nextvlad.training.steps=7"]
    assert "run that stage again" in refused(2, "run", tiny_recipe, *places, *other, "--only", "predict")
    succeeds("run", tiny_recipe, *places, *other, "--only", "pretrain/dbof")
    assert refused(2, "run", tiny_recipe, *places, "--set", "folds=1000", "--only", "finetune/bare")
    incomplete = tmp_path / "incomplete"
    (incomplete / "segment").mkdir(parents=True)
    shutil.copy(tiny_dataset / "segment_vocabulary.csv", incomplete)
    refused(2, "run", tiny_recipe, "--data", incomplete, "--out", copy, "--set", "seed=4")
    assert (copy / "recipe.yaml").read_bytes() == before
    again = succeeds("run", copy / "recipe.yaml", *places)
    assert len(skipped_stages(again.err)) == len(STAGES)


# --- Skipping --------------------------------------------------------------------------------------------------------


def test_a_second_run_skips_every_stage_and_prints_the_same(
    copy: Path, finished_run: FinishedRun, tiny_dataset: Path, tiny_recipe: Path
) -> None:
    def times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.name != "recipe.yaml"}

    before = times()
    again = succeeds("run", tiny_recipe, "--data", tiny_dataset, "--out", copy)
    assert skipped_stages(again.err) == STAGE_TITLES
    assert again.out == finished_run.outcome.out.replace(str(finished_run.out), str(copy))
    assert times() == before


def test_a_setting_retrains_only_what_depends_on_it(
    copy: Path, finished_run: FinishedRun, tiny_dataset: Path, tiny_recipe: Path
) -> None:
    override = "base_models.nextvlad.training.peak_lr=1e-3"
    changed = succeeds("run", tiny_recipe, "--data", tiny_dataset, "--out", copy, "--set", override)
    assert skipped_stages(changed.err) == ["pretrain dbof", "finetune bare"]
    repeated = {"pretrain/nextvlad", "finetune/aware", "predict"}
    for stage in repeated:
        previous = copy / f"{stage}.before-1"
        assert (
            f"{stage.replace('/', ' ')}: the settings or the data changed; the previous result is kept in {previous}\n"
            in changed.err
        )
        assert (previous / "stage.yaml").read_bytes() == (finished_run.out / stage / "stage.yaml").read_bytes()
    weights = "model/model.safetensors"
    for stage in STAGES[:-1]:
        same = (copy / stage / weights).read_bytes() == (finished_run.out / stage / weights).read_bytes()
        assert same == (stage not in repeated)
    for name in ("segments.parquet", "submission.csv"):
        previous = copy / "predict.before-1" / name
        assert previous.read_bytes() == (finished_run.out / name).read_bytes()
        assert (copy / name).read_bytes() != previous.read_bytes()
    assert score_rows(copy)[1] == score_rows(finished_run.out)[1]
    assert score_rows(copy)[2] != score_rows(finished_run.out)[2]

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
def test_settings_that_change_no_result_repeat_no_stage(
    copy: Path, tiny_dataset: Path, tiny_recipe: Path, override: str
) -> None:
    again = succeeds("run", tiny_recipe, "--data", tiny_dataset, "--out", copy, "--set", override)
    assert len(skipped_stages(again.err)) == len(STAGES)


@pytest.mark.parametrize("lost", ["submission.csv", "segments.parquet", "predict/scores.csv"])
def test_a_missing_result_is_predicted_again(
    copy: Path, finished_run: FinishedRun, tiny_dataset: Path, tiny_recipe: Path, lost: str
) -> None:
    (copy / lost).unlink()
    again = succeeds("run", tiny_recipe, "--data", tiny_dataset, "--out", copy, "--only", "predict")
    assert skipped_stages(again.err) == []
    assert (copy / lost).read_bytes() == (finished_run.out / lost).read_bytes()
    assert not (copy / "predict.before-1").exists()


# --- Before training -------------------------------------------------------------------------------------------------


def test_missing_parts_are_reported_before_training(data: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    shutil.rmtree(data / "segment/test")
    sentence = refused(2, "run", tiny_recipe, "--data", data, "--out", tmp_path / "out")
    assert sentence.startswith(f"{data / 'segment/test'}: there is no such folder")
    assert not (tmp_path / "out" / "pretrain").exists()


def test_a_stage_requires_only_its_own_data(copy: Path, data: Path, tiny_recipe: Path) -> None:
    shutil.rmtree(data / "segment/test")
    done = succeeds("run", tiny_recipe, "--data", data, "--out", copy, "--only", "finetune")
    assert skipped_stages(done.err) == ["finetune bare", "finetune aware"]
    shutil.rmtree(data / "segment/train")
    done = succeeds("run", tiny_recipe, "--data", data, "--out", copy, "--only", "pretrain")
    assert skipped_stages(done.err) == ["pretrain dbof", "pretrain nextvlad"]


def test_more_folds_than_shards_are_reported_before_training(
    tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    folds = ["--set", "folds=17"]
    sentence = refused(2, "run", tiny_recipe, "--data", tiny_dataset, "--out", tmp_path / "out", *folds)
    assert "17 folds by shard need at least 17 shards, found 16" in sentence
    assert not (tmp_path / "out" / "pretrain").exists()


def test_a_fold_with_one_kind_of_rating_is_reported_before_training(
    data: Path, tiny_recipe: Path, tiny_vocabulary: Vocabulary, tmp_path: Path
) -> None:
    # Model `aware` holds fold 1 of 4 out: every fourth shard.
    labels = tiny_vocabulary.label_ids[:2].tolist()
    for path in sorted((data / "segment/train").glob("*.tfrecord"))[1::4]:
        [video] = random_videos(1, label_ids=labels, id_prefix=path.stem)
        ratings = [(label, 30, 1.0) for label in labels]
        write_shard(path, [replace(video, ratings=tuple(ratings))])
    sentence = refused(2, "run", tiny_recipe, "--data", data, "--out", tmp_path / "out")
    assert "the held-out folds (fold 1 of 4 is held out) need positive and negative ratings" in sentence
    assert "found 8 positive of 8" in sentence
    assert not (tmp_path / "out" / "pretrain").exists()


def test_a_test_set_of_short_videos_is_reported_before_training(data: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    for path in (data / "segment/test").glob("*.tfrecord"):
        write_shard(path, random_videos(1, num_frames=(10, 40), id_prefix=path.stem))
    sentence = refused(2, "run", tiny_recipe, "--data", data, "--out", tmp_path / "out")
    assert "none of its 8 videos is longer than 40 seconds, so there is no segment to predict" in sentence
    assert not (tmp_path / "out" / "pretrain").exists()


def test_videos_without_classes_are_reported_before_training(
    data: Path, tiny_recipe: Path, tiny_vocabulary: Vocabulary, tmp_path: Path
) -> None:
    other = [label for label in range(30) if label not in tiny_vocabulary.label_ids][:3]
    for path in (data / "video/valid").glob("*.tfrecord"):
        write_shard(path, random_videos(1, label_ids=other, id_prefix=path.stem))
    sentence = refused(2, "run", tiny_recipe, "--data", data, "--out", tmp_path / "out", "--set", "seed=3")
    assert f"{data / 'video/valid'}: none of its" in sentence
    assert not (tmp_path / "out" / "pretrain").exists()


def test_a_later_stage_that_exceeds_the_memory_is_reported_before_training(
    tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    settings = ("training.batch_size=1000000", "frames_per_video=1000")
    large = [word for setting in settings for word in ("--set", f"base_models.nextvlad.{setting}")]
    sentence = refused(2, "run", tiny_recipe, "--data", tiny_dataset, "--out", tmp_path / "out", *large)
    assert sentence.startswith("pretrain/nextvlad: a training.batch_size of 1,000,000 needs at least")
    assert not (tmp_path / "out" / "pretrain").exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("video,label,start,score\naaaa,99999,30,1\n", "The truth rates the label 99999"),
        ("video,label,start,score\naaaa,{label},30,0\n", "The truth contains no positive rating"),
        ("video,label,start,score\naaaa,{label},31,1\n", "line 2: expected a start in seconds"),
        ("nonsense\n", "line 1: expected a header"),
    ],
)
def test_an_invalid_truth_is_reported_before_training(
    data: Path, tiny_recipe: Path, tiny_vocabulary: Vocabulary, tmp_path: Path, content: str, expected: str
) -> None:
    (data / "segment/test_ratings.csv").write_text(content.format(label=tiny_vocabulary.label_ids[0]))
    assert expected in refused(1, "run", tiny_recipe, "--data", data, "--out", tmp_path / "out")
    assert not (tmp_path / "out" / "pretrain").exists()


def test_damage_found_while_indexing_stops_the_run_once(
    copy: Path, finished_run: FinishedRun, tiny_dataset: Path, data: Path, tiny_recipe: Path
) -> None:
    test = data / "segment/test"
    for name in ("test0002.tfrecord", "test0005.tfrecord"):
        with (test / name).open("r+b") as file:
            file.truncate((test / name).stat().st_size - 1000)
    sentence = refused(1, "run", tiny_recipe, "--data", data, "--out", copy)
    assert sentence.startswith(
        f"{test}: 2 damaged places were found while indexing, the first: {test / 'test0002.tfrecord'}, record 0"
    )
    assert f"{test / 'catalog_report.csv'} lists all; run again to continue without them." in sentence
    report = (test / "catalog_report.csv").read_text().splitlines()
    assert [line.split(",")[:4] for line in report[1:]] == [
        [name, "0", "0", "damage"] for name in ("test0002.tfrecord", "test0005.tfrecord")
    ]
    catalog = Catalog.load(test)
    assert (len(catalog), catalog.num_problems, catalog.is_current()) == (6, 2, True)

    lost = set(Catalog.load(tiny_dataset / "segment/test").video_ids) - set(catalog.video_ids)
    again = succeeds("run", tiny_recipe, "--data", data, "--out", copy)
    assert skipped_stages(again.err) == STAGE_TITLES[:-1]

    def videos(out: Path) -> set[str]:
        of_classes = [segments for _, segments in read_submission(out / "submission.csv")]
        return {segment.decode().split(":")[0] for segments in of_classes for segment in segments}

    assert len(lost) == 2
    assert videos(finished_run.out) - videos(copy) == lost
    assert videos(copy) == set(catalog.video_ids)


def test_a_run_indexes_parts_without_a_catalog(data: Path, tiny_recipe: Path, copy: Path) -> None:
    for catalog in data.rglob(FILE_NAME):
        catalog.unlink()
    # The same shards in another folder are the same data, so no model is trained again.
    done = succeeds("run", tiny_recipe, "--data", data, "--out", copy)
    assert len(skipped_stages(done.err)) == len(STAGES)
    parts = {path.parent.relative_to(data).as_posix() for path in data.rglob(FILE_NAME)}
    assert parts == {"video/train", "video/valid", "segment/train", "segment/test"}


# --- Two processes ---------------------------------------------------------------------------------------------------


def test_two_processes_write_one_submission(
    tiny_dataset: Path, tiny_recipe: Path, tiny_vocabulary: Vocabulary, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    places = ["--data", tiny_dataset, "--out", out]
    ended = run_python("-m", "yt8m", "run", tiny_recipe, *places, "--set", "machine.devices=2")
    assert ended.status == 0, ended.err
    assert ended.out.count("ensemble") == 2  # once as a ranking and once as a kind
    assert len(dict(read_submission(out / "submission.csv", tiny_vocabulary))) == len(tiny_vocabulary)
    assert yaml.safe_load((out / "recipe.yaml").read_text())["machine"]["devices"] == 2
