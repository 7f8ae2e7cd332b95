"""The log of a run: `metrics.csv` for people and scripts, TensorBoard for the eye.

A resumed run first drops what was logged after its checkpoint, so the log has neither gaps nor repeats.
"""

from __future__ import annotations

import csv
import math
import os
import sys
import types
from contextlib import suppress
from pathlib import Path

from lightning_fabric import Fabric
from lightning_fabric.loggers.tensorboard import TensorBoardLogger

from yt8m.files import written_atomically

METRICS_FILE = "metrics.csv"
_HEADER = ("split", "step", "metric", "value")


class MetricsLog:
    """Writes metrics of one run; only the first process does.

    Args:
        folder: Receives `metrics.csv` (split, step, metric, value; a row a value) and `tensorboard/`.
        fabric: Tells which process this is.
        start: Steps already done; later rows of a former try are dropped.
    """

    def __init__(self, folder: Path, fabric: Fabric, start: int) -> None:
        self._path = folder / METRICS_FILE
        self._rows: list[tuple[str, int, str, float]] = []
        self._writes = fabric.is_global_zero
        if self._path.exists():
            self._rows = [row for row in read_metrics(self._path) if row[1] <= start]
        self._board: TensorBoardLogger | None = None
        if self._writes:
            with written_atomically(self._path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows([_HEADER, *self._rows])
            # TensorBoard's writer imports all of TensorFlow where that is installed, which takes seconds and prints a
            # page. It does without when it finds a module of this name.
            sys.modules.setdefault("tensorboard.compat.notf", types.ModuleType("tensorboard.compat.notf"))
            self._board = TensorBoardLogger(folder, name="", version="tensorboard", purge_step=start + 1)

    def write(self, split: str, step: int, values: dict[str, float]) -> None:
        """Log the metrics of a split ("train", "valid") after `step` steps."""
        rows = [(split, step, name, value) for name, value in values.items()]
        self._rows += rows
        if self._board:
            with self._path.open("a", encoding="utf-8", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows(rows)
            self._board.log_metrics(
                {f"{split}/{name}": value for name, value in values.items() if math.isfinite(value)}, step
            )

    def watch(self, step: int, values: dict[str, float]) -> None:
        """Draw what is no result and differs from run to run, such as speed; it is not in `metrics.csv`."""
        if self._board:
            self._board.log_metrics({f"speed/{name}": value for name, value in values.items()}, step)

    def flush(self) -> None:
        """See to it that what was logged is on the disk."""
        if self._writes:
            with self._path.open("rb") as file:
                os.fsync(file.fileno())

    def values(self, split: str, step: int) -> dict[str, float]:
        """Metrics of a split at a step."""
        return {
            name: value for row_split, row_step, name, value in self._rows if (row_split, row_step) == (split, step)
        }

    def close(self) -> None:
        """Flush what TensorBoard still holds."""
        if self._board:
            self._board.finalize("success")


def read_metrics(path: Path) -> list[tuple[str, int, str, float]]:
    """Rows (split, step, metric, value) of a `metrics.csv`.

    What is no row, as the header, is left out, and so is a last line that was cut short by a kill.
    """
    rows = []
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.reader(line for line in file if line.endswith("\n")):
            with suppress(ValueError):
                split, step, metric, value = row
                rows.append((split, int(step), metric, float(value)))
    return rows
