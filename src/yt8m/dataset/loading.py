"""Batches for training: the batch of a step is a function of (seed, step) and of nothing else.

A training stream is endless: position k of it is item `k % n` of the k // n-th permutation of the n items, so every
epoch visits each item once, batches run across the ends of epochs and are always full, and any number of workers or
processes, killed and resumed anywhere, sees the same sequence (DESIGN: the catalog). What is random about one item
(which frames are sampled) comes from (seed, position) alone.

The datasets here are indexed by *step* and return whole batches, so a loader needs no collation of its own. Frames
stay uint8 and are padded with zero bytes; `lengths` says what counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from yt8m.dataset.catalog import Catalog
from yt8m.dataset.frames import NUM_FEATURES, FrameReader
from yt8m.dataset.sampling import crop, even_frames, sampled_clip, sampled_frames, segment_window
from yt8m.errors import UsageError
from yt8m.vocabulary import Vocabulary


class VideoBatch(NamedTuple):
    """Videos with their labels: frames uint8 (B, T, D), lengths int64 (B,), labels bool (B, C)."""

    frames: Tensor
    lengths: Tensor
    labels: Tensor


class SegmentBatch(NamedTuple):
    """Rated segments.

    frames uint8 (B, T, D) and lengths int64 (B,): the segment's window. rows int64 (B,): the video's row in the
    catalog. class_indices int64 (B,), ratings float32 (B,) of 0 and 1. negatives bool (B, C): the mined negatives.
    context_frames uint8 (B, T', D) and context_lengths: the video around it, or None where no model asks for it.
    """

    frames: Tensor
    lengths: Tensor
    rows: Tensor
    class_indices: Tensor
    ratings: Tensor
    negatives: Tensor
    context_frames: Tensor | None
    context_lengths: Tensor | None


class Share(NamedTuple):
    """Which part of every global batch a process takes: part `rank` of `world_size` equal ones."""

    rank: int = 0
    world_size: int = 1


ALONE = Share()
"""One process takes everything."""


@lru_cache(maxsize=4)
def _permutation(num_items: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(num_items)


def stream_items(num_items: int, seed: int, start: int, stop: int) -> NDArray[np.int64]:
    """Items at the positions [start, stop) of the endless training stream.

    Args:
        num_items: Items in an epoch, at least 1.
        seed: Seed of the permutations.
        start: First position.
        stop: End.

    Returns:
        Item numbers, int64 (stop - start,).
    """
    positions = np.arange(start, stop)
    items = np.empty(len(positions), np.int64)
    for epoch in range(start // num_items, (stop - 1) // num_items + 1):
        inside = positions // num_items == epoch
        items[inside] = _permutation(num_items, seed, epoch)[positions[inside] % num_items]
    return items


def padded(reader: FrameReader, rows: NDArray[np.integer], indices: list[NDArray[np.int64]]) -> tuple[Tensor, Tensor]:
    """Read chosen frames of several videos into one array, padded with zero bytes to the longest.

    Args:
        reader: Where the frames are.
        rows: The videos, integer (B,).
        indices: The frames of each, increasing.

    Returns:
        Frames uint8 (B, T, D) and lengths int64 (B,).
    """
    lengths = np.array([len(chosen) for chosen in indices], np.int64)
    frames = np.zeros((len(rows), int(lengths.max()), NUM_FEATURES), np.uint8)
    for position, (row, chosen) in enumerate(zip(rows.tolist(), indices, strict=True)):
        target = frames[position, : len(chosen)]
        if chosen[-1] - chosen[0] + 1 == len(chosen):
            reader.read(row, int(chosen[0]), int(chosen[-1]) + 1, out=target)
        else:
            reader.gather(row, chosen, out=target)
    return torch.from_numpy(frames), torch.from_numpy(lengths)


class _Batches(Dataset[NamedTuple]):
    """Shared arithmetic of the two streams of batches."""

    def __init__(self, num_items: int, batch_size: int, seed: int, share: Share) -> None:
        if batch_size % share.world_size:
            raise UsageError(
                f"batch_size {batch_size} cannot be divided among {share.world_size} processes; use a multiple."
            )
        self.num_items = num_items
        self.batch_size = batch_size
        self.seed = seed
        self.share = share

    def _positions(self, step: int) -> range:
        """Stream positions that this process takes of the batch of a step."""
        size = self.batch_size // self.share.world_size
        start = step * self.batch_size + self.share.rank * size
        return range(start, start + size)

    def _items(self, positions: range) -> NDArray[np.int64]:
        return stream_items(self.num_items, self.seed, positions.start, positions.stop)


def videos_with_classes(catalog: Catalog, vocabulary: Vocabulary) -> NDArray[np.int64]:
    """Rows of the videos with at least one label among the segment classes; the others are left out of training."""
    known = vocabulary.class_indices(catalog.label_values) >= 0
    totals = np.concatenate([[0], np.cumsum(known)])
    return np.flatnonzero(totals[catalog.label_starts[1:]] > totals[catalog.label_starts[:-1]])


def label_mask(catalog: Catalog, vocabulary: Vocabulary, rows: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Video labels as columns of a model: bool (B, C)."""
    mask = np.zeros((len(rows), len(vocabulary)), np.bool_)
    for position, row in enumerate(rows.tolist()):
        columns = vocabulary.class_indices(catalog.labels_of(row))
        mask[position, columns[columns >= 0]] = True
    return mask


@dataclass(frozen=True)
class FrameChoice:
    """Which frames of a video a visit in pre-training sees, of those left by the crop.

    Args:
        max_frames: Frames seen, at most.
        clip_share: Share of the visits that see consecutive frames, the others see frames from all over the video.
    """

    max_frames: int
    clip_share: float = 0.0

    def indices(self, num_frames: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Choose frames of a video of `num_frames`: increasing, int64 (T,)."""
        is_clip = self.clip_share > 0 and rng.random() < self.clip_share
        return (sampled_clip if is_clip else sampled_frames)(*crop(num_frames), self.max_frames, rng)


class VideoBatches(_Batches):
    """Batches of videos for pre-training, indexed by step.

    Frames are cropped to [30, n - 10), then some are chosen, afresh for every visit of a video.

    Args:
        reader: Frames and catalog.
        vocabulary: The segment classes; videos with none of them are left out.
        choice: How frames are chosen.
        batch_size: Videos in a global batch.
        seed: Seed of order and sampling.
        share: This process's part of each batch.

    Raises:
        UsageError: No video carries a segment class.
    """

    def __init__(
        self,
        reader: FrameReader,
        vocabulary: Vocabulary,
        choice: FrameChoice,
        batch_size: int,
        seed: int,
        share: Share = ALONE,
    ) -> None:
        self.rows = videos_with_classes(reader.catalog, vocabulary)
        if not len(self.rows):
            raise UsageError(
                f"{reader.catalog.folder}: none of its {len(reader.catalog)} videos carries a label of the segment vocabulary; "
                "is this the vocabulary of this dataset?"
            )
        super().__init__(len(self.rows), batch_size, seed, share)
        self.reader = reader
        self.vocabulary = vocabulary
        self.choice = choice

    def __getitem__(self, step: int) -> VideoBatch:
        positions = self._positions(step)
        rows = self.rows[self._items(positions)]
        indices = []
        for position, row in zip(positions, rows.tolist(), strict=True):
            rng = np.random.default_rng([self.seed, position])
            indices.append(self.choice.indices(int(self.reader.catalog.num_frames[row]), rng))
        labels = label_mask(self.reader.catalog, self.vocabulary, rows)
        return VideoBatch(*padded(self.reader, rows, indices), torch.from_numpy(labels))


@dataclass(frozen=True, eq=False)
class Ratings:
    """Rated segments of the segment classes, one an element, in the order (video, start, class).

    Args:
        rows: Row of the video in the catalog, int64 (R,).
        class_indices: The class, int64 (R,).
        start_seconds: Start of the segment, int64 (R,).
        values: Whether the class is there, bool (R,).
    """

    rows: NDArray[np.int64]
    class_indices: NDArray[np.int64]
    start_seconds: NDArray[np.int64]
    values: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.rows)


def fold_of_videos(catalog: Catalog, num_folds: int) -> NDArray[np.int64]:
    """Fold of each video: the position of its shard among the sorted shard names, modulo the number of folds.

    Raises:
        UsageError: There are fewer shards than folds, so some fold would be empty.
    """
    if len(catalog.shards) < num_folds:
        raise UsageError(
            f"{catalog.folder}: {num_folds} folds by shard need at least {num_folds} shards, found {len(catalog.shards)}; "
            "set `folds` lower or split the data into more shards."
        )
    return catalog.shard_index.astype(np.int64) % num_folds


def rated_segments(catalog: Catalog, vocabulary: Vocabulary, videos: NDArray[np.bool_] | None = None) -> Ratings:
    """Ratings of the segment classes among some videos of a catalog.

    Args:
        catalog: Videos with their ratings.
        vocabulary: The segment classes; ratings of other labels are left out.
        videos: Which videos count, bool (N,); all by default.
    """
    columns = vocabulary.class_indices(catalog.rating_labels).astype(np.int64)
    rows = np.repeat(np.arange(len(catalog)), np.diff(catalog.rating_starts))
    kept = columns >= 0
    if videos is not None:
        kept &= videos[rows]
    return Ratings(
        rows[kept],
        columns[kept],
        catalog.rating_start_seconds[kept].astype(np.int64),
        catalog.rating_values[kept].astype(np.bool_),
    )


def mined_negatives(catalog: Catalog, vocabulary: Vocabulary, rows: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Classes that a video surely does not show: all but its labels and its positively rated labels.

    A label that was rated negative somewhere stays a negative unless the video carries it (SPEC: fine-tuning loss).

    Returns:
        bool (B, C).
    """
    negatives = ~label_mask(catalog, vocabulary, rows)
    for position, row in enumerate(rows.tolist()):
        labels, _, values = catalog.ratings_of(row)
        columns = vocabulary.class_indices(labels[values.astype(np.bool_)])
        negatives[position, columns[columns >= 0]] = False
    return negatives


class SegmentBatches(_Batches):
    """Batches of rated segments for fine-tuning, indexed by step.

    Args:
        reader: Frames and catalog.
        vocabulary: The segment classes.
        ratings: The rated segments to train on.
        margin: Frames on either side of a segment.
        batch_size: Segments in a global batch.
        seed: Seed of order and sampling.
        share: This process's part of each batch.
        context_frames: L_max of sampled context frames to deliver with each segment; None for no frames.
    """

    def __init__(
        self,
        reader: FrameReader,
        vocabulary: Vocabulary,
        ratings: Ratings,
        margin: int,
        batch_size: int,
        seed: int,
        share: Share = ALONE,
        context_frames: int | None = None,
    ) -> None:
        super().__init__(len(ratings), batch_size, seed, share)
        self.reader = reader
        self.vocabulary = vocabulary
        self.ratings = ratings
        self.margin = margin
        self.context_frames = context_frames

    def __getitem__(self, step: int) -> SegmentBatch:
        positions = self._positions(step)
        context: tuple[Tensor, Tensor] | tuple[None, None] = (None, None)
        items = self._items(positions)
        if self.context_frames is not None:
            rows = self.ratings.rows[items]
            lengths = self.reader.catalog.num_frames[rows]
            indices = [
                sampled_frames(*crop(int(length)), self.context_frames, np.random.default_rng([self.seed, position]))
                for position, length in zip(positions, lengths, strict=True)
            ]
            context = padded(self.reader, rows, indices)
        return segment_batch(self.reader, self.vocabulary, self.ratings, items, self.margin, context)


def segment_batch(
    reader: FrameReader,
    vocabulary: Vocabulary,
    ratings: Ratings,
    items: NDArray[np.integer],
    margin: int,
    context: tuple[Tensor, Tensor] | tuple[None, None] = (None, None),
) -> SegmentBatch:
    """Read the windows of some rated segments, with their ratings and mined negatives."""
    rows, starts = ratings.rows[items], ratings.start_seconds[items]
    lengths = reader.catalog.num_frames[rows]
    windows = [
        np.arange(*segment_window(start, int(length), margin))
        for start, length in zip(starts.tolist(), lengths, strict=True)
    ]
    return SegmentBatch(
        *padded(reader, rows, windows),
        torch.from_numpy(rows),
        torch.from_numpy(ratings.class_indices[items]),
        torch.from_numpy(ratings.values[items].astype(np.float32)),
        torch.from_numpy(mined_negatives(reader.catalog, vocabulary, rows)),
        *context,
    )


def context_frames(reader: FrameReader, rows: NDArray[np.integer], max_frames: int) -> tuple[Tensor, Tensor]:
    """Read the context of videos as inference sees it: cropped, then at most `max_frames` evenly spaced frames.

    Returns:
        Frames uint8 (B, T, D) and lengths int64 (B,).
    """
    lengths = reader.catalog.num_frames[rows]
    return padded(reader, rows, [even_frames(*crop(int(length)), max_frames) for length in lengths])


def step_loader(
    batches: Dataset[NamedTuple], start: int, stop: int, num_workers: int, pin_memory: bool
) -> DataLoader[NamedTuple]:
    """Deliver the batches of the steps [start, stop) in order, read ahead by worker processes if any.

    Args:
        batches: A dataset indexed by step.
        start: First step, so that a resumed run goes on without reading what came before.
        stop: End.
        num_workers: Processes that read ahead; 0 reads in this process.
        pin_memory: Whether batches go to page-locked memory, for quicker transfer to a GPU.
    """
    return DataLoader(
        batches,
        batch_size=None,
        sampler=range(start, stop),
        num_workers=num_workers,
        pin_memory=pin_memory,
        prefetch_factor=4 if num_workers else None,
        persistent_workers=False,
    )
