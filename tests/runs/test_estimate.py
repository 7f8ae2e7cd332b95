"""The estimate of a recipe: parameters, operations, memory and times of its stages."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric

from tests.support.progress import RecordedProgress
from yt8m.errors import UsageError
from yt8m.models.config import DBoFConfig, MixtureConfig, VideoClassifierConfig
from yt8m.runs.estimate import Cost, Timer, arithmetic, estimate
from yt8m.runs.recipe import AgnosticModelConfig, BaseModelConfig, Recipe, find_recipe, read_recipe
from yt8m.runs.stages import Stage
from yt8m.runtime.machine import MachineConfig
from yt8m.training.config import TrainingConfig

CPU = torch.device("cpu")
NUM_CLASSES = 10


def dbof_recipe(machine: MachineConfig | None = None, **training: int) -> Recipe:
    """A recipe of a small DBoF of 30 frames."""
    classifier = VideoClassifierConfig(
        encoder=DBoFConfig(hidden_size=64, output_size=32, frame_se_reduction=0, video_se_reduction=0),
        mixture=MixtureConfig(num_experts=2),
    )
    config = TrainingConfig(steps=40, batch_size=16, peak_lr=1e-3, weight_decay=0.0, **training)
    return Recipe(
        base_models={"dbof": BaseModelConfig(classifier=classifier, frames_per_video=30, training=config)},
        segment_models={"bare": AgnosticModelConfig(base="dbof", fold=0, training=config)},
        machine=machine or MachineConfig(accelerator="cpu"),
    )


def dbof_stage(**training: int) -> Stage:
    return Stage(dbof_recipe(**training), "pretrain", "dbof")


@dataclass(frozen=True)
class FakeTimer(Timer):
    """Returns half a second per step, and records the stages."""

    timed: list[str] = field(default_factory=list)

    def seconds(self, stage: Stage, examples: int, flops: float) -> float:
        self.timed.append(stage.path)
        return 0.5


def test_operations_and_parameters_are_the_sums_over_the_layers() -> None:
    parameters, trained, flops, _ = arithmetic(dbof_stage(), 16, NUM_CLASSES, CPU)
    weights = [(1152, 64), (128, 32), (32, 20), (32, 3)]
    # Norms of the pooled channels, of the experts and of the gate have two numbers per channel; one Linear has no bias.
    assert parameters == trained == sum(a * b + b for a, b in weights) - 32 + 2 * (128 + 32 + 32)
    rows = [16 * 30, 16, 16, 16]
    # A product costs 2 forward and 4 backward, or 2 backward if its input (the frames) needs no gradient.
    expected = sum(n * a * b * (4 if a == 1152 else 6) for n, (a, b) in zip(rows, weights, strict=True))
    assert flops == expected


def test_memory_contains_weights_and_moments_and_grows_with_the_micro_batch() -> None:
    parameters = arithmetic(dbof_stage(), 16, NUM_CLASSES, CPU)[0]
    fixed = 12 * parameters  # weights and two moments
    peaks = [arithmetic(dbof_stage(), size, NUM_CLASSES, CPU)[3] for size in (16, 32, 64)]
    assert peaks[0] > fixed
    assert peaks[2] - peaks[1] == pytest.approx(2 * (peaks[1] - peaks[0]), rel=0.02)
    # At least the bytes, the features and the hidden channels of an example are in memory at the same time.
    example = 30 * (1034 + 137) + 30 * 4 * (1152 + 64)
    assert peaks[1] - peaks[0] > 16 * example
    in_micro_batches = arithmetic(dbof_stage(gradient_accumulation=4), 64, NUM_CLASSES, CPU)[3]
    assert peaks[0] < in_micro_batches < peaks[1]


def test_suggested_micro_batches_fit_into_memory() -> None:
    cost = Cost(
        stage="pretrain/dbof",
        parameters=1000,
        trained=1000,
        examples=16,
        frames=30,
        micro_batches=1,
        flops=1.0,
        memory=16_000 + 64_000,
        read_ahead=0,
        step_seconds=1.0,
        steps=40,
    )
    assert [cost.micro_batches_to_fit(size) for size in (80_000, 48_000, 33_000, 17_000)] == [1, 2, 4, 16]


@pytest.mark.parametrize("name", ["demo", "reproduction"])
def test_the_other_shipped_recipes_are_estimated(name: str) -> None:
    recipe = read_recipe(find_recipe(name), ["machine.accelerator=cpu"])
    found = estimate(recipe, 100, make_timer=FakeTimer)
    assert len(found.costs) == len(recipe.base_models) + len(recipe.segment_models)
    assert all(
        cost.trained <= cost.parameters and cost.flops > 0 and cost.memory > 16 * cost.trained for cost in found.costs
    )


def test_every_stage_of_a_recipe_has_a_cost_and_equal_stages_are_timed_once() -> None:
    recipe = read_recipe(find_recipe("seventh-place"), ["machine.accelerator=cpu"])
    timers: list[FakeTimer] = []
    progress = RecordedProgress()

    def make_timer(fabric: Fabric, machine: MachineConfig, num_classes: int) -> FakeTimer:
        timers.append(FakeTimer(fabric, machine, num_classes))
        return timers[-1]

    found = estimate(recipe, 100, progress=progress, make_timer=make_timer)
    [timer] = timers
    names = [f"pretrain/{name}" for name in recipe.base_models] + [f"finetune/{name}" for name in recipe.segment_models]
    assert [cost.stage for cost in found.costs] == names
    # The contexts' base models differ in their mixtures only, which a context-aware model does not use.
    assert timer.timed == [
        *names[:4],
        "finetune/agnostic-nextvlad-fold-0",
        "finetune/agnostic-dbof-fold-0",
        "finetune/aware-dbof-1-fold-6",
        "finetune/aware-nextvlad-fold-4",
    ]
    models = [*recipe.base_models.values(), *recipe.segment_models.values()]
    assert [cost.total_seconds for cost in found.costs] == [0.5 * model.training.steps for model in models]
    assert [completed for completed, *_ in progress.reports["estimate"]] == list(range(1, len(names) + 1))


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        (None, ["pretrain/dbof", "finetune/bare"]),
        ("pretrain", ["pretrain/dbof"]),
        ("finetune/bare", ["finetune/bare"]),
    ],
)
def test_only_the_selected_stages_are_estimated(only: str | None, expected: list[str]) -> None:
    found = estimate(dbof_recipe(), NUM_CLASSES, only, make_timer=FakeTimer)
    assert [cost.stage for cost in found.costs] == expected
    with pytest.raises(UsageError, match=r"^The recipe trains no stage 'predict' \(known: "):
        estimate(dbof_recipe(), NUM_CLASSES, "predict", make_timer=FakeTimer)


def test_a_batch_is_divided_among_processes() -> None:
    machine = MachineConfig(accelerator="cpu", devices=2, num_nodes=2)
    found = estimate(dbof_recipe(machine), NUM_CLASSES, "pretrain", make_timer=FakeTimer)
    [cost] = found.costs
    assert (found.processes, cost.examples) == (4, 4)
    assert cost.flops == arithmetic(dbof_stage(), 4, NUM_CLASSES, CPU)[2]


def test_steps_are_timed_on_this_machine(tiny_recipe: Path) -> None:
    recipe = read_recipe(tiny_recipe)
    found = estimate(recipe, NUM_CLASSES)
    assert [cost.examples for cost in found.costs] == [8] * 4
    assert [cost.frames for cost in found.costs] == [20, 20, 11, 11]
    assert all(0 < cost.step_seconds < 10 for cost in found.costs)
    assert found.device == f"{torch.get_num_threads()} threads of this CPU, 32-true"
    assert found.available_memory is None or found.available_memory > 2**28


def test_slow_steps_are_extrapolated_from_smaller_batches() -> None:
    sizes: list[int] = []

    class SizeTimer(Timer):
        """A step takes a second, plus a tenth of a second per example."""

        def _time(self, stage: Stage, examples: int) -> float:
            sizes.append(examples)
            return 1.0 + 0.1 * examples

    fabric = Fabric(accelerator="cpu", devices=1)
    timer = SizeTimer(fabric, MachineConfig(accelerator="cpu"), NUM_CLASSES)
    assert timer.seconds(dbof_stage(), 16, 1e9) == pytest.approx(2.6)
    assert timer.seconds(dbof_stage(), 16, 1e12) == pytest.approx(2.6)
    # Smaller batches are divided evenly into micro-batches.
    assert timer.seconds(dbof_stage(gradient_accumulation=4), 32, 1e13) == pytest.approx(4.2)
    assert sizes == [16, 1, 2, 4, 8]
