"""Recipes: shipped recipes, overrides, and errors with the place in the file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.tiny_run import TINY_RECIPE
from yt8m.errors import UsageError
from yt8m.models.config import DBoFConfig, NeXtVLADConfig
from yt8m.runs.recipe import AgnosticModelConfig, AwareModelConfig, find_recipe, read_recipe, shipped_recipe
from yt8m.settings import to_yaml

SHIPPED = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


def values() -> dict[str, Any]:
    """The tiny recipe as independent values, without YAML anchors."""
    content = yaml.safe_load(TINY_RECIPE.replace("2e-3", "0.002"))
    independent: dict[str, Any] = yaml.safe_load(yaml.dump(content, Dumper=_NoAliases))
    return independent


class _NoAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True


def written(path: Path, content: object) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(UsageError) as raised:
        read_recipe(path, list(overrides))
    sentence = str(raised.value)
    assert "\n" not in sentence
    return sentence


# --- Shipped ---------------------------------------------------------------------------------------------------------


def test_a_demo_recipe_is_shipped() -> None:
    assert "demo" in [path.stem for path in SHIPPED]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_are_valid(path: Path) -> None:
    recipe = read_recipe(path)
    assert recipe.description
    used = set()
    for model in recipe.segment_models.values():
        used |= {model.base} if isinstance(model, AgnosticModelConfig) else {model.context, model.segment}
    assert used == set(recipe.base_models), "a base model is not used"
    assert shipped_recipe(path.stem) == path
    assert find_recipe(path.stem) == path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_saved_recipe_equals_the_original(path: Path, tmp_path: Path) -> None:
    recipe = read_recipe(path)
    (tmp_path / "kept.yaml").write_text(to_yaml(recipe))
    assert read_recipe(tmp_path / "kept.yaml") == recipe


# --- Finding ---------------------------------------------------------------------------------------------------------


def test_a_file_takes_precedence_over_a_shipped_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_recipe("demo") == shipped_recipe("demo")
    (tmp_path / "demo").write_text("")
    assert find_recipe("demo") == Path("demo")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dmeo", "There is no recipe 'dmeo' (did you mean 'demo'?)."),
        ("absent.yaml", "absent.yaml: there is no such recipe."),
        ("recipes/demo", "recipes/demo: there is no such recipe; `demo` alone is the one that ships with yt8m."),
    ],
)
def test_missing_recipes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, expected: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=f"^{re.escape(expected)}$"):
        find_recipe(name)


# --- Reading ---------------------------------------------------------------------------------------------------------


def test_recipes_have_values_and_defaults(tiny_recipe: Path) -> None:
    recipe = read_recipe(tiny_recipe)
    assert isinstance(recipe.base_models["dbof"].classifier.encoder, DBoFConfig)
    assert isinstance(recipe.base_models["nextvlad"].classifier.encoder, NeXtVLADConfig)
    aware = recipe.segment_models["aware"]
    assert isinstance(aware, AwareModelConfig)
    assert (aware.context, aware.segment, aware.fold, aware.margin_frames) == ("dbof", "nextvlad", 1, 3)
    assert (aware.training.peak_lr, aware.loss.positive_weight, aware.loss.mined_weight) == (0.002, 1.5, 0.5)
    assert recipe.ensemble_models == ["bare", "aware"]
    assert (recipe.seed, recipe.top_k, recipe.machine.precision) == (0, 100_000, "32-true")


def test_overrides_replace_values(tiny_recipe: Path) -> None:
    overrides = [
        "base_models.dbof.classifier.encoder.hidden_size=24",
        "segment_models.bare.training.peak_lr=1e-5",
        "machine.precision=bf16-mixed",
        "ensemble.weights.bare=2",
        "ensemble.models=[bare]",
        "description=a = b",
    ]
    recipe = read_recipe(tiny_recipe, overrides)
    encoder = recipe.base_models["dbof"].classifier.encoder
    assert isinstance(encoder, DBoFConfig)
    assert encoder.hidden_size == 24
    assert recipe.segment_models["bare"].training.peak_lr == 1e-5
    assert recipe.machine.precision == "bf16-mixed"
    assert recipe.ensemble.weights == {"bare": 2.0}
    assert recipe.ensemble_models == ["bare"]
    assert recipe.description == "a = b"


def test_an_override_changes_one_place_of_a_yaml_anchor(tiny_recipe: Path) -> None:
    """All `training` settings of the tiny recipe are one anchor in the file."""
    before = read_recipe(tiny_recipe)
    after = read_recipe(tiny_recipe, ["base_models.dbof.training.steps=40", "segment_models.bare.training.steps=50"])
    assert after.base_models["dbof"].training.steps == 40
    assert after.segment_models["bare"].training.steps == 50
    assert after.base_models["nextvlad"] == before.base_models["nextvlad"]
    assert after.segment_models["aware"] == before.segment_models["aware"]
    assert read_recipe(tiny_recipe) == before


def test_the_last_override_takes_precedence(tiny_recipe: Path) -> None:
    assert read_recipe(tiny_recipe, ["seed=1", "seed=2"]).seed == 2
    complete = ["base_models.dbof.training={steps: 9, batch_size: 4, peak_lr: 0.1, weight_decay: 0}"]
    changed = read_recipe(tiny_recipe, [*complete, "base_models.dbof.training.steps=8"]).base_models["dbof"].training
    assert (changed.steps, changed.batch_size) == (8, 4)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("steps", "--set steps: expected path=value, such as base_models.dbof.training.steps=100."),
        ("=5", "--set =5: expected path=value"),
        ("seed=[1", "--set seed=[1: the value is not valid YAML."),
        ("folds.more=1", "--set folds.more=1: 'folds' has no keys of its own."),
        ("folds.more.still=1", "--set folds.more.still=1: 'folds' has no keys of its own."),
        ("seed=x", "'seed': expected a valid integer, found 'x'."),
        ("base_models.dbof.training.stesp=4", "unknown key 'base_models.dbof.training.stesp' (did you mean 'steps'?)."),
        ("base_modles.dbof.seed=4", "unknown key 'base_modles' (did you mean 'base_models'?)."),
        ("base_models.new.seed=4", "'base_models.new.classifier' is missing; 'base_models.new.training' is missing."),
    ],
)
def test_invalid_overrides_are_refused(tiny_recipe: Path, override: str, expected: str) -> None:
    assert expected in refusal(tiny_recipe, override)


# --- Invalid recipes -------------------------------------------------------------------------------------------------

TRAINING = ("base_models", "dbof", "training")
ENCODER = ("base_models", "dbof", "classifier", "encoder")


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        (("segment_models", "bare", "base"), "dobf", "segment_models.bare.base: there is no base model 'dobf' (did you mean 'dbof'?)"),
        (("segment_models", "aware", "context"), "x", "segment_models.aware.context: there is no base model 'x' (known: dbof, nextvlad)"),
        (("segment_models", "aware", "segment"), "nextvald", "segment_models.aware.segment: there is no base model 'nextvald' (did you mean 'nextvlad'?)"),
        (("segment_models", "bare", "fold"), 4, "segment_models.bare.fold: expected a fold below 4, found 4"),
        (("segment_models", "bare", "fold"), -1, "'segment_models.bare.fold': expected greater than or equal to 0, found -1"),
        (("segment_models", "bare", "kind"), "agnostik", "'segment_models.bare.kind': expected one of 'agnostic', 'aware', found 'agnostik'"),
        (("segment_models", "bare", "context"), "dbof", "unknown key 'segment_models.bare.context'"),
        (("segment_models", "aware", "marginframes"), 3, "unknown key 'segment_models.aware.marginframes' (did you mean 'margin_frames'?)"),
        (("segment_models", "a b"), {}, "a b"),
        (("ensemble",), {"models": ["bear"]}, "ensemble: there is no segment model 'bear' (did you mean 'bare'?)"),
        (("ensemble",), {"models": ["bare", "bare"]}, "ensemble.models: 'bare' is named more than once"),
        (("ensemble",), {"weights": {"bear": 1}}, "ensemble: there is no segment model 'bear' (did you mean 'bare'?)"),
        (("ensemble",), {"models": ["bare"], "weights": {"aware": 1}}, "ensemble.weights: The ensemble has a weight for 'aware', which is not one of its models"),
        (("ensemble",), {"weights": {"bare": 0, "aware": 0}}, "ensemble.weights: The ensemble's weights must have a sum above 0"),
        (("ensemble",), {"weights": {"bare": -1}}, "'ensemble.weights.bare': expected greater than or equal to 0, found -1"),
        (("ensemble",), {"video_prior": {"models": ["dobf"]}}, "ensemble: there is no base model 'dobf' (did you mean 'dbof'?)"),
        (("ensemble",), {"video_prior": {"models": ["bare"]}}, "ensemble: there is no base model 'bare' (known: dbof, nextvlad)"),
        (("ensemble",), {"video_prior": {"models": []}}, "'ensemble.video_prior.models'"),
        (("ensemble",), {"video_prior": {"models": ["dbof"], "exponent": 1}}, "unknown key 'ensemble.video_prior.exponent'"),
        (("ensemble",), {"video_prior": {"models": ["dbof"], "segment_exponent": 0}}, "'ensemble.video_prior.segment_exponent': expected greater than 0, found 0"),
        (("ensemble",), {"candidates": {"models": ["nextvald"], "min_video_probability": 0.1}}, "ensemble: there is no base model 'nextvald' (did you mean 'nextvlad'?)"),
        (("ensemble",), {"candidates": {"models": ["dbof"]}}, "'ensemble.candidates.min_video_probability' is missing"),
        (("ensemble",), {"candidates": {"models": ["dbof"], "min_video_probability": 0}}, "'ensemble.candidates.min_video_probability': expected greater than 0, found 0"),
        (("ensemble",), {"method": "median"}, "'ensemble.method': expected 'arithmetic', 'geometric' or 'rank', found 'median'"),
        (("ensemble",), {"find_weights": True, "weights": {"bare": 2}}, "'ensemble': find_weights: weights are given as well; remove one of the two"),
        (("ensemble",), {"find_weights": True, "method": "rank"}, "'ensemble': find_weights: ranks have no likelihood to maximize; use another method"),
        (("ensemble",), {"shifts": [0, 6]}, "'ensemble.shifts.1': expected less than or equal to 5, found 6"),
        (("ensemble",), {"shifts": [-6]}, "'ensemble.shifts.0': expected greater than or equal to -5, found -6"),
        (("ensemble",), {"shifts": [0.5]}, "'ensemble.shifts.0': expected a valid integer, found 0.5"),
        (("ensemble",), {"shifts": [0, 1, 0]}, "'ensemble': shifts: a shift is named more than once"),
        (("ensemble",), {"shifts": []}, "'ensemble.shifts'"),
        (("ensemble",), {"shifts": 1}, "'ensemble.shifts'"),
        (("folds",), 1, "'folds': expected greater than or equal to 2, found 1"),
        (("folds",), 8.5, "'folds': expected a valid integer, found 8.5"),
        (("top_k",), 100_001, "'top_k': expected less than or equal to 100000, found 100001"),
        (("compare",), "yes please", "'compare': expected a valid boolean, found 'yes please'"),
        (("base_models",), {}, "base_models: expected at least one model, here or in trained_models"),
        (("base_models", "dbof"), None, "'base_models.dbof': expected"),
        ((*TRAINING, "steps"), 0, "'base_models.dbof.training.steps': expected greater than 0, found 0"),
        ((*TRAINING, "steps"), "many", "'base_models.dbof.training.steps': expected a valid integer, found 'many'"),
        ((*TRAINING, "peak_lr"), -1e-3, "'base_models.dbof.training.peak_lr': expected greater than 0, found -0.001"),
        ((*TRAINING, "peak_lr"), True, "'base_models.dbof.training.peak_lr': expected a valid number, found True"),
        ((*TRAINING, "warmup"), 1.5, "'base_models.dbof.training.warmup': expected less than or equal to 1, found 1.5"),
        ((*TRAINING, "monitor"), "acu", "'base_models.dbof.training.monitor': expected 'loss', 'auc' or 'map', found 'acu'"),
        ((*ENCODER, "type"), "dboff", "'base_models.dbof.classifier.encoder.type': expected one of 'dbof', 'nextvlad', found 'dboff'"),
        ((*ENCODER, "hidden_siez"), 3, "unknown key 'base_models.dbof.classifier.encoder.hidden_siez' (did you mean 'hidden_size'?)"),
        ((*ENCODER, "num_clusters"), 3, "unknown key 'base_models.dbof.classifier.encoder.num_clusters'"),
        ((*ENCODER, "max_frames"), 0, "'base_models.dbof.classifier.encoder.max_frames': expected greater than or equal to 1, found 0"),
        (("machine", "accelerator"), "gpu9", "'machine.accelerator': expected 'auto', 'cpu', 'cuda' or 'mps', found 'gpu9'"),
    ],
)  # fmt: skip
def test_invalid_recipes_are_refused(tmp_path: Path, place: tuple[str, ...], value: object, expected: str) -> None:
    content = values()
    group = content
    for key in place[:-1]:
        group = group[key]
    group[place[-1]] = value
    path = written(tmp_path / "wrong.yaml", content)
    sentence = refusal(path)
    assert sentence.startswith(f"{path}: ")
    assert expected in sentence
    assert sentence.endswith(".")
    assert not sentence.endswith("..")


RENAMED = [
    ((*TRAINING, "peak_rate"), "peak_lr"),
    ((*TRAINING, "accumulate"), "gradient_accumulation"),
    ((*TRAINING, "choose_by"), "monitor"),
    ((*TRAINING, "slow_rate_factor"), "encoder_lr_factor"),
    (("segment_models", "aware", "training", "slow_rate_factor"), "encoder_lr_factor"),
    (("segment_models", "bare", "training", "peak_rate"), "peak_lr"),
    (("base_models", "nextvlad", "clip_share"), "clip_probability"),
]
"""Keys of earlier versions, and their current names."""


@pytest.mark.parametrize(("place", "name"), RENAMED, ids=lambda value: value if isinstance(value, str) else value[-1])
def test_renamed_keys_are_refused_with_their_new_names(
    tmp_path: Path, tiny_recipe: Path, place: tuple[str, ...], name: str
) -> None:
    content = values()
    group = content
    for key in place[:-1]:
        group = group[key]
    group[place[-1]] = group.pop(name, 1)
    path = written(tmp_path / "old.yaml", content)
    old = ".".join(place)
    assert f"the key '{old}' is now called '{name}'" in refusal(path)
    assert refusal(tiny_recipe, f"{old}=1") == f"{tiny_recipe}: the key '{old}' is now called '{name}'."


@pytest.mark.parametrize("part", ["video_prior", "candidates"])
def test_a_video_classifier_of_the_ensemble_needs_a_unique_name(tmp_path: Path, part: str) -> None:
    """A base model and a segment model may share a name if the ensemble uses only one of them."""
    content = values()
    content["segment_models"]["dbof"] = content["segment_models"].pop("bare")
    read_recipe(written(tmp_path / "apart.yaml", content))
    content["ensemble"] = {
        part: {"models": ["dbof"]} | ({"min_video_probability": 0.1} if part == "candidates" else {})
    }
    sentence = refusal(written(tmp_path / "wrong.yaml", content))
    assert "ensemble: 'dbof' is a base model and a segment model; give one of them another name." in sentence


def test_optional_ways_to_merge_are_off_by_default(tiny_recipe: Path) -> None:
    ensemble = read_recipe(tiny_recipe).ensemble
    assert (ensemble.method, ensemble.weights, ensemble.find_weights, ensemble.shifts) == ("arithmetic", {}, False, [0])
    assert (ensemble.video_prior, ensemble.candidates, ensemble.store, ensemble.video_models) == (None, None, False, [])
    overrides = [
        "ensemble.method=geometric",
        "ensemble.find_weights=true",
        "ensemble.video_prior.models=[nextvlad]",
        "ensemble.video_prior.video_exponent=0.5",
        "ensemble.candidates={models: [dbof], min_video_probability: 1e-3}",
        "ensemble.shifts=[-1, 0, 1]",
        "ensemble.store=true",
    ]
    ensemble = read_recipe(tiny_recipe, overrides).ensemble
    assert ensemble.video_prior is not None
    assert ensemble.candidates is not None
    assert (ensemble.video_prior.video_exponent, ensemble.video_prior.segment_exponent) == (0.5, 0.8)
    assert ensemble.candidates.min_video_probability == 0.001
    assert ensemble.video_models == ["dbof", "nextvlad"]
    assert (ensemble.method, ensemble.find_weights, ensemble.shifts, ensemble.store) == (
        "geometric",
        True,
        [-1, 0, 1],
        True,
    )


@pytest.mark.parametrize("missing", ["base_models", "segment_models"])
def test_missing_required_keys_are_reported(tmp_path: Path, missing: str) -> None:
    content = values()
    del content[missing]
    sentence = refusal(written(tmp_path / "wrong.yaml", content))
    # `trained_models` may replace `base_models`.
    expected = "base_models: expected at least one model" if missing == "base_models" else f"'{missing}' is missing"
    assert expected in sentence


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    content = values()
    content["fodls"] = 4
    content["segment_models"]["bare"]["training"]["steps"] = -2
    sentence = refusal(written(tmp_path / "wrong.yaml", content))
    assert "unknown key 'fodls' (did you mean 'folds'?)" in sentence
    assert "'segment_models.bare.training.steps': expected greater than 0, found -2" in sentence


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "expected settings (keys and values), found None."),
        ("- a\n- list\n", "expected settings (keys and values), found ['a', 'list']."),
        ("just words", "expected settings (keys and values), found 'just words'."),
        ("a: [1", "is not valid YAML: "),
        (
            "a: &a [*a]\n",
            "is not valid YAML: it contains more than 100,000 values, counting repeated ones, or one that contains itself.",
        ),
    ],
)
def test_files_other_than_recipes_are_refused(tmp_path: Path, content: str, expected: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(content)
    for overrides in ([], ["seed=3"]):
        sentence = refusal(path, *overrides)
        assert sentence.startswith(f"{path}: ")
        assert expected in sentence


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_bytes(b"\xff\xfe\x00\x80")
    assert "cannot be read as text" in refusal(tmp_path / "wrong.yaml")


def test_trained_models_may_replace_base_models(tmp_path: Path) -> None:
    content = values()
    del content["base_models"]["nextvlad"]
    content["trained_models"] = {"nextvlad": "somewhere/nextvlad"}
    recipe = read_recipe(written(tmp_path / "recipe.yaml", content))
    assert list(recipe.base_models) == ["dbof"]
    assert recipe.trained_models == {"nextvlad": "somewhere/nextvlad"}
    content["trained_models"]["dbof"] = "somewhere/dbof"
    sentence = refusal(written(tmp_path / "wrong.yaml", content))
    assert "trained_models: 'dbof' is also a base model to pre-train; remove one of the two" in sentence
