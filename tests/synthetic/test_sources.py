"""Sources of spliced videos: read from video-level shards in their order."""

from pathlib import Path

import numpy as np
import pytest

from tests.support.tiny_shards import random_videos, write_shard, write_video_level_shard
from yt8m.errors import ShardError, UsageError
from yt8m.synthetic.splice import read_sources


def test_sources_are_read_in_the_order_of_shard_names(tmp_path: Path) -> None:
    for name, count, seed in (("b", 3, 1), ("a", 2, 0)):
        write_video_level_shard(tmp_path / f"{name}.tfrecord", count, seed=seed)
    sources = read_sources(tmp_path)
    assert (sources.means.shape, sources.means.dtype, len(sources)) == ((5, 1152), np.float32, 5)
    rng = np.random.default_rng(0)
    for row in range(2):
        expected = np.concatenate([rng.normal(size=1024), rng.normal(size=128)]).astype(np.float32)
        np.testing.assert_array_equal(sources.means[row], expected)
        assert sources.labels[row].tolist() == sorted(rng.choice(range(20), 2, replace=False).tolist())
    taken = sources.take(np.array([4, 0]))
    np.testing.assert_array_equal(taken.means, sources.means[[4, 0]])
    assert [labels.tolist() for labels in taken.labels] == [sources.labels[4].tolist(), sources.labels[0].tolist()]


def test_folders_without_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no such folder"):
        read_sources(tmp_path / "none")
    with pytest.raises(UsageError, match="contains no shards"):
        read_sources(tmp_path)
    write_shard(tmp_path / "b.tfrecord", random_videos(1, num_frames=(5, 5)))
    with pytest.raises(ShardError, match=r"b\.tfrecord, record 0"):
        read_sources(tmp_path)
    (tmp_path / "a.tfrecord").touch()
    with pytest.raises(ShardError, match=r"a\.tfrecord: the file is empty"):
        read_sources(tmp_path)
