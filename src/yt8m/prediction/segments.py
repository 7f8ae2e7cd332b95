"""Segments to predict and rank, and their total order."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from yt8m.errors import Yt8mError

_VIDEO_ID = re.compile(r"[^\s,:\x00]+")


def segment_hashes(
    video_ids: Sequence[str], rows: NDArray[np.int32], start_seconds: NDArray[np.int32]
) -> NDArray[np.uint64]:
    """Hash segments to 64 bits, the same on every machine and in every version, to break ties.

    The video's hash is BLAKE2b of its id in UTF-8, 8 bytes, read as a little-endian integer h. The segment's
    is the output function of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number
    generators", 2014) applied to h + (start + 1) * 0x9E3779B97F4A7C15 modulo 2^64, so segments of one video
    never collide.

    Args:
        video_ids: Ids of videos.
        rows: Position in `video_ids` of each segment, (S,).
        start_seconds: First second of each segment, (S,).

    Returns:
        uint64 (S,).
    """
    digests = (hashlib.blake2b(video_id.encode(), digest_size=8).digest() for video_id in video_ids)
    of_videos = np.array([int.from_bytes(digest, "little") for digest in digests], np.uint64)
    steps = start_seconds.astype(np.uint64) + np.uint64(1)
    mixed: NDArray[np.uint64] = of_videos[rows] + steps * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


@dataclass(frozen=True, eq=False)
class Segments:
    """The candidates of a ranking, known before any probability is: each a video and a start second.

    Args:
        video_ids: Ids of videos, without repeats, whitespace, commas or colons.
        rows: Position in `video_ids` of each segment, int32 (S,).
        start_seconds: First second of each segment, a multiple of 5, int32 (S,).

    Raises:
        Yt8mError: An id, a start or a whole segment cannot stand in a submission, or occurs twice.
    """

    video_ids: Sequence[str]
    rows: NDArray[np.int32]
    start_seconds: NDArray[np.int32]

    def __post_init__(self) -> None:
        if self.rows.ndim != 1 or self.rows.shape != self.start_seconds.shape:
            raise ValueError(f"rows {self.rows.shape} and start_seconds {self.start_seconds.shape} must be (S,), both.")
        if len(self) and not (self.rows.min() >= 0 and self.rows.max() < len(self.video_ids)):
            raise ValueError(f"rows must be positions in the {len(self.video_ids)} video ids.")
        seen: set[str] = set()
        for video_id in self.video_ids:
            if not _VIDEO_ID.fullmatch(video_id):
                raise Yt8mError(
                    f"The video id {video_id!r} cannot stand in a submission: expected one character or "
                    "more, and no space, comma or colon."
                )
            if video_id in seen:
                raise Yt8mError(f"The video id {video_id!r} occurs twice among the videos to rank: keep one of them.")
            seen.add(video_id)
        off_grid = np.flatnonzero((self.start_seconds < 0) | (self.start_seconds % 5 != 0))
        if len(off_grid):
            raise Yt8mError(f"The segment {self.name(off_grid[0])} cannot be ranked: starts are multiples of 5 from 0.")
        flat = (self.rows.astype(np.int64) << 32) | self.start_seconds
        values, first = np.unique(flat, return_index=True)
        if len(values) != len(flat):
            repeated = np.setdiff1d(np.arange(len(flat)), first, assume_unique=True)[0]
            raise Yt8mError(f"The segment {self.name(repeated)} occurs twice among the segments to rank.")

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, position: int | np.integer) -> str:
        """Say a segment as submissions do: `video:start`."""
        return f"{self.video_ids[int(self.rows[position])]}:{self.start_seconds[position]}"

    @cached_property
    def order(self) -> NDArray[np.int32]:
        """Positions in the order of ties, int32 (S,): by hash, then video id (code points), then start."""
        by_id = np.array(sorted(range(len(self.video_ids)), key=self.video_ids.__getitem__), np.int64)
        place_of_id = np.empty(len(by_id), np.int64)
        place_of_id[by_id] = np.arange(len(by_id))
        hashes = segment_hashes(self.video_ids, self.rows, self.start_seconds)
        return np.lexsort((self.start_seconds, place_of_id[self.rows], hashes)).astype(np.int32)

    @cached_property
    def ranks(self) -> NDArray[np.uint32]:
        """Place of each segment in `order`, uint32 (S,)."""
        ranks = np.empty(len(self), np.uint32)
        ranks[self.order] = np.arange(len(self), dtype=np.uint32)
        return ranks

    def same_as(self, other: Segments) -> bool:
        """Whether the other one holds the same segments at the same positions."""
        return self is other or (
            np.array_equal(self.rows, other.rows)
            and np.array_equal(self.start_seconds, other.start_seconds)
            and list(self.video_ids) == list(other.video_ids)
        )
