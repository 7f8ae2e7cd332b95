"""Names of shards, and folders of shards."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.tiny_shards import random_videos, write_shard
from yt8m.dataset.frames import FrameReader
from yt8m.dataset.indexing import index_and_save
from yt8m.dataset.layout import OFFICIAL_PARTS, PARTS, dataset_parts, find_shards, part_folder
from yt8m.errors import ShardError
from yt8m.shards.contents import ShardFile
from yt8m.shards.names import is_shard_name


@pytest.mark.parametrize(
    "name",
    [
        "train0000.tfrecord",
        "x.tfrecords",
        "part-00000-of-00100",
        "x.tfrecord-00000-of-00010",
        "x.tfrecords-00009-of-00010",
        "validate-00000-of-00100.tfrecord",
        "features.v2.tfrecord",
    ],
)
def test_names_of_shards_are_recognized(name: str) -> None:
    assert is_shard_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".train0000.tfrecord",
        ".train0000.tfrecord.part",
        ".tfrecord",
        "train0000.tfrecord.gz",
        "train0000.tfrecord.unfinished",
        "tfrecord",
        "catalog.parquet",
        "shards.txt",
        "part-00000",
        "00000-of-00100",
        "a/b.tfrecord",
    ],
)
def test_other_names_are_no_shards(name: str) -> None:
    assert not is_shard_name(name)


def test_shards_of_all_names_are_read(tmp_path: Path) -> None:
    videos = random_videos(4)
    names = ["a-00000-of-00002", "a-00001-of-00002", "b.tfrecord-00000-of-00001", "c.tfrecords"]
    for name, video in zip(names, videos, strict=True):
        write_shard(tmp_path / name, [video])
    (tmp_path / ".d.tfrecord").write_bytes(b"being written")
    (tmp_path / "notes.txt").write_text("no shard")
    assert [path.name for path in find_shards(tmp_path)] == names
    catalog = index_and_save(tmp_path)
    assert catalog.video_ids == [video.id for video in videos]
    reader = FrameReader(catalog)
    for row, video in enumerate(videos):
        np.testing.assert_array_equal(reader.read(row), video.frames)
    (tmp_path / "shards.txt").write_text("a-00001-of-00002\nc.tfrecords\n")
    assert [path.name for path in find_shards(tmp_path)] == ["a-00001-of-00002", "c.tfrecords"]


def official(folder: Path) -> Path:
    """A dataset in the layout of the official download."""
    for number, name in enumerate(OFFICIAL_PARTS.values()):
        write_shard(folder / name / "a0000.tfrecord", random_videos(1, id_prefix=str(number)))
        write_shard(folder / name / "a0001.tfrecord", random_videos(1, id_prefix=f"{number}x"))
    return folder


def test_the_layout_of_the_official_download_is_understood(tmp_path: Path) -> None:
    data = official(tmp_path)
    names = ["2/frame/train", "2/frame/validate", "3/frame/validate", "3/frame/test"]
    assert dataset_parts(data) == [data / name for name in names]
    assert [part_folder(data, part) for part in PARTS] == [data / name for name in names]
    (data / "video/train").mkdir(parents=True)
    assert part_folder(data, "video/train") == data / "video/train"
    assert part_folder(data / "missing", "video/train") == data / "missing/video/train"


@pytest.mark.parametrize("name", ["3/frame/validate", "segment/train"])
def test_lists_of_shards_may_have_the_names_of_both_layouts(tmp_path: Path, name: str) -> None:
    data = official(tmp_path / "official")
    (data / "shards.txt").write_text(f"{name}/a0001.tfrecord\n")
    assert [path.name for path in find_shards(data / "3/frame/validate")] == ["a0001.tfrecord"]
    assert len(find_shards(data / "3/frame/test")) == 2
    classic = tmp_path / "classic"
    (classic / "segment").mkdir(parents=True)
    (classic / "segment/train").symlink_to(data / "3/frame/validate")
    (classic / "shards.txt").write_text(f"{name}/a0000.tfrecord\n")
    assert [path.name for path in find_shards(classic / "segment/train")] == ["a0000.tfrecord"]


@pytest.mark.parametrize("kind", ["link", "loop", "empty", "folder", "pipe"])
def test_a_shard_that_cannot_be_read_is_skipped_and_reported(tmp_path: Path, kind: str) -> None:
    write_shard(tmp_path / "a.tfrecord", random_videos(2))
    path = tmp_path / "b.tfrecord"
    match kind:
        case "link":
            path.symlink_to(tmp_path / "gone.tfrecord")
        case "loop":
            path.symlink_to(path)
        case "empty":
            path.touch()
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
    catalog = index_and_save(tmp_path)
    assert len(catalog) == 2
    [problem] = catalog.problems
    assert problem.startswith(f"{path}: ")
    assert problem.endswith("; the shard was skipped.")
    assert catalog.is_current()
    assert (tmp_path / "catalog_report.csv").read_text().splitlines()[1].startswith("b.tfrecord,,,damage,")
    if kind in ("link", "empty"):
        write_shard(tmp_path / "gone.tfrecord" if kind == "link" else path, random_videos(1, id_prefix="b"))
        assert not catalog.is_current()


def test_a_shard_that_changes_while_it_is_indexed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Access to a map would kill the process."""
    path = write_shard(tmp_path / "a.tfrecord", random_videos(20))
    original = ShardFile.read_into

    def truncated_before_read(self: ShardFile, target: NDArray[np.uint8], position: int) -> None:
        if position:
            os.truncate(path, 200_000)
        original(self, target, position)

    monkeypatch.setattr(ShardFile, "read_into", truncated_before_read)
    with pytest.raises(ShardError, match=r"a\.tfrecord: was changed by another process while it was read"):
        index_and_save(tmp_path)
    assert not (tmp_path / "catalog.parquet").exists()
