"""Commands for recipes: recipes, run, pretrain, finetune, estimate, find-lr, demo."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.support.command import refused, succeeds
from tests.support.command import yt8m as command
from tests.support.tiny_run import TINY_CLASSES, TINY_SIZES, FinishedRun
from yt8m.runs import demo
from yt8m.runs.recipe import read_recipe, shipped_recipe
from yt8m.runs.run import Run

# --- run, pretrain and finetune --------------------------------------------------------------------------------------


def test_single_commands_train_and_predict_as_run_does(
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

    # Predict in one pass, with the models in another order than in the recipe.
    models = [out / "finetune" / name / "model" for name in ("aware", "bare")]
    shards = ["--shards", tiny_dataset / "segment/test", "--vocabulary", tiny_dataset / "segment_vocabulary.csv"]
    predicted = succeeds("predict", *models, *shards, "--store", tmp_path / "predictions", "--accelerator", "cpu")
    assert predicted.out == f"{tmp_path / 'predictions'}: probabilities of aware, bare\n"
    merged = succeeds("merge", tmp_path / "predictions", *shards, "--out", tmp_path / "submission.csv")
    assert merged.out == f"{tmp_path / 'submission.csv'}: arithmetic mean of 2 models (aware, bare)\n"
    assert (tmp_path / "submission.csv").read_bytes() == (finished_run.out / "submission.csv").read_bytes()


def test_set_changes_settings_and_only_selects_a_stage(tmp_path: Path, tiny_dataset: Path, tiny_recipe: Path) -> None:
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


# --- estimate --------------------------------------------------------------------------------------------------------


def test_estimate_requires_no_data_and_writes_no_files(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    printed = succeeds("estimate", tiny_recipe).out
    recipe = read_recipe(tiny_recipe)
    for name in [*recipe.base_models, *recipe.segment_models]:
        assert f"/{name} " in printed
    assert "Steps timed on" in printed
    assert sorted(tmp_path.rglob("*")) == before
    only = succeeds("estimate", tiny_recipe, "--only", "finetune").out
    assert "pretrain/" not in only
    assert "finetune/" in only


def test_estimate_counts_the_classes_of_the_dataset(tiny_recipe: Path, tiny_dataset: Path) -> None:
    def parameters(*options: object) -> int:
        [cost] = json.loads(succeeds("estimate", tiny_recipe, "--only", "pretrain/dbof", "--json", *options).out)[
            "costs"
        ]
        return int(cost["parameters"])

    # Each class has two experts, with 8 weights and a bias each.
    assert parameters() - parameters("--data", tiny_dataset) == (1000 - TINY_CLASSES) * 2 * (8 + 1)


def test_estimate_reports_a_stage_that_exceeds_the_memory(tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huge = ["--set", "base_models.dbof.training.batch_size=64", "--only", "pretrain/dbof"]
    memory = {"SC_PAGE_SIZE": 1024, "SC_PHYS_PAGES": 4096}
    monkeypatch.setattr("os.sysconf", lambda name: memory[name])
    printed = succeeds("estimate", tiny_recipe, *huge).out
    match = re.search(
        r"pretrain/dbof needs more than the 0\.0 GiB of this device: set its training\.gradient_accumulation to (\d+) or more\.",
        printed,
    )
    assert match
    assert 64 % int(match[1]) == 0


def test_estimate_refuses_stages_without_training(tiny_recipe: Path) -> None:
    assert "trains no stage 'predict'" in refused(2, "estimate", tiny_recipe, "--only", "predict")


# --- find-lr ---------------------------------------------------------------------------------------------------------


def test_find_lr_prints_a_suggestion_and_the_plot(trained: Path, tiny_dataset: Path, tiny_recipe: Path) -> None:
    places = [tiny_recipe, "nextvlad", "--data", tiny_dataset, "--out", trained]
    shown = succeeds("find-lr", *places, "--steps", "40", "--lowest", "1e-4", "--highest", "10")
    plot = trained / "find-lr/nextvlad/lr_finder.png"
    assert re.fullmatch(
        r"nextvlad: suggested peak_lr (\S+) \(the loss is lowest at (\S+)\); the recipe has 0\.002; "
        rf"plot: {re.escape(str(plot))}\n",
        shown.out,
    )
    assert shown.err == ""
    assert plot.is_file()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--steps", "9"], "find-lr: 'steps': expected greater than or equal to 10, found 9."),
        (["--lowest", "2"], "find-lr: the lowest learning rate 2 is not below the highest, 1."),
        (["--lowest", "0"], "find-lr: 'lowest': expected greater than 0, found 0.0."),
        (
            [
                "--set",
                "segment_models.dbof={kind: agnostic, base: dbof, fold: 0, training: {steps: 1, peak_lr: 1e-3, weight_decay: 0}}",
            ],
            "The recipe has a base model and a segment model 'dbof'; give one of them another name.",
        ),
    ],
)
def test_find_lr_refuses_invalid_options(
    tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path, options: list[str], expected: str
) -> None:
    out = tmp_path / "out"
    assert refused(2, "find-lr", tiny_recipe, "dbof", "--data", tiny_dataset, "--out", out, *options) == expected
    assert not out.exists()


def test_find_lr_refuses_several_processes(
    tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The refusal precedes the start of a second process; processes that were started already refuse as well."""
    places = ["--data", tiny_dataset, "--out", tmp_path / "out"]
    expected = (
        "find-lr runs as one process; start it alone, with --set machine.devices=1 and --set machine.num_nodes=1."
    )
    assert refused(2, "find-lr", tiny_recipe, "dbof", *places, "--set", "machine.devices=2") == expected
    for name, value in (("LOCAL_RANK", "0"), ("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert refused(2, "find-lr", tiny_recipe, "dbof", *places) == expected


def test_find_lr_fails_if_the_loss_never_decreases(tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    places = ["--data", tiny_dataset, "--out", out]
    sentence = refused(1, "find-lr", tiny_recipe, "dbof", *places, "--lowest", "100", "--highest", "1e4")
    plot = out / "find-lr/dbof/lr_finder.png"
    assert sentence == (
        f"dbof: the loss falls at no learning rate from 100 to 10000 ({plot} shows it); try other learning rates or more "
        "steps."
    )
    assert plot.is_file()


# --- demo ------------------------------------------------------------------------------------------------------------


def make_tiny(monkeypatch: pytest.MonkeyPatch, recipe: Path) -> None:
    """Reduce the demo to the size of these tests."""
    settings = {"SIZES": TINY_SIZES, "NUM_SOURCES": 600, "STEPS": {"video": 6, "agnostic": 4, "aware": 4}}
    for name, value in settings.items():
        monkeypatch.setattr(demo, name, value)
    monkeypatch.setattr(demo, "shipped_recipe", lambda name: {"demo": recipe}[name])


def test_demo_runs_its_recipe_on_spliced_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_recipe: Path
) -> None:
    make_tiny(monkeypatch, tiny_recipe)
    shown = succeeds("demo", tmp_path / "demo")
    assert re.search(r"│ ensemble +│ ensemble +│ +0\.\d{4} │ +0\.\d{4} │", shown.out)
    *_, total, empty, _, search, _, locate = shown.out.splitlines()
    assert total.endswith(f"s in total; results: {tmp_path / 'demo'}")
    assert empty == ""
    for line, name in ((search, "search"), (locate, "locate")):
        arguments = shlex.split(line.strip().partition("yt8m ")[2])
        assert arguments[0] == name
        assert arguments[2:] == ["--run", str(tmp_path / "demo/run")]
        assert succeeds(*arguments, "--threshold", 0).out
    assert (tmp_path / "demo/run/submission.csv").is_file()
    assert shown.err.count(" of 6, ") == 2
    assert shown.err.count(" of 4, ") == 2
    before = (tmp_path / "demo/data/segment_vocabulary.csv").stat().st_mtime_ns
    again = succeeds("demo", tmp_path / "demo")
    assert again.err.count("skipped") == 5
    assert (tmp_path / "demo/data/segment_vocabulary.csv").stat().st_mtime_ns == before


def test_a_demo_stopped_during_splicing_splices_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_recipe: Path, tiny_dataset: Path
) -> None:
    make_tiny(monkeypatch, tiny_recipe)
    monkeypatch.setattr(Run, "run", lambda _: None)
    shutil.copytree(tiny_dataset, tmp_path / "data")
    (tmp_path / "data/segment/test_positives.csv").unlink()
    (tmp_path / "data/video/train/train0000.tfrecord").write_bytes(b"of another try")
    assert "splice: 44 videos" in command("demo", tmp_path).err
    assert (tmp_path / "data/segment/test_positives.csv").is_file()
    assert (tmp_path / "data/video/train/train0000.tfrecord").stat().st_size > 100_000


def test_demo_does_not_write_into_other_folders(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    sentence = refused(2, "demo", tmp_path)
    assert sentence == f"{tmp_path}: contains something other than a demo; give another folder."
    assert refused(2, "demo", tmp_path / "thesis.txt").endswith("give another folder.")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


# --- recipes ---------------------------------------------------------------------------------------------------------


def test_recipes_lists_what_ships_and_prints_one() -> None:
    shown = succeeds("recipes")
    for name, models in (("demo", "2 + 3"), ("reproduction", "2 + 7"), ("seventh-place", "4 + 12")):
        assert re.search(rf"^{name} +{re.escape(models)} ", shown.out, re.MULTILINE)
    assert "646,000" in shown.out
    listed = json.loads(succeeds("recipes", "--json").out)
    assert list(listed) == ["demo", "reproduction", "seventh-place"]
    assert listed["demo"]["base_models"] == 2
    assert listed["demo"]["steps"] == 2 * 1500 + 2 * 300 + 1200
    for name in listed:
        assert succeeds("recipes", name).out == shipped_recipe(name).read_text()
    assert refused(2, "recipes", "seventh") == "There is no recipe 'seventh' (did you mean 'seventh-place'?)."


def test_the_path_of_a_shipped_recipe_that_is_not_there_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_dataset: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    sentence = refused(2, "run", "recipes/demo.yaml", "--data", tiny_dataset, "--out", "out")
    assert sentence == "recipes/demo.yaml: there is no such recipe; `demo` alone is the one that ships with yt8m."
    assert refused(2, "run", "x/y.yaml", "--data", tiny_dataset, "--out", "out") == "x/y.yaml: there is no such recipe."
