"""Rank probabilities as they stream; a pass that was killed continues from its partial rankings.

Every process saves its partial rankings (at most 1 GB each) every few minutes and when a signal stops it. At the end the
first process merges the partial rankings of all processes.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yt8m.errors import Interrupted, Yt8mError
from yt8m.files import clear_leftovers, written_atomically
from yt8m.prediction.passes import PassStopped, PredictionPass, ProcessGroup
from yt8m.prediction.predict import Predictions, batches_of
from yt8m.ranking.topk import TopK

SAVE_SECONDS = 300.0
"""Seconds between two saves of the partial rankings."""

Merge = Callable[[Predictions], NDArray[np.float32]]
"""Merges the models' predictions of some segments to the probabilities to rank, (n, C)."""


def rank_streaming(
    work: PredictionPass, merges: Sequence[Merge], num_classes: int, k: int, folder: Path, fingerprint: str
) -> list[TopK] | None:
    """Predict all segments and rank them, for several merges at once.

    Partial rankings stay in `folder` until `remove_partial_rankings` is called, after the result is written.

    Args:
        work: The pass.
        merges: Each gives one ranking.
        num_classes: C.
        k: Segments to list per class.
        folder: Where each process keeps its partial rankings, on a file system that all processes share.
        fingerprint: Fingerprint of all that decides the result; partial rankings with another one are not used.

    Returns:
        One ranker per merge, of all segments; None on all processes but the first.

    Raises:
        Interrupted: The processes received a signal to stop; their partial rankings are saved.
    """
    processes = work.processes
    size = work.segments_per_batch
    # Results depend on the device, and the segments of a process on the batch size.
    fingerprint = f"{fingerprint} {work.device.type}{f' {size}' if processes.size > 1 else ''}"
    partial = _PartialRankings(
        folder, processes, fingerprint, lambda: [TopK(num_classes, k, work.segments) for _ in merges]
    )
    partial.load()
    seen = partial.rankers[0].seen
    all_batches = batches_of([slice(0, len(work.segments))], size)
    batches: list[slice | None] = []
    for batch in all_batches[processes.rank :: processes.size]:
        pending = _runs(~seen[batch], batch.start)
        batches += pending if pending else [None]
    batches += [None] * (-(-len(all_batches) // processes.size) - len(batches))
    try:
        for predictions in work.predictions(batches):
            for merge, ranker in zip(merges, partial.rankers, strict=True):
                ranker.update(predictions.positions, merge(predictions))
            partial.save_if_due()
    except PassStopped:
        partial.save()
        processes.barrier()
        raise Interrupted(
            f"{folder}: stopped by a signal; the same command continues with the segments that are not ranked yet."
        ) from None
    if processes.size == 1:
        # Needed only if the process is killed, or the disk fills up, while the ranking is written.
        with suppress(Yt8mError):
            partial.save()
        processes.done()
        return partial.rankers
    partial.save()
    processes.barrier()
    processes.done()
    if processes.rank:
        return None
    partial.load_of_others()
    return partial.rankers


def _runs(mask: NDArray[np.bool_], first: int) -> list[slice]:
    """Runs of true elements, where element 0 has the position `first`."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [slice(first + start, first + stop) for start, stop in edges.reshape(-1, 2).tolist()]


def remove_partial_rankings(folder: Path) -> None:
    """Remove the files that `rank_streaming` left in a folder, and the folder if it is then empty; for one process."""
    for pattern in ("ranked-*-of-*.part", ".ranked-*-of-*.part"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


class _PartialRankings:
    """The partial rankings of one process, in memory and in a file.

    Args:
        folder: Where the files of all processes are.
        processes: The processes.
        fingerprint: Fingerprint of all that decides the result.
        make: Makes empty rankers.
    """

    def __init__(self, folder: Path, processes: ProcessGroup, fingerprint: str, make: Callable[[], list[TopK]]) -> None:
        self.folder, self.processes = folder, processes
        self.rankers, self._make = make(), make
        self._header = fingerprint.encode() + b"\n"
        self._saved = time.monotonic()

    def _path(self, rank: int) -> Path:
        return self.folder / f"ranked-{rank}-of-{self.processes.size}.part"

    def save_if_due(self) -> None:
        """Save if the last save was more than `SAVE_SECONDS` ago."""
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        with written_atomically(self._path(self.processes.rank)) as temporary, temporary.open("wb") as file:
            file.write(self._header)
            for ranker in self.rankers:
                ranker.save(file)
        self._saved = time.monotonic()

    def load(self) -> None:
        """Load the file of this process, if it is intact and of the same pass."""
        path = self._path(self.processes.rank)
        clear_leftovers(path)
        if path.is_file():
            try:
                self._load(path)
            except Yt8mError:
                # A damaged file is discarded, and its segments are predicted again.
                self.rankers = self._make()

    def load_of_others(self) -> None:
        """Merge the files that all other processes saved last.

        Raises:
            Yt8mError: A file is missing, damaged, or of another pass.
        """
        for rank in range(1, self.processes.size):
            path = self._path(rank)
            if not (path.is_file() and self._load(path)):
                raise Yt8mError(
                    f"{path}: the ranking of process {rank} is missing; all processes must share this folder."
                )

    def _load(self, path: Path) -> bool:
        with path.open("rb") as file:
            if file.readline() != self._header:
                return False
            for ranker in self.rankers:
                try:
                    ranker.load(file)
                except Yt8mError as error:
                    raise Yt8mError(f"{path}: {error}") from None
        return True
