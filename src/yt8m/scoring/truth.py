"""Ground truth: ratings or positives of segments, from CSV files or from rated shards."""

import csv
import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from yt8m.dataset.catalog import Catalog
from yt8m.dataset.indexing import load_or_index
from yt8m.errors import UsageError, Yt8mError, counted, reason_of
from yt8m.shards.ids import SEGMENT_SECONDS
from yt8m.vocabulary import Vocabulary

RATINGS_FILE = "test_ratings.csv"
POSITIVES_FILE = "test_positives.csv"

RATING_COLUMNS = ("video", "label", "start", "score")
POSITIVE_COLUMNS = RATING_COLUMNS[:3]


@dataclass(frozen=True, eq=False)
class Truth:
    """Ratings of segments, or all positives.

    Args:
        ratings: The rated segments (the bytes `video:start`) of each label_id: True if any rating is positive.
        is_dense: Whether `ratings` are all positives, so that every other segment is a negative.
        num_repeated: Ratings of a segment and label that already had one; ignored unless they contradict it.
        num_contradictory: Pairs of segment and label rated both ways; they count as positive.
    """

    ratings: dict[int, dict[bytes, bool]]
    is_dense: bool
    num_repeated: int
    num_contradictory: int

    @classmethod
    def from_arrays(
        cls,
        video_ids: Iterable[str | bytes],
        label_ids: ArrayLike,
        start_seconds: ArrayLike,
        values: ArrayLike | None = None,
    ) -> Self:
        """Build the truth from parallel columns.

        Args:
            video_ids: Video of each rating, n.
            label_ids: Label, a dataset id, (n,).
            start_seconds: Start of the segment, (n,).
            values: Rating, positive above 0, (n,); None for a dense truth, which contains only positives.

        Raises:
            ValueError: The columns differ in length.
        """
        labels: list[int] = np.asarray(label_ids, np.int64).tolist()
        starts: list[int] = np.asarray(start_seconds, np.int64).tolist()
        ratings: list[float] = [1.0] * len(labels) if values is None else np.asarray(values).tolist()
        videos = (video.encode() if isinstance(video, str) else video for video in video_ids)
        return cls._from_rows(zip(videos, labels, starts, ratings, strict=True), is_dense=values is None)

    @classmethod
    def from_catalog(cls, catalog: Catalog, vocabulary: Vocabulary | None = None) -> Self:
        """The ratings of rated shards.

        Args:
            catalog: Videos with their ratings.
            vocabulary: If given, ratings of other labels are dropped.

        Raises:
            UsageError: There are no ratings.
        """
        kept = np.ones(len(catalog.rating_labels), np.bool_)
        if vocabulary is not None:
            kept = vocabulary.class_indices(catalog.rating_labels) >= 0
        if not kept.any():
            raise UsageError(
                f"{catalog.folder}: found no ratings to score against in its {counted(len(catalog), 'video')}."
            )
        return cls.from_arrays(
            catalog.ids[catalog.rating_rows[kept]].tolist(),
            catalog.rating_labels[kept],
            catalog.rating_start_seconds[kept],
            catalog.rating_values[kept],
        )

    @classmethod
    def from_csv(cls, path: Path, dense: bool = False) -> Self:
        """Read a CSV file with the columns `video,label,start,score`; other columns are ignored.

        Args:
            path: The file. `label` is a dataset id, `start` is in seconds, a rating is positive if `score` is above 0.
            dense: Whether the file lists all positives, in the columns `video,label,start`.

        Raises:
            UsageError: The file is missing or cannot be opened.
            Yt8mError: It is empty, lacks a column, contains an invalid value (the message names the line), or is dense
                and has a column `score`.
        """
        return cls._from_rows(_csv_rows(path, POSITIVE_COLUMNS if dense else RATING_COLUMNS), is_dense=dense)

    @classmethod
    def _from_rows(cls, rows: Iterable[tuple[bytes, int, int, float]], *, is_dense: bool) -> Self:
        ratings: dict[int, dict[bytes, bool]] = {}
        contradictory: set[tuple[int, bytes]] = set()
        num_rows = 0
        for video_id, label_id, start, value in rows:
            num_rows += 1
            segment = b"%s:%d" % (video_id, start)
            of_label = ratings.setdefault(label_id, {})
            is_positive = value > 0
            previous = of_label.setdefault(segment, is_positive)
            if previous != is_positive:
                contradictory.add((label_id, segment))
                of_label[segment] = True
        num_distinct = sum(map(len, ratings.values()))
        return cls(ratings, is_dense, num_rows - num_distinct, len(contradictory))

    def num_positives(self, vocabulary: Vocabulary | None = None) -> dict[int, int]:
        """Number of positives of each label_id that has any, in ascending order of the ids.

        Raises:
            Yt8mError: There are none, or a label is not in the vocabulary.
        """
        unknown = set() if vocabulary is None else self.ratings.keys() - set(vocabulary.label_ids.tolist())
        if unknown:
            raise Yt8mError(
                f"The truth rates the label {min(unknown)}, which is not a class of the vocabulary; expected ratings of "
                "its classes, by their ids (column Index)."
            )
        counts = {label_id: sum(of_label.values()) for label_id, of_label in sorted(self.ratings.items())}
        if not any(counts.values()):
            raise Yt8mError("The truth contains no positive rating, so there is nothing to score.")
        return {label_id: count for label_id, count in counts.items() if count}

    def video_ids(self) -> set[bytes]:
        """The videos with a rating."""
        return {segment.rpartition(b":")[0] for of_label in self.ratings.values() for segment in of_label}


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """The known ground truth of a test set: ratings, all positives, both or neither."""

    ratings: Truth | None
    positives: Truth | None

    @classmethod
    def find(cls, folder: Path, catalog: Catalog, vocabulary: Vocabulary) -> Self:
        """Load `test_ratings.csv` (or else the ratings of the shards) and `test_positives.csv`, where they exist.

        Args:
            folder: The folder of the CSV files.
            catalog: The test videos.
            vocabulary: The segment classes.

        Raises:
            Yt8mError: A file cannot be read, or nothing can be scored against it.
        """
        ratings = positives = None
        if (folder / RATINGS_FILE).is_file():
            ratings = Truth.from_csv(folder / RATINGS_FILE)
        elif len(catalog.rating_labels):
            ratings = Truth.from_catalog(catalog, vocabulary)
        if (folder / POSITIVES_FILE).is_file():
            positives = Truth.from_csv(folder / POSITIVES_FILE, dense=True)
        for name, truth in ((RATINGS_FILE, ratings), (POSITIVES_FILE, positives)):
            if truth is not None:
                # Raises the errors of an unusable truth before anything is predicted.
                truth.num_positives(vocabulary)
                if truth.video_ids().isdisjoint(catalog.ids.tolist()):
                    raise Yt8mError(
                        f"{folder / name}: rates none of the {counted(len(catalog), 'video')} in {catalog.folder}; expected "
                        "the ground truth of these videos."
                    )
        return cls(ratings, positives)

    @property
    def is_known(self) -> bool:
        """Whether there is anything to score against."""
        return self.ratings is not None or self.positives is not None

    @property
    def digest(self) -> str:
        """Hash of the ratings and positives."""
        digest = hashlib.sha256()
        for truth in (self.ratings, self.positives):
            ratings = {} if truth is None else truth.ratings
            for label_id, of_label in sorted(ratings.items()):
                digest.update(repr((label_id, sorted(of_label.items()))).encode())
            digest.update(b"|")
        return digest.hexdigest()[:16]


def load_truth(path: Path, dense: bool = False, vocabulary: Vocabulary | None = None) -> Truth:
    """Load ground truth.

    Args:
        path: A folder of rated shards (indexed first if it has no catalog), or a CSV file.
        dense: Whether the CSV file lists all positives (`video,label,start`), so that all other segments are negative.
        vocabulary: If given, ratings of other labels in shards are dropped.

    Raises:
        UsageError: There is no such file or folder, or a folder of shards is given as dense truth.
    """
    if not path.is_dir():
        return Truth.from_csv(path, dense)
    if dense:
        raise UsageError(f"{path}: a dense truth is a CSV file with the columns video,label,start, not a folder.")
    return Truth.from_catalog(load_or_index(path), vocabulary)


def _csv_rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[bytes, int, int, float]]:
    """Yield video id, label_id, start in seconds and rating (1 if there is no such column) of each row."""
    names = ",".join(columns)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            indices = _column_indices(path, next(reader, []), columns)
            is_empty = True
            for row in reader:
                if row:
                    is_empty = False
                    yield _parse_row(f"{path}, line {reader.line_num}", row, indices)
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such file; expected a CSV file with the columns {names}.") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read as a CSV file ({error.strerror}).") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise Yt8mError(f"{path}: is not a CSV file in UTF-8 ({reason_of(error)}).") from None
    if is_empty:
        raise Yt8mError(f"{path}: contains no rows below its header; expected one rated segment per row.")


def _column_indices(path: Path, header: list[str], columns: tuple[str, ...]) -> list[int]:
    missing = [column for column in columns if column not in header]
    if missing:
        hint = " (a file of all positives, without scores, is a dense truth)" if missing == ["score"] else ""
        raise Yt8mError(
            f"{path}, line 1: expected a header with the columns {','.join(columns)}, "
            f"found {','.join(header)[:80]!r}{hint}."
        )
    if columns == POSITIVE_COLUMNS and "score" in header:
        raise Yt8mError(
            f"{path}, line 1: has a column 'score', so it contains ratings, not only positives; expected a dense truth with "
            "the columns video,label,start."
        )
    return [header.index(column) for column in columns]


def _parse_row(location: str, row: list[str], indices: list[int]) -> tuple[bytes, int, int, float]:
    if len(row) <= max(indices):
        raise Yt8mError(f"{location}: expected at least {max(indices) + 1} values, found {len(row)}.")
    video_id, label, start, score = (*(row[index] for index in indices), "1")[:4]
    if not video_id:
        raise Yt8mError(f"{location}: the video id is empty.")
    if not _is_whole_number(label):
        raise Yt8mError(f"{location}: expected a whole number as label, found {label!r}.")
    if not _is_whole_number(start) or int(start) % SEGMENT_SECONDS:
        raise Yt8mError(
            f"{location}: expected a start in seconds, a multiple of {SEGMENT_SECONDS} from 0, found {start!r}."
        )
    try:
        value = float(score)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise Yt8mError(f"{location}: expected a number as score, found {score!r}.")
    return video_id.encode(), int(label), int(start), value


def _is_whole_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 18
