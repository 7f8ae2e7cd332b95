"""The catalog of a folder of shards: a table with one row per video, and where its frames are.

`indexing` makes it, once; `Catalog.save` keeps it as Parquet beside the shards. From then on every read is random access,
and row order, folds and shuffles are functions of the table.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from yt8m.dataset.layout import ShardInfo, find_shards, require_folder, shard_info
from yt8m.errors import ShardError, UsageError, Yt8mError
from yt8m.files import written_atomically
from yt8m.shards.records import NUM_AUDIO, NUM_RGB

FILE_NAME = "catalog.parquet"
FORMAT_VERSION = 1

MAX_PROBLEMS = 200
"""Damaged places that a catalog describes; the report lists more."""


class Oddity(StrEnum):
    """Irregularities of records that are not damaged, and how each is handled."""

    IDS_REPEATED = "videos with an id that occurred before (dropped)"
    LENGTHS_DIFFER = "videos with more rgb than audio frames or the reverse (cut to the shorter)"
    NO_LABELS = "videos without labels (kept)"
    LABELS_REPEATED = "labels that a video repeats (kept once)"
    LABELS_UNKNOWN = "labels outside the vocabulary (dropped)"
    RATINGS_UNPAIRED = "videos with lists of ratings of different lengths (their ratings dropped)"
    RATINGS_OUTSIDE = "ratings outside the video (dropped)"
    RATINGS_OFF_GRID = "ratings not at a multiple of 5 seconds (dropped)"
    RATINGS_UNKNOWN = "ratings of labels outside the vocabulary (dropped)"
    RATINGS_SCORE = "ratings other than 0 and 1 (dropped)"
    RATINGS_END = "ratings that do not end 5 seconds after their start (kept)"
    RATINGS_REPEATED = "repeated ratings (kept once)"
    RATINGS_CONTRADICTORY = "contradictory ratings (all dropped)"

    @property
    def done(self) -> str:
        """How it is handled: the words in parentheses."""
        return self.value[self.value.index("(") + 1 : -1]


@dataclass(frozen=True, eq=False)
class Catalog:
    """Videos of a folder of shards, in the order (shard name, record), as read-only columns.

    The 1,024 rgb bytes of a video's frame t are at `rgb_offset + t * rgb_stride` in its shard; its 128 audio bytes
    likewise. A stride of 0 means that the frames are not equally spaced, and the record has to be parsed.

    Args:
        folder: The folder of shards.
        shards: Its shards, sorted by name.
        shard_index: Position in `shards`, int32 (N,).
        record_number: Number of the record in its shard, int32 (N,).
        record_offset: Byte offset of the record's payload in the shard, int64 (N,).
        record_length: Bytes of the payload, int64 (N,).
        ids: Ids, UTF-8, as numpy bytes (N,); see `id_of`.
        num_frames: int32 (N,), at least 1.
        rgb_offset: int64 (N,).
        rgb_stride: int32 (N,).
        audio_offset: int64 (N,).
        audio_stride: int32 (N,).
        label_values: Label ids of all videos, increasing within each, int32.
        label_starts: Video i has `label_values[label_starts[i] : label_starts[i + 1]]`, int64 (N + 1,).
        rating_labels: Label ids of all ratings, sorted by (start, label) within each video, int32.
        rating_start_seconds: int32.
        rating_values: uint8, 1 = positive.
        rating_starts: Like `label_starts`, for the three columns of ratings.
        oddities: Number of each `Oddity`.
        problems: A sentence per damaged place, the first `MAX_PROBLEMS`.
        num_problems: Number of damaged places.
    """

    folder: Path
    shards: tuple[ShardInfo, ...]
    shard_index: NDArray[np.int32]
    record_number: NDArray[np.int32]
    record_offset: NDArray[np.int64]
    record_length: NDArray[np.int64]
    ids: NDArray[np.bytes_]
    num_frames: NDArray[np.int32]
    rgb_offset: NDArray[np.int64]
    rgb_stride: NDArray[np.int32]
    audio_offset: NDArray[np.int64]
    audio_stride: NDArray[np.int32]
    label_values: NDArray[np.int32]
    label_starts: NDArray[np.int64]
    rating_labels: NDArray[np.int32]
    rating_start_seconds: NDArray[np.int32]
    rating_values: NDArray[np.uint8]
    rating_starts: NDArray[np.int64]
    oddities: dict[str, int]
    problems: tuple[str, ...]
    num_problems: int

    def __post_init__(self) -> None:
        for field in fields(self):
            column = getattr(self, field.name)
            if isinstance(column, np.ndarray):
                column.setflags(write=False)

    def __len__(self) -> int:
        return len(self.num_frames)

    @cached_property
    def video_ids(self) -> list[str]:
        """Ids of all videos."""
        return [video_id.decode() for video_id in self.ids.tolist()]

    @cached_property
    def digest(self) -> str:
        """Hash of the videos, labels and ratings; the same for a copy of the shards elsewhere."""
        digest = hashlib.sha256()
        columns: tuple[NDArray[Any], ...] = (
            *(self.ids, self.shard_index, self.num_frames, self.label_starts, self.label_values),
            *(self.rating_starts, self.rating_labels, self.rating_start_seconds, self.rating_values),
        )
        for column in columns:
            digest.update(np.ascontiguousarray(column).view(np.uint8).data)
        for shard in self.shards:
            digest.update(f"{shard.name} {shard.num_bytes}\n".encode())
        return digest.hexdigest()[:16]

    def id_of(self, row: int) -> str:
        """Id of a video."""
        return bytes(self.ids[row]).decode()

    @cached_property
    def rating_rows(self) -> NDArray[np.int64]:
        """Row of the video of each rating, int64 (R,)."""
        return np.repeat(np.arange(len(self)), np.diff(self.rating_starts))

    def shard_path(self, row: int) -> Path:
        """The shard of a video."""
        return self.folder / self.shards[int(self.shard_index[row])].name

    def is_current(self) -> bool:
        """Whether the shards in the folder are those indexed: same names, sizes and modification times."""
        try:
            return tuple(shard_info(path) for path in find_shards(self.folder)) == self.shards
        except (UsageError, ShardError):
            return False

    def save(self) -> Path:
        """Write `catalog.parquet` beside the shards, and return its path.

        Raises:
            Yt8mError: The disk is full or the folder cannot be written to.
        """
        path = self.folder / FILE_NAME
        with written_atomically(path) as temporary:
            pq.write_table(_to_table(self), temporary, compression="zstd", use_dictionary=["shard_index"])
        return path

    @classmethod
    def load(cls, folder: Path) -> Catalog:
        """Read the catalog of a folder of shards.

        Raises:
            UsageError: The folder is missing or has no catalog.
            Yt8mError: The catalog is of another version, or damaged.
        """
        path = folder / FILE_NAME
        if not path.is_file():
            require_folder(folder)
            raise UsageError(f"{folder}: has no {FILE_NAME}; run `yt8m index {folder}`.")
        try:
            return _from_parquet(path)
        except (pa.ArrowException, OSError, AttributeError, KeyError, TypeError, ValueError):
            raise Yt8mError(f"{path}: is not a catalog, or is damaged; run `yt8m index {folder}`.") from None


ROW_COLUMNS: dict[str, type[np.int32] | type[np.int64]] = {
    "shard_index": np.int32,
    "record_number": np.int32,
    "record_offset": np.int64,
    "record_length": np.int64,
    "num_frames": np.int32,
    "rgb_offset": np.int64,
    "rgb_stride": np.int32,
    "audio_offset": np.int64,
    "audio_stride": np.int32,
}
RATING_COLUMNS: dict[str, type[np.int32] | type[np.uint8]] = {
    "rating_labels": np.int32,
    "rating_start_seconds": np.int32,
    "rating_values": np.uint8,
}


_METADATA_KEY = b"yt8m"
_STARTS_OF = {"label_values": "label_starts"} | dict.fromkeys(RATING_COLUMNS, "rating_starts")


def _to_table(catalog: Catalog) -> pa.Table:
    columns = {"ids": pa.array(catalog.ids).cast(pa.string())}
    columns |= {name: pa.array(getattr(catalog, name)) for name in ROW_COLUMNS}
    for name, starts in _STARTS_OF.items():
        columns[name] = pa.LargeListArray.from_arrays(getattr(catalog, starts), getattr(catalog, name))
    about = {
        "format": FORMAT_VERSION,
        "shards": catalog.shards,
        "oddities": catalog.oddities,
        "problems": catalog.problems,
        "num_problems": catalog.num_problems,
    }
    return pa.table(columns).replace_schema_metadata({_METADATA_KEY: json.dumps(about).encode()})


def _from_parquet(path: Path) -> Catalog:
    with pq.ParquetFile(path) as file:
        about = json.loads(file.schema_arrow.metadata[_METADATA_KEY])
        if about["format"] != FORMAT_VERSION:
            raise Yt8mError(
                f"{path}: is a catalog of format {about['format']}, and this version reads format {FORMAT_VERSION}; "
                f"run `yt8m index {path.parent}`."
            )
        columns: dict[str, Any] = {}
        # Column by column, so that a table of millions of rows is never in memory twice.
        for name in ROW_COLUMNS:
            columns[name] = file.read([name]).column(0).to_numpy()
        for name, starts in _STARTS_OF.items():
            lists = file.read([name]).column(0).combine_chunks()
            columns[name] = lists.values.to_numpy()
            columns[starts] = lists.offsets.to_numpy()
        ids = _to_bytes(file.read(["ids"]).column(0).combine_chunks())
    catalog = Catalog(
        folder=path.parent,
        shards=tuple(ShardInfo(*info) for info in about["shards"]),
        ids=ids,
        oddities=about["oddities"],
        problems=tuple(about["problems"]),
        num_problems=about["num_problems"],
        **columns,
    )
    _require_inside(catalog)
    return catalog


def _require_inside(catalog: Catalog) -> None:
    """Require that all frames are inside their shards, which reading relies on; raise ValueError otherwise."""
    c = catalog
    if not (len(c) and (c.num_frames > 0).all() and 0 <= c.shard_index.min() <= c.shard_index.max() < len(c.shards)):
        raise ValueError("videos without frames or shards")
    sizes = np.array([shard.num_bytes for shard in c.shards])[c.shard_index]
    last = c.num_frames.astype(np.int64) - 1
    for begin, end in (
        (c.record_offset, c.record_offset + c.record_length),
        (c.rgb_offset, c.rgb_offset + last * c.rgb_stride + NUM_RGB),
        (c.audio_offset, c.audio_offset + last * c.audio_stride + NUM_AUDIO),
    ):
        if not ((begin >= 0) & (end >= begin) & (end <= sizes)).all():
            raise ValueError("frames outside their shards")


def _to_bytes(strings: pa.StringArray) -> NDArray[np.bytes_]:
    """Strings as numpy bytes of one width, without a Python object per string."""
    _, offsets_buffer, data = strings.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int32, len(strings) + 1, strings.offset * 4)
    lengths = np.diff(offsets)
    width = int(lengths.max())
    table = np.zeros((len(strings), width), np.uint8)
    table[np.arange(width) < lengths[:, None]] = np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]]
    return table.view(f"S{width}")[:, 0]
