"""Ground truth: ratings or positives from a CSV file, or the ratings of a folder of rated shards."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from yt8m.dataset.catalog import Catalog
from yt8m.dataset.indexing import load_or_index
from yt8m.errors import UsageError
from yt8m.scoring.map_at_k import Truth, load_positives_csv, load_ratings_csv, map_at_k
from yt8m.vocabulary import Vocabulary

RATINGS_FILE = "test_ratings.csv"
POSITIVES_FILE = "test_positives.csv"


def truth_of_catalog(catalog: Catalog, vocabulary: Vocabulary | None = None) -> Truth:
    """The ratings of rated shards.

    Args:
        catalog: Videos with their ratings.
        vocabulary: Where given, ratings of other labels are dropped.

    Raises:
        UsageError: There are none.
    """
    kept = np.ones(len(catalog.rating_labels), np.bool_)
    if vocabulary is not None:
        kept = vocabulary.class_indices(catalog.rating_labels) >= 0
    if not kept.any():
        raise UsageError(f"{catalog.folder}: its {len(catalog)} videos have no ratings to score against.")
    return Truth.from_arrays(
        catalog.ids[catalog.rating_rows[kept]].tolist(),
        catalog.rating_labels[kept],
        catalog.rating_start_seconds[kept],
        catalog.rating_values[kept],
    )


def load_truth(path: Path, dense: bool = False, vocabulary: Vocabulary | None = None) -> Truth:
    """Load ground truth.

    Args:
        path: A folder of rated shards (indexed first where it has no catalog), or a CSV file.
        dense: Whether the CSV file lists all positives (`video,label,start`), so that all other segments are negative.
        vocabulary: Labels that count, for shards.

    Raises:
        UsageError: There is no such file or folder, or a folder of shards is given as dense truth.
    """
    if path.is_dir():
        if dense:
            raise UsageError(f"{path}: a dense truth is a CSV file with the columns video,label,start, not a folder.")
        return truth_of_catalog(load_or_index(path), vocabulary)
    return load_positives_csv(path) if dense else load_ratings_csv(path)


@dataclass(frozen=True, eq=False)
class TestTruth:
    """The ground truth of a test set, as far as it is known: ratings, and all positives."""

    __test__ = False  # no test class, whatever its name

    ratings: Truth | None
    positives: Truth | None

    @classmethod
    def find(cls, folder: Path, catalog: Catalog, vocabulary: Vocabulary) -> TestTruth:
        """Load `test_ratings.csv` (or the ratings of the shards themselves) and `test_positives.csv`.

        Args:
            folder: The folder of the CSV files.
            catalog: The test videos.
            vocabulary: The segment classes.

        Raises:
            Yt8mError: A file cannot be read, or nothing can be scored against it.
        """
        ratings = positives = None
        if (folder / RATINGS_FILE).is_file():
            ratings = load_ratings_csv(folder / RATINGS_FILE)
        elif len(catalog.rating_labels):
            ratings = truth_of_catalog(catalog, vocabulary)
        if (folder / POSITIVES_FILE).is_file():
            positives = load_positives_csv(folder / POSITIVES_FILE)
        for truth in (ratings, positives):
            if truth is not None:
                # Scoring an empty submission raises the errors of an unusable truth before anything is predicted.
                map_at_k([], truth, vocabulary=vocabulary)
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
            known = {} if truth is None else truth.ratings
            for label_id, of_label in sorted(known.items()):
                digest.update(repr((label_id, sorted(of_label.items()))).encode())
            digest.update(b"|")
        return digest.hexdigest()[:16]
