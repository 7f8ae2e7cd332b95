"""Records of other datasets and damaged records, to write into shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.tiny_shards import write_records, write_video_level_shard
from yt8m.shards.writer import message_class


def audioset_record() -> bytes:
    """A record of AudioSet: audio embeddings and no visual features."""
    message: Any = message_class("SequenceExample")()
    message.context.feature["video_id"].bytes_list.value.append(b"aaaaaaaaaaa")
    message.context.feature["labels"].int64_list.value.extend([1, 2])
    for _ in range(10):
        frame = message.feature_lists.feature_list["audio_embedding"].feature.add()
        frame.bytes_list.value.append(bytes(128))
    encoded: bytes = message.SerializeToString()
    return encoded


def record_without_rgb() -> bytes:
    """A frame-level record without visual features."""
    message: Any = message_class("SequenceExample")()
    message.context.feature["id"].bytes_list.value.append(b"aaaa")
    for _ in range(50):
        frame = message.feature_lists.feature_list["audio"].feature.add()
        frame.bytes_list.value.append(bytes(128))
    encoded: bytes = message.SerializeToString()
    return encoded


def write_shard_of_another_dataset(folder: Path, kind: str) -> str:
    """Write `train0000.tfrecord` with records that are not frame-level ones.

    Args:
        folder: Where to write it.
        kind: "video-level" or "AudioSet".

    Returns:
        A part of the message of the error that reading it raises.
    """
    shard = folder / "train0000.tfrecord"
    if kind == "video-level":
        write_video_level_shard(shard, 3)
        return "this is a video-level shard (one mean_rgb per video), and frame-level ones are needed"
    write_records(shard, [audioset_record()])
    return "this is an AudioSet shard"
