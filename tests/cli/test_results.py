"""The commands check and evaluate."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from tests.support.command import Outcome, refused, succeeds
from tests.support.command import yt8m as command
from tests.support.rows import ratings_of
from tests.support.tiny_run import FinishedRun, score_rows
from yt8m.dataset.catalog import Catalog
from yt8m.vocabulary import Vocabulary

# --- check -----------------------------------------------------------------------------------------------------------


def test_check_accepts_the_submission_of_a_run(finished_run: FinishedRun, places: list[object]) -> None:
    submission = finished_run.out / "submission.csv"
    num_segments = sum(line.count(":") for line in submission.read_text().splitlines())
    verdict = f"{submission}: would be accepted: 12 classes, {num_segments:,} segments\n"
    assert succeeds("check", submission, *places).out == verdict
    shown = succeeds("check", submission).out
    assert shown.endswith(verdict)
    assert [line.split(":")[0] for line in shown.splitlines()[:-1]] == ["not checked"] * 2


def test_check_lists_the_problems(
    finished_run: FinishedRun, tiny_dataset: Path, places: list[object], tmp_path: Path
) -> None:
    lines = (finished_run.out / "submission.csv").read_text().splitlines(keepends=True)
    label, _, listed = lines[2].partition(",")
    lines[2] = f"{label},no:30 {listed}"
    lines[4] = lines[4].replace(":", ";")
    path = tmp_path / "bad.csv"
    path.write_text("".join(lines[:6]))
    outcome = command("check", path, *places)
    of_line_5 = lines[4].count(" ") + 1
    assert outcome.status == 1
    assert outcome.err == f"yt8m: {path}: would not be accepted: {of_line_5 + 1} problems, as listed above.\n"
    shown = outcome.out.splitlines()
    assert shown[0] == (
        f"{path}, line 3: segment 1 of class {label} is 'no:30'; there is no such video in {tiny_dataset / 'segment/test'}."
    )
    assert all(line.startswith(f"{path}, line 5: segment ") for line in shown[1:20])
    assert shown[20] == f"... and {of_line_5 - 19} more; all of them by kind:"
    assert shown[21:23] == [
        "    segments of videos that the shards do not contain: 1",
        f"    items that are not 'video:start': {of_line_5}",
    ]
    assert shown[23].startswith("remark: the file omits 7 of the 12 classes (")
    assert len(shown) == 24


def test_check_reports_a_single_problem(finished_run: FinishedRun, places: list[object], tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text((finished_run.out / "submission.csv").read_text().replace(":", ";", 1))
    assert command("check", path, *places).err == f"yt8m: {path}: would not be accepted: 1 problem, as listed above.\n"


# --- evaluate --------------------------------------------------------------------------------------------------------


def number(outcome: Outcome) -> float:
    return float(outcome.out.split()[0])


def test_evaluate_agrees_with_the_table_of_the_run(finished_run: FinishedRun, tiny_dataset: Path) -> None:
    ensemble = score_rows(finished_run.out)[-1]
    submission, truth = finished_run.out / "submission.csv", tiny_dataset / "segment"
    rated = succeeds("evaluate", submission, "--truth", truth / "test_ratings.csv")
    dense = succeeds("evaluate", submission, "--truth", truth / "test_positives.csv", "--dense")
    assert re.match(r"0\.\d{6} MAP@100,000\n\d+ classes with a positive counted, 0 of them absent", rated.out)
    assert re.match(r"0\.\d{6} MAP@100,000 \(dense\)\n", dense.out)
    assert number(rated) == float(ensemble["map_at_k"])
    assert number(dense) == float(ensemble["dense_map"])
    assert number(rated) != number(dense)


def slow_map(submission: Path, truth: Path, k: int) -> tuple[float, dict[int, float]]:
    """MAP@K and the AP of each class by their definitions, from the files."""
    rated: dict[str, dict[str, float]] = {}
    with truth.open(newline="") as file:
        for row in csv.DictReader(file):
            rated.setdefault(row["label"], {})[f"{row['video']}:{row['start']}"] = float(row["score"])
    of_class = {}
    lists = dict(line.rstrip("\n").split(",") for line in submission.read_text().splitlines()[1:])
    for label, ratings in rated.items():
        if not any(ratings.values()):
            continue
        seen = hits = 0
        total = 0.0
        for segment in lists.get(label, "").split(" ")[:k]:
            if segment in ratings:
                seen += 1
                if ratings[segment]:
                    hits += 1
                    total += hits / seen
        of_class[int(label)] = total / sum(ratings.values())
    return sum(of_class.values()) / len(of_class), of_class


@pytest.mark.parametrize("k", [20, 100_000])
def test_evaluate_equals_a_slow_loop(
    finished_run: FinishedRun, tiny_dataset: Path, tiny_vocabulary: Vocabulary, tmp_path: Path, k: int
) -> None:
    submission, truth = finished_run.out / "submission.csv", tiny_dataset / "segment/test_ratings.csv"
    options = ["--per-class", tmp_path / "new" / "classes.csv", "--vocabulary", tiny_dataset]
    shown = succeeds("evaluate", submission, "--truth", truth, "--k", k, *options)
    mean, of_class = slow_map(submission, truth, k)
    assert number(shown) == pytest.approx(mean, abs=1e-6)
    assert f"{len(of_class)} classes with a positive counted" in shown.out
    with (tmp_path / "new" / "classes.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert {int(row["class_id"]): float(row["ap"]) for row in written} == pytest.approx(of_class, abs=1e-6)
    names = dict(zip(tiny_vocabulary.label_ids.tolist(), tiny_vocabulary.names, strict=True))
    assert all(row["name"] == names[int(row["class_id"])] for row in written)


def test_evaluate_reads_the_ratings_of_shards(finished_run: FinishedRun, data: Path, tmp_path: Path) -> None:
    model, submission = finished_run.model("finetune/bare"), tmp_path / "submission.csv"
    shards = ["--shards", data / "segment/train", "--vocabulary", data / "segment_vocabulary.csv"]
    succeeds("predict", model, *shards, "--store", tmp_path / "store", "--accelerator", "cpu")
    succeeds("merge", tmp_path / "store", *shards, "--out", submission)
    shown = succeeds("evaluate", submission, "--truth", data / "segment/train")
    catalog = Catalog.load(data / "segment/train")
    with (tmp_path / "ratings.csv").open("w") as file:
        file.write("video,label,start,score\n")
        for row in range(len(catalog)):
            for label, start, value in zip(*ratings_of(catalog, row), strict=True):
                file.write(f"{catalog.id_of(row)},{label},{start},{value}\n")
    mean, _ = slow_map(submission, tmp_path / "ratings.csv", 100_000)
    assert number(shown) == pytest.approx(mean, abs=1e-6)


def test_a_class_missing_from_the_file_has_an_ap_of_zero(
    finished_run: FinishedRun, tiny_dataset: Path, tmp_path: Path
) -> None:
    truth = tiny_dataset / "segment/test_ratings.csv"
    complete = finished_run.out / "submission.csv"
    mean, of_class = slow_map(complete, truth, 100_000)
    omitted = next(label for label, value in of_class.items() if value > 0)
    lines = complete.read_text().splitlines(keepends=True)
    (tmp_path / "less.csv").write_text("".join(line for line in lines if not line.startswith(f"{omitted},")))
    shown = succeeds("evaluate", tmp_path / "less.csv", "--truth", truth)
    assert number(shown) == pytest.approx(mean - of_class[omitted] / len(of_class), abs=1e-6)
    assert "1 of them absent from the file" in shown.out


def test_evaluate_refuses_a_truth_of_other_videos(tmp_path: Path) -> None:
    submission, truth = tmp_path / "s.csv", tmp_path / "truth.csv"
    submission.write_text("Class,Segments\n3,ab:30 cd:30\n")
    truth.write_text("video,label,start,score\nxy,3,30,1\n")
    assert f"{submission}: lists none of the 1 video of {truth}; " in refused(
        1, "evaluate", submission, "--truth", truth
    )
    truth.write_text("video,label,start,score\nxy,3,30,1\nab,3,30,0\nyz,3,30,1\n")
    warned = succeeds("evaluate", submission, "--truth", truth)
    assert warned.err.startswith(f"warning: {submission} lists only 1 of the 3 videos of {truth}, ")
    assert warned.out.startswith("0.000000 MAP@100,000")
    truth.write_text("video,label,start,score\nxy,3,30,1\nab,3,30,0\n")
    assert succeeds("evaluate", submission, "--truth", truth).err == ""
