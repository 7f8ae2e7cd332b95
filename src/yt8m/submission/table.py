"""A ranking as a table for people: a Parquet file with a row a listed segment, class by class, best first.

Rows say `class, name, video, start, probability`. Classes are written as they come, several to a row group, so a table
of 100 million rows passes through little memory. Ids and names stand once a row group and rows refer to them; the bytes
of the probabilities are stored apart by their place, where sorted numbers compress to a third.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from yt8m.files import written_atomically
from yt8m.prediction.segments import Segments
from yt8m.ranking.topk import Ranking
from yt8m.submission.submission import label_ids_of
from yt8m.vocabulary import Vocabulary

ROWS_PER_GROUP = 2**19
"""A row group ends with the class that reaches so many rows: large enough that the ids are not repeated too often."""

SCHEMA = pa.schema(
    [
        pa.field("class", pa.int32(), nullable=False),
        pa.field("name", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("video", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("start", pa.int32(), nullable=False),
        pa.field("probability", pa.float32(), nullable=False),
    ]
)
"""The columns: `class` is an id of the dataset's vocabulary, `start` in seconds."""


class TableWriter:
    """Writes the table of a ranking, a class at a time; as a context manager, the file is complete or absent.

    Args:
        path: The Parquet file to write.
        segments: What positions mean.
        vocabulary: The classes.
    """

    def __init__(self, path: Path, segments: Segments, vocabulary: Vocabulary) -> None:
        self._path = path
        self._segments = segments
        self._label_ids = vocabulary.label_ids.astype(np.int32)
        # Readers take the values of a dictionary for different ones, and two classes may have one name.
        names = {name: place for place, name in enumerate(dict.fromkeys(vocabulary.names))}
        self._name_of_class = np.array([names[name] for name in vocabulary.names], np.int32)
        self._names = pa.array(names, pa.string())
        self._video_ids = pa.array(segments.video_ids, pa.string())
        self._waiting: list[tuple[int, NDArray[np.int32], NDArray[np.float32]]] = []
        self._num_waiting = 0
        self._stack = ExitStack()
        self._file: Any = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            temporary = stack.enter_context(written_atomically(self._path))
            self._file = stack.enter_context(
                pq.ParquetWriter(
                    temporary,
                    SCHEMA,
                    compression="zstd",
                    use_dictionary=["class", "name", "video", "start"],
                    use_byte_stream_split=["probability"],
                )
            )
            stack.push(self._write_rest)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._stack.__exit__(kind, error, trace)

    def write(self, class_index: int, positions: NDArray[np.int32], probabilities: NDArray[np.float32]) -> None:
        """Write the segments listed for a class.

        Args:
            class_index: The class, each once.
            positions: Positions in the segments, best first, int32 (n,).
            probabilities: Their probabilities, float32 (n,).

        Raises:
            ValueError: There is not a probability for each position.
            OSError: The disk is full; the context manager makes a sentence of it.
        """
        if positions.shape != probabilities.shape or positions.ndim != 1:
            raise ValueError(
                f"expected positions (n,) and as many probabilities, found {positions.shape} and {probabilities.shape}."
            )
        self._waiting.append((class_index, positions, probabilities))
        self._num_waiting += len(positions)
        if self._num_waiting >= ROWS_PER_GROUP:
            self._write_group()

    def _write_group(self) -> None:
        if not self._num_waiting:
            return
        classes, positions, probabilities = zip(*self._waiting, strict=True)
        of_row = np.repeat(np.array(classes, np.int64), [len(listed) for listed in positions])
        listed = np.concatenate(positions)
        self._waiting, self._num_waiting = [], 0
        columns = [
            pa.array(self._label_ids[of_row]),
            pa.DictionaryArray.from_arrays(self._name_of_class[of_row], self._names),
            pa.DictionaryArray.from_arrays(self._segments.rows[listed], self._video_ids),
            pa.array(self._segments.start_seconds[listed]),
            pa.array(np.concatenate(probabilities)),
        ]
        self._file.write_table(pa.Table.from_arrays(columns, schema=SCHEMA), row_group_size=len(of_row))

    def _write_rest(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if error is None:
            self._write_group()


def write_table(path: Path, ranking: Ranking, vocabulary: Vocabulary) -> None:
    """Write a ranking as a table, class by class in the vocabulary's row order; complete or not at all.

    Args:
        path: The Parquet file to write.
        ranking: A class of the ranking for each row of the vocabulary.
        vocabulary: The classes.

    Raises:
        Yt8mError: The disk is full or the folder cannot be written to.
        ValueError: The ranking has other classes than the vocabulary.
    """
    label_ids_of(ranking, vocabulary)
    with TableWriter(path, ranking.segments, vocabulary) as table:
        for class_index in range(len(ranking)):
            table.write(class_index, ranking.positions(class_index), ranking.probabilities(class_index))
