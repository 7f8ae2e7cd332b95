"""Indices of frames and segments, compared with plain loops."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yt8m.dataset.sampling import (
    GOLDEN_GAMMA,
    crop,
    evaluated_segments,
    even_frames,
    fractions,
    num_evaluated_segments,
    random_keys,
    sampled_clip,
    sampled_frames,
    segment_window,
    splitmix64,
)


@pytest.mark.parametrize(
    ("num_frames", "kept"),
    [(300, (30, 290)), (170, (30, 160)), (42, (30, 32)), (41, (30, 31)), (40, (0, 40)), (39, (0, 39)), (1, (0, 1))],
)
def test_the_first_six_and_last_two_segments_are_cropped_from_videos_of_more_than_40_frames(
    num_frames: int, kept: tuple[int, int]
) -> None:
    assert crop(num_frames) == kept


def slow_keys(seed: int, position: int, num_keys: int) -> list[int]:
    """SplitMix64 as published, one number at a time."""

    def mixed(z: int) -> int:
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    golden = 0x9E3779B97F4A7C15
    state = mixed((mixed(seed) + position * golden) % 2**64)
    return [mixed((state + column * golden) % 2**64) for column in range(1, num_keys + 1)]


def test_splitmix64_gives_the_published_numbers() -> None:
    # The first numbers of SplitMix64 with seed 1234567, as listed by Rosetta Code.
    state = np.uint64(1234567)
    counters = state + np.arange(1, 6, dtype=np.uint64) * GOLDEN_GAMMA
    assert splitmix64(counters).tolist() == [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821,
    ]  # fmt: skip


@given(st.integers(0, 2**40), st.lists(st.integers(0, 2**40), min_size=1, max_size=5), st.integers(1, 6))
def test_random_keys_depend_on_seed_position_and_column_alone(seed: int, positions: list[int], num_keys: int) -> None:
    keys = random_keys(seed, np.array(positions), num_keys)
    assert keys.dtype == np.uint64
    assert keys.tolist() == [slow_keys(seed, position, num_keys) for position in positions]


def test_fractions_are_uniform_on_the_unit_interval() -> None:
    drawn = fractions(random_keys(0, np.arange(2000), 5))
    assert 0 <= drawn.min() < drawn.max() < 1
    counts = np.histogram(drawn, 20, (0, 1))[0]
    # 20 bins, 500 of each expected: 99.9% of chi-square values with 19 degrees of freedom are below 43.8.
    assert ((counts - 500) ** 2 / 500).sum() < 43.8
    assert abs(np.corrcoef(drawn.T) - np.eye(5)).max() < 0.09
    assert fractions(np.array([2**64 - 1], np.uint64))[0] < 1


def sampled(spans: list[tuple[int, int]], wanted: int, seed: int) -> list[list[int]]:
    """Sampled frames of some videos, as lists."""
    starts, stops = np.array(spans).T
    keys = random_keys(seed, np.arange(len(spans)), int((stops - starts).max()))
    chosen = sampled_frames(starts, stops, wanted, keys)
    return [
        list(range(frames.start, frames.stop)) if isinstance(frames, slice) else frames.tolist() for frames in chosen
    ]


SPANS = st.tuples(st.integers(0, 50), st.integers(1, 60)).map(lambda span: (span[0], sum(span)))


@given(st.lists(SPANS, min_size=1, max_size=6), st.integers(1, 60), st.integers(0, 2**32))
def test_sampled_frames_are_distinct_ordered_and_within_their_span(
    spans: list[tuple[int, int]], wanted: int, seed: int
) -> None:
    chosen = sampled(spans, wanted, seed)
    for (start, stop), frames in zip(spans, chosen, strict=True):
        assert frames == sorted(set(frames))
        assert len(frames) == min(wanted, stop - start)
        assert start <= frames[0] <= frames[-1] < stop
    # The frames with the smallest keys are chosen, whatever the other videos of the batch.
    for position, ((start, stop), frames) in enumerate(zip(spans, chosen, strict=True)):
        keys = slow_keys(seed, position, stop - start)
        order = sorted(range(stop - start), key=lambda t: keys[t])
        assert frames == sorted(start + t for t in order[:wanted])


def test_all_sets_of_frames_are_equally_likely() -> None:
    rounds = 3000
    found = Counter(map(tuple, sampled([(7, 12)] * rounds, 2, 0)))
    assert set(found) == {(a, b) for a in range(7, 12) for b in range(a + 1, 12)}
    # 10 pairs, 300 of each expected: 99.9% of chi-square values with 9 degrees of freedom are below 27.9.
    assert sum((count - rounds / 10) ** 2 / (rounds / 10) for count in found.values()) < 27.9


def test_with_equal_keys_the_first_frames_are_sampled() -> None:
    chosen = sampled_frames(np.array([0, 5]), np.array([9, 10]), 4, np.full((2, 9), 2**64 - 1, np.uint64))
    assert [frames.tolist() for frames in chosen if not isinstance(frames, slice)] == [[0, 1, 2, 3], [5, 6, 7, 8]]


@given(st.integers(0, 50), st.integers(1, 12), st.integers(1, 12))
def test_clips_are_consecutive_frames_with_uniform_starts(start: int, length: int, wanted: int) -> None:
    fractions_of_span = [0.0, *np.linspace(0, 1, 200, endpoint=False).tolist(), 1 - 2**-53]
    clips = [sampled_clip(start, start + length, wanted, fraction) for fraction in fractions_of_span]
    size = min(wanted, length)
    firsts = [clip.start for clip in clips]
    assert all(clip.stop - clip.start == size for clip in clips)
    assert firsts == sorted(firsts)
    assert set(firsts) == set(range(start, start + length - size + 1))
    counts = Counter(firsts)
    assert max(counts.values()) - min(counts.values()) <= 3


@given(st.integers(0, 50), st.integers(1, 400), st.integers(1, 160))
def test_even_frames_are_the_midpoints_of_equal_parts(start: int, length: int, wanted: int) -> None:
    frames = even_frames(start, start + length, wanted)
    if length <= wanted:
        assert frames.tolist() == list(range(start, start + length))
    else:
        parts = [(start + i * length / wanted, start + (i + 1) * length / wanted) for i in range(wanted)]
        assert frames.tolist() == [int((low + high) / 2 + 1e-9) for low, high in parts]
        # The choice is symmetric in time, up to rounding.
        mirrored = 2 * start + length - 1 - frames[::-1]
        assert np.abs(mirrored - frames).max() <= 1
        assert wanted <= 2 or np.ptp(np.diff(frames)) <= 1


def test_even_frames_of_examples() -> None:
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
def test_segment_windows_are_limited_to_the_video(
    start: int, num_frames: int, margin: int, window: tuple[int, int]
) -> None:
    assert segment_window(start, num_frames, margin) == window
    inside = [t for t in range(start - margin, start + 5 + margin) if 0 <= t < num_frames]
    assert list(range(*window)) == inside


def slow_segments(num_frames: int) -> list[int]:
    """Starts of the segments of a video, including a partial last one, without the first six and the last two."""
    starts = [second for second in range(num_frames) if second % 5 == 0]
    return starts[6:-2]


def test_evaluated_segments_equal_those_of_a_plain_loop() -> None:
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
def test_numbers_of_evaluated_segments(num_frames: int, count: int) -> None:
    rows, starts = evaluated_segments(np.array([num_frames]))
    assert num_evaluated_segments(np.array([num_frames])).tolist() == [count] == [len(rows)]
    if count:
        assert starts[0] == 30
        # Two segments follow the last evaluated one; the second may be partial.
        assert num_frames - 15 <= starts[-1] < num_frames - 10


def test_without_videos_there_are_no_segments() -> None:
    rows, starts = evaluated_segments(np.zeros(0, np.int32))
    assert len(rows) == len(starts) == 0
