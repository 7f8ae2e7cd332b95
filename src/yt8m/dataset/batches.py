"""Batches for training: the batch of a step is a function of (seed, step) and of nothing else.

A training stream is endless: position k of it is item `k % n` of the k // n-th permutation of the n items, so every
epoch visits each item once, batches run across the ends of epochs and are always full, and any number of workers or
processes, killed and resumed anywhere, sees the same sequence (DESIGN: the catalog). What is random about one item
(which frames are sampled) comes from (seed, position) alone.

The datasets here are indexed by *step* and return whole batches, so a loader needs no collation of its own; each
takes the memory of its arrays from whoever asks (see `read_ahead`). Frames stay uint8 and are padded with zero bytes;
`lengths` says what counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from yt8m.dataset.frames import AUDIO_ROW, RGB_ROW, Allocate, FrameReader
from yt8m.dataset.labels import Ratings, label_mask, mined_negatives, videos_with_classes
from yt8m.dataset.sampling import (
    Chosen,
    crop,
    even_frames,
    fractions,
    random_keys,
    sampled_clip,
    sampled_frames,
    segment_window,
)
from yt8m.errors import UsageError
from yt8m.shards.records import NUM_AUDIO, NUM_RGB, SEGMENT_SECONDS
from yt8m.vocabulary import Vocabulary


def joined(rgb: Tensor, audio: Tensor) -> Tensor:
    """Cut the headers off the rows of a batch (see `frames`).

    Args:
        rgb: uint8 (B, T, 1034), on any device.
        audio: uint8 (B, T, 137).

    Returns:
        Frames, uint8 (B, T, D), on the same device.
    """
    return torch.cat((rgb[..., -NUM_RGB:], audio[..., -NUM_AUDIO:]), -1)


class PaddedFrames(NamedTuple):
    """Frames of several videos: rows rgb uint8 (B, T, 1034) and audio uint8 (B, T, 137), lengths int64 (B,)."""

    rgb: Tensor
    audio: Tensor
    lengths: Tensor

    @property
    def frames(self) -> Tensor:
        """The frames without their headers, uint8 (B, T, D); zero beyond the length."""
        return joined(self.rgb, self.audio)


class VideoBatch(NamedTuple):
    """Videos with their labels: rows and lengths as `PaddedFrames`, labels bool (B, C)."""

    rgb: Tensor
    audio: Tensor
    lengths: Tensor
    labels: Tensor

    @property
    def frames(self) -> Tensor:
        """The frames without their headers, uint8 (B, T, D); zero beyond the length."""
        return joined(self.rgb, self.audio)


class SegmentBatch(NamedTuple):
    """Rated segments.

    Rows and lengths as `PaddedFrames`: the segment's window. rows int64 (B,): the video's row in the catalog.
    class_indices int64 (B,), ratings float32 (B,) of 0 and 1. negatives bool (B, C): the mined negatives.
    """

    rgb: Tensor
    audio: Tensor
    lengths: Tensor
    rows: Tensor
    class_indices: Tensor
    ratings: Tensor
    negatives: Tensor

    @property
    def frames(self) -> Tensor:
        """The frames without their headers, uint8 (B, T, D); zero beyond the length."""
        return joined(self.rgb, self.audio)


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


def padded(
    reader: FrameReader, rows: NDArray[np.integer], chosen: Sequence[Chosen], allocate: Allocate = np.empty
) -> PaddedFrames:
    """Read chosen frames of several videos, padded with zero bytes to the longest.

    Args:
        reader: Where the frames are.
        rows: The videos, integer (B,).
        chosen: The frames of each, at least one.
        allocate: Where the arrays come from.
    """
    lengths = allocate((len(rows),), np.int64)
    lengths[:] = [frames.stop - frames.start if isinstance(frames, slice) else len(frames) for frames in chosen]
    shape = (len(rows), int(lengths.max()))
    rgb, audio = allocate((*shape, RGB_ROW), np.uint8), allocate((*shape, AUDIO_ROW), np.uint8)
    reader.fill(rgb, audio, rows, chosen)
    return PaddedFrames(torch.from_numpy(rgb), torch.from_numpy(audio), torch.from_numpy(lengths))


class Batches(Dataset[NamedTuple]):
    """A stream of batches, indexed by step.

    Args:
        vocabulary: The segment classes.
        num_items: Items in an epoch.
        batch_size: Items in a global batch.
        seed: Seed of the order.
        share: This process's part of each batch.

    Raises:
        UsageError: The processes cannot share a batch evenly.
    """

    def __init__(self, vocabulary: Vocabulary, num_items: int, batch_size: int, seed: int, share: Share) -> None:
        if batch_size % share.world_size:
            raise UsageError(
                f"batch_size {batch_size} cannot be divided among {share.world_size} processes; use a multiple."
            )
        self.vocabulary = vocabulary
        self.num_items = num_items
        self.batch_size = batch_size
        self.seed = seed
        self.share = share

    @property
    def share_size(self) -> int:
        """Examples of a batch that this process takes."""
        return self.batch_size // self.share.world_size

    @property
    def max_frames(self) -> int:
        """Most frames that an example of any batch has."""
        raise NotImplementedError

    def batch(self, step: int, allocate: Allocate = np.empty) -> NamedTuple:
        """This process's part of the batch of a step.

        Args:
            step: The step, from 0.
            allocate: Where the arrays come from.
        """
        raise NotImplementedError

    def __getitem__(self, step: int) -> NamedTuple:
        return self.batch(step)

    def _positions(self, step: int) -> range:
        """Stream positions that this process takes of the batch of a step."""
        start = step * self.batch_size + self.share.rank * self.share_size
        return range(start, start + self.share_size)

    def _items(self, positions: range) -> NDArray[np.int64]:
        return stream_items(self.num_items, self.seed, positions.start, positions.stop)


@dataclass(frozen=True)
class FrameChoice:
    """Which frames of a video a visit in pre-training sees, of those left by the crop.

    Args:
        max_frames: Frames seen, at most.
        clip_probability: Share of the visits that see consecutive frames, the others see frames from all over the video.
    """

    max_frames: int
    clip_probability: float = 0.0

    def of_videos(self, num_frames: NDArray[np.integer], seed: int, positions: NDArray[np.integer]) -> list[Chosen]:
        """Choose frames of some videos.

        Args:
            num_frames: Frames of each video, integer (B,).
            seed: With the position, decides the choice.
            positions: Position of each visit in the training stream, integer (B,).
        """
        starts, stops = np.array([crop(length) for length in num_frames.tolist()]).T
        keys = random_keys(seed, positions, 2 + int((stops - starts).max()))
        chosen = sampled_frames(starts, stops, self.max_frames, keys[:, 2:])
        is_clip, place = fractions(keys[:, :2]).T
        for row in np.flatnonzero(is_clip < self.clip_probability).tolist():
            chosen[row] = sampled_clip(int(starts[row]), int(stops[row]), self.max_frames, float(place[row]))
        return chosen


class VideoBatches(Batches):
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
        super().__init__(vocabulary, len(self.rows), batch_size, seed, share)
        self.reader = reader
        self.choice = choice

    @property
    def max_frames(self) -> int:
        """Most frames that a video of any batch has: as many as are chosen, or those of the longest video."""
        return min(self.choice.max_frames, int(self.reader.catalog.num_frames[self.rows].max()))

    def batch(self, step: int, allocate: Allocate = np.empty) -> VideoBatch:
        """This process's part of the batch of a step."""
        positions = self._positions(step)
        rows = self.rows[self._items(positions)]
        chosen = self.choice.of_videos(self.reader.catalog.num_frames[rows], self.seed, np.array(positions))
        labels = label_mask(self.reader.catalog, self.vocabulary, rows, allocate)
        return VideoBatch(*padded(self.reader, rows, chosen, allocate), torch.from_numpy(labels))


class SegmentBatches(Batches):
    """Batches of rated segments for fine-tuning, indexed by step.

    Args:
        reader: Frames and catalog.
        vocabulary: The segment classes.
        ratings: The rated segments to train on.
        margin: Frames on either side of a segment.
        batch_size: Segments in a global batch.
        seed: Seed of the order.
        share: This process's part of each batch.
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
    ) -> None:
        super().__init__(vocabulary, len(ratings), batch_size, seed, share)
        self.reader = reader
        self.ratings = ratings
        self.margin = margin

    @property
    def max_frames(self) -> int:
        """Frames of a segment's window inside a video."""
        return SEGMENT_SECONDS + 2 * self.margin

    def batch(self, step: int, allocate: Allocate = np.empty) -> SegmentBatch:
        """This process's part of the batch of a step."""
        items = self._items(self._positions(step))
        return segment_batch(self.reader, self.vocabulary, self.ratings, items, self.margin, allocate)


def segment_batch(
    reader: FrameReader,
    vocabulary: Vocabulary,
    ratings: Ratings,
    items: NDArray[np.integer],
    margin: int,
    allocate: Allocate = np.empty,
) -> SegmentBatch:
    """Read the windows of some rated segments, with their ratings and mined negatives."""
    rows, classes = allocate((len(items),), np.int64), allocate((len(items),), np.int64)
    values = allocate((len(items),), np.float32)
    rows[:], classes[:], values[:] = ratings.rows[items], ratings.class_indices[items], ratings.values[items]
    windows = [
        slice(*segment_window(start, length, margin))
        for start, length in zip(
            ratings.start_seconds[items].tolist(), reader.catalog.num_frames[rows].tolist(), strict=True
        )
    ]
    return SegmentBatch(
        *padded(reader, rows, windows, allocate),
        torch.from_numpy(rows),
        torch.from_numpy(classes),
        torch.from_numpy(values),
        torch.from_numpy(mined_negatives(reader.catalog, vocabulary, rows, allocate)),
    )


def context_frames(reader: FrameReader, rows: NDArray[np.integer], max_frames: int) -> PaddedFrames:
    """Read the context of videos as inference sees it: cropped, then at most `max_frames` evenly spaced frames."""
    lengths = reader.catalog.num_frames[rows].tolist()
    return padded(reader, rows, [even_frames(*crop(length), max_frames) for length in lengths])
