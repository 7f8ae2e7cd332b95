"""Outputs that are not plain files: links, pipes, open files and folders that take no files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import yt8m
from tests.support.command import succeeds
from tests.support.command import yt8m as command
from tests.support.files import opened_pipe
from tests.support.tiny_run import FinishedRun
from yt8m.dataset.catalog import Catalog

FILE_OPTIONS = [
    "predict --out",
    "predict --table",
    "merge --out",
    "merge --table",
    "locate --svg",
    "evaluate --per-class",
]
"""Every option that names a file to write."""

needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="there is no /proc")


@pytest.fixture(scope="session")
def stored(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Path, finished_run: FinishedRun) -> Path:
    """Stored predictions of one model."""
    store = tmp_path_factory.mktemp("outputs") / "store"
    shards = ["--shards", tiny_dataset / "segment/test", "--vocabulary", tiny_dataset / "segment_vocabulary.csv"]
    succeeds("predict", finished_run.model("finetune/bare"), *shards, "--store", store, "--accelerator", "cpu")
    return store


@pytest.fixture
def arguments(
    finished_run: FinishedRun, tiny_dataset: Path, places: list[object], tmp_path: Path, stored: Path
) -> dict[str, list[object]]:
    """The arguments for each option, which comes last."""
    model, cpu = finished_run.model("finetune/bare"), ["--accelerator", "cpu"]
    video = Catalog.load(tiny_dataset / "segment/test").video_ids[0]
    truth = ["--truth", tiny_dataset / "segment/test_ratings.csv"]
    return {
        "predict --out": ["predict", model, *places, *cpu, "--out"],
        "predict --table": ["predict", model, *places, *cpu, "--table"],
        "merge --out": ["merge", stored, *places, "--out"],
        "merge --table": ["merge", stored, *places, "--out", tmp_path / "other.csv", "--table"],
        "locate --svg": ["locate", video, model, *places, *cpu, "--svg"],
        "evaluate --per-class": ["evaluate", finished_run.out / "submission.csv", *truth, "--per-class"],
    }


@pytest.mark.parametrize("option", FILE_OPTIONS)
def test_links_and_pipes_get_the_file(option: str, arguments: dict[str, list[object]], tmp_path: Path) -> None:
    succeeds(*arguments[option], tmp_path / "plain")
    expected = (tmp_path / "plain").read_bytes()
    assert expected
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "target").write_text("previous")
    succeeds(*arguments[option], tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == expected
    with opened_pipe(tmp_path / "pipe") as received:
        succeeds(*arguments[option], tmp_path / "pipe")
        assert received() == expected
    assert (tmp_path / "pipe").is_fifo()
    assert {path.name for path in tmp_path.iterdir()} <= {"plain", "link", "target", "pipe", "other.csv"}


@needs_proc
@pytest.mark.parametrize("option", FILE_OPTIONS)
def test_a_folder_that_takes_no_files_is_reported(option: str, arguments: dict[str, list[object]]) -> None:
    suffix = {"--table": ".parquet", "--svg": ".svg"}.get(option.split()[1], ".csv")
    sentence = refused_after_output(*arguments[option], f"/proc/yt8m{suffix}")
    assert sentence.startswith(f"/proc/yt8m{suffix}: cannot be written (")


def refused_after_output(*arguments: object) -> str:
    """Run a command that fails after it printed something; return its last sentence."""
    outcome = command(*arguments)
    assert outcome.status == 1, outcome.err
    assert "Traceback" not in outcome.err
    return outcome.err.splitlines()[-1].removeprefix("yt8m: ")


@needs_proc
@pytest.mark.parametrize("option", ["predict --out", "merge --out"])
def test_a_submission_goes_through_standard_output(
    option: str, arguments: dict[str, list[object]], tmp_path: Path
) -> None:
    """Messages go to standard error then, and nothing is left in the folder."""
    succeeds(*arguments[option], tmp_path / "plain.csv")
    (tmp_path / "empty").mkdir()
    process = [sys.executable, "-m", "yt8m", *map(str, arguments[option]), "/dev/stdout"]
    environment = os.environ | {"PYTHONPATH": str(Path(yt8m.__file__).parents[1])}
    done = subprocess.run(
        process, capture_output=True, cwd=tmp_path / "empty", env=environment, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == (tmp_path / "plain.csv").read_bytes()
    assert b"/dev/stdout: " in done.stderr
    assert not list((tmp_path / "empty").iterdir())
    assert not list(Path("/dev").glob("*.unfinished"))


def test_a_linked_store_stays_where_it_is(
    tmp_path: Path, stored: Path, finished_run: FinishedRun, places: list[object]
) -> None:
    (tmp_path / "link").symlink_to("disk/store")
    options = [*places, "--accelerator", "cpu", "--store", tmp_path / "link", "--overwrite"]
    for model in ("bare", "aware"):
        succeeds("predict", finished_run.model(f"finetune/{model}"), *options)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "disk/store" / f"{model}.npy").is_file()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["store"]


@needs_proc
def test_output_folders_where_none_can_be_made_are_reported(
    tmp_path: Path, tiny_dataset: Path, tiny_recipe: Path, finished_run: FinishedRun, places: list[object]
) -> None:
    out = Path("/proc/yt8m/out")
    model = finished_run.model("finetune/bare")
    for arguments in (
        ["splice", out],
        ["run", tiny_recipe, "--data", tiny_dataset, "--out", out],
        ["pretrain", tiny_recipe, "dbof", "--data", tiny_dataset, "--out", out],
        ["predict", model, *places, "--accelerator", "cpu", "--store", out],
        ["demo", out],
    ):
        assert str(out) in refused_after_output(*arguments), arguments
