"""Rank probabilities as they stream, resumable."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yt8m.errors import Interrupted, Yt8mError
from yt8m.files import clear_leftovers, written_atomically
from yt8m.prediction.passes import Pass, PassStoppedError, Processes
from yt8m.prediction.predict import Predictions, batches_of
from yt8m.ranking.topk import TopK

SAVE_SECONDS = 300.0
"""How much work of a streaming pass a kill may cost."""

Merge = Callable[[Predictions], NDArray[np.float32]]
"""Probabilities to rank, (n, C), of what all models say of some segments."""


def rank_streaming(
    work: Pass, merges: Sequence[Merge], num_classes: int, k: int, folder: Path, mark: str
) -> list[TopK] | None:
    """Predict all segments and keep the best of every class, for several merges at once.

    Args:
        work: What to predict.
        merges: What to rank.
        num_classes: C.
        k: Segments to list for a class.
        folder: Where each process keeps what it has ranked so far; all processes see it.
        mark: Names everything that decides the result: what was kept under another mark is not used.

    What was ranked stays in `folder` until `forget_ranking` is called, when it has become what it was made for.

    Returns:
        A ranker for each merge, of all segments; None on all processes but the first.

    Raises:
        Interrupted: The processes were asked to stop; what they have ranked is saved.
    """
    processes = work.processes
    size = work.segments_per_batch
    # Another device rounds otherwise, and shares of other batches are others.
    mark = f"{mark} {work.device.type}{f' {size}' if processes.count > 1 else ''}"
    kept = _Kept(folder, processes, mark, lambda: [TopK(num_classes, k, work.segments) for _ in merges])
    kept.load()
    seen = kept.rankers[0].seen
    everything = batches_of([slice(0, len(work.segments))], size)
    share: list[slice | None] = []
    for batch in everything[processes.rank :: processes.count]:
        pending = _runs(~seen[batch], batch.start)
        share += pending if pending else [None]
    share += [None] * (-(-len(everything) // processes.count) - len(share))
    try:
        for predictions in work.predictions(share):
            for merge, ranker in zip(merges, kept.rankers, strict=True):
                ranker.update(predictions.positions, merge(predictions))
            kept.save_sometimes()
    except PassStoppedError:
        kept.save()
        processes.barrier()
        raise Interrupted(
            f"{folder}: stopped as asked; the same command goes on with the segments that are not ranked yet."
        ) from None
    if processes.count == 1:
        # For whoever is killed, or finds the disk full, while the ranking is written; nobody needs it otherwise.
        with suppress(Yt8mError):
            kept.save()
        return kept.rankers
    kept.save()
    processes.barrier()
    if processes.rank:
        return None
    kept.load_of_others()
    return kept.rankers


def _runs(wanted: NDArray[np.bool_], first: int) -> list[slice]:
    """Runs of true elements, the first of which has the position `first`."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], wanted, [False]]).astype(np.int8)))
    return [slice(first + start, first + stop) for start, stop in edges.reshape(-1, 2).tolist()]


def forget_ranking(folder: Path) -> None:
    """Remove what `rank_streaming` left in a folder, and the folder if it is empty then; one process calls this."""
    for pattern in ("ranked-*-of-*.part", ".ranked-*-of-*.part"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


class _Kept:
    """What one process has ranked so far, in memory and in a file.

    Args:
        folder: Where the files of all processes are.
        processes: Who shares the work.
        mark: Names everything that decides the result.
        make: Makes rankers that have seen nothing.
    """

    def __init__(self, folder: Path, processes: Processes, mark: str, make: Callable[[], list[TopK]]) -> None:
        self.folder, self.processes = folder, processes
        self.rankers, self._make = make(), make
        self._mark = mark.encode() + b"\n"
        self._saved = time.monotonic()

    def _path(self, rank: int) -> Path:
        return self.folder / f"ranked-{rank}-of-{self.processes.count}.part"

    def save_sometimes(self) -> None:
        """Save if the last time is long ago; the rarer, the longer it takes."""
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        with written_atomically(self._path(self.processes.rank)) as temporary, temporary.open("wb") as file:
            file.write(self._mark)
            for ranker in self.rankers:
                ranker.save(file)
        self._saved = time.monotonic()

    def load(self) -> None:
        """Take what a former try of this process saved, if it is whole and was the same pass by as many processes."""
        path = self._path(self.processes.rank)
        clear_leftovers(path)
        if path.is_file():
            try:
                self._load(path)
            except Yt8mError:
                # Nobody can mend it: what it held is ranked anew.
                self.rankers = self._make()

    def load_of_others(self) -> None:
        """Take what all other processes saved at the end of their shares.

        Raises:
            Yt8mError: A file is missing, or not of this pass.
        """
        for rank in range(1, self.processes.count):
            path = self._path(rank)
            if not (path.is_file() and self._load(path)):
                raise Yt8mError(
                    f"{path}: what process {rank} ranked is not there; all processes must see the same folder."
                )

    def _load(self, path: Path) -> bool:
        with path.open("rb") as file:
            if file.readline() != self._mark:
                return False
            for ranker in self.rankers:
                try:
                    ranker.load(file)
                except Yt8mError as error:
                    raise Yt8mError(f"{path}: {error}") from None
        return True
