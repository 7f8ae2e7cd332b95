"""Prediction with the paper's 12 models at full size on generated videos: one pass against one segment at a time.

Four ways to compute the same probabilities, each in its own process:

- *one pass*: `yt8m.prediction`, merged and ranked while it streams;
- *the loop of 2019*: batches of 32 segments, as in its code. Each segment has its window and, for a context-aware model, its
  complete video (cropped, at most L_max frames), which is encoded again for every segment and every model. Plain networks
  (`plain_models.py`), NeXtVLAD with the tensor (B, T, K, G, J), as in the code of 2019;
- *the loop of 2019, NeXtVLAD as a matrix product*: the same without that tensor;
- *the loop of 2019, our networks*: the same loop with the networks used in training, which isolates the effect of the pass.

Weights and running statistics are random. Videos have 160 to 300 frames, 38 segments on average, as in the real test set. The
ways must agree on the segments that all of them predict.

    python benchmarks/predicting.py                             # 2 CPU cores: 15 to 20 minutes
    python benchmarks/predicting.py --device cuda --precision bf16-mixed --segments 65536
"""

from __future__ import annotations

import argparse
import gc
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import plain_models as plain
from measuring import memory, new_process
from yt8m.dataset.batches import context_frames, join_features, read_padded
from yt8m.dataset.frames import FrameReader
from yt8m.dataset.indexing import index_folder
from yt8m.dataset.sampling import segment_window
from yt8m.inference.classifier import FoldedClassifier
from yt8m.inference.encoders import FoldedEncoder
from yt8m.models.classifier import ContextAgnosticClassifier, ContextAwareClassifier, VideoClassifier
from yt8m.models.config import DBoFConfig
from yt8m.prediction.passes import PredictionPass
from yt8m.prediction.predict import predict, segments_of
from yt8m.prediction.quantization import probabilities_of_codes
from yt8m.ranking.ensemble import MergeConfig, Merger
from yt8m.ranking.streaming import rank_streaming, remove_partial_rankings
from yt8m.runs.recipe import AwareModelConfig, find_recipe, read_recipe
from yt8m.runtime.machine import MachineConfig
from yt8m.shards.writer import ShardWriter, encode_video

CLASSES = 1000
TEST_SEGMENTS = 1_704_348
COMPARED = 64
"""Segments that every way predicts, to compare the probabilities."""

OUR_NETWORKS, MATRIX_PRODUCT, AS_WRITTEN = (
    "the loop of 2019, our networks",
    "the loop of 2019, NeXtVLAD as a matrix product",
    "the loop of 2019",
)

Model = ContextAgnosticClassifier | ContextAwareClassifier


@dataclass(frozen=True)
class Setting:
    """Settings of a measurement."""

    shards: Path
    device: str
    precision: str
    num_segments: int
    rounds: int
    alone: int
    batch: int


@dataclass(frozen=True, eq=False)
class Measured:
    """Seconds per round over `num_segments`, peak memory, and the probabilities of the first segments."""

    way: str
    num_segments: int
    seconds: list[float]
    peak_mib: float
    probabilities: dict[str, NDArray[np.float32]]
    notes: dict[str, float] = field(default_factory=dict)

    @property
    def speed(self) -> float:
        """Segments per second in the median round."""
        return self.num_segments / statistics.median(self.seconds)


def write_videos(folder: Path, num_videos: int) -> None:
    """Write videos of random bytes, 160 to 300 frames long."""
    rng = np.random.default_rng(0)
    for shard in range(4):
        with ShardWriter(folder / f"test{shard:04d}.tfrecord") as writer:
            for video in range(shard, num_videos, 4):
                frames = rng.integers(0, 256, (int(rng.integers(160, 301)), 1152), np.uint8)
                writer.write(encode_video(f"{video:04d}", frames, ()))


def paper_models() -> dict[str, Model]:
    """The 12 segment models of the 7th place, with random weights and running statistics."""
    recipe = read_recipe(find_recipe("seventh-place"))
    torch.manual_seed(0)
    bases = {
        name: with_statistics(VideoClassifier(base.classifier, CLASSES)) for name, base in recipe.base_models.items()
    }
    models: dict[str, Model] = {}
    for name, settings in recipe.segment_models.items():
        if isinstance(settings, AwareModelConfig):
            model: Model = ContextAwareClassifier.from_video_classifiers(
                bases[settings.context], bases[settings.segment], fusion=settings.fusion, mixture=settings.mixture
            )
            with_statistics(model.mixture)
        else:
            model = ContextAgnosticClassifier.from_video_classifier(bases[settings.base])
            with_statistics(model.encoder)
        models[name] = model.eval()
    return models


def with_statistics(module: nn.Module) -> nn.Module:
    """Set the running statistics of batch norms to values other than 0 and 1."""
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.05)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return module


def as_plain(model: Model, matrix_product: bool) -> nn.Module:
    """A plain implementation of the same network, with the same weights."""
    encoders = []
    config = model.config
    configs = (
        [config.context_encoder, config.segment_encoder]
        if isinstance(model, ContextAwareClassifier)
        else [config.encoder]
    )
    for settings in configs:
        if isinstance(settings, DBoFConfig):
            encoders.append(plain.DBoF())
        else:
            encoders.append(plain.NeXtVLAD(cut=settings.cut_after_linear))
    mixture = plain.Mixture(2048, CLASSES, config.mixture.num_experts)
    written: nn.Module = (
        plain.AwareClassifier(*encoders, mixture) if len(encoders) == 2 else plain.VideoClassifier(*encoders, mixture)
    )
    written.load_state_dict(model.state_dict())
    plain.use_matrix_product(written, matrix_product)
    return written.eval()


def synchronized(device: torch.device) -> float:
    """The time after the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_mib(device: torch.device) -> float:
    """Peak memory of the GPU, or of the process on a CPU."""
    return torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else memory("VmHWM")


def one_pass(setting: Setting) -> Measured:
    """Predict, merge and rank in one pass."""
    device = torch.device(setting.device)
    dtype = MachineConfig(precision=setting.precision).matmul_dtype
    folded: dict[str, FoldedClassifier] = {}
    encoders: dict[str, FoldedEncoder] = {}
    models = paper_models()
    for name in list(models):
        folded[name] = FoldedClassifier(models.pop(name), device, dtype, encoders)
    gc.collect()
    reader = FrameReader(index_folder(setting.shards))
    segments = segments_of(reader)
    part = slice(0, setting.num_segments)
    [first] = predict(reader, segments, folded, [slice(0, COMPARED)])
    said = {name: probabilities_of_codes()[codes] for name, codes in first.codes.items()}
    merger = Merger(MergeConfig(), folded)
    seconds, merging = [], 0.0
    chosen = type(segments)(segments.video_ids, segments.rows[part], segments.start_seconds[part])

    def merge(batch: object) -> NDArray[np.float32]:
        nonlocal merging
        started = time.perf_counter()
        merged = merger(batch.codes)  # type: ignore[attr-defined]
        merging += time.perf_counter() - started
        return merged

    with tempfile.TemporaryDirectory() as kept:
        for _ in range(setting.rounds):
            started = synchronized(device)
            work = PredictionPass(reader, chosen, folded)
            rank_streaming(work, [merge], CLASSES, 100_000, Path(kept), "benchmark")
            seconds.append(synchronized(device) - started)
            remove_partial_rankings(Path(kept))
    peak = peak_mib(device)
    with FlopCounterMode(display=False) as counter:
        list(predict(reader, segments, folded, [slice(0, 2048)]))
    flops = counter.get_total_flops() / 2048
    notes = {
        "GFLOP per segment": flops / 1e9,
        "GFLOP/s": flops * len(chosen) / statistics.median(seconds) / 1e9,
        "merging, fraction of the time": merging / sum(seconds),
    }
    return Measured("one pass", len(chosen), seconds, peak, said, notes)


def loop_of_2019(setting: Setting, way: str) -> Measured:
    """Predict batches of segments, each with its window and its complete video, model by model."""
    is_plain = way != OUR_NETWORKS
    device = torch.device(setting.device)
    dtype = MachineConfig(precision=setting.precision).matmul_dtype
    models = paper_models()
    needs = {
        name: (model.config.context_encoder.max_frames if isinstance(model, ContextAwareClassifier) else None)
        for name, model in models.items()
    }
    forward: dict[str, nn.Module] = {}
    for name in list(models):
        model = models.pop(name)
        forward[name] = (as_plain(model, way == MATRIX_PRODUCT) if is_plain else model).to(device)
    reader = FrameReader(index_folder(setting.shards))
    segments = segments_of(reader)
    said: dict[str, list[NDArray[np.float32]]] = {name: [] for name in forward}

    def call(name: str, frames: Tensor, lengths: Tensor, *context: Tensor) -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            output = forward[name](frames, lengths, *context).float()
        said[name].append((output if is_plain else torch.sigmoid(output)).cpu().numpy())

    @torch.inference_mode()
    def whole() -> None:
        for start in range(0, setting.alone, setting.batch):
            batch = slice(start, min(start + setting.batch, setting.alone))
            rows = segments.rows[batch].astype(np.int64)
            lengths = reader.catalog.num_frames[rows].tolist()
            windows = [
                slice(*segment_window(second, length, 3))
                for second, length in zip(segments.start_seconds[batch].tolist(), lengths, strict=True)
            ]
            seen = read_padded(reader, rows, windows)
            frames, valid = join_features(seen).to(device), seen.lengths.to(device)
            for name, max_frames in needs.items():
                if max_frames is None:
                    call(name, frames, valid)
                    continue
                context = context_frames(reader, rows, max_frames)
                vectors = forward[name].encode_context(join_features(context).to(device), context.lengths.to(device))  # type: ignore[operator]
                call(name, frames, valid, vectors)

    seconds = []
    for _ in range(setting.rounds):
        for parts in said.values():
            parts.clear()
        started = synchronized(device)
        whole()
        seconds.append(synchronized(device) - started)
    first = {name: np.concatenate(parts)[:COMPARED] for name, parts in said.items()}
    return Measured(way, setting.alone, seconds, peak_mib(device), first)


def product_speed(device: torch.device, dtype: torch.dtype) -> float:
    """GFLOP/s of a large matrix product."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(10):
        started = synchronized(device)
        a @ b
        times.append(synchronized(device) - started)
    return 2 * size**3 / min(times) / 1e9


def roof(setting: Setting) -> float:
    """`product_speed` of a setting, for a fresh process."""
    return product_speed(torch.device(setting.device), MachineConfig(precision=setting.precision).matmul_dtype)


def main() -> None:
    """Parse, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="32-true", help="32-true or bf16-mixed")
    parser.add_argument("--segments", type=int, default=4096, help="segments of one pass")
    parser.add_argument("--alone", type=int, default=COMPARED, help="segments of the other ways")
    parser.add_argument("--batch", type=int, default=32, help="segments per batch of the other ways")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only-ours", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_videos(Path(folder), 8 + options.segments // 34)
        setting = Setting(
            Path(folder),
            options.device,
            options.precision,
            options.segments,
            options.rounds,
            options.alone,
            options.batch,
        )
        ways: list[tuple[Callable[..., Measured], tuple[object, ...]]] = [(one_pass, ())]
        if not options.only_ours:
            ways += [(loop_of_2019, (way,)) for way in (OUR_NETWORKS, MATRIX_PRODUCT, AS_WRITTEN)]
        print(
            f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}, {options.device}, "
            f"{options.precision}, {torch.get_num_threads()} threads"
        )
        found: list[Measured] = []
        for function, arguments in ways:
            with new_process() as pool:
                found.append(pool.submit(function, setting, *arguments).result())
            measured = found[-1]
            hours = TEST_SEGMENTS / measured.speed / 3600
            print(
                f"{measured.way:42} {measured.num_segments:>7,} segments, rounds of "
                f"{', '.join(f'{seconds:.1f}' for seconds in measured.seconds)} s: {measured.speed:,.1f} segments/s, "
                f"complete test set {f'{hours:,.1f} h' if hours > 1 else f'{hours * 60:.1f} min'}, peak {measured.peak_mib:,.0f} MiB"
            )
            for title, value in measured.notes.items():
                print(f"{'':42} {title}: {value:,.3g}")
            if len(found) > 1:
                difference = max(
                    float(np.abs(measured.probabilities[name] - found[0].probabilities[name]).max())
                    for name in measured.probabilities
                )
                print(
                    f"{'':42} {found[0].speed / measured.speed:,.1f} times slower; largest difference {difference:.1e}"
                )
                if difference > (2e-4 if options.precision == "32-true" else 5e-2):
                    sys.exit("the ways do not agree")
            sys.stdout.flush()
        with new_process() as pool:
            print(f"a large matrix product: {pool.submit(roof, setting).result():,.0f} GFLOP/s")


if __name__ == "__main__":
    main()
