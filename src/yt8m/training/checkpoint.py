"""Where a run stands, so that it can be killed at any moment and go on as if nothing had happened.

A checkpoint is complete or absent: it is written beside its final name and renamed. It holds tensors and plain
values only, and is read without unpickling anything else. Random state is not in it, because it need not be: the
randomness of a step comes from (seed, step, process).
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, TypedDict

import torch
from lightning_fabric import Fabric
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from yt8m.errors import Yt8mError
from yt8m.files import written_atomically


class Progress(TypedDict):
    """How far a run is: steps done, and the best evaluation so far (`best_step` -1 before the first)."""

    step: int
    best_value: float
    best_step: int
    seconds: float


def save_checkpoint(
    fabric: Fabric, path: Path, model: nn.Module, optimizer: Optimizer, schedule: LRScheduler, progress: Progress
) -> None:
    """Write where the run stands; only the first process writes, the others wait for it.

    Raises:
        Yt8mError: The disk is full or the folder cannot be written to.
    """
    if fabric.is_global_zero:
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "progress": dict(progress),
        }
        with written_atomically(path) as temporary, temporary.open("wb") as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:
                # Where a write fails, torch complains of its own position in the file instead.
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise
    fabric.barrier()


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: Optimizer, schedule: LRScheduler, device: torch.device
) -> Progress:
    """Put a run back where `save_checkpoint` left it.

    Raises:
        Yt8mError: The file is not a checkpoint of this model.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        progress: Progress = state["progress"]
    except (RuntimeError, ValueError, LookupError, TypeError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise Yt8mError(
            f"{path}: is not a checkpoint of this run ({' '.join(str(error).split())[:200]}). Remove its folder to start over."
        ) from None
    return progress
