"""Estimate the cost of a recipe before it is run: parameters, arithmetic, memory and time of each training stage.

Parameters, operations and memory come from one step with fake tensors, which have shapes and no content, so they take
seconds for any size. Memory is the most that is allocated at once, operation by operation; a compiler fuses operations
and needs less. Time is measured: a few steps on this machine, on random bytes.
"""

import itertools
import statistics
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from yt8m.dataset.batches import SegmentBatch, VideoBatch, join_features
from yt8m.errors import UsageError
from yt8m.features import MODALITIES, YOUTUBE8M
from yt8m.models.classifier import Classifier, ContextAwareClassifier
from yt8m.runs.memory import memory_of, read_ahead_bytes, require_memory_of_network
from yt8m.runs.recipe import Recipe
from yt8m.runs.stages import Stage, fresh_base, training_stages
from yt8m.runtime.machine import MachineConfig, make_fabric, missing_compiler
from yt8m.runtime.progress import ProgressFactory, no_progress, track
from yt8m.settings import did_you_mean
from yt8m.shards.records import row_bytes
from yt8m.training.losses import segment_loss, video_loss
from yt8m.training.optimization import make_optimizer
from yt8m.training.step import make_step, micro_batches

TIMED_STEPS = 3
SMALL_STEP = 1e11
"""Operations of a step that is quick enough to be timed on a CPU; larger batches are extrapolated."""


def random_batch(stage: Stage, size: int, num_classes: int, device: torch.device) -> VideoBatch | SegmentBatch:
    """A batch of a stage: random bytes and labels, no frame missing.

    Args:
        stage: A training stage.
        size: Examples, B.
        num_classes: C.
        device: Where to make it.
    """
    rgb, audio = (
        torch.randint(
            256, (size, stage.num_frames, row_bytes(YOUTUBE8M.bytes_of(name))), dtype=torch.uint8, device=device
        )
        for name in MODALITIES
    )
    lengths = torch.full((size,), stage.num_frames, device=device)
    labels = torch.zeros(size, num_classes, dtype=torch.bool, device=device)
    if stage.kind == "pretrain":
        return VideoBatch(rgb, audio, lengths, labels)
    numbers = torch.zeros(size, dtype=torch.int64, device=device)
    return SegmentBatch(rgb, audio, lengths, numbers, numbers.clone(), torch.ones(size, device=device), ~labels)


def batch_loss(model: nn.Module, batch: Any) -> Tensor:
    """Loss of a stage's batch; the contexts of a context-aware model are zeros."""
    if isinstance(batch, VideoBatch):
        return video_loss(model(join_features(batch), batch.lengths), batch.labels)
    context: tuple[Tensor, ...] = ()
    if (size := _context_size(model)) is not None:
        context = (torch.zeros(len(batch.lengths), size, device=batch.lengths.device),)
    logits = model(join_features(batch), batch.lengths, *context)
    return segment_loss(logits, batch.class_indices, batch.ratings, batch.negatives)


def fresh_network(stage: Stage, num_classes: int) -> Classifier:
    """The network of a stage with fresh weights, on torch's default device."""
    return stage.network(num_classes, lambda name: fresh_base(stage.recipe, name, num_classes))


def _context_size(model: nn.Module) -> int | None:
    """Size of the context vector that a model takes, whatever it is wrapped in."""
    aware = next((module for module in model.modules() if isinstance(module, ContextAwareClassifier)), None)
    return None if aware is None else aware.context_encoder.output_size


@dataclass(frozen=True)
class Cost:
    """The cost of a training stage.

    Args:
        stage: Its path, `pretrain/NAME` or `finetune/NAME`.
        parameters: Parameters of the network.
        trained: Parameters that are trained.
        examples: Videos or segments of each batch that one process has.
        frames: Most frames of an example.
        micro_batches: Parts that a process splits its examples into (`gradient_accumulation`).
        flops: Operations of a step's matrix products, of one process.
        memory: Most bytes allocated at once by one process: weights, gradients, optimizer, batch and activations.
        read_ahead: Bytes of the batches that workers read ahead.
        step_seconds: Seconds of a step, as measured.
        steps: Number of steps.
    """

    stage: str
    parameters: int
    trained: int
    examples: int
    frames: int
    micro_batches: int
    flops: float
    memory: int
    read_ahead: int
    step_seconds: float
    steps: int

    @property
    def total_seconds(self) -> float:
        """Seconds of all steps."""
        return self.step_seconds * self.steps

    def micro_batches_to_fit(self, available: int) -> int:
        """Value of `training.gradient_accumulation` with which a stage needs no more than the memory available.

        Weights, gradients and moments, 16 bytes per trained parameter, stay; the rest shrinks with the micro-batch.
        """
        fixed = 4 * self.parameters + 12 * self.trained
        parts = (self.memory - fixed) / max(available - fixed, 1) * self.micro_batches
        return next((n for n in range(1, self.examples) if self.examples % n == 0 and n >= parts), self.examples)


@dataclass(frozen=True)
class Estimate:
    """The cost of a recipe on this machine.

    Args:
        costs: Of each training stage.
        device: The device that steps were timed on, for people.
        processes: Processes that share each batch.
        available_memory: Bytes of memory that the device has; None where unknown.
    """

    costs: list[Cost]
    device: str
    processes: int
    available_memory: int | None


class _LiveMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that are alive, and the most there were."""

    def __init__(self, held: Iterator[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive = self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()
        for tensor in held:
            self._count(tensor)

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self._known:
            self._known.add(storage)
            size = storage.nbytes()
            self.alive += size
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self._release, size)

    def _release(self, size: int) -> None:
        self.alive -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._count(tensor)
        return made


def arithmetic(stage: Stage, examples: int, num_classes: int, device: torch.device) -> tuple[int, int, float, int]:
    """Do one step with fake tensors.

    Args:
        stage: A training stage.
        examples: Videos or segments in a batch.
        num_classes: C.
        device: Device of the tensors; on a CPU layers work block by block and need less memory.

    Returns:
        Parameters, trained parameters, operations of the matrix products, and most bytes allocated at once.
    """
    with FakeTensorMode():
        with device:
            model = fresh_network(stage, num_classes).train()
        batch = random_batch(stage, examples, num_classes, device)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # AdamW keeps two moments of each trained parameter.
        moments = [torch.empty_like(parameter) for parameter in [*trained, *trained]]
        held = [*model.parameters(), *model.buffers(), *batch, *moments]
        memory, flops = _LiveMemory(iter(held)), FlopCounterMode(display=False)
        with memory, flops:
            for micro_batch in micro_batches(batch, stage.config.training.gradient_accumulation):
                batch_loss(model, micro_batch).backward()  # type: ignore[no-untyped-call]
    return (
        sum(parameter.numel() for parameter in model.parameters()),
        sum(parameter.numel() for parameter in trained),
        float(flops.get_total_flops()),
        memory.peak,
    )


@dataclass(frozen=True)
class Timer:
    """Times training steps on this machine.

    Args:
        fabric: Launched, one process, on the device to time.
        machine: Whether steps are compiled.
        num_classes: C.
    """

    fabric: Fabric
    machine: MachineConfig
    num_classes: int

    def seconds(self, stage: Stage, examples: int, flops: float) -> float:
        """Seconds of a step, the median of a few.

        Args:
            stage: A training stage.
            examples: Videos or segments in a batch.
            flops: Operations of a step. Where they are many for a CPU, two smaller batches are timed, and the time per
                example and per step extrapolated from them.
        """
        parts = stage.config.training.gradient_accumulation
        small = int(examples * SMALL_STEP / max(flops, 1)) // parts * parts
        if self.fabric.device.type != "cpu" or 2 * small >= examples:
            return self._time(stage, examples)
        small = max(small, parts)
        one, two = (self._time(stage, size) for size in (small, 2 * small))
        return max(two - one, 0.0) * (examples / small - 1) + one

    def _time(self, stage: Stage, examples: int) -> float:
        fabric, machine, training = self.fabric, self.machine, stage.config.training
        with fabric.device:
            model = fresh_network(stage, self.num_classes).train()
        optimizer = make_optimizer(model, training)
        network: Any = torch.compile(model) if machine.compiles(fabric.device) else model
        wrapped, optimizer = fabric.setup(network, optimizer)
        step = make_step(fabric, wrapped, optimizer, batch_loss, training, 0, machine)
        batch = random_batch(stage, examples, self.num_classes, fabric.device)
        # The first steps compile, record a CUDA graph, and allocate what is allocated at first use.
        on_gpu = fabric.device.type == "cuda"
        warm_up, timed = (6, 30) if on_gpu else (1, TIMED_STEPS)
        ends = []
        for number in range(warm_up + timed):
            loss, _ = step(batch, number)
            if not on_gpu or number + 1 in (warm_up, warm_up + timed):
                float(loss)  # waits for the step; otherwise a GPU starts the next one meanwhile, as in training
                ends.append((number, time.perf_counter()))
        if on_gpu:
            return (ends[1][1] - ends[0][1]) / timed
        return statistics.median(after[1] - before[1] for before, after in itertools.pairwise(ends))


def estimate(
    recipe: Recipe,
    num_classes: int,
    only: str | None = None,
    progress: ProgressFactory = no_progress,
    make_timer: Callable[[Fabric, MachineConfig, int], Timer] = Timer,
) -> Estimate:
    """Estimate the cost of a recipe's training stages; those that differ only in name and steps are timed once.

    Args:
        recipe: The recipe.
        num_classes: C.
        only: A kind of stage ("pretrain", "finetune") or one stage ("pretrain/dbof"); all where None.
        progress: Reports stages done.
        make_timer: Makes what times the steps.

    Raises:
        UsageError: The recipe trains no such stage, or the machine lacks the device, or the memory for a network.
    """
    all_stages = training_stages(recipe)
    stages = [stage for stage in all_stages if only in (None, stage.path, stage.kind)]
    if not stages:
        raise UsageError(
            f"The recipe trains no stage {only!r}{did_you_mean(str(only), [stage.path for stage in all_stages])}."
        )
    machine = recipe.machine
    fabric = make_fabric(machine.model_copy(update={"devices": 1, "num_nodes": 1}))
    timer = make_timer(fabric, machine, num_classes)
    processes = machine.devices * machine.num_nodes
    known: dict[str, tuple[int, int, float, int, float]] = {}
    costs = []
    for stage in track(stages, "estimate", progress):
        training = stage.config.training
        examples = max(1, training.batch_size // processes)
        with torch.device("meta"):
            network = fresh_network(stage, num_classes)
        key = repr((network, stage.kind, examples, stage.num_frames, training.gradient_accumulation))
        if key not in known:
            require_memory_of_network(stage, num_classes, fabric.device)
            counts = arithmetic(stage, examples, num_classes, fabric.device)
            known[key] = (*counts, timer.seconds(stage, examples, counts[2]))
        parameters, trained, flops, memory, seconds = known[key]
        costs.append(
            Cost(
                stage=stage.path,
                parameters=parameters,
                trained=trained,
                examples=examples,
                frames=stage.num_frames,
                micro_batches=training.gradient_accumulation,
                flops=flops,
                memory=memory,
                read_ahead=read_ahead_bytes(machine, examples, stage.num_frames),
                step_seconds=seconds,
                steps=training.steps,
            )
        )
    return Estimate(costs, _device_name(fabric, machine), processes, memory_of(fabric.device))


def _device_name(fabric: Fabric, machine: MachineConfig) -> str:
    """The device that steps are timed on, its precision, and whether they are compiled."""
    if fabric.device.type == "cuda":
        name = torch.cuda.get_device_name(fabric.device)
    else:
        name = f"{torch.get_num_threads()} threads of this CPU"
    compiled = ", compiled" if machine.compiles(fabric.device) else ""
    lacks = f", not compiled for lack of a {missing_compiler(fabric.device)}"
    return f"{name}, {machine.precision}{lacks if machine.uncompiled_note(fabric.device) else compiled}"
