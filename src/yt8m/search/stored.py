"""Search stored predictions: all segments, with the mean of the stored segment models."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from yt8m.dataset.catalog import Catalog
from yt8m.prediction.segments import ListedSegments, Segments
from yt8m.prediction.store import Store
from yt8m.ranking.calibration import Calibration
from yt8m.ranking.ensemble import MergeConfig, Merger
from yt8m.runs.predicting import calibration_of_stores, merger_of_stores, open_stores
from yt8m.vocabulary import Vocabulary


@dataclass(frozen=True, eq=False)
class StoredSegments:
    """Segments of a store, to read class by class.

    Args:
        vocabulary: Their classes.
        all_segments: The segments.
        stores: Store of each model, by name.
        merger: Merges the models.
        calibration: Makes probabilities of the merged scores; None where there is none.
    """

    vocabulary: Vocabulary
    all_segments: Segments
    stores: Mapping[str, Store]
    merger: Merger
    calibration: Calibration | None

    @property
    def is_calibrated(self) -> bool:
        """Whether the values of segments are calibrated probabilities."""
        return self.calibration is not None

    @classmethod
    def open(cls, folder: Path, catalog: Catalog, vocabulary: Vocabulary) -> Self:
        """Open a store.

        Raises:
            UsageError: It is not a store, of other videos or classes, or has no segment model.
        """
        segments, stores = open_stores([folder], catalog, vocabulary)
        merger = merger_of_stores(stores, MergeConfig())
        return cls(vocabulary, segments, stores, merger, calibration_of_stores(stores, merger))

    def segments(self, class_index: int) -> ListedSegments:
        """All segments with their probabilities of a class.

        Raises:
            Yt8mError: A file is damaged.
        """
        codes = {name: self.stores[name].codes(name, class_index) for name in self.merger.models}
        segments, values = self.all_segments, self.merger(codes)
        if self.calibration is not None:
            values = self.calibration(values)
        return ListedSegments(segments.video_ids, segments.rows, segments.start_seconds, values)
