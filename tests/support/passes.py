"""A prediction pass over a few tiny videos, with threads in the place of processes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pytest

from tests.support.tiny_models import DBOF, NEXTVLAD, NUM_CLASSES, agnostic, aware, fold_classifiers, videos_of
from tests.support.tiny_shards import write_shards
from yt8m.dataset.frames import FrameReader
from yt8m.dataset.indexing import index_folder
from yt8m.inference import chunks, classifier
from yt8m.inference.chunks import ChunkSizes
from yt8m.inference.classifier import FoldedClassifier
from yt8m.prediction.passes import PredictionPass, ProcessGroup
from yt8m.prediction.predict import Predictions, segments_of
from yt8m.vocabulary import Vocabulary

T = TypeVar("T")

VOCABULARY = Vocabulary(np.arange(NUM_CLASSES, dtype=np.int64) * 7 + 3, tuple("abcde"))
LENGTHS = (70, 44, 95, 46, 120, 81, 60, 3)
SMALL_BATCH = 4


@dataclass(frozen=True)
class RecordedPass(PredictionPass):
    """A pass that records its predictions after the caller has processed them."""

    starts: list[int] = field(default_factory=list)
    """Position of the first segment of each batch predicted."""
    positions: list[int] = field(default_factory=list)
    """Positions of all segments predicted."""

    def predictions(self, batches: Sequence[slice | None]) -> Iterator[Predictions]:
        for predictions in super().predictions(batches):
            yield predictions
            self.starts.append(predictions.start)
            self.positions.extend(predictions.positions.tolist())


class PassCase(NamedTuple):
    """Videos, and two folded models."""

    folder: Path
    models: dict[str, FoldedClassifier]

    def work(
        self,
        processes: ProcessGroup = ProcessGroup(),  # noqa: B008 - immutable
        batch_size: int | None = SMALL_BATCH,
        starts: list[int] | None = None,
        **more: Any,
    ) -> RecordedPass:
        """A pass with its own reader, as in each process.

        Args:
            processes: The processes.
            batch_size: Segments per batch; None for the default.
            starts: Receives the first position of each batch predicted.
            more: Other fields of the pass.
        """
        reader = FrameReader(index_folder(self.folder))
        return RecordedPass(
            reader,
            segments_of(reader),
            self.models,
            processes=processes,
            batch_size=batch_size,
            starts=[] if starts is None else starts,
            **more,
        )


def make_case(folder: Path) -> PassCase:
    """Write the videos to a folder, and fold the models."""
    write_shards(folder, videos_of(LENGTHS), num_shards=3)
    return PassCase(folder, fold_classifiers({"bare": agnostic(DBOF, seed=1), "aware": aware(NEXTVLAD, DBOF, seed=2)}))


@contextmanager
def small_chunks() -> Iterator[None]:
    """Use chunks no larger than the tiny test set; tests/prediction/test_predict.py uses the default chunks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "CPU_CHUNKS", ChunkSizes(frames=64, windows=16, gathered=1 << 20))
        patch.setattr(classifier, "VIDEOS_PER_CHUNK", 4)
        yield


def run_processes(count: int, function: Callable[[ProcessGroup], T]) -> list[T]:
    """Results of all processes, by rank; if one fails, the others' barriers are broken and its error is raised."""
    barrier = threading.Barrier(count, timeout=60)
    results: dict[int, T] = {}
    errors: list[BaseException] = []

    def wait() -> None:
        barrier.wait()

    def run(rank: int) -> None:
        try:
            results[rank] = function(ProcessGroup(rank, count, wait))
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,), name=f"rank {rank}") for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [results[rank] for rank in range(count)]


def stopping_after(num_batches: int) -> Callable[[], bool]:
    """A `stop_requested` that is true for all calls after the first `num_batches`."""
    calls = iter(range(num_batches))
    return lambda: next(calls, None) is None
