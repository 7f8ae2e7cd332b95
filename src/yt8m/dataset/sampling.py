"""Sampling of frames and segments: pure functions on indices.

Times are in seconds, which are also frames: a segment that starts at second 30 has frames 30 to 34.
"""

import numpy as np
from numpy.typing import NDArray

from yt8m.shards.ids import SEGMENT_SECONDS

FrameIndices = slice | NDArray[np.int64]
"""Frames of a video: a range, or increasing indices, int64 (T,)."""

CROP_START_SECONDS = 30
"""The first six segments are never rated (docs/method.md, "Frame sampling")."""

CROP_END_SECONDS = 10
"""The last two segments are never rated."""


def crop(num_frames: int) -> tuple[int, int]:
    """Frames of a video that video-level models see, [30, n - 10), as start and end.

    A video too short for the crop keeps all its frames.
    """
    start, stop = CROP_START_SECONDS, num_frames - CROP_END_SECONDS
    return (start, stop) if stop > start else (0, num_frames)


def random_keys(seed: int, positions: NDArray[np.integer], num_keys: int) -> NDArray[np.uint64]:
    """Random numbers that are a function of (seed, position, column), for many positions at once.

    A generator per position would cost more than reading its frames.

    Args:
        seed: Not negative.
        positions: Integer (B,), not negative.
        num_keys: Numbers per position.

    Returns:
        uint64 (B, num_keys), uniform.
    """
    streams = splitmix64(splitmix64(np.array([seed % 2**64], np.uint64)) + positions.astype(np.uint64) * GOLDEN_GAMMA)
    return splitmix64(streams[:, None] + np.arange(1, num_keys + 1, dtype=np.uint64) * GOLDEN_GAMMA)


GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
"""Step of SplitMix64's counter."""


def splitmix64(counters: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Output function of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014)."""
    mixed = counters ^ (counters >> np.uint64(30))
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def fractions(keys: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Random keys as numbers in [0, 1)."""
    return (keys >> np.uint64(11)).astype(np.float64) * 2.0**-53


def sampled_frames(
    starts: NDArray[np.integer], stops: NDArray[np.integer], max_frames: int, keys: NDArray[np.uint64]
) -> list[FrameIndices]:
    """Sample at most `max_frames` of the frames [start, stop) of each video, without replacement, in temporal order.

    The frames with the smallest keys are sampled, so every set of frames is equally likely.

    Args:
        starts: Start of each video's range, integer (B,).
        stops: End, after the start.
        max_frames: Frames to sample; shorter ranges are taken completely.
        keys: Random keys, uint64 (B, at least the longest stop - start); see `random_keys`.

    Returns:
        For each video a slice (all of its frames) or increasing frame indices, int64 (max_frames,).
    """
    chosen: list[FrameIndices] = [
        slice(start, stop) for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)
    ]
    lengths = stops - starts
    longer = np.flatnonzero(lengths > max_frames)
    if len(longer):
        columns = np.arange(int(lengths[longer].max()), dtype=np.uint64)
        # The last bits hold the column, so no two keys of a video are equal.
        ranked = (keys[longer, : len(columns)] & ~_COLUMN_BITS) | columns
        ranked[columns >= lengths[longer, None].astype(np.uint64)] = np.iinfo(np.uint64).max
        largest = np.partition(ranked, max_frames - 1, axis=1)[:, max_frames - 1]
        places = np.nonzero(ranked <= largest[:, None])[1].reshape(len(longer), max_frames)
        for row, frames in zip(longer.tolist(), places + starts[longer, None], strict=True):
            chosen[row] = frames
    return chosen


_COLUMN_BITS = np.uint64(2**20 - 1)
"""Bits of a column: enough for the frames of any record (`tfrecord.MAX_RECORD_BYTES`)."""


def sampled_clip(start: int, stop: int, max_frames: int, fraction: float) -> slice:
    """Sample at most `max_frames` consecutive frames of [start, stop).

    Args:
        start: Start of the range.
        stop: End, after `start`.
        max_frames: Frames to sample.
        fraction: Place of the clip, from 0 (the first possible) to 1 (excluded, after the last): a random number.
    """
    length = min(max_frames, stop - start)
    first = start + int(fraction * (stop - length - start + 1))
    return slice(first, first + length)


def even_frames(start: int, stop: int, max_frames: int) -> NDArray[np.int64]:
    """At most `max_frames` evenly spaced frames of [start, stop), as in inference: int64 (min(max_frames, stop - start),).

    Each is the middle of one of `max_frames` equal intervals, so the choice is a function of the video alone.
    """
    length = stop - start
    if length <= max_frames:
        return np.arange(start, stop)
    return start + ((2 * np.arange(max_frames) + 1) * length) // (2 * max_frames)


def segment_window(start_seconds: int, num_frames: int, margin: int) -> tuple[int, int]:
    """Frames that a segment classifier sees: the segment's five and `margin` (t = 3 in the paper) on either side.

    Frames outside the video do not exist, so windows at its ends are shorter.

    Args:
        start_seconds: Start of the segment, inside the video.
        num_frames: Frames of the video.
        margin: Frames on either side.

    Returns:
        Start and end of the window, at least one frame.
    """
    return max(0, start_seconds - margin), min(num_frames, start_seconds + SEGMENT_SECONDS + margin)


def num_evaluated_segments(num_frames: NDArray[np.integer]) -> NDArray[np.int64]:
    """Number of segments to predict per video: ceil(n / 5) minus the first six and the last two, at least 0."""
    segments = -(-num_frames.astype(np.int64) // SEGMENT_SECONDS)
    skipped = (CROP_START_SECONDS + CROP_END_SECONDS) // SEGMENT_SECONDS
    return np.maximum(segments - skipped, 0)


def evaluated_segments(num_frames: NDArray[np.integer]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """All segments to predict, video by video, in temporal order.

    Args:
        num_frames: Frames per video, integer (N,).

    Returns:
        Row of the video and start second of each segment, both int32 (S,).
    """
    counts = num_evaluated_segments(num_frames)
    rows = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    starts = CROP_START_SECONDS + SEGMENT_SECONDS * (np.arange(len(rows)) - first)
    return rows, starts.astype(np.int32)
