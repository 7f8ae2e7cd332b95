"""Labels and ratings as arrays: masks, folds, mined negatives."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yt8m.dataset.catalog import Catalog
from yt8m.dataset.frames import Allocate
from yt8m.errors import UsageError
from yt8m.vocabulary import Vocabulary


def videos_with_classes(catalog: Catalog, vocabulary: Vocabulary) -> NDArray[np.int64]:
    """Rows of the videos with at least one label among the segment classes, int64; training excludes the others."""
    known = vocabulary.class_indices(catalog.label_values) >= 0
    totals = np.concatenate([[0], np.cumsum(known)])
    return np.flatnonzero(totals[catalog.label_starts[1:]] > totals[catalog.label_starts[:-1]])


def labeled_videos(catalog: Catalog, vocabulary: Vocabulary) -> NDArray[np.int64]:
    """The videos to train or evaluate a video classifier on; see `videos_with_classes`.

    Raises:
        UsageError: There is none.
    """
    rows = videos_with_classes(catalog, vocabulary)
    if not len(rows):
        raise UsageError(
            f"{catalog.folder}: none of its {len(catalog)} videos has a label of the segment vocabulary; "
            "check that it is the vocabulary of this dataset."
        )
    return rows


def _values_of(starts: NDArray[np.int64], rows: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Locate the values of some rows in a column of lists.

    Returns:
        Position in `rows` and index in the column of each value, both int64.
    """
    counts = starts[rows + 1] - starts[rows]
    positions = np.repeat(np.arange(len(rows)), counts)
    # A value's index: the start of its row's list, plus its place in that list.
    first = np.repeat(starts[rows] - (np.cumsum(counts) - counts), counts)
    return positions, first + np.arange(len(positions))


def _mark(
    mask: NDArray[np.bool_],
    value: bool,
    vocabulary: Vocabulary,
    positions: NDArray[np.int64],
    label_ids: NDArray[np.integer],
) -> None:
    """Set the columns of those labels that are segment classes."""
    columns = vocabulary.class_indices(label_ids)
    known = columns >= 0
    mask[positions[known], columns[known]] = value


def label_mask(
    catalog: Catalog, vocabulary: Vocabulary, rows: NDArray[np.integer], allocate: Allocate = np.empty
) -> NDArray[np.bool_]:
    """Video labels as columns of a model's output: bool (B, C)."""
    mask = allocate((len(rows), len(vocabulary)), np.bool_)
    mask[:] = False
    positions, values = _values_of(catalog.label_starts, rows)
    _mark(mask, True, vocabulary, positions, catalog.label_values[values])
    return mask


@dataclass(frozen=True, eq=False)
class Ratings:
    """Ratings of the segment classes, in the order (video, start, class).

    Args:
        rows: Row of the video in the catalog, int64 (R,).
        class_indices: The class, int64 (R,).
        start_seconds: Start of the segment, int64 (R,).
        values: Whether the rating is positive, bool (R,).
    """

    rows: NDArray[np.int64]
    class_indices: NDArray[np.int64]
    start_seconds: NDArray[np.int64]
    values: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.rows)


def fold_of_videos(catalog: Catalog, num_folds: int) -> NDArray[np.int64]:
    """Fold of each video: the position of its shard among the sorted shard names, modulo the number of folds.

    Raises:
        UsageError: There are fewer shards than folds, so that a fold would be empty.
    """
    if len(catalog.shards) < num_folds:
        raise UsageError(
            f"{catalog.folder}: {num_folds} folds by shard need at least {num_folds} shards, found {len(catalog.shards)}; "
            "lower `folds`, or split the data into more shards."
        )
    return catalog.shard_index.astype(np.int64) % num_folds


def rated_segments(catalog: Catalog, vocabulary: Vocabulary, videos: NDArray[np.bool_] | None = None) -> Ratings:
    """Ratings of the segment classes; of the videos in `videos`, bool (N,), if given."""
    columns = vocabulary.class_indices(catalog.rating_labels).astype(np.int64)
    rows = catalog.rating_rows
    kept = columns >= 0
    if videos is not None:
        kept &= videos[rows]
    return Ratings(
        rows[kept],
        columns[kept],
        catalog.rating_start_seconds[kept].astype(np.int64),
        catalog.rating_values[kept].astype(np.bool_),
    )


def split_ratings(catalog: Catalog, vocabulary: Vocabulary, fold: int, num_folds: int) -> tuple[Ratings, Ratings]:
    """Split the ratings of the segment classes for fine-tuning.

    Args:
        catalog: The rated videos.
        vocabulary: The segment classes.
        fold: The held-out fold.
        num_folds: Number of folds, split by shard.

    Returns:
        The ratings of the training folds, and those of the held-out fold.

    Raises:
        UsageError: One of the two lacks positive or negative ratings, or there are fewer shards than folds.
    """
    is_held_out = fold_of_videos(catalog, num_folds) == fold
    training, held_out = (rated_segments(catalog, vocabulary, videos) for videos in (~is_held_out, is_held_out))
    for name, ratings in (("training", training), ("held-out", held_out)):
        if not ratings.values.any() or ratings.values.all():
            raise UsageError(
                f"{catalog.folder}: the {name} folds (fold {fold} of {num_folds} is held out) need positive and "
                f"negative ratings of segment classes, found {int(ratings.values.sum())} positive of {len(ratings)}."
            )
    return training, held_out


def mined_negatives(
    catalog: Catalog, vocabulary: Vocabulary, rows: NDArray[np.integer], allocate: Allocate = np.empty
) -> NDArray[np.bool_]:
    """Mined negatives, bool (B, C): all classes but a video's labels and its positively rated labels.

    A label that was rated negative is a negative unless it is a label of the video (docs/method.md, "Fine-tuning loss").
    """
    negatives = label_mask(catalog, vocabulary, rows, allocate)
    np.logical_not(negatives, out=negatives)
    positions, values = _values_of(catalog.rating_starts, rows)
    positive = catalog.rating_values[values].astype(np.bool_)
    _mark(negatives, False, vocabulary, positions[positive], catalog.rating_labels[values[positive]])
    return negatives
