"""Batches read ahead by worker processes, through a ring of shared memory that is allocated once.

A batch of videos is some 22 MB. New memory costs more than reading the frames into it, since each page is cleared and
mapped, in the worker and again in the training process. So the workers write into slots of a ring, and the queue passes
only their places. The batch of a step is in slot `step % slots`; there are two more slots than batches under way, for the
batch in use and the one before it.
"""

import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import DTypeLike, NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from yt8m.dataset.batches import Batches
from yt8m.errors import Yt8mError

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

    kind: type[NamedTuple]
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


class _SharedBatches(Dataset[_Delivery | Yt8mError]):
    """The dataset of a worker, which reads the batch of a step into its slot.

    A `Yt8mError` is returned like a batch, since DataLoader would turn a raised one into a traceback.
    """

    def __init__(self, batches: Batches, ring: Tensor) -> None:
        self.batches = batches
        self.ring = ring

    def __getitem__(self, step: int) -> _Delivery | Yt8mError:
        slot = step % len(self.ring)
        memory = self.ring[slot]
        try:
            batch = self.batches.batch(step, _Slot(memory.numpy()))
        except Yt8mError as error:
            return error
        start = memory.data_ptr()
        places = [_Place(tensor.data_ptr() - start, tuple(tensor.shape), tensor.dtype) for tensor in batch]
        return _Delivery(type(batch), slot, places)


def step_loader(
    batches: Batches, start: int, stop: int, num_workers: int, pin_memory: bool = False
) -> Iterator[NamedTuple]:
    """Iterate over the batches of the steps [start, stop), read ahead by worker processes if any.

    With workers, the tensors of a batch are valid until the next batch but one is requested; `on_device` takes care of
    copies that are still under way then.

    Args:
        batches: A dataset indexed by step.
        start: First step; a resumed run reads nothing of the steps before.
        stop: End.
        num_workers: Processes that read ahead; 0 reads in this process.
        pin_memory: Whether to page-lock the memory of batches, for faster transfer to a GPU.

    Raises:
        Yt8mError: There is too little shared memory.
    """
    if not num_workers:
        return (_pinned(batches[step]) if pin_memory else batches[step] for step in range(start, stop))
    return _delivered(batches, start, stop, num_workers, pin_memory)


def _delivered(batches: Batches, start: int, stop: int, num_workers: int, pin_memory: bool) -> Iterator[NamedTuple]:
    if start >= stop:
        return
    ring = _ring(batches, num_workers * BATCHES_AHEAD + 2)
    loader = DataLoader(
        _SharedBatches(batches, ring),
        batch_size=None,
        sampler=range(start, stop),
        num_workers=num_workers,
        prefetch_factor=BATCHES_AHEAD,
        collate_fn=_unchanged,
        worker_init_fn=_ignore_signals,
    )
    deliveries = iter(loader)  # starts the workers, before the memory is page-locked
    with _page_locked(ring) if pin_memory else nullcontext():
        for delivery in deliveries:
            if isinstance(delivery, Yt8mError):
                raise delivery
            memory = ring[delivery.slot]
            yield delivery.kind(*(_tensor_at(memory, place) for place in delivery.places))


def _ignore_signals(_worker: int) -> None:
    """Ignore Ctrl-C and SIGTERM, which reach all processes of a terminal or a job: the training process handles them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


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
            f"({' '.join(str(error).split())}); give the container more (docker run --shm-size), or set "
            "machine.num_workers lower."
        ) from None
    return ring


def _unchanged(delivery: Any) -> Any:
    """Replaces the conversion to tensors, which DataLoader does by default."""
    return delivery


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
