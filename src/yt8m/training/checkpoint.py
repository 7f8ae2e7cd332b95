"""Checkpoints: a run that is killed at any moment resumes from the last one and ends with the same weights.

A checkpoint is complete or absent, and contains only tensors and plain values: loading it executes no code. It needs no
random state, since the random numbers of a step depend on (seed, step) only. Training does not wait for the disk: a
thread writes a copy of the state in memory while the next steps run.
"""

import pickle
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self, cast

import torch
from lightning_fabric.plugins import Precision
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from yt8m.errors import Yt8mError
from yt8m.files import written_atomically
from yt8m.training.averaging import WeightAverage


@dataclass
class TrainingProgress:
    """Steps done, the last evaluation, the best one so far (steps of -1: none yet), and seconds of training."""

    step: int = 0
    evaluated_step: int = -1
    best_value: float = float("nan")
    best_step: int = -1
    seconds: float = 0.0


@dataclass
class TrainingState:
    """All that the remaining steps depend on.

    Args:
        model: Weights and statistics.
        optimizer: Its moments.
        precision: The gradient scale, in 16-bit precision.
        average: The weight average, if any.
        progress: Progress of the run.
        losses: Losses of the steps since the last log line.
    """

    model: nn.Module
    optimizer: Optimizer
    precision: Precision
    average: WeightAverage | None = None
    progress: TrainingProgress = field(default_factory=TrainingProgress)
    losses: list[Tensor] = field(default_factory=list)

    def snapshot(self) -> dict[str, Any]:
        """Return a copy of everything in host memory."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "precision": self.precision.state_dict(),
            "average": self.average.averaged.state_dict() if self.average else {},
            "progress": asdict(self.progress),
            "losses": torch.stack(self.losses) if self.losses else torch.zeros(0),
        }
        return cast("dict[str, Any]", tree_map(_copy_to_host, state))

    def load(self, path: Path, device: torch.device) -> None:
        """Restore the state from a checkpoint.

        Raises:
            Yt8mError: The file is not a checkpoint of this run.
        """
        try:
            state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            for group in self.optimizer.param_groups:
                # As without a CUDA graph; every step sets its learning rate.
                group["lr"], group["capturable"] = float(group["lr"]), False
            self.precision.load_state_dict(state["precision"])
            if self.average:
                self.average.averaged.load_state_dict(state["average"])
            self.progress = TrainingProgress(**state["progress"])
            self.losses = list(state["losses"])
        except (RuntimeError, ValueError, LookupError, TypeError, EOFError, OSError, pickle.UnpicklingError) as error:
            raise Yt8mError(
                f"{path}: is not a checkpoint of this run ({' '.join(str(error).split())[:200]}). Remove its folder to start over."
            ) from None


def _copy_to_host(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.detach().clone() if value.device.type == "cpu" else value.detach().cpu()


class CheckpointWriter:
    """Writes checkpoints in a thread, one at a time; leaving the context waits for the last one.

    Args:
        path: The file; always the newest complete checkpoint.
        before_write: Called in the thread before each write, to flush files that belong to the checkpoint.
    """

    def __init__(self, path: Path, before_write: Callable[[], None] = lambda: None) -> None:
        self.path, self._before_write = path, before_write
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            # The error of the run takes precedence over one of the writer.
            if kind is None:
                self.wait()
        finally:
            self._thread.shutdown()

    def write(self, state: TrainingState) -> None:
        """Copy the state now; write it as soon as the previous checkpoint is written.

        Raises:
            Yt8mError: The previous checkpoint could not be written.
        """
        self.wait()
        self._writing = self._thread.submit(self._write, state.snapshot())

    def check(self) -> None:
        """Raise the error of a failed write, without waiting for one in progress.

        Raises:
            Yt8mError: The disk is full or the folder cannot be written to.
        """
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the last checkpoint is on the disk.

        Raises:
            Yt8mError: The disk is full or the folder cannot be written to.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _write(self, state: dict[str, Any]) -> None:
        self._before_write()
        with written_atomically(self.path) as temporary, temporary.open("wb") as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:
                # torch reports its position in the file instead of the error of the write.
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise
