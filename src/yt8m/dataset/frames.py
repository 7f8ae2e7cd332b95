"""Random access to frames through memory maps: nothing but the requested frames is read from the disk.

The catalog locates a video's frames, so no record is parsed. In a shard each frame follows the same few bytes of header,
and batches take frames with their headers, as rows of 1,033 bytes (rgb) and 137 (audio): consecutive frames are then one
copy of memory, and sampled ones one copy per frame, which is a third faster than without the headers. The device cuts
them off (`batches.join_features`). Frames stay uint8.
"""

import errno
import os
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import DTypeLike, NDArray

from yt8m.dataset.catalog import Catalog
from yt8m.dataset.sampling import FrameIndices
from yt8m.errors import ShardError
from yt8m.shards.records import NUM_AUDIO, NUM_RGB, frame_header, frame_offsets
from yt8m.shards.wire import MalformedRecordError

NUM_FEATURES = NUM_RGB + NUM_AUDIO
"""Bytes of a frame: 1,152."""

MAX_MAPPED_BYTES = 2**38
"""Most bytes mapped at a time, 256 GiB. A page table takes up to 1/512 of that: 512 MiB, in every process that reads;
the 1.5 TB of the training set would take 3 GB."""

MAX_MAPPED_SHARDS = 2**14
"""Linux allows 65,530 maps per process, of which libraries need some."""


RGB_ROW = len(frame_header(NUM_RGB)) + NUM_RGB
AUDIO_ROW = len(frame_header(NUM_AUDIO)) + NUM_AUDIO
"""Bytes of a frame with its header, in a batch and in shards of every known writer."""


# A row as one element, so that numpy copies row by row, not byte by byte.
_RGB_ITEM = np.dtype((np.void, RGB_ROW))
_AUDIO_ITEM = np.dtype((np.void, AUDIO_ROW))


class Allocate(Protocol):
    """Allocates uninitialized arrays: `np.empty`, or memory that is reused."""

    def __call__(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Allocate an array of this shape and type."""


class _Layout(NamedTuple):
    """The location of one video's frames: columns of the catalog as plain numbers."""

    shard_index: int
    num_frames: int
    rgb_offset: int
    rgb_stride: int
    audio_offset: int
    audio_stride: int


class FrameReader:
    """Reads frames of the videos of a catalog.

    Shards are mapped when first needed; the least recently used are unmapped when there are too many. A map needs no file
    descriptor, so thousands of shards are open under any `ulimit -n`. A reader can be pickled and used after a fork; each
    process has its own maps. It is not thread-safe.

    Args:
        catalog: The videos.
        max_mapped_bytes: Most bytes mapped at a time, apart from the shard in use.
    """

    def __init__(self, catalog: Catalog, max_mapped_bytes: int = MAX_MAPPED_BYTES) -> None:
        self.catalog = catalog
        self.max_mapped_bytes = max_mapped_bytes
        self._reset()

    def _reset(self) -> None:
        catalog = self.catalog
        self._paths = [str(catalog.folder / shard.name) for shard in catalog.shards]
        self._columns = tuple(getattr(catalog, name) for name in _Layout._fields)
        self._maps: OrderedDict[int, NDArray[np.uint8]] = OrderedDict()
        self._mapped_bytes = 0
        self._scratch = np.empty(0, np.uint8)

    def __getstate__(self) -> dict[str, Any]:
        """Drop the maps, which belong to a process."""
        return {"catalog": self.catalog, "max_mapped_bytes": self.max_mapped_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def num_frames(self, row: int) -> int:
        """Number of frames of a video."""
        return int(self.catalog.num_frames[row])

    def read(
        self, row: int, start: int = 0, stop: int | None = None, *, out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """Read consecutive frames of a video.

        Args:
            row: The video's row in the catalog.
            start: First frame.
            stop: End; the last frame's by default.
            out: Array to fill, uint8 (stop - start, 1152) with its last axis contiguous; a new one by default.

        Returns:
            `out`.

        Raises:
            ShardError: The shard is missing or has changed since it was indexed.
            IndexError: The video has no such frames.
        """
        layout = self._layout(row)
        if stop is None:
            stop = layout.num_frames
        if not 0 <= start <= stop <= layout.num_frames:
            raise IndexError(f"frames {start} to {stop} of row {row}, which has {layout.num_frames}")
        return self._read(row, layout, slice(start, stop), _output(out, stop - start))

    def gather(
        self, row: int, indices: NDArray[np.integer], *, out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """Read some frames of a video.

        Args:
            row: The video's row in the catalog.
            indices: The frames, integer (T,), in any order.
            out: Array to fill, uint8 (T, 1152) with its last axis contiguous; a new one by default.

        Returns:
            `out`.

        Raises:
            ShardError: The shard is missing or has changed since it was indexed.
            IndexError: The video has no such frame.
        """
        layout = self._layout(row)
        if len(indices) and not (indices.min() >= 0 and indices.max() < layout.num_frames):
            raise IndexError(f"frames {indices.min()} to {indices.max()} of row {row}, which has {layout.num_frames}")
        return self._read(row, layout, indices, _output(out, len(indices)))

    def _read(
        self, row: int, layout: _Layout, chosen: slice | NDArray[np.integer], out: NDArray[np.uint8]
    ) -> NDArray[np.uint8]:
        if len(out):
            count = len(out)
            if len(self._scratch) < count * (RGB_ROW + AUDIO_ROW):
                self._scratch = np.empty(count * (RGB_ROW + AUDIO_ROW), np.uint8)
            rgb = self._scratch[: count * RGB_ROW]
            audio = self._scratch[count * RGB_ROW : count * (RGB_ROW + AUDIO_ROW)]
            shard = self._current(layout.shard_index)
            self._copy(row, layout, shard, chosen, rgb.view(_RGB_ITEM), audio.view(_AUDIO_ITEM))
            out[:, :NUM_RGB] = rgb.reshape(count, RGB_ROW)[:, -NUM_RGB:]
            out[:, NUM_RGB:] = audio.reshape(count, AUDIO_ROW)[:, -NUM_AUDIO:]
        return out

    def fill(
        self,
        rgb: NDArray[np.uint8],
        audio: NDArray[np.uint8],
        rows: NDArray[np.integer],
        chosen: Sequence[FrameIndices],
    ) -> None:
        """Read frames of several videos, with their headers, into the rows of a batch, and zero the padding.

        Args:
            rgb: uint8 (B, T, 1033), contiguous; T at least the most frames of a video. A frame is the last 1,024 bytes.
            audio: uint8 (B, T, 137), likewise; the last 128 bytes.
            rows: The videos' rows in the catalog, integer (B,).
            chosen: The frames of each.

        Raises:
            ShardError: A shard is missing or has changed since it was indexed.
            IndexError: A video has no such frames.
        """
        num_rows = rgb.shape[1]
        rgb_items, audio_items = rgb.view(_RGB_ITEM)[..., 0], audio.view(_AUDIO_ITEM)[..., 0]
        current: dict[int, NDArray[np.uint8]] = {}
        for place, (row, layout, frames) in enumerate(zip(rows.tolist(), self._layouts(rows), chosen, strict=True)):
            if isinstance(frames, slice):
                first, stop, length = frames.start, frames.stop, frames.stop - frames.start
            else:
                first, stop, length = int(frames[0]), int(frames[-1]) + 1, len(frames)
                if stop - first == length:
                    frames = slice(first, stop)  # noqa: PLW2901
            if not 0 <= first < stop <= layout.num_frames:
                raise IndexError(f"frames {first} to {stop} of row {row}, which has {layout.num_frames}")
            shard = current.get(layout.shard_index)
            if shard is None:
                shard = current[layout.shard_index] = self._current(layout.shard_index)
            self._copy(row, layout, shard, frames, rgb_items[place, :length], audio_items[place, :length])
            if length < num_rows:
                rgb[place, length:] = 0
                audio[place, length:] = 0

    def _layout(self, row: int) -> _Layout:
        return _Layout(*[column.item(row) for column in self._columns])

    def _layouts(self, rows: NDArray[np.integer]) -> list[_Layout]:
        return list(map(_Layout, *(column[rows].tolist() for column in self._columns)))

    def _copy(
        self,
        row: int,
        layout: _Layout,
        shard: NDArray[np.uint8],
        chosen: slice | NDArray[np.integer],
        rgb: NDArray[np.void],
        audio: NDArray[np.void],
    ) -> None:
        if not (layout.rgb_stride and layout.audio_stride):
            self._copy_unequally_spaced(row, layout, shard, chosen, rgb, audio)
            return
        _copy_items(shard, layout.num_frames, layout.rgb_offset, layout.rgb_stride, NUM_RGB, chosen, rgb)
        _copy_items(shard, layout.num_frames, layout.audio_offset, layout.audio_stride, NUM_AUDIO, chosen, audio)

    def _copy_unequally_spaced(
        self,
        row: int,
        layout: _Layout,
        shard: NDArray[np.uint8],
        chosen: slice | NDArray[np.integer],
        rgb: NDArray[np.void],
        audio: NDArray[np.void],
    ) -> None:
        """Parse the record to locate its frames: allowed by the format, but no known writer makes such records."""
        begin = int(self.catalog.record_offset[row])
        payload = shard[begin : begin + int(self.catalog.record_length[row])].tobytes()
        try:
            offsets = frame_offsets(payload)
        except MalformedRecordError as error:
            number = int(self.catalog.record_number[row])
            path = self.catalog.shard_path(row)
            raise ShardError(path, error.message, record=number, offset=begin + error.offset) from None
        # Where rgb and audio differ in length, the longer list is cut.
        length = layout.num_frames
        for items, of_feature, size in zip((rgb, audio), offsets, (NUM_RGB, NUM_AUDIO), strict=True):
            target = _bytes_of(items)
            target[:, :-size] = 0
            for frame, at in zip(target, of_feature[:length][chosen].tolist(), strict=True):
                frame[-size:] = np.frombuffer(payload, np.uint8, size, at)

    def _current(self, position: int) -> NDArray[np.uint8]:
        """The bytes of a shard, mapped, after a check that it is the one indexed.

        Raises:
            ShardError: The shard is missing, cannot be mapped, or has changed.
        """
        # Checked at every use: reading beyond the end of a file that was truncated would kill the process.
        path, info = self._paths[position], self.catalog.shards[position]
        try:
            status = os.stat(path)  # noqa: PTH116 - a quarter of the time that Path.stat takes
            if (status.st_size, status.st_mtime_ns) != (info.num_bytes, info.mtime_ns):
                raise ShardError(
                    self.catalog.folder / info.name,
                    f"has changed since it was indexed; run `yt8m index {self.catalog.folder}`.",
                )
            shard = self._maps.get(position)
            if shard is None:
                return self._map(position, info.num_bytes)
        except OSError as error:
            raise ShardError(self.catalog.folder / info.name, f"cannot be opened ({error.strerror}).") from None
        self._maps.move_to_end(position)
        return shard

    def _map(self, position: int, num_bytes: int) -> NDArray[np.uint8]:
        while self._maps and (
            self._mapped_bytes + num_bytes > self.max_mapped_bytes or len(self._maps) >= MAX_MAPPED_SHARDS
        ):
            self._unmap_oldest()
        while True:
            try:
                shard = _mapped(self._paths[position])
                break
            except OSError as error:
                # Where the address space is limited (ulimit -v), fewer maps may fit.
                if error.errno != errno.ENOMEM or not self._maps:
                    raise
                self._unmap_oldest()
        self._maps[position] = shard
        self._mapped_bytes += len(shard)
        return shard

    def _unmap_oldest(self) -> None:
        self._mapped_bytes -= len(self._maps.popitem(last=False)[1])


def _copy_items(
    shard: NDArray[np.uint8],
    num_frames: int,
    offset: int,
    stride: int,
    size: int,
    chosen: slice | NDArray[np.integer],
    out: NDArray[np.void],
) -> None:
    """Copy equally spaced frames of one feature into rows (T,), contiguous; a frame is the last `size` bytes."""
    kind = out.dtype
    if stride != kind.itemsize:
        # Another writer's headers: the frames only.
        frames: NDArray[np.uint8] = np.ndarray((num_frames, size), np.uint8, shard, offset, (stride, 1))
        target = _bytes_of(out)
        target[:, :-size] = 0
        target[:, -size:] = frames[chosen]
        return
    first = offset - (stride - size)
    if isinstance(chosen, slice):
        out[:] = np.ndarray(len(out), kind, shard, first + chosen.start * stride)
    else:
        # `clip` avoids a copy in numpy; the indices are known to be valid.
        np.ndarray(num_frames, kind, shard, first).take(chosen, out=out, mode="clip")


def _bytes_of(items: NDArray[np.void]) -> NDArray[np.uint8]:
    """Rows as bytes, (T, row)."""
    return items.view(np.uint8).reshape(len(items), -1)


def _mapped(path: str) -> NDArray[np.uint8]:
    """Map a file, read-only: Arrow's maps need no open file, where Python's own keep a descriptor."""
    with pa.memory_map(path) as file:
        return np.frombuffer(file.read_buffer(), np.uint8)


def _output(out: NDArray[np.uint8] | None, num_frames: int) -> NDArray[np.uint8]:
    shape = (num_frames, NUM_FEATURES)
    if out is None:
        return np.empty(shape, np.uint8)
    if out.shape != shape or out.dtype != np.uint8:
        raise ValueError(f"out is {out.dtype} {out.shape}, expected uint8 {shape}")
    return out
