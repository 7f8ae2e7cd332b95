"""Folders and vocabularies that are missing or contain something else: one message, and no output."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.command import refused
from tests.support.command import yt8m as command
from tests.support.files import files_in
from tests.support.tiny_run import FinishedRun

NAMES = [
    "index",
    "describe",
    "splice",
    "run",
    "pretrain",
    "finetune",
    "predict",
    "predict from",
    "merge",
    "merge from",
    "check",
    "check against",
    "locate",
    "locate from",
    "locate run",
    "evaluate",
    "evaluate what",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["missing", "empty", "wrong", "file"])
def test_missing_empty_and_wrong_folders_are_refused(
    commands: Callable[[Path], dict[str, list[object]]], tmp_path: Path, out: Path, name: str, kind: str
) -> None:
    folder = tmp_path / "given"
    if kind in ("empty", "wrong"):
        folder.mkdir()
    if kind == "wrong":
        (folder / "holiday.jpg").write_bytes(b"\xff\xd8\xff\x00\x80")
    if kind == "file":
        folder.write_bytes(b"\xff\xd8\xff\x00\x80")
    if kind == "wrong" and name == "describe":
        # A message about the missing vocabulary precedes the error.
        outcome = command(*commands(folder)[name])
        assert outcome.status == 2
        assert len(outcome.err.splitlines()) == 2
        return
    if kind == "empty" and name == "describe":
        assert command(*commands(folder)[name]).status == 2
        return
    # A file that can be opened and contains something else is a failure (status 1), not a usage error (status 2).
    is_opened = kind == "file" and name in ("check", "evaluate", "evaluate what")
    before = files_in(tmp_path)
    sentence = refused(1 if is_opened else 2, *commands(folder)[name])
    assert str(folder) in sentence
    left = files_in(tmp_path) - before
    assert left == set()


def test_a_dataset_without_its_vocabulary_is_refused(
    tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path, out: Path
) -> None:
    (tmp_path / "data").mkdir()
    shutil.copytree(tiny_dataset / "segment", tmp_path / "data/segment")
    sentence = refused(2, "run", tiny_recipe, "--data", tmp_path / "data", "--out", out)
    assert sentence.startswith(f"{tmp_path / 'data/segment_vocabulary.csv'}: there is no such file")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "expected a header with the columns Index and Name"),
        ("Index,Name\n", "expected a header with the columns Index and Name, and one row per class"),
        ("Id,Name\n3,x\n", "expected a header with the columns Index and Name"),
        ("Index,Name\nthree,x\n", "line 2: expected a whole number as Index, found 'three'"),
        ("Index,Name\n3,x\n4,y\n3,z\n", "the class 3 occurs more than once"),
    ],
)
def test_invalid_vocabularies_are_refused(
    finished_run: FinishedRun, tmp_path: Path, content: str, expected: str
) -> None:
    (tmp_path / "classes.csv").write_text(content)
    submission = finished_run.out / "submission.csv"
    assert expected in refused(2, "evaluate", submission, "--truth", "x.csv", "--vocabulary", tmp_path / "classes.csv")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--sources", "builtin", "--vocabulary", "x.csv"], "--vocabulary goes with --sources DIR"),
        (["--sources", "folder"], "--sources DIR needs --vocabulary"),
    ],
)
def test_splice_refuses_options_that_exclude_each_other(out: Path, arguments: list[str], expected: str) -> None:
    assert expected in refused(2, "splice", out, *arguments)
    assert not out.exists()


def test_splice_refuses_a_folder_that_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    assert "exists and is not empty" in refused(2, "splice", tmp_path, "--pretrain", 1, "--segments", 1, "--test", 1)
    assert files_in(tmp_path) == {"thesis.txt"}
