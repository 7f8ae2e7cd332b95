"""Stages: settings, inputs, fingerprints that decide what is repeated, and records."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
import yaml

from tests.support.tiny_run import STAGE_TITLES, STAGES, FinishedRun
from yt8m.dataset.catalog import FILE_NAME
from yt8m.errors import UsageError
from yt8m.models.description import read_description
from yt8m.runs.context import RunContext
from yt8m.runs.recipe import read_recipe
from yt8m.runs.records import StageRecord, read_record
from yt8m.runs.run import Run
from yt8m.runs.stages import RunStage, Stage, training_stages
from yt8m.settings import fingerprint

DBOF = {"pretrain/dbof", "finetune/bare", "finetune/aware", "predict"}
"""Stages that depend on the base model `dbof`."""
FINETUNED = {"finetune/bare", "finetune/aware", "predict"}
ALL = set(STAGES)


def run_stages(recipe: Path, data: Path, out: Path, *overrides: str) -> dict[str, RunStage]:
    """Stages of a run by path."""
    return {stage.path: stage for stage in Run(read_recipe(recipe, list(overrides)), data, out).stages}


def changed_stages(before: dict[str, RunStage], after: dict[str, RunStage]) -> set[str]:
    """Paths of the stages with another fingerprint."""
    assert list(before) == list(after)
    return {path for path, stage in before.items() if stage.fingerprint != after[path].fingerprint}


# --- Stages ----------------------------------------------------------------------------------------------------------


def test_stages_have_titles_and_folders(tiny_recipe: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    stages = run_stages(tiny_recipe, tiny_dataset, tmp_path)
    assert list(stages) == STAGES
    assert [stage.title for stage in stages.values()] == STAGE_TITLES
    assert [stage.folder for stage in stages.values()] == [tmp_path / path for path in STAGES]
    assert [stage.path for stage in training_stages(read_recipe(tiny_recipe))] == STAGES[:-1]


def test_stages_have_seeds_and_numbers_of_frames(tiny_recipe: Path) -> None:
    overrides = ["seed=3", "base_models.dbof.seed=0", "base_models.nextvlad.frames_per_video=7"]
    overrides += ["segment_models.aware.margin_frames=1"]
    stages = {stage.path: stage for stage in training_stages(read_recipe(tiny_recipe, overrides))}
    assert [stages[path].seed for path in STAGES[:-1]] == [0, 3, 3, 3]
    assert [stages[path].num_frames for path in STAGES[:-1]] == [20, 7, 5 + 2 * 3, 5 + 2 * 1]


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        ("pretrain", "bare", "The recipe has no base model 'bare' (known: dbof, nextvlad)."),
        ("pretrain", "dobf", "The recipe has no base model 'dobf' (did you mean 'dbof'?)."),
        ("finetune", "bear", "The recipe has no segment model 'bear' (did you mean 'bare'?)."),
    ],
)
def test_a_stage_of_a_model_missing_from_the_recipe_is_refused(
    tiny_recipe: Path, kind: str, name: str, expected: str
) -> None:
    with pytest.raises(UsageError) as raised:
        _ = Stage(read_recipe(tiny_recipe), kind, name).config  # type: ignore[arg-type]
    assert str(raised.value) == expected


# --- Fingerprints ----------------------------------------------------------------------------------------------------


def test_fingerprints_ignore_only_the_order_of_keys() -> None:
    one = fingerprint([3, "pretrain", {"a": 1, "b": 2}, {"x": "1"}])
    assert one == fingerprint([3, "pretrain", {"b": 2, "a": 1}, {"x": "1"}])
    others = [
        [4, "pretrain", {"a": 1, "b": 2}, {"x": "1"}],
        [3, "finetune", {"a": 1, "b": 2}, {"x": "1"}],
        [3, "pretrain", {"a": 2, "b": 2}, {"x": "1"}],
        [3, "pretrain", {"a": 1, "b": 2}, {"y": "1"}],
        [3, "pretrain", {"a": 1, "b": 2}, {"x": "2"}],
    ]
    assert len({one, *map(fingerprint, others)}) == 6


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("base_models.dbof.training.peak_lr=1e-3", DBOF),
        ("base_models.dbof.classifier.encoder.hidden_size=8", DBOF),
        ("base_models.dbof.clip_probability=0.5", DBOF),
        ("base_models.dbof.seed=1", DBOF),
        ("base_models.nextvlad.training.steps=7", {"pretrain/nextvlad", "finetune/aware", "predict"}),
        ("segment_models.bare.margin_frames=2", {"finetune/bare", "predict"}),
        ("segment_models.aware.fold=2", {"finetune/aware", "predict"}),
        ("segment_models.aware.loss.mined_weight=0", {"finetune/aware", "predict"}),
        ("folds=5", FINETUNED),
        ("seed=1", ALL),
        ("machine.precision=bf16-mixed", ALL),
        ("machine.float32_matmul_precision=highest", ALL),
        ("machine.float32_matmul_precision=medium", ALL),
        ("ensemble.method=geometric", {"predict"}),
        ("ensemble.weights.bare=2", {"predict"}),
        ("ensemble.models=[bare]", {"predict"}),
        ("ensemble.video_prior.models=[dbof]", {"predict"}),
        ("ensemble.shifts=[0,1]", {"predict"}),
        ("top_k=7", {"predict"}),
        ("compare=false", {"predict"}),
        # Settings that change no result.
        ("base_models.dbof.training.log_every=1", set()),
        ("base_models.dbof.training.checkpoint_every=1", set()),
        ("base_models.dbof.seed=0", set()),
        ("ensemble.models=[aware,bare]", set()),
        ("machine.num_workers=1", set()),
        ("machine.compile=false", set()),
        ("description=The same in other words", set()),
        ("log.wandb_project=null", set()),
    ],
)
def test_settings_change_the_fingerprints_of_the_stages_that_use_them(
    tiny_recipe: Path, tiny_dataset: Path, tmp_path: Path, override: str, expected: set[str]
) -> None:
    before = run_stages(tiny_recipe, tiny_dataset, tmp_path)
    assert changed_stages(before, run_stages(tiny_recipe, tiny_dataset, tmp_path, override)) == expected


def test_settings_contain_the_default_precision_of_products(
    tiny_recipe: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    """Otherwise, a different default in a later version would not change the fingerprints."""
    for stage in run_stages(tiny_recipe, tiny_dataset, tmp_path).values():
        assert (stage.settings["precision"], stage.settings["float32_matmul_precision"]) == ("32-true", "high")


def test_the_order_of_the_ensemble_does_not_change_the_fingerprint(
    tiny_recipe: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    """Models are merged in the order of their names."""
    stages = [
        run_stages(tiny_recipe, tiny_dataset, tmp_path, f"ensemble.models=[{models}]")["predict"]
        for models in ("bare,aware", "aware,bare")
    ]
    assert stages[0].settings == stages[1].settings
    assert stages[0].fingerprint == stages[1].fingerprint


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("video/train", ALL),
        ("video/valid", ALL),
        ("segment/train", FINETUNED),
        ("segment/test", {"predict"}),
    ],
)
def test_other_shards_change_the_fingerprints_of_the_stages_that_use_them(
    data: Path, tiny_recipe: Path, tmp_path: Path, part: str, expected: set[str]
) -> None:
    before = run_stages(tiny_recipe, data, tmp_path / "out")
    assert changed_stages(before, before) == set()
    max((data / part).glob("*.tfrecord")).unlink()
    assert changed_stages(before, run_stages(tiny_recipe, data, tmp_path / "out")) == expected


def test_moved_shards_and_new_catalogs_change_no_fingerprint(
    data: Path, tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    before = run_stages(tiny_recipe, tiny_dataset, tmp_path / "a")
    assert changed_stages(before, run_stages(tiny_recipe, data, tmp_path / "b")) == set()
    for catalog in data.rglob(FILE_NAME):
        catalog.unlink()
    assert changed_stages(before, run_stages(tiny_recipe, data, tmp_path / "b")) == set()


def test_the_truth_and_the_vocabulary_are_inputs(data: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    before = run_stages(tiny_recipe, data, tmp_path)
    assert changed_stages(before, before) == set()
    ratings = data / "segment/test_ratings.csv"
    with ratings.open(newline="") as file:
        rows = list(csv.reader(file))
    rows[1][3] = str(1 - int(float(rows[1][3])))
    ratings.write_text("\n".join(map(",".join, rows)) + "\n")
    after = run_stages(tiny_recipe, data, tmp_path)
    assert changed_stages(before, after) == {"predict"}

    vocabulary = data / "segment_vocabulary.csv"
    header, first, *rest = vocabulary.read_text().splitlines()
    vocabulary.write_text("\n".join([header, *rest, first]) + "\n")
    assert changed_stages(after, run_stages(tiny_recipe, data, tmp_path)) == ALL


def test_renaming_a_model_changes_only_the_fingerprint_of_prediction(
    tiny_recipe: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    """The fingerprint of a training stage depends on settings and inputs, not on the name of the model."""
    values = yaml.safe_load(tiny_recipe.read_text())
    values["segment_models"] = {"renamed": values["segment_models"].pop("bare"), **values["segment_models"]}
    renamed = tmp_path / "renamed.yaml"
    renamed.write_text(yaml.safe_dump(values).replace("2e-3", "0.002"))
    before = run_stages(tiny_recipe, tiny_dataset, tmp_path / "out")
    after = run_stages(renamed, tiny_dataset, tmp_path / "out")
    assert after["finetune/renamed"].fingerprint == before["finetune/bare"].fingerprint
    assert after["predict"].fingerprint != before["predict"].fingerprint


# --- Records ---------------------------------------------------------------------------------------------------------


def test_invalid_records_are_ignored(tmp_path: Path) -> None:
    assert read_record(tmp_path) is None
    for content in ("- a list\n", "only words", "[1", "fingerprint: abc\n", "fingerprint: 3\nstatus: finished\n"):
        (tmp_path / "stage.yaml").write_text(content)
        assert read_record(tmp_path) is None, content
    (tmp_path / "stage.yaml").write_text("fingerprint: abc\nstatus: finished\n")
    assert read_record(tmp_path) == StageRecord(fingerprint="abc", status="finished", seconds=0.0, metrics={})


BEFORE_ENSEMBLE_WEIGHTS = """\
fingerprint: 8b39047d2cfa51ab
status: finished
seconds: 1.4
metrics:
  segments: 1125.0
  models: 3.0
  weight of aware: 0.115
  weight of bare: 1.885
time: '2026-11-26T19:23:56+00:00'
settings:
  method: geometric
  weights: {}
  video_prior:
    models:
    - dbof
    video_exponent: 0.2
    segment_exponent: 0.8
  candidates: null
  find_weights: true
  shifts:
  - -1
  - 0
  - 1
  store: true
  models:
  - aware
  - bare
  top_k: 50
  compare: true
  seed: 0
  precision: 32-true
"""


def test_records_of_earlier_versions_load(tmp_path: Path) -> None:
    (tmp_path / "stage.yaml").write_text(BEFORE_ENSEMBLE_WEIGHTS)
    record = read_record(tmp_path)
    assert record is not None
    assert (record.fingerprint, record.status, record.seconds) == ("8b39047d2cfa51ab", "finished", 1.4)
    assert (record.metrics["segments"], record.metrics["models"]) == (1125.0, 3.0)
    assert (record.num_segments, record.ensemble_weights) == (None, {})
    assert record.settings["video_prior"]["video_exponent"] == 0.2


def test_the_records_of_a_run_contain_its_results(finished_run: FinishedRun) -> None:
    for stage in STAGES[:-1]:
        record = read_record(finished_run.out / stage)
        assert record is not None
        assert set(record.metrics) == {"loss", "auc", "map"}
        assert record.num_segments is None
        with (finished_run.out / stage / "metrics.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["split"] == "valid"]
        best_step = str(read_description(finished_run.model(stage)).provenance["step"])
        assert record.metrics == {row["metric"]: float(row["value"]) for row in rows if row["step"] == best_step}
    record = read_record(finished_run.out / "predict")
    assert record is not None
    assert (record.metrics, record.ensemble_weights) == ({}, {})
    assert f"out of {record.num_segments:,} segments predicted" in finished_run.outcome.out


def test_beginning_and_finishing_a_stage_updates_its_record(
    tiny_recipe: Path, tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    context = RunContext(read_recipe(tiny_recipe), tiny_dataset, tmp_path)
    stage = RunStage.of(context, "predict")
    assert (stage.record, stage.is_finished) == (None, False)
    stage.begin()
    assert capsys.readouterr().err == ""
    record = stage.record
    assert record is not None
    assert (record.status, record.fingerprint, record.settings) == ("started", stage.fingerprint, stage.settings)
    assert not stage.is_finished
    stage.begin()
    assert capsys.readouterr().err == "predict: resumes where it was stopped\n"
    stage.finish(12.345, num_segments=1125, ensemble_weights={"aware": 0.115, "bare": 1.885})
    record = stage.record
    assert record is not None
    assert (record.status, record.seconds, record.num_segments) == ("finished", 12.3, 1125)
    assert record.ensemble_weights == {"aware": 0.115, "bare": 1.885}
    assert stage.is_finished

    # A result outside the folder of the stage is kept with the other results.
    (tmp_path / "submission.csv").write_text("of the first settings")
    other = RunStage.of(RunContext(read_recipe(tiny_recipe, ["top_k=7"]), tiny_dataset, tmp_path), "predict")
    assert not other.is_finished
    other.begin(tmp_path / "submission.csv", tmp_path / "absent.parquet")
    assert capsys.readouterr().err == (
        f"predict: the settings or the data changed; the previous result is kept in {tmp_path / 'predict.before-1'}\n"
    )
    assert (tmp_path / "predict.before-1/submission.csv").read_text() == "of the first settings"
    assert not (tmp_path / "submission.csv").exists()
    previous = read_record(tmp_path / "predict.before-1")
    assert previous == record
    stage.begin()
    assert (tmp_path / "predict.before-2").is_dir()


def test_a_folder_without_a_record_is_kept(
    tiny_recipe: Path, tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder may contain files of the user, which are never overwritten."""
    context = RunContext(read_recipe(tiny_recipe), tiny_dataset, tmp_path)
    folder = tmp_path / "pretrain/dbof"
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("years of work")
    RunStage.of(context, "pretrain", "dbof").begin()
    assert (tmp_path / "pretrain/dbof.before-1/thesis.txt").read_text() == "years of work"
    assert "the previous result is kept in" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "pretrain")
