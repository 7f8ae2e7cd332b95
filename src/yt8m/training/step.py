"""One optimizer step: gradient accumulation over micro-batches, clipping, and on one GPU a CUDA graph.

Launching the roughly 200 kernels of a compiled step takes longer than running them; a CUDA graph of forward, loss,
backward, clipping and optimizer is one launch.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricModule
from torch import Tensor, nn
from torch.optim import Optimizer

from yt8m.runtime.machine import MachineConfig
from yt8m.training.config import OptimizationConfig
from yt8m.training.optimization import learning_rate, set_learning_rates

WARMUP_STEPS = 3
"""Steps before the recording: they compile the network and allocate what is allocated on first use."""


def step_seed(seed: int, step: int, micro_batch: int) -> int:
    """Seed of the random numbers inside the model (dropout) for one micro-batch of a step.

    The same on every process: layers draw for the global batch, and each process uses its own rows.
    """
    return int(np.random.SeedSequence([seed, step, micro_batch]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def micro_batches(batch: Any, num_parts: int) -> list[Any]:
    """Split a batch, a named tuple of tensors (B, ...), into micro-batches of equal size.

    Micro-batch p contains the examples p, p + num_parts, ..., so that it is the same slice of the global batch for any
    number of processes.
    """
    return [type(batch)(*(tensor[part::num_parts] for tensor in batch)) for part in range(num_parts)]


def train_step(
    fabric: Fabric,
    model: _FabricModule,
    optimizer: Optimizer,
    loss_function: Callable[[nn.Module, Any], Tensor],
    config: OptimizationConfig,
    batch: Any,
    seeds: Sequence[int] = (),
) -> tuple[Tensor, Tensor]:
    """Run one step: forward, loss, backward, gradient clipping, optimizer.

    Args:
        fabric: Launched.
        model: Set up by Fabric.
        optimizer: Set up by Fabric.
        loss_function: Loss of a model on a batch.
        config: Gradient clipping and accumulation.
        batch: On the device.
        seeds: Seed of each micro-batch; empty if the generators are seeded already.

    Returns:
        The loss and the gradient norm before clipping, scalars on the device.
    """
    losses = []
    for index, micro_batch in enumerate(micro_batches(batch, config.gradient_accumulation)):
        if seeds:
            torch.manual_seed(seeds[index])
        with fabric.no_backward_sync(model, enabled=index + 1 < config.gradient_accumulation):
            loss = loss_function(model, micro_batch) / config.gradient_accumulation
            fabric.backward(loss)
        losses.append(loss.detach())
    norm = fabric.clip_gradients(model, optimizer, max_norm=config.max_grad_norm, error_if_nonfinite=False)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return torch.stack(losses).sum(), cast("Tensor", norm)


def make_step(
    fabric: Fabric,
    model: _FabricModule,
    optimizer: Optimizer,
    loss_function: Callable[[nn.Module, Any], Tensor],
    config: OptimizationConfig,
    seed: int,
    machine: MachineConfig,
) -> Callable[[Any, int], tuple[Tensor, Tensor]]:
    """Make the function that runs the steps of a run: `train_step` with the step's learning rate and random numbers.

    Where it records a CUDA graph, all batches must have the same shape.

    Returns:
        A function of a batch on the device and the step's number, from 0, that returns what `train_step` does.
    """
    graph: GraphedStep | None = None
    if machine.uses_cuda_graph(fabric):
        make_capturable(optimizer, fabric.device)
        graph = GraphedStep(partial(train_step, fabric, model, optimizer, loss_function, config), fabric.device)

    def step(batch: Any, number: int) -> tuple[Tensor, Tensor]:
        set_learning_rates(optimizer, learning_rate(number, config))
        seeds = [step_seed(seed, number, index) for index in range(config.gradient_accumulation)]
        if graph is None:
            return train_step(fabric, model, optimizer, loss_function, config, batch, seeds)
        torch.manual_seed(seeds[0])
        return graph(batch)

    return step


def make_capturable(optimizer: Optimizer, device: torch.device) -> None:
    """Keep learning rates in tensors on the device, where a recorded step reads them."""
    for group in optimizer.param_groups:
        group["capturable"] = True
        group["lr"] = torch.tensor(float(group["lr"]), device=device)


class GraphedStep:
    """Runs steps on batches of one shape: the first few eagerly, then as a replayed CUDA graph.

    Args:
        step: Takes a batch, a named tuple of tensors, and returns its loss and the gradient norm. It must neither
            synchronize with the host nor seed anything: the caller seeds the device's generator.
        device: A CUDA device.
    """

    def __init__(self, step: Callable[[Any], tuple[Tensor, Tensor]], device: torch.device) -> None:
        self._step, self._device = step, device
        self._num_steps = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Run a step; the returned norm is overwritten by the next one."""
        if self._num_steps < WARMUP_STEPS:
            self._num_steps += 1
            return self._run_on_side_stream(batch)
        graph = self._graph or self._record(batch)
        for static, tensor in zip(self._batch, batch, strict=True):
            static.copy_(tensor, non_blocking=True)
        graph.replay()
        return self._loss.clone(), self._norm

    def _run_on_side_stream(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Run a step on a side stream, as CUDA requires of the steps before a recording."""
        side = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        current = torch.cuda.current_stream(self._device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            loss, norm = self._step(batch)
        current.wait_stream(side)
        for tensor in (loss, norm):
            tensor.record_stream(current)
        return loss, norm

    def _record(self, batch: Any) -> torch.cuda.CUDAGraph:
        self._batch = type(batch)(*(tensor.clone() for tensor in batch))
        self._graph = torch.cuda.CUDAGraph()
        # Other threads allocate page-locked memory meanwhile, for the next batches.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._loss, self._norm = self._step(self._batch)
        return self._graph
