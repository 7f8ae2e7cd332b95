"""Where a run stands, so that it can be killed at any moment and go on as if nothing had happened.

A checkpoint is complete or absent: it is written beside its final name and renamed. It holds tensors and plain
values only, and is read without unpickling anything else. Random state is not in it, because it need not be: the
randomness of a step comes from (seed, step).

Training does not wait for the disk: a checkpoint is a copy in memory, which a thread writes while the next steps run.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypedDict

import torch
from lightning_fabric.plugins import Precision
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from yt8m.errors import Yt8mError
from yt8m.files import written_atomically
from yt8m.training.averaging import Average


class Progress(TypedDict):
    """How far a run is: steps done, the last evaluation, and the best one so far (steps of -1: none yet)."""

    step: int
    evaluated_step: int
    best_value: float
    best_step: int
    seconds: float


@dataclass
class TrainingState:
    """All that the steps to come depend on.

    Args:
        model: Weights and statistics.
        optimizer: Its moments.
        precision: The scale of gradients, in 16-bit floats.
        average: The average of the weights, if one is kept.
        progress: How far the run is.
        losses: Losses of the steps since the last line of the log.
    """

    model: nn.Module
    optimizer: Optimizer
    precision: Precision
    average: Average | None = None
    progress: Progress = field(
        default_factory=lambda: Progress(step=0, evaluated_step=-1, best_value=float("nan"), best_step=-1, seconds=0.0)
    )
    losses: list[Tensor] = field(default_factory=list)

    def snapshot(self) -> dict[str, Any]:
        """A copy of everything in the host's memory."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "precision": self.precision.state_dict(),
            "average": self.average.averaged.state_dict() if self.average else {},
            "progress": dict(self.progress),
            "losses": torch.stack(self.losses) if self.losses else torch.zeros(0),
        }
        copied: dict[str, Any] = tree_map(_copied, state)
        return copied

    def load(self, path: Path, device: torch.device) -> None:
        """Put a run back where a checkpoint left it.

        Raises:
            Yt8mError: The file is not a checkpoint of this run.
        """
        try:
            state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            for group in self.optimizer.param_groups:
                # As a GPU had them or not: the rate of a step is set before it.
                group["lr"], group["capturable"] = float(group["lr"]), False
            self.precision.load_state_dict(state["precision"])
            if self.average:
                self.average.averaged.load_state_dict(state["average"])
            progress: Progress = state["progress"]
            self.progress = Progress(
                step=progress["step"],
                evaluated_step=progress["evaluated_step"],
                best_value=progress["best_value"],
                best_step=progress["best_step"],
                seconds=progress["seconds"],
            )
            self.losses = list(state["losses"])
        except (RuntimeError, ValueError, LookupError, TypeError, EOFError, OSError, pickle.UnpicklingError) as error:
            raise Yt8mError(
                f"{path}: is not a checkpoint of this run ({' '.join(str(error).split())[:200]}). Remove its folder to start over."
            ) from None


def _copied(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.detach().clone() if value.device.type == "cpu" else value.detach().cpu()


class CheckpointWriter:
    """Writes one checkpoint after the other in a thread; leaving it waits for the last.

    Args:
        path: The file, always the newest checkpoint that is whole.
        before: Called in the thread before each one is written: what must be on the disk by then.
    """

    def __init__(self, path: Path, before: Callable[[], None] = lambda: None) -> None:
        self.path, self._before = path, before
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            # A run that ends in an error says that one.
            if kind is None:
                self.wait()
        finally:
            self._thread.shutdown()

    def write(self, state: TrainingState) -> None:
        """Copy the state now, and write it as soon as the checkpoint before is written.

        Raises:
            Yt8mError: The checkpoint before could not be written.
        """
        self.wait()
        self._writing = self._thread.submit(self._write, state.snapshot())

    def check(self) -> None:
        """Say what went wrong with a checkpoint that is done, without waiting for one that is not.

        Raises:
            Yt8mError: The disk is full or the folder cannot be written to.
        """
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Wait until what was handed in is on the disk.

        Raises:
            Yt8mError: The disk is full or the folder cannot be written to.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _write(self, state: dict[str, Any]) -> None:
        self._before()
        with written_atomically(self.path) as temporary, temporary.open("wb") as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:
                # Where a write fails, torch complains of its own position in the file instead.
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise
