"""A prediction pass over all videos, by one or several processes, that resumes after a kill.

Each process predicts a slice of the batches. `store_predictions` writes a store block by block and resumes with the missing
blocks; `ranking.streaming` ranks predictions as they are made.
"""

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
class ProcessGroup:
    """The processes that share a pass; a single process by default.

    Args:
        rank: Rank of this process.
        size: Number of processes.
        barrier: Waits for all processes.
        stop_requested: Whether to stop now. All processes must call it equally often, and get the same result.
        done: Called by all processes after the pass; from then on there is nothing to save.
    """

    rank: int = 0
    size: int = 1
    barrier: Callable[[], None] = lambda: None
    stop_requested: Callable[[], bool] = lambda: False
    done: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class PredictionPass:
    """Segments, the models that predict them, and the processes that share the work.

    Args:
        reader: Frames of the videos.
        segments: Their segments.
        models: Classifiers by name.
        shifts: Test-time shifts; see `predict`.
        processes: The processes.
        progress: Reports progress.
        batch_size: Segments of a batch; by default chosen for the device. Results do not depend on it.
    """

    reader: FrameReader
    segments: Segments
    models: Mapping[str, FoldedClassifier]
    shifts: Sequence[int] = NO_SHIFT
    processes: ProcessGroup = ProcessGroup()
    progress: ProgressFactory = no_progress
    batch_size: int | None = None

    @property
    def device(self) -> torch.device:
        """Device of the models."""
        return next(iter(self.models.values())).device

    @property
    def segments_per_batch(self) -> int:
        """Segments of a batch."""
        return self.batch_size or segments_per_batch(self.device)

    def predictions(self, batches: Sequence[slice | None]) -> Iterator[Predictions]:
        """Predict the batches of this process; None stands for a batch that is done, or that only other processes predict.

        Raises:
            PassStopped: All processes stop here.
        """

        def pending() -> Iterator[slice]:
            for batch in track(batches, "predict", self.progress):
                if self.processes.stop_requested():
                    raise PassStopped
                if batch is not None:
                    yield batch

        return predict(self.reader, self.segments, self.models, pending(), self.shifts)


class PassStopped(Exception):  # noqa: N818 - control flow, no error
    """All processes stop here."""


def store_predictions(work: PredictionPass, folder: Path, index: StoreIndex) -> Store | None:
    """Predict all segments and store their probabilities.

    Args:
        work: The pass.
        folder: The store; an existing store with another index is replaced.
        index: Its index.

    Returns:
        The store; None on all processes but the first.

    Raises:
        UsageError: The folder contains something else.
        Yt8mError: There is not enough space on the disk.
        Interrupted: The processes received a signal to stop; the predicted blocks are on the disk.
    """
    processes = work.processes
    writer = StoreWriter(folder, index)
    if not processes.rank:
        writer.prepare()
    processes.barrier()
    pending = writer.pending()
    # No process writes before all have read which blocks are pending.
    processes.barrier()
    per_block = len(batches_of([index.block(0)], work.segments_per_batch))
    batches: list[slice | None] = []
    for block in pending[processes.rank :: processes.size]:
        of_block: list[slice | None] = [*batches_of([block], work.segments_per_batch)]
        batches += of_block + [None] * (per_block - len(of_block))
    batches += [None] * (per_block * -(-len(pending) // processes.size) - len(batches))
    try:
        for predictions in work.predictions(batches):
            writer.write(predictions)
    except PassStopped:
        writer.close()
        processes.barrier()
        raise Interrupted(
            f"{folder}: stopped by a signal; the same command continues with the missing blocks."
        ) from None
    writer.close()
    processes.barrier()
    processes.done()
    return None if processes.rank else writer.finish()
