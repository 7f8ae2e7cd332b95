"""A training step (forward, loss, backward, clipping, AdamW): ours against a plain implementation of the paper's formulas.

The baseline is `plain_models.py`: the same networks, eager, float32, with the same fused AdamW; on CUDA with and without TF32.
Ours are the steps of the training loop (`make_step`) through Fabric, on CUDA compiled and recorded as a graph. Sizes are the
paper's, 1,000 classes:

    dbof-3           video classifier, 128 videos of 150 frames
    nextvlad-2       video classifier, 48 videos of 150 frames
    agnostic         nextvlad-2 fine-tuned, 128 segments of 11 frames
    agnostic-dbof    dbof-3 fine-tuned, 128 segments of 11 frames
    aware            context dbof-3, segments nextvlad-2, 128 segments of 11 frames beside 150 of their videos

Ours computes the context of each video once, before training; the baseline encodes it in every step ("context in each
step"), and a second row compares the trained part alone ("vectors given"). NeXtVLAD has two baselines: every residual
computed, as in the paper's equations, and the sums as a matrix product, as in its authors' TensorFlow code.

Each way runs in its own process and the ways alternate (--in-process: one process per case, one way after the other). Figures
are medians over the rounds, ratios included. Before timing, the first losses of all ways are compared, without dropout. Ten
batches of random bytes are in memory (on the device, for CUDA), from videos of 120 to 300 frames before the crop; reading
is not measured. Memory is the peak of a process without what it used before model and data were made; on CUDA, the memory
that torch allocated. "Total" includes the libraries, on CUDA the memory that torch's allocator reserves. On CPUs, waiting
threads sleep (OMP_WAIT_POLICY=PASSIVE, for all ways): by default they spin, and with other load on the cores a step then
takes two (baseline) to three (ours) times as long.

TFLOP/s: the matrix products of the plain formulas (torch's FlopCounterMode; their residuals are not matrix products) divided
by the seconds of a way, so that all ways of a case did the same work. Elements and GB moved: the elements that all other
operations of a step write or reduce, and the bytes that all operations read and write, if each accesses memory (eager ways
only; a compiler fuses operations). Bound: the longer of two times, that of the required operations without padding and in
the cheapest order of products (`needed_flops`), at the speed of a large matrix product in the same precision, and that of
the required bytes (`needed_bytes`), at the speed of a large copy.

    python benchmarks/training.py                              # about 15 minutes on a CPU
    python benchmarks/training.py --device cuda --json build/training.jsonl
    python benchmarks/training.py --case agnostic --rounds 5
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import plain_models as plain
from measuring import in_new_process, memory, new_process
from yt8m.dataset.batches import SegmentBatch, VideoBatch, context_frames, join_features
from yt8m.features import YOUTUBE8M
from yt8m.models.classifier import Classifier, ContextAgnosticClassifier, ContextAwareClassifier, VideoClassifier
from yt8m.models.config import (
    ContextAgnosticClassifierConfig,
    ContextAwareClassifierConfig,
    DBoFConfig,
    NeXtVLADConfig,
    VideoClassifierConfig,
)
from yt8m.runtime.machine import MachineConfig, make_fabric
from yt8m.shards.records import row_bytes
from yt8m.training.config import TrainingConfig
from yt8m.training.losses import segment_loss, video_loss
from yt8m.training.optimization import make_optimizer
from yt8m.training.step import make_step
from yt8m.training.tasks import ContextVectors

RGB_SIZE, AUDIO_SIZE = YOUTUBE8M.bytes_of("rgb"), YOUTUBE8M.bytes_of("audio")
FRAME_SIZE = YOUTUBE8M.frame_bytes
RGB_ROW, AUDIO_ROW = row_bytes(RGB_SIZE), row_bytes(AUDIO_SIZE)
CLASSES = 1000
EXPERTS = 4
OUTPUT = 2048
WINDOW = 11
SAMPLED = 150
NUM_BATCHES = 10
CONTEXT_BATCHES = 2
"""Batches with videos of their own; the others use the same contexts again."""
STEPS = 100_000
MARGIN_OF_MEMORY = 1.2


@dataclass(frozen=True)
class Case:
    """A training case: `kind` of classifier, its (segment) encoder, B videos or segments of at most T frames."""

    name: str
    kind: str
    encoder: str
    batch: int
    frames: int

    @property
    def rate(self) -> float:
        """Peak learning rate."""
        return 3e-4 if self.kind == "video" else 2e-4

    @property
    def decay(self) -> float:
        """Weight decay."""
        return 0.1 if self.kind == "video" else 0.02


CASES = [
    Case("dbof-3", "video", "dbof", 128, SAMPLED),
    Case("nextvlad-2", "video", "nextvlad", 48, SAMPLED),
    Case("agnostic", "agnostic", "nextvlad", 128, WINDOW),
    Case("agnostic-dbof", "agnostic", "dbof", 128, WINDOW),
    Case("aware", "aware", "nextvlad", 128, WINDOW),
]


@dataclass(frozen=True)
class Way:
    """A way to compute a case: ours or the baseline, and its precision."""

    name: str
    ours: bool
    precision: str = "32-true"
    compiled: bool = False
    matrix_product: bool = False
    """Baseline NeXtVLAD: sums as a matrix product instead of every residual."""
    encodes_context: bool = False
    """Baseline of the context-aware classifier: context in each step."""


def ways_of(case: Case, device: str, precision: str, compiled: bool) -> list[Way]:
    """Ways to compare, ours last."""
    given = ", vectors given" if case.kind == "aware" else ""
    ways = []
    if case.kind == "aware":
        ways.append(Way("plain, context in each step", ours=False, encodes_context=True))
    ways.append(Way(f"plain{given}", ours=False))
    if case.encoder == "nextvlad":
        ways.append(Way(f"plain{given}, sums as a matrix product", ours=False, matrix_product=True))
    if device == "cuda":
        ways += [
            Way(f"{way.name}, TF32", False, "tf32", False, way.matrix_product, way.encodes_context) for way in ways
        ]
        ways.append(Way("ours, TF32", ours=True, precision="tf32"))
    if device == "cpu" or precision != "32-true":
        ways.append(Way("ours" if precision == "32-true" else f"ours, {precision}", True, precision))
    if compiled:
        ways.append(Way(f"ours{'' if precision == '32-true' else f', {precision}'}, compiled", True, precision, True))
    return ways


# --------------------------------------------------------------------------------------------------- networks, batches


def our_model(case: Case) -> Classifier:
    """The classifier of a case, with the same weights at every call."""
    torch.manual_seed(0)
    encoder = DBoFConfig() if case.encoder == "dbof" else NeXtVLADConfig()
    if case.kind == "video":
        return VideoClassifier(VideoClassifierConfig(encoder=encoder), CLASSES)
    if case.kind == "agnostic":
        return ContextAgnosticClassifier(ContextAgnosticClassifierConfig(encoder=encoder), CLASSES)
    segment = encoder.model_copy(update={"cut_after_linear": True})
    return ContextAwareClassifier(
        ContextAwareClassifierConfig(context_encoder=DBoFConfig(), segment_encoder=segment), CLASSES
    )


def plain_model(case: Case, way: Way) -> nn.Module:
    """The baseline of a case, with the same weights."""
    mixture = plain.Mixture(OUTPUT, CLASSES, EXPERTS)
    if case.kind == "aware":
        model: nn.Module = plain.AwareClassifier(plain.DBoF(), plain.NeXtVLAD(cut=True), mixture)
    else:
        model = plain.VideoClassifier(plain.DBoF() if case.encoder == "dbof" else plain.NeXtVLAD(), mixture)
    model.load_state_dict(our_model(case).state_dict())
    plain.use_matrix_product(model, way.matrix_product)
    return model


def rows_of_bytes(rng: np.random.Generator, *shape: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Random rows, rgb and audio, as in shards."""
    rgb = np.frombuffer(rng.bytes(int(np.prod(shape)) * RGB_ROW), np.uint8).reshape(*shape, RGB_ROW).copy()
    audio = np.frombuffer(rng.bytes(int(np.prod(shape)) * AUDIO_ROW), np.uint8).reshape(*shape, AUDIO_ROW).copy()
    return rgb, audio


def lengths_of(case: Case, number: int) -> NDArray[np.int64]:
    """Number of frames: for a video after crop and sampling, for a segment nearly always the complete window."""
    rng = np.random.default_rng([1, number])
    if case.frames == SAMPLED:
        lengths = np.minimum(rng.integers(120, 301, case.batch) - 40, SAMPLED)
    else:
        lengths = np.where(rng.random(case.batch) < 0.01, WINDOW - 3, WINDOW)
    lengths[0] = case.frames
    return lengths


def make_batch(case: Case, number: int) -> VideoBatch | SegmentBatch:
    """A batch of random bytes and labels."""
    rng = np.random.default_rng([0, number])
    rgb, audio = (torch.from_numpy(rows) for rows in rows_of_bytes(rng, case.batch, case.frames))
    lengths = torch.from_numpy(lengths_of(case, number))
    if case.kind == "video":
        return VideoBatch(rgb, audio, lengths, torch.from_numpy(rng.random((case.batch, CLASSES)) < 0.003))
    first = number % CONTEXT_BATCHES * case.batch
    return SegmentBatch(
        rgb,
        audio,
        lengths,
        torch.arange(first, first + case.batch),
        torch.from_numpy(rng.integers(0, CLASSES, case.batch)),
        torch.from_numpy(rng.integers(0, 2, case.batch).astype(np.float32)),
        torch.from_numpy(rng.random((case.batch, CLASSES)) > 0.003),
    )


class InventedVideos:
    """Videos of random bytes that replace the `FrameReader` of `ContextVectors`.

    Args:
        num_frames: Frames of each video.
    """

    def __init__(self, num_frames: NDArray[np.int64]) -> None:
        self.num_frames = num_frames
        self.catalog = self

    def __len__(self) -> int:
        return len(self.num_frames)

    def fill(self, rgb: NDArray[np.uint8], audio: NDArray[np.uint8], rows: NDArray[np.integer], chosen: Any) -> None:
        """Write the sampled frames of some videos, followed by zeros."""
        rgb[:], audio[:] = 0, 0
        for place, (row, frames) in enumerate(zip(rows.tolist(), chosen, strict=True)):
            count = frames.stop - frames.start if isinstance(frames, slice) else len(frames)
            video = rows_of_bytes(np.random.default_rng([2, row]), count)
            rgb[place, :count], audio[place, :count] = video


def invented_videos(case: Case) -> InventedVideos:
    """The videos of a case's segments."""
    return InventedVideos(np.random.default_rng(3).integers(120, 301, CONTEXT_BATCHES * case.batch))


# ------------------------------------------------------------------------------------------------------- measurement


def _sizes(values: Any) -> list[tuple[int, int]]:
    """Elements of each tensor among some values, broadcast ones counted once, and bytes per element."""
    tensors = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
    return [
        (int(np.prod([n for n, stride in zip(t.shape, t.stride(), strict=True) if stride], dtype=np.int64)), t.itemsize)
        for t in tensors
    ]


class Traffic(TorchDispatchMode):
    """Counts the bytes that operations move if each reads its inputs from memory and writes its outputs there."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count."""
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if func.is_view or packet.__name__ in {"detach", "empty", "empty_like", "new_empty", "_unsafe_view", "item"}:
            return out
        first, others, results = _sizes(args[:1]), _sizes((args[1:], kwargs)), _sizes(out)
        self.bytes += sum(n * size for n, size in first + others + results)
        if packet not in flop_registry:
            self.elements += max(sum(n for n, _ in first), sum(n for n, _ in results))
        return out


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Turn off every dropout of a model."""
    layers = [layer for layer in model.modules() if "Dropout" in type(layer).__name__]
    shares = [layer.p for layer in layers]
    for layer in layers:
        layer.p = 0.0
    yield
    for layer, share in zip(layers, shares, strict=True):
        layer.p = share


class Trained:
    """A model in training in this process.

    Args:
        case: The model and its batches.
        way: The way to compute it.
        device: The device.
    """

    def __init__(self, case: Case, way: Way, device: str) -> None:
        self.case, self.way, self.device = case, way, torch.device(device)
        self.before = memory("VmRSS")
        self.facts: dict[str, float] = {}
        self.step_number = 0
        batches = [make_batch(case, number) for number in range(NUM_BATCHES)]
        if way.ours:
            self._set_up_ours(batches)
        else:
            self._set_up_plain(batches)
        self.facts["parameters"] = sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def _set_up_ours(self, batches: list[Any]) -> None:
        case, way = self.case, self.way
        precision = "32-true" if way.precision == "tf32" else way.precision
        machine = MachineConfig(accelerator=self.device.type, precision=precision, compile=way.compiled)  # type: ignore[arg-type]
        fabric = make_fabric(machine)
        model: Any = our_model(case).to(fabric.device)
        self.batches = [fabric.to_device(batch) for batch in batches]
        config = TrainingConfig(steps=STEPS, batch_size=case.batch, peak_lr=case.rate, weight_decay=case.decay)
        slow = list(model.segment_encoder.parameters()) if case.kind == "aware" else []
        optimizer = make_optimizer(model, config, slow)
        wrapped, optimizer = fabric.setup(torch.compile(model) if way.compiled else model, optimizer)
        wrapped.train()
        contexts: list[ContextVectors] = []
        if case.kind == "aware":
            videos: Any = invented_videos(case)
            started = time.perf_counter()
            contexts.append(ContextVectors(fabric, model, videos, np.arange(len(videos))))
            self._wait()
            self.facts["context_seconds_per_video"] = (time.perf_counter() - started) / len(videos)

        def loss_of(network: nn.Module, batch: Any) -> Tensor:
            """The loss of the tasks in `yt8m.training.tasks`."""
            logits = network(join_features(batch), batch.lengths, *(context.lookup(batch.rows) for context in contexts))
            if case.kind == "video":
                return video_loss(logits, batch.labels)
            return segment_loss(logits, batch.class_indices, batch.ratings, batch.negatives)

        steps = make_step(fabric, wrapped, optimizer, loss_of, config, 0, machine)

        def step(batch: Any, number: int) -> Tensor:
            return steps(batch, number)[0]

        def first_loss(batch: Any) -> Tensor:
            with fabric.autocast():
                return loss_of(model, batch)

        self.model, self.step, self.first_loss = model, step, first_loss

    def _set_up_plain(self, batches: list[Any]) -> None:
        case, way = self.case, self.way
        torch.set_float32_matmul_precision("high" if way.precision == "tf32" else "highest")
        model: Any = plain_model(case, way).to(self.device).train()
        optimizer = plain.adamw(model, case.rate, case.decay)
        schedule = plain.slanted(optimizer, STEPS)
        contexts: list[Any] = [None] * CONTEXT_BATCHES
        for number in range(CONTEXT_BATCHES if case.kind == "aware" else 0):
            rows = np.arange(number * case.batch, (number + 1) * case.batch)
            videos: Any = invented_videos(case)
            padded = context_frames(videos, rows, SAMPLED)
            given = (join_features(padded).to(self.device), padded.lengths.to(self.device))
            if not way.encodes_context:
                parts = zip(*(tensor.split(32) for tensor in given), strict=True)
                given = torch.cat([model.encode_context(*part) for part in parts])
            contexts[number] = given
        # Frames without the headers of a shard's rows.
        self.batches = [
            (
                join_features(batch).to(self.device),
                *(value.to(self.device) for value in batch[2:]),
                contexts[i % CONTEXT_BATCHES],
            )
            for i, batch in enumerate(batches)
        ]

        def loss_of(batch: Any) -> Tensor:
            if case.kind == "video":
                frames, lengths, labels, _ = batch
                return plain.video_loss(model(frames, lengths), labels)
            frames, lengths, _, *truth, context = batch
            if context is None:
                return plain.segment_loss(model(frames, lengths), *truth)
            if way.encodes_context:
                context = model.encode_context(*context)
            return plain.segment_loss(model(frames, lengths, context), *truth)

        def step(batch: Any, _: int) -> Tensor:
            loss = loss_of(batch)
            plain.train_step(model, optimizer, schedule, loss)
            return loss.detach()

        self.model, self.step, self.first_loss = model, step, loss_of

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _next(self) -> Tensor:
        loss: Tensor = self.step(self.batches[self.step_number % NUM_BATCHES], self.step_number)
        self.step_number += 1
        return loss

    def warm_up(self, steps: int) -> dict[str, float]:
        """Compute the first loss without dropout, then run some steps, counting one; on a CPU, reset peak memory."""
        with without_dropout(self.model), torch.no_grad():
            self.facts["first_loss"] = float(self.first_loss(self.batches[0]))
        flops, traffic = FlopCounterMode(display=False), Traffic()
        counted = not self.way.compiled
        with flops if counted else nullcontext(), traffic if counted else nullcontext():
            self._next()
        if counted:
            self.facts["matrix_flops"] = float(flops.get_total_flops())
            self.facts["elements"], self.facts["bytes_moved"] = float(traffic.elements), float(traffic.bytes)
        for _ in range(steps):
            self._next()
        self._wait()
        # On CUDA the peak is that of all steps: replaying a graph allocates no memory.
        if self.device.type == "cpu" and Path("/proc/self/clear_refs").exists():
            Path("/proc/self/clear_refs").write_text("5")
        return self.facts

    def round(self, steps: int) -> dict[str, Any]:
        """Run some steps: wall time and CPU time of each, peak memory in MiB, and the mean loss."""
        walls, processor, losses = [], [], []
        events = []
        self._wait()
        for _ in range(steps):
            wall, cpu = time.perf_counter(), time.process_time()
            if self.device.type == "cuda":
                events.append((torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)))
                events[-1][0].record()
            losses.append(self._next())
            if self.device.type == "cuda":
                events[-1][1].record()
            walls.append(time.perf_counter() - wall)
            processor.append(time.process_time() - cpu)
        self._wait()
        if events:
            walls = [start.elapsed_time(stop) / 1e3 for start, stop in events]
            peak, absolute = torch.cuda.max_memory_allocated() / 2**20, torch.cuda.max_memory_reserved() / 2**20
        else:
            absolute = memory("VmHWM")
            peak = absolute - self.before
        loss = float(torch.stack(losses).mean())
        if not np.isfinite(loss):
            raise FloatingPointError(f"the loss became {loss}")
        return {"walls": walls, "processor": processor, "peak": peak, "absolute": absolute, "loss": loss}


@cache
def trained(case: Case, way: Way, device: str) -> Trained:
    """The model of this process, shared by all rounds."""
    return Trained(case, way, device)


def warm_up(case: Case, way: Way, device: str, steps: int) -> dict[str, float]:
    """Warm up in a worker process."""
    return trained(case, way, device).warm_up(steps)


def one_round(case: Case, way: Way, device: str, steps: int) -> dict[str, Any]:
    """Run one round in a worker process."""
    return trained(case, way, device).round(steps)


def all_rounds(case: Case, way: Way, device: str, rounds: int, steps: int, warm: int) -> tuple[Any, Any]:
    """Warm up and run all rounds, then free the memory, for worker processes that measure several ways."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    model = Trained(case, way, device)
    facts = model.warm_up(warm)
    found = [model.round(steps) for _ in range(rounds)]
    del model
    gc.collect()
    torch.compiler.reset()
    if device == "cuda":
        torch.cuda.empty_cache()
    return facts, found


# -------------------------------------------------------------------------------------------------------- lower bounds


def needed_flops(case: Case, frames: int) -> float:
    """Multiplications and additions of the matrix products of a step, in their cheapest order.

    A product costs 2 forward and 4 backward per weight and row, and 2 backward if its input needs no gradient (frames).
    NeXtVLAD's products have three possible orders (see `ModalityVLAD._cheapest_order`), of which the cheapest counts.

    Args:
        case: The training case.
        frames: Valid frames in a batch.
    """
    videos = case.batch

    def product(rows: float, inputs: float, outputs: float, first: bool = False) -> float:
        return (4 if first else 6) * rows * inputs * outputs

    def gate(rows: float, channels: float, reduction: float) -> float:
        return 2 * product(rows, channels, channels / reduction)

    def vlad(size: int, clusters: int, groups: int, expansion: int) -> float:
        expanded, outputs = expansion * size, groups * (clusters + 1)
        expand = product(frames, size, expanded, first=True)
        logits = product(frames, expanded, outputs)
        sums = expand + product(frames, expanded, clusters)
        folded_logits = product(frames, size, outputs, first=True) + product(outputs, expanded, size)
        folded_sums = product(frames, size, groups * clusters, first=True) + product(videos * clusters, size, expanded)
        return min(logits + sums, folded_logits + sums, folded_logits + folded_sums)

    if case.encoder == "dbof":
        dbof = DBoFConfig()
        total = product(frames, FRAME_SIZE, dbof.hidden_size, first=True)
        total += gate(frames, dbof.hidden_size, dbof.frame_se_reduction)
        total += product(videos, 2 * dbof.hidden_size, OUTPUT) + gate(videos, OUTPUT, dbof.video_se_reduction)
    else:
        config = NeXtVLADConfig()
        clusters, groups, expansion = config.num_clusters, config.num_groups, config.expansion
        described = clusters * expansion * RGB_SIZE // groups + clusters // 2 * expansion * AUDIO_SIZE // groups
        total = vlad(RGB_SIZE, clusters, groups, expansion) + vlad(AUDIO_SIZE, clusters // 2, groups, expansion)
        total += product(videos, described, OUTPUT) + gate(videos, OUTPUT, config.se_reduction)
    if case.kind == "aware":  # its gate is after the fusion instead
        total += product(videos, 2 * OUTPUT, OUTPUT)
    return total + product(videos, OUTPUT, EXPERTS * CLASSES) + product(videos, OUTPUT, EXPERTS + 1)


def needed_bytes(case: Case, frames: int, parameters: float, precision: str) -> float:
    """Bytes that a step has to move: weights, inputs, and the activations that the backward pass needs.

    28 per trained parameter (AdamW reads weight, gradient and both moments and writes all but the gradient), the bytes of
    the frames once, and these activations written once and read once, 4 bytes each or 2 in bfloat16. DBoF: hidden channels,
    hidden units of the gate, logits of the gate (2 H + H/8 per frame). NeXtVLAD: logits of the assignment, attention and
    expanded features (3 K G/2 + 2 G + 2 D per frame). Activations per video are neglected.
    """
    if case.encoder == "dbof":
        dbof = DBoFConfig()
        kept = 2 * dbof.hidden_size + dbof.hidden_size / dbof.frame_se_reduction
    else:
        config = NeXtVLADConfig()
        kept = config.num_groups * (config.num_clusters * 1.5 + 2) + config.expansion * FRAME_SIZE
    context = case.batch * OUTPUT * 4 if case.kind == "aware" else 0
    return 28 * parameters + frames * FRAME_SIZE + context + 2 * frames * kept * (2 if "16" in precision else 4)


def device_speeds(device: str, precisions: list[str]) -> dict[str, float]:
    """FLOP/s of a large matrix product in each precision, and bytes per second of a large copy (read and written)."""
    elements = 1 << 29 if device == "cuda" else 1 << 27

    def best(work: Callable[[], object]) -> float:
        seconds = []
        for _ in range(6):
            if device == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
            for _ in range(10 if device == "cuda" else 1):
                work()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append((time.perf_counter() - started) / (10 if device == "cuda" else 1))
        return min(seconds)

    speeds = {}
    for precision in precisions:
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        # CPUs without bfloat16 instructions take minutes for a large product.
        size = 8192 if device == "cuda" else 4096 if precision == "32-true" else 512
        dtype = torch.bfloat16 if "bf16" in precision else torch.float16 if "16" in precision else torch.float32
        a, b, c = (torch.randn(size, size, device=device).to(dtype) for _ in range(3))
        speeds[precision] = 2 * size**3 / best(lambda a=a, b=b, c=c: torch.mm(a, b, out=c))  # type: ignore[misc]
    source, target = (torch.ones(elements, device=device) for _ in range(2))
    speeds["copy"] = 8 * elements / best(lambda: target.copy_(source))
    return speeds


# -------------------------------------------------------------------------------------------------------------- report


@dataclass
class Row:
    """Measurements of one way of a case."""

    case: Case
    way: Way
    facts: dict[str, float] = field(default_factory=dict)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""

    def each(self, what: str) -> list[float]:
        """Median over the steps of each round, or its memory."""
        values = [found[what] for found in self.rounds]
        return [statistics.median(value) if isinstance(value, list) else value for value in values]

    def median(self, what: str) -> float:
        """Median over the rounds."""
        return statistics.median(self.each(what))


def available_mib() -> float:
    """Available memory in MiB, as reported by Linux."""
    info = Path("/proc/meminfo")
    if not info.is_file():
        return float("inf")
    line = next(line for line in info.read_text().splitlines() if line.startswith("MemAvailable:"))
    return int(line.split()[1]) / 1024


def fitting(case: Case, device: str) -> Case:
    """The case, with a smaller batch if the baseline would not fit in this machine's memory."""
    if case.encoder != "nextvlad" or device != "cpu":
        return case
    config = NeXtVLADConfig()
    # Three tensors (B, T, G, K, J) of rgb are allocated at once; those of audio have a sixteenth of the size.
    tensor = 4 * case.frames * config.num_clusters * config.expansion * RGB_SIZE / 2**20
    batch = case.batch
    while batch > 8 and 3.2 * tensor * batch * MARGIN_OF_MEMORY + 2000 > available_mib():
        batch //= 3 if batch % 3 == 0 else 2
    return replace(case, batch=batch)


def measure(case: Case, ways: list[Way], device: str, rounds: int, steps: int, warm: int) -> list[Row]:
    """Alternate between the ways. The error of a way that fails is recorded, and the others continue."""
    rows = [Row(case, way) for way in ways]
    pools: dict[str, ProcessPoolExecutor] = {way.name: new_process() for way in ways}

    def start(row: Row, work: Callable[..., Any], count: int) -> Future[Any]:
        return pools[row.way.name].submit(work, case, row.way, device, count)

    def outcome(row: Row, running: Future[Any]) -> Any:
        try:
            return running.result()
        except Exception as error:  # any error: the other ways continue
            row.error = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            print(f"{case.name}, {row.way.name}: {row.error}", flush=True)
            pools[row.way.name].shutdown()
            return None

    if device == "cuda":  # in parallel: nothing is timed yet, and starting takes longer than training
        for row, running in [(row, start(row, warm_up, warm)) for row in rows]:
            row.facts = outcome(row, running) or {}
    else:
        for row in rows:
            row.facts = outcome(row, start(row, warm_up, warm)) or {}
    compare_first_losses(rows)
    for _ in range(rounds):
        for row in rows:
            if not row.error:
                found = outcome(row, start(row, one_round, steps))
                row.rounds += [found] if found else []
    for pool in pools.values():
        pool.shutdown()
    return rows


def measure_in_one_process(case: Case, ways: list[Way], device: str, rounds: int, steps: int, warm: int) -> list[Row]:
    """Run the ways one after the other in one process, which avoids its start-up time."""
    rows = [Row(case, way) for way in ways]
    pool = new_process()
    for row in rows:
        try:
            row.facts, row.rounds = pool.submit(all_rounds, case, row.way, device, rounds, steps, warm).result()
        except Exception as error:  # any error: the other ways continue
            row.error = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            print(f"{case.name}, {row.way.name}: {row.error}", flush=True)
            pool.shutdown()
            pool = new_process()
    pool.shutdown()
    compare_first_losses(rows)
    return rows


def compare_first_losses(rows: list[Row]) -> None:
    """Record an error for every way whose first loss differs from that of the first way."""
    good = [row for row in rows if not row.error]
    for row in good:
        expected, found = good[0].facts["first_loss"], row.facts["first_loss"]
        tolerance = 1e-4 if row.way.precision == "32-true" and good[0].way.precision == "32-true" else 2e-2
        if not abs(found - expected) <= tolerance * abs(expected):
            row.error = f"first loss {found:.6f} instead of {expected:.6f} ({good[0].way.name})"
            print(f"{row.case.name}, {row.way.name}: {row.error}", flush=True)


HEAD = (
    "| case | way | seconds per step | CPU seconds | videos/s | peak MiB (total) | TFLOP/s | time / ours "
    "| memory / ours |\n|---|---|---|---|---|---|---|---|---|"
)
FLOOR_HEAD = (
    "| case | way | needed TFLOP | matrix TFLOP | other Gelements | needed GB | GB moved | bound, seconds | limited by "
    "| step / bound |\n|---|---|---|---|---|---|---|---|---|---|"
)


def table_lines(rows: list[Row], ours: Row | None) -> list[str]:
    """Rows of a case in the table of times."""
    formulas = next((row.facts["matrix_flops"] for row in rows if row.facts and not row.way.encodes_context), None)
    lines = []
    for row in rows:
        name = f"| {row.case.name} ({row.case.batch} x {row.case.frames}) | {row.way.name} "
        if row.error or not row.rounds:
            lines.append(f"{name}| {row.error or 'not run'} |" + " |" * 6)
            continue
        walls, seconds = row.each("walls"), row.median("walls")
        speed = f"{formulas / seconds / 1e12:.3f}" if formulas else ""
        ratios = ["", ""]
        if ours is not None and ours is not row:
            ratios = [
                f"{statistics.median(a / b for a, b in zip(row.each(what), ours.each(what), strict=False)):.2f}"
                for what in ("walls", "peak")
            ]
        lines.append(
            f"{name}| {seconds:.4g} ({min(walls):.4g} to {max(walls):.4g}) | {row.median('processor'):.4g} "
            f"| {row.case.batch / seconds:,.0f} | {max(row.each('peak')):,.0f} ({max(row.each('absolute')):,.0f}) "
            f"| {speed} | {ratios[0]} | {ratios[1]} |"
        )
    return lines


def floor_lines(rows: list[Row], speeds: dict[str, float]) -> list[str]:
    """Rows of a case in the table of lower bounds."""
    lines = []
    for row in rows:
        if row.error or not row.rounds:
            continue
        frames = int(np.mean([lengths_of(row.case, number).sum() for number in range(NUM_BATCHES)]))
        flops = needed_flops(row.case, frames)
        moved = needed_bytes(row.case, frames, row.facts["parameters"], row.way.precision)
        by_flops, by_bytes = flops / speeds[row.way.precision], moved / speeds["copy"]
        floor = max(by_flops, by_bytes)
        counts = [
            f"{row.facts[what] / unit:.4g}" if what in row.facts else ""
            for what, unit in (("matrix_flops", 1e12), ("elements", 1e9), ("bytes_moved", 1e9))
        ]
        lines.append(
            f"| {row.case.name} | {row.way.name} | {flops / 1e12:.4g} | {counts[0]} | {counts[1]} | {moved / 1e9:.3g} "
            f"| {counts[2]} | {floor:.4g} | {'products' if by_flops > by_bytes else 'memory'} "
            f"| {row.median('walls') / floor:.2f} |"
        )
    return lines


def described(device: str) -> str:
    """Device and versions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    if device == "cuda":
        name = f"{name} and one {in_new_process(torch.cuda.get_device_name)}"
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores of {name}, Python {platform.python_version()}, "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    )


def main() -> None:
    """Parse, measure, print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [case.name for case in CASES]
    parser.add_argument("--case", nargs="+", choices=names, default=names, help="cases to measure")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="steps per round; default 3, on CUDA 30")
    parser.add_argument("--batch-scale", type=float, default=1.0, help="multiplies the batches")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--precision", choices=["32-true", "bf16-mixed"], help="precision of ours; on CUDA bf16-mixed by default"
    )
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="also measure ours compiled; default on CUDA"
    )
    parser.add_argument("--in-process", action="store_true", help="one process per case, its ways one after the other")
    parser.add_argument("--json", type=Path, help="file to append one line per case and way to")
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read by OpenMP in the measuring processes
    on_cuda = options.device == "cuda"
    precision = options.precision or ("bf16-mixed" if on_cuda else "32-true")
    compiled = on_cuda if options.compile is None else options.compile
    steps = options.steps or (30 if on_cuda else 3)
    started = time.monotonic()
    print(described(options.device), flush=True)
    precisions = sorted({"32-true", precision, *(["tf32"] if on_cuda else [])})
    speeds = in_new_process(device_speeds, options.device, precisions)
    shown = ", ".join(f"{speeds[name] / 1e12:.3g} TFLOP/s {name}" for name in precisions)
    print(f"a large matrix product: {shown}; a large copy: {speeds['copy'] / 1e9:.3g} GB/s")
    times, floors = [HEAD], [FLOOR_HEAD]
    for case in CASES:
        if case.name not in options.case:
            continue
        scaled = replace(case, batch=max(2, round(case.batch * options.batch_scale)))
        sized = fitting(scaled, options.device)
        if sized.batch != scaled.batch:
            print(f"{case.name}: batch {sized.batch} instead of {scaled.batch}, {available_mib():,.0f} MiB available")
        ways = ways_of(sized, options.device, precision, compiled)
        work = measure_in_one_process if options.in_process else measure
        rows = work(sized, ways, options.device, options.rounds, steps, 10 if on_cuda else 0)
        good = [row for row in rows if row.way.ours and row.rounds and not row.error]
        # The default of the training loop: compiled on CUDA, eager elsewhere.
        ours = good[-1 if on_cuda else 0] if good else None
        times += table_lines(rows, ours)
        floors += floor_lines(rows, speeds)
        print("\n".join(["", HEAD, *table_lines(rows, ours), "", FLOOR_HEAD, *floor_lines(rows, speeds)]), flush=True)
        for row in rows:
            if "context_seconds_per_video" in row.facts:
                print(
                    f"{row.way.name}: {row.facts['context_seconds_per_video'] * 1e3:.1f} ms per video for the context, once"
                )
            if options.json:
                with options.json.open("a") as file:
                    file.write(json.dumps({**asdict(row), "device": options.device, "speeds": speeds}) + "\n")
    print("\n".join(["", "All tables:", "", *times, "", *floors]))
    print(f"\n{time.monotonic() - started:.0f} seconds in total")


if __name__ == "__main__":
    main()
