"""The vocabulary of segment classes: class position <-> dataset id <-> name.

Column `c` of a model's output is the class in row `c` of `segment_vocabulary.csv`, which is not sorted by id. Submissions
and shards name a class by its id in the vocabulary of 3,862 labels.
"""

import csv
import hashlib
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from yt8m.errors import UsageError, printable, reason_of
from yt8m.files import write_csv

FILE_NAME = "segment_vocabulary.csv"

MAX_LABEL_ID = 999_999
"""Highest id of a class; the dataset has 3,862 labels."""

OFFICIAL_DIGEST = "783376a6a3b8fc23"
"""`Vocabulary.digest` of the `segment_vocabulary.csv` of the 2019 challenge."""
OFFICIAL_SIZE = 1000
"""Number of its classes."""


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Segment classes in the order of a model's columns.

    Args:
        label_ids: Dataset ids, int64 (C,), without repeats.
        names: A name per class, for people; not necessarily unique.
    """

    label_ids: NDArray[np.int64]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.label_ids)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read `segment_vocabulary.csv` (columns `Index` and `Name`, others ignored).

        Args:
            path: The file, or the folder of a dataset or model that contains it.

        Raises:
            UsageError: The file is missing, empty, without these columns, or an id is invalid or repeated.
        """
        path = Path(path)
        if path.is_dir():
            path = path / FILE_NAME
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows = list(csv.DictReader(file))
        except FileNotFoundError:
            raise UsageError(
                f"{path}: there is no such file; it lists the segment classes, one per row (columns Index, Name)."
            ) from None
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UsageError(f"{path}: cannot be read as a CSV file ({reason_of(error)}).") from None
        if not rows or "Index" not in rows[0] or "Name" not in rows[0]:
            raise UsageError(f"{path}: expected a header with the columns Index and Name, and one row per class.")
        label_ids: list[int] = []
        for line, row in enumerate(rows, start=2):
            if not (row["Index"] or "").isdecimal():
                raise UsageError(f"{path}, line {line}: expected a whole number as Index, found {row['Index']!r}.")
            if len(row["Index"]) > len(str(MAX_LABEL_ID)) or int(row["Index"]) > MAX_LABEL_ID:
                raise UsageError(
                    f"{path}, line {line}: expected an Index of at most {MAX_LABEL_ID:,}, found {row['Index']:.30}."
                )
            label_ids.append(int(row["Index"]))
        if len(set(label_ids)) != len(label_ids):
            repeated = Counter(label_ids).most_common(1)[0][0]
            raise UsageError(f"{path}: the class {repeated} occurs more than once.")
        return cls(np.array(label_ids, np.int64), tuple(printable(row["Name"] or "") for row in rows))

    def save(self, folder: Path) -> None:
        """Write `segment_vocabulary.csv` into a folder.

        Raises:
            Yt8mError: The disk is full or the folder cannot be written to.
        """
        write_csv(folder / FILE_NAME, ("Index", "Name"), zip(self.label_ids.tolist(), self.names, strict=True))

    @cached_property
    def _table(self) -> NDArray[np.int32]:
        table = np.full(int(self.label_ids.max()) + 1, -1, np.int32)
        table[self.label_ids] = np.arange(len(self), dtype=np.int32)
        return table

    def class_indices(self, label_ids: ArrayLike) -> NDArray[np.int32]:
        """Class positions of dataset ids.

        Args:
            label_ids: Ids of any integer type and shape.

        Returns:
            int32 of the same shape; -1 where an id is not a segment class.
        """
        wanted = np.asarray(label_ids, np.int64)
        known = (wanted >= 0) & (wanted < len(self._table))
        return np.where(known, self._table[np.where(known, wanted, 0)], -1).astype(np.int32)

    @cached_property
    def digest(self) -> str:
        """Hash of the ids and their order; only models with the same digest can be merged."""
        return hashlib.sha256(",".join(map(str, self.label_ids.tolist())).encode()).hexdigest()[:16]
