"""The commands predict, merge and locate."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file

from tests.support.command import refused, succeeds
from tests.support.command import yt8m as command
from tests.support.predictions import record_batches, use_small_blocks
from tests.support.processes import torchrun
from tests.support.tiny_run import FinishedRun
from tests.support.tiny_shards import random_videos, write_shards
from yt8m.dataset.catalog import Catalog
from yt8m.errors import Yt8mError
from yt8m.runs import predicting
from yt8m.submission.format import read_submission
from yt8m.vocabulary import Vocabulary

# --- predict and merge -----------------------------------------------------------------------------------------------


def test_predict_writes_the_submission_and_table_of_the_run(
    tmp_path: Path, finished_run: FinishedRun, models: list[object], places: list[object]
) -> None:
    outputs = ["--out", tmp_path / "s.csv", "--table", tmp_path / "s.parquet"]
    shown = succeeds("predict", *models, *places, *outputs, "--accelerator", "cpu")
    assert shown.err == ""
    assert shown.out == (
        f"{tmp_path / 's.csv'}: submission of aware, bare\n{tmp_path / 's.parquet'}: table of aware, bare\n"
    )
    assert (tmp_path / "s.csv").read_bytes() == (finished_run.out / "submission.csv").read_bytes()
    # The table of model folders has scores, that of a run probabilities.
    table, of_run = pq.read_table(tmp_path / "s.parquet"), pq.read_table(finished_run.out / "segments.parquet")
    assert table.drop_columns("score").equals(of_run.drop_columns("probability"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.csv", "s.parquet"]


def test_a_table_lists_the_segments_of_the_submission(
    tmp_path: Path, finished_run: FinishedRun, models: list[object], places: list[object]
) -> None:
    succeeds("predict", *models, *places, "--table", tmp_path / "s.parquet", "--top-k", 9, "--accelerator", "cpu")
    listed: dict[int, list[bytes]] = {}
    for row in pq.read_table(tmp_path / "s.parquet").to_pylist():
        listed.setdefault(row["class"], []).append(f"{row['video']}:{row['start']}".encode())
    complete = dict(read_submission(finished_run.out / "submission.csv"))
    assert listed == {label_id: segments[:9] for label_id, segments in complete.items()}
    assert [path.name for path in tmp_path.iterdir()] == ["s.parquet"]


WAYS_TO_MERGE = {
    "geometric": (["--set", "method=geometric", "--weight", "aware=2"], ["--weight", "aware=2"]),
    "prior": (["--set", "video_prior={models: [dbof], video_exponent: 1.0}"], []),
    "candidates": (["--set", "candidates={models: [nextvlad, dbof], min_video_probability: 0.0051}"], []),
    "shifts": (["--shift", "1", "--shift", "-1", "--shift", "0"], []),
    "top-k": (["--top-k", "7"], []),
}
"""Options of `predict`, and options for which the submission differs."""


@pytest.mark.parametrize("name", WAYS_TO_MERGE)
def test_streamed_stored_and_merged_submissions_are_identical(
    tmp_path: Path, finished_run: FinishedRun, models: list[object], places: list[object], name: str
) -> None:
    options, others = WAYS_TO_MERGE[name]
    bases = [finished_run.model(f"pretrain/{base}") for base in ("dbof", "nextvlad") if base in str(options)]
    both = ["--accelerator", "cpu", *places]
    streamed, stored, merged_later = (tmp_path / f"{kind}.csv" for kind in ("streamed", "stored", "merged"))
    succeeds("predict", *models, *bases, *both, *options, "--out", streamed)
    store = ["--store", tmp_path / "store"]
    succeeds("predict", *models, *bases, *both, *options, "--out", stored, *store)
    assert streamed.read_bytes() == stored.read_bytes()
    # Stored probabilities already include the shifts.
    succeeds("merge", tmp_path / "store", *places, *([] if name == "shifts" else options), "--out", merged_later)
    assert streamed.read_bytes() == merged_later.read_bytes()
    succeeds("predict", *models, *both, *others, "--out", tmp_path / "plain.csv")
    assert streamed.read_bytes() != (tmp_path / "plain.csv").read_bytes()


def test_predict_and_merge_give_the_same_mean_of_ranks(
    tmp_path: Path, models: list[object], places: list[object]
) -> None:
    rank = ["--set", "method=rank"]
    store = ["--store", tmp_path / "store", "--accelerator", "cpu"]
    succeeds("predict", *models, *places, *rank, "--out", tmp_path / "at-once.csv", *store)
    shown = succeeds("merge", tmp_path / "store", *places, *rank, "--out", tmp_path / "later.csv")
    assert shown.out == f"{tmp_path / 'later.csv'}: rank mean of 2 models (aware, bare)\n"
    assert (tmp_path / "at-once.csv").read_bytes() == (tmp_path / "later.csv").read_bytes()
    succeeds("merge", tmp_path / "store", *places, "--out", tmp_path / "plain.csv")
    assert (tmp_path / "plain.csv").read_bytes() != (tmp_path / "later.csv").read_bytes()


def test_video_classifiers_can_be_stored_separately(
    tmp_path: Path, finished_run: FinishedRun, models: list[object], places: list[object]
) -> None:
    """They can be merged later with segment classifiers of another store."""
    dbof = finished_run.model("pretrain/dbof")
    prior = ["--set", "video_prior.models=[dbof]"]
    succeeds("predict", dbof, *places, "--store", tmp_path / "video", "--accelerator", "cpu")
    succeeds("predict", *models, *places, "--store", tmp_path / "segment", "--accelerator", "cpu")
    stores = [tmp_path / "video", tmp_path / "segment"]
    shown = succeeds("merge", *stores, *places, *prior, "--out", tmp_path / "apart.csv")
    assert "of 2 models (aware, bare)" in shown.out
    succeeds("predict", *models, dbof, *places, *prior, "--out", tmp_path / "together.csv", "--accelerator", "cpu")
    assert (tmp_path / "apart.csv").read_bytes() == (tmp_path / "together.csv").read_bytes()


def test_the_order_of_models_does_not_change_the_submission(
    tmp_path: Path, models: list[object], places: list[object]
) -> None:
    for name, order in (("a", models), ("b", models[::-1])):
        succeeds("predict", *order, *places, "--out", tmp_path / f"{name}.csv", "--accelerator", "cpu")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_merged_stores_of_single_models_give_the_submission_of_all(
    tmp_path: Path, finished_run: FinishedRun, models: list[object], places: list[object]
) -> None:
    stores = [tmp_path / "aware", tmp_path / "bare"]
    for model, store in zip(models, stores, strict=True):
        succeeds("predict", model, *places, "--store", store, "--accelerator", "cpu")
    for order in (stores, stores[::-1]):
        succeeds("merge", *order, *places, "--out", tmp_path / "submission.csv")
        assert (tmp_path / "submission.csv").read_bytes() == (finished_run.out / "submission.csv").read_bytes()
    # A weight of 0 excludes a model.
    succeeds("merge", stores[1], *places, "--out", tmp_path / "alone.csv")
    weighted = ["--weight", "aware=0", "--top-k", "9"]
    succeeds("merge", *stores, *places, *weighted, "--out", tmp_path / "weighted.csv")
    alone, found = (dict(read_submission(tmp_path / f"{name}.csv")) for name in ("alone", "weighted"))
    assert {label: segments[:9] for label, segments in alone.items()} == found


# --- What models, runs and stores record -------------------------------------------------------------------------------


def test_a_run_its_models_and_their_stores_know_classes_and_shards(
    tmp_path: Path, finished_run: FinishedRun, models: list[object], tiny_dataset: Path
) -> None:
    expected = (finished_run.out / "submission.csv").read_bytes()
    cpu = ["--accelerator", "cpu"]
    shown = succeeds("predict", "--run", finished_run.out, *cpu, "--out", tmp_path / "run.csv")
    assert shown.out == f"{tmp_path / 'run.csv'}: submission of aware, bare\n"
    succeeds("predict", *models, *cpu, "--out", tmp_path / "models.csv", "--store", tmp_path / "store")
    succeeds("merge", tmp_path / "store", "--out", tmp_path / "merged.csv")
    for name in ("run", "models", "merged"):
        assert (tmp_path / f"{name}.csv").read_bytes() == expected, name
    video = Catalog.load(tiny_dataset / "segment/test").video_ids[3]
    of_run, of_models = (
        [line.split()[0] for line in succeeds("locate", video, *arguments).out.splitlines()[3:13]]
        for arguments in (["--run", finished_run.out], models)
    )
    assert of_run == of_models


def test_a_moved_dataset_and_folders_without_classes_need_options(
    tmp_path: Path, trained: Path, tiny_dataset: Path, places: list[object]
) -> None:
    out = ["--out", tmp_path / "s.csv", "--accelerator", "cpu"]
    moved = tmp_path / "moved"
    for path in trained.glob("*/**/stage.yaml"):
        path.write_text(path.read_text().replace(f"data: {tiny_dataset}", f"data: {moved}"))
    bare = trained / "finetune/bare/model"
    sentence = (
        f"its shards were in {moved / 'segment/test'}, where there is no such folder now; give --shards DIR, the "
    )
    sentence += "folder that they are in."
    assert refused(2, "predict", "--run", trained, *out) == f"{trained}: {sentence}"
    assert refused(2, "predict", bare, *out) == f"{bare}: {sentence}"
    assert refused(2, "locate", "abcd", "--run", trained) == f"{trained}: {sentence}"
    for path in trained.glob("*/*/model/segment_vocabulary.csv"):
        path.unlink()
    sentence = "does not list its classes; give --vocabulary FILE, the segment_vocabulary.csv of the dataset."
    assert refused(2, "predict", "--run", trained, *places[:2], *out) == f"{trained}: {sentence}"
    assert refused(2, "predict", bare, *places[:2], *out) == f"{bare}: {sentence}"
    succeeds("predict", "--run", trained, *places, *out)
    succeeds("predict", bare, *places, "--store", tmp_path / "store", "--accelerator", "cpu")
    # An older store has neither.
    index = tmp_path / "store/predictions.yaml"
    index.write_text(re.sub("shards: .*\n", "", index.read_text()))
    (tmp_path / "store/segment_vocabulary.csv").unlink()
    store = tmp_path / "store"
    assert refused(2, "merge", store, *places[:2], *out[:2]) == f"{store}: {sentence}"
    assert refused(2, "merge", store, *places[2:], *out[:2]) == (
        f"{store}: its dataset is not recorded; give --shards DIR, the folder of the shards."
    )
    succeeds("merge", store, *places, *out[:2])
    assert refused(2, "search", "x", "--store", store, *places[:2]) == f"{store}: {sentence}"


def test_predict_needs_either_models_or_a_run(finished_run: FinishedRun, models: list[object], out: Path) -> None:
    needs = "needs either model folders, or --run DIR, the folder of a run with an ensemble."
    assert refused(2, "predict", "--out", out) == f"yt8m predict {needs}"
    assert refused(2, "predict", *models, "--run", finished_run.out, "--out", out) == f"yt8m predict {needs}"
    needs = "yt8m merge needs either folders of stored predictions, or --run DIR, the folder of a run."
    assert refused(2, "merge", "--out", out) == needs
    sentence = refused(2, "merge", "--run", finished_run.out, "--out", out)
    assert sentence.startswith(f"{finished_run.out}: has no stored probabilities; ")


def test_the_ensemble_of_a_run_is_predicted_merged_and_located_as_it_was_made(
    tmp_path: Path, trained: Path, tiny_dataset: Path, tiny_recipe: Path
) -> None:
    """Not as the recipe file or another stage of the run says now."""
    weighted = ["--set", "ensemble.weights={aware: 3}", "--set", "ensemble.store=true"]
    succeeds("run", tiny_recipe, "--data", tiny_dataset, "--out", trained, *weighted)
    expected = (trained / "submission.csv").read_bytes()
    video = Catalog.load(tiny_dataset / "segment/test").video_ids[3]
    before = succeeds("locate", video, "--run", trained, "--json").out
    recipe = trained / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("aware: 3", "aware: 0"))
    assert succeeds("locate", video, "--run", trained, "--json").out == before
    succeeds("merge", "--run", trained, "--out", tmp_path / "merged.csv")
    assert (tmp_path / "merged.csv").read_bytes() == expected
    succeeds("predict", "--run", trained, "--out", tmp_path / "again.csv", "--accelerator", "cpu")
    assert (tmp_path / "again.csv").read_bytes() == expected
    succeeds("merge", "--run", trained, "--weight", "aware=0", "--out", tmp_path / "other.csv")
    assert (tmp_path / "other.csv").read_bytes() != expected


def test_a_store_of_other_models_is_replaced_only_on_request(tmp_path: Path, models: list[object]) -> None:
    options = ["--store", tmp_path / "store", "--accelerator", "cpu"]
    succeeds("predict", *models, *options)
    before = {path.name: path.read_bytes() for path in (tmp_path / "store").iterdir()}
    for others in (models[:1], models[1:]):
        sentence = refused(2, "predict", *others, *options)
        assert sentence == (
            f"{tmp_path / 'store'}: contains predictions already, of aware, bare; give another folder (`yt8m merge` "
            "merges several), or --overwrite to replace them."
        )
    assert {path.name: path.read_bytes() for path in (tmp_path / "store").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    succeeds("predict", *models, *options)  # the same predictions
    assert {path.name: path.read_bytes() for path in (tmp_path / "store").iterdir()} == before
    succeeds("predict", models[1], *options, "--overwrite")
    assert not (tmp_path / "store/aware.npy").exists()


def test_an_unfinished_store_of_other_models_is_discarded_only_on_request(tmp_path: Path, models: list[object]) -> None:
    options = ["--store", tmp_path / "store", "--accelerator", "cpu"]
    succeeds("predict", *models, *options)
    unfinished = tmp_path / "store.unfinished"
    (tmp_path / "store").rename(unfinished)
    (unfinished / "predictions.yaml").rename(unfinished / "unfinished.yaml")
    np.save(unfinished / "done.npy", np.ones(1, np.uint8))
    before = {path.name: path.read_bytes() for path in unfinished.iterdir()}
    sentence = refused(2, "predict", models[0], *options)
    assert sentence == (
        f"{unfinished}: contains an unfinished prediction of aware, bare, with other models or settings; finish it with the "
        "same command as before, give another folder, or --overwrite to discard it."
    )
    assert {path.name: path.read_bytes() for path in unfinished.iterdir()} == before
    shutil.copytree(unfinished, tmp_path / "copy.unfinished")
    succeeds("predict", *models, "--store", tmp_path / "copy", "--accelerator", "cpu")  # resumes: nothing is left to do
    assert (tmp_path / "copy/bare.npy").read_bytes() == before["bare.npy"]
    succeeds("predict", models[0], *options, "--overwrite")
    assert not unfinished.exists()
    assert not (tmp_path / "store/bare.npy").exists()


# --- Stopped predictions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["--out", "--table", "--store"])
def test_a_prediction_stopped_by_a_signal_resumes_with_the_same_command(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    models: list[object],
    places: list[object],
    kind: str,
) -> None:
    def contents(path: Path) -> dict[str, bytes]:
        files = [path] if path.is_file() else sorted(path.iterdir())
        return {file.name: file.read_bytes() for file in files}

    output = {name: tmp_path / name / "output" for name in ("complete", "stopped")}
    use_small_blocks(monkeypatch)
    complete = record_batches(monkeypatch)
    options = [*places, "--accelerator", "cpu", kind]
    succeeds("predict", *models, *options, output["complete"])
    before = record_batches(monkeypatch, stop_after=3)
    sentence = refused(75, "predict", *models, *options, output["stopped"])
    assert "stopped by a signal; the same command continues with" in sentence
    assert str(output["stopped"]) in sentence
    assert not output["stopped"].exists()
    after = record_batches(monkeypatch)
    succeeds("predict", *models, *options, output["stopped"])
    assert len(before) == 3 < len(complete)
    assert before + after == complete
    assert contents(output["stopped"]) == contents(output["complete"])
    assert [path.name for path in (tmp_path / "stopped").iterdir()] == ["output"]


def test_other_settings_do_not_resume_a_stopped_prediction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: list[object], places: list[object]
) -> None:
    options = [*places, "--accelerator", "cpu", "--out", tmp_path / "s.csv"]
    record_batches(monkeypatch, stop_after=3)
    refused(75, "predict", *models, *options)
    starts = record_batches(monkeypatch)
    other = ["--weight", "aware=3"]
    succeeds("predict", *models, *options, *other)
    assert starts[0] == 0
    succeeds("predict", *models, *places, *other, "--accelerator", "cpu", "--out", tmp_path / "alone.csv")
    assert (tmp_path / "s.csv").read_bytes() == (tmp_path / "alone.csv").read_bytes()
    assert not (tmp_path / "s.csv.unfinished").exists()


def test_a_full_disk_at_the_end_loses_no_predictions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: list[object], places: list[object]
) -> None:
    """The partial rankings are kept until the submission is written."""
    options = [*places, "--accelerator", "cpu", "--out", tmp_path / "s.csv"]

    def full(*_: object) -> None:
        raise Yt8mError("no space left on the disk.")

    monkeypatch.setattr(predicting, "write_submission", full)
    refused(1, "predict", *models, *options)
    monkeypatch.undo()
    starts = record_batches(monkeypatch)
    succeeds("predict", *models, *options)
    assert starts == []


# --- Two processes ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_predict_the_submission_of_one(
    tmp_path: Path, finished_run: FinishedRun, models: list[object], places: list[object]
) -> None:
    options = [*places, "--accelerator", "cpu"]
    ended = torchrun(tmp_path / "small.py", "predict", *models, *options, "--out", tmp_path / "s.csv")
    assert ended.status == 0, ended.err
    assert ended.out == f"{tmp_path / 's.csv'}: submission of aware, bare\n"
    expected = (finished_run.out / "submission.csv").read_bytes()
    assert (tmp_path / "s.csv").read_bytes() == expected
    assert not (tmp_path / "s.csv.unfinished").exists()
    ended = torchrun(tmp_path / "small.py", "predict", *models, *options, "--store", tmp_path / "store")
    assert ended.status == 0, ended.err
    succeeds("merge", tmp_path / "store", *places, "--out", tmp_path / "merged.csv")
    assert (tmp_path / "merged.csv").read_bytes() == expected


@pytest.mark.slow
@pytest.mark.parametrize("store", [False, True])
def test_two_processes_of_a_run_predict_the_submission_of_one(
    tmp_path: Path, trained: Path, finished_run: FinishedRun, tiny_dataset: Path, tiny_recipe: Path, store: bool
) -> None:
    shutil.rmtree(trained / "predict")
    (trained / "submission.csv").unlink()
    arguments = ["run", tiny_recipe, "--data", tiny_dataset, "--out", trained, "--only", "predict"]
    ended = torchrun(tmp_path / "small.py", *arguments, "--set", f"ensemble.store={str(store).lower()}")
    assert ended.status == 0, ended.err
    for name in ("submission.csv", "predict/scores.csv"):
        assert (trained / name).read_bytes() == (finished_run.out / name).read_bytes()
    assert (trained / "predict/store").is_dir() == store


# --- locate ----------------------------------------------------------------------------------------------------------


def test_locate_shows_the_most_probable_concepts_of_a_video(
    finished_run: FinishedRun, tiny_dataset: Path, tiny_vocabulary: Vocabulary, places: list[object], tmp_path: Path
) -> None:
    catalog = Catalog.load(tiny_dataset / "segment/test")
    video = catalog.video_ids[3]
    shown = succeeds("locate", video, "--run", finished_run.out, *places, "--top", 5, "--threshold", 0.001)
    assert shown.err == ""
    lines = shown.out.splitlines()
    minutes, seconds = divmod(int(catalog.num_frames[3]), 60)
    assert lines[0] == f"{video}, {minutes}:{seconds:02}"
    assert len(lines) == 8 + 5
    concepts = lines[3:8]
    assert all(line.startswith(tiny_vocabulary.names) for line in concepts)
    assert all(f"0:00-{minutes}:{seconds:02}" in line for line in concepts)
    assert "on screen: 0.001 or more" in lines[-1]
    # The order of models does not matter.
    models = [finished_run.model(f"finetune/{name}") for name in ("bare", "aware")]
    of_models = succeeds("locate", video, *models[::-1], *places, "--top", 5, "--threshold", 0.001)
    picture = tmp_path / "new" / "timeline.svg"
    options = ["--top", 5, "--threshold", 0.001, "--svg", picture]
    assert succeeds("locate", video, *models, *places, *options).out == of_models.out
    assert f"yt8m&#160;locate&#160;{video}" in picture.read_text()
    alone = succeeds("locate", video, models[0], *places, "--top", 100, "--threshold", 1)
    assert len(alone.out.splitlines()) == 8 + len(tiny_vocabulary)
    assert {line[-3:] for line in alone.out.splitlines()[3:15]} == {"  -"}


def test_locate_shows_the_videos_of_a_shard(finished_run: FinishedRun, tiny_dataset: Path, tmp_path: Path) -> None:
    shard = tmp_path / "alone.tfrecord"
    videos = random_videos(5)
    write_shards(tmp_path / "source", videos, num_shards=1)[0].rename(shard)
    (tmp_path / "other.tfrecord").write_bytes(b"not a shard")
    options = ["--run", finished_run.out, "--vocabulary", tiny_dataset, "--top", 2]
    for limit, expected in (([], 3), (["--limit", 4], 4), (["--limit", 1], 1), (["--limit", 9], 5)):
        shown = succeeds("locate", shard, *options, *limit)
        titles = [line.split(",")[0] for line in shown.out.splitlines() if re.fullmatch(r"\w+, \d:\d\d", line)]
        assert titles == [video.id for video in videos[:expected]]
        others = {5: "", 4: "\n... and 1 more video; --limit shows more\n"}
        assert shown.err == others.get(expected, f"\n... and {5 - expected} more videos; --limit shows more\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone.tfrecord", "other.tfrecord", "source"]
    # Damage is reported, and the other videos are shown.
    shard.write_bytes(shard.read_bytes()[:-5])
    shown = succeeds("locate", shard, *options, "--limit", 9)
    assert shown.out.count("on screen: ") == 4
    assert shown.err.startswith(f"{shard}, record 4, byte ")
    assert len(shown.err.splitlines()) == 1


def test_locate_explains_ids_that_begin_with_a_dash(models: list[object], places: list[object]) -> None:
    outcome = command("locate", "-abc", *models, *places)
    assert outcome.status == 2
    shown = " ".join(outcome.err.replace("│", " ").split())
    assert (
        "No such option: -a; an argument that begins with a dash, such as the id of a video, goes after `--`." in shown
    )
    assert "there is no video '-abc' among its" in refused(2, "locate", *places, "--", "-abc", *models)


def test_locate_reports_weights_that_are_no_numbers(
    tmp_path: Path, finished_run: FinishedRun, tiny_dataset: Path, places: list[object]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(finished_run.model("finetune/bare"), folder)
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    for tensor in tensors.values():
        if tensor.is_floating_point():
            tensor.fill_(float("nan"))
    save_file(tensors, folder / "model.safetensors")
    config = (folder / "config.yaml").read_text().splitlines(keepends=True)
    (folder / "config.yaml").write_text("".join(line for line in config if "_checksum:" not in line))
    video = Catalog.load(tiny_dataset / "segment/test").video_ids[0]
    sentence = refused(1, "locate", video, folder, *places, "--accelerator", "cpu")
    assert sentence.startswith(f"{video}: the model 'bare' predicts values that are no numbers (NaN)")
