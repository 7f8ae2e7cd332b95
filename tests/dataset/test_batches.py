"""Batches: each item occurs once per epoch, and the batch of a step depends on (seed, step) alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.batches import assert_same_batch
from tests.support.tiny_shards import TinyVideo, random_videos, write_shard, write_shards
from yt8m.dataset.batches import (
    SINGLE_PROCESS,
    Batches,
    FrameSampling,
    ProcessSlice,
    SegmentBatches,
    VideoBatches,
    context_frames,
    join_features,
    stream_items,
)
from yt8m.dataset.frames import FrameReader
from yt8m.dataset.indexing import index_folder
from yt8m.dataset.labels import (
    Ratings,
    fold_of_videos,
    label_mask,
    mined_negatives,
    rated_segments,
    videos_with_classes,
)
from yt8m.errors import UsageError
from yt8m.vocabulary import Vocabulary

VOCABULARY = Vocabulary(np.array([13, 3, 8, 5, 99]), ("a", "b", "c", "d", "never"))
"""Labels 1 and 2 of the videos below belong to no class."""


@dataclass(frozen=True)
class TinyData:
    folder: Path
    videos: list[TinyVideo]
    reader: FrameReader


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TinyData:
    folder = tmp_path_factory.mktemp("shards")
    videos = random_videos(13, seed=1, num_frames=(36, 64), label_ids=[1, 2, 3, 5, 8, 13], ratings_per_video=6)
    videos[4] = TinyVideo("none", videos[4].frames, (1, 2), videos[4].ratings)
    videos[9] = TinyVideo("bare", videos[9].frames)
    write_shards(folder, videos, num_shards=4)
    return TinyData(folder, videos, FrameReader(index_folder(folder)))


def video_batches(
    data: TinyData, seed: int = 0, share: ProcessSlice = SINGLE_PROCESS, batch_size: int = 4
) -> VideoBatches:
    return VideoBatches(data.reader, VOCABULARY, FrameSampling(9), batch_size, seed, share)


def segment_batches(
    data: TinyData, seed: int = 0, share: ProcessSlice = SINGLE_PROCESS, batch_size: int = 4
) -> SegmentBatches:
    ratings = rated_segments(data.reader.catalog, VOCABULARY)
    return SegmentBatches(data.reader, VOCABULARY, ratings, 3, batch_size, seed, share)


Stream = Callable[..., Any]
STREAMS = pytest.mark.parametrize("stream", [video_batches, segment_batches], ids=["videos", "segments"])


def batches_of(batches: Batches, start: int, stop: int) -> list[NamedTuple]:
    return [batches[step] for step in range(start, stop)]


# --- The stream -------------------------------------------------------------------------------------------------------


@given(st.integers(1, 12), st.integers(0, 5), st.integers(0, 40), st.integers(1, 40))
def test_each_epoch_is_a_permutation_and_any_part_equals_that_of_the_whole_stream(
    num_items: int, seed: int, start: int, length: int
) -> None:
    whole = stream_items(num_items, seed, 0, start + length + num_items)
    for epoch in range(len(whole) // num_items):
        assert sorted(whole[epoch * num_items : (epoch + 1) * num_items]) == list(range(num_items))
    part = stream_items(num_items, seed, start, start + length)
    assert part.dtype == np.int64
    np.testing.assert_array_equal(part, whole[start : start + length])


def test_each_epoch_and_seed_has_a_different_order() -> None:
    orders = [tuple(stream_items(50, seed, 50 * epoch, 50 * (epoch + 1))) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9


@pytest.mark.parametrize("batch_size", [1, 4, 5, 30])
def test_each_video_occurs_once_per_epoch_although_batches_span_epochs(data: TinyData, batch_size: int) -> None:
    batches = video_batches(data, batch_size=batch_size)
    assert batches.num_items == 11
    steps = -(-3 * 11 // batch_size)
    visited = np.concatenate([batches.rows[batches._items(batches._positions(step))] for step in range(steps)])
    assert len(visited) == steps * batch_size
    for epoch in range(3):
        assert (
            sorted(visited[11 * epoch : 11 * (epoch + 1)])
            == videos_with_classes(data.reader.catalog, VOCABULARY).tolist()
        )


# --- Batches ----------------------------------------------------------------------------------------------------------


def test_videos_without_a_class_are_excluded(data: TinyData) -> None:
    expected = [row for row, video in enumerate(data.videos) if set(video.labels) & {13, 3, 8, 5, 99}]
    assert videos_with_classes(data.reader.catalog, VOCABULARY).tolist() == expected
    assert not {4, 9} & set(expected)
    elsewhere = Vocabulary(np.array([1000]), ("other",))
    with pytest.raises(UsageError, match="none of its 13 videos has a label of the segment vocabulary"):
        VideoBatches(data.reader, elsewhere, FrameSampling(9), 4, 0)


def row_of_frame(data: TinyData) -> dict[bytes, tuple[int, int]]:
    """Row and second of each frame, by its bytes: random frames are all different."""
    return {frame.tobytes(): (row, t) for row, video in enumerate(data.videos) for t, frame in enumerate(video.frames)}


def locations(data: TinyData, frames: torch.Tensor, lengths: torch.Tensor) -> list[tuple[int, list[int]]]:
    """Row and seconds of each example of a batch; checks that padding is zero."""
    lookup, found = row_of_frame(data), []
    for example, length in zip(frames.numpy(), lengths.tolist(), strict=True):
        rows, seconds = zip(*(lookup[frame.tobytes()] for frame in example[:length]), strict=True)
        assert len(set(rows)) == 1
        assert not example[length:].any()
        found.append((rows[0], list(seconds)))
    assert frames.dtype == torch.uint8
    assert frames.shape[1:] == (int(lengths.max()), 1152)
    return found


def test_a_batch_of_videos_contains_sampled_frames_of_the_crop_and_labels(data: TinyData) -> None:
    batches = video_batches(data)
    choices: dict[int, set[tuple[int, ...]]] = {}
    for step in range(12):
        batch = batches[step]
        for (row, seconds), labels in zip(
            locations(data, join_features(batch), batch.lengths), batch.labels, strict=True
        ):
            length = len(data.videos[row].frames)
            start, stop = (30, length - 10) if length > 40 else (0, length)
            assert start <= seconds[0] <= seconds[-1] < stop
            assert seconds == sorted(set(seconds))
            assert len(seconds) == min(9, stop - start)
            expected = [label in data.videos[row].labels for label in VOCABULARY.label_ids.tolist()]
            assert labels.tolist() == expected
            choices.setdefault(row, set()).add(tuple(seconds))
    # Each visit of a long video samples again: 48 visits of 11 videos, most of which have more than 9 frames.
    assert sum(len(of_video) for of_video in choices.values()) > 25


def test_clip_probability_is_the_share_of_visits_with_consecutive_frames() -> None:
    lengths, positions = np.full(2000, 300), np.arange(2000)
    chosen = FrameSampling(9, clip_probability=0.25).of_videos(lengths, 0, positions)
    clips = [frames for frames in chosen if isinstance(frames, slice)]
    assert {clip.stop - clip.start for clip in clips} == {9}
    assert {len(frames) for frames in chosen if not isinstance(frames, slice)} == {9}
    # 500 expected; the standard deviation of their number is 19.
    assert 420 < len(clips) < 580
    starts = [clip.start for clip in clips]
    assert min(starts) == pytest.approx(30, abs=5)
    assert max(starts) == pytest.approx(281, abs=5)
    assert all(clip.start >= 30 and clip.stop <= 290 for clip in clips)
    # Visits without a clip get the same frames as with a clip probability of 0.
    without = FrameSampling(9).of_videos(lengths, 0, positions)
    assert not any(isinstance(frames, slice) for frames in without)
    for ours, theirs in zip(chosen, without, strict=True):
        if not isinstance(ours, slice):
            np.testing.assert_array_equal(ours, theirs)


def test_a_batch_of_segments_contains_windows_and_ratings(data: TinyData) -> None:
    batches = segment_batches(data)
    visits: list[tuple[int, int, int, float]] = []
    for step in range(batches.num_items):
        batch = batches[step]
        for i, (row, seconds) in enumerate(locations(data, join_features(batch), batch.lengths)):
            length = len(data.videos[row].frames)
            assert batch.rows[i] == row
            start = seconds[0] + 3
            assert seconds == [t for t in range(start - 3, start + 8) if t < length]
            label = int(VOCABULARY.label_ids[batch.class_indices[i]])
            assert (label, start, batch.ratings[i]) in data.videos[row].ratings
            visits.append((row, start, label, float(batch.ratings[i])))
    # In four epochs, each rating of a class occurs four times.
    ratings = [(r, start, label, y) for r, v in enumerate(data.videos) for label, start, y in v.ratings if label > 2]
    assert sorted(visits) == sorted(ratings * 4)


# --- Reproducibility --------------------------------------------------------------------------------------------------


@STREAMS
@pytest.mark.parametrize("world_size", [2, 4])
def test_slices_of_processes_concatenate_to_the_batch_of_one_process(
    data: TinyData, stream: Stream, world_size: int
) -> None:
    whole, shares = stream(data), [stream(data, share=ProcessSlice(rank, world_size)) for rank in range(world_size)]
    for step in range(9):
        batch = whole[step]
        parts = [share[step] for share in shares]
        for name in batch._fields:
            if name in ("rgb", "audio"):
                continue
            assert torch.equal(getattr(batch, name), torch.cat([getattr(part, name) for part in parts])), name
        rows = locations(data, join_features(batch), batch.lengths)
        assert rows == [row for part in parts for row in locations(data, join_features(part), part.lengths)]


@STREAMS
def test_batches_are_the_same_from_any_start_step(data: TinyData, stream: Stream) -> None:
    whole = batches_of(stream(data), 0, 9)
    for start in range(9):
        rest = batches_of(stream(data), start, 9)
        assert len(rest) == 9 - start
        for ours, theirs in zip(whole[start:], rest, strict=True):
            assert_same_batch(ours, theirs)
    assert batches_of(stream(data), 9, 9) == []


@STREAMS
def test_global_random_generators_do_not_change_batches(data: TinyData, stream: Stream) -> None:
    first = stream(data)[5]
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002 - batches must not depend on the global generator
    torch.manual_seed(1)
    assert_same_batch(stream(data)[5], first)


@STREAMS
def test_different_seeds_give_different_batches(data: TinyData, stream: Stream) -> None:
    ours, theirs = (join_features(stream(data, seed=seed)[0]) for seed in (0, 1))
    assert not (ours.shape == theirs.shape and torch.equal(ours, theirs))


def test_a_batch_size_that_is_no_multiple_of_the_processes_is_refused(data: TinyData) -> None:
    with pytest.raises(UsageError, match=r"^batch_size 4 cannot be divided among 3 processes; use a multiple\.$"):
        video_batches(data, share=ProcessSlice(0, 3))


# --- Labels, ratings, folds -------------------------------------------------------------------------------------------


def test_labels_and_mined_negatives_equal_those_of_a_plain_loop(data: TinyData) -> None:
    rows = np.array([9, 4, 0, 12, 0, 7])
    negatives = mined_negatives(data.reader.catalog, VOCABULARY, rows)
    labels = label_mask(data.reader.catalog, VOCABULARY, rows)
    for position, row in enumerate(rows.tolist()):
        video = data.videos[row]
        for column, label in enumerate(VOCABULARY.label_ids.tolist()):
            is_positive = label in video.labels or any(rated == label and y == 1 for rated, _, y in video.ratings)
            assert negatives[position, column] == (not is_positive)
            assert labels[position, column] == (label in video.labels)


def test_mined_negatives_of_an_example(tmp_path: Path) -> None:
    frames = np.zeros((60, 1152), np.uint8)
    # 3 is a label; 8 is rated positive once and negative once; 5 only negative; 3 negative in one segment.
    ratings = ((8, 30, 1.0), (8, 35, 0.0), (5, 30, 0.0), (3, 40, 0.0), (1, 30, 1.0))
    write_shard(tmp_path / "a.tfrecord", [TinyVideo("a", frames, (2, 3), ratings)])
    negatives = mined_negatives(index_folder(tmp_path), VOCABULARY, np.array([0]))
    assert dict(zip(VOCABULARY.label_ids.tolist(), negatives[0].tolist(), strict=True)) == {
        13: True, 3: False, 8: False, 5: True, 99: True,
    }  # fmt: skip


def test_rated_segments_are_complete_and_ordered(data: TinyData) -> None:
    def expected(rows: Sequence[int]) -> list[tuple[int, int, int, bool]]:
        found = [
            (row, start, label, bool(value))
            for row in rows
            for label, start, value in data.videos[row].ratings
            if label in VOCABULARY.label_ids
        ]
        return sorted(found)

    def listed(ratings: Ratings) -> list[tuple[int, int, int, bool]]:
        labels = VOCABULARY.label_ids[ratings.class_indices].tolist()
        columns = (ratings.rows.tolist(), ratings.start_seconds.tolist(), labels, ratings.values.tolist())
        return list(zip(*columns, strict=True))

    catalog = data.reader.catalog
    assert listed(rated_segments(catalog, VOCABULARY)) == expected(range(13))
    assert listed(rated_segments(catalog, VOCABULARY, np.arange(13) % 3 == 1)) == expected(range(1, 13, 3))
    assert len(rated_segments(catalog, VOCABULARY, np.zeros(13, np.bool_))) == 0


def test_folds_depend_on_shard_names_not_on_the_order_of_creation(tmp_path: Path) -> None:
    videos = random_videos(10, num_frames=(20, 20))
    folds = []
    for folder, order in ((tmp_path / "up", range(5)), (tmp_path / "down", range(4, -1, -1))):
        for shard in order:
            write_shard(folder / f"s{shard}.tfrecord", videos[2 * shard : 2 * shard + 2])
        catalog = index_folder(folder)
        folds.append(dict(zip(catalog.video_ids, fold_of_videos(catalog, 3).tolist(), strict=True)))
    assert folds[0] == folds[1] == {video.id: number // 2 % 3 for number, video in enumerate(videos)}
    with pytest.raises(UsageError, match=r"6 folds by shard need at least 6 shards, found 5; lower `folds`"):
        fold_of_videos(catalog, 6)


def test_context_frames_are_evenly_spaced_frames_of_the_crop(data: TinyData) -> None:
    rows = np.array([3, 0, 3])
    lengths = [len(data.videos[row].frames) for row in rows.tolist()]
    context = context_frames(data.reader, rows, 5)
    for (row, seconds), wanted, length in zip(
        locations(data, join_features(context), context.lengths), rows, lengths, strict=True
    ):
        start, stop = (30, length - 10) if length > 40 else (0, length)
        step = (stop - start) / 5
        assert row == wanted
        assert seconds == (
            list(range(start, stop)) if stop - start <= 5 else [int(start + step * (i + 0.5)) for i in range(5)]
        )
