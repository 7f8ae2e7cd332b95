"""The ranker equals a full sort in plain Python, for any batches and order of the stream."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.rankings import ALL_ONES, GOLDEN_GAMMA, slow_hash, slow_ranking, splitmix64
from yt8m.errors import Yt8mError
from yt8m.prediction.segments import Segments, segment_hashes
from yt8m.ranking.topk import Ranking, TopK, top_of_class


def make_segments(num_segments, per_video=7):
    rows, place = np.divmod(np.arange(num_segments, dtype=np.int32), np.int32(per_video))
    ids = [f"v{(row * 37) % 101:03d}x{row}" for row in range(-(-num_segments // per_video))]
    return Segments(ids, rows, 30 + 5 * place)


def rank(segments, probabilities, k, order=None, batch_sizes=(64,), block=8192):
    ranker = TopK(probabilities.shape[1], k, segments, block)
    order = np.arange(len(segments)) if order is None else order
    start = turn = 0
    while start < len(order):
        batch = order[start : start + batch_sizes[turn % len(batch_sizes)]]
        ranker.update(batch, probabilities[batch])
        start += len(batch)
        turn += 1
    return ranker.result()


def lists(ranking: Ranking):
    return [ranking.positions(c).tolist() for c in range(len(ranking))]


def test_reference_splitmix64_gives_the_published_sequence():
    # Seed 1234567 of the reference program: https://prng.di.unimi.it/splitmix64.c
    outputs = [splitmix64((1234567 + step * GOLDEN_GAMMA) & ALL_ONES) for step in range(3)]
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_hashes_follow_the_documented_formula():
    ids, rows, starts = (
        ["abcd", "日本", "Zz-_"],
        np.array([0, 0, 1, 2], np.int32),
        np.array([0, 30, 5, 295], np.int32),
    )
    expected = [slow_hash(ids[row], int(start)) for row, start in zip(rows, starts, strict=True)]
    assert segment_hashes(ids, rows, starts).tolist() == expected


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 60),
    st.integers(1, 3),
    st.integers(1, 40),
    st.sampled_from([1, 2, 5, 1000]),
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.sampled_from([1, 2, 3, 8]),
    st.integers(0, 2**32 - 1),
)
def test_the_ranking_equals_a_full_sort_for_any_batches_and_order(n, c, k, levels, batch_sizes, block, seed):
    generator = np.random.default_rng(seed)
    segments = make_segments(n, per_video=1 + seed % 6)
    probabilities = (generator.integers(0, levels + 1, (n, c)) / levels).astype(np.float32)
    ranking = rank(segments, probabilities, k, generator.permutation(n), batch_sizes, block)
    assert lists(ranking) == slow_ranking(segments, probabilities, k)
    for class_index in range(c):
        expected = probabilities[ranking.positions(class_index), class_index]
        assert ranking.probabilities(class_index).tolist() == expected.tolist()


@pytest.mark.parametrize("order", ["ascending", "descending", "random", "tied"])
def test_the_ranking_equals_a_full_sort_beyond_one_block(order):
    n, k = 20_011, 700
    segments = make_segments(n)
    values = np.random.default_rng(3).random(n, np.float32)
    values = {"ascending": np.sort(values), "descending": -np.sort(-values), "random": values}.get(
        order, np.full(n, 0.25, np.float32)
    )
    probabilities = np.stack([values, values[::-1]], axis=1)
    assert lists(rank(segments, probabilities, k, batch_sizes=(977,))) == slow_ranking(segments, probabilities, k)


def test_probabilities_are_compared_exactly():
    values = np.array([0.0, 1.0, 0.5, 1e-45, 1.2e-38], np.float32)
    values = np.concatenate([values, np.nextafter(values, np.float32(0.6))])
    segments = make_segments(len(values))
    ranking = rank(segments, values[:, None], 10)
    assert ranking.probabilities(0).tolist() == sorted(values.tolist(), reverse=True)


def test_negative_zero_ties_with_zero():
    segments = make_segments(40)
    signed = np.where(np.arange(40) % 2, np.float32(-0.0), np.float32(0.0))[:, None]
    assert lists(rank(segments, signed, 40)) == lists(rank(segments, np.zeros((40, 1), np.float32), 40))
    assert not np.signbit(rank(segments, signed, 40).probabilities(0)).any()


def test_ties_do_not_depend_on_the_positions_of_segments():
    segments = make_segments(60)
    generator = np.random.default_rng(0)
    order = generator.permutation(60)
    # The same segments in another order, with the videos reversed.
    last = len(segments.video_ids) - 1
    shuffled = Segments(segments.video_ids[::-1], (last - segments.rows)[order], segments.start_seconds[order])
    probabilities = generator.integers(0, 3, (60, 2)).astype(np.float32) / 2
    first, second = rank(segments, probabilities, 25), rank(shuffled, probabilities[order], 25)
    for c in range(2):
        names = [segments.name(p) for p in first.positions(c)]
        assert names == [shuffled.name(p) for p in second.positions(c)]


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -0.001, 1.001])
def test_a_probability_out_of_range_leaves_the_ranker_unchanged(wrong):
    segments = make_segments(10)
    ranker = TopK(3, 5, segments)
    values = np.full((4, 3), 0.5, np.float32)
    values[2, 1] = wrong
    with pytest.raises(Yt8mError, match=rf"segment {segments.name(7)} for class position 1 is .*from 0 to 1"):
        ranker.update([5, 6, 7, 8], values)
    ranker.update(np.arange(10), np.full((10, 3), 0.5))
    assert len(ranker.result().positions(2)) == 5


def test_repeated_and_missing_segments_are_refused():
    segments = make_segments(10)
    ranker = TopK(1, 5, segments)
    ranker.update([0, 3], np.zeros((2, 1)))
    with pytest.raises(Yt8mError, match=f"{segments.name(3)} has probabilities twice"):
        ranker.update([4, 3], np.zeros((2, 1)))
    with pytest.raises(Yt8mError, match=f"{segments.name(4)} has probabilities twice"):
        ranker.update([4, 5, 4], np.zeros((3, 1)))
    with pytest.raises(Yt8mError, match=rf"8 of 10 segments .* first is {segments.name(1)}"):
        ranker.result()
    assert np.flatnonzero(ranker.seen).tolist() == [0, 3]
    ranker.update([1, 2, 4, 5, 6, 7, 8, 9], np.zeros((8, 1)))
    assert len(ranker.result().positions(0)) == 5
    with pytest.raises(ValueError, match="has returned its result"):
        ranker.update([4], np.zeros((1, 1)))


def test_wrong_shapes_and_positions_are_refused():
    ranker = TopK(2, 5, make_segments(10))
    with pytest.raises(ValueError, match=r"probabilities \(n, 2\), found \(3,\) and \(3, 1\)"):
        ranker.update([0, 1, 2], np.zeros((3, 1)))
    with pytest.raises(ValueError, match="outside the 10 segments"):
        ranker.update([-1], np.zeros((1, 2)))
    with pytest.raises(ValueError, match="outside the 10 segments"):
        ranker.update([10], np.zeros((1, 2)))
    with pytest.raises(ValueError, match="expected integers"):
        ranker.update([0.5], np.zeros((1, 2)))


def test_empty_updates_without_segments_give_empty_lists():
    empty = Segments([], np.empty(0, np.int32), np.empty(0, np.int32))
    ranker = TopK(2, 5, empty)
    ranker.update(np.empty(0, np.int64), np.empty((0, 2), np.float32))
    assert lists(ranker.result()) == [[], []]


@pytest.mark.parametrize(
    ("ids", "rows", "starts", "sentence"),
    [
        (["a b"], [0], [5], r"'a b' is not allowed in a submission"),
        (["a,b"], [0], [5], r"'a,b' is not allowed"),
        (["a:b"], [0], [5], r"'a:b' is not allowed"),
        ([""], [0], [5], r"'' is not allowed"),
        (["ab", "cd", "ab"], [0], [5], r"'ab' occurs twice among the videos"),
        (["ab", "cd"], [0, 1], [5, 7], r"cd:7 cannot be ranked: starts are multiples of 5"),
        (["ab", "cd"], [0, 1], [5, -5], r"cd:-5 cannot be ranked"),
        (["ab", "cd"], [1, 0, 1, 1], [5, 5, 10, 5], r"cd:5 occurs twice among the segments"),
    ],
)
def test_invalid_segments_are_refused(ids, rows, starts, sentence):
    with pytest.raises(Yt8mError, match=sentence):
        Segments(ids, np.array(rows, np.int32), np.array(starts, np.int32))


@pytest.mark.parametrize("rows", [[0, 2], [-1, 0], [0]])
def test_rows_must_be_positions_of_videos(rows):
    with pytest.raises(ValueError, match="rows"):
        Segments(["ab", "cd"], np.array(rows, np.int32), np.array([5, 10], np.int32))


# --- Saving and loading ----------------------------------------------------------------------------------------------


def saved(ranker):
    file = io.BytesIO()
    ranker.save(file)
    return file.getvalue()


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 60),
    st.integers(1, 3),
    st.integers(1, 40),
    st.sampled_from([1, 2, 5, 1000]),
    st.sampled_from([1, 3, 8]),
    st.floats(0, 1),
    st.integers(0, 2**32 - 1),
)
def test_a_loaded_ranker_gives_the_same_ranking_as_the_saved_one(n, c, k, levels, block, fraction, seed):
    generator = np.random.default_rng(seed)
    segments = make_segments(n, per_video=1 + seed % 6)
    probabilities = (generator.integers(0, levels + 1, (n, c)) / levels).astype(np.float32)
    before, after = np.split(generator.permutation(n), [round(fraction * n)])
    first = TopK(c, k, segments, block)
    for batch in np.array_split(before, 3):
        first.update(batch, probabilities[batch])
    content = saved(first)
    file = io.BytesIO(content + b"more content")
    second = TopK(c, k, make_segments(n, per_video=1 + seed % 6), block)
    second.load(file)
    assert file.read() == b"more content"
    assert np.flatnonzero(second.seen).tolist() == sorted(before.tolist())
    # Both rankers are updated further; loading into a ranker that contains segments merges the two.
    merged = TopK(c, k, segments, block)
    merged.update(after, probabilities[after])
    merged.load(io.BytesIO(content))
    for ranker in (first, second):
        for batch in np.array_split(after, 2):
            ranker.update(batch, probabilities[batch])
    for ranker in (first, second, merged):
        assert lists(ranker.result()) == slow_ranking(segments, probabilities, k)


@pytest.mark.parametrize("block", [1, 4, 8192])
def test_merged_rankers_equal_a_single_ranker(block):
    n, k = 200, 30
    generator = np.random.default_rng(5)
    segments = make_segments(n)
    probabilities = generator.integers(0, 12, (n, 3)).astype(np.float32) / 11
    slices = np.array_split(generator.permutation(n), 4)
    rankers = [TopK(3, k, make_segments(n), block) for _ in slices]
    for ranker, positions in zip(rankers, slices, strict=True):
        for batch in np.array_split(positions, 5):
            ranker.update(batch, probabilities[batch])
    for other in (rankers[2], rankers[0], rankers[1]):
        rankers[3].load(io.BytesIO(saved(other)))
    assert lists(rankers[3].result()) == slow_ranking(segments, probabilities, k)


def test_a_saved_ranker_of_other_segments_is_refused():
    ranker = TopK(2, 3, make_segments(10))
    ranker.update([1, 2], np.full((2, 2), 0.5))
    content = saved(ranker)
    for other in (TopK(3, 3, make_segments(10)), TopK(2, 4, make_segments(10)), TopK(2, 3, make_segments(11))):
        with pytest.raises(Yt8mError, match="damaged, or of other segments"):
            other.load(io.BytesIO(content))
        assert not other.seen.any()
    overlapping = TopK(2, 3, make_segments(10))
    overlapping.update([4, 2], np.zeros((2, 2)))
    with pytest.raises(Yt8mError, match=f"{make_segments(10).name(2)} has probabilities twice"):
        overlapping.load(io.BytesIO(content))


def some_content():
    """A saved ranker of 300 segments, and the segments."""
    segments = make_segments(300)
    ranker = TopK(2, 7, segments)
    ranker.update(np.arange(0, 300, 2), np.random.default_rng(1).random((150, 2), np.float32))
    return saved(ranker), segments


def test_a_truncated_file_is_refused():
    content, segments = some_content()
    for end in [*range(0, len(content), 7), len(content) - 1]:
        with pytest.raises(Yt8mError, match="damaged"):
            TopK(2, 7, segments).load(io.BytesIO(content[:end]))
    TopK(2, 7, segments).load(io.BytesIO(content))


def test_a_changed_byte_is_refused():
    """An undetected change of a key could rank a wrong segment or drop one."""
    content, segments = some_content()
    generator = np.random.default_rng(2)
    for place in generator.choice(len(content), 250, replace=False).tolist():
        damaged = bytearray(content)
        damaged[place] ^= int(generator.integers(1, 256))
        with pytest.raises(Yt8mError):
            TopK(2, 7, segments).load(io.BytesIO(bytes(damaged)))


def test_other_content_is_refused():
    segments = make_segments(10)
    for content in (b"", b"ranked", b"PK\x03\x04 no zip", b"\x80\x04K\x01.", bytes(4000), b"\x93NUMPY" + bytes(200)):
        with pytest.raises(Yt8mError, match="damaged"):
            TopK(2, 3, segments).load(io.BytesIO(content))


def test_a_finished_ranker_can_neither_be_saved_nor_loaded():
    segments = make_segments(4)
    content = saved(TopK(1, 2, segments))
    ranker = TopK(1, 2, segments)
    ranker.update([0, 1, 2, 3], np.zeros((4, 1)))
    ranker.result()
    with pytest.raises(ValueError, match="has returned its result"):
        ranker.save(io.BytesIO())
    with pytest.raises(ValueError, match="has returned its result"):
        ranker.load(io.BytesIO(content))


# --- One class at a time ---------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=150)
@given(st.integers(1, 60), st.integers(1, 70), st.sampled_from([1, 2, 5, 1000]), st.integers(0, 2**32 - 1))
def test_top_of_class_equals_a_full_sort(n, k, levels, seed):
    generator = np.random.default_rng(seed)
    segments = make_segments(n, per_video=1 + seed % 6)
    values = (generator.integers(0, levels + 1, n) / levels).astype(np.float32)
    # Zeros of both signs are the same probability.
    values = np.where(generator.random(n) < 0.5, np.copysign(values, np.where(values == 0, -1.0, 1.0)), values)
    values = values.astype(np.float32)
    before = values.copy()
    ranking = Ranking(segments, (top_of_class(segments, values, k, 0),))
    assert values.tobytes() == before.tobytes()
    assert lists(ranking) == slow_ranking(segments, np.abs(values)[:, None], k)
    assert ranking.keys[0].tolist() == rank(segments, np.abs(values)[:, None], k).keys[0].tolist()
    found = ranking.probabilities(0)
    assert found.tolist() == np.abs(values)[ranking.positions(0)].tolist()
    assert not np.signbit(found).any()


@pytest.mark.parametrize("k", [1, 2, 39, 40, 41, 1000])
def test_top_of_class_with_k_around_the_number_of_segments(k):
    segments = make_segments(40)
    values = np.random.default_rng(k).integers(0, 3, 40).astype(np.float32) / 2
    ranking = Ranking(segments, (top_of_class(segments, values, k, 0),))
    assert len(ranking.keys[0]) == min(k, 40)
    assert lists(ranking) == slow_ranking(segments, values[:, None], k)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -0.001, 1.001])
def test_top_of_class_refuses_probabilities_out_of_range(wrong):
    segments = make_segments(10)
    values = np.full(10, 0.5, np.float32)
    values[7] = wrong
    with pytest.raises(Yt8mError, match=rf"segment {segments.name(7)} for class position 3 is .*from 0 to 1"):
        top_of_class(segments, values, 4, 3)


def test_top_of_class_without_segments():
    empty = Segments([], np.empty(0, np.int32), np.empty(0, np.int32))
    assert top_of_class(empty, np.empty(0, np.float32), 5, 0).tolist() == []
