"""Where the truth comes from: a CSV file of ratings or positives, or the ratings of a folder of rated shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from yt8m.dataset.catalog import Catalog
from yt8m.dataset.indexing import load_or_index
from yt8m.errors import UsageError
from yt8m.scoring.map_at_k import Truth, load_positives_csv, load_ratings_csv
from yt8m.vocabulary import Vocabulary


def truth_of_catalog(catalog: Catalog, vocabulary: Vocabulary | None = None) -> Truth:
    """Ratings of rated shards as a truth.

    Args:
        catalog: Videos with their ratings.
        vocabulary: Where given, ratings of other labels are left out.

    Raises:
        UsageError: There are none.
    """
    rows = np.repeat(np.arange(len(catalog)), np.diff(catalog.rating_starts))
    kept = np.ones(len(rows), np.bool_)
    if vocabulary is not None:
        kept = vocabulary.class_indices(catalog.rating_labels) >= 0
    if not kept.any():
        raise UsageError(f"{catalog.folder}: its {len(catalog)} videos carry no ratings to score against.")
    return Truth.from_arrays(
        catalog.ids[rows[kept]].tolist(),
        catalog.rating_labels[kept],
        catalog.rating_start_seconds[kept],
        catalog.rating_values[kept],
    )


def load_truth(path: Path, dense: bool = False, vocabulary: Vocabulary | None = None) -> Truth:
    """Load a truth from wherever it is.

    Args:
        path: A folder of rated shards (indexed now where it has not been), or a CSV file.
        dense: Whether the CSV file lists all positives (`video,label,start`) and everything else is negative.
        vocabulary: Labels that count, for shards.

    Raises:
        UsageError: There is no such file or folder, or a folder of shards is asked for as a dense truth.
    """
    if path.is_dir():
        if dense:
            raise UsageError(f"{path}: a dense truth is a CSV file with the columns video,label,start, not a folder.")
        return truth_of_catalog(load_or_index(path), vocabulary)
    return load_positives_csv(path) if dense else load_ratings_csv(path)
