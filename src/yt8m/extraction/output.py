"""The folder that an extraction fills: its settings, the names of its shards, and what stands for missing sound."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from yt8m.errors import UsageError
from yt8m.extraction.videos import Video
from yt8m.features import YOUTUBE8M
from yt8m.files import written_atomically
from yt8m.settings import MAX_SIZE, Settings, read_yaml, to_yaml, validated

SETTINGS_FILE = "extraction.yaml"

_SHARD_PREFIX = "videos"


class ExtractionSettings(Settings):
    """What decides the bytes of the shards."""

    extractor: str
    """Name of the networks."""
    digest: str
    """Digest of their weights."""
    max_seconds: int | None = Field(default=None, ge=1, le=MAX_SIZE)
    """Seconds of a video to extract; all by default."""
    videos_per_shard: int = Field(default=256, ge=1, le=100_000)
    """Videos of a shard."""


@dataclass(frozen=True)
class Extracted:
    """The result of an extraction.

    Args:
        videos: All videos of the folder, those of earlier extractions included.
        num_new: Videos extracted now.
        num_known: Videos of the input that were there before.
        failed: Videos of the input that could not be extracted.
    """

    videos: list[Video]
    num_new: int
    num_known: int
    failed: list[Video]


def require_settings(out: Path, settings: ExtractionSettings) -> None:
    """Keep the settings with the shards, and refuse others."""
    path = out / SETTINGS_FILE
    if path.is_file():
        found = validated(ExtractionSettings, read_yaml(path), str(path))
        for name in ExtractionSettings.model_fields:
            before, now = getattr(found, name), getattr(settings, name)
            if before != now:
                raise UsageError(
                    f"{out}: was extracted with {name} {before}, not {now}; give the same, or another output folder."
                )
        return
    with written_atomically(path) as temporary:
        temporary.write_text(to_yaml(settings), encoding="utf-8")


def next_shard(out: Path, videos: list[Video]) -> Path:
    """The shard after the last one that contains some of these videos."""
    numbers = (video.shard.removeprefix(_SHARD_PREFIX).split(".")[0] for video in videos if video.is_extracted)
    return out / f"{_SHARD_PREFIX}{1 + max(map(int, numbers), default=-1):04d}.tfrecord"


def sound_of_frames(audio: NDArray[np.uint8], num_frames: int) -> tuple[NDArray[np.uint8], list[str]]:
    """Features of sound for each frame.

    Args:
        audio: Features of the sound that there is, uint8 (n, 128), n from 0.
        num_frames: Number of frames.

    Returns:
        uint8 (num_frames, 128), and what is odd about them. For sound that is missing, see `Features.missing`.
    """
    missing = max(0, num_frames - len(audio))
    padded = np.concatenate([audio[:num_frames], np.tile(YOUTUBE8M.missing("audio"), (missing, 1))])
    notes = [] if not missing else ["no sound"] if not len(audio) else [f"no sound in the last {missing} seconds"]
    return padded, notes


NO_SOUND = np.empty((0, YOUTUBE8M.bytes_of("audio")), np.uint8)
"""Features of a video without sound, for `sound_of_frames`."""
