"""From videos to a ranking or a store in one pass, by one process or several, which may be killed at any moment.

Every process takes its share of the batches. What it has ranked is saved every few minutes, as it stands (a ranker is
1 GB at most), and when it is asked to stop; so a pass that was killed goes on from there, and at the end the first
process merges what the others left. A store is written block by block, and knows which of them are there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from yt8m.dataset.frames import FrameReader
from yt8m.errors import Interrupted
from yt8m.inference.classifier import FoldedClassifier
from yt8m.prediction.predict import NO_SHIFT, Predictions, batches_of, predict, segments_per_batch
from yt8m.prediction.segments import Segments
from yt8m.prediction.store import Store, StoreIndex
from yt8m.prediction.store_writer import StoreWriter
from yt8m.runtime.progress import ProgressFactory, no_progress, track


@dataclass(frozen=True)
class Processes:
    """The processes that share a pass, as one of them sees it; alone by default.

    Args:
        rank: Which one this is.
        count: How many there are.
        barrier: Waits for all of them.
        stop_requested: Whether to stop now: the same answer for all, who ask equally often.
    """

    rank: int = 0
    count: int = 1
    barrier: Callable[[], None] = lambda: None
    stop_requested: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class Pass:
    """What is predicted: which segments of which videos, by which models, how.

    Args:
        reader: Frames of the videos.
        segments: Their segments.
        models: Classifiers by name.
        shifts: See `predict`.
        processes: Who shares the work.
        progress: Reports batches done.
    """

    reader: FrameReader
    segments: Segments
    models: Mapping[str, FoldedClassifier]
    shifts: Sequence[int] = NO_SHIFT
    processes: Processes = Processes()
    progress: ProgressFactory = no_progress

    @property
    def device(self) -> torch.device:
        """Where the models compute."""
        return next(iter(self.models.values())).device

    @property
    def segments_per_batch(self) -> int:
        """Segments of a batch on that device."""
        return segments_per_batch(self.device)

    def predictions(self, batches: Sequence[slice | None]) -> Iterator[Predictions]:
        """Predict this process's batches; None stands for one that is done already, or that only others have.

        Raises:
            _StopRequestedError: All processes were asked to stop.
        """

        def asked() -> Iterator[slice]:
            for batch in track(batches, "predict", self.progress):
                if self.processes.stop_requested():
                    raise PassStoppedError
                if batch is not None:
                    yield batch

        return predict(self.reader, self.segments, self.models, asked(), self.shifts)


class PassStoppedError(Exception):
    """All processes were asked to stop."""


def store_predictions(work: Pass, folder: Path, index: StoreIndex) -> Store | None:
    """Predict all segments and keep the probabilities on the disk.

    Args:
        work: What to predict.
        folder: The folder of predictions to make; replaced where it holds former ones.
        index: What it will hold.

    Returns:
        The store; None on all processes but the first.

    Raises:
        UsageError: The folder holds something else.
        Yt8mError: There is not enough space on the disk.
        Interrupted: The processes were asked to stop; what they have predicted is there.
    """
    processes = work.processes
    writer = StoreWriter(folder, index)
    if not processes.rank:
        writer.prepare()
    processes.barrier()
    pending = writer.pending()
    # Nobody writes before all have read what there is to do.
    processes.barrier()
    per_block = len(batches_of([index.block(0)], work.segments_per_batch))
    share: list[slice | None] = []
    for block in pending[processes.rank :: processes.count]:
        batches: list[slice | None] = [*batches_of([block], work.segments_per_batch)]
        share += batches + [None] * (per_block - len(batches))
    share += [None] * (per_block * -(-len(pending) // processes.count) - len(share))
    try:
        for predictions in work.predictions(share):
            writer.write(predictions)
    except PassStoppedError:
        writer.close()
        processes.barrier()
        raise Interrupted(f"{folder}: stopped as asked; the same command goes on with what is missing.") from None
    writer.close()
    processes.barrier()
    return None if processes.rank else writer.finish()
