"""Rank the segments of one pass of prediction: while their probabilities stream, or from a store."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yt8m.dataset.sampling import fractions, random_keys
from yt8m.prediction.passes import PredictionPass, store_predictions
from yt8m.prediction.predict import Predictions, batches_of
from yt8m.prediction.segments import Segments
from yt8m.prediction.store import Store, StoreIndex
from yt8m.ranking.ensemble import Merger
from yt8m.ranking.streaming import rank_streaming
from yt8m.ranking.topk import Ranking, TopK, top_of_class
from yt8m.runtime.progress import ProgressFactory, no_progress, track


@dataclass(frozen=True, eq=False)
class RankingSpec:
    """A ranking to make: of an ensemble, of one model, or a random order.

    Args:
        name: Its name in tables.
        kind: "agnostic", "aware", "ensemble" (of all kinds) or "random".
        merger: Merges the models; None for a random order.
    """

    name: str
    kind: str
    merger: Merger | None


def rank_segments(
    work: PredictionPass,
    specs: Sequence[RankingSpec],
    k: int,
    folder: Path,
    fingerprint: str,
    seed: int = 0,
    store: tuple[Path, StoreIndex] | None = None,
) -> list[Ranking] | None:
    """Predict all segments in one pass and rank them, for several rankings at once.

    Streamed and stored probabilities give the same rankings, bit for bit.

    Args:
        work: The pass.
        specs: The rankings.
        k: Segments to list per class.
        folder: Where processes keep partial rankings while probabilities stream; see `remove_partial_rankings`.
        fingerprint: Fingerprint of all that decides the result.
        seed: Seed of random orders.
        store: Folder and index of a store for all probabilities, which the mean of ranks needs; None ranks probabilities
            as they stream.

    Returns:
        One ranking per spec; None on all processes but the first.

    Raises:
        Interrupted: The processes received a signal to stop; the same call resumes.
    """
    num_classes = next(iter(work.models.values())).num_classes

    def merge_function(spec: RankingSpec) -> Callable[[Predictions], NDArray[np.float32]]:
        merger = spec.merger
        if merger is None:
            return lambda batch: random_probabilities(batch.positions, num_classes, seed)
        return lambda batch: merger(batch.codes)

    if store is None:
        merges = [merge_function(spec) for spec in specs]
        rankers = rank_streaming(work, merges, num_classes, k, folder, fingerprint)
        return None if rankers is None else [ranker.result() for ranker in rankers]
    stored = store_predictions(work, *store)
    if stored is None:
        return None
    stores = dict.fromkeys(work.models, stored)
    return [
        _random_ranking(work, num_classes, k, seed)
        if spec.merger is None
        else rank_stored(stores, spec.merger, work.segments, k, work.progress, f"rank {spec.name}")
        for spec in specs
    ]


def rank_stored(
    stores: Mapping[str, Store],
    merger: Merger,
    segments: Segments,
    k: int,
    progress: ProgressFactory = no_progress,
    description: str = "rank",
) -> Ranking:
    """Merge stored probabilities and rank them, class by class.

    Args:
        stores: Store of each merged model, by name; all of the same catalog.
        merger: Merges the models.
        segments: The segments predicted.
        k: Segments to list per class.
        progress: Reports classes ranked.
        description: Names the ranking in the progress report.

    Raises:
        Yt8mError: A file is damaged, or a segment has no probability.
    """
    index = next(iter(stores.values())).index
    keys = []
    for class_index in track(range(index.num_classes), description, progress):
        codes = {name: stores[name].codes(name, class_index) for name in merger.models}  # (S,) each
        keys.append(top_of_class(segments, merger(codes), k, class_index))
    return Ranking(segments, tuple(keys))


def random_probabilities(positions: NDArray[np.int64], num_classes: int, seed: int) -> NDArray[np.float32]:
    """Probabilities of a random order, float32 (n, C): a function of (seed, position, class) alone."""
    return fractions(random_keys(seed, positions, num_classes)).astype(np.float32)


def _random_ranking(work: PredictionPass, num_classes: int, k: int, seed: int) -> Ranking:
    ranker = TopK(num_classes, k, work.segments)
    for batch in batches_of([slice(0, len(work.segments))], work.segments_per_batch):
        positions = np.arange(batch.start, batch.stop)
        ranker.update(positions, random_probabilities(positions, num_classes, seed))
    return ranker.result()
