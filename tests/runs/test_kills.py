"""A run that is killed at any file-system event ends, at the next try, with the files of an undisturbed run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.processes import run_python
from yt8m.dataset.indexing import index_and_save
from yt8m.dataset.layout import PARTS


def kill_run(folder: Path, dataset: Path, recipe: Path, first: int, step: int, *more: str, ranks: int = 1) -> None:
    """Kill a run at every `step`-th event from `first` on, and assert that the next run repairs everything."""
    for part in PARTS:
        index_and_save(dataset / part)
    command = ["run", recipe, "--data", dataset, "--out", "OUT", *more]
    ended = run_python("-m", "tests.support.kills", folder, ranks, first, step, *command, timeout=3000)
    assert ended.status == 0, ended.err
    found = json.loads(ended.out)
    assert found["events"] > 150
    assert found["tried"] == len(range(first, found["events"], step))
    assert found["problems"] == {}


@pytest.mark.slow
@pytest.mark.parametrize("first", range(4))
@pytest.mark.parametrize("store", ["false", "true"])
def test_a_kill_at_any_event_of_a_run(
    tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path, store: str, first: int
) -> None:
    kill_run(tmp_path, tiny_dataset, tiny_recipe, first, 4, "--set", f"ensemble.store={store}")


@pytest.mark.slow
@pytest.mark.parametrize("first", range(16))
def test_a_kill_of_one_of_two_processes_at_any_event(
    tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path, first: int
) -> None:
    kill_run(tmp_path, tiny_dataset, tiny_recipe, first, 16, "--set", "ensemble.store=true", ranks=2)


def test_kills_while_a_store_is_created(tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    kill_run(tmp_path, tiny_dataset, tiny_recipe, 150, 20, "--set", "ensemble.store=true")
