"""Indices of frames and segments, against loops that are slow and obvious."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yt8m.dataset.sampling import (
    crop,
    evaluated_segments,
    even_frames,
    num_evaluated_segments,
    sampled_clip,
    sampled_frames,
    segment_window,
)


@pytest.mark.parametrize(
    ("num_frames", "kept"),
    [(300, (30, 290)), (170, (30, 160)), (42, (30, 32)), (41, (30, 31)), (40, (0, 40)), (39, (0, 39)), (1, (0, 1))],
)
def test_the_first_six_and_last_two_segments_are_cropped_unless_nothing_would_be_left(
    num_frames: int, kept: tuple[int, int]
) -> None:
    assert crop(num_frames) == kept


@given(st.integers(0, 50), st.integers(1, 60), st.integers(1, 60), st.integers(0, 2**32))
def test_sampled_frames_are_distinct_ordered_and_inside(start: int, length: int, wanted: int, seed: int) -> None:
    frames = sampled_frames(start, start + length, wanted, np.random.default_rng(seed))
    assert frames.dtype == np.int64
    assert len(frames) == min(wanted, length)
    assert frames[0] >= start
    assert frames[-1] < start + length
    assert (np.diff(frames) > 0).all()
    again = sampled_frames(start, start + length, wanted, np.random.default_rng(seed))
    np.testing.assert_array_equal(frames, again)


def test_each_set_of_frames_is_sampled_as_often_as_any_other() -> None:
    rng = np.random.default_rng(0)
    rounds = 3000
    found = Counter(tuple(sampled_frames(7, 12, 2, rng).tolist()) for _ in range(rounds))
    assert set(found) == {(a, b) for a in range(7, 12) for b in range(a + 1, 12)}
    # 10 pairs, 300 of each expected: a chi-square of 9 degrees of freedom is below 27.9 in 99.9% of all cases.
    assert sum((count - rounds / 10) ** 2 / (rounds / 10) for count in found.values()) < 27.9


@given(st.integers(0, 50), st.integers(1, 12), st.integers(1, 12))
def test_clips_are_consecutive_frames_from_anywhere(start: int, length: int, wanted: int) -> None:
    rng = np.random.default_rng(0)
    clips = {tuple(sampled_clip(start, start + length, wanted, rng).tolist()) for _ in range(150)}
    size = min(wanted, length)
    assert clips == {tuple(range(first, first + size)) for first in range(start, start + length - size + 1)}


@given(st.integers(0, 50), st.integers(1, 400), st.integers(1, 160))
def test_even_frames_are_the_middles_of_equal_parts(start: int, length: int, wanted: int) -> None:
    frames = even_frames(start, start + length, wanted)
    if length <= wanted:
        assert frames.tolist() == list(range(start, start + length))
    else:
        parts = [(start + i * length / wanted, start + (i + 1) * length / wanted) for i in range(wanted)]
        assert frames.tolist() == [int((low + high) / 2 + 1e-9) for low, high in parts]
        # Turned around in time, the choice is the same up to rounding to a whole frame.
        mirrored = 2 * start + length - 1 - frames[::-1]
        assert np.abs(mirrored - frames).max() <= 1
        assert wanted <= 2 or np.ptp(np.diff(frames)) <= 1


def test_even_frames_by_hand() -> None:
    assert even_frames(30, 130, 4).tolist() == [42, 67, 92, 117]
    assert even_frames(0, 3, 1).tolist() == [1]


@pytest.mark.parametrize(
    ("start", "num_frames", "margin", "window"),
    [
        (30, 300, 3, (27, 38)),
        (30, 300, 0, (30, 35)),
        (0, 300, 3, (0, 8)),
        (295, 300, 3, (292, 300)),
        (295, 296, 3, (292, 296)),
        (295, 296, 0, (295, 296)),
        (0, 1, 3, (0, 1)),
    ],
)
def test_windows_end_where_the_video_does(start: int, num_frames: int, margin: int, window: tuple[int, int]) -> None:
    assert segment_window(start, num_frames, margin) == window
    inside = [t for t in range(start - margin, start + 5 + margin) if 0 <= t < num_frames]
    assert list(range(*window)) == inside


def slow_segments(num_frames: int) -> list[int]:
    """Starts of the segments of a video, a partial last one counted, less the first six and the last two."""
    starts = [second for second in range(num_frames) if second % 5 == 0]
    return starts[6:-2]


def test_evaluated_segments_against_the_slow_way_for_every_length() -> None:
    lengths = np.arange(1, 320)
    np.random.default_rng(0).shuffle(lengths)
    rows, starts = evaluated_segments(lengths.astype(np.int32))
    expected = [(row, start) for row, length in enumerate(lengths.tolist()) for start in slow_segments(length)]
    assert rows.dtype == starts.dtype == np.int32
    assert list(zip(rows.tolist(), starts.tolist(), strict=True)) == expected
    counts = num_evaluated_segments(lengths)
    assert counts.tolist() == [len(slow_segments(length)) for length in lengths.tolist()]


@pytest.mark.parametrize(
    ("num_frames", "count"), [(1, 0), (40, 0), (41, 1), (45, 1), (46, 2), (170, 26), (300, 52), (301, 53)]
)
def test_known_numbers_of_evaluated_segments(num_frames: int, count: int) -> None:
    rows, starts = evaluated_segments(np.array([num_frames]))
    assert num_evaluated_segments(np.array([num_frames])).tolist() == [count] == [len(rows)]
    if count:
        assert starts[0] == 30
        # Two segments follow the last one, the second of them possibly partial.
        assert num_frames - 15 <= starts[-1] < num_frames - 10


def test_no_videos_have_no_segments() -> None:
    rows, starts = evaluated_segments(np.zeros(0, np.int32))
    assert len(rows) == len(starts) == 0
