"""Rank stored probabilities."""

from __future__ import annotations

from collections.abc import Mapping

from yt8m.prediction.segments import Segments
from yt8m.prediction.store import Store
from yt8m.ranking.ensemble import Merger
from yt8m.ranking.topk import Ranking, best_of_class
from yt8m.runtime.progress import ProgressFactory, no_progress, track


def rank_stored(
    stores: Mapping[str, Store],
    merger: Merger,
    segments: Segments,
    k: int,
    progress: ProgressFactory = no_progress,
    description: str = "rank",
) -> Ranking:
    """Merge stored probabilities and rank them, class by class: the same ranking as of probabilities that stream.

    Args:
        stores: For each model that the merger looks at, by name, the store that holds it; all of the same catalog.
        merger: How models are merged.
        segments: What was predicted.
        k: Segments to list for a class.
        progress: Reports classes ranked.
        description: Names the ranking in the progress report.

    Raises:
        Yt8mError: A file is damaged, or a segment has no probability.
    """
    index = next(iter(stores.values())).index
    keys = []
    for class_index in track(range(index.num_classes), description, progress):
        codes = {name: stores[name].codes(name, class_index) for name in merger.models}
        keys.append(best_of_class(segments, merger(codes), k, f" for class position {class_index}"))
    return Ranking(segments, tuple(keys))
