"""Describe a catalog in numbers."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yt8m.dataset.catalog import Catalog
from yt8m.dataset.labels import videos_with_classes
from yt8m.dataset.sampling import num_evaluated_segments
from yt8m.vocabulary import Vocabulary


@dataclass(frozen=True)
class Summary:
    """Minimum, median and maximum."""

    minimum: int
    median: float
    maximum: int


@dataclass(frozen=True)
class Description:
    """A catalog in numbers.

    Args:
        folder: The folder of shards.
        num_shards: Shards in it.
        num_bytes: Their size.
        num_videos: Videos.
        num_frames: Frames of all videos.
        hours: Their duration, at one frame per second.
        frames_per_video: Over the videos.
        features: Name of its features, with the size of each modality.
        labels_per_video: Mean.
        videos_without_labels: Videos without any.
        videos_with_classes: Videos with a label of the segment vocabulary; None without a vocabulary.
        evaluated_segments: Segments that a submission ranks: all but the first six and the last two of each video.
        rated_videos: Videos with a rating.
        rated_segments: Segments with a rating; one rated for several classes counts once.
        ratings: Ratings.
        positive_ratings: Positive ones among them.
        classes_rated: Classes with a rating, of the vocabulary if there is one.
        ratings_per_class: Over the classes of the vocabulary, or over the rated ones without a vocabulary; None without
            ratings.
        oddities: Number of each oddity found when indexing.
        problems: A sentence per damaged place, up to a limit.
        num_problems: Number of damaged places.
    """

    folder: Path
    num_shards: int
    num_bytes: int
    num_videos: int
    num_frames: int
    hours: float
    frames_per_video: Summary
    features: str
    labels_per_video: float
    videos_without_labels: int
    videos_with_classes: int | None
    evaluated_segments: int
    rated_videos: int
    rated_segments: int
    ratings: int
    positive_ratings: int
    classes_rated: int
    ratings_per_class: Summary | None
    oddities: dict[str, int]
    problems: tuple[str, ...]
    num_problems: int


def describe(catalog: Catalog, vocabulary: Vocabulary | None = None) -> Description:
    """Describe a catalog; with a vocabulary, count ratings and videos of its classes."""
    num_frames = int(catalog.num_frames.sum(dtype=np.int64))
    num_labels = np.diff(catalog.label_starts)
    rows = catalog.rating_rows
    per_class = _ratings_per_class(catalog, vocabulary)
    return Description(
        folder=catalog.folder,
        num_shards=len(catalog.shards),
        num_bytes=sum(shard.num_bytes for shard in catalog.shards),
        num_videos=len(catalog),
        num_frames=num_frames,
        hours=num_frames / 3600,
        frames_per_video=_spread(catalog.num_frames),
        features=str(catalog.features),
        labels_per_video=float(num_labels.mean()),
        videos_without_labels=int((num_labels == 0).sum()),
        videos_with_classes=None if vocabulary is None else len(videos_with_classes(catalog, vocabulary)),
        evaluated_segments=int(num_evaluated_segments(catalog.num_frames).sum()),
        rated_videos=len(np.unique(rows)),
        rated_segments=_num_changes(rows, catalog.rating_start_seconds),
        ratings=len(rows),
        positive_ratings=int(catalog.rating_values.sum(dtype=np.int64)),
        classes_rated=int((per_class > 0).sum()),
        ratings_per_class=_spread(per_class) if len(rows) else None,
        oddities=dict(catalog.oddities),
        problems=catalog.problems,
        num_problems=catalog.num_problems,
    )


def _spread(numbers: NDArray[np.integer]) -> Summary:
    return Summary(int(numbers.min()), float(np.median(numbers)), int(numbers.max()))


def _ratings_per_class(catalog: Catalog, vocabulary: Vocabulary | None) -> NDArray[np.int64]:
    if vocabulary is None:
        return np.unique(catalog.rating_labels, return_counts=True)[1].astype(np.int64)
    columns = vocabulary.class_indices(catalog.rating_labels)
    return np.bincount(columns[columns >= 0], minlength=len(vocabulary)).astype(np.int64)


def _num_changes(rows: NDArray[np.int64], starts: NDArray[np.int32]) -> int:
    """Distinct (row, start) of ratings sorted by both."""
    if not len(rows):
        return 0
    return 1 + int(((np.diff(rows) != 0) | (np.diff(starts) != 0)).sum())
