"""Training batches: the batch of a step is a function of (seed, step).

The training stream is endless: position k is item `k % n` of permutation `k // n` of the n items. So every epoch visits
each item once, batches continue across epochs and are always full, and any number of workers or processes, killed and
resumed anywhere, sees the same sequence. Random choices for one item (its frames) are functions of (seed, position).

Datasets are indexed by step and return complete batches, so a loader needs no collation. Frames stay uint8 and are padded
with zero bytes; `lengths` has their number.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from yt8m.dataset.frames import Allocate, FrameReader
from yt8m.dataset.labels import Ratings, label_mask, labeled_videos, mined_negatives
from yt8m.dataset.sampling import (
    FrameIndices,
    crop,
    even_frames,
    fractions,
    random_keys,
    sampled_clip,
    sampled_frames,
    segment_window,
)
from yt8m.errors import UsageError
from yt8m.features import MODALITIES
from yt8m.shards.ids import SEGMENT_SECONDS
from yt8m.shards.records import row_bytes
from yt8m.vocabulary import Vocabulary


class PaddedFrames(NamedTuple):
    """Frames of several videos: rows rgb and audio, uint8 (B, T, bytes of a row), and lengths int64 (B,).

    Of YouTube-8M, rows of rgb have 1,033 bytes, those of audio 137.
    """

    rgb: Tensor
    audio: Tensor
    lengths: Tensor


class VideoBatch(NamedTuple):
    """Videos with their labels: rows and lengths as `PaddedFrames`, labels bool (B, C)."""

    rgb: Tensor
    audio: Tensor
    lengths: Tensor
    labels: Tensor


class SegmentBatch(NamedTuple):
    """Windows of rated segments: rows and lengths as `PaddedFrames`.

    rows int64 (B,): the video's row in the catalog. class_indices int64 (B,), ratings float32 (B,) of 0 and 1, negatives
    bool (B, C): the mined negatives.
    """

    rgb: Tensor
    audio: Tensor
    lengths: Tensor
    rows: Tensor
    class_indices: Tensor
    ratings: Tensor
    negatives: Tensor


def join_features(batch: PaddedFrames | VideoBatch | SegmentBatch) -> Tensor:
    """Cut the headers off the rows of a batch (see `frames`), and concatenate the features.

    Returns:
        Bytes of the frames, uint8 (B, T, bytes), zero beyond the length, on the device of the batch.
    """
    return torch.cat([rows[..., _header_bytes(rows.shape[-1]) :] for rows in (batch.rgb, batch.audio)], -1)


@lru_cache
def _header_bytes(num_bytes: int) -> int:
    """Bytes of the header in a row: rows grow with frames, so only one size of frame has rows of `num_bytes`."""
    return next(header for header in range(num_bytes + 1) if row_bytes(num_bytes - header) == num_bytes)


class ProcessSlice(NamedTuple):
    """The slice of every global batch that a process takes: slice `rank` of `world_size` equal ones."""

    rank: int = 0
    world_size: int = 1


SINGLE_PROCESS = ProcessSlice()
"""A single process takes everything."""


@lru_cache(maxsize=4)
def _permutation(num_items: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(num_items)


def stream_items(num_items: int, seed: int, start: int, stop: int) -> NDArray[np.int64]:
    """Items at the positions [start, stop) of the training stream, int64 (stop - start,).

    Args:
        num_items: Items in an epoch, at least 1.
        seed: Seed of the permutations.
        start: First position.
        stop: End.
    """
    positions = np.arange(start, stop)
    items = np.empty(len(positions), np.int64)
    for epoch in range(start // num_items, (stop - 1) // num_items + 1):
        inside = positions // num_items == epoch
        items[inside] = _permutation(num_items, seed, epoch)[positions[inside] % num_items]
    return items


def read_padded(
    reader: FrameReader, rows: NDArray[np.integer], chosen: Sequence[FrameIndices], allocate: Allocate = np.empty
) -> PaddedFrames:
    """Read some frames of several videos, padded with zero bytes to the longest.

    Args:
        reader: Frames.
        rows: The videos, integer (B,).
        chosen: The frames of each, at least one.
        allocate: Allocates the arrays.
    """
    lengths = allocate((len(rows),), np.int64)
    lengths[:] = [frames.stop - frames.start if isinstance(frames, slice) else len(frames) for frames in chosen]
    shape = (len(rows), int(lengths.max()))
    sizes = (row_bytes(reader.features.bytes_of(name)) for name in MODALITIES)
    rgb, audio = (allocate((*shape, size), np.uint8) for size in sizes)
    reader.fill(rgb, audio, rows, chosen)
    return PaddedFrames(torch.from_numpy(rgb), torch.from_numpy(audio), torch.from_numpy(lengths))


def require_divisible(batch_size: int, world_size: int) -> None:
    """Check that processes can share a batch.

    Raises:
        UsageError: The batch size is no multiple of the number of processes.
    """
    if batch_size % world_size:
        raise UsageError(f"batch_size {batch_size} cannot be divided among {world_size} processes; use a multiple.")


class Batches(Dataset[NamedTuple]):
    """A stream of batches, indexed by step.

    Args:
        reader: Frames and catalog.
        vocabulary: The segment classes.
        num_items: Items in an epoch.
        batch_size: Items in a global batch.
        seed: Seed of the order.
        share: This process's slice of each batch.

    Raises:
        UsageError: The batch size is no multiple of the number of processes.
    """

    def __init__(
        self,
        reader: FrameReader,
        vocabulary: Vocabulary,
        num_items: int,
        batch_size: int,
        seed: int,
        share: ProcessSlice,
    ) -> None:
        require_divisible(batch_size, share.world_size)
        self.reader = reader
        self.vocabulary = vocabulary
        self.num_items = num_items
        self.batch_size = batch_size
        self.seed = seed
        self.share = share

    @property
    def local_batch_size(self) -> int:
        """Examples of a batch that this process takes."""
        return self.batch_size // self.share.world_size

    @property
    def max_frames(self) -> int:
        """Most frames of an example."""
        raise NotImplementedError

    @property
    def num_bytes(self) -> int:
        """Most bytes of a batch of this process: frames with headers, a mask of the classes, at most 8 numbers each."""
        of_example = (
            self.max_frames * sum(row_bytes(self.reader.features.bytes_of(name)) for name in MODALITIES)
            + len(self.vocabulary)
            + 64
        )
        return self.local_batch_size * of_example

    def batch(self, step: int, allocate: Allocate = np.empty) -> NamedTuple:
        """This process's slice of the batch of a step, from 0, in arrays from `allocate`."""
        raise NotImplementedError

    def __getitem__(self, step: int) -> NamedTuple:
        return self.batch(step)

    def _positions(self, step: int) -> range:
        """Stream positions of this process's slice of the batch of a step."""
        start = step * self.batch_size + self.share.rank * self.local_batch_size
        return range(start, start + self.local_batch_size)

    def _items(self, positions: range) -> NDArray[np.int64]:
        return stream_items(self.num_items, self.seed, positions.start, positions.stop)


@dataclass(frozen=True)
class FrameSampling:
    """Sampling of frames in pre-training, after the crop.

    Args:
        max_frames: Frames to sample, at most.
        clip_probability: Probability that a visit sees consecutive frames instead of frames sampled from the whole video.
    """

    max_frames: int
    clip_probability: float = 0.0

    def of_videos(
        self, num_frames: NDArray[np.integer], seed: int, positions: NDArray[np.integer]
    ) -> list[FrameIndices]:
        """Sample frames of some videos.

        Args:
            num_frames: Frames of each video, integer (B,).
            seed: Seed.
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

    Frames are cropped to [30, n - 10), then sampled again at every visit of a video.

    Args:
        reader: Frames and catalog.
        vocabulary: The segment classes; videos without any of them are excluded.
        choice: Sampling of frames.
        batch_size, seed, share: See `Batches`; the seed is also that of the sampling.

    Raises:
        UsageError: No video has a label among the segment classes.
    """

    def __init__(
        self,
        reader: FrameReader,
        vocabulary: Vocabulary,
        choice: FrameSampling,
        batch_size: int,
        seed: int,
        share: ProcessSlice = SINGLE_PROCESS,
    ) -> None:
        self.rows = labeled_videos(reader.catalog, vocabulary)
        super().__init__(reader, vocabulary, len(self.rows), batch_size, seed, share)
        self.choice = choice

    @property
    def max_frames(self) -> int:
        """Most frames of a video: as many as are sampled, or those of the longest video."""
        return min(self.choice.max_frames, int(self.reader.catalog.num_frames[self.rows].max()))

    def batch(self, step: int, allocate: Allocate = np.empty) -> VideoBatch:
        """This process's slice of the batch of a step."""
        positions = self._positions(step)
        rows = self.rows[self._items(positions)]
        chosen = self.choice.of_videos(self.reader.catalog.num_frames[rows], self.seed, np.array(positions))
        labels = label_mask(self.reader.catalog, self.vocabulary, rows, allocate)
        return VideoBatch(*read_padded(self.reader, rows, chosen, allocate), torch.from_numpy(labels))


class SegmentBatches(Batches):
    """Batches of rated segments for fine-tuning, indexed by step.

    Args:
        reader: Frames and catalog.
        vocabulary: The segment classes.
        ratings: The rated segments to train on.
        margin: Frames on either side of a segment.
        batch_size, seed, share: See `Batches`.
    """

    def __init__(
        self,
        reader: FrameReader,
        vocabulary: Vocabulary,
        ratings: Ratings,
        margin: int,
        batch_size: int,
        seed: int,
        share: ProcessSlice = SINGLE_PROCESS,
    ) -> None:
        super().__init__(reader, vocabulary, len(ratings), batch_size, seed, share)
        self.ratings = ratings
        self.margin = margin

    @property
    def max_frames(self) -> int:
        """Frames of a segment's window."""
        return SEGMENT_SECONDS + 2 * self.margin

    def batch(self, step: int, allocate: Allocate = np.empty) -> SegmentBatch:
        """This process's slice of the batch of a step."""
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
        *read_padded(reader, rows, windows, allocate),
        torch.from_numpy(rows),
        torch.from_numpy(classes),
        torch.from_numpy(values),
        torch.from_numpy(mined_negatives(reader.catalog, vocabulary, rows, allocate)),
    )


def context_frames(reader: FrameReader, rows: NDArray[np.integer], max_frames: int) -> PaddedFrames:
    """Read the context of videos as in inference: cropped, then at most `max_frames` evenly spaced frames."""
    lengths = reader.catalog.num_frames[rows].tolist()
    return read_padded(reader, rows, [even_frames(*crop(length), max_frames) for length in lengths])
