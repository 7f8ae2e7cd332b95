"""Damaged, irregular and foreign shards: skipped records, repaired records, and errors."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.support.command import refused, succeeds
from tests.support.command import yt8m as command
from tests.support.files import files_in
from tests.support.foreign_records import record_without_rgb, write_shard_of_another_dataset
from tests.support.rows import labels_of, ratings_of
from tests.support.tiny_run import FinishedRun
from tests.support.tiny_shards import TinyVideo, random_videos, write_records, write_shard
from yt8m.dataset.catalog import FILE_NAME, Catalog
from yt8m.shards.tfrecord import frame_record


def indexed(folder: Path) -> tuple[list[str], str]:
    """Index a folder with damage; return the listed problems and the last line."""
    outcome = command("index", folder)
    assert outcome.status == 1
    *problems, last = outcome.err.splitlines()
    assert "Traceback" not in outcome.err
    assert last.startswith("yt8m: ")
    return problems, last


def test_the_truncated_record_of_a_shard_is_skipped(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.tfrecord", random_videos(3))
    write_shard(tmp_path / "b.tfrecord", random_videos(2, id_prefix="b"))
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 5)
    problems, last = indexed(tmp_path)
    assert len(problems) == 1
    assert problems[0].startswith(f"{path}, record 2, byte ")
    assert "the shard ends inside a record (5 bytes are missing)" in problems[0]
    assert last == f"yt8m: {tmp_path}: 1 damaged place was skipped, as listed above."
    assert Catalog.load(tmp_path).video_ids == ["0000", "0001", "b0000", "b0001"]


def test_a_record_with_a_wrong_checksum_is_skipped(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.tfrecord", random_videos(3))
    content = bytearray(path.read_bytes())
    (length,) = struct.unpack_from("<Q", content)
    content[12 + length // 2] ^= 1
    path.write_bytes(content)
    problems, _ = indexed(tmp_path)
    expected = f"{path}, record 0, byte 12: the checksum of the record's payload is wrong; the record was skipped."
    assert problems == [expected]
    assert Catalog.load(tmp_path).video_ids == ["0001", "0002"]
    # Only the checksum is wrong, and --no-verify ignores it.
    assert succeeds("index", tmp_path, "--no-verify").err == ""
    assert len(Catalog.load(tmp_path)) == 3


def test_a_record_without_rgb_is_kept_and_counted(tmp_path: Path) -> None:
    videos = random_videos(2)
    write_records(tmp_path / "a.tfrecord", [videos[0].encoded(), record_without_rgb(), videos[1].encoded()])
    shown = succeeds("index", tmp_path)
    assert "videos without rgb frames (kept, with values of 0)" in " ".join(shown.out.split())
    catalog = Catalog.load(tmp_path)
    assert len(catalog) == 3
    assert catalog.num_problems == 0


def test_a_folder_without_a_usable_record_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tfrecord").write_bytes(b"")
    (tmp_path / "b.tfrecord").write_bytes(b"not a shard at all, but long enough for a header")
    for name in ("index", "describe"):
        outcome = command(name, tmp_path)
        assert outcome.status == 1
        last = outcome.err.splitlines()[-1]
        assert last.startswith(f"yt8m: {tmp_path}: no usable video in 2 shards: ")
    assert files_in(tmp_path) == {"a.tfrecord", "b.tfrecord"}


def test_irregular_records_are_counted_and_repaired(tmp_path: Path) -> None:
    frames = np.zeros((60, 1152), np.uint8)
    ratings = [(3, 30, 1.0), (3, 60, 1.0), (3, 500, 0.0), (3, 33, 0.0), (5000, 35, 1.0)]
    write_shard(tmp_path / "a.tfrecord", [TinyVideo("aaaa", frames, (3, 3862, 9999), tuple(ratings))])
    shown = succeeds("index", tmp_path)
    assert shown.err == ""
    for expected in (
        "labels outside the vocabulary (dropped): 2",
        "ratings outside the video (dropped): 2",
        "ratings not at a multiple of 5 seconds (dropped): 1",
        "ratings of labels outside the vocabulary (dropped): 1",
    ):
        assert expected in shown.out
        assert expected in succeeds("describe", tmp_path).out
    catalog = Catalog.load(tmp_path)
    assert labels_of(catalog, 0).tolist() == [3]
    assert [column.tolist() for column in ratings_of(catalog, 0)] == [[3], [30], [1]]


@pytest.mark.parametrize("kind", ["video-level", "AudioSet"])
@pytest.mark.parametrize("name", ["index", "predict", "evaluate"])
def test_shards_of_another_dataset_are_refused(
    commands: Callable[[Path], dict[str, list[object]]], tmp_path: Path, name: str, kind: str
) -> None:
    folder = tmp_path / "shards"
    expected = write_shard_of_another_dataset(folder, kind)
    sentence = refused(1, *commands(folder)[name])
    assert sentence.startswith(f"{folder / 'train0000.tfrecord'}, record 0")
    assert expected in sentence
    assert files_in(tmp_path) == {"shards/train0000.tfrecord"}


@pytest.mark.parametrize("kind", ["video-level", "AudioSet"])
def test_a_run_on_shards_of_another_dataset_is_refused(
    tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path, out: Path, kind: str
) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_dataset, data)
    shutil.rmtree(data / "segment/train")
    expected = write_shard_of_another_dataset(data / "segment/train", kind)
    assert expected in refused(1, "run", tiny_recipe, "--data", data, "--out", out)
    assert files_in(out) == set()


def test_frame_level_shards_are_refused_as_sources(tiny_dataset: Path, out: Path) -> None:
    arguments = ["--sources", tiny_dataset / "video/train", "--vocabulary", tiny_dataset]
    assert "this is a frame-level shard" in refused(1, "splice", out, *arguments)
    assert not out.exists()


def test_real_shards_of_another_dataset_are_refused(shared_data: Path, tmp_path: Path) -> None:
    for number, (kind, expected) in enumerate(
        [("yt8m_video_level", "this is a video-level shard"), ("audioset_frame_level", "this is an AudioSet shard")]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        real = sorted((shared_data / kind).rglob("*.tfrecord"))[0]
        shutil.copy(real, folder)
        sentence = refused(1, "index", folder)
        assert sentence.startswith(f"{folder / real.name}, record 0")
        assert expected in sentence
        assert files_in(folder) == {real.name}


def test_a_real_shard_is_indexed(shared_data: Path, tmp_path: Path) -> None:
    shutil.copy(next((shared_data / "yt8m_frame_level").glob("*.tfrecord")), tmp_path)
    assert succeeds("index", tmp_path).out.startswith(f"{tmp_path / FILE_NAME}: 1 videos, ")
    assert labels_of(Catalog.load(tmp_path), 0).tolist() == [11]


def test_shards_that_changed_since_they_were_indexed_are_indexed_again(
    finished_run: FinishedRun, tiny_dataset: Path, tmp_path: Path, out: Path
) -> None:
    """Predictions of the previous shards are refused."""
    folder = tmp_path / "test"
    shutil.copytree(tiny_dataset / "segment/test", folder)
    model = finished_run.model("finetune/bare")
    shards = ["--shards", folder, "--vocabulary", tiny_dataset]
    succeeds("predict", model, *shards, "--store", out, "--accelerator", "cpu")
    write_shard(folder / "test0003.tfrecord", random_videos(1, id_prefix="new"))
    sentence = refused(2, "merge", out, *shards, "--out", tmp_path / "submission.csv")
    assert sentence == f"{out}: was predicted from other videos than those of {folder}."
    assert "new0000" in Catalog.load(folder).video_ids


@pytest.mark.parametrize("name", ["describe", "predict", "merge", "evaluate"])
def test_damaged_records_are_reported_and_skipped(
    finished_run: FinishedRun, tiny_dataset: Path, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "rated"
    shutil.copytree(tiny_dataset / "segment/train", folder)
    path = folder / "rated0004.tfrecord"
    path.write_bytes(path.read_bytes()[:-100])
    model = finished_run.model("finetune/bare")
    shards = ["--shards", folder, "--vocabulary", tiny_dataset]
    predictions, submission = tmp_path / "predictions", tmp_path / "submission.csv"
    calls: dict[str, list[object]] = {
        "predict": ["predict", model, *shards, "--store", predictions, "--accelerator", "cpu"],
        "merge": ["merge", predictions, *shards, "--out", submission],
        "evaluate": ["evaluate", submission, "--truth", folder],
        "describe": ["describe", folder],
    }
    needed = list(calls)[: list(calls).index(name)] if name != "describe" else []
    for before in needed:
        succeeds(*calls[before])
    warned = [line for line in succeeds(*calls[name]).err.splitlines() if "segment_vocabulary.csv" not in line]
    assert len(warned) == 1
    assert warned[0].startswith(f"{path}, record 0")
    assert warned[0].endswith("the rest of the shard was skipped.")


@pytest.mark.parametrize("kind", ["video-level", "AudioSet"])
def test_locate_refuses_shards_of_another_dataset(
    finished_run: FinishedRun, tiny_dataset: Path, tmp_path: Path, kind: str
) -> None:
    expected = write_shard_of_another_dataset(tmp_path, kind)
    shard = tmp_path / "train0000.tfrecord"
    sentence = refused(1, "locate", shard, "--run", finished_run.out, "--vocabulary", tiny_dataset)
    assert sentence.startswith(f"{shard}, record 0")
    assert expected in sentence


def test_the_test_shards_have_the_framing_of_real_shards(tmp_path: Path) -> None:
    payload = random_videos(1)[0].encoded()
    assert write_records(tmp_path / "a.tfrecord", [payload]).read_bytes() == frame_record(payload)
