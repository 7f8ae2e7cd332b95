"""Segments to predict and rank, and the order in which ties are ranked."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from yt8m.dataset.sampling import GOLDEN_GAMMA, splitmix64
from yt8m.errors import Yt8mError
from yt8m.shards.ids import SEGMENT_SECONDS, id_fault


def segment_hashes(
    video_ids: Sequence[str], rows: NDArray[np.int32], start_seconds: NDArray[np.int32]
) -> NDArray[np.uint64]:
    """Hash segments to 64 bits, the same on every machine and in every version, to break ties.

    The hash of a video is BLAKE2b of its id in UTF-8, 8 bytes, read as a little-endian integer h. The hash of a segment
    is the output function of SplitMix64 at h + (start + 1) * 0x9E3779B97F4A7C15 modulo 2^64, so segments of one video
    never collide.

    Args:
        video_ids: Ids of videos.
        rows: Position of each segment's video in `video_ids`, (S,).
        start_seconds: Start of each segment, (S,).

    Returns:
        uint64 (S,).
    """
    digests = (hashlib.blake2b(video_id.encode(), digest_size=8).digest() for video_id in video_ids)
    of_videos = np.array([int.from_bytes(digest, "little") for digest in digests], np.uint64)
    steps = start_seconds.astype(np.uint64) + np.uint64(1)
    return splitmix64(of_videos[rows] + steps * GOLDEN_GAMMA)


@dataclass(frozen=True, eq=False)
class ListedSegments:
    """Segments of one class with their probabilities.

    Args:
        video_ids: Ids of videos, those of other classes among them.
        rows: Position of each segment's video in `video_ids`, int32 (n,).
        start_seconds: Start of each segment, int32 (n,).
        probabilities: From 0 to 1, float32 (n,); scores, where they are not calibrated.
    """

    video_ids: Sequence[str]
    rows: NDArray[np.int32]
    start_seconds: NDArray[np.int32]
    probabilities: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, eq=False)
class Segments:
    """Segments to predict and rank.

    Args:
        video_ids: Ids of videos: distinct, and such as a submission can hold (see `id_fault`).
        rows: Position of each segment's video in `video_ids`, int32 (S,).
        start_seconds: Start of each segment, a multiple of 5, int32 (S,).

    Raises:
        Yt8mError: An id or a start is not allowed in a submission, or a video or segment occurs twice.
    """

    video_ids: Sequence[str]
    rows: NDArray[np.int32]
    start_seconds: NDArray[np.int32]

    def __post_init__(self) -> None:
        if self.rows.ndim != 1 or self.rows.shape != self.start_seconds.shape:
            raise ValueError(f"rows {self.rows.shape} and start_seconds {self.start_seconds.shape} must both be (S,).")
        if len(self) and not (self.rows.min() >= 0 and self.rows.max() < len(self.video_ids)):
            raise ValueError(f"rows must be positions in the {len(self.video_ids)} video ids.")
        seen: set[str] = set()
        for video_id in self.video_ids:
            if (fault := id_fault(video_id.encode())) is not None:
                raise Yt8mError(f"The video id {video_id!r} is not allowed in a submission: it {fault}.")
            if video_id in seen:
                raise Yt8mError(f"The video id {video_id!r} occurs twice among the videos to rank; remove one of them.")
            seen.add(video_id)
        off_grid = np.flatnonzero((self.start_seconds < 0) | (self.start_seconds % SEGMENT_SECONDS != 0))
        if len(off_grid):
            raise Yt8mError(
                f"The segment {self.name(off_grid[0])} cannot be ranked: starts are multiples of {SEGMENT_SECONDS} seconds."
            )
        flat = (self.rows.astype(np.int64) << 32) | self.start_seconds
        values, first = np.unique(flat, return_index=True)
        if len(values) != len(flat):
            repeated = np.setdiff1d(np.arange(len(flat)), first, assume_unique=True)[0]
            raise Yt8mError(f"The segment {self.name(repeated)} occurs twice among the segments to rank.")

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, position: int | np.integer) -> str:
        """Name of a segment in a submission: `video:start`."""
        return f"{self.video_ids[int(self.rows[position])]}:{self.start_seconds[position]}"

    @cached_property
    def order(self) -> NDArray[np.int32]:
        """Positions in the order of ties, int32 (S,): by hash, then video id (by code points), then start."""
        by_id = np.array(sorted(range(len(self.video_ids)), key=self.video_ids.__getitem__), np.int64)
        place_of_id = np.empty(len(by_id), np.int64)
        place_of_id[by_id] = np.arange(len(by_id))
        hashes = segment_hashes(self.video_ids, self.rows, self.start_seconds)
        return np.lexsort((self.start_seconds, place_of_id[self.rows], hashes)).astype(np.int32)

    @cached_property
    def ranks(self) -> NDArray[np.uint32]:
        """Rank of each segment in `order`, uint32 (S,)."""
        ranks = np.empty(len(self), np.uint32)
        ranks[self.order] = np.arange(len(self), dtype=np.uint32)
        return ranks
