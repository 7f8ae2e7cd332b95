"""Invalid recipes, and models and devices that are missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.command import refused
from tests.support.files import files_in


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
def test_invalid_recipes_are_refused(
    tiny_recipe: Path, tiny_dataset: Path, out: Path, change: str, expected: str
) -> None:
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
def test_missing_recipes_models_and_devices_are_refused(
    tiny_recipe: Path, tiny_dataset: Path, out: Path, arguments: list[str], expected: str
) -> None:
    if "machine.devices=100" in arguments:
        # Any number of processes can run on a CPU, so request that number of GPUs.
        arguments = [*arguments, "--set", "machine.accelerator=cuda"]
    filled = [argument.format(recipe=tiny_recipe) for argument in arguments]
    assert refused(2, *filled, "--data", tiny_dataset, "--out", out).startswith(expected)
    assert not out.exists() or files_in(out) <= {"recipe.yaml"}
