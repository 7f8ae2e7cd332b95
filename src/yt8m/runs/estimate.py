"""What a recipe will take, before it is run: parameters, arithmetic, memory and time of each stage.

Parameters, operations and memory are found by doing one step with fake tensors, which have shapes and no content, so
they take seconds for any size. Memory is what is alive at once, operation by operation; a compiler fuses them and takes
less. Time is measured: a few steps on this machine, on random bytes.
"""

from __future__ import annotations

import itertools
import os
import statistics
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from yt8m.dataset.batches import SegmentBatch, VideoBatch
from yt8m.dataset.frames import AUDIO_ROW, RGB_ROW
from yt8m.dataset.read_ahead import BATCHES_AHEAD
from yt8m.models.classifier import (
    Classifier,
    ContextAgnosticClassifier,
    ContextAgnosticClassifierConfig,
    ContextAwareClassifier,
    VideoClassifier,
    VideoClassifierConfig,
)
from yt8m.models.saved import CONFIG_NAME, read_description
from yt8m.runs.recipe import AgnosticModelConfig, Recipe, SegmentModelConfig
from yt8m.runtime.machine import MachineConfig
from yt8m.settings import validated
from yt8m.shards.records import SEGMENT_SECONDS
from yt8m.training.loop import TrainingConfig, parts_of, stepper
from yt8m.training.losses import segment_loss, video_loss
from yt8m.training.optimization import make_optimizer

TIMED_STEPS = 3
SMALL_STEP = 1e11
"""Operations of a step that is quick enough to be timed on a CPU; larger batches are extrapolated."""


@dataclass(frozen=True)
class Stage:
    """A training stage, as far as its cost goes.

    Args:
        name: As `yt8m run --only` names it.
        build: Makes the network with fresh weights on the current default device.
        training: Steps and batches.
        num_frames: Frames of an example at most.
        num_classes: C.
    """

    name: str
    build: Callable[[], Classifier]
    training: TrainingConfig
    num_frames: int
    num_classes: int

    @property
    def kind(self) -> str:
        """`pretrain` or `finetune`."""
        return self.name.split("/")[0]

    def batch(self, size: int, device: torch.device) -> VideoBatch | SegmentBatch:
        """A batch of random bytes and labels, no frame missing."""
        rgb, audio = (
            torch.randint(256, (size, self.num_frames, width), dtype=torch.uint8, device=device)
            for width in (RGB_ROW, AUDIO_ROW)
        )
        lengths = torch.full((size,), self.num_frames, device=device)
        marks = torch.zeros(size, self.num_classes, dtype=torch.bool, device=device)
        if self.kind == "pretrain":
            return VideoBatch(rgb, audio, lengths, marks)
        numbers = torch.zeros(size, dtype=torch.int64, device=device)
        return SegmentBatch(rgb, audio, lengths, numbers, numbers.clone(), torch.ones(size, device=device), ~marks)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The stage's loss; a context-aware model's contexts are zeros."""
        if isinstance(batch, VideoBatch):
            return video_loss(model(batch.frames, batch.lengths), batch.labels)
        context: tuple[Tensor, ...] = ()
        if (size := _context_size(model)) is not None:
            context = (torch.zeros(len(batch.lengths), size, device=batch.lengths.device),)
        logits = model(batch.frames, batch.lengths, *context)
        return segment_loss(logits, batch.class_indices, batch.ratings, batch.negatives)


def _context_size(model: nn.Module) -> int | None:
    """Size of the context vector that a model takes, whatever it is wrapped in."""
    aware = next((module for module in model.modules() if isinstance(module, ContextAwareClassifier)), None)
    return None if aware is None else aware.context_encoder.output_size


@dataclass(frozen=True)
class Cost:
    """What a stage takes.

    Args:
        stage: Which.
        parameters: Of the whole network.
        trained: Those of them that are trained.
        examples: Videos or segments that a process has of each batch.
        flops: Operations of a step's matrix products, of one process.
        memory: Bytes alive at once at most, of one process: weights, gradients, optimizer, batch and activations.
        ahead: Bytes of the batches that workers read ahead.
        seconds: Of a step, as measured.
    """

    stage: Stage
    parameters: int
    trained: int
    examples: int
    flops: float
    memory: int
    ahead: int
    seconds: float

    @property
    def total_seconds(self) -> float:
        """Of all steps."""
        return self.seconds * self.stage.training.steps

    def parts_to_fit(self, available: int) -> int:
        """Into how many parts a batch would have to be taken (`training.gradient_accumulation`) to need no more than this.

        Weights, gradients and moments, 16 bytes a trained parameter, stay; what is beyond shrinks with the part.
        """
        fixed = 4 * self.parameters + 12 * self.trained
        parts = (self.memory - fixed) / max(available - fixed, 1) * self.stage.training.gradient_accumulation
        return next((n for n in range(1, self.examples) if self.examples % n == 0 and n >= parts), self.examples)


def stages(recipe: Recipe, num_classes: int) -> list[Stage]:
    """The training stages of a recipe, in order."""
    found = []
    for name, base in recipe.base_models.items():
        frames = base.frames_per_video or base.classifier.encoder.max_frames
        found.append(
            Stage(f"pretrain/{name}", _video(base.classifier, num_classes), base.training, frames, num_classes)
        )
    for name, model in recipe.segment_models.items():
        frames = SEGMENT_SECONDS + 2 * model.margin_frames
        build = _segment(recipe, model, num_classes)
        found.append(Stage(f"finetune/{name}", build, model.training, frames, num_classes))
    return found


def _video(config: VideoClassifierConfig, num_classes: int) -> Callable[[], VideoClassifier]:
    return lambda: VideoClassifier(config, num_classes)


def _base(recipe: Recipe, name: str) -> VideoClassifierConfig:
    """Settings of a base model, to be trained or trained already."""
    if name in recipe.base_models:
        return recipe.base_models[name].classifier
    folder = Path(recipe.trained_models[name])
    return validated(VideoClassifierConfig, read_description(folder).config, f"{folder / CONFIG_NAME}, config")


def _segment(recipe: Recipe, model: SegmentModelConfig, num_classes: int) -> Callable[[], Classifier]:
    if isinstance(model, AgnosticModelConfig):
        video = _base(recipe, model.base)
        config = ContextAgnosticClassifierConfig(
            encoder=video.encoder, mixture=video.mixture, margin_frames=model.margin_frames
        )
        return lambda: ContextAgnosticClassifier(config, num_classes)

    with torch.device("meta"):
        bases = [_video(_base(recipe, name), num_classes)() for name in (model.context, model.segment)]
        aware = ContextAwareClassifier.from_video_classifiers(
            *bases, fusion=model.fusion, mixture=model.mixture, margin_frames=model.margin_frames
        )
    return lambda: ContextAwareClassifier(aware.config, num_classes)


class _LiveMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that are alive, and the most there were."""

    def __init__(self, held: Iterator[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive = self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()
        for tensor in held:
            self._meet(tensor)

    def _meet(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self._known:
            self._known.add(storage)
            size = storage.nbytes()
            self.alive += size
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self._leave, size)

    def _leave(self, size: int) -> None:
        self.alive -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._meet(tensor)
        return made


def arithmetic(stage: Stage, examples: int, device: torch.device) -> tuple[int, int, float, int]:
    """Do one step with fake tensors.

    Args:
        stage: What is trained.
        examples: Videos or segments in a batch.
        device: Where they would lie; a CPU goes block by block and needs less memory.

    Returns:
        Parameters, trained parameters, operations of the matrix products, and bytes alive at once at most.
    """
    with FakeTensorMode():
        with device:
            model = stage.build().train()
        batch = stage.batch(examples, device)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # AdamW keeps two moments of each trained parameter.
        moments = [torch.empty_like(parameter) for parameter in [*trained, *trained]]
        held = [*model.parameters(), *model.buffers(), *batch, *moments]
        memory, flops = _LiveMemory(iter(held)), FlopCounterMode(display=False)
        with memory, flops:
            for part in parts_of(batch, stage.training.gradient_accumulation):
                stage.loss(model, part).backward()  # type: ignore[no-untyped-call]
    return (
        sum(parameter.numel() for parameter in model.parameters()),
        sum(parameter.numel() for parameter in trained),
        float(flops.get_total_flops()),
        memory.peak,
    )


def seconds_of_step(fabric: Fabric, machine: MachineConfig, stage: Stage, examples: int, flops: float) -> float:
    """Time a step on this machine.

    Args:
        fabric: Launched.
        machine: Whether it is compiled.
        stage: What is trained.
        examples: Videos or segments in a batch.
        flops: Operations of a step; where they are many for a CPU, two smaller batches are timed, and what the step
            takes for each example is told apart from what it takes anyway.

    Returns:
        Seconds, the median of a few steps.
    """
    accumulate = stage.training.gradient_accumulation
    small = int(examples * SMALL_STEP / max(flops, 1)) // accumulate * accumulate
    if fabric.device.type != "cpu" or 2 * small >= examples:
        return _timed(fabric, machine, stage, examples)
    small = max(small, accumulate)
    one, two = (_timed(fabric, machine, stage, size) for size in (small, 2 * small))
    return max(two - one, 0.0) * (examples / small - 1) + one


def _timed(fabric: Fabric, machine: MachineConfig, stage: Stage, examples: int) -> float:
    with fabric.device:
        model = stage.build().train()
    optimizer = make_optimizer(model, stage.training)
    network: Any = torch.compile(model) if machine.compiles(fabric.device) else model
    wrapped, optimizer = fabric.setup(network, optimizer)
    step = stepper(fabric, wrapped, optimizer, stage.loss, stage.training, 0, machine)
    batch = stage.batch(examples, fabric.device)
    # The first steps compile, record, and make what is made at first use.
    on_gpu = fabric.device.type == "cuda"
    warm_up, timed = (6, 30) if on_gpu else (1, TIMED_STEPS)
    ends = []
    for number in range(warm_up + timed):
        loss, _ = step(batch, number)
        if not on_gpu or number + 1 in (warm_up, warm_up + timed):
            float(loss)  # waits for the step; a GPU goes on to the next meanwhile, as in training
            ends.append((number, time.perf_counter()))
    if on_gpu:
        return (ends[1][1] - ends[0][1]) / timed
    return statistics.median(after[1] - before[1] for before, after in itertools.pairwise(ends))


def available_memory(device: torch.device) -> int | None:
    """Bytes of memory that a device has, free or not; None where nobody says."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def device_in_words(fabric: Fabric, machine: MachineConfig) -> str:
    """Say where and how steps were timed."""
    if fabric.device.type == "cuda":
        name = torch.cuda.get_device_name(fabric.device)
    else:
        name = f"{torch.get_num_threads()} threads of this CPU"
    return f"{name}, {machine.precision}{', compiled' if machine.compiles(fabric.device) else ''}"


def costs(chosen: Sequence[Stage], machine: MachineConfig, fabric: Fabric) -> Iterator[Cost]:
    """Find the cost of training stages; those that differ in their names and steps only are timed once.

    Args:
        chosen: The stages.
        machine: How many processes share a batch, and how.
        fabric: One process, on the device that is timed.
    """
    processes = machine.devices * machine.num_nodes
    timed: dict[str, tuple[int, int, float, int, float]] = {}
    for stage in chosen:
        examples = max(1, stage.training.batch_size // processes)
        with torch.device("meta"):
            kind = repr((stage.build(), stage.kind, examples, stage.num_frames, stage.training.gradient_accumulation))
        if kind not in timed:
            parameters, trained, flops, memory = arithmetic(stage, examples, fabric.device)
            seconds = seconds_of_step(fabric, machine, stage, examples, flops)
            timed[kind] = (parameters, trained, flops, memory, seconds)
        parameters, trained, flops, memory, seconds = timed[kind]
        slots = machine.num_workers * BATCHES_AHEAD + 2 if machine.num_workers else 1
        ahead = slots * examples * stage.num_frames * (RGB_ROW + AUDIO_ROW)
        yield Cost(stage, parameters, trained, examples, flops, memory, ahead, seconds)
