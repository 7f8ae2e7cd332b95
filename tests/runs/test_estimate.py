"""The cost of a recipe: counts that are known, and times that add up."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.command import refused, succeeds
from yt8m.models.classifier import VideoClassifier, VideoClassifierConfig
from yt8m.models.dbof import DBoFConfig
from yt8m.models.layers.mixture import MixtureConfig
from yt8m.runs.estimate import Cost, Stage, arithmetic, costs, stages
from yt8m.runs.recipe import find_recipe, read_recipe
from yt8m.runtime.machine import MachineConfig, make_fabric
from yt8m.training.loop import TrainingConfig

CPU = torch.device("cpu")


def dbof_stage(**training: int) -> Stage:
    config = VideoClassifierConfig(
        encoder=DBoFConfig(hidden_size=64, output_size=32, frame_se_reduction=0, video_se_reduction=0),
        mixture=MixtureConfig(num_experts=2),
    )
    settings = TrainingConfig(steps=40, batch_size=16, peak_lr=1e-3, weight_decay=0.0, **training)
    return Stage("pretrain/dbof", lambda: VideoClassifier(config, 10), settings, 30, 10)


def test_operations_and_parameters_are_those_of_the_layers() -> None:
    parameters, trained, flops, _ = arithmetic(dbof_stage(), 16, CPU)
    weights = [(1152, 64), (128, 32), (32, 20), (32, 3)]
    # Norms of the pooled channels, of the experts and of the gate have two numbers a channel; one Linear has no bias.
    assert parameters == trained == sum(a * b + b for a, b in weights) - 32 + 2 * (128 + 32 + 32)
    rows = [16 * 30, 16, 16, 16]
    # A product costs 2 forward and 4 backward; 2 where its input, the frames, needs no gradient.
    expected = sum(n * a * b * (4 if a == 1152 else 6) for n, (a, b) in zip(rows, weights, strict=True))
    assert flops == expected


def test_memory_is_that_of_weights_and_moments_and_grows_with_the_part_of_a_batch() -> None:
    parameters = arithmetic(dbof_stage(), 16, CPU)[0]
    fixed = 12 * parameters  # weights and two moments
    peaks = [arithmetic(dbof_stage(), size, CPU)[3] for size in (16, 32, 64)]
    assert peaks[0] > fixed
    assert peaks[2] - peaks[1] == pytest.approx(2 * (peaks[1] - peaks[0]), rel=0.02)
    # Of an example at least its bytes, its features and its hidden channels are alive together.
    example = 30 * (1034 + 137) + 30 * 4 * (1152 + 64)
    assert peaks[1] - peaks[0] > 16 * example
    in_parts = arithmetic(dbof_stage(gradient_accumulation=4), 64, CPU)[3]
    assert peaks[0] < in_parts < peaks[1]


def test_parts_to_fit_are_enough() -> None:
    cost = Cost(dbof_stage(), 1000, 1000, 16, 1.0, 16_000 + 64_000, 0, 1.0)
    assert [cost.parts_to_fit(size) for size in (80_000, 48_000, 33_000, 17_000)] == [1, 2, 4, 16]


def test_every_stage_of_a_recipe_has_a_cost_and_equal_stages_are_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = read_recipe(find_recipe("seventh-place"))
    timed: list[str] = []
    monkeypatch.setattr("yt8m.runs.estimate.seconds_of_step", lambda _f, _m, stage, *_: timed.append(stage.name) or 0.5)
    monkeypatch.setattr("yt8m.runs.estimate.arithmetic", lambda *_: (3, 2, 1.0, 7))
    found = list(costs(stages(recipe, 1000), recipe.machine, make_fabric(MachineConfig(accelerator="cpu"))))
    names = [f"pretrain/{name}" for name in recipe.base_models] + [f"finetune/{name}" for name in recipe.segment_models]
    assert [cost.stage.name for cost in found] == names
    # Contexts of a DBoF have different mixtures above them only before they are taken: the encoders are alike.
    assert timed == [
        *names[:4],
        "finetune/agnostic-nextvlad-fold-0",
        "finetune/agnostic-dbof-fold-0",
        "finetune/aware-dbof-1-fold-6",
        "finetune/aware-nextvlad-fold-4",
    ]
    assert [cost.total_seconds for cost in found] == [0.5 * cost.stage.training.steps for cost in found]


def test_processes_share_a_batch() -> None:
    machine = MachineConfig(accelerator="cpu", devices=2, num_nodes=2)
    (cost,) = costs([dbof_stage()], machine, make_fabric(MachineConfig(accelerator="cpu")))
    assert cost.examples == 4
    assert cost.flops == arithmetic(dbof_stage(), 4, CPU)[2]


def test_a_dry_run_needs_no_data_and_leaves_nothing(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    printed = succeeds("run", tiny_recipe, "--dry-run").out
    recipe = read_recipe(tiny_recipe)
    for name in [*recipe.base_models, *recipe.segment_models]:
        assert f"/{name} " in printed
    assert "Steps timed on" in printed
    assert sorted(tmp_path.rglob("*")) == before
    only = succeeds("run", tiny_recipe, "--dry-run", "--only", "finetune").out
    assert "pretrain/" not in only
    assert "finetune/" in only


def test_running_needs_a_dataset_and_a_folder(tiny_recipe: Path, tmp_path: Path) -> None:
    assert refused(2, "run", tiny_recipe, "--out", tmp_path) == "Missing option --data; only --dry-run goes without."
    assert refused(2, "run", tiny_recipe, "--data", tmp_path) == "Missing option --out; only --dry-run goes without."
    assert "trains no such stage" in refused(2, "run", tiny_recipe, "--dry-run", "--only", "predict")
