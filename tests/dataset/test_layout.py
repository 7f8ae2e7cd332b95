"""Names of shards, and folders of shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.tiny_shards import random_videos, write_shard
from yt8m.dataset.frames import FrameReader
from yt8m.dataset.indexing import index_and_save
from yt8m.dataset.layout import find_shards, is_shard_name


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
