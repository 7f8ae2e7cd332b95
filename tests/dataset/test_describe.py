"""Descriptions of catalogs: counts of videos, labels, ratings and problems."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from tests.support.tiny_shards import TinyVideo, random_videos, write_records, write_shard, write_shards
from yt8m.dataset.describe import Summary, describe
from yt8m.dataset.indexing import index_folder
from yt8m.dataset.problems import Oddity
from yt8m.vocabulary import Vocabulary


def test_a_description_counts_videos_labels_and_ratings(tmp_path: Path) -> None:
    videos = random_videos(7, seed=3, num_frames=(60, 90), ratings_per_video=5, label_ids=[3, 5, 8, 13])
    videos.append(TinyVideo("plain", np.zeros((30, 1152), np.uint8)))
    write_shards(tmp_path, videos)
    vocabulary = Vocabulary(np.array([13, 3, 99]), ("thirteen", "three", "never"))
    catalog = index_folder(tmp_path)
    found = describe(catalog, vocabulary)

    lengths = [len(video.frames) for video in videos]
    ratings = [(video.id, *rating) for video in videos for rating in video.ratings]
    assert (found.num_shards, found.num_videos) == (2, 8)
    assert found.num_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert found.num_frames == sum(lengths)
    assert found.hours == pytest.approx(sum(lengths) / 3600)
    assert found.frames_per_video == Summary(min(lengths), float(np.median(lengths)), max(lengths))
    assert found.labels_per_video == pytest.approx(sum(len(video.labels) for video in videos) / 8)
    assert found.videos_without_labels == 1
    assert found.videos_with_classes == sum(bool({3, 13} & set(video.labels)) for video in videos)
    assert found.ratings == len(ratings) == 35
    assert found.positive_ratings == sum(value == 1.0 for *_, value in ratings)
    assert found.rated_videos == 7
    assert found.rated_segments == len({(video_id, start) for video_id, _, start, _ in ratings}) < 35
    # Segments start at 30, 35, ... while two more whole or partial segments follow.
    assert found.evaluated_segments == sum(
        len([start for start in range(30, length, 5) if start + 10 < length]) for length in lengths
    )
    of_class = [sum(label == wanted for _, label, *_ in ratings) for wanted in (13, 3, 99)]
    assert found.ratings_per_class == Summary(0, float(np.median(of_class)), max(of_class))
    assert found.classes_rated == 2
    assert found.oddities == {Oddity.NO_LABELS: 1}
    assert (found.problems, found.num_problems) == ((), 0)

    without = describe(catalog)
    of_label = [sum(label == wanted for _, label, *_ in ratings) for wanted in (3, 5, 8, 13)]
    assert without.ratings_per_class == Summary(min(of_label), float(np.median(of_label)), max(of_label))
    assert (without.classes_rated, without.videos_with_classes) == (4, None)
    # Descriptions contain no numpy types, so they can be written as JSON.
    for description in (found, without):
        plain = asdict(description) | {"folder": str(tmp_path)}
        assert json.loads(json.dumps(plain)) == plain | {"problems": []}


def test_a_description_without_ratings_counts_zeros(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tfrecord", random_videos(2))
    write_records(tmp_path / "b.tfrecord", [b"garbage"])
    found = describe(index_folder(tmp_path))
    assert (found.ratings, found.rated_segments, found.rated_videos, found.classes_rated) == (0, 0, 0, 0)
    assert found.ratings_per_class is None
    assert (len(found.problems), found.num_problems) == (1, 1)
