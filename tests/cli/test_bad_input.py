"""Bad input ends in one sentence and the right exit status, without a traceback or a half-written file."""

from __future__ import annotations

import errno
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import yt8m
from tests.conftest import FinishedRun, FullDisk
from tests.support.command import refused, succeeds
from tests.support.command import yt8m as command
from tests.support.tiny_shards import (
    TinyVideo,
    random_videos,
    write_records,
    write_shard,
    write_shards,
    write_video_level_shard,
)
from yt8m.dataset.catalog import FILE_NAME, Catalog
from yt8m.shards.tfrecord import frame_record
from yt8m.shards.writer import message_class


def files_in(folder: Path) -> set[str]:
    """All files of a folder, hidden ones too."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def audioset_record() -> bytes:
    """A record as AudioSet's shards hold it: audio_embedding and nothing to see."""
    message: Any = message_class("SequenceExample")()
    message.context.feature["video_id"].bytes_list.value.append(b"aaaaaaaaaaa")
    message.context.feature["labels"].int64_list.value.extend([1, 2])
    for _ in range(10):
        frame = message.feature_lists.feature_list["audio_embedding"].feature.add()
        frame.bytes_list.value.append(bytes(128))
    encoded: bytes = message.SerializeToString()
    return encoded


def record_without_rgb() -> bytes:
    """A frame-level record that lost its visual features."""
    message: Any = message_class("SequenceExample")()
    message.context.feature["id"].bytes_list.value.append(b"aaaa")
    for _ in range(50):
        frame = message.feature_lists.feature_list["audio"].feature.add()
        frame.bytes_list.value.append(bytes(128))
    encoded: bytes = message.SerializeToString()
    return encoded


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


# -------------------------------------------------------------------------------------------------------------- folders


@pytest.fixture
def commands(
    tiny_dataset: Path, tiny_recipe: Path, finished_run: FinishedRun, out: Path
) -> Callable[[Path], dict[str, list[object]]]:
    """Every command, with some folder where it expects data."""

    def make(folder: Path) -> dict[str, list[object]]:
        model = finished_run.out / "finetune/bare/model"
        shards = ["--shards", folder, "--vocabulary", tiny_dataset]
        test = ["--shards", tiny_dataset / "segment/test", "--vocabulary", tiny_dataset]
        video = Catalog.load(tiny_dataset / "segment/test").video_ids[0]
        return {
            "index": ["index", folder],
            "describe": ["describe", folder],
            "splice": ["splice", out, "--sources", folder, "--vocabulary", tiny_dataset],
            "run": ["run", tiny_recipe, "--data", folder, "--out", out],
            "pretrain": ["pretrain", tiny_recipe, "dbof", "--data", folder, "--out", out],
            "finetune": ["finetune", tiny_recipe, "bare", "--data", folder, "--out", out],
            "predict": ["predict", model, *shards, "--out", out, "--accelerator", "cpu"],
            "predict from": ["predict", folder, *test, "--out", out, "--accelerator", "cpu"],
            "submit": ["submit", finished_run.out, *shards, "--out", out],
            "submit from": ["submit", folder, *test, "--out", out],
            "check": ["check", folder],
            "check against": ["check", finished_run.out / "submission.csv", "--shards", folder],
            "locate": ["locate", video, model, *shards],
            "locate from": ["locate", video, folder, *test],
            "locate run": ["locate", video, "--run", folder, *test],
            "evaluate": ["evaluate", finished_run.out / "submission.csv", "--truth", folder],
            "evaluate what": ["evaluate", folder, "--truth", tiny_dataset / "segment/test_ratings.csv"],
        }

    return make


NAMES = [
    "index",
    "describe",
    "splice",
    "run",
    "pretrain",
    "finetune",
    "predict",
    "predict from",
    "submit",
    "submit from",
    "check",
    "check against",
    "locate",
    "locate from",
    "locate run",
    "evaluate",
    "evaluate what",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["missing", "empty", "wrong", "file"])
def test_folders_that_are_not_what_they_should_be(
    commands: Callable[[Path], dict[str, list[object]]], tmp_path: Path, out: Path, name: str, kind: str
) -> None:
    folder = tmp_path / "given"
    if kind in ("empty", "wrong"):
        folder.mkdir()
    if kind == "wrong":
        (folder / "holiday.jpg").write_bytes(b"\xff\xd8\xff\x00\x80")
    if kind == "file":
        folder.write_bytes(b"\xff\xd8\xff\x00\x80")
    if kind == "wrong" and name == "describe":
        # It first says that there is no vocabulary.
        outcome = command(*commands(folder)[name])
        assert outcome.status == 2
        assert len(outcome.err.splitlines()) == 2
        return
    if kind == "empty" and name == "describe":
        assert command(*commands(folder)[name]).status == 2
        return
    # A file is there and can be opened, but is not what was expected: that is a failure, not a usage error.
    is_opened = kind == "file" and name in ("check", "evaluate", "evaluate what")
    before = files_in(tmp_path)
    sentence = refused(1 if is_opened else 2, *commands(folder)[name])
    assert str(folder) in sentence
    left = files_in(tmp_path) - before
    assert left == set()


def test_a_dataset_without_its_vocabulary(tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path, out: Path) -> None:
    (tmp_path / "data").mkdir()
    shutil.copytree(tiny_dataset / "segment", tmp_path / "data/segment")
    sentence = refused(2, "run", tiny_recipe, "--data", tmp_path / "data", "--out", out)
    assert sentence.startswith(f"{tmp_path / 'data/segment_vocabulary.csv'}: there is no such file")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "expected a header with the columns Index and Name"),
        ("Index,Name\n", "expected a header with the columns Index and Name, and a row a class"),
        ("Id,Name\n3,x\n", "expected a header with the columns Index and Name"),
        ("Index,Name\nthree,x\n", "line 2: expected a whole number as Index, found 'three'"),
        ("Index,Name\n3,x\n4,y\n3,z\n", "the class 3 occurs more than once"),
    ],
)
def test_vocabularies(finished_run: FinishedRun, tmp_path: Path, content: str, expected: str) -> None:
    (tmp_path / "classes.csv").write_text(content)
    submission = finished_run.out / "submission.csv"
    assert expected in refused(2, "evaluate", submission, "--truth", "x.csv", "--vocabulary", tmp_path / "classes.csv")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--sources", "builtin", "--vocabulary", "x.csv"], "--vocabulary goes with --sources DIR"),
        (["--sources", "folder"], "--sources DIR needs --vocabulary"),
    ],
)
def test_splice_options_that_do_not_fit(out: Path, arguments: list[str], expected: str) -> None:
    assert expected in refused(2, "splice", out, *arguments)
    assert not out.exists()


def test_splice_into_a_folder_that_holds_something(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    assert "exists and is not empty" in refused(2, "splice", tmp_path, "--pretrain", 1, "--segments", 1, "--test", 1)
    assert files_in(tmp_path) == {"thesis.txt"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["run"],
        ["finetune", "demo", "agnostic-dbof", "--data", "x"],
        ["index"],
        ["evaluate", "x.csv", "--truth", "y.csv", "--k", "0"],
        ["splice", "x", "--pretrain", "none"],
        ["submit", "x", "--shards", "y", "--vocabulary", "z", "--out", "o", "--top-k", "100001"],
    ],
)
def test_arguments_that_are_missing_or_impossible(arguments: list[str]) -> None:
    outcome = command(*arguments)
    assert outcome.status == 2
    assert "Error" in outcome.err
    assert "Traceback" not in outcome.err


# --------------------------------------------------------------------------------------------------------------- shards


def indexed(folder: Path) -> tuple[list[str], str]:
    """Index a folder with damage: the problems listed, and the last sentence."""
    outcome = command("index", folder)
    assert outcome.status == 1
    *problems, last = outcome.err.splitlines()
    assert "Traceback" not in outcome.err
    assert last.startswith("yt8m: ")
    return problems, last


def test_a_truncated_shard(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.tfrecord", random_videos(3))
    write_shard(tmp_path / "b.tfrecord", random_videos(2, id_prefix="b"))
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 5)
    problems, last = indexed(tmp_path)
    assert len(problems) == 1
    assert problems[0].startswith(f"{path}, record 2, byte ")
    assert "the shard ends inside a record (5 bytes are missing)" in problems[0]
    assert last == f"yt8m: {tmp_path}: 1 damaged place was left out of the catalogs, as listed above."
    assert Catalog.load(tmp_path).video_ids == ["0000", "0001", "b0000", "b0001"]


def test_a_checksum_that_fails(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.tfrecord", random_videos(3))
    content = bytearray(path.read_bytes())
    (length,) = struct.unpack_from("<Q", content)
    content[12 + length // 2] ^= 1
    path.write_bytes(content)
    problems, _ = indexed(tmp_path)
    expected = f"{path}, record 0, byte 12: the checksum of the record's payload is wrong; the record was skipped."
    assert problems == [expected]
    assert Catalog.load(tmp_path).video_ids == ["0001", "0002"]
    # The checksum is all that is wrong, and nobody asked for it.
    assert succeeds("index", tmp_path, "--no-verify").err == ""
    assert len(Catalog.load(tmp_path)) == 3


def test_a_record_without_rgb(tmp_path: Path) -> None:
    videos = random_videos(2)
    path = write_records(tmp_path / "a.tfrecord", [videos[0].encoded(), record_without_rgb(), videos[1].encoded()])
    problems, _ = indexed(tmp_path)
    assert len(problems) == 1
    assert problems[0].startswith(f"{path}, record 1, byte ")
    assert "rgb" in problems[0]
    assert Catalog.load(tmp_path).video_ids == ["0000", "0001"]


def test_a_folder_of_nothing_but_damage(tmp_path: Path) -> None:
    (tmp_path / "a.tfrecord").write_bytes(b"")
    (tmp_path / "b.tfrecord").write_bytes(b"not a shard at all, but long enough for a header")
    for name in ("index", "describe"):
        outcome = command(name, tmp_path)
        assert outcome.status == 1
        last = outcome.err.splitlines()[-1]
        assert last.startswith(f"yt8m: {tmp_path}: no video of its 2 shards can be used: ")
    assert files_in(tmp_path) == {"a.tfrecord", "b.tfrecord"}


def test_what_is_odd_is_counted_and_not_fatal(tmp_path: Path) -> None:
    frames = np.zeros((60, 1152), np.uint8)
    ratings = [(3, 30, 1.0), (3, 60, 1.0), (3, 500, 0.0), (3, 33, 0.0), (5000, 35, 1.0)]
    write_shard(tmp_path / "a.tfrecord", [TinyVideo("aaaa", frames, (3, 3862, 9999), tuple(ratings))])
    shown = succeeds("index", tmp_path)
    assert shown.err == ""
    for expected in (
        "2 labels outside the vocabulary (dropped)",
        "2 ratings outside the video (dropped)",
        "1 ratings not at a multiple of 5 seconds (dropped)",
        "1 ratings of labels outside the vocabulary (dropped)",
    ):
        assert expected in shown.out
        assert expected in succeeds("describe", tmp_path).out
    catalog = Catalog.load(tmp_path)
    assert catalog.labels_of(0).tolist() == [3]
    assert [column.tolist() for column in catalog.ratings_of(0)] == [[3], [30], [1]]


def wrong_shards(folder: Path, kind: str) -> str:
    """Write shards of another kind; what the sentence about them says."""
    if kind == "video-level":
        write_video_level_shard(folder / "train0000.tfrecord", 3)
        return "this is a video-level shard (one mean_rgb a video), and frame-level ones are needed"
    write_records(folder / "train0000.tfrecord", [audioset_record()])
    return "this is an AudioSet shard"


@pytest.mark.parametrize("kind", ["video-level", "AudioSet"])
@pytest.mark.parametrize("name", ["index", "predict", "evaluate"])
def test_shards_of_another_kind(
    commands: Callable[[Path], dict[str, list[object]]], tmp_path: Path, name: str, kind: str
) -> None:
    folder = tmp_path / "shards"
    expected = wrong_shards(folder, kind)
    sentence = refused(1, *commands(folder)[name])
    assert sentence.startswith(f"{folder / 'train0000.tfrecord'}, record 0")
    assert expected in sentence
    assert files_in(tmp_path) == {"shards/train0000.tfrecord"}


@pytest.mark.parametrize("kind", ["video-level", "AudioSet"])
def test_a_run_on_shards_of_another_kind(
    tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path, out: Path, kind: str
) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_dataset, data)
    shutil.rmtree(data / "segment/train")
    expected = wrong_shards(data / "segment/train", kind)
    assert expected in refused(1, "run", tiny_recipe, "--data", data, "--out", out)
    assert files_in(out) == {"recipe.yaml"}


def test_frame_level_shards_as_sources(tiny_dataset: Path, out: Path) -> None:
    arguments = ["--sources", tiny_dataset / "video/train", "--vocabulary", tiny_dataset]
    assert "this is a frame-level shard" in refused(1, "splice", out, *arguments)
    assert not out.exists()


def test_real_shards_of_another_kind(shared_data: Path, tmp_path: Path) -> None:
    for number, (kind, expected) in enumerate(
        [("yt8m_video_level", "this is a video-level shard"), ("audioset_frame_level", "this is an AudioSet shard")]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        real = sorted((shared_data / kind).rglob("*.tfrecord"))[0]
        shutil.copy(real, folder)
        sentence = refused(1, "index", folder)
        assert sentence.startswith(f"{folder / real.name}, record 0")
        assert expected in sentence
        assert files_in(folder) == {real.name}


def test_a_real_video_is_taken(shared_data: Path, tmp_path: Path) -> None:
    shutil.copy(next((shared_data / "yt8m_frame_level").glob("*.tfrecord")), tmp_path)
    assert succeeds("index", tmp_path).out.startswith(f"{tmp_path / FILE_NAME}: 1 videos, ")
    assert Catalog.load(tmp_path).labels_of(0).tolist() == [11]


def test_shards_that_changed_since_they_were_indexed(
    finished_run: FinishedRun, tiny_dataset: Path, tmp_path: Path, out: Path
) -> None:
    """They are indexed again, and predictions of the former ones are not taken for theirs."""
    folder = tmp_path / "test"
    shutil.copytree(tiny_dataset / "segment/test", folder)
    model = finished_run.out / "finetune/bare/model"
    shards = ["--shards", folder, "--vocabulary", tiny_dataset]
    succeeds("predict", model, *shards, "--store", out, "--accelerator", "cpu")
    write_shard(folder / "test0003.tfrecord", random_videos(1, id_prefix="new"))
    sentence = refused(2, "submit", out, *shards, "--out", tmp_path / "submission.csv")
    assert sentence == f"{out}: was predicted from other videos than those of {folder}."
    assert "new0000" in Catalog.load(folder).video_ids


@pytest.mark.parametrize("name", ["describe", "predict", "submit", "evaluate"])
def test_damage_is_named_and_the_rest_goes_on(
    finished_run: FinishedRun, tiny_dataset: Path, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "rated"
    shutil.copytree(tiny_dataset / "segment/train", folder)
    path = folder / "rated0004.tfrecord"
    path.write_bytes(path.read_bytes()[:-100])
    model = finished_run.out / "finetune/bare/model"
    shards = ["--shards", folder, "--vocabulary", tiny_dataset]
    predictions, submission = tmp_path / "predictions", tmp_path / "submission.csv"
    calls: dict[str, list[object]] = {
        "predict": ["predict", model, *shards, "--store", predictions, "--accelerator", "cpu"],
        "submit": ["submit", predictions, *shards, "--out", submission],
        "evaluate": ["evaluate", submission, "--truth", folder],
        "describe": ["describe", folder],
    }
    needed = list(calls)[: list(calls).index(name)] if name != "describe" else []
    for before in needed:
        succeeds(*calls[before])
    warned = [line for line in succeeds(*calls[name]).err.splitlines() if "segment_vocabulary.csv" not in line]
    assert len(warned) == 1
    assert warned[0].startswith(f"{path}, record 0")
    assert warned[0].endswith("the rest of the shard was skipped.")


# -------------------------------------------------------------------------------------------------------------- recipes


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("segment_models.bare.base=dboff", "there is no base model 'dboff' (did you mean 'dbof'?)"),
        ("segment_models.bare.fold=4", "expected a fold below 4, found 4"),
        ("base_models.dbof.training.steps=0", "expected greater than 0, found 0"),
        ("base_models.dbof.training.peak_lr=-1", "expected greater than 0, found -1"),
        ("base_models.dbof.training.batch_size=big", "expected a valid integer, found 'big'"),
        ("base_models.dbof.training.btach_size=8", "(did you mean 'batch_size'?)"),
    ],
)
def test_recipes_that_are_wrong(tiny_recipe: Path, tiny_dataset: Path, out: Path, change: str, expected: str) -> None:
    where = ["--data", tiny_dataset, "--out", out]
    sentence = refused(2, "run", tiny_recipe, *where, "--set", change)
    assert sentence.startswith(f"{tiny_recipe}: ")
    assert expected in sentence
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "dmeo"], "There is no recipe 'dmeo' (did you mean 'demo'?)."),
        (["run", "absent.yaml"], "absent.yaml: there is no such recipe."),
        (["run", "{recipe}", "--only", "fintune"], "The recipe has no stage 'fintune' (did you mean 'finetune'?)."),
        (
            ["pretrain", "{recipe}", "dboff"],
            "The recipe has no stage 'pretrain/dboff' (did you mean 'pretrain/dbof'?).",
        ),
        (["finetune", "{recipe}", "dbof"], "The recipe has no stage 'finetune/dbof' (did you mean "),
        (["run", "{recipe}", "--set", "machine.devices=100"], "machine: "),
        (["run", "{recipe}", "--set", "machine.accelerator=mps"], "machine: "),
    ],
)
def test_recipes_models_and_machines_that_are_not_there(
    tiny_recipe: Path, tiny_dataset: Path, out: Path, arguments: list[str], expected: str
) -> None:
    if "machine.devices=100" in arguments:
        # A CPU takes any number of processes, so ask for that many of something else.
        arguments = [*arguments, "--set", "machine.accelerator=cuda"]
    filled = [argument.format(recipe=tiny_recipe) for argument in arguments]
    assert refused(2, *filled, "--data", tiny_dataset, "--out", out).startswith(expected)
    assert not out.exists() or files_in(out) <= {"recipe.yaml"}


# --------------------------------------------------------------------------------------------------------------- models


def other_vocabulary(tiny_dataset: Path, path: Path) -> Path:
    """The dataset's vocabulary in another order: as many classes, and not the same columns."""
    header, first, *rest = (tiny_dataset / "segment_vocabulary.csv").read_text().splitlines()
    path.write_text("\n".join([header, *rest, first]) + "\n")
    return path


def test_a_model_of_another_vocabulary(
    finished_run: FinishedRun, tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path, out: Path
) -> None:
    vocabulary = other_vocabulary(tiny_dataset, tmp_path / "other.csv")
    model = finished_run.out / "finetune/bare/model"
    shards = ["--shards", tiny_dataset / "segment/test", "--vocabulary"]
    sentence = refused(2, "predict", model, *shards, vocabulary, "--out", out, "--accelerator", "cpu")
    assert sentence.startswith(f"{model}: this model's 12 classes are those of another vocabulary")
    succeeds("predict", model, *shards, tiny_dataset, "--store", out, "--accelerator", "cpu")
    sentence = refused(2, "submit", out, *shards, vocabulary, "--out", tmp_path / "submission.csv")
    assert sentence == f"{out}: was predicted with another vocabulary than {vocabulary}."
    assert not (tmp_path / "submission.csv").exists()

    # In a run, models of another vocabulary are those of other settings: nothing is mixed up.
    data, again = tmp_path / "data", tmp_path / "again"
    shutil.copytree(tiny_dataset, data)
    shutil.copytree(finished_run.out, again)
    shutil.copy(vocabulary, data / "segment_vocabulary.csv")
    sentence = refused(2, "run", tiny_recipe, "--data", data, "--out", again, "--only", "predict")
    assert "was trained with other settings or data than the recipe's" in sentence


def test_a_model_folder_of_another_vocabulary_put_into_a_run(
    finished_run: FinishedRun, tiny_dataset: Path, tiny_recipe: Path, out: Path
) -> None:
    shutil.copytree(finished_run.out, out)
    shutil.rmtree(out / "predict")
    config = out / "finetune/bare/model/config.yaml"
    lines = config.read_text().splitlines()
    config.write_text(
        "\n".join("vocabulary: 0123456789abcdef" if line.startswith("vocabulary:") else line for line in lines)
    )
    sentence = refused(2, "run", tiny_recipe, "--data", tiny_dataset, "--out", out, "--only", "predict")
    assert f"{out / 'finetune/bare/model'}: this model's 12 classes are those of another vocabulary" in sentence
    assert not (out / "predict").exists()


@pytest.mark.parametrize("damage", ["no weights", "no config", "truncated", "of another network", "a text"])
def test_damaged_model_folders(
    finished_run: FinishedRun, tiny_dataset: Path, tmp_path: Path, out: Path, damage: str
) -> None:
    model = tmp_path / "model"
    shutil.copytree(finished_run.out / "finetune/bare/model", model)
    weights = model / "model.safetensors"
    if damage == "no weights":
        weights.unlink()
    elif damage == "no config":
        (model / "config.yaml").unlink()
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "of another network":
        shutil.copy(finished_run.out / "finetune/aware/model/model.safetensors", weights)
    else:
        weights.write_text("weights")
    shards = ["--shards", tiny_dataset / "segment/test", "--vocabulary", tiny_dataset]
    status = 2 if damage.startswith("no ") else 1
    sentence = refused(status, "predict", model, *shards, "--out", out, "--accelerator", "cpu")
    assert str(model) in sentence
    assert not out.exists()


def test_models_that_cannot_be_predicted_with(finished_run: FinishedRun, tiny_dataset: Path, out: Path) -> None:
    shards = ["--shards", tiny_dataset / "segment/test", "--vocabulary", tiny_dataset, "--out", out]
    video, bare = (finished_run.out / stage / "model" for stage in ("pretrain/dbof", "finetune/bare"))
    sentence = refused(2, "predict", video, *shards, "--accelerator", "cpu")
    assert sentence == "dbof: classifies whole videos; `yt8m finetune` makes segment classifiers of such models."
    sentence = refused(2, "predict", video, bare, *shards, "--accelerator", "cpu")
    assert sentence.startswith(
        "dbof: is a classifier of whole videos; `yt8m finetune` makes segment classifiers of them"
    )
    sentence = refused(2, "predict", bare, bare, *shards, "--accelerator", "cpu")
    assert sentence == f"{bare}: a model named 'bare' is among the others already."
    assert "expected 'auto', 'cpu', 'cuda' or 'mps'" in refused(2, "predict", bare, *shards, "--accelerator", "gpu")
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "There is nothing to make: give --out, a submission to write, or --store, or --table."),
        (["--out", "{out}", "--set", "method=rank"], "The mean of ranks takes all probabilities at once; store them (--store) as well."),
        (["--table", "{out}", "--set", "method=rank"], "The mean of ranks takes all probabilities at once; store them (--store) as well."),
        (["--out", "{out}", "--set", "metod=rank"], "--set: unknown key 'metod' (did you mean 'method'?)."),
        (["--out", "{out}", "--set", "method=harmonic"], "--set: 'method': expected 'arithmetic', 'geometric' or 'rank', found 'harmonic'."),
        (["--out", "{out}", "--set", "method"], "--set method: expected path=value, such as "),
        (["--out", "{out}", "--set", "models=[bare]"], "--set: unknown key 'models' "),
        (["--out", "{out}", "--set", "video_prior.models=[dbof]"], "The ensemble asks the video classifier 'dbof', which is not among the models given."),
        (["--out", "{out}", "--set", "video_prior.models=[bare]"], "The ensemble asks the video classifier 'bare', which is not among the models given."),
        (["--out", "{out}", "--set", "candidates.models=[dbof]"], "--set: 'candidates.min_video_probability' is missing."),
        (["--out", "{out}", "--weight", "bear=2"], "The ensemble gives a weight to 'bear', which is not one of its models (did you mean 'bare'?)."),
        (["--out", "{out}", "--weight", "bare=0"], "The ensemble's weights must have a sum above 0"),
        (["--out", "{out}", "--precision", "64"], "--accelerator, --precision: 'precision': expected '32-true', "),
    ],
)  # fmt: skip
def test_predictions_that_cannot_be_made(
    finished_run: FinishedRun, tiny_dataset: Path, tmp_path: Path, out: Path, options: list[str], expected: str
) -> None:
    shards = ["--shards", tiny_dataset / "segment/test", "--vocabulary", tiny_dataset, "--accelerator", "cpu"]
    filled = [option.format(out=out) for option in options]
    assert refused(2, "predict", finished_run.out / "finetune/bare/model", *shards, *filled).startswith(expected)
    assert files_in(tmp_path) == set()


@pytest.mark.parametrize("shift", ["6", "-6", "half"])
def test_shifts_that_are_none(finished_run: FinishedRun, tiny_dataset: Path, out: Path, shift: str) -> None:
    shards = ["--shards", tiny_dataset / "segment/test", "--vocabulary", tiny_dataset, "--out", out]
    outcome = command("predict", finished_run.out / "finetune/bare/model", *shards, "--shift", shift)
    assert outcome.status == 2
    assert "--shift" in outcome.err
    assert not out.exists()


def test_a_store_that_is_not_finished_cannot_be_merged(
    finished_run: FinishedRun, tiny_dataset: Path, tmp_path: Path
) -> None:
    shards = ["--shards", tiny_dataset / "segment/test", "--vocabulary", tiny_dataset]
    store = tmp_path / "store"
    succeeds("predict", finished_run.out / "finetune/bare/model", *shards, "--store", store, "--accelerator", "cpu")
    store.rename(tmp_path / "store.unfinished")
    (tmp_path / "store.unfinished/predictions.yaml").rename(tmp_path / "store.unfinished/unfinished.yaml")
    for folder in (store, tmp_path / "store.unfinished"):
        sentence = refused(2, "submit", folder, *shards, "--out", tmp_path / "s.csv")
        assert sentence.startswith(f"{folder}: ")
        assert "is not finished; the same" in sentence
    assert not (tmp_path / "s.csv").exists()


@pytest.mark.parametrize("option", ["--out", "--store", "--table"])
def test_predictions_under_a_file(finished_run: FinishedRun, tiny_dataset: Path, tmp_path: Path, option: str) -> None:
    (tmp_path / "file").write_text("")
    shards = ["--shards", tiny_dataset / "segment/test", "--vocabulary", tiny_dataset, "--accelerator", "cpu"]
    made = tmp_path / "file/made"
    sentence = refused(1, "predict", finished_run.out / "finetune/bare/model", *shards, option, made)
    assert sentence.startswith(f"{made}: cannot be written (")


@pytest.mark.parametrize("weight", ["bare", "bare=", "bare=much", "bare=-1", "bare=inf", "bare=nan", "=1"])
def test_weights_that_are_none(tiny_dataset: Path, out: Path, weight: str) -> None:
    shards = ["--shards", tiny_dataset / "segment/test", "--vocabulary", tiny_dataset, "--out", out]
    sentence = refused(2, "submit", "predictions", *shards, "--weight", weight)
    assert sentence == f"--weight {weight}: expected NAME=NUMBER, the number not negative."


def test_videos_too_short_to_predict(finished_run: FinishedRun, tiny_dataset: Path, tmp_path: Path, out: Path) -> None:
    write_shards(tmp_path / "short", random_videos(3, num_frames=(20, 40)))
    shards = ["--shards", tmp_path / "short", "--vocabulary", tiny_dataset, "--out", out]
    sentence = refused(2, "predict", finished_run.out / "finetune/bare/model", *shards, "--accelerator", "cpu")
    assert "none of its 3 videos is longer than 40 seconds" in sentence
    assert not out.exists()


# -------------------------------------------------------------------------------------------------------------- locating


def test_what_cannot_be_located(finished_run: FinishedRun, tiny_dataset: Path, tmp_path: Path) -> None:
    shards = tiny_dataset / "segment/test"
    known = Catalog.load(shards).video_ids[2]
    run, video, bare = (finished_run.out / name for name in (".", "pretrain/dbof/model", "finetune/bare/model"))
    vocabulary = ["--vocabulary", tiny_dataset]
    places = ["--shards", shards, *vocabulary]

    wanted = known[:3] + "~"
    sentence = refused(2, "locate", wanted, bare, *places)
    assert sentence == f"{shards}: there is no video '{wanted}' among its 8 (did you mean {known!r}?)."
    assert refused(2, "locate", "~~~~~~~~~~~~~~", bare, *places).endswith("'~~~~~~~~~~~~~~' among its 8.")

    needs = "yt8m locate needs either model folders or --run DIR, a run's folder whose ensemble it takes."
    assert refused(2, "locate", known, *places) == needs
    assert refused(2, "locate", known, bare, "--run", run, *places) == needs
    assert refused(2, "locate", known, bare, *vocabulary).startswith(
        f"{known}: to find a video by its id takes --shards DIR"
    )
    absent = tmp_path / "absent.tfrecord"
    assert refused(2, "locate", absent, bare, *vocabulary) == f"{absent}: there is no such shard."
    assert refused(2, "locate", known, video, *places).startswith("dbof: is a classifier of whole videos")
    assert refused(2, "locate", known, bare, bare, *places).endswith(
        "a model named 'bare' is among the others already."
    )
    other = other_vocabulary(tiny_dataset, tmp_path / "other.csv")
    sentence = refused(2, "locate", known, bare, "--shards", shards, "--vocabulary", other)
    assert sentence.startswith(f"{bare}: this model's 12 classes are those of another vocabulary")
    assert "expected 'auto', 'cpu', 'cuda' or 'mps'" in refused(
        2, "locate", known, bare, *places, "--accelerator", "gpu"
    )


@pytest.mark.parametrize("kind", ["video-level", "AudioSet"])
def test_locating_in_shards_of_another_kind(
    finished_run: FinishedRun, tiny_dataset: Path, tmp_path: Path, kind: str
) -> None:
    expected = wrong_shards(tmp_path, kind)
    shard = tmp_path / "train0000.tfrecord"
    sentence = refused(1, "locate", shard, "--run", finished_run.out, "--vocabulary", tiny_dataset)
    assert sentence.startswith(f"{shard}, record 0")
    assert expected in sentence


def test_a_run_whose_ensemble_is_not_trained(finished_run: FinishedRun, tiny_dataset: Path, tmp_path: Path) -> None:
    shutil.copy(finished_run.out / "recipe.yaml", tmp_path)
    places = ["--shards", tiny_dataset / "segment/test", "--vocabulary", tiny_dataset]
    video = Catalog.load(tiny_dataset / "segment/test").video_ids[0]
    sentence = refused(2, "locate", video, "--run", tmp_path, *places)
    assert sentence == f"{tmp_path / 'finetune/bare/model'}: there is no such model folder."


# ----------------------------------------------------------------------------------------------- submissions and truths


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "line 1: expected the header 'Class,Segments', found ''"),
        ("{label},aaaa:30\n", "line 1: expected the header 'Class,Segments'"),
        ("Class,Segments\n", "holds no class"),
        ("Class,Segments\n99999,aaaa:30\n", "line 2: 99999 is not a class of the vocabulary"),
        (
            "Class,Segments\n{label},aaaa:30\n{label},aaaa:35\n",
            "line 3: class {label} occurs a second time, after line 2",
        ),
        ("Class,Segments\n{label},aaaa:30 bbbb:30 aaaa:30\n", "class {label} lists segment 'aaaa:30' more than once"),
        ("Class,Segments\n{label},aaaa:30 bbbb\n", "segment 2 of class {label} is 'bbbb'"),
        ("Class,Segments\n{label},aaaa:31\n", "segment 1 of class {label} is 'aaaa:31'"),
        ("Class,Segments\n{label},aaaa:-5\n", "segment 1 of class {label} is 'aaaa:-5'"),
        ("Class,Segments\n{label};aaaa:30\n", "expected a class id, a comma and segments"),
        ("Class,Segments\nSurfing,aaaa:30\n", "expected a class id, a comma and segments"),
    ],
)
def test_submissions(tiny_dataset: Path, tmp_path: Path, content: str, expected: str) -> None:
    label = (tiny_dataset / "segment_vocabulary.csv").read_text().splitlines()[1].split(",")[0]
    path = tmp_path / "submission.csv"
    path.write_text(content.format(label=label))
    truth = ["--truth", tiny_dataset / "segment/test_ratings.csv", "--vocabulary", tiny_dataset]
    sentence = refused(1, "evaluate", path, *truth, "--per-class", tmp_path / "classes.csv")
    assert sentence.startswith(str(path))
    assert expected.format(label=label) in sentence
    sentence = refused(1, "check", path, "--vocabulary", tiny_dataset)
    assert sentence.startswith(f"{path}: would not be accepted: ")
    assert files_in(tmp_path) == {"submission.csv"}


@pytest.mark.parametrize(
    ("content", "dense", "expected"),
    [
        ("", False, "line 1: expected a header with the columns video,label,start,score"),
        ("video,label,start\naaaa,{label},30\n", False, "(a file of positives only, where all other segments are negatives"),
        ("video,label,start,score\naaaa,{label},30,1\n", True, "has a column 'score'"),
        ("video,label,start,score\n", False, "holds no rows below its header"),
        ("video,label,start,score\naaaa,{label},30\n", False, "line 2: expected 4 values or more, found 3"),
        ("video,label,start,score\naaaa,{label},30,1\naaaa,Surfing,30,1\n", False, "line 3: expected a whole number as label"),
        ("video,label,start,score\naaaa,{label},32,1\n", False, "line 2: expected a start in seconds, a multiple of 5"),
        ("video,label,start,score\naaaa,{label},30,yes\n", False, "line 2: expected a number as score, found 'yes'"),
        ("video,label,start,score\n,{label},30,1\n", False, "line 2: the video id is empty"),
        ("video,label,start,score\naaaa,{label},30,0\n", False, "The truth holds no positive rating"),
        ("video,label,start,score\naaaa,99999,30,1\n", False, "The truth rates the label 99999, which is not a class"),
    ],
)  # fmt: skip
def test_truths(
    finished_run: FinishedRun, tiny_dataset: Path, tmp_path: Path, content: str, dense: bool, expected: str
) -> None:
    label = (tiny_dataset / "segment_vocabulary.csv").read_text().splitlines()[1].split(",")[0]
    path = tmp_path / "truth.csv"
    path.write_text(content.format(label=label))
    arguments = ["--truth", path, "--vocabulary", tiny_dataset, *(["--dense"] if dense else [])]
    assert expected in refused(1, "evaluate", finished_run.out / "submission.csv", *arguments)


def test_truths_that_are_folders(finished_run: FinishedRun, tiny_dataset: Path) -> None:
    submission = finished_run.out / "submission.csv"
    assert "a dense truth is a CSV file" in refused(
        2, "evaluate", submission, "--truth", tiny_dataset / "segment/train", "--dense"
    )
    sentence = refused(2, "evaluate", submission, "--truth", tiny_dataset / "segment/test")
    assert "its 8 videos carry no ratings to score against" in sentence


# ----------------------------------------------------------------------------------------------------------------- disk


def test_no_space_for_the_catalog(full_disk: FullDisk) -> None:
    write_shards(full_disk.folder / "shards", random_videos(4))
    full_disk.fill()
    before = files_in(full_disk.folder)
    sentence = refused(1, "index", full_disk.folder / "shards")
    assert sentence.startswith(f"{full_disk.folder / 'shards' / FILE_NAME}: no space left on the disk; ")
    assert files_in(full_disk.folder) == before
    full_disk.free()
    succeeds("index", full_disk.folder / "shards")


@pytest.mark.parametrize("existed", [False, True])
def test_no_space_for_spliced_shards(full_disk: FullDisk, existed: bool) -> None:
    out = full_disk.folder / "data"
    if existed:
        out.mkdir()
    full_disk.fill(leave=500_000)
    arguments = ["splice", out, "--pretrain", 4, "--segments", 1, "--test", 1]
    assert "no space left on the disk" in refused(1, *arguments)
    assert out.exists() == existed
    assert files_in(full_disk.folder) <= {"filler"}
    full_disk.free()
    succeeds(*arguments)


def test_no_space_for_a_checkpoint(
    full_disk: FullDisk, finished_run: FinishedRun, tiny_dataset: Path, tiny_recipe: Path
) -> None:
    out = full_disk.folder / "out"
    full_disk.fill(leave=150_000)
    arguments = ["run", tiny_recipe, "--data", tiny_dataset, "--out", out]
    sentence = refused(1, *arguments)
    assert sentence.startswith(f"{out / 'pretrain/dbof/checkpoint.pt'}: no space left on the disk; ")
    left = {name for name in files_in(out) if "tensorboard" not in name}
    assert left == {"recipe.yaml", "pretrain/dbof/stage.yaml", "pretrain/dbof/metrics.csv"}
    full_disk.free()
    succeeds(*arguments)
    assert (out / "submission.csv").read_bytes() == (finished_run.out / "submission.csv").read_bytes()


def test_no_space_for_a_submission(
    full_disk: FullDisk, finished_run: FinishedRun, tiny_dataset: Path, tiny_recipe: Path
) -> None:
    out = full_disk.folder / "out"
    shutil.copytree(finished_run.out, out)
    (out / "submission.csv").unlink()
    shutil.rmtree(out / "predict")
    full_disk.fill(leave=9_000)
    arguments = ["run", tiny_recipe, "--data", tiny_dataset, "--out", out]
    outcome = command(*arguments)
    assert outcome.status == 1
    expected = f"yt8m: {out / 'submission.csv'}: no space left on the disk; "
    assert outcome.err.splitlines()[-1].startswith(expected)
    assert not (out / "submission.csv").exists()
    assert not [name for name in files_in(out) if "/." in f"/{name}"]
    assert "status: started" in (out / "predict/stage.yaml").read_text()
    full_disk.free()
    assert "predict: goes on where it was stopped" in succeeds(*arguments).err
    assert (out / "submission.csv").read_bytes() == (finished_run.out / "submission.csv").read_bytes()


def test_no_space_for_predictions(full_disk: FullDisk, finished_run: FinishedRun, tiny_dataset: Path) -> None:
    full_disk.fill(leave=5_000)
    if not (full_disk.folder / "filler").exists():
        pytest.skip("no disk can be mounted here")
    shards = ["--shards", tiny_dataset / "segment/test", "--vocabulary", tiny_dataset]
    out = full_disk.folder / "predictions"
    sentence = refused(1, "predict", finished_run.out / "finetune/bare/model", *shards, "--store", out)
    assert sentence.startswith(f"{out}: the predictions need 0.0 GB, and 0.0 GB are free.")
    assert files_in(full_disk.folder) == {"filler"}


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_folders_that_cannot_be_written_to(
    tiny_dataset: Path, tiny_recipe: Path, out: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    sentence = refused(1, "run", tiny_recipe, "--data", tiny_dataset, "--out", out)
    assert sentence.startswith(f"{out / 'recipe.yaml'}: ")


def test_output_under_a_file(tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    sentence = refused(1, "run", tiny_recipe, "--data", tiny_dataset, "--out", tmp_path / "file")
    assert sentence.startswith(f"{tmp_path / 'file' / 'recipe.yaml'}: cannot be written (")


# ------------------------------------------------------------------------------------------------------------ processes


def test_a_process_ends_with_the_sentence_alone(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "yt8m", "index", tmp_path / "absent"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(Path(yt8m.__file__).parents[1])},
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    absent = tmp_path / "absent"
    assert ended.stderr == f"yt8m: {absent}: there is no such folder; expected a folder of shards (*.tfrecord).\n"


def test_a_defect_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Path) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr("yt8m.dataset.layout.dataset_parts", broken)
    with pytest.raises(RuntimeError, match="a defect"):
        command("index", tmp_path)


def test_an_interrupted_command_says_that_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("yt8m.dataset.layout.dataset_parts", interrupted)
    assert refused(130, "index", tmp_path).startswith("Interrupted")


def test_the_framing_of_these_tests_is_that_of_shards(tmp_path: Path) -> None:
    payload = random_videos(1)[0].encoded()
    assert write_records(tmp_path / "a.tfrecord", [payload]).read_bytes() == frame_record(payload)
