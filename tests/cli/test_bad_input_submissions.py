"""Submissions and truths that cannot be read or scored."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.command import refused
from tests.support.files import files_in
from tests.support.tiny_run import FinishedRun


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "line 1: expected the header 'Class,Segments', found ''"),
        ("{label},aaaa:30\n", "line 1: expected the header 'Class,Segments'"),
        ("Class,Segments\n", "contains no class"),
        ("Class,Segments\n99999,aaaa:30\n", "line 2: 99999 is not a class of the vocabulary"),
        (
            "Class,Segments\n{label},aaaa:30\n{label},aaaa:35\n",
            "line 3: class {label} occurs a second time, after line 2",
        ),
        (
            "Class,Segments\n{label},aaaa:30 bbbb:30 aaaa:30\n",
            "segment 3 of class {label} is 'aaaa:30'; the class lists it more than once",
        ),
        ("Class,Segments\n{label},aaaa:30 bbbb\n", "segment 2 of class {label} is 'bbbb'"),
        ("Class,Segments\n{label},aaaa:31\n", "segment 1 of class {label} is 'aaaa:31'"),
        ("Class,Segments\n{label},aaaa:-5\n", "segment 1 of class {label} is 'aaaa:-5'"),
        ("Class,Segments\n{label};aaaa:30\n", "expected a class id, a comma and segments"),
        ("Class,Segments\nSurfing,aaaa:30\n", "expected a class id, a comma and segments"),
    ],
)
def test_invalid_submissions_are_refused(tiny_dataset: Path, tmp_path: Path, content: str, expected: str) -> None:
    label = (tiny_dataset / "segment_vocabulary.csv").read_text().splitlines()[1].split(",")[0]
    path = tmp_path / "submission.csv"
    path.write_text(content.format(label=label))
    truth = ["--truth", tiny_dataset / "segment/test_ratings.csv", "--vocabulary", tiny_dataset]
    sentence = refused(1, "evaluate", path, *truth, "--per-class", tmp_path / "classes.csv")
    assert sentence.startswith(str(path))
    assert expected.format(label=label) in sentence
    sentence = refused(1, "check", path, "--vocabulary", tiny_dataset)
    assert sentence.startswith(f"{path}: would not be accepted: ")
    assert files_in(tmp_path) == {"submission.csv"}


@pytest.mark.parametrize(
    ("content", "dense", "expected"),
    [
        ("", False, "line 1: expected a header with the columns video,label,start,score"),
        ("video,label,start\naaaa,{label},30\n", False, "(a file of all positives, without scores, is a dense truth"),
        ("video,label,start,score\naaaa,{label},30,1\n", True, "has a column 'score'"),
        ("video,label,start,score\n", False, "contains no rows below its header"),
        ("video,label,start,score\naaaa,{label},30\n", False, "line 2: expected at least 4 values, found 3"),
        ("video,label,start,score\naaaa,{label},30,1\naaaa,Surfing,30,1\n", False, "line 3: expected a whole number as label"),
        ("video,label,start,score\naaaa,{label},32,1\n", False, "line 2: expected a start in seconds, a multiple of 5"),
        ("video,label,start,score\naaaa,{label},30,yes\n", False, "line 2: expected a number as score, found 'yes'"),
        ("video,label,start,score\n,{label},30,1\n", False, "line 2: the video id is empty"),
        ("video,label,start,score\naaaa,{label},30,0\n", False, "The truth contains no positive rating"),
        ("video,label,start,score\naaaa,99999,30,1\n", False, "The truth rates the label 99999, which is not a class"),
    ],
)  # fmt: skip
def test_invalid_truths_are_refused(
    finished_run: FinishedRun, tiny_dataset: Path, tmp_path: Path, content: str, dense: bool, expected: str
) -> None:
    label = (tiny_dataset / "segment_vocabulary.csv").read_text().splitlines()[1].split(",")[0]
    path = tmp_path / "truth.csv"
    path.write_text(content.format(label=label))
    arguments = ["--truth", path, "--vocabulary", tiny_dataset, *(["--dense"] if dense else [])]
    assert expected in refused(1, "evaluate", finished_run.out / "submission.csv", *arguments)


def test_folders_without_ratings_are_refused_as_truths(finished_run: FinishedRun, tiny_dataset: Path) -> None:
    submission = finished_run.out / "submission.csv"
    assert "a dense truth is a CSV file" in refused(
        2, "evaluate", submission, "--truth", tiny_dataset / "segment/train", "--dense"
    )
    sentence = refused(2, "evaluate", submission, "--truth", tiny_dataset / "segment/test")
    assert "found no ratings to score against in its 8 videos" in sentence
