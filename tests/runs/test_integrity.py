"""`yt8m check FOLDER`: every checksum of a run, a model or a store is verified, and damage is listed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from tests.support.command import refused, succeeds
from tests.support.command import yt8m as command
from tests.support.damage import flipped_bits
from tests.support.tiny_run import STAGES, FinishedRun
from yt8m.runs.integrity import check_folder
from yt8m.runs.stages import read_record

MODELS = [f"{stage}/model" for stage in STAGES[:-1]]
RESULTS = ["segments.parquet", "submission.csv"]


def statuses(folder: Path) -> dict[str, str]:
    return {part.path.relative_to(folder).as_posix(): part.status for part in check_folder(folder)}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Path, finished_run: FinishedRun) -> Path:
    """A store of two models."""
    store = tmp_path_factory.mktemp("stored") / "store"
    places = ["--shards", tiny_dataset / "segment/test", "--vocabulary", tiny_dataset, "--accelerator", "cpu"]
    succeeds(
        "predict", *(finished_run.model(f"finetune/{name}") for name in ("bare", "aware")), *places, "--store", store
    )
    return store


@pytest.fixture
def store(stored: Path, tmp_path: Path) -> Path:
    """A copy of the store, which tests may change."""
    return Path(shutil.copytree(stored, tmp_path / "predictions"))


# --- Runs ------------------------------------------------------------------------------------------------------------


def test_every_part_of_a_run_is_verified(finished_run: FinishedRun) -> None:
    assert statuses(finished_run.out) == dict.fromkeys(sorted(MODELS + RESULTS), "intact")
    shown = succeeds("check", finished_run.out)
    lines = [line.split() for line in shown.out.splitlines()]
    assert lines[0] == ["what", "kind", "size", "status"]
    assert [line[0] for line in lines[1:]] == [str(finished_run.out / name) for name in sorted(MODELS + RESULTS)]
    assert {line[-1] for line in lines[1:]} == {"intact"}
    found = json.loads(succeeds("check", finished_run.out, "--json").out)
    assert (found["path"], found["is_intact"]) == (str(finished_run.out), True)
    by_path = {part["path"]: part for part in found["parts"]}
    submission = finished_run.out / "submission.csv"
    assert by_path[str(submission)] == {
        "path": str(submission),
        "kind": "submission",
        "num_bytes": submission.stat().st_size,
        "status": "intact",
        "problem": "",
    }


@pytest.mark.parametrize(
    "name", [*RESULTS, "finetune/aware/model/model.safetensors", "pretrain/dbof/model/config.yaml"]
)
def test_every_damaged_part_of_a_run_is_listed(copy: Path, name: str) -> None:
    path = copy / name
    part = name.removesuffix("/model.safetensors").removesuffix("/config.yaml")
    # The provenance of a model is of no consequence for its predictions, but part of its description.
    places = ["by hand"] if name.endswith(".yaml") else flipped_bits(path, 5)
    for place in places:
        if name.endswith(".yaml"):
            path.write_text(path.read_text().replace("seed: 0", "seed: 1"))
        expected = dict.fromkeys(MODELS + RESULTS, "intact") | {part: "damaged"}
        assert statuses(copy) == expected, place
        shown = command("check", copy)
        assert shown.status == 1
        assert shown.out.splitlines()[-1].startswith(f"{path}: ")
        assert shown.err == f"yt8m: {copy}: 1 of 6 parts damaged or missing, as listed above.\n"
        found = json.loads(command("check", copy, "--json").out)
        assert [part["problem"] for part in found["parts"] if part["problem"]] == [shown.out.splitlines()[-1]]
        assert not found["is_intact"]


def test_missing_results_and_models_are_listed(copy: Path) -> None:
    (copy / "submission.csv").unlink()
    shutil.rmtree(copy / "pretrain/dbof/model")
    (copy / "finetune/bare/model/model.safetensors").unlink()
    found = statuses(copy)
    assert {name for name, status in found.items() if status == "damaged"} == {
        "submission.csv",
        "pretrain/dbof/model",
        "finetune/bare/model",
    }
    shown = command("check", copy)
    assert f"{copy / 'submission.csv'}: is missing; the same `yt8m run` makes it again." in shown.out
    assert f"{copy / 'pretrain/dbof/model'}: there is no such model folder." in shown.out
    assert "3 of 6 parts damaged or missing" in shown.err


def test_results_of_earlier_versions_have_no_checksum(copy: Path) -> None:
    record = copy / "predict/stage.yaml"
    values = yaml.safe_load(record.read_text())
    del values["checksums"]
    record.write_text(yaml.safe_dump(values))
    for config in copy.glob("*/*/model/config.yaml"):
        text = config.read_text()
        config.write_text(text[: text.index("weights_checksum:")])
    assert statuses(copy) == dict.fromkeys(MODELS + RESULTS, "no checksum")
    assert command("check", copy).status == 0


def test_checkpoints_of_unfinished_stages_are_verified(copy: Path) -> None:
    path = copy / "pretrain/dbof/checkpoint.pt"
    torch.save({"model": {}}, path)
    assert statuses(copy)["pretrain/dbof/checkpoint.pt"] == "no checksum"
    path.write_bytes(b"words")
    assert statuses(copy)["pretrain/dbof/checkpoint.pt"] == "damaged"


def test_previous_results_are_verified_in_their_own_folder(
    copy: Path, tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    changed = ["--set", "ensemble.method=geometric", "--set", "ensemble.store=true"]
    succeeds("run", tiny_recipe, "--data", tiny_dataset, "--out", copy, *changed)
    before = [f"predict.before-1/{name}" for name in RESULTS]
    expected = dict.fromkeys([*MODELS, *RESULTS, *before, "predict/store"], "intact")
    assert statuses(copy) == expected
    (copy / before[0]).write_bytes(b"")
    (copy / before[1]).unlink()
    del expected[before[1]]
    assert statuses(copy) == expected | {before[0]: "damaged"}
    # The record is of the new results.
    record = read_record(copy / "predict")
    assert record is not None
    assert list(record.checksums) == ["submission.csv", "segments.parquet"]


def test_a_stage_is_verified_from_within(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy / "predict")
    assert [(part.path.name, part.status) for part in check_folder(Path())] == [(name, "intact") for name in RESULTS]
    monkeypatch.chdir(copy / "finetune/bare/model")
    assert [(part.path, part.status) for part in check_folder(Path(".."))] == [(copy / "finetune/bare/model", "intact")]


# --- Models and stores -----------------------------------------------------------------------------------------------


def test_a_model_folder_is_verified(finished_run: FinishedRun, tmp_path: Path) -> None:
    model = Path(shutil.copytree(finished_run.model("finetune/bare"), tmp_path / "model"))
    assert statuses(model) == {".": "intact"}
    (model / "model.safetensors").write_bytes(b"")
    assert statuses(model) == {".": "damaged"}


def test_a_store_is_verified(store: Path) -> None:
    assert statuses(store) == {".": "intact"}
    for name in ("bare.npy", "aware.crc.npy"):
        header = 128
        path = store / name
        content = path.read_bytes()
        for position in (header, len(content) - 1):
            damaged = bytearray(content)
            damaged[position] ^= 1
            path.write_bytes(damaged)
            [part] = check_folder(store)
            assert re.search(
                r"is damaged \(class position \d+, segments from \d+: the checksum is wrong\)", part.problem
            )
        path.write_bytes(content)
    assert statuses(store.parent) == {"predictions": "intact"}


def test_an_unfinished_store_is_refused(store: Path) -> None:
    (store / "predictions.yaml").rename(store / "unfinished.yaml")
    assert "is not finished; run the same `yt8m predict` to resume it." in refused(2, "check", store)


# --- Other folders ---------------------------------------------------------------------------------------------------


def test_folders_with_nothing_to_verify_are_refused(tmp_path: Path) -> None:
    hidden = tmp_path / ".model.0123abcd"
    hidden.mkdir()
    (hidden / "model.safetensors").write_bytes(b"half")
    assert refused(2, "check", tmp_path) == (
        f"{tmp_path}: contains no run, model or stored predictions, so there are no checksums to verify; for a "
        "submission, name its file."
    )


def test_options_of_submissions_are_refused_for_folders(finished_run: FinishedRun, tiny_dataset: Path) -> None:
    for options in (["--vocabulary", tiny_dataset], ["--shards", tiny_dataset / "segment/test"]):
        sentence = refused(2, "check", finished_run.out, *options)
        assert sentence.endswith("is a folder; --shards and --vocabulary are for the file of a submission.")
