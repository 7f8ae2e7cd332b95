"""The catalog: a table of a folder of shards, a row a video, that says what each video is and where its frames lie.

`index_folder` reads every shard once and `save` keeps the table as Parquet beside the shards. From then on every read
is random access, and row order, folds and shuffles come from the table alone (DESIGN: the catalog). Damaged records
are skipped and reported as problems; what is merely odd is mended the same way each time, and counted.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from yt8m.errors import ShardError, UsageError, Yt8mError
from yt8m.files import written_atomically
from yt8m.shards.example import SEGMENT_SECONDS, MalformedRecordError, VideoRecord, WrongDatasetError, read_video
from yt8m.shards.tfrecord import Record, iterate_records, map_shard

FILE_NAME = "catalog.parquet"
FORMAT_VERSION = 1

NUM_LABELS = 3862
"""Labels of the YouTube-8M vocabulary."""

MAX_PROBLEMS = 200
"""Problems kept in words; a folder of nothing but damage would have millions."""

Progress = Callable[[int, int], None]
"""Called after each shard with the bytes read so far and the bytes there are."""


PARTS = ("video/train", "video/valid", "segment/train", "segment/test")
"""Folders of shards of a dataset folder, in the classic layout."""


class Oddity(StrEnum):
    """What may be odd about a record that is not damaged, and what is done about it."""

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


class ShardInfo(NamedTuple):
    """A shard as it was when it was indexed."""

    name: str
    num_bytes: int
    mtime_ns: int


class VideoRatings(NamedTuple):
    """Ratings of a video, sorted by (start, label): label ids int32, start seconds int32, values uint8 (1 = positive)."""

    label_ids: NDArray[np.int32]
    start_seconds: NDArray[np.int32]
    values: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Catalog:
    """Videos of a folder of shards, in the order (shard name, record), as read-only columns.

    A video's frame t has its 1,024 rgb bytes at `rgb_offset + t * rgb_stride` of its shard, and its 128 audio bytes
    likewise. A stride of 0 says that the frames are not equally spaced, and the record has to be parsed.

    Args:
        folder: The folder of shards.
        shards: Its shards, sorted by name.
        shard_index: Position in `shards`, int32 (N,).
        record_number: Number of the record in its shard, int32 (N,).
        record_offset: First byte of the record's payload in the shard, int64 (N,).
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
        rating_starts: As `label_starts`, for the three columns of ratings.
        oddities: Number of each `Oddity` found.
        problems: A sentence for each piece of damage, the first `MAX_PROBLEMS`.
        num_problems: Pieces of damage in all.
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
        """Fingerprint of what the catalog says of its videos; the same for a copy of the shards elsewhere."""
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

    def labels_of(self, row: int) -> NDArray[np.int32]:
        """Label ids of a video, increasing, int32."""
        return self.label_values[self.label_starts[row] : self.label_starts[row + 1]]

    def ratings_of(self, row: int) -> VideoRatings:
        """Ratings of a video, sorted by (start, label)."""
        span = slice(self.rating_starts[row], self.rating_starts[row + 1])
        return VideoRatings(self.rating_labels[span], self.rating_start_seconds[span], self.rating_values[span])

    def shard_path(self, row: int) -> Path:
        """The shard that holds a video."""
        return self.folder / self.shards[int(self.shard_index[row])].name

    def is_current(self) -> bool:
        """Say whether the shards in the folder are still those indexed: same names, sizes and times of change."""
        try:
            return tuple(shard_info(path) for path in find_shards(self.folder)) == self.shards
        except (UsageError, ShardError):
            return False

    def save(self) -> Path:
        """Write the catalog beside its shards, as `catalog.parquet`.

        Returns:
            The file written.

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

        Args:
            folder: The folder that was indexed.

        Raises:
            UsageError: The folder is missing or has not been indexed.
            Yt8mError: The catalog was written by another version, is damaged, or is none.
        """
        path = folder / FILE_NAME
        if not path.is_file():
            _require_folder(folder)
            raise UsageError(f"{folder}: has no {FILE_NAME}; run `yt8m index {folder}`.")
        try:
            return _from_parquet(path)
        except (pa.ArrowException, OSError, AttributeError, KeyError, TypeError, ValueError):
            raise Yt8mError(f"{path}: is no catalog, or a damaged one; run `yt8m index {folder}`.") from None


def shard_info(path: Path) -> ShardInfo:
    """What tells a shard from a changed one.

    Raises:
        ShardError: The shard is missing or cannot be looked at.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise ShardError(path, f"cannot be read ({error.strerror}).") from None
    return ShardInfo(path.name, status.st_size, status.st_mtime_ns)


def find_shards(folder: Path) -> list[Path]:
    """Shards of a folder, `*.tfrecord`, sorted by name whatever order the file system lists them in.

    Raises:
        UsageError: The folder is missing, is no folder, or holds no shards.
    """
    _require_folder(folder)
    # A leading dot marks a shard that is being written (see `files.written_atomically`).
    shards = sorted(
        (path for path in folder.glob("*.tfrecord") if not path.name.startswith(".")), key=lambda path: path.name
    )
    if not shards:
        raise UsageError(f"{folder}: holds no shards (files named *.tfrecord).")
    return shards


def dataset_parts(folder: Path) -> list[Path]:
    """Folders of shards of a dataset folder in the classic layout, or the folder itself where it holds shards.

    Raises:
        UsageError: The folder is missing, or holds neither shards nor such folders.
    """
    _require_folder(folder)
    parts = [folder / part for part in PARTS if (folder / part).is_dir()]
    if any(folder.glob("*.tfrecord")):
        return [folder, *parts]
    if not parts:
        raise UsageError(
            f"{folder}: holds neither shards (files named *.tfrecord) nor the folders of a dataset ({', '.join(PARTS)})."
        )
    return parts


def index_folder(
    folder: Path, *, verify: bool = True, vocabulary_size: int = NUM_LABELS, progress: Progress | None = None
) -> Catalog:
    """Read every shard of a folder once and make its catalog; nothing is written (see `Catalog.save`).

    Args:
        folder: Holds the shards, `*.tfrecord`.
        verify: Whether to compute the checksum of every record.
        vocabulary_size: Label ids from here on are dropped.
        progress: Told how far it is, after each shard.

    Raises:
        UsageError: The folder is missing or holds no shards.
        ShardError: A shard is of another dataset, or no record at all can be used.
    """
    paths = find_shards(folder)
    total = sum(shard_info(path).num_bytes for path in paths)
    done = 0
    parts = []
    for position, path in enumerate(paths):
        parts.append(_index_shard(path, position, verify, vocabulary_size))
        done += parts[-1].info.num_bytes
        if progress is not None:
            progress(done, total)
    return _joined(folder, parts)


def current_catalog(folder: Path) -> Catalog | None:
    """Load the catalog of a folder where it can be read and is current; None where the folder has to be indexed.

    Raises:
        UsageError: The folder is missing.
    """
    _require_folder(folder)
    try:
        catalog = Catalog.load(folder)
    except Yt8mError:
        return None
    return catalog if catalog.is_current() else None


def load_or_index(
    folder: Path, *, verify: bool = True, vocabulary_size: int = NUM_LABELS, progress: Progress | None = None
) -> Catalog:
    """Load the catalog of a folder where it is there and current; index the folder and save the catalog otherwise.

    Args and errors: as `index_folder`.
    """
    catalog = current_catalog(folder)
    if catalog is None:
        catalog = index_folder(folder, verify=verify, vocabulary_size=vocabulary_size, progress=progress)
        catalog.save()
    return catalog


def _require_folder(folder: Path) -> None:
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "there is no such folder"
        raise UsageError(f"{folder}: {what}; expected a folder of shards (*.tfrecord).")


# --- Indexing -------------------------------------------------------------------------------------------------------

_ROW_COLUMNS: dict[str, type[np.int32] | type[np.int64]] = {
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
_RATING_COLUMNS: dict[str, type[np.int32] | type[np.uint8]] = {
    "rating_labels": np.int32,
    "rating_start_seconds": np.int32,
    "rating_values": np.uint8,
}


@dataclass(frozen=True, eq=False)
class _ShardRows:
    """What indexing one shard yields.

    rows int64 (n, 9) in the order of `_ROW_COLUMNS`; labels int32; label_counts int64 (n,); ratings int32 (r, 3) in
    the order of `_RATING_COLUMNS`; rating_counts int64 (n,).
    """

    info: ShardInfo
    ids: NDArray[np.bytes_]
    rows: NDArray[np.int64]
    labels: NDArray[np.int32]
    label_counts: NDArray[np.int64]
    ratings: NDArray[np.int32]
    rating_counts: NDArray[np.int64]
    oddities: Counter[Oddity]
    problems: list[str]
    num_problems: int


class _Problems:
    """Damage found in a shard: sentences up to a bound, and their number."""

    def __init__(self) -> None:
        self.sentences: list[str] = []
        self.count = 0

    def add(self, error: ShardError, done: str) -> None:
        self.count += 1
        if self.count <= MAX_PROBLEMS:
            self.sentences.append(f"{str(error).removesuffix('.')}; {done}.")


def _index_shard(path: Path, position: int, verify: bool, vocabulary_size: int) -> _ShardRows:
    """Index one shard: a pure function of its bytes, so shards could be indexed side by side."""
    info = shard_info(path)
    oddities: Counter[Oddity] = Counter()
    problems = _Problems()
    ids: list[bytes] = []
    rows: list[tuple[int, ...]] = []
    labels: list[list[int]] = []
    ratings: list[list[tuple[int, int, int]]] = []
    for record in _intact_records(path, verify, problems):
        try:
            video = read_video(record.payload)
        except MalformedRecordError as error:
            place = record.offset + error.offset
            problem = ShardError(path, error.message, record=record.number, offset=place)
            # A shard that begins with another dataset's record is another dataset's shard.
            if isinstance(error, WrongDatasetError) and not rows:
                raise problem from None
            problems.add(problem, "the record was skipped")
            continue
        num_frames = min(video.rgb.num_frames, video.audio.num_frames)
        _count(oddities, Oddity.LENGTHS_DIFFER, video.rgb.num_frames != video.audio.num_frames)
        ids.append(video.id.encode())
        rows.append(
            (
                position,
                record.number,
                record.offset,
                len(record.payload),
                num_frames,
                record.offset + video.rgb.offset,
                video.rgb.stride,
                record.offset + video.audio.offset,
                video.audio.stride,
            )
        )
        labels.append(_known_labels(video.labels, vocabulary_size, oddities))
        ratings.append(_usable_ratings(video, num_frames, vocabulary_size, oddities))
    return _ShardRows(
        info,
        np.array(ids, np.bytes_) if ids else np.zeros(0, "S1"),
        np.array(rows, np.int64).reshape(-1, len(_ROW_COLUMNS)),
        np.array([label for video_labels in labels for label in video_labels], np.int32),
        np.array([len(video_labels) for video_labels in labels], np.int64),
        np.array([rating for video_ratings in ratings for rating in video_ratings], np.int32).reshape(-1, 3),
        np.array([len(video_ratings) for video_ratings in ratings], np.int64),
        oddities,
        problems.sentences,
        problems.count,
    )


def _intact_records(path: Path, verify: bool, problems: _Problems) -> Iterator[Record]:
    """Records of a shard whose bytes are what was written; the rest is noted among the problems."""
    try:
        data = map_shard(path)
        if hasattr(mmap, "MADV_SEQUENTIAL"):
            data.madvise(mmap.MADV_SEQUENTIAL)
        for record in iterate_records(data, path, verify=verify):
            if record.damage is None:
                yield record
            else:
                problems.add(record.damage, "the record was skipped")
    except ShardError as error:
        problems.add(error, "the shard was skipped" if error.record is None else "the rest of the shard was skipped")


def _known_labels(labels: tuple[int, ...], vocabulary_size: int, oddities: Counter[Oddity]) -> list[int]:
    """Labels of the vocabulary, each once, increasing."""
    known = sorted({label for label in labels if 0 <= label < vocabulary_size})
    if len(known) != len(labels):
        num_unknown = sum(not 0 <= label < vocabulary_size for label in labels)
        _count(oddities, Oddity.LABELS_UNKNOWN, num_unknown)
        _count(oddities, Oddity.LABELS_REPEATED, len(labels) - num_unknown - len(known))
    return known


def _usable_ratings(
    video: VideoRecord, num_frames: int, vocabulary_size: int, oddities: Counter[Oddity]
) -> list[tuple[int, int, int]]:
    """Ratings (label, start, value) that can be used, sorted by (start, label); the bad ones go, the video stays."""
    if not (video.segment_labels or video.segment_start_times or video.segment_scores):
        return []
    labels, starts, scores = video.segment_labels, video.segment_start_times, video.segment_scores
    # Ends say nothing that the starts do not, so a record may leave them out.
    ends = video.segment_end_times or tuple(start + SEGMENT_SECONDS for start in starts)
    if not len(labels) == len(starts) == len(ends) == len(scores):
        oddities[Oddity.RATINGS_UNPAIRED] += 1
        return []
    values: dict[tuple[int, int], set[int]] = {}
    copies: Counter[tuple[int, int]] = Counter()
    for label, start, end, score in zip(labels, starts, ends, scores, strict=True):
        if not 0 <= label < vocabulary_size:
            oddities[Oddity.RATINGS_UNKNOWN] += 1
        elif not 0 <= start < num_frames:
            oddities[Oddity.RATINGS_OUTSIDE] += 1
        elif start % SEGMENT_SECONDS:
            oddities[Oddity.RATINGS_OFF_GRID] += 1
        elif score not in (0.0, 1.0):
            oddities[Oddity.RATINGS_SCORE] += 1
        else:
            if end != start + SEGMENT_SECONDS:
                oddities[Oddity.RATINGS_END] += 1
            values.setdefault((start, label), set()).add(int(score))
            copies[start, label] += 1
    usable = []
    for (start, label), found in sorted(values.items()):
        if len(found) > 1:
            oddities[Oddity.RATINGS_CONTRADICTORY] += copies[start, label]
        else:
            _count(oddities, Oddity.RATINGS_REPEATED, copies[start, label] - 1)
            usable.append((label, start, found.pop()))
    return usable


def _count(oddities: Counter[Oddity], oddity: Oddity, number: int) -> None:
    if number:
        oddities[oddity] += number


def _joined(folder: Path, parts: list[_ShardRows]) -> Catalog:
    """Put the shards' rows together and drop the videos whose id occurred before."""
    oddities = sum((part.oddities for part in parts), Counter[Oddity]())
    problems = [sentence for part in parts for sentence in part.problems][:MAX_PROBLEMS]
    ids = np.concatenate([part.ids for part in parts])
    if not len(ids):
        reason = problems[0] if problems else "they hold no records."
        raise ShardError(folder, f"no video of its {len(parts)} shards can be used: {reason}")
    rows = np.concatenate([part.rows for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    label_counts = np.concatenate([part.label_counts for part in parts])
    ratings = np.concatenate([part.ratings for part in parts])
    rating_counts = np.concatenate([part.rating_counts for part in parts])
    first = np.zeros(len(ids), np.bool_)
    first[np.unique(ids, return_index=True)[1]] = True
    if not first.all():
        _count(oddities, Oddity.IDS_REPEATED, int((~first).sum()))
        labels = labels[np.repeat(first, label_counts)]
        ratings = ratings[np.repeat(first, rating_counts)]
        ids, rows, label_counts, rating_counts = ids[first], rows[first], label_counts[first], rating_counts[first]
    _count(oddities, Oddity.NO_LABELS, int((label_counts == 0).sum()))
    columns: dict[str, Any] = {
        name: np.ascontiguousarray(table[:, i], kind)
        for table, kinds in ((rows, _ROW_COLUMNS), (ratings, _RATING_COLUMNS))
        for i, (name, kind) in enumerate(kinds.items())
    }
    return Catalog(
        folder=folder,
        shards=tuple(part.info for part in parts),
        ids=ids,
        label_values=labels,
        label_starts=_starts(label_counts),
        rating_starts=_starts(rating_counts),
        oddities={oddity.value: oddities[oddity] for oddity in Oddity if oddities[oddity]},
        problems=tuple(problems),
        num_problems=sum(part.num_problems for part in parts),
        **columns,
    )


def _starts(counts: NDArray[np.integer]) -> NDArray[np.int64]:
    starts = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=starts[1:])
    return starts


# --- Parquet --------------------------------------------------------------------------------------------------------

_METADATA_KEY = b"yt8m"
_STARTS_OF = {"label_values": "label_starts"} | dict.fromkeys(_RATING_COLUMNS, "rating_starts")


def _to_table(catalog: Catalog) -> pa.Table:
    columns = {"ids": pa.array(catalog.ids).cast(pa.string())}
    columns |= {name: pa.array(getattr(catalog, name)) for name in _ROW_COLUMNS}
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
        # Column by column, so that a table of millions of rows is never there twice.
        for name in _ROW_COLUMNS:
            columns[name] = file.read([name]).column(0).to_numpy()
        for name, starts in _STARTS_OF.items():
            lists = file.read([name]).column(0).combine_chunks()
            columns[name] = lists.values.to_numpy()
            columns[starts] = lists.offsets.to_numpy()
        ids = _to_bytes(file.read(["ids"]).column(0).combine_chunks())
    return Catalog(
        folder=path.parent,
        shards=tuple(ShardInfo(*info) for info in about["shards"]),
        ids=ids,
        oddities=about["oddities"],
        problems=tuple(about["problems"]),
        num_problems=about["num_problems"],
        **columns,
    )


def _to_bytes(strings: pa.StringArray) -> NDArray[np.bytes_]:
    """Strings as numpy bytes of one width, without a Python object for each."""
    _, offsets_buffer, data = strings.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int32, len(strings) + 1, strings.offset * 4)
    lengths = np.diff(offsets)
    width = int(lengths.max())
    table = np.zeros((len(strings), width), np.uint8)
    table[np.arange(width) < lengths[:, None]] = np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]]
    return table.view(f"S{width}")[:, 0]
