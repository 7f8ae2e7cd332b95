"""A ranking as a Parquet table: one row per listed segment, class by class, best first.

Its last column is the probability of the segment, or the score of an ensemble that is not calibrated.

Several classes form a row group, so a table of 100 million rows needs little memory. Ids and names are
dictionary-encoded once per row group; the values are stored as byte streams, which compresses sorted numbers to a
third. The file's metadata lists the classes and their numbers of rows, so that one class is read without the others.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from yt8m.errors import UsageError, Yt8mError
from yt8m.files import written_atomically
from yt8m.prediction.segments import ListedSegments
from yt8m.ranking import value_name
from yt8m.ranking.topk import Ranking
from yt8m.submission.writing import label_ids_of
from yt8m.vocabulary import Vocabulary

if TYPE_CHECKING:
    from yt8m.ranking.calibration import Calibration

TABLE_FILE = "segments.parquet"
"""The table in the folder of a run."""

CLASSES_KEY = b"yt8m.classes"
"""Key of the classes in the file's metadata: JSON, [id, name, number of rows] of each class, in the order of the rows."""

ROWS_PER_GROUP = 2**19
"""A row group ends with the class that reaches this number of rows: large enough that ids are not repeated too often."""

SCHEMA = pa.schema(
    [
        pa.field("class", pa.int32(), nullable=False),
        pa.field("name", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("video", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("start", pa.int32(), nullable=False),
    ]
)
"""The first columns: `class` is a dataset id, `start` is in seconds. The last one is `probability`, or `score` where the
ensemble is not calibrated; float32."""


def write_table(
    path: Path,
    ranking: Ranking,
    vocabulary: Vocabulary,
    rows_per_group: int = ROWS_PER_GROUP,
    calibration: Calibration | None = None,
) -> None:
    """Write a ranking as a table, class by class in the vocabulary's row order; the write is atomic.

    Args:
        path: The Parquet file to write.
        ranking: One class for each row of the vocabulary.
        vocabulary: The classes.
        rows_per_group: Minimum size of a row group, except the last.
        calibration: Makes probabilities of the ranking's scores; None leaves them as they are.

    Raises:
        Yt8mError: The disk is full or the folder cannot be written to.
        ValueError: The number of classes is not that of the vocabulary.
    """
    label_ids = np.array(label_ids_of(ranking, vocabulary), np.int32)
    # The values of a dictionary must be distinct, but two classes may have the same name.
    name_indices = {name: index for index, name in enumerate(dict.fromkeys(vocabulary.names))}
    name_of_class = np.array([name_indices[name] for name in vocabulary.names], np.int32)
    names, video_ids = pa.array(name_indices, pa.string()), pa.array(ranking.segments.video_ids, pa.string())
    num_rows = [len(keys) for keys in ranking.keys]
    value = value_name(calibration is not None)
    schema = SCHEMA.append(pa.field(value, pa.float32(), nullable=False))
    classes_listed = json.dumps(list(zip(label_ids.tolist(), vocabulary.names, num_rows, strict=True)))
    with (
        written_atomically(path) as temporary,
        temporary.open("wb") as output,
        pq.ParquetWriter(
            output,
            schema,
            compression="zstd",
            use_dictionary=["class", "name", "video", "start"],
            use_byte_stream_split=[value],
        ) as file,
    ):
        file.add_key_value_metadata({CLASSES_KEY: classes_listed.encode()})
        for classes in _row_groups(ranking, rows_per_group):
            lists = [ranking.positions(class_index) for class_index in classes]
            class_of_row = np.repeat(np.array(classes, np.int64), [len(listed) for listed in lists])  # (rows,)
            positions = np.concatenate(lists)  # (rows,)
            scores = np.concatenate([ranking.probabilities(class_index) for class_index in classes])
            columns = [
                pa.array(label_ids[class_of_row]),
                pa.DictionaryArray.from_arrays(name_of_class[class_of_row], names),
                pa.DictionaryArray.from_arrays(ranking.segments.rows[positions], video_ids),
                pa.array(ranking.segments.start_seconds[positions]),
                pa.array(scores if calibration is None else calibration(scores)),
            ]
            file.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=len(positions))


def _row_groups(ranking: Ranking, rows_per_group: int) -> Iterator[list[int]]:
    """Yield the classes of each row group."""
    classes: list[int] = []
    num_rows = 0
    for class_index, keys in enumerate(ranking.keys):
        classes.append(class_index)
        num_rows += len(keys)
        if num_rows >= rows_per_group:
            yield classes
            classes, num_rows = [], 0
    if num_rows:
        yield classes


@dataclass(frozen=True, eq=False)
class RankingTable:
    """A table to read class by class, without reading the others.

    Args:
        path: The file.
        vocabulary: The classes in the order of their first rows.
        row_groups: Numbers of the row groups with rows of each class.
        is_calibrated: Whether its values are probabilities.
    """

    path: Path
    vocabulary: Vocabulary
    row_groups: tuple[list[int], ...]
    is_calibrated: bool

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read the classes of a table.

        Raises:
            UsageError: There is no such file, it is not a Parquet file, or it lacks the columns of a ranking.
            Yt8mError: It is damaged.
        """
        try:
            # As bytes, since a path may be no text.
            with pa.OSFile(os.fsencode(path)) as source, pq.ParquetFile(source) as file:
                names = file.schema_arrow.names
                is_calibrated = value_name(True) in names
                missing = [name for name in [*SCHEMA.names, value_name(is_calibrated)] if name not in names]
                if missing:
                    raise UsageError(
                        f"{path}: is not the table of a ranking, it has no column {missing[0]!r}; `yt8m run` and "
                        "`yt8m predict --table` write one."
                    )
                found = _listed_classes(file) or _scanned_classes(file)
        except FileNotFoundError:
            raise UsageError(f"{path}: there is no such table.") from None
        except (OSError, pa.ArrowException) as error:
            reason = " ".join(str(error).split()).removesuffix(".")
            raise UsageError(f"{path}: cannot be read as a Parquet table ({reason}).") from None
        vocabulary = Vocabulary(np.array(list(found), np.int64), tuple(name for name, _ in found.values()))
        return cls(path, vocabulary, tuple(groups for _, groups in found.values()), is_calibrated)

    def segments(self, class_index: int) -> ListedSegments:
        """Segments listed for a class, best first.

        Raises:
            Yt8mError: The file is damaged.
        """
        groups = self.row_groups[class_index]
        value = value_name(self.is_calibrated)
        columns = ["class", "video", "start", value]
        try:
            with pa.OSFile(os.fsencode(self.path)) as source, pq.ParquetFile(source) as file:
                rows = file.read_row_groups(groups, columns)
        except (OSError, pa.ArrowException) as error:
            reason = " ".join(str(error).split()).removesuffix(".")
            raise Yt8mError(f"{self.path}: cannot be read ({reason}); write the table again.") from None
        is_of_class = np.asarray(rows["class"]) == self.vocabulary.label_ids[class_index]  # (rows,)
        videos: Any = rows["video"].combine_chunks()
        if not pa.types.is_dictionary(videos.type):
            videos = videos.dictionary_encode()
        return ListedSegments(
            videos.dictionary.to_pylist(),
            np.asarray(videos.indices, np.int32)[is_of_class],
            np.asarray(rows["start"], np.int32)[is_of_class],
            np.asarray(rows[value], np.float32)[is_of_class],
        )


def _listed_classes(file: pq.ParquetFile) -> dict[int, tuple[str, list[int]]]:
    """Name and row groups of each class by its id, from the file's metadata; empty where these do not list them."""
    listed = json.loads((file.metadata.metadata or {}).get(CLASSES_KEY, b"[]"))
    sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    ends = np.cumsum(sizes)
    if sum(num_rows for _, _, num_rows in listed) != sum(sizes):
        return {}
    found = {}
    start = 0
    for label_id, name, num_rows in listed:
        first, last = np.searchsorted(ends, [start, start + num_rows - 1], side="right").tolist()
        found[label_id] = (name, list(range(first, last + 1)) if num_rows else [])
        start += num_rows
    return found


def _scanned_classes(file: pq.ParquetFile) -> dict[int, tuple[str, list[int]]]:
    """Name and row groups of each class by its id, from the rows, for tables that other programs wrote."""
    found: dict[int, tuple[str, list[int]]] = {}
    for number in range(file.num_row_groups):
        rows = file.read_row_group(number, ["class", "name"])
        label_ids, first = np.unique(np.asarray(rows["class"]), return_index=True)
        for label_id, name in zip(label_ids.tolist(), rows["name"].take(first).to_pylist(), strict=True):
            found.setdefault(label_id, (name or "", []))[1].append(number)
    return found
