"""Fixtures of the tests of commands."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.tiny_run import FinishedRun
from yt8m.dataset.catalog import FILE_NAME, Catalog


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Path of an output that does not exist."""
    return tmp_path / "out"


@pytest.fixture
def data(tmp_path: Path, tiny_dataset: Path) -> Path:
    """A copy of the tiny dataset without catalogs."""
    return Path(shutil.copytree(tiny_dataset, tmp_path / "data", ignore=shutil.ignore_patterns(FILE_NAME)))


@pytest.fixture
def trained(tmp_path: Path, finished_run: FinishedRun) -> Path:
    """A copy of the finished run, which tests may change."""
    return Path(shutil.copytree(finished_run.out, tmp_path / "out"))


@pytest.fixture
def places(tiny_dataset: Path) -> list[object]:
    """The options of `predict`, `merge` and `locate` for the shards and the vocabulary."""
    return ["--shards", tiny_dataset / "segment/test", "--vocabulary", tiny_dataset / "segment_vocabulary.csv"]


@pytest.fixture
def models(finished_run: FinishedRun) -> list[object]:
    """Model folders of the run's ensemble, in another order than the recipe's."""
    return [finished_run.model(f"finetune/{name}") for name in ("aware", "bare")]


@pytest.fixture
def commands(
    tiny_dataset: Path, tiny_recipe: Path, finished_run: FinishedRun, places: list[object], out: Path
) -> Callable[[Path], dict[str, list[object]]]:
    """Every command that reads folders, with a given folder instead of one of them."""

    def make(folder: Path) -> dict[str, list[object]]:
        model = finished_run.model("finetune/bare")
        shards = ["--shards", folder, "--vocabulary", tiny_dataset]
        video = Catalog.load(tiny_dataset / "segment/test").video_ids[0]
        return {
            "index": ["index", folder],
            "describe": ["describe", folder],
            "splice": ["splice", out, "--sources", folder, "--vocabulary", tiny_dataset],
            "run": ["run", tiny_recipe, "--data", folder, "--out", out],
            "pretrain": ["pretrain", tiny_recipe, "dbof", "--data", folder, "--out", out],
            "finetune": ["finetune", tiny_recipe, "bare", "--data", folder, "--out", out],
            "predict": ["predict", model, *shards, "--out", out, "--accelerator", "cpu"],
            "predict from": ["predict", folder, *places, "--out", out, "--accelerator", "cpu"],
            "merge": ["merge", finished_run.out, *shards, "--out", out],
            "merge from": ["merge", folder, *places, "--out", out],
            "check": ["check", folder],
            "check against": ["check", finished_run.out / "submission.csv", "--shards", folder],
            "locate": ["locate", video, model, *shards],
            "locate from": ["locate", video, folder, *places],
            "locate run": ["locate", video, "--run", folder, *places],
            "evaluate": ["evaluate", finished_run.out / "submission.csv", "--truth", folder],
            "evaluate what": ["evaluate", folder, "--truth", tiny_dataset / "segment/test_ratings.csv"],
        }

    return make
