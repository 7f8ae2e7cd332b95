"""Random access to frames: nothing but a range of frames of a video is read from its shard.

The catalog locates a video's frames, so no record is parsed. In a shard each frame follows the same few bytes of header,
and batches take frames with their headers, of YouTube-8M as rows of 1,033 bytes (rgb) and 137 (audio): consecutive frames
are then read straight into the batch, and sampled ones are one copy per frame. The device cuts the headers off
(`batches.join_features`). Frames stay bytes. Those of a modality that a video lacks are `Features.missing`.

Shards are read through descriptors, not mapped: a read beyond the end of a shard that another process truncates is
short, where access to a map would kill the process.
"""

import resource
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from yt8m.dataset.catalog import Catalog
from yt8m.dataset.sampling import FrameIndices
from yt8m.errors import ShardError
from yt8m.features import MODALITIES
from yt8m.shards.contents import ShardFile
from yt8m.shards.records import frame_offsets, row_bytes
from yt8m.shards.wire import MalformedRecordError

MAX_OPEN = 1024
"""Most shards that a reader keeps open, and at most a quarter of the files that a process may open (`ulimit -n`)."""

MAX_SPARSENESS = 8
"""Chosen frames are read as one range where it has at most this many frames per chosen one, and one by one otherwise."""


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

    Shards are opened when first needed; the least recently used are closed when there are too many, so thousands of
    shards are read under any `ulimit -n`. A reader can be pickled and used after a fork; each process has its own files.
    It is not thread-safe.

    Args:
        catalog: The videos.
        max_open_shards: Most shards kept open.
    """

    def __init__(self, catalog: Catalog, max_open_shards: int | None = None) -> None:
        self.catalog = catalog
        self.max_open_shards = max_open_shards
        self._reset()

    def _reset(self) -> None:
        catalog = self.catalog
        self._columns = tuple(getattr(catalog, name) for name in _Layout._fields)
        self._files: OrderedDict[int, ShardFile] = OrderedDict()
        self._scratch = np.empty(0, np.uint8)
        self.features = catalog.features
        self._sizes = [self.features.bytes_of(name) for name in MODALITIES]
        self._missing = [self.features.missing(name) for name in MODALITIES]

    def __getstate__(self) -> dict[str, Any]:
        """Drop the open files, which belong to a process."""
        return {"catalog": self.catalog, "max_open_shards": self.max_open_shards}

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
            out: Array to fill, uint8 (stop - start, bytes of a frame) with its last axis contiguous; a new one by default.

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
        return self._read(
            row, layout, slice(start, stop), start, stop, _output(out, (stop - start, self.features.frame_bytes))
        )

    def gather(
        self, row: int, indices: NDArray[np.integer], *, out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """Read some frames of a video.

        Args:
            row: The video's row in the catalog.
            indices: The frames, integer (T,), in any order.
            out: Array to fill, uint8 (T, bytes of a frame) with its last axis contiguous; a new one by default.

        Returns:
            `out`.

        Raises:
            ShardError: The shard is missing or has changed since it was indexed.
            IndexError: The video has no such frame.
        """
        layout = self._layout(row)
        first, stop = (int(indices.min()), int(indices.max()) + 1) if len(indices) else (0, 0)
        if not (first >= 0 and stop <= layout.num_frames):
            raise IndexError(f"frames {first} to {stop} of row {row}, which has {layout.num_frames}")
        return self._read(row, layout, indices, first, stop, _output(out, (len(indices), self.features.frame_bytes)))

    def _read(
        self,
        row: int,
        layout: _Layout,
        chosen: slice | NDArray[np.integer],
        first: int,
        stop: int,
        out: NDArray[np.uint8],
    ) -> NDArray[np.uint8]:
        if len(out):
            rgb, audio = (np.empty((len(out), row_bytes(size)), np.uint8) for size in self._sizes)
            self._copy(row, layout, self._current(layout.shard_index), chosen, first, stop, rgb, audio)
            num_rgb, num_audio = self._sizes
            out[:, :num_rgb] = rgb[:, rgb.shape[1] - num_rgb :]
            out[:, num_rgb:] = audio[:, audio.shape[1] - num_audio :]
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
            rgb: Rows, uint8 (B, T, `row_bytes`), contiguous; T at least the most frames of a video. A frame is the end of
                its row: the last 1,024 bytes of 1,033 in YouTube-8M.
            audio: Likewise: the last 128 bytes of 137.
            rows: The videos' rows in the catalog, integer (B,).
            chosen: The frames of each.

        Raises:
            ShardError: A shard is missing or has changed since it was indexed.
            IndexError: A video has no such frames.
        """
        num_rows = rgb.shape[1]
        checked: set[int] = set()
        for place, (row, layout, frames) in enumerate(zip(rows.tolist(), self._layouts(rows), chosen, strict=True)):
            if isinstance(frames, slice):
                first, stop, length = frames.start, frames.stop, frames.stop - frames.start
            else:
                first, stop, length = int(frames[0]), int(frames[-1]) + 1, len(frames)
                if stop - first == length:
                    frames = slice(first, stop)  # noqa: PLW2901
            if not 0 <= first < stop <= layout.num_frames:
                raise IndexError(f"frames {first} to {stop} of row {row}, which has {layout.num_frames}")
            file = self._files.get(layout.shard_index) if layout.shard_index in checked else None
            if file is None:
                file = self._current(layout.shard_index)
                checked.add(layout.shard_index)
            self._copy(row, layout, file, frames, first, stop, rgb[place, :length], audio[place, :length])
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
        file: ShardFile,
        chosen: slice | NDArray[np.integer],
        first: int,
        stop: int,
        rgb: NDArray[np.uint8],
        audio: NDArray[np.uint8],
    ) -> None:
        """Read the chosen frames, which are among those from `first` to `stop`, into rows (T, row), contiguous."""
        if bool(layout.rgb_offset) > bool(layout.rgb_stride) or bool(layout.audio_offset) > bool(layout.audio_stride):
            _copy_unequally_spaced(self.catalog, row, file, chosen, rgb, audio)
            return
        if stop - first > MAX_SPARSENESS * len(rgb):
            for place, frame in enumerate(chosen.tolist() if isinstance(chosen, np.ndarray) else []):
                one, end = slice(frame, frame + 1), place + 1
                self._copy(row, layout, file, one, frame, frame + 1, rgb[place:end], audio[place:end])
            return
        if not isinstance(chosen, slice):
            chosen = chosen - first
        places = ((layout.rgb_offset, layout.rgb_stride), (layout.audio_offset, layout.audio_stride))
        for out, (offset, stride), size, missing in zip((rgb, audio), places, self._sizes, self._missing, strict=True):
            if offset:
                self._copy_rows(file, offset, stride, size, chosen, first, stop, out)
            elif size:
                out[:, -size:] = missing

    def _copy_rows(
        self,
        file: ShardFile,
        offset: int,
        stride: int,
        size: int,
        chosen: slice | NDArray[np.integer],
        first: int,
        stop: int,
        out: NDArray[np.uint8],
    ) -> None:
        """Read equally spaced frames of one feature, all from `first` to `stop` or those at some positions after `first`.

        A frame is the last `size` bytes of a row.
        """
        begin, count = offset + first * stride, stop - first
        if stride != out.shape[1]:
            # Another writer's headers: the frames only.
            read = self._read_range(file, begin, (count - 1) * stride + size)
            frames: NDArray[np.uint8] = np.ndarray((count, size), np.uint8, read, 0, (stride, 1))
            out[:, :-size] = 0
            out[:, -size:] = frames if isinstance(chosen, slice) else frames[chosen]
            return
        begin -= stride - size
        if isinstance(chosen, slice):
            file.read_into(out, begin)
            return
        # A row as one element, so that numpy copies row by row, not byte by byte.
        kind = _row_dtype(stride)
        # `clip` avoids a copy in numpy; the positions are known to be valid.
        self._read_range(file, begin, count * stride).view(kind).take(chosen, out=out.view(kind)[:, 0], mode="clip")

    def _read_range(self, file: ShardFile, begin: int, length: int) -> NDArray[np.uint8]:
        """Bytes of a shard, in an array that the next call uses again."""
        if len(self._scratch) < length:
            self._scratch = np.empty(length, np.uint8)
        read = self._scratch[:length]
        file.read_into(read, begin)
        return read

    def _current(self, position: int) -> ShardFile:
        """A shard, open, after a check that it is the one indexed.

        Raises:
            ShardError: The shard is missing, cannot be opened, or has changed.
        """
        file = self._files.get(position)
        if file is not None and not file.has_changed():
            self._files.move_to_end(position)
            return file
        file = self._open(position)
        if not self.catalog.shards[position].is_unchanged(file):
            raise ShardError(file.path, f"has changed since it was indexed; run `yt8m index {self.catalog.folder}`.")
        self._files[position] = file
        return file

    def changed_shards(self) -> list[Path]:
        """Shards that are missing, or differ in size or modification time from those that were indexed."""
        return self.catalog.changed_shards()

    def _open(self, position: int) -> ShardFile:
        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        limit = self.max_open_shards or (
            MAX_OPEN if allowed < 0 else max(1, min(MAX_OPEN, allowed // 4))
        )  # -1: no limit
        while len(self._files) >= limit:
            self._files.popitem(last=False)
        return ShardFile(self.catalog.folder / self.catalog.shards[position].name)


def _copy_unequally_spaced(
    catalog: Catalog,
    row: int,
    file: ShardFile,
    chosen: slice | NDArray[np.integer],
    rgb: NDArray[np.uint8],
    audio: NDArray[np.uint8],
) -> None:
    """Parse the record to locate its frames: allowed by the format, but no known writer makes such records."""
    begin = int(catalog.record_offset[row])
    record = np.empty(int(catalog.record_length[row]), np.uint8)
    file.read_into(record, begin)
    payload = record.tobytes()
    number = int(catalog.record_number[row])
    features = catalog.features
    try:
        offsets = frame_offsets(payload, features)
    except MalformedRecordError as error:
        raise ShardError(file.path, error.message, record=number, offset=begin + error.offset) from None
    # Where rgb and audio differ in length, the longer list is cut.
    length = int(catalog.num_frames[row])
    for name, target, of_modality in zip(MODALITIES, (rgb, audio), offsets, strict=True):
        size = features.bytes_of(name)
        if not size:
            continue
        target[:, :-size] = 0
        if not getattr(catalog, f"{name}_offset")[row]:
            target[:, -size:] = features.missing(name)
            continue
        if len(of_modality) < length:
            found = f"has fewer than the {length:,} frames of the catalog; run `yt8m index {catalog.folder}`."
            raise ShardError(file.path, found, record=number, offset=begin)
        for frame, at in zip(target, of_modality[:length][chosen].tolist(), strict=True):
            frame[-size:] = record[at : at + size]


@lru_cache
def _row_dtype(num_bytes: int) -> np.dtype[np.void]:
    return np.dtype((np.void, num_bytes))


def _output(out: NDArray[np.uint8] | None, shape: tuple[int, int]) -> NDArray[np.uint8]:
    if out is None:
        return np.empty(shape, np.uint8)
    if out.shape != shape or out.dtype != np.uint8:
        raise ValueError(f"out is {out.dtype} {out.shape}, expected uint8 {shape}")
    return out
