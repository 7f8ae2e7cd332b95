"""TensorFlow and the package read each other's shards with equal values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.rows import labels_of, ratings_of
from tests.support.tensorflow import read_with_tensorflow, tf
from tests.support.tiny_shards import TinyVideo, random_videos, write_shard, write_shards, write_video_level_shard
from yt8m.dataset.frames import FrameReader
from yt8m.dataset.indexing import index_folder
from yt8m.dataset.problems import Oddity
from yt8m.shards.records import read_video_level_shard
from yt8m.shards.tfrecord import iterate_records


def written_by_tensorflow(path: Path, videos: list[TinyVideo]) -> None:
    def integers(values: Any) -> Any:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    def strings(values: Any) -> Any:
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))

    with tf.io.TFRecordWriter(str(path)) as writer:
        for video in videos:
            context = {"id": strings([video.id.encode()]), "labels": integers(video.labels)}
            if video.ratings:
                labels, starts, scores = zip(*video.ratings, strict=True)
                context["segment_labels"] = integers(labels)
                context["segment_start_times"] = integers(starts)
                context["segment_end_times"] = integers([start + 5 for start in starts])
                context["segment_scores"] = tf.train.Feature(float_list=tf.train.FloatList(value=scores))
            lists = {
                name: tf.train.FeatureList(feature=[strings([frame[span].tobytes()]) for frame in video.frames])
                for name, span in (("rgb", slice(0, 1024)), ("audio", slice(1024, 1152)))
            }
            example = tf.train.SequenceExample(
                context=tf.train.Features(feature=context), feature_lists=tf.train.FeatureLists(feature_list=lists)
            )
            writer.write(example.SerializeToString())


def test_tensorflow_reads_every_field_that_the_writer_writes(tmp_path: Path) -> None:
    videos = random_videos(4, ratings_per_video=5, label_ids=[0, 127, 128, 3861])
    videos += random_videos(2, seed=1, labeled=False, num_frames=(1, 3), id_prefix="t")
    found = read_with_tensorflow(write_shard(tmp_path / "a.tfrecord", videos))
    assert len(found) == len(videos)
    for theirs, video in zip(found, videos, strict=True):
        labels, starts, scores = zip(*video.ratings, strict=True) if video.ratings else ((), (), ())
        assert (theirs["id"], theirs["labels"]) == (video.id, list(video.labels))
        assert theirs["segment_labels"] == list(labels)
        assert theirs["segment_start_times"] == list(starts)
        assert theirs["segment_end_times"] == [start + 5 for start in starts]
        assert theirs["segment_scores"] == list(scores)
        np.testing.assert_array_equal(theirs["frames"], video.frames)


def test_the_reader_reads_every_field_that_tensorflow_writes(tmp_path: Path) -> None:
    videos = random_videos(4, ratings_per_video=5, label_ids=[0, 127, 128, 3861])
    videos += random_videos(2, seed=1, labeled=False, num_frames=(1, 3), id_prefix="t")
    written_by_tensorflow(tmp_path / "a.tfrecord", videos)
    catalog = index_folder(tmp_path)
    reader = FrameReader(catalog)
    assert not catalog.problems
    assert (catalog.rgb_stride == 1033).all()
    assert (catalog.audio_stride == 137).all()
    for row, video in enumerate(videos):
        assert catalog.id_of(row) == video.id
        assert labels_of(catalog, row).tolist() == list(video.labels)
        theirs = sorted((start, label, int(score)) for label, start, score in video.ratings)
        ours = ratings_of(catalog, row)
        assert list(zip(ours.start_seconds, ours.label_ids, ours.values, strict=True)) == theirs
        np.testing.assert_array_equal(reader.read(row), video.frames)


@pytest.mark.parametrize("between", [b"", b"\x7a\x03odd"], ids=["equally spaced", "not equally spaced"])
def test_whole_numbers_of_the_other_type_are_read(between: bytes, tmp_path: Path) -> None:
    """Scores as int64 and everything else as float, in records whose frames are found by stride and one by one."""

    def whole(values: Any) -> Any:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    def floats(values: Any) -> Any:
        return tf.train.Feature(float_list=tf.train.FloatList(value=values))

    context = {
        "id": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"abcd"])),
        "labels": floats([3, 3861]),
        "segment_labels": floats([7, 8, 9]),
        "segment_start_times": floats([0, 5, 0]),
        "segment_end_times": floats([5, 10, 5]),
        "segment_scores": whole([0, 1, 2]),
    }
    message = tf.train.SequenceExample(context=tf.train.Features(feature=context))
    (video,) = random_videos(1, num_frames=(8, 8))
    for name, span in (("rgb", slice(0, 1024)), ("audio", slice(1024, 1152))):
        for number, frame in enumerate(video.frames):
            feature = message.feature_lists.feature_list[name].feature.add()
            if number == 3:
                feature.MergeFromString(between)  # An unknown field.
            feature.bytes_list.value.append(frame[span].tobytes())
    with tf.io.TFRecordWriter(str(tmp_path / "a.tfrecord")) as writer:
        writer.write(message.SerializeToString())
    catalog = index_folder(tmp_path)
    assert (catalog.rgb_stride[0], catalog.audio_stride[0]) == ((0, 0) if between else (1033, 137))
    assert labels_of(catalog, 0).tolist() == [3, 3861]
    ratings = ratings_of(catalog, 0)
    columns = (ratings.start_seconds.tolist(), ratings.label_ids.tolist(), ratings.values.tolist())
    assert list(zip(*columns, strict=True)) == [(0, 7, 0), (5, 8, 1)]
    assert catalog.oddities == {Oddity.RATINGS_SCORE.value: 1}
    np.testing.assert_array_equal(FrameReader(catalog).read(0), video.frames)


def test_records_are_those_that_tensorflow_finds(tmp_path: Path) -> None:
    written_by_tensorflow(tmp_path / "a.tfrecord", random_videos(3))
    for path in (tmp_path / "a.tfrecord", *write_shards(tmp_path, random_videos(3), num_shards=1)):
        ours = [bytes(record.payload) for record in iterate_records(path.read_bytes(), path)]
        assert ours == [serialized.numpy() for serialized in tf.data.TFRecordDataset(str(path))]


def test_tensorflow_serializes_a_record_to_as_many_bytes() -> None:
    payload = random_videos(1, ratings_per_video=4)[0].encoded()
    theirs = tf.train.SequenceExample.FromString(payload)
    assert len(theirs.SerializeToString()) == len(payload)
    assert tf.train.SequenceExample.FromString(theirs.SerializeToString()) == theirs


def test_tensorflow_reads_video_level_shards_with_equal_values(tmp_path: Path, shared_data: Path) -> None:
    paths = [
        write_video_level_shard(tmp_path / "ours.tfrecord", 5),
        shared_data / "yt8m_video_level" / "validate0059.tfrecord",
    ]
    features = {
        "id": tf.io.FixedLenFeature([], tf.string),
        "labels": tf.io.VarLenFeature(tf.int64),
        "mean_rgb": tf.io.FixedLenFeature([1024], tf.float32),
        "mean_audio": tf.io.FixedLenFeature([128], tf.float32),
    }
    for path in paths:
        count = 0
        dataset = tf.data.TFRecordDataset(str(path))
        for ours, serialized in zip(read_video_level_shard(path), dataset, strict=True):
            theirs = tf.io.parse_single_example(serialized, features)
            assert (ours.id.encode(), ours.labels) == (theirs["id"].numpy(), tuple(theirs["labels"].values.numpy()))
            np.testing.assert_array_equal(ours.mean_rgb, theirs["mean_rgb"].numpy())
            np.testing.assert_array_equal(ours.mean_audio, theirs["mean_audio"].numpy())
            count += 1
        assert count >= 5


def test_tensorflow_reads_a_real_video_with_equal_values(shared_data: Path) -> None:
    folder = shared_data / "yt8m_frame_level"
    (theirs,) = read_with_tensorflow(folder / "SjJ3.tfrecord")
    catalog = index_folder(folder)
    assert theirs["frames"].shape == (170, 1152)
    assert (catalog.id_of(0), labels_of(catalog, 0).tolist()) == (theirs["id"], theirs["labels"]) == ("SjJ3", [11])
    np.testing.assert_array_equal(FrameReader(catalog).read(0), theirs["frames"])
