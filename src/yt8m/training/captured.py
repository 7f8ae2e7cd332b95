"""A step recorded once as a CUDA graph and replayed.

A compiled step is some two hundred kernels of a few microseconds; started one by one, they take longer to start than to
run. Recorded whole (forward, loss, backward, clipping, optimizer), a step is one start.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

WARM_UP = 3
"""Steps done in the usual way first: they compile, and make what is made at first use."""


def make_capturable(optimizer: Optimizer, device: torch.device) -> None:
    """Keep what changes from step to step on the device, where a recorded step reads it."""
    for group in optimizer.param_groups:
        group["capturable"] = True
        group["lr"] = torch.tensor(float(group["lr"]), device=device)


class CapturedStep:
    """Does steps on batches of one shape; the first few as they are, then as a recording.

    Args:
        step: Takes a batch, a named tuple of tensors, and gives its loss and the gradient's norm. It waits for nothing
            and seeds nothing: its random numbers come from the device's generator, seeded by the caller.
        device: A CUDA device.
    """

    def __init__(self, step: Callable[[Any], tuple[Tensor, Tensor]], device: torch.device) -> None:
        self._step, self._device = step, device
        self._done = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Do a step; the norm is good until the next."""
        if self._done < WARM_UP:
            self._done += 1
            return self._beside(batch)
        graph = self._graph or self._recorded(batch)
        for place, tensor in zip(self._batch, batch, strict=True):
            place.copy_(tensor, non_blocking=True)
        graph.replay()
        return self._loss.clone(), self._norm

    def _beside(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Do a step on a stream of its own, as those must be that come before a recording."""
        beside = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        work = torch.cuda.current_stream(self._device)
        beside.wait_stream(work)
        with torch.cuda.stream(beside):
            loss, norm = self._step(batch)
        work.wait_stream(beside)
        for tensor in (loss, norm):
            tensor.record_stream(work)
        return loss, norm

    def _recorded(self, batch: Any) -> torch.cuda.CUDAGraph:
        self._batch = type(batch)(*(tensor.clone() for tensor in batch))
        self._graph = torch.cuda.CUDAGraph()
        # Other threads go on meanwhile: they read batches into page-locked memory.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._loss, self._norm = self._step(self._batch)
        return self._graph
