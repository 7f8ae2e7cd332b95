"""The commands one by one: what they print, what they leave, and that they are the stages of `run`."""

from __future__ import annotations

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import typer.main

import yt8m
from tests.conftest import TINY_SIZES, FinishedRun
from tests.support.command import Outcome, refused, succeeds
from tests.support.command import yt8m as command
from tests.support.tiny_shards import random_videos, write_shards
from yt8m.cli.main import app
from yt8m.dataset.catalog import FILE_NAME, Catalog
from yt8m.dataset.layout import PARTS
from yt8m.errors import Yt8mError
from yt8m.prediction.predict import Predictions, predict
from yt8m.prediction.store import StoreIndex
from yt8m.submission.submission import read_submission
from yt8m.vocabulary import Vocabulary

COMMANDS = [
    "download",
    "index",
    "describe",
    "splice",
    "run",
    "pretrain",
    "finetune",
    "find-rate",
    "predict",
    "submit",
    "check",
    "locate",
    "evaluate",
    "import-2019",
    "demo",
]


def in_a_shell(*arguments: str | Path) -> Outcome:
    """Run the command in a process of its own, as the installed script does."""
    ended = subprocess.run(
        [sys.executable, "-c", "from yt8m.cli.main import main; main()", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(Path(yt8m.__file__).parents[1]), "OMP_NUM_THREADS": "1"},
    )
    return Outcome(ended.returncode, ended.stdout, ended.stderr)


# ---------------------------------------------------------------------------------------------------------------- help


def test_these_are_all_commands() -> None:
    assert list(typer.main.get_command(app).commands) == COMMANDS  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_describes_the_command_and_shows_an_example(name: str) -> None:
    lines = [line.strip() for line in succeeds(name, "--help").out.splitlines()]
    # The description stands between the usage and the box of the arguments.
    usage = next(number for number, line in enumerate(lines) if line.startswith("Usage:"))
    box = next(number for number, line in enumerate(lines) if line.startswith("╭"))
    described = [line for line in lines[usage + 1 : box] if line]
    examples = [line for line in described if line.startswith(f"yt8m {name}")]
    assert examples
    assert len(" ".join(described[: described.index(examples[0])]).split()) >= 8
    parameters = typer.main.get_command(app).commands[name].params  # type: ignore[attr-defined]
    assert all(parameter.help or parameter.name == "help" for parameter in parameters)


def test_help_of_all() -> None:
    for outcome in (succeeds("--help"), command()):
        assert [name for name in COMMANDS if re.search(rf"│ {name} ", outcome.out)] == COMMANDS


def test_version() -> None:
    assert succeeds("--version").out == f"yt8m {yt8m.__version__}\n"


# ------------------------------------------------------------------------------------------------- index and describe


@pytest.fixture
def data(tmp_path: Path, tiny_dataset: Path) -> Path:
    """A copy of the tiny dataset that nobody has indexed."""
    shutil.copytree(tiny_dataset, tmp_path / "data", ignore=shutil.ignore_patterns(FILE_NAME))
    return tmp_path / "data"


def test_index_writes_the_catalog_of_each_part(data: Path) -> None:
    shown = in_a_shell("index", data)
    assert (shown.status, shown.err) == (0, "")
    for part, size in zip(PARTS, vars(TINY_SIZES).values(), strict=True):
        catalog = Catalog.load(data / part)
        assert len(catalog) == size
        line = next(line for line in shown.out.splitlines() if line.startswith(str(data / part / FILE_NAME)))
        numbers = [
            int(number.replace(",", "")) for number in re.findall(r"[\d,]*\d", line.removeprefix(str(data / part)))
        ]
        assert numbers == [size, catalog.num_frames.sum(), len(catalog.rating_labels), len(catalog.shards)]
    assert f"{TINY_SIZES.test} videos without labels (kept)" in shown.out


def test_index_of_one_folder(data: Path) -> None:
    shown = succeeds("index", data / "segment/train", "--no-verify")
    assert len(shown.out.splitlines()) == 1
    assert [path.parent.name for path in data.rglob(FILE_NAME)] == ["train"]


def test_describe_counts_what_is_there(data: Path, tiny_vocabulary: Vocabulary) -> None:
    shown = succeeds("describe", data)
    assert shown.err == ""
    lines = [" ".join(line.split()) for line in shown.out.splitlines()]
    assert lines[0] == f"{data / 'segment_vocabulary.csv'}: {len(tiny_vocabulary)} segment classes"
    rated = lines[lines.index(str(data / "segment/train")) : lines.index(str(data / "segment/test"))]
    catalog = Catalog.load(data / "segment/train")
    frames = catalog.num_frames
    per_class = [int((catalog.rating_labels == label).sum()) for label in tiny_vocabulary.label_ids]
    assert f"videos {len(catalog)} ({frames.sum() / 3600:.1f} hours)" in rated
    assert f"frames {frames.sum():,}, a video {frames.min()} to {frames.max()}, median {np.median(frames):.0f}" in rated
    positive = int(catalog.rating_values.sum())
    assert any(line.startswith(f"ratings {sum(per_class)} ({positive} positive) of ") for line in rated)
    assert f"ratings a class {min(per_class)} to {max(per_class)}, median {np.median(per_class):.0f}" in rated
    assert lines[-1] == "odd 8 videos without labels (kept)"
    assert len(list(data.rglob(FILE_NAME))) == 4


def test_describe_without_a_vocabulary(tmp_path: Path) -> None:
    write_shards(tmp_path, random_videos(3, label_ids=[3, 9], ratings_per_video=4))
    shown = succeeds("describe", tmp_path)
    assert "is not there, so classes are counted without it" in shown.err
    assert re.search(r"ratings +12 ", shown.out)


# -------------------------------------------------------------------------------------------------------------- splice


def test_splice_of_builtin_sources(tmp_path: Path) -> None:
    sizes = ["--pretrain", 3, "--segments", 4, "--test", 2]
    shown = succeeds("splice", tmp_path / "a", *sizes, "--seed", 1)
    assert "10 videos spliced from" in shown.out
    for part, count in (("video/train", 3), ("video/valid", 1), ("segment/train", 4), ("segment/test", 2)):
        assert len(list((tmp_path / "a" / part).glob("*.tfrecord"))) == count
    succeeds("splice", tmp_path / "b", *sizes, "--seed", 1)
    succeeds("splice", tmp_path / "c", *sizes, "--seed", 2)

    def content(folder: Path) -> dict[str, bytes]:
        files = (path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert content(tmp_path / "a") != content(tmp_path / "c")


# ------------------------------------------------------------------------------------------- single commands, and `run`


def merged(
    data: Path, models: Iterable[Path], out: Path, part: str = "segment/test", *weights: str
) -> dict[int, list[bytes]]:
    """Predict with models, each into a folder of predictions of its own, and merge these into a submission."""
    shards = ["--shards", data / part, "--vocabulary", data / "segment_vocabulary.csv"]
    folders: list[Path] = []
    for model in models:
        folders.append(out / f"predictions-{len(folders)}")
        succeeds("predict", model, *shards, "--store", folders[-1], "--accelerator", "cpu")
    succeeds("submit", *folders, *shards, "--out", out / "submission.csv", *weights)
    return dict(read_submission(out / "submission.csv"))


def test_single_commands_make_what_run_makes(
    tmp_path: Path, finished_run: FinishedRun, tiny_dataset: Path, tiny_recipe: Path
) -> None:
    out = tmp_path / "out"
    where = ["--data", tiny_dataset, "--out", out]
    printed = ""
    for stage, model in (("pretrain", "dbof"), ("pretrain", "nextvlad"), ("finetune", "aware"), ("finetune", "bare")):
        printed += succeeds(stage, tiny_recipe, model, *where).err
    assert [line.split(":")[0] for line in printed.splitlines()] == [
        "pretrain dbof",
        "pretrain nextvlad",
        "finetune aware",
        "finetune bare",
    ]
    for stage in ("pretrain/dbof", "pretrain/nextvlad", "finetune/bare", "finetune/aware"):
        weights = f"{stage}/model/model.safetensors"
        assert (out / weights).read_bytes() == (finished_run.out / weights).read_bytes()
    assert sorted(path.name for path in out.iterdir()) == ["finetune", "pretrain", "recipe.yaml"]

    # In one pass, and in an order that is not the recipe's.
    models = [out / "finetune" / name / "model" for name in ("aware", "bare")]
    shards = ["--shards", tiny_dataset / "segment/test", "--vocabulary", tiny_dataset / "segment_vocabulary.csv"]
    predicted = succeeds("predict", *models, *shards, "--store", tmp_path / "predictions", "--accelerator", "cpu")
    assert predicted.out == f"{tmp_path / 'predictions'}: probabilities of aware, bare\n"
    submitted = succeeds("submit", tmp_path / "predictions", *shards, "--out", tmp_path / "submission.csv")
    assert "the arithmetic mean of 2 models (aware, bare)" in submitted.out
    assert (tmp_path / "submission.csv").read_bytes() == (finished_run.out / "submission.csv").read_bytes()


@pytest.fixture
def places(tiny_dataset: Path) -> list[object]:
    """Options of `predict` and `submit` that say what is predicted."""
    return ["--shards", tiny_dataset / "segment/test", "--vocabulary", tiny_dataset / "segment_vocabulary.csv"]


@pytest.fixture
def models(finished_run: FinishedRun) -> list[object]:
    """Model folders of the run's ensemble, in an order that is not the recipe's."""
    return [finished_run.out / "finetune" / name / "model" for name in ("aware", "bare")]


def test_predict_makes_the_runs_submission_and_table(
    tmp_path: Path, finished_run: FinishedRun, models: list[object], places: list[object]
) -> None:
    made = ["--out", tmp_path / "s.csv", "--table", tmp_path / "s.parquet"]
    shown = succeeds("predict", *models, *places, *made, "--accelerator", "cpu")
    assert shown.err == ""
    assert shown.out == (
        f"{tmp_path / 's.csv'}: the submission of aware, bare\n{tmp_path / 's.parquet'}: the table of aware, bare\n"
    )
    assert (tmp_path / "s.csv").read_bytes() == (finished_run.out / "submission.csv").read_bytes()
    assert pq.read_table(tmp_path / "s.parquet").equals(pq.read_table(finished_run.out / "segments.parquet"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.csv", "s.parquet"]


def test_a_table_lists_what_the_submission_does(
    tmp_path: Path, finished_run: FinishedRun, models: list[object], places: list[object]
) -> None:
    succeeds("predict", *models, *places, "--table", tmp_path / "s.parquet", "--top-k", 9, "--accelerator", "cpu")
    listed: dict[int, list[bytes]] = {}
    for row in pq.read_table(tmp_path / "s.parquet").to_pylist():
        listed.setdefault(row["class"], []).append(f"{row['video']}:{row['start']}".encode())
    whole = dict(read_submission(finished_run.out / "submission.csv"))
    assert listed == {label_id: segments[:9] for label_id, segments in whole.items()}
    assert [path.name for path in tmp_path.iterdir()] == ["s.parquet"]


WAYS_TO_MERGE = {
    "geometric": (["--set", "method=geometric", "--weight", "aware=2"], ["--weight", "aware=2"]),
    "prior": (["--set", "video_prior={models: [dbof], video_exponent: 1.0}"], []),
    "candidates": (["--set", "candidates={models: [nextvlad, dbof], min_video_probability: 0.0051}"], []),
    "shifts": (["--shift", "1", "--shift", "-1", "--shift", "0"], []),
    "top-k": (["--top-k", "7"], []),
}
"""Options of `predict`, and options that must make something else."""


@pytest.mark.parametrize("name", WAYS_TO_MERGE)
def test_streaming_is_storing_and_ranking(
    tmp_path: Path, finished_run: FinishedRun, models: list[object], places: list[object], name: str
) -> None:
    options, others = WAYS_TO_MERGE[name]
    base_models = [finished_run.out / "pretrain" / base / "model" for base in ("dbof", "nextvlad")]
    named = [model for model, base in zip(base_models, ("dbof", "nextvlad"), strict=True) if base in str(options)]
    both = ["--accelerator", "cpu", *places]
    streamed, stored, merged_later = (tmp_path / f"{kind}.csv" for kind in ("streamed", "stored", "merged"))
    succeeds("predict", *models, *named, *both, *options, "--out", streamed)
    store = ["--store", tmp_path / "store"]
    succeeds("predict", *models, *named, *both, *options, "--out", stored, *store)
    assert streamed.read_bytes() == stored.read_bytes()
    # What is stored has been shifted already.
    succeeds("submit", tmp_path / "store", *places, *([] if name == "shifts" else options), "--out", merged_later)
    assert streamed.read_bytes() == merged_later.read_bytes()
    succeeds("predict", *models, *both, *others, "--out", tmp_path / "plain.csv")
    assert streamed.read_bytes() != (tmp_path / "plain.csv").read_bytes()


def test_a_mean_of_ranks_is_made_of_what_is_stored(tmp_path: Path, models: list[object], places: list[object]) -> None:
    rank = ["--set", "method=rank"]
    store = ["--store", tmp_path / "store", "--accelerator", "cpu"]
    succeeds("predict", *models, *places, *rank, "--out", tmp_path / "at-once.csv", *store)
    shown = succeeds("submit", tmp_path / "store", *places, *rank, "--out", tmp_path / "later.csv")
    assert "the rank mean of 2 models (aware, bare)" in shown.out
    assert (tmp_path / "at-once.csv").read_bytes() == (tmp_path / "later.csv").read_bytes()
    succeeds("submit", tmp_path / "store", *places, "--out", tmp_path / "plain.csv")
    assert (tmp_path / "plain.csv").read_bytes() != (tmp_path / "later.csv").read_bytes()


def test_classifiers_of_videos_may_be_stored_alone(
    tmp_path: Path, finished_run: FinishedRun, models: list[object], places: list[object]
) -> None:
    """To weigh in later, beside segment models stored before."""
    dbof = finished_run.out / "pretrain/dbof/model"
    prior = ["--set", "video_prior.models=[dbof]"]
    succeeds("predict", dbof, *places, "--store", tmp_path / "video", "--accelerator", "cpu")
    succeeds("predict", *models, *places, "--store", tmp_path / "segment", "--accelerator", "cpu")
    stores = [tmp_path / "video", tmp_path / "segment"]
    shown = succeeds("submit", *stores, *places, *prior, "--out", tmp_path / "apart.csv")
    assert "of 2 models (aware, bare)" in shown.out
    succeeds("predict", *models, dbof, *places, *prior, "--out", tmp_path / "together.csv", "--accelerator", "cpu")
    assert (tmp_path / "apart.csv").read_bytes() == (tmp_path / "together.csv").read_bytes()


def test_the_order_of_models_and_stores_changes_nothing(
    tmp_path: Path, models: list[object], places: list[object]
) -> None:
    for name, order in (("a", models), ("b", models[::-1])):
        succeeds("predict", *order, *places, "--out", tmp_path / f"{name}.csv", "--accelerator", "cpu")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


# ------------------------------------------------------------------------------------------------- stopped predictions


def noting(monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None) -> list[int]:
    """Predict in batches of 16 and note where those begin that are predicted; get a SIGTERM after so many."""
    starts: list[int] = []

    def noted(*arguments: Any) -> Iterator[Predictions]:
        for predictions in predict(*arguments):
            starts.append(predictions.start)
            if len(starts) == stop_after:
                os.kill(os.getpid(), signal.SIGTERM)
            yield predictions

    monkeypatch.setattr("yt8m.prediction.predict.SEGMENTS_PER_BATCH", 16)
    monkeypatch.setattr("yt8m.prediction.passes.predict", noted)
    return starts


@pytest.mark.parametrize("kind", ["--out", "--table", "--store"])
def test_a_prediction_that_gets_a_signal_goes_on_with_the_same_command(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    models: list[object],
    places: list[object],
    kind: str,
) -> None:
    def contents(path: Path) -> dict[str, bytes]:
        files = [path] if path.is_file() else sorted(path.iterdir())
        return {file.name: file.read_bytes() for file in files}

    made = {name: tmp_path / name / "made" for name in ("alone", "stopped")}
    make_index = StoreIndex.of

    def in_small_blocks(*arguments: Any) -> StoreIndex:
        return make_index(*arguments).model_copy(update={"segments_per_block": 16})

    monkeypatch.setattr(StoreIndex, "of", in_small_blocks)
    whole = noting(monkeypatch)
    options = [*places, "--accelerator", "cpu", kind]
    succeeds("predict", *models, *options, made["alone"])
    before = noting(monkeypatch, stop_after=3)
    sentence = refused(75, "predict", *models, *options, made["stopped"])
    assert "stopped as asked; the same command goes on with" in sentence
    assert str(made["stopped"]) in sentence
    assert not made["stopped"].exists()
    after = noting(monkeypatch)
    succeeds("predict", *models, *options, made["stopped"])
    assert len(before) == 3 < len(whole)
    assert before + after == whole
    assert contents(made["stopped"]) == contents(made["alone"])
    assert [path.name for path in (tmp_path / "stopped").iterdir()] == ["made"]


def test_other_settings_do_not_go_on_with_what_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: list[object], places: list[object]
) -> None:
    options = [*places, "--accelerator", "cpu", "--out", tmp_path / "s.csv"]
    noting(monkeypatch, stop_after=3)
    refused(75, "predict", *models, *options)
    starts = noting(monkeypatch)
    other = ["--weight", "aware=3"]
    succeeds("predict", *models, *options, *other)
    assert starts[0] == 0
    succeeds("predict", *models, *places, *other, "--accelerator", "cpu", "--out", tmp_path / "alone.csv")
    assert (tmp_path / "s.csv").read_bytes() == (tmp_path / "alone.csv").read_bytes()
    assert not (tmp_path / "s.csv.unfinished").exists()


def test_a_disk_that_is_full_at_the_end_costs_no_prediction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: list[object], places: list[object]
) -> None:
    """Hours of work are ranked by then, and only the file is missing."""
    options = [*places, "--accelerator", "cpu", "--out", tmp_path / "s.csv"]

    def full(*_: object) -> None:
        raise Yt8mError("no space left on the disk.")

    monkeypatch.setattr("yt8m.runs.predicting.write_submission", full)
    refused(1, "predict", *models, *options)
    monkeypatch.undo()
    starts = noting(monkeypatch)
    succeeds("predict", *models, *options)
    assert starts == []


# ------------------------------------------------------------------------------------------------------ two processes

IN_SMALL_BATCHES = """
import yt8m.ranking.predict
from yt8m.cli.main import main

yt8m.prediction.predict.SEGMENTS_PER_BATCH = 16
main()
"""


def torchrun(script: Path, *arguments: object) -> Outcome:
    """Run the command as two processes, each of which has something to do."""
    script.write_text(IN_SMALL_BATCHES)
    environment = {
        name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    }
    environment |= {"PYTHONPATH": str(Path(yt8m.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ended = subprocess.run(
        [sys.executable, *launcher, script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env=environment,
    )
    return Outcome(ended.returncode, ended.stdout, ended.stderr)


@pytest.mark.slow
def test_two_processes_predict_the_submission_of_one(
    tmp_path: Path, finished_run: FinishedRun, models: list[object], places: list[object]
) -> None:
    made = [*places, "--accelerator", "cpu"]
    ended = torchrun(tmp_path / "small.py", "predict", *models, *made, "--out", tmp_path / "s.csv")
    assert ended.status == 0, ended.err
    assert ended.out == f"{tmp_path / 's.csv'}: the submission of aware, bare\n"
    expected = (finished_run.out / "submission.csv").read_bytes()
    assert (tmp_path / "s.csv").read_bytes() == expected
    assert not (tmp_path / "s.csv.unfinished").exists()
    ended = torchrun(tmp_path / "small.py", "predict", *models, *made, "--store", tmp_path / "store")
    assert ended.status == 0, ended.err
    succeeds("submit", tmp_path / "store", *places, "--out", tmp_path / "merged.csv")
    assert (tmp_path / "merged.csv").read_bytes() == expected


@pytest.mark.slow
@pytest.mark.parametrize("store", [False, True])
def test_two_processes_of_a_run_predict_the_submission_of_one(
    tmp_path: Path, finished_run: FinishedRun, tiny_dataset: Path, tiny_recipe: Path, store: bool
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished_run.out, out)
    shutil.rmtree(out / "predict")
    (out / "submission.csv").unlink()
    arguments = ["run", tiny_recipe, "--data", tiny_dataset, "--out", out, "--only", "predict"]
    ended = torchrun(tmp_path / "small.py", *arguments, "--set", f"ensemble.store={str(store).lower()}")
    assert ended.status == 0, ended.err
    for name in ("submission.csv", "predict/scores.csv"):
        assert (out / name).read_bytes() == (finished_run.out / name).read_bytes()
    assert (out / "predict/store").is_dir() == store


def test_models_predicted_apart_merge_to_the_same(
    tmp_path: Path, finished_run: FinishedRun, tiny_dataset: Path
) -> None:
    models = [finished_run.out / "finetune" / name / "model" for name in ("bare", "aware")]
    merged(tiny_dataset, models, tmp_path)
    assert (tmp_path / "submission.csv").read_bytes() == (finished_run.out / "submission.csv").read_bytes()


def test_weights(tmp_path: Path, finished_run: FinishedRun, tiny_dataset: Path) -> None:
    models = [finished_run.out / "finetune" / name / "model" for name in ("bare", "aware")]
    alone = merged(tiny_dataset, models[:1], tmp_path / "alone")
    weighted = merged(
        tiny_dataset, models, tmp_path / "weighted", "segment/test", "--weight", "aware=0", "--top-k", "9"
    )
    assert {label: segments[:9] for label, segments in alone.items()} == weighted


def test_set_and_only(tmp_path: Path, tiny_dataset: Path, tiny_recipe: Path) -> None:
    where = ["--data", tiny_dataset, "--out", tmp_path / "out"]
    steps = [
        "--set",
        "base_models.dbof.training.steps=2",
        "--set",
        "base_models.dbof.classifier.encoder.hidden_size=24",
    ]
    shown = succeeds("run", tiny_recipe, *where, "--only", "pretrain/dbof", *steps)
    assert shown.out == ""
    assert "at step 2 of 2" in shown.err
    assert "hidden_size: 24" in (tmp_path / "out/pretrain/dbof/model/config.yaml").read_text()
    assert [path.name for path in (tmp_path / "out/pretrain").iterdir()] == ["dbof"]
    kept = (tmp_path / "out/recipe.yaml").read_text()
    assert kept.count("steps: 2\n") == 1
    assert kept.count("steps: 6\n") == 3


# --------------------------------------------------------------------------------------------------------------- check


def test_check_accepts_what_a_run_made(finished_run: FinishedRun, tiny_dataset: Path) -> None:
    submission = finished_run.out / "submission.csv"
    num_segments = sum(line.count(":") for line in submission.read_text().splitlines())
    verdict = f"{submission}: would be accepted: 12 classes, {num_segments:,} segments\n"
    places = ["--shards", tiny_dataset / "segment/test", "--vocabulary", tiny_dataset]
    assert succeeds("check", submission, *places).out == verdict
    shown = succeeds("check", submission).out
    assert shown.endswith(verdict)
    assert [line.split(":")[0] for line in shown.splitlines()[:-1]] == ["not looked at"] * 2


def test_check_names_what_is_wrong(finished_run: FinishedRun, tiny_dataset: Path, tmp_path: Path) -> None:
    lines = (finished_run.out / "submission.csv").read_text().splitlines(keepends=True)
    label, _, listed = lines[2].partition(",")
    lines[2] = f"{label},no:30 {listed}"
    lines[4] = lines[4].replace(":", ";")
    path = tmp_path / "bad.csv"
    path.write_text("".join(lines[:6]))
    places = ["--shards", tiny_dataset / "segment/test", "--vocabulary", tiny_dataset]
    outcome = command("check", path, *places)
    of_line_5 = lines[4].count(" ") + 1
    assert outcome.status == 1
    assert outcome.err == f"yt8m: {path}: would not be accepted: {of_line_5 + 1} problems, as listed above.\n"
    shown = outcome.out.splitlines()
    assert shown[0] == (
        f"{path}, line 3: segment 1 of class {label} is 'no:30'; there is no such video in {tiny_dataset / 'segment/test'}."
    )
    assert all(line.startswith(f"{path}, line 5: segment ") for line in shown[1:20])
    assert shown[20] == f"... and {of_line_5 - 19} more; all of them by kind:"
    assert shown[21:23] == [
        "    1 segments of videos that are not in the shards",
        f"    {of_line_5} items that are not 'video:start'",
    ]
    assert shown[23].startswith("remark: 7 of the 12 classes are missing (")
    assert len(shown) == 24


# -------------------------------------------------------------------------------------------------------------- locate


def test_locate_shows_the_strongest_concepts_of_a_video(
    finished_run: FinishedRun, tiny_dataset: Path, tiny_vocabulary: Vocabulary, tmp_path: Path
) -> None:
    catalog = Catalog.load(tiny_dataset / "segment/test")
    video = catalog.video_ids[3]
    places = ["--shards", tiny_dataset / "segment/test", "--vocabulary", tiny_dataset]
    shown = succeeds("locate", video, "--run", finished_run.out, *places, "--top", 5, "--threshold", 0.001)
    assert shown.err == ""
    lines = shown.out.splitlines()
    minutes, seconds = divmod(int(catalog.num_frames[3]), 60)
    assert lines[0] == f"{video}, {minutes}:{seconds:02}"
    assert len(lines) == 7 + 5
    concepts = lines[3:8]
    assert all(line.startswith(tiny_vocabulary.names) for line in concepts)
    assert all(f"0:00-{minutes}:{seconds:02}" in line for line in concepts)
    assert "on screen: 0.001 or more" in lines[-1]
    # The models of the run, named one by one in any order, have the same mean.
    models = [finished_run.out / "finetune" / name / "model" for name in ("bare", "aware")]
    picture = tmp_path / "new" / "timeline.svg"
    options = ["--top", 5, "--threshold", 0.001, "--svg", picture]
    assert succeeds("locate", video, *models, *places, *options).out == shown.out
    assert f"yt8m&#160;locate&#160;{video}" in picture.read_text()
    alone = succeeds("locate", video, models[0], *places, "--top", 100, "--threshold", 1)
    assert len(alone.out.splitlines()) == 7 + len(tiny_vocabulary)
    assert {line[-3:] for line in alone.out.splitlines()[3:15]} == {"  -"}


def test_locate_shows_the_videos_of_a_shard(finished_run: FinishedRun, tiny_dataset: Path, tmp_path: Path) -> None:
    shard = tmp_path / "alone.tfrecord"
    videos = random_videos(5)
    write_shards(tmp_path / "made", videos, num_shards=1)[0].rename(shard)
    (tmp_path / "other.tfrecord").write_bytes(b"nothing that could be read")
    options = ["--run", finished_run.out, "--vocabulary", tiny_dataset, "--top", 2]
    for limit, expected in (([], 3), (["--limit", 1], 1), (["--limit", 9], 5)):
        lines = succeeds("locate", shard, *options, *limit).out.splitlines()
        titles = [line.split(",")[0] for line in lines if re.fullmatch(r"\w+, \d:\d\d", line)]
        assert titles == [video.id for video in videos[:expected]]
        assert ("more videos; --limit shows more" in lines[-1]) == (expected < 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone.tfrecord", "made", "other.tfrecord"]
    # Damage is named, and the rest is shown.
    shard.write_bytes(shard.read_bytes()[:-5])
    shown = succeeds("locate", shard, *options, "--limit", 9)
    assert shown.out.count("on screen: ") == 4
    assert shown.err.startswith(f"{shard}, record 4, byte ")
    assert len(shown.err.splitlines()) == 1


# ------------------------------------------------------------------------------------------------------------ evaluate


def number(outcome: Outcome) -> float:
    return float(outcome.out.split()[0])


def test_evaluate_agrees_with_the_runs_table(finished_run: FinishedRun, tiny_dataset: Path) -> None:
    with (finished_run.out / "predict/scores.csv").open(newline="") as file:
        mixture = list(csv.DictReader(file))[-1]
    submission, truth = finished_run.out / "submission.csv", tiny_dataset / "segment"
    rated = succeeds("evaluate", submission, "--truth", truth / "test_ratings.csv")
    dense = succeeds("evaluate", submission, "--truth", truth / "test_positives.csv", "--dense")
    assert re.match(r"0\.\d{6} MAP@100,000\n\d+ classes with a positive counted, 0 of them absent", rated.out)
    assert re.match(r"0\.\d{6} MAP@100,000 \(dense\)\n", dense.out)
    assert number(rated) == float(mixture["map_at_k"])
    assert number(dense) == float(mixture["dense_map"])
    assert number(rated) != number(dense)


def slow_map(submission: Path, truth: Path, k: int) -> tuple[float, dict[int, float]]:
    """MAP@K read off the files, in so many words."""
    rated: dict[str, dict[str, float]] = {}
    with truth.open(newline="") as file:
        for row in csv.DictReader(file):
            rated.setdefault(row["label"], {})[f"{row['video']}:{row['start']}"] = float(row["score"])
    of_class = {}
    lists = dict(line.rstrip("\n").split(",") for line in submission.read_text().splitlines()[1:])
    for label, ratings in rated.items():
        if not any(ratings.values()):
            continue
        seen = hits = 0
        total = 0.0
        for segment in lists.get(label, "").split(" ")[:k]:
            if segment in ratings:
                seen += 1
                if ratings[segment]:
                    hits += 1
                    total += hits / seen
        of_class[int(label)] = total / sum(ratings.values())
    return sum(of_class.values()) / len(of_class), of_class


@pytest.mark.parametrize("k", [20, 100_000])
def test_evaluate_against_a_slow_loop(
    finished_run: FinishedRun, tiny_dataset: Path, tiny_vocabulary: Vocabulary, tmp_path: Path, k: int
) -> None:
    submission, truth = finished_run.out / "submission.csv", tiny_dataset / "segment/test_ratings.csv"
    places = ["--per-class", tmp_path / "new" / "classes.csv", "--vocabulary", tiny_dataset]
    shown = succeeds("evaluate", submission, "--truth", truth, "--k", k, *places)
    mean, of_class = slow_map(submission, truth, k)
    assert number(shown) == pytest.approx(mean, abs=1e-6)
    assert f"{len(of_class)} classes with a positive counted" in shown.out
    with (tmp_path / "new" / "classes.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert {int(row["class_id"]): float(row["ap"]) for row in written} == pytest.approx(of_class, abs=1e-6)
    names = dict(zip(tiny_vocabulary.label_ids.tolist(), tiny_vocabulary.names, strict=True))
    assert all(row["name"] == names[int(row["class_id"])] for row in written)


def test_evaluate_against_rated_shards(finished_run: FinishedRun, data: Path, tmp_path: Path) -> None:
    merged(data, [finished_run.out / "finetune/bare/model"], tmp_path, "segment/train")
    shown = succeeds("evaluate", tmp_path / "submission.csv", "--truth", data / "segment/train")
    catalog = Catalog.load(data / "segment/train")
    with (tmp_path / "ratings.csv").open("w") as file:
        file.write("video,label,start,score\n")
        for row in range(len(catalog)):
            for label, start, value in zip(*catalog.ratings_of(row), strict=True):
                file.write(f"{catalog.id_of(row)},{label},{start},{value}\n")
    mean, _ = slow_map(tmp_path / "submission.csv", tmp_path / "ratings.csv", 100_000)
    assert number(shown) == pytest.approx(mean, abs=1e-6)


def test_a_class_left_out_of_the_file_counts_zero(
    finished_run: FinishedRun, tiny_dataset: Path, tmp_path: Path
) -> None:
    truth = tiny_dataset / "segment/test_ratings.csv"
    whole = finished_run.out / "submission.csv"
    mean, of_class = slow_map(whole, truth, 100_000)
    left_out = next(label for label, value in of_class.items() if value > 0)
    lines = whole.read_text().splitlines(keepends=True)
    (tmp_path / "less.csv").write_text("".join(line for line in lines if not line.startswith(f"{left_out},")))
    shown = succeeds("evaluate", tmp_path / "less.csv", "--truth", truth)
    assert number(shown) == pytest.approx(mean - of_class[left_out] / len(of_class), abs=1e-6)
    assert "1 of them absent from the file" in shown.out


# ----------------------------------------------------------------------------------------------------------- find-rate


def states(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time and content of all files of a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.fixture
def trained(tmp_path: Path, finished_run: FinishedRun) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished_run.out, tmp_path / "out"))


@pytest.mark.parametrize(("kind", "model"), [("pretrain", "nextvlad"), ("finetune", "aware")])
def test_find_rate_tries_rates_on_what_the_stage_trains(
    trained: Path, tiny_dataset: Path, tiny_recipe: Path, kind: str, model: str
) -> None:
    part = "base_models" if kind == "pretrain" else "segment_models"
    shutil.rmtree(trained / kind / model)
    places = [tiny_recipe, model, "--data", tiny_dataset, "--out", trained]
    succeeds(kind, *places, "--set", f"{part}.{model}.training.log_every=1")
    before = states(trained)
    options = ["--steps", "40", "--lowest", "1e-4", "--highest", "10", "--set", "machine.num_workers=1"]
    shown = succeeds("find-rate", *places, *options)
    folder = trained / "find-rate" / model
    assert re.fullmatch(
        rf"{model}: suggested peak_lr (\S+) \(the loss is lowest at (\S+)\); the recipe has 0\.002; "
        rf"picture: {re.escape(str(folder / 'lr_finder.png'))}\n",
        shown.out,
    )
    assert shown.err == ""
    after = states(trained)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {f"find-rate/{model}/lr_finder.csv", f"find-rate/{model}/lr_finder.png"}
    rates, metrics = (
        list(csv.DictReader(path.read_text().splitlines()))
        for path in (folder / "lr_finder.csv", trained / kind / model / "metrics.csv")
    )
    assert (len(rates) <= 40, float(rates[0]["lr"])) == (True, 1e-4)
    # Before its first step, a model has the loss that training logs first.
    first = next(row for row in metrics if (row["split"], row["metric"], row["step"]) == ("train", "loss", "1"))
    assert float(rates[0]["loss"]) == float(first["value"])
    numbers = (folder / "lr_finder.csv").read_bytes()
    assert succeeds("find-rate", *places, *options).out == shown.out
    assert (folder / "lr_finder.csv").read_bytes() == numbers
    command("find-rate", *places, *options, "--set", f"{part}.{model}.seed=1")
    assert (folder / "lr_finder.csv").read_bytes() != numbers


def test_find_rate_needs_what_its_stage_needs(tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    places = ["--data", tiny_dataset, "--out", out]
    sentence = refused(2, "find-rate", tiny_recipe, "bare", *places)
    assert sentence == f"{out / 'pretrain/dbof'}: pretrain of 'dbof' is not finished; run that stage first."
    for name, expected in (("nextvald", "did you mean 'nextvlad'?"), ("awre", "did you mean 'aware'?")):
        assert refused(2, "find-rate", tiny_recipe, name, *places) == f"The recipe has no model {name!r} ({expected})."
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--steps", "9"], "find-rate: 'steps': expected greater than or equal to 10, found 9."),
        (["--lowest", "2"], "find-rate: the lowest learning rate 2 is not below the highest, 1."),
        (["--lowest", "0"], "find-rate: 'lowest': expected greater than 0, found 0.0."),
        (
            [
                "--set",
                "segment_models.dbof={kind: agnostic, base: dbof, fold: 0, training: {steps: 1, peak_lr: 1e-3, weight_decay: 0}}",
            ],
            "The recipe has a base model and a segment model 'dbof'; give one of them another name.",
        ),
    ],
)
def test_find_rate_refuses_what_cannot_be(
    tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path, options: list[str], expected: str
) -> None:
    out = tmp_path / "out"
    assert refused(2, "find-rate", tiny_recipe, "dbof", "--data", tiny_dataset, "--out", out, *options) == expected
    assert not out.exists()


def test_find_rate_is_for_one_process(
    tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said before a second process is started, and by each of those that were started already."""
    places = ["--data", tiny_dataset, "--out", tmp_path / "out"]
    expected = (
        "find-rate runs as one process; start it alone, with --set machine.devices=1 and --set machine.num_nodes=1."
    )
    assert refused(2, "find-rate", tiny_recipe, "dbof", *places, "--set", "machine.devices=2") == expected
    for name, value in (("LOCAL_RANK", "0"), ("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert refused(2, "find-rate", tiny_recipe, "dbof", *places) == expected


def test_find_rate_says_where_no_rate_helps(tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    places = ["--data", tiny_dataset, "--out", out]
    sentence = refused(1, "find-rate", tiny_recipe, "dbof", *places, "--lowest", "100", "--highest", "1e4")
    picture = out / "find-rate/dbof/lr_finder.png"
    assert sentence == (
        f"dbof: the loss falls at no rate from 100 to 10000, as {picture} shows, so there is none to suggest; try other "
        "rates or more steps."
    )
    assert picture.is_file()


# ---------------------------------------------------------------------------------------------------------------- demo


def make_tiny(monkeypatch: pytest.MonkeyPatch, recipe: Path) -> None:
    """Let the demo be of the size of these tests."""
    settings = {"SIZES": TINY_SIZES, "NUM_SOURCES": 600, "STEPS": {"video": 6, "agnostic": 4, "aware": 4}}
    for name, value in settings.items():
        monkeypatch.setattr(f"yt8m.runs.demo.{name}", value)
    monkeypatch.setattr("yt8m.runs.demo.shipped_recipe", lambda name: {"demo": recipe}[name])


def test_demo_runs_its_recipe_on_spliced_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_recipe: Path
) -> None:
    make_tiny(monkeypatch, tiny_recipe)
    shown = succeeds("demo", tmp_path / "demo")
    assert re.search(r"│ mixture +│ mixture +│ +0\.\d{4} │ +0\.\d{4} │", shown.out)
    assert shown.out.splitlines()[-1].endswith(f"s in all; everything is in {tmp_path / 'demo'}")
    assert (tmp_path / "demo/run/submission.csv").is_file()
    assert shown.err.count(" of 6, ") == 2
    assert shown.err.count(" of 4, ") == 2
    before = (tmp_path / "demo/data/segment_vocabulary.csv").stat().st_mtime_ns
    again = succeeds("demo", tmp_path / "demo")
    assert again.err.count("skipped") == 5
    assert (tmp_path / "demo/data/segment_vocabulary.csv").stat().st_mtime_ns == before


def test_a_demo_stopped_while_it_spliced_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_recipe: Path, tiny_dataset: Path
) -> None:
    make_tiny(monkeypatch, tiny_recipe)
    monkeypatch.setattr("yt8m.runs.demo.Run.run", lambda _: None)
    shutil.copytree(tiny_dataset, tmp_path / "data")
    (tmp_path / "data/segment/test_positives.csv").unlink()
    (tmp_path / "data/video/train/train0000.tfrecord").write_bytes(b"of another try")
    assert "splice: 44 videos" in command("demo", tmp_path).err
    assert (tmp_path / "data/segment/test_positives.csv").is_file()
    assert (tmp_path / "data/video/train/train0000.tfrecord").stat().st_size > 100_000


def test_demo_leaves_other_folders_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    assert refused(2, "demo", tmp_path) == f"{tmp_path}: holds something else than a demo; give another folder."
    assert refused(2, "demo", tmp_path / "thesis.txt").endswith("give another folder.")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(("given", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_waiting_threads_sleep_unless_the_user_wants_otherwise(
    given: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", given or "")
    if given is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    succeeds("--version")
    assert os.environ["OMP_WAIT_POLICY"] == expected
