"""Invalid recipes, and models and devices that are missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.command import refused, yt8m
from tests.support.files import files_in
from yt8m.runs import memory


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("segment_models.bare.base=dboff", "there is no base model 'dboff' (did you mean 'dbof'?)"),
        ("segment_models.bare.fold=4", "expected a fold below 4, found 4"),
        ("base_models.dbof.training.steps=0", "expected greater than 0, found 0"),
        ("base_models.dbof.training.peak_lr=-1", "expected greater than 0, found -1"),
        ("base_models.dbof.training.batch_size=big", "expected a valid integer, found 'big'"),
        (
            "base_models.dbof.training.batch_size=1000000000000000000",
            "expected less than or equal to 1048576, found 1000",
        ),
        (
            "base_models.dbof.classifier.encoder.hidden_size=1000000000000000000",
            "expected less than or equal to 1048576",
        ),
        ("seed=10000000000000000000", "expected less than or equal to 9223372036854775807, found 10000"),
        ("base_models.dbof.training.peak_lr=.inf", "expected a finite number, found inf"),
        ("base_models.dbof.training.steps=1:30", "expected a valid integer, found '1:30'"),
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


@pytest.mark.parametrize("command", ["run", "find-lr", "estimate"])
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("base_models.dbof.training.batch_size=1000000", "a training.batch_size of 1,000,000 needs at least "),
        (
            "base_models.dbof.training.batch_size=1000000",
            " GB (each example has up to 20 frames), and this machine has ",
        ),
        (
            "base_models.dbof.classifier.encoder={type: dbof, hidden_size: 1048576, output_size: 1048576}",
            "needs at least 48,",
        ),
    ],
)
def test_what_cannot_fit_into_memory_is_refused(
    tiny_recipe: Path,
    tiny_dataset: Path,
    out: Path,
    command: str,
    change: str,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A machine of any size would do; this one must not be larger than a batch.
    monkeypatch.setattr(memory, "memory_of", lambda _: 10**10)
    if command == "estimate":
        if "batch_size" in change:
            pytest.skip("an estimate makes no such batch")
        sentence = refused(2, command, tiny_recipe, "--set", change)
    else:
        model = ["dbof"] if command == "find-lr" else []
        sentence = refused_with_messages(
            command, tiny_recipe, *model, "--data", tiny_dataset, "--out", out, "--set", change
        )
    assert sentence.startswith("pretrain/dbof: ")
    assert expected in sentence


def refused_with_messages(*arguments: object) -> str:
    outcome = yt8m(*arguments)
    assert outcome.status == 2, outcome.err
    return outcome.err.splitlines()[-1].removeprefix("yt8m: ")
