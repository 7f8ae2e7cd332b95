"""Models, stores and options that predict, merge and locate cannot use."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.command import refused, succeeds
from tests.support.command import yt8m as command
from tests.support.files import files_in
from tests.support.tiny_run import FinishedRun
from tests.support.tiny_shards import random_videos, write_shards
from yt8m.dataset.catalog import Catalog


def other_vocabulary(tiny_dataset: Path, path: Path) -> Path:
    """The dataset's vocabulary in another order, with the same number of classes."""
    header, first, *rest = (tiny_dataset / "segment_vocabulary.csv").read_text().splitlines()
    path.write_text("\n".join([header, *rest, first]) + "\n")
    return path


def test_a_model_of_another_vocabulary_is_refused(
    finished_run: FinishedRun, tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path, out: Path
) -> None:
    vocabulary = other_vocabulary(tiny_dataset, tmp_path / "other.csv")
    model = finished_run.model("finetune/bare")
    shards = ["--shards", tiny_dataset / "segment/test", "--vocabulary"]
    sentence = refused(2, "predict", model, *shards, vocabulary, "--out", out, "--accelerator", "cpu")
    assert sentence.startswith(f"{model}: the model's 12 classes are of another vocabulary")
    succeeds("predict", model, *shards, tiny_dataset, "--store", out, "--accelerator", "cpu")
    sentence = refused(2, "merge", out, *shards, vocabulary, "--out", tmp_path / "submission.csv")
    assert sentence == f"{out}: was predicted with another vocabulary than the one in use."
    assert not (tmp_path / "submission.csv").exists()

    # In a run, another vocabulary changes the fingerprints of the models.
    data, again = tmp_path / "data", tmp_path / "again"
    shutil.copytree(tiny_dataset, data)
    shutil.copytree(finished_run.out, again)
    shutil.copy(vocabulary, data / "segment_vocabulary.csv")
    sentence = refused(2, "run", tiny_recipe, "--data", data, "--out", again, "--only", "predict")
    assert "was trained with other settings or data than the recipe's" in sentence


def test_a_model_folder_of_another_vocabulary_is_refused_in_a_run(
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
    assert f"{out / 'finetune/bare/model'}: the model's 12 classes are of another vocabulary" in sentence
    assert not (out / "predict").exists()


@pytest.mark.parametrize("damage", ["no weights", "no config", "truncated", "of another network", "a text"])
def test_damaged_model_folders_are_refused(
    finished_run: FinishedRun, tiny_dataset: Path, tmp_path: Path, out: Path, damage: str
) -> None:
    model = tmp_path / "model"
    shutil.copytree(finished_run.model("finetune/bare"), model)
    weights = model / "model.safetensors"
    if damage == "no weights":
        weights.unlink()
    elif damage == "no config":
        (model / "config.yaml").unlink()
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "of another network":
        shutil.copy(finished_run.model("finetune/aware") / "model.safetensors", weights)
    else:
        weights.write_text("weights")
    shards = ["--shards", tiny_dataset / "segment/test", "--vocabulary", tiny_dataset]
    status = 2 if damage.startswith("no ") else 1
    sentence = refused(status, "predict", model, *shards, "--out", out, "--accelerator", "cpu")
    assert str(model) in sentence
    assert not out.exists()


def test_models_that_cannot_predict_segments_are_refused(
    finished_run: FinishedRun, tiny_dataset: Path, out: Path
) -> None:
    shards = ["--shards", tiny_dataset / "segment/test", "--vocabulary", tiny_dataset, "--out", out]
    video, bare = (finished_run.out / stage / "model" for stage in ("pretrain/dbof", "finetune/bare"))
    sentence = refused(2, "predict", video, *shards, "--accelerator", "cpu")
    assert sentence == "dbof: is a video classifier; `yt8m finetune` makes segment classifiers of such models."
    sentence = refused(2, "predict", video, bare, *shards, "--accelerator", "cpu")
    assert sentence.startswith(
        "dbof: is a video classifier; `yt8m finetune` makes segment classifiers of such models, and video_prior"
    )
    sentence = refused(2, "predict", bare, bare, *shards, "--accelerator", "cpu")
    assert sentence == f"{bare}: a model named 'bare' is already among the others."
    assert "expected 'auto', 'cpu', 'cuda' or 'mps'" in refused(2, "predict", bare, *shards, "--accelerator", "gpu")
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "There is nothing to write: give --out (a submission), --store or --table."),
        (["--out", "{out}", "--set", "method=rank"], "The mean of ranks needs all probabilities at once; store them (--store) as well."),
        (["--table", "{out}", "--set", "method=rank"], "The mean of ranks needs all probabilities at once; store them (--store) as well."),
        (["--out", "{out}", "--set", "metod=rank"], "--set: unknown key 'metod' (did you mean 'method'?)."),
        (["--out", "{out}", "--set", "method=harmonic"], "--set: 'method': expected 'arithmetic', 'geometric' or 'rank', found 'harmonic'."),
        (["--out", "{out}", "--set", "method"], "--set method: expected path=value, such as "),
        (["--out", "{out}", "--set", "models=[bare]"], "--set: unknown key 'models' "),
        (["--out", "{out}", "--set", "video_prior.models=[dbof]"], "The ensemble uses the video classifier 'dbof', which is not among the models given."),
        (["--out", "{out}", "--set", "video_prior.models=[bare]"], "The ensemble uses the video classifier 'bare', which is not among the models given."),
        (["--out", "{out}", "--set", "candidates.models=[dbof]"], "--set: 'candidates.min_video_probability' is missing."),
        (["--out", "{out}", "--weight", "bear=2"], "The ensemble has a weight for 'bear', which is not one of its models (did you mean 'bare'?)."),
        (["--out", "{out}", "--weight", "bare=0"], "The ensemble's weights must have a sum above 0"),
        (["--out", "{out}", "--precision", "64"], "--accelerator, --precision: 'precision': expected '32-true', "),
    ],
)  # fmt: skip
def test_predict_refuses_invalid_options(
    finished_run: FinishedRun, tiny_dataset: Path, tmp_path: Path, out: Path, options: list[str], expected: str
) -> None:
    shards = ["--shards", tiny_dataset / "segment/test", "--vocabulary", tiny_dataset, "--accelerator", "cpu"]
    filled = [option.format(out=out) for option in options]
    assert refused(2, "predict", finished_run.model("finetune/bare"), *shards, *filled).startswith(expected)
    assert files_in(tmp_path) == set()


@pytest.mark.parametrize("shift", ["6", "-6", "half"])
def test_invalid_shifts_are_refused(finished_run: FinishedRun, tiny_dataset: Path, out: Path, shift: str) -> None:
    shards = ["--shards", tiny_dataset / "segment/test", "--vocabulary", tiny_dataset, "--out", out]
    outcome = command("predict", finished_run.model("finetune/bare"), *shards, "--shift", shift)
    assert outcome.status == 2
    assert "--shift" in outcome.err
    assert not out.exists()


def test_an_unfinished_store_cannot_be_merged(finished_run: FinishedRun, tiny_dataset: Path, tmp_path: Path) -> None:
    shards = ["--shards", tiny_dataset / "segment/test", "--vocabulary", tiny_dataset]
    store = tmp_path / "store"
    succeeds("predict", finished_run.model("finetune/bare"), *shards, "--store", store, "--accelerator", "cpu")
    store.rename(tmp_path / "store.unfinished")
    (tmp_path / "store.unfinished/predictions.yaml").rename(tmp_path / "store.unfinished/unfinished.yaml")
    for folder in (store, tmp_path / "store.unfinished"):
        sentence = refused(2, "merge", folder, *shards, "--out", tmp_path / "s.csv")
        assert sentence.startswith(f"{folder}: ")
        assert "is not finished; run the same `yt8m predict` to resume it." in sentence
    assert not (tmp_path / "s.csv").exists()


@pytest.mark.parametrize("option", ["--out", "--store", "--table"])
def test_outputs_below_a_file_are_refused(
    finished_run: FinishedRun, tiny_dataset: Path, tmp_path: Path, option: str
) -> None:
    (tmp_path / "file").write_text("")
    shards = ["--shards", tiny_dataset / "segment/test", "--vocabulary", tiny_dataset, "--accelerator", "cpu"]
    output = tmp_path / "file/output"
    sentence = refused(1, "predict", finished_run.model("finetune/bare"), *shards, option, output)
    assert sentence.startswith(f"{output}: cannot be written (")


@pytest.mark.parametrize("weight", ["bare", "bare=", "bare=much", "bare=-1", "bare=inf", "bare=nan", "=1"])
def test_invalid_weights_are_refused(tiny_dataset: Path, out: Path, weight: str) -> None:
    shards = ["--shards", tiny_dataset / "segment/test", "--vocabulary", tiny_dataset, "--out", out]
    sentence = refused(2, "merge", "predictions", *shards, "--weight", weight)
    assert sentence == f"--weight {weight}: expected NAME=NUMBER, the number not negative."


def test_videos_too_short_to_predict_are_refused(
    finished_run: FinishedRun, tiny_dataset: Path, tmp_path: Path, out: Path
) -> None:
    write_shards(tmp_path / "short", random_videos(3, num_frames=(20, 40)))
    shards = ["--shards", tmp_path / "short", "--vocabulary", tiny_dataset, "--out", out]
    sentence = refused(2, "predict", finished_run.model("finetune/bare"), *shards, "--accelerator", "cpu")
    assert "none of its 3 videos is longer than 40 seconds" in sentence
    assert not out.exists()


# --- locate ----------------------------------------------------------------------------------------------------------


def test_locate_refuses_invalid_arguments(finished_run: FinishedRun, tiny_dataset: Path, tmp_path: Path) -> None:
    shards = tiny_dataset / "segment/test"
    known = Catalog.load(shards).video_ids[2]
    run, video, bare = (finished_run.out / name for name in (".", "pretrain/dbof/model", "finetune/bare/model"))
    vocabulary = ["--vocabulary", tiny_dataset]
    places = ["--shards", shards, *vocabulary]

    unknown = known[:3] + "~"
    sentence = refused(2, "locate", unknown, bare, *places)
    assert sentence == f"{shards}: there is no video '{unknown}' among its 8 (did you mean {known!r}?)."
    assert refused(2, "locate", "~~~~~~~~~~~~~~", bare, *places).endswith("'~~~~~~~~~~~~~~' among its 8.")

    needs = "yt8m locate needs either model folders, or --run DIR, the folder of a run with an ensemble."
    assert refused(2, "locate", known, *places) == needs
    assert refused(2, "locate", known, bare, "--run", run, *places) == needs
    elsewhere = Path(shutil.copytree(bare, tmp_path / "elsewhere"))
    sentence = refused(2, "locate", known, elsewhere, *vocabulary)
    assert sentence == f"{elsewhere}: its dataset is not recorded; give --shards DIR, the folder of the shards."
    absent = tmp_path / "absent.tfrecord"
    assert refused(2, "locate", absent, bare, *vocabulary) == f"{absent}: there is no such shard."
    assert refused(2, "locate", known, video, *places).startswith("dbof: is a video classifier")
    assert refused(2, "locate", known, bare, bare, *places).endswith(
        "a model named 'bare' is already among the others."
    )
    other = other_vocabulary(tiny_dataset, tmp_path / "other.csv")
    sentence = refused(2, "locate", known, bare, "--shards", shards, "--vocabulary", other)
    assert sentence.startswith(f"{bare}: the model's 12 classes are of another vocabulary")
    assert "expected 'auto', 'cpu', 'cuda' or 'mps'" in refused(
        2, "locate", known, bare, *places, "--accelerator", "gpu"
    )


def test_locate_refuses_a_run_whose_ensemble_is_not_trained(
    finished_run: FinishedRun, tiny_dataset: Path, tmp_path: Path
) -> None:
    shutil.copy(finished_run.out / "recipe.yaml", tmp_path)
    places = ["--shards", tiny_dataset / "segment/test", "--vocabulary", tiny_dataset]
    video = Catalog.load(tiny_dataset / "segment/test").video_ids[0]
    sentence = refused(2, "locate", video, "--run", tmp_path, *places)
    assert sentence == f"{tmp_path / 'finetune/bare/model'}: there is no such model folder."
