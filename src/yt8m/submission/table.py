"""Write a ranking as a Parquet table: one row per listed segment, class by class, best first.

Several classes form a row group, so a table of 100 million rows needs little memory. Ids and names are
dictionary-encoded once per row group; the probabilities are stored as byte streams, which compresses sorted numbers to a
third.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from yt8m.files import written_atomically
from yt8m.ranking.topk import Ranking
from yt8m.submission.writing import label_ids_of
from yt8m.vocabulary import Vocabulary

ROWS_PER_GROUP = 2**19
"""A row group ends with the class that reaches this number of rows: large enough that ids are not repeated too often."""

SCHEMA = pa.schema(
    [
        pa.field("class", pa.int32(), nullable=False),
        pa.field("name", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("video", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("start", pa.int32(), nullable=False),
        pa.field("probability", pa.float32(), nullable=False),
    ]
)
"""The columns: `class` is a dataset id, `start` is in seconds."""


def write_table(path: Path, ranking: Ranking, vocabulary: Vocabulary, rows_per_group: int = ROWS_PER_GROUP) -> None:
    """Write a ranking as a table, class by class in the vocabulary's row order; the write is atomic.

    Args:
        path: The Parquet file to write.
        ranking: One class for each row of the vocabulary.
        vocabulary: The classes.
        rows_per_group: Minimum size of a row group, except the last.

    Raises:
        Yt8mError: The disk is full or the folder cannot be written to.
        ValueError: The number of classes is not that of the vocabulary.
    """
    label_ids = np.array(label_ids_of(ranking, vocabulary), np.int32)
    # The values of a dictionary must be distinct, but two classes may have the same name.
    name_indices = {name: index for index, name in enumerate(dict.fromkeys(vocabulary.names))}
    name_of_class = np.array([name_indices[name] for name in vocabulary.names], np.int32)
    names, video_ids = pa.array(name_indices, pa.string()), pa.array(ranking.segments.video_ids, pa.string())
    with (
        written_atomically(path) as temporary,
        temporary.open("wb") as output,
        pq.ParquetWriter(
            output,
            SCHEMA,
            compression="zstd",
            use_dictionary=["class", "name", "video", "start"],
            use_byte_stream_split=["probability"],
        ) as file,
    ):
        for classes in _row_groups(ranking, rows_per_group):
            lists = [ranking.positions(class_index) for class_index in classes]
            class_of_row = np.repeat(np.array(classes, np.int64), [len(listed) for listed in lists])  # (rows,)
            positions = np.concatenate(lists)  # (rows,)
            columns = [
                pa.array(label_ids[class_of_row]),
                pa.DictionaryArray.from_arrays(name_of_class[class_of_row], names),
                pa.DictionaryArray.from_arrays(ranking.segments.rows[positions], video_ids),
                pa.array(ranking.segments.start_seconds[positions]),
                pa.array(np.concatenate([ranking.probabilities(class_index) for class_index in classes])),
            ]
            file.write_table(pa.Table.from_arrays(columns, schema=SCHEMA), row_group_size=len(positions))


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
