"""The log of a run: `metrics.csv`, TensorBoard, and Weights & Biases on request.

A resumed run drops the rows after its checkpoint, so that the log has neither gaps nor duplicates. Weights & Biases
cannot drop anything: it gets the repeated steps twice, and since `step` is the axis of all its charts, the points
coincide.
"""

import csv
import math
import os
import sys
import types
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

from lightning_fabric import Fabric
from lightning_fabric.loggers.tensorboard import TensorBoardLogger

from yt8m.errors import Interrupted, Stopped, UsageError
from yt8m.files import write_csv
from yt8m.training.config import LogConfig

METRICS_FILE = "metrics.csv"
_HEADER = ("split", "step", "metric", "value")
_UPLOAD_SECONDS = 30
"""How long the end of a run waits for the upload to Weights & Biases; the run's folder keeps the rest."""


@dataclass(frozen=True)
class WandbRun:
    """A run in Weights & Biases.

    Args:
        config: Project and entity; without a project nothing is logged there.
        name: Display name of the run.
        run_id: Unique id, the same when the run is resumed; letters, digits, `-` and `_`.
        settings: Settings of the run.
    """

    config: LogConfig
    name: str
    run_id: str
    settings: Mapping[str, Any]


class MetricsLog:
    """Writes the metrics of one run, in the first process only.

    Args:
        folder: Receives `metrics.csv` (split, step, metric, value; one row per value) and `tensorboard/`.
        fabric: Determines which process this is.
        start: Steps already done; later rows of an earlier try are dropped.
        wandb_run: The run in Weights & Biases, whose local files go to `wandb/`.

    Raises:
        UsageError: Weights & Biases is requested, but not installed or not logged in.
    """

    def __init__(self, folder: Path, fabric: Fabric, start: int, *, wandb_run: WandbRun | None = None) -> None:
        self._path = folder / METRICS_FILE
        self._rows: list[tuple[str, int, str, float]] = []
        self._writes = fabric.is_global_zero
        if self._path.exists():
            self._rows = [row for row in read_metrics(self._path) if row[1] <= start]
        self._board: TensorBoardLogger | None = None
        self._wandb: Any = None
        if wandb_run is not None:
            wandb_run.config.check()
        if self._writes:
            write_csv(self._path, _HEADER, self._rows)
            # TensorBoard imports TensorFlow if that is installed, which takes seconds and prints warnings; a module of
            # this name turns that off.
            sys.modules.setdefault("tensorboard.compat.notf", types.ModuleType("tensorboard.compat.notf"))
            self._board = TensorBoardLogger(folder, name="", version="tensorboard", purge_step=start + 1)
            if wandb_run is not None and wandb_run.config.wandb_project is not None:
                self._wandb = _start_wandb(wandb_run, folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        self.close(error)

    def write(self, split: str, step: int, values: dict[str, float]) -> None:
        """Log the metrics of a split ("train", "valid") after `step` steps."""
        rows = [(split, step, name, value) for name, value in values.items()]
        self._rows += rows
        if self._board:
            with self._path.open("a", encoding="utf-8", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows(rows)
        self._write_charts(split, step, values)

    def write_speed(self, step: int, values: dict[str, float]) -> None:
        """Log values that are not reproducible, such as speed, to the charts only, not to `metrics.csv`."""
        self._write_charts("speed", step, values)

    def _write_charts(self, group: str, step: int, values: dict[str, float]) -> None:
        finite = {f"{group}/{name}": value for name, value in values.items() if math.isfinite(value)}
        if self._board:
            self._board.log_metrics(finite, step)
        self._call_wandb(lambda run: run.log({"step": step, **finite}))

    def _call_wandb(self, call: Callable[[Any], None]) -> None:
        """Call Weights & Biases; if its process has died, warn once and continue without it."""
        if self._wandb is None:
            return
        try:
            call(self._wandb)
        except Exception as error:
            import wandb

            self._wandb = None
            wandb.termwarn(f"logging stops ({type(error).__name__}: {error}); training continues.")

    def flush(self) -> None:
        """Flush `metrics.csv` to the disk."""
        if self._writes:
            with self._path.open("rb") as file:
                os.fsync(file.fileno())

    def values(self, split: str, step: int) -> dict[str, float]:
        """Metrics of a split at a step."""
        return {
            name: value for row_split, row_step, name, value in self._rows if (row_split, row_step) == (split, step)
        }

    def close(self, error: BaseException | None = None) -> None:
        """Flush TensorBoard and finish the run of Weights & Biases.

        Args:
            error: The exception that ended the run, if any.
        """
        if self._board:
            self._board.finalize("success")
        if isinstance(error, Interrupted | Stopped | KeyboardInterrupt):
            self._call_wandb(lambda run: run.mark_preempting())
        self._call_wandb(lambda run: run.finish(exit_code=0 if error is None else getattr(error, "exit_code", 1)))
        self._wandb = None


def _start_wandb(wandb_run: WandbRun, folder: Path) -> Any:
    """Start or resume a run of Weights & Biases.

    Raises:
        UsageError: Not logged in.
    """
    import wandb

    start = partial(
        wandb.init,
        project=wandb_run.config.wandb_project,
        entity=wandb_run.config.wandb_entity,
        name=wandb_run.name,
        id=wandb_run.run_id,
        resume="allow",
        reinit="create_new",
        config=dict(wandb_run.settings),
        dir=folder,
        settings=wandb.Settings(console="off", quiet=True, finish_timeout=_UPLOAD_SECONDS),
    )
    try:
        run = start()
    except (wandb.errors.UsageError, wandb.errors.AuthenticationError) as error:
        raise UsageError(
            f"Weights & Biases: {_on_one_line(error)}; set WANDB_API_KEY or run `wandb login`, or log to this machine only "
            "with WANDB_MODE=offline."
        ) from None
    except wandb.errors.CommError as error:
        wandb.termwarn(f"{_on_one_line(error)}; logging to this machine only, `wandb sync` uploads it later.")
        wandb.teardown()  # Its process still counts the run as active.
        run = start(mode="offline")
    run.define_metric("*", step_metric="step")
    return run


def _on_one_line(error: Exception) -> str:
    return " ".join(str(error).split()).removesuffix(".")


def read_metrics(path: Path) -> list[tuple[str, int, str, float]]:
    """Read the rows (split, step, metric, value) of a `metrics.csv`.

    Skips lines that are no rows, such as the header and a last line that a kill has cut off.
    """
    rows = []
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.reader(line for line in file if line.endswith("\n")):
            with suppress(ValueError):
                split, step, metric, value = row
                rows.append((split, int(step), metric, float(value)))
    return rows
