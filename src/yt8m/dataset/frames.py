"""Any frames of any video, through memory maps: nothing but the frames asked for leaves the disk.

The catalog says where a video's frames lie, so reading them is one strided copy out of the mapped shard into the array
that the caller wants filled. Frames stay uint8, rgb then audio (DESIGN: bytes until the device).
"""

from __future__ import annotations

import mmap
from collections import OrderedDict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yt8m.dataset.catalog import Catalog, shard_info
from yt8m.errors import ShardError
from yt8m.shards.example import NUM_AUDIO, NUM_RGB, MalformedRecordError, frame_offsets
from yt8m.shards.tfrecord import map_shard

NUM_FEATURES = NUM_RGB + NUM_AUDIO
"""Bytes of a frame: 1,152."""

# A frame as one element: numpy then copies frame by frame, not byte by byte.
_RGB_FRAME = np.dtype((np.void, NUM_RGB))
_AUDIO_FRAME = np.dtype((np.void, NUM_AUDIO))


class FrameReader:
    """Reads frames of the videos of a catalog.

    Shards are mapped when first needed, and the least recently used one is let go when there are too many: each map
    holds a file descriptor. A reader can be pickled and used after a fork; each process has its own maps.

    Args:
        catalog: The videos.
        max_open_shards: Most shards mapped at a time.
    """

    def __init__(self, catalog: Catalog, max_open_shards: int = 64) -> None:
        self.catalog = catalog
        self.max_open_shards = max_open_shards
        self._maps: OrderedDict[int, mmap.mmap] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the maps behind: they belong to a process."""
        return self.__dict__ | {"_maps": OrderedDict()}

    def num_frames(self, row: int) -> int:
        """Frames of a video."""
        return int(self.catalog.num_frames[row])

    def read(
        self, row: int, start: int = 0, stop: int | None = None, *, out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """Read consecutive frames of a video.

        Args:
            row: The video's row in the catalog.
            start: First frame.
            stop: End; all the rest by default.
            out: Array to fill, uint8 (stop - start, 1152) with its last axis contiguous; a new one by default.

        Returns:
            `out`.

        Raises:
            ShardError: The shard is gone or has changed since it was indexed.
            IndexError: The video has no such frames.
        """
        num_frames = self.num_frames(row)
        if stop is None:
            stop = num_frames
        if not 0 <= start <= stop <= num_frames:
            raise IndexError(f"frames {start} to {stop} of row {row}, which has {num_frames}")
        return self._copy(row, slice(start, stop), _output(out, stop - start))

    def gather(
        self, row: int, indices: NDArray[np.integer], *, out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """Read chosen frames of a video.

        Args:
            row: The video's row in the catalog.
            indices: The frames, integer (T,), in any order.
            out: Array to fill, uint8 (T, 1152) with its last axis contiguous; a new one by default.

        Returns:
            `out`.

        Raises:
            ShardError: The shard is gone or has changed since it was indexed.
            IndexError: The video has no such frame.
        """
        num_frames = self.num_frames(row)
        if len(indices) and not (indices.min() >= 0 and indices.max() < num_frames):
            raise IndexError(f"frames {indices.min()} to {indices.max()} of row {row}, which has {num_frames}")
        return self._copy(row, indices, _output(out, len(indices)))

    def _copy(self, row: int, chosen: slice | NDArray[np.integer], out: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if not len(out):
            return out
        catalog = self.catalog
        shard = self._shard(row)
        rgb_stride, audio_stride = int(catalog.rgb_stride[row]), int(catalog.audio_stride[row])
        if not (rgb_stride and audio_stride):
            return self._copy_unequally_spaced(row, shard, chosen, out)
        shape = (self.num_frames(row),)
        rgb = np.ndarray(shape, _RGB_FRAME, shard, int(catalog.rgb_offset[row]), (rgb_stride,))
        audio = np.ndarray(shape, _AUDIO_FRAME, shard, int(catalog.audio_offset[row]), (audio_stride,))
        out[:, :NUM_RGB].view(_RGB_FRAME)[:, 0] = rgb[chosen]
        out[:, NUM_RGB:].view(_AUDIO_FRAME)[:, 0] = audio[chosen]
        return out

    def _copy_unequally_spaced(
        self, row: int, shard: mmap.mmap, chosen: slice | NDArray[np.integer], out: NDArray[np.uint8]
    ) -> NDArray[np.uint8]:
        """Parse the record for where its frames lie: legal, but no known writer makes such records."""
        begin = int(self.catalog.record_offset[row])
        payload = shard[begin : begin + int(self.catalog.record_length[row])]
        try:
            rgb, audio = frame_offsets(payload)
        except MalformedRecordError as error:
            number = int(self.catalog.record_number[row])
            path = self.catalog.shard_path(row)
            raise ShardError(path, error.message, record=number, offset=begin + error.offset) from None
        # The longer list is cut where rgb and audio differ in length.
        length = self.num_frames(row)
        for frame, at in zip(out, rgb[:length][chosen].tolist(), strict=True):
            frame[:NUM_RGB] = np.frombuffer(payload, np.uint8, NUM_RGB, at)
        for frame, at in zip(out, audio[:length][chosen].tolist(), strict=True):
            frame[NUM_RGB:] = np.frombuffer(payload, np.uint8, NUM_AUDIO, at)
        return out

    def _shard(self, row: int) -> mmap.mmap:
        """The mapped shard of a video, checked to be the one that was indexed."""
        position = int(self.catalog.shard_index[row])
        info = self.catalog.shards[position]
        shard = self._maps.get(position)
        if shard is None:
            path = self.catalog.shard_path(row)
            shard = map_shard(path)
            if shard_info(path) != info:
                raise self._changed(row)
            while len(self._maps) >= self.max_open_shards:
                self._maps.popitem(last=False)
            self._maps[position] = shard
        else:
            self._maps.move_to_end(position)
        # Asked every time: touching what was cut off a mapped file would end the process.
        if shard.size() != info.num_bytes:
            raise self._changed(row)
        return shard

    def _changed(self, row: int) -> ShardError:
        message = f"has changed since it was indexed; run `yt8m index {self.catalog.folder}`."
        return ShardError(self.catalog.shard_path(row), message)


def _output(out: NDArray[np.uint8] | None, num_frames: int) -> NDArray[np.uint8]:
    shape = (num_frames, NUM_FEATURES)
    if out is None:
        return np.empty(shape, np.uint8)
    if out.shape != shape or out.dtype != np.uint8:
        raise ValueError(f"out is {out.dtype} {out.shape}, expected uint8 {shape}")
    return out
