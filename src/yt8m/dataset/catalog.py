"""The catalog of a folder of shards: a table with one row per video, and where its frames are.

`indexing` makes it, once; `Catalog.save` keeps it as Parquet. From then on every read is random access, and row order,
folds and shuffles are functions of the table.
"""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from yt8m.dataset.layout import (
    ShardInfo,
    catalog_folders,
    find_shards,
    require_folder,
    shard_info,
    writable_catalog_folder,
)
from yt8m.dataset.own_files import digest_of, read_files
from yt8m.dataset.validation import require_valid
from yt8m.errors import ShardError, UsageError, Yt8mError
from yt8m.features import YOUTUBE8M, Features
from yt8m.files import written_atomically
from yt8m.settings import validated
from yt8m.shards.contents import ShardFile, crc32c
from yt8m.shards.ids import MAX_ID_BYTES

FILE_NAME = "catalog.parquet"
FORMAT_VERSION = 2
"""Format 1 has no checksums, neither of shards nor of itself."""


class OutdatedError(Yt8mError):
    """The shards of a folder are not those of its catalog any more."""


@dataclass(frozen=True, eq=False)
class Catalog:
    """Videos of a folder of shards, in the order (shard name, record), as read-only columns.

    The rgb bytes of a video's frame t are at `rgb_offset + t * rgb_stride` in its shard; its audio bytes likewise. A stride
    of 0 means that the frames are not equally spaced, and the record has to be parsed; an offset of 0 as well, that the
    video lacks the modality.

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
        oddities: Number of each `problems.Oddity`.
        problems: A sentence per damaged place, the first `problems.MAX_PROBLEMS`.
        num_problems: Number of damaged places.
        features: What the frames are.
        own_labels: Hash of the files of labels and ratings beside the shards; see `own_files`.
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
    features: Features = YOUTUBE8M
    own_labels: str = ""

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
        """Hash of the videos, labels and ratings, and of the shards' checksums; the same for a copy elsewhere."""
        digest = hashlib.sha256()
        columns: tuple[NDArray[Any], ...] = (
            *(self.ids, self.shard_index, self.num_frames, self.label_starts, self.label_values),
            *(self.rating_starts, self.rating_labels, self.rating_start_seconds, self.rating_values),
        )
        for column in columns:
            digest.update(np.ascontiguousarray(column).view(np.uint8).data)
        for shard in self.shards:
            contents = "" if shard.checksum is None else f" {shard.checksum:08x}"
            digest.update(os.fsencode(f"{shard.name} {shard.num_bytes}{contents}\n"))
        if self.features != YOUTUBE8M:
            digest.update(self.features.digest.encode())
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

    @property
    def has_checksums(self) -> bool:
        """Whether the catalog has checksums of the shards; catalogs of format 1 have none."""
        return any(shard.checksum is not None for shard in self.shards)

    def refreshed(self) -> Catalog:
        """This catalog, with the modification times that the shards have now, after a check that they are those indexed.

        The folder has the same shards, of the same sizes, and their samples are the same; those of a catalog of format 1,
        which has no samples, have the same modification times.

        Raises:
            UsageError: The folder or a listed shard is missing, or it contains no shards.
            ShardError: A shard is not accessible.
            OutdatedError: Shards were added, removed or changed, or `features.yaml`, `labels.csv` or `ratings.csv` was.
            Yt8mError: A shard has other bytes, although neither its size nor its modification time differ.
        """
        if Features.of_folder(self.folder) != self.features:
            raise OutdatedError(f"{self.folder}: has other features than when it was indexed.")
        if digest_of(read_files(self.folder)) != self.own_labels:
            raise OutdatedError(f"{self.folder}: has other labels or ratings than when it was indexed.")
        paths = find_shards(self.folder)
        if [path.name for path in paths] != [shard.name for shard in self.shards]:
            raise OutdatedError(f"{self.folder}: has other shards than when it was indexed.")
        with ThreadPoolExecutor(_READERS) as pool:
            found = tuple(pool.map(_refreshed, paths, self.shards))
        changed = [path for path, now in zip(paths, found, strict=True) if now is None]
        if changed:
            times = {shard.name: shard.mtime_ns for shard in self.shards}
            unnoticed = [path for path in changed if shard_info(path).mtime_ns == times[path.name]]
            if unnoticed:
                raise Yt8mError(
                    f"{unnoticed[0]}: has other bytes than when it was indexed, and the same modification time."
                )
            raise OutdatedError(f"{changed[0]}: changed since it was indexed.")
        return replace(self, shards=tuple(filter(None, found)))

    def is_current(self) -> bool:
        """Whether the shards in the folder are those indexed (see `refreshed`)."""
        try:
            self.refreshed()
        except Yt8mError:
            return False
        return True

    def changed_shards(self) -> list[Path]:
        """Shards that are missing, or differ in size or modification time from those that were indexed."""
        changed = []
        for shard in self.shards:
            path = self.folder / shard.name
            try:
                is_same = shard_info(path)[:3] == shard[:3]
            except ShardError:
                is_same = False
            if not is_same:
                changed.append(path)
        return changed

    def save(self) -> Path:
        """Write `catalog.parquet` beside the shards, or where catalogs are else, and return its path.

        Raises:
            Yt8mError: The disk is full, or no place can be written to.
        """
        path = writable_catalog_folder(self.folder) / FILE_NAME
        # Opened here, since a path may be no text, which pyarrow needs.
        with written_atomically(path) as temporary, temporary.open("wb") as file:
            pq.write_table(_to_table(self), file, compression="zstd", use_dictionary=["shard_index"])
        return path

    @classmethod
    def load(cls, folder: Path, path: Path | None = None) -> Catalog:
        """Read the catalog of a folder of shards.

        Args:
            folder: The folder.
            path: Where the catalog is, if not where catalogs are (`layout.catalog_folders`).

        Raises:
            UsageError: The folder is missing or has no catalog.
            Yt8mError: The catalog is of another version, or damaged.
        """
        if path is None:
            path = next(iter(catalog_files(folder)), None)
        if path is None:
            require_folder(folder)
            raise UsageError(f"{folder}: has no {FILE_NAME}; run `yt8m index {folder}`.")
        try:
            return _from_parquet(path, folder)
        except (*_DAMAGE, ValueError) as error:
            reason = f" ({error})" if type(error) is ValueError else ""
            raise Yt8mError(f"{path}: is not a catalog, or is damaged{reason}; run `yt8m index {folder}`.") from None


def catalog_files(folder: Path) -> list[Path]:
    """Catalogs of a folder of shards that exist, the preferred one first."""
    return [path for place in catalog_folders(folder) if (path := place / FILE_NAME).is_file()]


_READERS = 16
"""Shards to sample at once: a disk or a server answers several requests in little more time than one."""

_DAMAGE = (
    pa.ArrowException,
    OSError,
    MemoryError,
    RecursionError,
    AttributeError,
    LookupError,
    TypeError,
    OverflowError,
)
"""What reading a damaged Parquet file or its metadata can raise besides ValueError."""


def _refreshed(path: Path, shard: ShardInfo) -> ShardInfo | None:
    """A shard as it is now; None where it is another one."""
    now = shard_info(path)
    if now.num_bytes != shard.num_bytes:
        return None
    if not shard.num_bytes:
        is_same = True
    elif shard.sample is None:
        is_same = now.mtime_ns == shard.mtime_ns
    else:
        is_same = ShardFile(path).sample_checksum() == shard.sample
    return shard._replace(mtime_ns=now.mtime_ns) if is_same else None


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
    about = _about(catalog)
    about["checksum"] = _checksum(catalog, about)
    return pa.table(columns).replace_schema_metadata({_METADATA_KEY: json.dumps(about).encode()})


def _about(catalog: Catalog) -> dict[str, Any]:
    features = {} if catalog.features == YOUTUBE8M else {"features": catalog.features.model_dump(mode="json")}
    return (
        features
        | ({"own_labels": catalog.own_labels} if catalog.own_labels else {})
        | {
            "format": FORMAT_VERSION,
            "shards": [list(shard) for shard in catalog.shards],
            "oddities": catalog.oddities,
            "problems": list(catalog.problems),
            "num_problems": catalog.num_problems,
        }
    )


def _checksum(catalog: Catalog, about: dict[str, Any]) -> int:
    """CRC32C of the columns and the rest."""
    checksum = crc32c(np.frombuffer(json.dumps(about, sort_keys=True).encode(), np.uint8))
    for name in ("ids", *ROW_COLUMNS, *_STARTS_OF, *sorted(set(_STARTS_OF.values()))):
        checksum = crc32c(np.ascontiguousarray(getattr(catalog, name)), checksum)
    return checksum


def _from_parquet(path: Path, folder: Path) -> Catalog:
    """Read a catalog; raise ValueError, with what was found, or one of `_DAMAGE` where it is damaged."""
    with pa.OSFile(os.fsencode(path)) as source, pq.ParquetFile(source) as file:
        about = json.loads(file.schema_arrow.metadata[_METADATA_KEY])
        if about["format"] not in (1, FORMAT_VERSION):
            raise Yt8mError(
                f"{path}: is a catalog of format {about['format']}, and this version reads formats 1 and "
                f"{FORMAT_VERSION}; run `yt8m index {folder}`."
            )
        if sorted(file.schema_arrow.names) != sorted(["ids", *ROW_COLUMNS, *_STARTS_OF]):
            raise ValueError("it has other columns")
        columns: dict[str, Any] = {"ids": _to_bytes(_column(file, "ids", pa.string()))}
        # Column by column, so that a table of millions of rows is never in memory twice.
        for name, kind in ROW_COLUMNS.items():
            columns[name] = _column(file, name, pa.from_numpy_dtype(kind)).to_numpy()
        for name, starts in _STARTS_OF.items():
            lists = _column(file, name, pa.large_list(pa.from_numpy_dtype(RATING_COLUMNS.get(name, np.int32))))
            columns[name], offsets = lists.values.to_numpy(), lists.offsets.to_numpy()
            if not np.array_equal(columns.setdefault(starts, offsets), offsets):
                raise ValueError("its columns of ratings differ in length")
    catalog = Catalog(folder=folder, **columns, **_parsed(about))
    checksum = about.get("checksum")
    if about["format"] == 1:
        if "checksum" in about:
            raise ValueError("its metadata are those of another format")
    elif checksum != _checksum(catalog, {key: value for key, value in about.items() if key != "checksum"}):
        raise ValueError("its checksum is wrong")
    require_valid(catalog)
    return catalog


def _column(file: pq.ParquetFile, name: str, kind: pa.DataType) -> pa.Array:
    """A column, after a check of its type and that no value is missing."""
    found = file.read([name]).column(0)
    expected, actual = (
        ("list", of.value_type) if pa.types.is_large_list(of) else ("", of) for of in (kind, found.type)
    )
    if expected != actual:
        raise ValueError(f"its column {name} has the type {found.type}, expected {kind}")
    column = found.combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0) if column.num_chunks else pa.array([], kind)
    column.validate(full=True)
    if column.null_count or (pa.types.is_large_list(kind) and column.values.null_count):
        raise ValueError(f"values of its column {name} are missing")
    return column


def _parsed(about: dict[str, Any]) -> dict[str, Any]:
    """The fields of a catalog that are no columns, after a check of their types."""
    shards, oddities, problems, num_problems = (
        about[name] for name in ("shards", "oddities", "problems", "num_problems")
    )
    sizes = (3,) if about["format"] == 1 else (5,)
    if not (
        isinstance(shards, list)
        and all(isinstance(shard, list) and len(shard) in sizes and isinstance(shard[0], str) for shard in shards)
        and all(type(number) in (int, type(None)) for shard in shards for number in shard[1:])
        and all(type(number) is int for shard in shards for number in shard[1:3])
        and isinstance(oddities, dict)
        and all(type(count) is int and count > 0 for count in oddities.values())
        and isinstance(problems, list)
        and all(isinstance(problem, str) for problem in problems)
        and type(num_problems) is int
        and len(problems) <= num_problems
        and isinstance(about.get("own_labels", ""), str)
    ):
        raise ValueError("its metadata have other types")
    try:
        features = validated(Features, about.get("features", {}), "features")
    except UsageError as error:
        raise ValueError(f"its {str(error).removesuffix('.')}") from None
    return {
        "features": features,
        "own_labels": about.get("own_labels", ""),
        "shards": tuple(ShardInfo(*shard) for shard in shards),
        "oddities": oddities,
        "problems": tuple(problems),
        "num_problems": num_problems,
    }


def _to_bytes(strings: pa.StringArray) -> NDArray[np.bytes_]:
    """Ids as numpy bytes of one width, without a Python object per id."""
    if not len(strings):
        raise ValueError("it has no rows")
    _, offsets_buffer, data_buffer = strings.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int32, len(strings) + 1, strings.offset * 4)
    data = np.frombuffer(data_buffer, np.uint8)[offsets[0] : offsets[-1]]
    lengths = np.diff(offsets)
    width = int(lengths.max())
    if not 0 < int(lengths.min()) <= width <= MAX_ID_BYTES or (data <= ord(" ")).any():
        raise ValueError("its ids have other lengths or characters")
    table = np.zeros((len(strings), width), np.uint8)
    table[np.arange(width) < lengths[:, None]] = data
    return table.view(f"S{width}")[:, 0]
