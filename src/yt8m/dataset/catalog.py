"""The catalog: a table of a folder of shards, a row a video, that says what each video is and where its frames lie.

`index_folder` reads every shard once and `save` keeps the table as Parquet beside the shards. From then on every read
is random access, and row order, folds and shuffles come from the table alone (DESIGN: the catalog). Damaged records
are skipped, what is merely odd is mended the same way each time, and both are reported with their place.
"""

from __future__ import annotations

import csv
import hashlib
import json
import mmap
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
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
from yt8m.shards.example import (
    NUM_AUDIO,
    NUM_RGB,
    SEGMENT_SECONDS,
    MalformedRecordError,
    VideoRecord,
    WrongDatasetError,
    read_video,
)
from yt8m.shards.plan import list_lines
from yt8m.shards.tfrecord import Record, iterate_records, map_shard

FILE_NAME = "catalog.parquet"
FORMAT_VERSION = 1

NUM_LABELS = 3862
"""Labels of the YouTube-8M vocabulary."""

MAX_PROBLEMS = 200
"""Pieces of damage that a catalog keeps in words; the report lists more."""

MAX_REPORTED = 10_000
"""Problems of one shard that are listed, the others are counted: a shard of nothing but damage would have millions."""

REPORT_NAME = "catalog_report.csv"
LIST_NAME = "shards.txt"

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

    @property
    def done(self) -> str:
        """What is done about it: the words in parentheses."""
        return self.value[self.value.index("(") + 1 : -1]


class Problem(NamedTuple):
    """Something wrong with a shard or with one of its records.

    Args:
        shard: Name of the shard.
        record: Number of the record, None where it is the whole shard.
        offset: Byte in the shard, None where it is the whole shard.
        is_damage: Whether something was lost that cannot be read; otherwise it is an `Oddity`.
        found: What was found, without a full stop.
        done: What was done about it.
    """

    shard: str
    record: int | None
    offset: int | None
    is_damage: bool
    found: str
    done: str


Note = Callable[[Problem], None]
"""Told of each problem as it is found, in order."""


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


def damaged_places(count: int) -> str:
    """So much damage in words: the beginning of a sentence."""
    return "1 damaged place was" if count == 1 else f"{count:,} damaged places were"


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

    Where there is a list of shards (see `shard_list`), those that it names.

    Raises:
        UsageError: The folder is missing, is no folder, or holds no shards; or shards of the list are missing.
    """
    _require_folder(folder)
    # A leading dot marks a shard that is being written (see `files.written_atomically`).
    shards = {path.name: path for path in folder.glob("*.tfrecord") if not path.name.startswith(".")}
    listed = shard_list(folder)
    if listed is None:
        if not shards:
            raise UsageError(f"{folder}: holds no shards (files named *.tfrecord).")
        return [shards[name] for name in sorted(shards)]
    missing = [name for name in listed.names if name not in shards]
    if missing:
        few = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise UsageError(
            f"{listed.path}: {len(missing):,} of the {len(listed.names):,} shards that it names are not in {folder} "
            f"({few}); fetch them, or take them off the list."
        )
    return [shards[name] for name in listed.names]


class ShardList(NamedTuple):
    """A list of the shards to use: its file, and the names of shards of one folder, sorted."""

    path: Path
    names: list[str]


def shard_list(folder: Path) -> ShardList | None:
    """The list of the shards to use of a folder, None where all are used.

    `shards.txt` names a shard a line, in the folder of shards itself or in the dataset folder above it; there the
    names are paths (`video/train/train0001.tfrecord`), and a part of the dataset that it does not name is used whole.
    Blank lines and lines that begin with # do not count.

    Raises:
        UsageError: The list cannot be read, names nothing, or names a file that is no shard of this folder.
    """
    if (folder / LIST_NAME).is_file():
        path, prefix = folder / LIST_NAME, ""
    else:
        part = next((part for part in PARTS if folder.resolve().match(f"*/{part}")), None)
        if part is None:
            return None
        path, prefix = folder.resolve().parents[part.count("/")] / LIST_NAME, f"{part}/"
        if not path.is_file():
            return None
    named = {line.removeprefix("./") for line in list_lines(path) if line and not line.startswith("#")}
    if not named:
        raise UsageError(f"{path}: names no shard; write one name a line, or remove it to use all shards.")
    for name in sorted(named):
        folder_of_name = name.rpartition("/")[0]
        if not name.endswith(".tfrecord") or folder_of_name not in ((*PARTS, "") if prefix else ("",)):
            raise UsageError(
                f"{path}: {name!r} is no shard; expected "
                + (f"paths such as {PARTS[0]}/train0000.tfrecord." if prefix else "names such as train0000.tfrecord.")
            )
    names = sorted(name.removeprefix(prefix) for name in named if name.startswith(prefix))
    return ShardList(path, names) if names else None


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
    folder: Path,
    *,
    verify: bool = True,
    strict: bool = False,
    vocabulary_size: int = NUM_LABELS,
    progress: Progress | None = None,
    note: Note | None = None,
) -> Catalog:
    """Read every shard of a folder once and make its catalog; nothing is written (see `index_and_save`).

    Args:
        folder: Holds the shards, `*.tfrecord`.
        verify: Whether to compute the checksum of every record.
        strict: Whether the first problem is an error. Repeated ids are looked for last, over all shards.
        vocabulary_size: Label ids from here on are dropped.
        progress: Told how far it is, after each shard.
        note: Told of each problem.

    Raises:
        UsageError: The folder is missing or holds no shards, or some that its list names are missing.
        ShardError: A shard is of another dataset, or no record at all can be used, or strict and there is a problem.
    """
    paths = find_shards(folder)
    total = sum(shard_info(path).num_bytes for path in paths)
    done = 0
    parts = []

    def tell(problem: Problem) -> None:
        if strict:
            path = folder / problem.shard
            raise ShardError(path, f"{problem.found}.", record=problem.record, offset=problem.offset)
        if note is not None:
            note(problem)

    for position, path in enumerate(paths):
        parts.append(_index_shard(path, position, verify, vocabulary_size, tell))
        done += parts[-1].info.num_bytes
        if progress is not None:
            progress(done, total)
    return _joined(folder, parts, tell)


def index_shard(path: Path, *, verify: bool = True, vocabulary_size: int = NUM_LABELS) -> Catalog:
    """Make the catalog of a single shard; nothing is written, and other shards of its folder are not looked at.

    Args:
        path: The shard.
        verify: Whether to compute the checksum of every record.
        vocabulary_size: Label ids from here on are dropped.

    Raises:
        ShardError: The shard cannot be read, is of another dataset, or has no record that can be used.
    """

    def tell(_: Problem) -> None:
        """The catalog keeps what is damaged in words."""

    return _joined(path.parent, [_index_shard(path, 0, verify, vocabulary_size, tell)], tell)


def index_and_save(
    folder: Path,
    *,
    verify: bool = True,
    strict: bool = False,
    vocabulary_size: int = NUM_LABELS,
    progress: Progress | None = None,
) -> Catalog:
    """Index a folder and leave its catalog beside the shards, with a report where there are problems.

    The report, `catalog_report.csv`, has a line a problem: shard, record, byte, kind (damage or oddity), what was found
    and what was done. Where nothing is wrong there is none.

    Args and errors: as `index_folder`.

    Raises:
        Yt8mError: The disk is full or the folder cannot be written to.
    """
    with _report(folder / REPORT_NAME) as note:
        catalog = index_folder(
            folder, verify=verify, strict=strict, vocabulary_size=vocabulary_size, progress=progress, note=note
        )
    catalog.save()
    return catalog


@contextmanager
def _report(path: Path) -> Iterator[Note]:
    """Write each problem that is noted to a CSV file, which is there only if there is one."""
    with ExitStack() as stack:
        rows: Any = None

        def note(problem: Problem) -> None:
            nonlocal rows
            if rows is None:
                temporary = stack.enter_context(written_atomically(path))
                rows = csv.writer(stack.enter_context(temporary.open("w", encoding="utf-8", newline="")))
                rows.writerow(("shard", "record", "byte", "kind", "found", "done"))
            kind = "damage" if problem.is_damage else "oddity"
            rows.writerow((problem.shard, problem.record, problem.offset, kind, problem.found, problem.done))

        yield note
    if rows is None:
        path.unlink(missing_ok=True)


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
        catalog = index_and_save(folder, verify=verify, vocabulary_size=vocabulary_size, progress=progress)
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
    """Problems of one shard: each told as it is found, up to a bound, and counted."""

    def __init__(self, path: Path, tell: Note) -> None:
        self.oddities: Counter[Oddity] = Counter()
        self.sentences: list[str] = []
        self.num_damaged = 0
        self._path = path
        self._tell = tell
        self._num_told = 0

    def damage(self, error: ShardError, done: str) -> None:
        """Something is lost."""
        self.num_damaged += 1
        found = error.message.removesuffix(".")
        if self.num_damaged <= MAX_PROBLEMS:
            self.sentences.append(f"{str(error).removesuffix('.')}; {done}.")
        self._add(Problem(self._path.name, error.record, error.offset, True, found, done))

    def odd(self, oddity: Oddity, record: Record, found: str, count: int = 1) -> None:
        """Something of a record is odd, or several things of one kind."""
        self.oddities[oddity] += count
        self._add(Problem(self._path.name, record.number, record.offset, False, found, oddity.done))

    def close(self) -> None:
        """Say how many were not told."""
        if self._num_told > MAX_REPORTED:
            count = self._num_told - MAX_REPORTED
            self._tell(Problem(self._path.name, None, None, True, f"{count:,} more problems", "not listed"))

    def _add(self, problem: Problem) -> None:
        self._num_told += 1
        if self._num_told <= MAX_REPORTED:
            self._tell(problem)


def _index_shard(path: Path, position: int, verify: bool, vocabulary_size: int, tell: Note) -> _ShardRows:
    """Index one shard: a function of its bytes alone."""
    info = shard_info(path)
    problems = _Problems(path, tell)
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
            problems.damage(problem, "the record was skipped")
            continue
        num_frames = min(video.rgb.num_frames, video.audio.num_frames)
        if video.rgb.num_frames != video.audio.num_frames:
            found = f"{video.rgb.num_frames:,} rgb frames and {video.audio.num_frames:,} audio frames"
            problems.odd(Oddity.LENGTHS_DIFFER, record, found)
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
        labels.append(_known_labels(video.labels, vocabulary_size, record, problems))
        ratings.append(_usable_ratings(video, num_frames, vocabulary_size, record, problems))
    problems.close()
    return _ShardRows(
        info,
        np.array(ids, np.bytes_) if ids else np.zeros(0, "S1"),
        np.array(rows, np.int64).reshape(-1, len(_ROW_COLUMNS)),
        np.array([label for video_labels in labels for label in video_labels], np.int32),
        np.array([len(video_labels) for video_labels in labels], np.int64),
        np.array([rating for video_ratings in ratings for rating in video_ratings], np.int32).reshape(-1, 3),
        np.array([len(video_ratings) for video_ratings in ratings], np.int64),
        problems.oddities,
        problems.sentences,
        problems.num_damaged,
    )


def _intact_records(path: Path, verify: bool, problems: _Problems) -> Iterator[Record]:
    """Records of a shard whose bytes are what was written; the rest is noted among the problems."""
    records = _records(path, verify)
    while True:
        try:
            record = next(records, None)
        except ShardError as error:
            whole = error.record is None
            problems.damage(error, "the shard was skipped" if whole else "the rest of the shard was skipped")
            return
        if record is None:
            return
        if record.damage is None:
            yield record
        else:
            problems.damage(record.damage, "the record was skipped")


def _records(path: Path, verify: bool) -> Iterator[Record]:
    data = map_shard(path)
    if hasattr(mmap, "MADV_SEQUENTIAL"):
        data.madvise(mmap.MADV_SEQUENTIAL)
    yield from iterate_records(data, path, verify=verify)


def _known_labels(labels: tuple[int, ...], vocabulary_size: int, record: Record, problems: _Problems) -> list[int]:
    """Labels of the vocabulary, each once, increasing."""
    known = sorted({label for label in labels if 0 <= label < vocabulary_size})
    if len(known) != len(labels):
        unknown = [label for label in labels if not 0 <= label < vocabulary_size]
        if unknown:
            found = f"{_counted(len(unknown), 'label')} outside the vocabulary, the first {unknown[0]}"
            problems.odd(Oddity.LABELS_UNKNOWN, record, found, len(unknown))
        repeated = len(labels) - len(unknown) - len(known)
        if repeated:
            problems.odd(Oddity.LABELS_REPEATED, record, f"{_counted(repeated, 'repeated label')}", repeated)
    return known


def _usable_ratings(
    video: VideoRecord, num_frames: int, vocabulary_size: int, record: Record, problems: _Problems
) -> list[tuple[int, int, int]]:
    """Ratings (label, start, value) that can be used, sorted by (start, label); the bad ones go, the video stays."""
    if not (video.segment_labels or video.segment_start_times or video.segment_scores):
        return []
    labels, starts, scores = video.segment_labels, video.segment_start_times, video.segment_scores
    # Ends say nothing that the starts do not, so a record may leave them out.
    ends = video.segment_end_times or tuple(start + SEGMENT_SECONDS for start in starts)
    if not len(labels) == len(starts) == len(ends) == len(scores):
        found = f"{len(labels)} labels, {len(starts)} starts, {len(ends)} ends and {len(scores)} scores of ratings"
        problems.odd(Oddity.RATINGS_UNPAIRED, record, found)
        return []
    values: dict[tuple[int, int], set[int]] = {}
    copies: Counter[tuple[int, int]] = Counter()
    for label, start, end, score in zip(labels, starts, ends, scores, strict=True):
        rating = f"a rating of label {label} at second {start}"
        if not 0 <= label < vocabulary_size:
            problems.odd(Oddity.RATINGS_UNKNOWN, record, f"{rating}, and the vocabulary has no such label")
        elif not 0 <= start < num_frames:
            problems.odd(Oddity.RATINGS_OUTSIDE, record, f"{rating} of a video of {num_frames:,} frames")
        elif start % SEGMENT_SECONDS:
            problems.odd(Oddity.RATINGS_OFF_GRID, record, f"{rating}, which is no multiple of {SEGMENT_SECONDS}")
        elif score not in (0.0, 1.0):
            problems.odd(Oddity.RATINGS_SCORE, record, f"{rating} is {score:g}, neither 0 nor 1")
        else:
            if end != start + SEGMENT_SECONDS:
                problems.odd(Oddity.RATINGS_END, record, f"{rating} ends at second {end}")
            values.setdefault((start, label), set()).add(int(score))
            copies[start, label] += 1
    usable = []
    for (start, label), found_values in sorted(values.items()):
        count = copies[start, label]
        rating = f"{count} ratings of label {label} at second {start}"
        if len(found_values) > 1:
            problems.odd(Oddity.RATINGS_CONTRADICTORY, record, f"{rating} contradict each other", count)
            continue
        if count > 1:
            problems.odd(Oddity.RATINGS_REPEATED, record, f"{rating} say the same", count - 1)
        usable.append((label, start, found_values.pop()))
    return usable


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _joined(folder: Path, parts: list[_ShardRows], tell: Note) -> Catalog:
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
    first_of_id, which = np.unique(ids, return_index=True, return_inverse=True)[1:]
    repeated = np.flatnonzero(first_of_id[which] != np.arange(len(ids)))
    if len(repeated):
        oddities[Oddity.IDS_REPEATED] += len(repeated)
        _tell_repeated(parts, ids, rows, repeated, first_of_id[which[repeated]], tell)
        kept = np.ones(len(ids), np.bool_)
        kept[repeated] = False
        labels = labels[np.repeat(kept, label_counts)]
        ratings = ratings[np.repeat(kept, rating_counts)]
        ids, rows, label_counts, rating_counts = ids[kept], rows[kept], label_counts[kept], rating_counts[kept]
    if not label_counts.all():
        oddities[Oddity.NO_LABELS] = int((label_counts == 0).sum())
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


def _tell_repeated(
    parts: list[_ShardRows],
    ids: NDArray[np.bytes_],
    rows: NDArray[np.int64],
    repeated: NDArray[np.int64],
    firsts: NDArray[np.int64],
    tell: Note,
) -> None:
    """Tell of the videos with an id that occurred before, up to the bound of one shard."""
    columns = [list(_ROW_COLUMNS).index(name) for name in ("shard_index", "record_number", "record_offset")]
    for again, first in zip(repeated[:MAX_REPORTED].tolist(), firsts.tolist(), strict=False):
        (shard, record, offset), (first_shard, first_record, _) = (rows[i, columns].tolist() for i in (again, first))
        before = f"record {first_record} of {parts[first_shard].info.name}"
        found = f"the id {bytes(ids[again]).decode()!r} was that of {before}"
        tell(Problem(parts[shard].info.name, record, offset, False, found, Oddity.IDS_REPEATED.done))
    if len(repeated) > MAX_REPORTED:
        count = len(repeated) - MAX_REPORTED
        tell(Problem("", None, None, False, f"{count:,} more videos with such ids", Oddity.IDS_REPEATED.done))


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
    """Look at what reading relies on: all frames lie in their shards.

    Raises:
        ValueError: Some do not.
    """
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
    """Strings as numpy bytes of one width, without a Python object for each."""
    _, offsets_buffer, data = strings.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int32, len(strings) + 1, strings.offset * 4)
    lengths = np.diff(offsets)
    width = int(lengths.max())
    table = np.zeros((len(strings), width), np.uint8)
    table[np.arange(width) < lengths[:, None]] = np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]]
    return table.view(f"S{width}")[:, 0]
