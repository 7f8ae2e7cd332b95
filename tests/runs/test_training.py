"""Train the models of a run: base models, models trained elsewhere, and learning-rate sweeps."""

from __future__ import annotations

import csv
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from tests.support.command import refused, succeeds
from tests.support.tiny_run import FinishedRun
from yt8m.errors import UsageError, Yt8mError
from yt8m.runs.context import RunContext
from yt8m.runs.recipe import read_recipe
from yt8m.runs.training import find_lr, load_base, load_segment_model
from yt8m.runtime import machine
from yt8m.training.lr_finder import LRSweepConfig

# --- Base models -----------------------------------------------------------------------------------------------------


def test_base_models_must_be_trained_first(tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sentence = refused(2, "finetune", tiny_recipe, "bare", "--data", tiny_dataset, "--out", out)
    assert sentence == f"{out / 'pretrain/dbof'}: pretrain of 'dbof' is not finished; run that stage first."
    assert not (out / "finetune").exists()
    sentence = refused(2, "run", tiny_recipe, "--data", tiny_dataset, "--out", out, "--only", "predict")
    assert sentence == f"{out / 'finetune/bare'}: finetune of 'bare' is not finished; run that stage first."


def test_a_stage_that_cannot_start_keeps_the_previous_result(
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


def test_a_model_folder_of_another_kind_is_refused(copy: Path, tiny_dataset: Path, tiny_recipe: Path) -> None:
    """For example, a folder that was copied to the wrong place."""
    base, segment = copy / "pretrain/dbof/model", copy / "finetune/bare/model"
    shutil.rmtree(segment)
    base.rename(segment)
    shutil.copytree(copy / "finetune/aware/model", base)
    context = RunContext(read_recipe(tiny_recipe), tiny_dataset, copy)
    with pytest.raises(UsageError, match="expected a segment classifier, found a video classifier"):
        load_segment_model(context, "bare")
    with pytest.raises(UsageError, match="expected a video classifier, found a segment classifier"):
        load_base(context, "dbof")


# --- Without a compiler ----------------------------------------------------------------------------------------------


@pytest.fixture
def _no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide every compiler."""
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "no programs"))


@pytest.mark.usefixtures("_no_compiler")
def test_without_a_compiler_training_is_the_same_but_not_compiled(
    finished_run: FinishedRun, tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU stands for a GPU, where the default is to compile."""
    monkeypatch.setattr(machine, "compiles_by_default", lambda device: True)
    out = tmp_path / "out"
    done = succeeds("run", tiny_recipe, "--data", tiny_dataset, "--out", out, "--only", "pretrain")
    notes = [line for line in done.err.splitlines() if "compile" in line]
    assert len(notes) == 1
    assert notes[0].startswith("This machine has no C++ compiler (")
    for name in ("dbof", "nextvlad"):
        weights = f"pretrain/{name}/model/model.safetensors"
        assert (out / weights).read_bytes() == (finished_run.out / weights).read_bytes()
    assert "not compiled for lack of a C++ compiler (" in succeeds("estimate", tiny_recipe, "--only", "pretrain").out


@pytest.mark.usefixtures("_no_compiler")
def test_compiling_without_a_compiler_is_refused_before_anything_is_written(
    tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    compiled = ["--set", "machine.compile=true"]
    for command in (["pretrain", tiny_recipe, "dbof", "--data", tiny_dataset, "--out", out], ["estimate", tiny_recipe]):
        sentence = refused(2, *command, *compiled)
        assert sentence.startswith("machine.compile: true needs a C++ compiler (")
        assert sentence.endswith("), and this machine has none; install one, or remove the setting.")
    assert not (out / "pretrain").exists()


# --- Models trained elsewhere ----------------------------------------------------------------------------------------


def with_trained_models(recipe: Path, path: Path, **folders: Path) -> Path:
    """The tiny recipe with trained models in these folders instead of base models."""
    values = yaml.safe_load(recipe.read_text())
    del values["base_models"]
    values["trained_models"] = {name: str(folder) for name, folder in folders.items()}
    path.write_text(yaml.safe_dump(values))
    return path


def test_models_trained_elsewhere_replace_base_models(
    finished_run: FinishedRun, data: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    """No data for pre-training is needed, and the segment models have the same weights."""
    bases = {name: finished_run.model(f"pretrain/{name}") for name in ("dbof", "nextvlad")}
    recipe = with_trained_models(tiny_recipe, tmp_path / "recipe.yaml", **bases)
    out = tmp_path / "out"
    shutil.rmtree(data / "video")
    succeeds("run", recipe, "--data", data, "--out", out)
    assert not (out / "pretrain").exists()
    for name in ("bare", "aware"):
        weights = f"finetune/{name}/model/model.safetensors"
        assert (out / weights).read_bytes() == (finished_run.out / weights).read_bytes()
    assert (out / "submission.csv").read_bytes() == (finished_run.out / "submission.csv").read_bytes()
    assert "finetune aware: finished before, skipped" in succeeds("run", recipe, "--data", data, "--out", out).err
    # A different model of the same name changes the fingerprint of the segment model.
    other = tmp_path / "other"
    shutil.copytree(bases["dbof"], other)
    config = (other / "config.yaml").read_text()
    edited = config[: config.index("config_checksum:")].replace("seed: 0", "seed: 1")
    (other / "config.yaml").write_text(edited)
    assert "seed: 1" in edited
    changed = with_trained_models(tiny_recipe, tmp_path / "changed.yaml", **bases | {"dbof": other})
    printed = succeeds("finetune", changed, "bare", "--data", data, "--out", out).err
    assert "the settings or the data changed" in printed


def test_trained_models_that_cannot_be_base_models_are_refused(
    finished_run: FinishedRun, tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    good, segment = finished_run.model("pretrain/dbof"), finished_run.model("finetune/bare")
    other = tmp_path / "other"
    shutil.copytree(good, other)
    lines = (other / "config.yaml").read_text().splitlines()
    (other / "config.yaml").write_text(
        "\n".join("vocabulary: 0123456789abcdef" if line.startswith("vocabulary:") else line for line in lines)
    )
    where = ["--data", tiny_dataset, "--out", tmp_path / "out"]
    for folder, sentence in (
        (tmp_path / "absent", "there is no such model folder"),
        (segment, "expected a video classifier, found a segment classifier"),
        (other, f"it has another vocabulary than {tiny_dataset}"),
    ):
        recipe = with_trained_models(tiny_recipe, tmp_path / "recipe.yaml", dbof=good, nextvlad=folder)
        assert refused(2, "run", recipe, *where).startswith(f"{folder}: {sentence}")
    assert not list((tmp_path / "out").glob("finetune"))


# --- Learning-rate sweeps --------------------------------------------------------------------------------------------

SWEEP = LRSweepConfig(steps=40, lowest=1e-4, highest=10.0)


def files_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Modification time and content of all files of a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.mark.parametrize(("kind", "model"), [("pretrain", "nextvlad"), ("finetune", "aware")])
def test_a_sweep_starts_with_the_initial_model_of_its_stage(
    copy: Path, tiny_dataset: Path, tiny_recipe: Path, kind: str, model: str
) -> None:
    part = "base_models" if kind == "pretrain" else "segment_models"
    shutil.rmtree(copy / kind / model)
    log = f"{part}.{model}.training.log_every=1"
    succeeds(kind, tiny_recipe, model, "--data", tiny_dataset, "--out", copy, "--set", log)
    before = files_of(copy)

    def sweep(*overrides: str) -> tuple[float, bytes]:
        recipe = read_recipe(tiny_recipe, ["machine.num_workers=1", *overrides])
        found = find_lr(RunContext(recipe, tiny_dataset, copy), model, SWEEP)
        assert found.picture == copy / "find-lr" / model / "lr_finder.png"
        assert found.peak_lr == 0.002
        assert SWEEP.lowest < found.suggestion.peak_lr < SWEEP.highest
        return found.suggestion.peak_lr, (copy / "find-lr" / model / "lr_finder.csv").read_bytes()

    suggested, table = sweep()
    after = files_of(copy)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {f"find-lr/{model}/lr_finder.csv", f"find-lr/{model}/lr_finder.png"}
    rates, metrics = (
        list(csv.DictReader(path.read_text().splitlines()))
        for path in (copy / "find-lr" / model / "lr_finder.csv", copy / kind / model / "metrics.csv")
    )
    assert (len(rates) <= 40, float(rates[0]["lr"])) == (True, 1e-4)
    # The first loss of the sweep is the first loss that training logs.
    first = next(row for row in metrics if (row["split"], row["metric"], row["step"]) == ("train", "loss", "1"))
    assert float(rates[0]["loss"]) == float(first["value"])
    assert sweep() == (suggested, table)
    # Another seed gives other losses, even if they decrease at no learning rate.
    recipe = read_recipe(tiny_recipe, [f"{part}.{model}.seed=1"])
    with suppress(Yt8mError):
        find_lr(RunContext(recipe, tiny_dataset, copy), model, SWEEP)
    assert (copy / "find-lr" / model / "lr_finder.csv").read_bytes() != table


def test_a_sweep_requires_the_models_that_its_stage_requires(
    tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    context = RunContext(read_recipe(tiny_recipe), tiny_dataset, tmp_path / "out")
    for name, expected in (
        ("bare", f"{tmp_path / 'out/pretrain/dbof'}: pretrain of 'dbof' is not finished; run that stage first."),
        ("nextvald", "The recipe has no model 'nextvald' (did you mean 'nextvlad'?)."),
        ("awre", "The recipe has no model 'awre' (did you mean 'aware'?)."),
    ):
        with pytest.raises(UsageError) as raised:
            find_lr(context, name, SWEEP)
        assert str(raised.value) == expected
    assert not (tmp_path / "out").exists()


def test_a_sweep_whose_loss_never_decreases_raises_an_error(
    tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    context = RunContext(read_recipe(tiny_recipe), tiny_dataset, tmp_path / "out")
    with pytest.raises(Yt8mError, match=r"^dbof: the loss falls at no learning rate from 100 to 10000 "):
        find_lr(context, "dbof", LRSweepConfig(lowest=100.0, highest=1e4))
    assert (tmp_path / "out/find-lr/dbof/lr_finder.png").is_file()
