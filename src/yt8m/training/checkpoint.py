"""Checkpoints: a run that is killed at any moment resumes from the last one and ends with the same weights.

A checkpoint is complete or absent, and contains only tensors and plain values: loading it executes no code. It needs no
random state, since the random numbers of a step depend on (seed, step) only. Training does not wait for the disk: a
thread writes a copy of the state in memory while the next steps run.

The file is an archive of `torch.save`, followed by one line with the CRC32C of the archive. A damaged checkpoint ends the
run: to train the stage from its first step instead would replace the best model so far, and the user may have a copy of
the checkpoint.
"""

import re
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
from yt8m.files import file_checksum, written_atomically
from yt8m.torch_files import TorchFileError, read_torch_file
from yt8m.training.averaging import WeightAverage

CHECKSUM_KEY = "has_checksum"
"""Key of a state whose file ends with a checksum; earlier versions wrote none."""
_CHECKSUM_LINE = re.compile(rb"yt8m crc32c ([0-9a-f]{8})\n")
_CHECKSUM_BYTES = len(b"yt8m crc32c 01234567\n")
_ADVICE = "delete it and run again to train this stage from its first step"


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
            CHECKSUM_KEY: True,
        }
        return cast("dict[str, Any]", tree_map(_copy_to_host, state))

    def load(self, path: Path, device: torch.device) -> None:
        """Restore the state from a checkpoint.

        Raises:
            Yt8mError: The file is damaged, or not a checkpoint of this run.
        """
        state = read_checkpoint(path, device)[0]
        try:
            _check_state(state, self)
            self.model.load_state_dict(state["model"])
            # Learning rates, decay and the like are the recipe's; every step sets its learning rate.
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
            self.precision.load_state_dict(state["precision"])
            if self.average:
                self.average.averaged.load_state_dict(state["average"])
            self.progress = TrainingProgress(**state["progress"])
            self.losses = list(state["losses"])
        except (RuntimeError, ValueError, LookupError, TypeError) as error:
            raise _other_file(path, error) from None


def read_checkpoint(path: Path, device: torch.device | str = "cpu") -> tuple[Any, bool]:
    """Read a checkpoint, and verify its checksum.

    Args:
        path: The file.
        device: Device of the tensors.

    Returns:
        What the file contains, not checked yet, and whether it has a checksum: earlier versions wrote none.

    Raises:
        Yt8mError: The file is damaged, or not a checkpoint.
    """
    try:
        with path.open("rb") as file:
            num_bytes = max(path.stat().st_size - _CHECKSUM_BYTES, 0)
            file.seek(num_bytes)
            line = _CHECKSUM_LINE.fullmatch(file.read())
    except OSError as error:
        raise Yt8mError(f"{path}: cannot be read ({error.strerror}).") from None
    damaged = Yt8mError(f"{path}: is damaged (its checksum is wrong); restore it from a copy, or {_ADVICE}.")
    if line and int(line[1], 16) != file_checksum(path, num_bytes):
        raise damaged
    try:
        state = read_torch_file(path, device)
    except TorchFileError as error:
        raise _other_file(path, error) from None
    if not line and isinstance(state, dict) and CHECKSUM_KEY in state:
        raise damaged
    return state, line is not None


def _other_file(path: Path, error: Exception) -> Yt8mError:
    problem = " ".join(str(error).split())[:200].rstrip(". ")
    return Yt8mError(f"{path}: is not a checkpoint of this run ({problem}); {_ADVICE}.")


def _check_state(found: Any, state: TrainingState) -> None:
    """Check that values read from a file have the structure of a run's state.

    Raises:
        ValueError: A key, type or shape differs.
        LookupError: A key is missing.
        TypeError: There are no keys.
    """
    _check_like(found["model"], state.model.state_dict(), "model")
    parameters = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
    moments = found["optimizer"]["state"]
    if not isinstance(moments, dict) or not all(type(index) is int for index in moments):
        raise ValueError("optimizer.state: expected a value for each parameter")
    for index, of_parameter in moments.items():
        like = parameters[index].detach()
        expected = {"step": torch.zeros(()), "exp_avg": like, "exp_avg_sq": like}
        _check_like(of_parameter, expected, f"optimizer.state.{index}")
    _check_like(found["precision"], state.precision.state_dict(), "precision")
    _check_like(found["average"], state.average.averaged.state_dict() if state.average else {}, "average")
    progress, losses = found["progress"], found["losses"]
    _check_like(progress, asdict(TrainingProgress()), "progress")
    if not -1 <= progress["best_step"] <= progress["evaluated_step"] <= progress["step"]:
        raise ValueError("progress: an evaluation after the last step")
    if not isinstance(losses, Tensor) or losses.ndim != 1:
        raise ValueError("losses: expected one number per step")
    _check_like(losses, torch.empty_like(losses, dtype=torch.float32, device="meta"), "losses")


def _check_like(found: Any, expected: Any, place: str) -> None:
    """Check that a value has the type of another, a dictionary also its keys and a tensor its shape.

    Raises:
        ValueError: It has not; the message names the place.
    """
    if isinstance(expected, dict):
        if not isinstance(found, dict) or found.keys() != expected.keys():
            different = sorted(map(str, found.keys() ^ expected.keys())) if isinstance(found, dict) else []
            names = f"; missing or unknown: {', '.join(different)}" if different else ""
            raise ValueError(f"{place}: expected {len(expected)} keys{names}")
        for name, value in expected.items():
            _check_like(found[name], value, f"{place}.{name}")
    elif isinstance(expected, Tensor):
        shape, dtype = tuple(expected.shape), expected.dtype
        if not isinstance(found, Tensor) or (tuple(found.shape), found.dtype) != (shape, dtype):
            raise ValueError(f"{place}: expected {dtype} {shape}, found {_shown(found)}")
        # A view can repeat one number a billion times, and a sparse or meta tensor has other storage.
        is_plain = found.layout == torch.strided and not found.is_meta
        if not is_plain or found.untyped_storage().nbytes() < found.numel() * found.element_size():
            raise ValueError(f"{place}: its values are not stored one by one")
    elif type(found) is not type(expected) and not (isinstance(expected, float) and type(found) is int):
        raise ValueError(f"{place}: expected {type(expected).__name__}, found {type(found).__name__}")


def _shown(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


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
            file.flush()
            file.write(b"yt8m crc32c %08x\n" % file_checksum(temporary))
