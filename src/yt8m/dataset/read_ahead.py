"""Batches read ahead by worker processes, through a ring of shared memory that is allocated once.

A batch of videos is some 22 MB. New memory costs more than reading the frames into it, since each page is cleared and
mapped, in the worker and again in the training process. So the workers write into slots of a ring, and pipes pass
only their places. The batch of a step is in slot `step % slots`; there are two more slots than batches under way, for the
batch in use and the one before it.
"""

import atexit
import math
import signal
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import DTypeLike, NDArray
from torch import Tensor, multiprocessing

from yt8m.dataset.batches import Batches
from yt8m.errors import Yt8mError, reason_of
from yt8m.runtime.signals import STOP_SIGNALS, ignore_signals, signals_blocked

BATCHES_AHEAD = 2
"""Batches that each worker reads ahead."""

_ALIGNMENT = 64


class _Place(NamedTuple):
    """Place of one tensor of a batch in its slot."""

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class _Delivery(NamedTuple):
    """A message from a worker: the kind of batch, its slot, and the places of its tensors."""

    kind: Callable[..., NamedTuple]
    slot: int
    places: list[_Place]


class _Slot:
    """Allocates arrays in one slot, one after the other; an `Allocate`."""

    def __init__(self, memory: NDArray[np.uint8]) -> None:
        self._memory = memory
        self._used = 0

    def __call__(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        kind = np.dtype(dtype)
        start = -(-self._used // _ALIGNMENT) * _ALIGNMENT
        self._used = start + math.prod(shape) * kind.itemsize
        if self._used > len(self._memory):
            raise ValueError(f"a batch needs {self._used:,} bytes, and its slot has {len(self._memory):,}")
        return self._memory[start : self._used].view(kind).reshape(shape)


class _Worker:
    """A process that reads the batches of the steps it is sent, each into its slot of the ring.

    It ends when its pipe is closed, which the kernel does when the training process dies in any way.

    Args:
        batches: What to read.
        ring: Shared memory, uint8 (slots, bytes).
        earlier: The workers that were started before.
    """

    def __init__(self, batches: Batches, ring: Tensor, earlier: Sequence["_Worker"]) -> None:
        self._batches = batches
        self._pipe, of_worker = multiprocessing.Pipe()
        # A forked process inherits the ends of pipes that only this process should hold.
        is_forked = multiprocessing.get_start_method() == "fork"
        inherited = [self._pipe, *(worker._pipe for worker in earlier)] if is_forked else []
        self._process = multiprocessing.Process(target=_serve, args=(batches, ring, of_worker, inherited), daemon=True)
        with of_worker:
            self._process.start()

    def request(self, step: int) -> None:
        """Ask for the batch of a step; `receive` tells if the worker has died."""
        with suppress(OSError):
            self._pipe.send(step)

    def receive(self) -> _Delivery:
        """Wait for the next batch.

        Raises:
            Yt8mError: The process has died.
            Exception: Reading failed; the exception of the worker.
        """
        try:
            received: _Delivery | Exception = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            raise Yt8mError(_death(self._batches, self._process.exitcode or 0)) from None
        if isinstance(received, Exception):
            raise received
        return received

    def kill(self) -> None:
        """End the process, whatever it does; it has nothing to save."""
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _serve(batches: Batches, ring: Tensor, pipe: Connection, inherited: Sequence[Connection]) -> None:
    """Run a worker."""
    ignore_signals()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    for other in inherited:
        other.close()
    torch.set_num_threads(1)
    with suppress(EOFError, OSError):
        while True:
            step = pipe.recv()
            try:
                answer: _Delivery | Exception = _deliver(batches, ring, step)
            except Exception as error:
                if not isinstance(error, Yt8mError):
                    error.add_note(f"in a worker process:\n{traceback.format_exc()}")
                answer = error
            pipe.send(answer)


def _deliver(batches: Batches, ring: Tensor, step: int) -> _Delivery:
    """Read the batch of a step into its slot."""
    slot = step % len(ring)
    memory = ring[slot]
    batch = batches.batch(step, _Slot(memory.numpy()))
    start = memory.data_ptr()
    places = [_Place(tensor.data_ptr() - start, tuple(tensor.shape), tensor.dtype) for tensor in batch]
    return _Delivery(type(batch), slot, places)


@contextmanager
def _started(batches: Batches, ring: Tensor, count: int) -> Iterator[list[_Worker]]:
    """Worker processes, which are killed at the end of the block, or of this process where it never gets there."""
    workers: list[_Worker] = []

    def kill() -> None:
        for worker in workers:
            worker.kill()

    # Called before multiprocessing waits for its processes at exit.
    atexit.register(kill)
    try:
        # No signal separates a process from its entry in the list.
        with signals_blocked():
            for _ in range(count):
                workers.append(_Worker(batches, ring, workers))
        yield workers
    finally:
        kill()
        atexit.unregister(kill)


def step_loader(
    batches: Batches, start: int, stop: int, num_workers: int, pin_memory: bool = False
) -> Generator[NamedTuple]:
    """Iterate over the batches of the steps [start, stop), read ahead by worker processes if any.

    With workers, the tensors of a batch are valid until the next batch but one is requested; `on_device` takes care of
    copies that are still under way then. Close the generator where it may not be exhausted (`contextlib.closing`): that
    ends the workers.

    Args:
        batches: A dataset indexed by step.
        start: First step; a resumed run reads nothing of the steps before.
        stop: End.
        num_workers: Processes that read ahead; 0 reads in this process.
        pin_memory: Whether to page-lock the memory of batches, for faster transfer to a GPU.

    Raises:
        Yt8mError: There is too little shared memory, or a worker was killed.
    """
    if not num_workers:
        return (_pinned(batches[step]) if pin_memory else batches[step] for step in range(start, stop))
    return _delivered(batches, start, stop, num_workers, pin_memory)


def _delivered(batches: Batches, start: int, stop: int, num_workers: int, pin_memory: bool) -> Generator[NamedTuple]:
    if start >= stop:
        return
    ahead = num_workers * BATCHES_AHEAD
    ring = _ring(batches, ahead + 2)
    # The workers start before the memory is page-locked.
    with _started(batches, ring, num_workers) as workers, _page_locked(ring) if pin_memory else nullcontext():
        for step in range(start, min(start + ahead, stop)):
            workers[step % num_workers].request(step)
        for step in range(start, stop):
            worker = workers[step % num_workers]
            kind, slot, places = worker.receive()
            if step + ahead < stop:
                worker.request(step + ahead)
            yield kind(*(_tensor_at(ring[slot], place) for place in places))


def _death(batches: Batches, status: int) -> str:
    """What ended a worker, from its exit status, which is negative for a signal."""
    if status >= 0:
        return f"A process that reads batches ended with status {status}; run again, or set machine.num_workers=0."
    name = signal.Signals(-status).name
    if name == "SIGBUS":
        catalog = batches.reader.catalog
        changed = [shard.name for shard in catalog.shards if _size(catalog.folder / shard.name) != shard.num_bytes]
        if changed:
            more = f" and {len(changed) - 1:,} more" if len(changed) > 1 else ""
            return (
                f"{catalog.folder / changed[0]}{more}: has changed in size since it was indexed, and reading it killed a "
                f"process that reads batches ({name}); restore it, or run `yt8m index {catalog.folder}`."
            )
    reasons = {
        "SIGKILL": "probably because the memory ran out; set machine.num_workers lower, or give it more memory",
        "SIGBUS": "because a shard could not be read, or /dev/shm is full; check the disks",
    }
    reason = reasons.get(name, "which nothing in it explains; run again, or set machine.num_workers=0")
    return f"A process that reads batches was killed ({name}), {reason}."


def _size(path: Path) -> int:
    """Bytes of a file; -1 where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _ring(batches: Batches, num_slots: int) -> Tensor:
    """Shared memory for a number of batches: uint8 (slots, bytes)."""
    of_batch = batches.num_bytes + 16 * _ALIGNMENT
    size = (num_slots, -(-of_batch // _ALIGNMENT) * _ALIGNMENT)
    try:
        ring = torch.empty(size, dtype=torch.uint8)
        ring.share_memory_()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise Yt8mError(
            f"There is too little shared memory for {num_slots} batches of {size[1] / 2**20:,.0f} MiB "
            f"({reason_of(error)}); give the container more (docker run --shm-size), or set "
            "machine.num_workers lower."
        ) from None
    return ring


def _tensor_at(memory: Tensor, place: _Place) -> Tensor:
    num_bytes = math.prod(place.shape) * place.dtype.itemsize
    return memory[place.offset : place.offset + num_bytes].view(place.dtype).view(place.shape)


def _pinned(batch: NamedTuple) -> NamedTuple:
    """Copy a batch to page-locked memory."""
    return type(batch)(*(tensor.pin_memory() for tensor in batch))


@contextmanager
def _page_locked(memory: Tensor) -> Iterator[None]:
    """Page-lock allocated memory, so that a GPU can read it directly; where that is refused, copies are slower."""
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    locked = runtime.cudaHostRegister(memory.data_ptr(), memory.nbytes, 0) == runtime.cudaError.success
    try:
        yield
    finally:
        if locked:
            torch.cuda.synchronize()
            runtime.cudaHostUnregister(memory.data_ptr())


def on_device(
    batches: Iterator[NamedTuple], device: torch.device, num_frames: int | None = None
) -> Iterator[NamedTuple]:
    """Move batches to a device as they come; to a GPU, in parallel with its work.

    Args:
        batches: Batches of `step_loader`.
        device: The device.
        num_frames: Number of frames to pad all batches to; None for no padding.
    """
    if device.type != "cuda":
        for batch in batches:
            yield _padded_to(_moved(batch, device), num_frames)
        return
    copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    work = torch.cuda.current_stream(device)
    copied: list[torch.cuda.Event] = []
    while True:
        # Requesting a batch frees the memory of the one before the last: its copy has to be done.
        while len(copied) > 1:
            copied.pop(0).synchronize()
        if (given := next(batches, None)) is None:
            return
        with torch.cuda.stream(copies):
            moved = _moved(given, device)
            copied.append(copies.record_event())
            moved = _padded_to(moved, num_frames)
        work.wait_stream(copies)
        for tensor in moved:
            tensor.record_stream(work)
        yield moved


def _moved(batch: NamedTuple, device: torch.device) -> NamedTuple:
    return type(batch)(*(tensor.to(device, non_blocking=True) for tensor in batch))


def _padded_to(batch: NamedTuple, num_frames: int | None) -> NamedTuple:
    """Pad the frames of a batch, uint8 (B, T, bytes), with zeros."""
    if num_frames is None:
        return batch
    padded = {
        name: F.pad(rows, (0, 0, 0, num_frames - rows.shape[1]))
        for name in ("rgb", "audio")
        if (rows := getattr(batch, name)).shape[1] < num_frames
    }
    return batch._replace(**padded)
