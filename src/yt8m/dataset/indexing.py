"""Index a folder of shards: read each shard once, and make the catalog of its videos.

Damaged records are skipped, irregular ones are repaired the same way each time, and both are reported with their place.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yt8m.dataset.catalog import (
    FILE_NAME,
    RATING_COLUMNS,
    ROW_COLUMNS,
    Catalog,
    OutdatedError,
    catalog_files,
)
from yt8m.dataset.layout import ShardInfo, find_shards, require_folder, shard_info, writable_catalog_folder
from yt8m.dataset.own_labels import with_own_labels
from yt8m.dataset.problems import (
    MAX_PROBLEMS,
    MAX_REPORTED,
    REPORT_NAME,
    Oddity,
    OnProblem,
    Problem,
    ShardProblems,
    report_written,
)
from yt8m.dataset.ratings import known_labels, ratings_of_record
from yt8m.errors import ShardError, UsageError, Yt8mError, counted
from yt8m.features import Features
from yt8m.files import clear_leftovers
from yt8m.runtime.console import err
from yt8m.runtime.locks import locked
from yt8m.runtime.progress import ProgressFactory, no_progress
from yt8m.shards.contents import ShardFile, ShardWindow
from yt8m.shards.records import read_video
from yt8m.shards.tfrecord import Record, framing_checksum, iterate_records
from yt8m.shards.wire import MalformedRecordError, UnusableIdError, WrongDatasetError

_MISSING = {"rgb": Oddity.RGB_MISSING, "audio": Oddity.AUDIO_MISSING}

NUM_LABELS = 3862
"""Labels of the YouTube-8M vocabulary."""


def _ignore(_: Problem) -> None:
    """Drop a problem; the catalog itself describes damage."""


def damaged_places(count: int) -> str:
    """A number of damaged places, as the beginning of a sentence."""
    return f"{counted(count, 'damaged place')} {'was' if count == 1 else 'were'}"


def index_folder(
    folder: Path,
    *,
    verify: bool = True,
    strict: bool = False,
    vocabulary_size: int = NUM_LABELS,
    progress: ProgressFactory = no_progress,
    on_problem: OnProblem = _ignore,
) -> Catalog:
    """Read every shard of a folder, and the labels and ratings beside them, and make its catalog; nothing is written.

    Args:
        folder: The folder of shards.
        verify: Whether to verify the checksum of every record.
        strict: Whether the first problem is an error. Repeated ids are found last, over all shards.
        vocabulary_size: Label ids from this number on are dropped.
        progress: Reports bytes read, after each shard.
        on_problem: Called with each problem.

    Raises:
        UsageError: The folder is missing or contains no shards, or listed shards are missing,
            or `features.yaml`, `labels.csv` or `ratings.csv` is not valid.
        ShardError: A shard is of another dataset, or no record can be used, or strict and there is a problem.
    """
    features = Features.of_folder(folder)
    paths = find_shards(folder)
    total = sum(shard_info(path).num_bytes for path in paths)
    done = 0
    parts = []

    def note(problem: Problem) -> None:
        if strict:
            path = folder / problem.shard
            raise ShardError(path, f"{problem.found}.", record=problem.record, offset=problem.offset)
        on_problem(problem)

    with progress(f"index {folder}", total, "bytes") as report:
        for position, path in enumerate(paths):
            parts.append(_index_shard(path, position, features, verify, vocabulary_size, note))
            done += parts[-1].info.num_bytes
            report(done, total)
    return with_own_labels(_join(folder, features, parts, note), note)


def index_shard(path: Path, *, verify: bool = True, vocabulary_size: int = NUM_LABELS) -> Catalog:
    """Make the catalog of a single shard; nothing is written, and other shards of its folder are not read.

    Raises:
        ShardError: The shard cannot be read, is of another dataset, or has no record that can be used.
    """
    features = Features.of_folder(path.parent)
    rows = _index_shard(path, 0, features, verify, vocabulary_size, _ignore)
    return _join(path.parent, features, [rows], _ignore)


def index_and_save(
    folder: Path,
    *,
    verify: bool = True,
    strict: bool = False,
    vocabulary_size: int = NUM_LABELS,
    progress: ProgressFactory = no_progress,
) -> Catalog:
    """Index a folder and write its catalog, with a report where there are problems.

    Both are written beside the shards, or elsewhere where that is impossible (`layout.catalog_folders`). The report,
    `catalog_report.csv`, has one line per problem: shard, record, byte, kind (damage or oddity), what was found and how
    it was handled.

    Args and errors: as `index_folder`.

    Raises:
        Yt8mError: The disk is full, or no place can be written to.
    """
    require_folder(folder)
    place = writable_catalog_folder(folder)
    if not os.access(folder, os.W_OK):
        err.print(f"{folder}: cannot be written to, so its catalog is written to {place}.")
    with locked(place / FILE_NAME):
        clear_leftovers(place / FILE_NAME, place / REPORT_NAME)
        with report_written(place / REPORT_NAME) as write:
            catalog = index_folder(
                folder,
                verify=verify,
                strict=strict,
                vocabulary_size=vocabulary_size,
                progress=progress,
                on_problem=write,
            )
        catalog.save()
    return catalog


def current_catalog(folder: Path) -> Catalog | None:
    """Load the catalog of a folder if it is intact and current; None if the folder has to be indexed.

    A message says why a catalog cannot be used, unless its shards have changed.

    Raises:
        UsageError: The folder is missing.
    """
    return usable_catalog(folder, Catalog.refreshed)


def usable_catalog(folder: Path, accept: Callable[[Catalog], Catalog] = lambda catalog: catalog) -> Catalog | None:
    """Load the first catalog of a folder that is intact and accepted; None if none is.

    Args:
        folder: The folder of shards.
        accept: Returns a catalog to use, or raises a Yt8mError.

    Raises:
        UsageError: The folder is missing.
    """
    require_folder(folder)
    reasons = []
    for path in catalog_files(folder):
        try:
            return accept(Catalog.load(folder, path))
        except (UsageError, OutdatedError):
            # Indexing reports missing shards.
            continue
        except Yt8mError as error:
            reasons.append(str(error).split("; run `yt8m index")[0].removesuffix("."))
    if reasons:
        err.print(f"{reasons[0]}; the folder is indexed again.")
    return None


def load_or_index(
    folder: Path, *, verify: bool = True, vocabulary_size: int = NUM_LABELS, progress: ProgressFactory = no_progress
) -> Catalog:
    """Load the catalog of a folder if it is intact and current; otherwise index the folder and save its catalog.

    Args and errors: as `index_folder`.
    """
    catalog = current_catalog(folder)
    if catalog is None:
        catalog = index_and_save(folder, verify=verify, vocabulary_size=vocabulary_size, progress=progress)
    return catalog


@dataclass(frozen=True, eq=False)
class _ShardRows:
    """The rows of one shard.

    rows int64 (n, 9) in the order of `ROW_COLUMNS`; labels int32; label_counts int64 (n,); ratings int32 (r, 3) in
    the order of `RATING_COLUMNS`; rating_counts int64 (n,).
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


def _index_shard(
    path: Path, position: int, features: Features, verify: bool, vocabulary_size: int, on_problem: OnProblem
) -> _ShardRows:
    """Index one shard: a function of its bytes alone."""
    info = shard_info(path)
    problems = ShardProblems(path, on_problem)
    ids: list[bytes] = []
    rows: list[tuple[int, ...]] = []
    labels: list[list[int]] = []
    ratings: list[list[tuple[int, int, int]]] = []
    framing: list[tuple[int, int]] = []
    file = _opened(path, problems)
    for record in _intact_records(file, verify, problems, framing) if file else ():
        try:
            video = read_video(record.payload, features)
        except UnusableIdError as error:
            problems.odd(Oddity.IDS_UNUSABLE, record, error.message.removesuffix("."))
            continue
        except MalformedRecordError as error:
            place = record.offset + error.offset
            problem = ShardError(path, error.message, record=record.number, offset=place)
            # A shard whose first record is of another dataset is of another dataset.
            if isinstance(error, WrongDatasetError) and not rows:
                raise problem from None
            problems.damage(problem, "the record was skipped")
            continue
        num_frames = min(video.lengths)
        if num_frames != max(video.lengths):
            found = f"{video.rgb.num_frames:,} rgb frames and {video.audio.num_frames:,} audio frames"
            problems.odd(Oddity.LENGTHS_DIFFER, record, found)
        places = []
        for name, layout in (("rgb", video.rgb), ("audio", video.audio)):
            if layout.num_frames:
                places += [record.offset + layout.offset, layout.stride]
                continue
            places += [0, 0]
            if name in features.modalities:
                problems.odd(_MISSING[name], record, f"no {name} frames")
        ids.append(video.id.encode())
        location = (position, record.number, record.offset, len(record.payload), num_frames)
        rows.append((*location, *places))
        labels.append(known_labels(video.labels, vocabulary_size, record, problems))
        ratings.append(ratings_of_record(video, num_frames, vocabulary_size, record, problems))
    problems.close()
    if file:
        file.require_unchanged()
        checksum, sample = framing_checksum(framing), file.sample_checksum()
        info = ShardInfo(path.name, file.num_bytes, file.mtime_ns, checksum, sample)
    return _ShardRows(
        info,
        np.array(ids, np.bytes_) if ids else np.zeros(0, "S1"),
        np.array(rows, np.int64).reshape(-1, len(ROW_COLUMNS)),
        np.array([label for video_labels in labels for label in video_labels], np.int32),
        np.array([len(video_labels) for video_labels in labels], np.int64),
        np.array([rating for video_ratings in ratings for rating in video_ratings], np.int32).reshape(-1, 3),
        np.array([len(video_ratings) for video_ratings in ratings], np.int64),
        problems.oddities,
        problems.sentences,
        problems.num_damaged,
    )


def _opened(path: Path, problems: ShardProblems) -> ShardFile | None:
    """Open a shard; one that cannot be opened is added to the problems."""
    try:
        return ShardFile(path)
    except ShardError as error:
        problems.damage(error, "the shard was skipped")
        return None


def _intact_records(
    file: ShardFile, verify: bool, problems: ShardProblems, framing: list[tuple[int, int]]
) -> Iterator[Record]:
    """Intact records of a shard; damaged ones are added to the problems, and the place and checksum of all to `framing`."""
    records = _records(file, verify)
    while True:
        try:
            record = next(records, None)
        except ShardError as error:
            skipped = "the shard was skipped" if error.offset is None else "the rest of the shard was skipped"
            problems.damage(error, skipped)
            return
        if record is None:
            return
        framing.append((record.offset, record.checksum))
        if record.damage is None:
            yield record
        else:
            problems.damage(record.damage, "the record was skipped")


def _records(file: ShardFile, verify: bool) -> Iterator[Record]:
    yield from iterate_records(ShardWindow(file), file.path, verify=verify)


def _join(folder: Path, features: Features, parts: list[_ShardRows], on_problem: OnProblem) -> Catalog:
    """Concatenate the rows of all shards, and drop videos with an id that occurred before."""
    oddities = sum((part.oddities for part in parts), Counter[Oddity]())
    problems = [sentence for part in parts for sentence in part.problems][:MAX_PROBLEMS]
    ids = np.concatenate([part.ids for part in parts])
    if not len(ids):
        unusable = counted(oddities[Oddity.IDS_UNUSABLE], "video") + (
            " with ids that a submission cannot hold; `yt8m extract --from-features` gives them others."
        )
        no_records = unusable if oddities else "they contain no records."
        reason = problems[0] if problems else no_records
        raise ShardError(folder, f"no usable video in {counted(len(parts), 'shard')}: {reason}")
    rows = np.concatenate([part.rows for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    label_counts = np.concatenate([part.label_counts for part in parts])
    ratings = np.concatenate([part.ratings for part in parts])
    rating_counts = np.concatenate([part.rating_counts for part in parts])
    # first_of_id: (unique ids,) position of the first video with that id; which: (N,) the unique id of each video.
    first_of_id, which = np.unique(ids, return_index=True, return_inverse=True)[1:]
    repeated = np.flatnonzero(first_of_id[which] != np.arange(len(ids)))
    if len(repeated):
        oddities[Oddity.IDS_REPEATED] += len(repeated)
        _report_repeated(parts, ids, rows, repeated, first_of_id[which[repeated]], on_problem)
        kept = np.ones(len(ids), np.bool_)
        kept[repeated] = False
        labels = labels[np.repeat(kept, label_counts)]  # (labels,)
        ratings = ratings[np.repeat(kept, rating_counts)]  # (ratings, 3)
        ids, rows, label_counts, rating_counts = ids[kept], rows[kept], label_counts[kept], rating_counts[kept]
    if not label_counts.all():
        oddities[Oddity.NO_LABELS] = int((label_counts == 0).sum())
    columns: dict[str, Any] = {
        name: np.ascontiguousarray(table[:, i], kind)
        for table, kinds in ((rows, ROW_COLUMNS), (ratings, RATING_COLUMNS))
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
        features=features,
        **columns,
    )


def _report_repeated(
    parts: list[_ShardRows],
    ids: NDArray[np.bytes_],
    rows: NDArray[np.int64],
    repeated: NDArray[np.int64],
    firsts: NDArray[np.int64],
    on_problem: OnProblem,
) -> None:
    """Report videos with an id that occurred before, up to the limit of one shard."""
    columns = [list(ROW_COLUMNS).index(name) for name in ("shard_index", "record_number", "record_offset")]
    for again, first in zip(repeated[:MAX_REPORTED].tolist(), firsts.tolist(), strict=False):
        (shard, record, offset), (first_shard, first_record, _) = (rows[i, columns].tolist() for i in (again, first))
        before = f"record {first_record} of {parts[first_shard].info.name}"
        found = f"the id {bytes(ids[again]).decode()!r} was that of {before}"
        on_problem(Problem(parts[shard].info.name, record, offset, False, found, Oddity.IDS_REPEATED.done))
    if len(repeated) > MAX_REPORTED:
        more = f"{counted(len(repeated) - MAX_REPORTED, 'more video')} with such ids"
        on_problem(Problem("", None, None, False, more, Oddity.IDS_REPEATED.done))


def _starts(counts: NDArray[np.integer]) -> NDArray[np.int64]:
    starts = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=starts[1:])
    return starts
