"""Labels and ratings of one row of a catalog."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from yt8m.dataset.catalog import Catalog


class VideoRatings(NamedTuple):
    """Ratings of a video, sorted by (start, label)."""

    label_ids: NDArray[np.int32]
    start_seconds: NDArray[np.int32]
    values: NDArray[np.uint8]


def labels_of(catalog: Catalog, row: int) -> NDArray[np.int32]:
    """Label ids of a video, increasing."""
    return catalog.label_values[catalog.label_starts[row] : catalog.label_starts[row + 1]]


def ratings_of(catalog: Catalog, row: int) -> VideoRatings:
    """Ratings of a video."""
    span = slice(catalog.rating_starts[row], catalog.rating_starts[row + 1])
    return VideoRatings(catalog.rating_labels[span], catalog.rating_start_seconds[span], catalog.rating_values[span])
