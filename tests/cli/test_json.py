"""`--json`: standard output is one JSON value, and agrees with the plain output."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.command import succeeds
from tests.support.command import yt8m as command
from tests.support.processes import run_command
from tests.support.tiny_run import STAGES, TINY_SIZES, FinishedRun, score_rows
from tests.support.tiny_shards import random_videos, write_shards
from yt8m.dataset.catalog import Catalog
from yt8m.dataset.layout import PARTS
from yt8m.runs.recipe import read_recipe
from yt8m.vocabulary import Vocabulary


def parsed(text: str) -> Any:
    """Parse standard output as strict JSON: NaN and Infinity are not JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    return json.loads(text, parse_constant=refuse)


def words(text: str) -> str:
    """Text with single spaces."""
    return " ".join(text.split())


# --- describe --------------------------------------------------------------------------------------------------------


def test_describe_as_json(data: Path, tiny_vocabulary: Vocabulary) -> None:
    plain = succeeds("describe", data).out
    shown = succeeds("describe", data, "--json")
    assert shown.err == ""
    parts = parsed(shown.out)
    assert [part["folder"] for part in parts] == [str(data / part) for part in PARTS]
    assert [part["num_videos"] for part in parts] == list(vars(TINY_SIZES).values())
    blocks = re.split("|".join(re.escape(f"{data / part}\n") for part in PARTS), plain)[1:]
    for part, block in zip(parts, blocks, strict=True):
        text = words(block)
        frames = part["frames_per_video"]
        assert f"videos {part['num_videos']:,} ({part['hours']:,.1f} hours)" in text
        assert f"frames {part['num_frames']:,}, per video {frames['minimum']:,} to {frames['maximum']:,}" in text
        assert f"median {frames['median']:,.0f}" in text
        assert f"{part['labels_per_video']:.2f} per video; {part['videos_without_labels']} videos without any" in text
        assert f"evaluated segments {part['evaluated_segments']:,}" in text
        assert ("ratings per class" in text) == (part["ratings_per_class"] is not None) == (part["ratings"] > 0)
        assert part["classes_rated"] <= len(tiny_vocabulary)
        assert all(f"irregular {oddity}: {count:,}" in text for oddity, count in part["oddities"].items() if count)
        assert (part["problems"], part["num_problems"]) == ([], 0)
    catalog = Catalog.load(data / "segment/train")
    assert parts[2]["num_frames"] == catalog.num_frames.sum()
    assert parts[2]["positive_ratings"] == catalog.rating_values.sum()


def test_describe_as_json_with_damaged_records(tmp_path: Path) -> None:
    shard = write_shards(tmp_path, random_videos(4))[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    shown = succeeds("describe", tmp_path, "--json")
    [part] = parsed(shown.out)
    assert (part["num_videos"], part["num_problems"], part["videos_with_classes"]) == (3, 1, None)
    missing, problem = shown.err.splitlines()
    assert missing == f"{tmp_path / 'segment_vocabulary.csv'} is missing, so classes are counted without it."
    assert part["problems"] == [problem]


# --- check, evaluate -------------------------------------------------------------------------------------------------


def test_check_as_json_of_an_accepted_submission(finished_run: FinishedRun, places: list[object]) -> None:
    submission = finished_run.out / "submission.csv"
    shown = succeeds("check", submission, *places, "--json")
    assert shown.err == ""
    checked = parsed(shown.out)
    verdict = f"would be accepted: {checked['num_classes']:,} classes, {checked['num_segments']:,} segments"
    assert succeeds("check", submission, *places).out == f"{checked['path']}: {verdict}\n"
    assert (checked["is_accepted"], checked["num_problems"], checked["problems"]) == (True, 0, {})
    assert (checked["messages"], checked["remarks"], checked["not_checked"]) == ([], [], [])
    assert len(parsed(succeeds("check", submission, "--json").out)["not_checked"]) == 2


def test_check_as_json_of_a_rejected_submission(
    finished_run: FinishedRun, places: list[object], tmp_path: Path
) -> None:
    lines = (finished_run.out / "submission.csv").read_text().splitlines(keepends=True)
    lines[4] = lines[4].replace(":", ";")
    path = tmp_path / "bad.csv"
    path.write_text("".join(lines[:6]))
    plain, shown = (command("check", path, *places, *more) for more in ([], ["--json"]))
    assert (shown.status, shown.err) == (plain.status, plain.err)
    assert shown.status == 1
    checked = parsed(shown.out)
    count = lines[4].count(" ") + 1
    assert not checked["is_accepted"]
    assert checked["num_problems"] == sum(checked["problems"].values()) == count
    assert checked["problems"] == {"malformed": count}
    printed = plain.out.splitlines()
    assert checked["messages"] == printed[:20]
    assert f"    items that are not 'video:start': {count}" in printed
    assert [f"remark: {remark}." for remark in checked["remarks"]] == printed[-len(checked["remarks"]) :]


@pytest.mark.parametrize("dense", [False, True])
def test_evaluate_as_json(finished_run: FinishedRun, tiny_dataset: Path, tmp_path: Path, dense: bool) -> None:
    name, column = ("test_positives.csv", "dense_map") if dense else ("test_ratings.csv", "map_at_k")
    arguments = [finished_run.out / "submission.csv", "--truth", tiny_dataset / "segment" / name]
    arguments += ["--dense"] if dense else []
    plain = succeeds("evaluate", *arguments).out
    shown = succeeds("evaluate", *arguments, "--json", "--per-class", tmp_path / "classes.csv")
    assert shown.err == f"{tmp_path / 'classes.csv'}: AP of each class\n"
    score = parsed(shown.out)
    assert (score["k"], score["is_dense"]) == (100_000, dense)
    assert plain.startswith(f"{score['mean_average_precision']:.6f} MAP@100,000")
    assert f"{score['mean_average_precision']:.6f}" == score_rows(finished_run.out)[-1][column]
    assert f"{score['num_classes']:,} classes with a positive counted, {score['num_absent']:,} of them absent" in plain
    assert f"{score['num_ignored']:,} other classes of the file not counted" in plain
    assert (score["num_repeated_ratings"], score["num_contradictory_ratings"]) == (0, 0)


# --- estimate, locate ------------------------------------------------------------------------------------------------


def test_estimate_as_json(tiny_recipe: Path) -> None:
    shown = succeeds("estimate", tiny_recipe, "--json")
    assert shown.err == ""
    found = parsed(shown.out)
    assert [cost["stage"] for cost in found["costs"]] == STAGES[:-1]
    assert found["processes"] == 1
    # Only the times differ from call to call.
    rows = {line.split()[0]: line.split() for line in succeeds("estimate", tiny_recipe).out.splitlines() if line}
    recipe = read_recipe(tiny_recipe)
    for cost in found["costs"]:
        row = rows[cost["stage"]]
        assert row[1:7] == [
            f"{cost['parameters'] / 1e6:,.1f}M",
            f"{cost['trained'] / 1e6:,.1f}M",
            *f"{cost['examples']} x {cost['frames']}".split(),
            f"{cost['flops'] / 1e12:.3f}",
        ]
        assert f"{cost['memory'] / 2**30:.2f}" == row[7]
        assert cost["steps"] == recipe.base_models["dbof"].training.steps == int(row[-3])
    assert found["device"] in words(succeeds("estimate", tiny_recipe, "--only", "pretrain/dbof").out)
    only = parsed(succeeds("estimate", tiny_recipe, "--json", "--only", "finetune").out)
    assert [cost["stage"] for cost in only["costs"]] == STAGES[2:-1]


def test_locate_as_json(finished_run: FinishedRun, tiny_dataset: Path, places: list[object]) -> None:
    catalog = Catalog.load(tiny_dataset / "segment/test")
    options = ["--run", finished_run.out, *places, "--top", 5, "--threshold", 0.001]
    shown = succeeds("locate", catalog.video_ids[3], *options, "--json")
    assert shown.err == ""
    [timeline] = parsed(shown.out)
    length = int(catalog.num_frames[3])
    assert (timeline["video_id"], timeline["seconds"]) == (catalog.video_ids[3], length)
    assert timeline["threshold"] == 0.001
    assert timeline["starts"] == list(range(0, length, 5))
    plain = succeeds("locate", catalog.video_ids[3], *options).out.splitlines()
    assert [line.split("  ")[0].strip() for line in plain[3:8]] == [concept["name"] for concept in timeline["concepts"]]
    for line, concept in zip(plain[3:8], timeline["concepts"], strict=True):
        assert concept["peak"] == max(concept["probabilities"])
        assert f" {concept['peak']:.2f} " in line
        assert len(concept["probabilities"]) == len(timeline["starts"])
        spans = [f"{start // 60}:{start % 60:02}-{end // 60}:{end % 60:02}" for start, end in concept["spans"]]
        assert line.endswith(", ".join(spans))
    peaks = [concept["peak"] for concept in timeline["concepts"]]
    assert peaks == sorted(peaks, reverse=True)
    assert np.isfinite(peaks).all()


def test_locate_as_json_of_a_shard(finished_run: FinishedRun, tiny_dataset: Path, tmp_path: Path) -> None:
    [shard] = write_shards(tmp_path, random_videos(5), num_shards=1)
    options = ["--run", finished_run.out, "--vocabulary", tiny_dataset, "--json"]
    shown = succeeds("locate", shard, *options, "--limit", 2)
    assert [timeline["video_id"] for timeline in parsed(shown.out)] == ["0000", "0001"]
    assert shown.err.strip() == "... and 3 more videos; --limit shows more"


# --- Processes -------------------------------------------------------------------------------------------------------


def test_standard_output_of_a_process_contains_only_json(
    finished_run: FinishedRun, tiny_dataset: Path, tiny_recipe: Path, places: list[object]
) -> None:
    """Libraries may write to the file descriptor, which only a separate process shows."""
    video = Catalog.load(tiny_dataset / "segment/test").video_ids[0]
    submission = finished_run.out / "submission.csv"
    for arguments in (
        ["describe", tiny_dataset],
        ["check", submission, *places],
        ["evaluate", submission, "--truth", tiny_dataset / "segment/test_ratings.csv"],
        ["estimate", tiny_recipe, "--only", "pretrain/dbof"],
        ["locate", video, "--run", finished_run.out, *places],
    ):
        shown = run_command(*arguments, "--json", "--quiet")
        assert (shown.status, shown.err) == (0, "")
        assert shown.out == json.dumps(parsed(shown.out), indent=2, ensure_ascii=False) + "\n"
