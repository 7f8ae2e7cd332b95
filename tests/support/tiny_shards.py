"""Tiny shards of random videos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.support.video_level import encode_video_level
from yt8m.shards.writer import ShardWriter, encode_video

Rating = tuple[int, int, float]
"""Label id, start in seconds, 0 or 1."""


@dataclass(frozen=True, eq=False)
class TinyVideo:
    """A video to write to a shard, with frames uint8 (T, 1152)."""

    id: str
    frames: NDArray[np.uint8]
    labels: tuple[int, ...] = ()
    ratings: tuple[Rating, ...] = ()

    def encoded(self) -> bytes:
        return encode_video(self.id, self.frames, self.labels, ratings=self.ratings)


def random_videos(
    count: int,
    *,
    seed: int = 0,
    num_frames: tuple[int, int] = (60, 90),
    label_ids: Sequence[int] = range(20),
    labeled: bool = True,
    ratings_per_video: int = 0,
    id_prefix: str = "",
) -> list[TinyVideo]:
    """Videos of random bytes.

    Args:
        count: Number of videos.
        seed: Seed of the random generator.
        num_frames: Minimum and maximum number of frames.
        label_ids: Labels to choose from, 1 to 3 per video.
        labeled: Whether videos have labels.
        ratings_per_video: Number of ratings, for labels in `label_ids` and segments from second 30 to 10 seconds before
            the end, each (label, start) at most once. Short videos have fewer.
        id_prefix: Prefix of each id, so that several calls can create different ids.
    """
    rng = np.random.default_rng(seed)
    videos = []
    for number in range(count):
        length = int(rng.integers(num_frames[0], num_frames[1] + 1))
        frames = rng.integers(0, 256, (length, 1152), np.uint8)
        labels = rng.choice(label_ids, min(int(rng.integers(1, 4)), len(label_ids)), replace=False)
        pairs = [(int(label), start) for start in range(30, length - 10, 5) for label in label_ids]
        chosen = rng.choice(len(pairs), min(ratings_per_video, len(pairs)), replace=False) if pairs else []
        ratings = tuple((*pairs[i], float(rng.integers(0, 2))) for i in chosen)
        videos.append(
            TinyVideo(
                f"{id_prefix}{number:04d}",
                frames,
                tuple(sorted(labels.tolist())) if labeled else (),
                ratings,
            )
        )
    return videos


def write_shard(path: Path, videos: Sequence[TinyVideo]) -> Path:
    """Write videos to one shard."""
    return write_records(path, [video.encoded() for video in videos])


def write_shards(folder: Path, videos: Sequence[TinyVideo], num_shards: int = 2, prefix: str = "tiny") -> list[Path]:
    """Divide videos among `num_shards` shards, in the order that the catalog of the folder then has."""
    ends = np.linspace(0, len(videos), num_shards + 1).astype(int)
    return [
        write_shard(folder / f"{prefix}{shard:04d}.tfrecord", videos[ends[shard] : ends[shard + 1]])
        for shard in range(num_shards)
    ]


def write_video_level_shard(path: Path, count: int, *, seed: int = 0, label_ids: Sequence[int] = range(20)) -> Path:
    """Write a video-level shard of random means."""
    rng = np.random.default_rng(seed)
    payloads = [
        encode_video_level(
            f"{number:04d}",
            rng.normal(size=1024).astype(np.float32),
            rng.normal(size=128).astype(np.float32),
            sorted(rng.choice(label_ids, min(2, len(label_ids)), replace=False).tolist()),
        )
        for number in range(count)
    ]
    return write_records(path, payloads)


def write_records(path: Path, payloads: Sequence[bytes]) -> Path:
    """Write any payloads to one shard."""
    with ShardWriter(path) as writer:
        for payload in payloads:
            writer.write(payload)
    return path
