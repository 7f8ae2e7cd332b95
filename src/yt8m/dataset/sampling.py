"""Which frames and segments of a video are looked at: pure functions on indices, no frame is touched here.

Times are in seconds, and a second is a frame, so a segment that starts at second 30 has frames 30 to 34.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from yt8m.shards.example import SEGMENT_SECONDS

CROP_START_SECONDS = 30
"""The first six segments are never rated (SPEC: the method)."""

CROP_END_SECONDS = 10
"""The last two segments are never rated."""


def crop(num_frames: int) -> tuple[int, int]:
    """Frames of a video that a video-level model sees: [30, n - 10).

    Args:
        num_frames: Frames of the video, at least 1.

    Returns:
        First frame and end. A video too short for the crop keeps all its frames.
    """
    start, stop = CROP_START_SECONDS, num_frames - CROP_END_SECONDS
    return (start, stop) if stop > start else (0, num_frames)


def sampled_frames(start: int, stop: int, max_frames: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """At most `max_frames` of the frames [start, stop), without replacement, in temporal order.

    Args:
        start: First frame.
        stop: End, after `start`.
        max_frames: Frames wanted; where there are no more, all are returned.
        rng: Source of the choice.

    Returns:
        Increasing frame indices, int64 (T,), T = min(max_frames, stop - start).
    """
    if stop - start <= max_frames:
        return np.arange(start, stop)
    chosen = rng.choice(stop - start, max_frames, replace=False, shuffle=False)
    chosen.sort()
    return chosen.astype(np.int64) + start


def sampled_clip(start: int, stop: int, max_frames: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """At most `max_frames` consecutive frames of [start, stop), from a random place.

    What a video-level model sees of a video when it is to learn from moments, as a segment classifier will.

    Returns:
        Consecutive frame indices, int64 (T,), T = min(max_frames, stop - start).
    """
    length = min(max_frames, stop - start)
    first = int(rng.integers(start, stop - length, endpoint=True))
    return np.arange(first, first + length)


def even_frames(start: int, stop: int, max_frames: int) -> NDArray[np.int64]:
    """At most `max_frames` of the frames [start, stop), evenly spaced: what inference sees of a long video.

    Each index is the middle of one of `max_frames` equal intervals, so the choice depends on nothing but the video.

    Returns:
        Increasing frame indices, int64 (T,), T = min(max_frames, stop - start).
    """
    length = stop - start
    if length <= max_frames:
        return np.arange(start, stop)
    return start + ((2 * np.arange(max_frames) + 1) * length) // (2 * max_frames)


def segment_window(start_seconds: int, num_frames: int, margin: int) -> tuple[int, int]:
    """Frames that a segment classifier sees: the segment's five and `margin` on either side.

    Frames outside the video do not exist, so the window of a segment at an end is shorter (SPEC: context-agnostic
    segment classifier).

    Args:
        start_seconds: Start of the segment, inside the video.
        num_frames: Frames of the video.
        margin: Frames added on either side (t = 3 in the paper).

    Returns:
        First frame and end of the window; at least one frame.
    """
    return max(0, start_seconds - margin), min(num_frames, start_seconds + SEGMENT_SECONDS + margin)


def num_evaluated_segments(num_frames: NDArray[np.integer]) -> NDArray[np.int64]:
    """Number of segments to predict per video: ceil(n / 5) less the first six and the last two, at least 0.

    A partial last segment counts as one (SPEC: inference).
    """
    segments = -(-num_frames.astype(np.int64) // SEGMENT_SECONDS)
    skipped = (CROP_START_SECONDS + CROP_END_SECONDS) // SEGMENT_SECONDS
    return np.maximum(segments - skipped, 0)


def evaluated_segments(num_frames: NDArray[np.integer]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """All segments to predict, video after video, in temporal order.

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
