"""The log of a run: `metrics.csv` for people and scripts, TensorBoard for the eye, Weights & Biases for those who ask.

A resumed run first drops what was logged after its checkpoint, so the log has neither gaps nor repeats. Weights & Biases
cannot drop anything: it gets the steps since the checkpoint once more, and since these have a step of their own there
(`step`, the axis of all charts), the same numbers lie on the same points.
"""

from __future__ import annotations

import csv
import importlib.util
import math
import os
import sys
import types
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lightning_fabric import Fabric
from lightning_fabric.loggers.tensorboard import TensorBoardLogger
from pydantic import model_validator

from yt8m.errors import Interrupted, UsageError
from yt8m.files import written_atomically
from yt8m.settings import Settings

METRICS_FILE = "metrics.csv"
_HEADER = ("split", "step", "metric", "value")
_UPLOAD_SECONDS = 30
"""How long the end of a run waits for Weights & Biases; what is not sent by then stays in the run's folder."""


class LogConfig(Settings):
    """Where else a run is logged. Keys and passwords have no place here."""

    wandb_project: str | None = None
    """Project of Weights & Biases; needs `pip install 'yt8m[wandb]'`, and WANDB_API_KEY or `wandb login`."""
    wandb_entity: str | None = None
    """User or team that the project belongs to; the one logged in where left out."""

    @model_validator(mode="after")
    def _entity_has_a_project(self) -> Self:
        if self.wandb_entity is not None and self.wandb_project is None:
            raise ValueError("wandb_entity says whose project it is, so it needs wandb_project")
        return self

    def check(self) -> None:
        """Ask before hours of work for what this takes.

        Raises:
            UsageError: It is not installed.
        """
        if self.wandb_project is not None and importlib.util.find_spec("wandb") is None:
            raise UsageError(
                f"wandb_project {self.wandb_project!r}: wandb is not installed; pip install 'yt8m[wandb]'."
            )


@dataclass(frozen=True)
class WandbRun:
    """A run as Weights & Biases shall know it.

    Args:
        config: Project and entity; nothing is logged there without a project.
        name: What people call the run.
        run_id: The same for a run that is resumed and for no other; letters, digits, `-` and `_`.
        settings: What the run was made with.
    """

    config: LogConfig
    name: str
    run_id: str
    settings: Mapping[str, Any]


class MetricsLog:
    """Writes metrics of one run; only the first process does.

    Args:
        folder: Receives `metrics.csv` (split, step, metric, value; a row a value) and `tensorboard/`.
        fabric: Tells which process this is.
        start: Steps already done; later rows of a former try are dropped.
        wandb_run: The run in Weights & Biases, whose own files go to `wandb/`.

    Raises:
        UsageError: Weights & Biases is asked for, and not installed or not logged in.
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
            with written_atomically(self._path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows([_HEADER, *self._rows])
            # TensorBoard's writer imports all of TensorFlow where that is installed, which takes seconds and prints a
            # page. It does without when it finds a module of this name.
            sys.modules.setdefault("tensorboard.compat.notf", types.ModuleType("tensorboard.compat.notf"))
            self._board = TensorBoardLogger(folder, name="", version="tensorboard", purge_step=start + 1)
            if wandb_run is not None and wandb_run.config.wandb_project is not None:
                self._wandb = _start_wandb(wandb_run, folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close(error)

    def write(self, split: str, step: int, values: dict[str, float]) -> None:
        """Log the metrics of a split ("train", "valid") after `step` steps."""
        rows = [(split, step, name, value) for name, value in values.items()]
        self._rows += rows
        if self._board:
            with self._path.open("a", encoding="utf-8", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows(rows)
        self._draw(split, step, values)

    def watch(self, step: int, values: dict[str, float]) -> None:
        """Draw what is no result and differs from run to run, such as speed; it is not in `metrics.csv`."""
        self._draw("speed", step, values)

    def _draw(self, group: str, step: int, values: dict[str, float]) -> None:
        drawn = {f"{group}/{name}": value for name, value in values.items() if math.isfinite(value)}
        if self._board:
            self._board.log_metrics(drawn, step)
        self._tell_wandb(lambda run: run.log({"step": step, **drawn}))

    def _tell_wandb(self, say: Callable[[Any], None]) -> None:
        """Say something to Weights & Biases; training goes on without it when its process has died."""
        if self._wandb is None:
            return
        try:
            say(self._wandb)
        except Exception as error:
            import wandb

            self._wandb = None
            wandb.termwarn(f"nothing more is logged ({type(error).__name__}: {error}); training goes on.")

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

    def close(self, error: BaseException | None = None) -> None:
        """Flush what TensorBoard still holds, and tell Weights & Biases how the run ended.

        Args:
            error: What ended it before its end.
        """
        if self._board:
            self._board.finalize("success")
        if isinstance(error, Interrupted | KeyboardInterrupt):
            self._tell_wandb(lambda run: run.mark_preempting())
        self._tell_wandb(lambda run: run.finish(exit_code=0 if error is None else getattr(error, "exit_code", 1)))
        self._wandb = None


def _start_wandb(described: WandbRun, folder: Path) -> Any:
    """Begin a run of Weights & Biases, or go on with it.

    Raises:
        UsageError: Nobody is logged in.
    """
    import wandb

    start = partial(
        wandb.init,
        project=described.config.wandb_project,
        entity=described.config.wandb_entity,
        name=described.name,
        id=described.run_id,
        resume="allow",
        reinit="create_new",
        config=dict(described.settings),
        dir=folder,
        settings=wandb.Settings(console="off", quiet=True, finish_timeout=_UPLOAD_SECONDS),
    )
    try:
        run = start()
    except (wandb.errors.UsageError, wandb.errors.AuthenticationError) as error:
        raise UsageError(
            f"Weights & Biases: {_in_one_line(error)}; set WANDB_API_KEY or run `wandb login`, or log on this machine "
            "alone with WANDB_MODE=offline."
        ) from None
    except wandb.errors.CommError as error:
        wandb.termwarn(f"{_in_one_line(error)}; logging on this machine alone, `wandb sync` sends it later.")
        wandb.teardown()  # Its process takes the run for one that still goes on.
        run = start(mode="offline")
    run.define_metric("*", step_metric="step")
    return run


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split()).removesuffix(".")


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
