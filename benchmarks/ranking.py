"""Ranking and writing a submission at full size, and against simple baselines at a smaller size.

The baselines keep a list of (probability, segment) per class while probabilities stream, and sort it at the end, or keep a heap
of K per class. All must write the same bytes. Each measurement runs in its own process, so that its peak memory is its own.

`codes` are the 16-bit codes of prediction: merged and ranked while they stream, or written to a store and ranked from there,
class by class. These two must write the same bytes as well.

    python benchmarks/ranking.py                          # the whole test set: 1,704,348 x 1,000, K = 100,000
    python benchmarks/ranking.py --segments 100000 --k 10000 --opponent-segments 0
"""

from __future__ import annotations

import argparse
import hashlib
import heapq
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from measuring import in_new_process
from yt8m.prediction.predict import Predictions
from yt8m.prediction.quantization import encode
from yt8m.prediction.segments import Segments
from yt8m.prediction.store import StoredModel, StoreIndex
from yt8m.prediction.store_writer import StoreWriter
from yt8m.ranking.ensemble import MergeConfig, Merger
from yt8m.ranking.rank import rank_stored
from yt8m.ranking.topk import TopK
from yt8m.scoring.map_at_k import map_at_k
from yt8m.scoring.truth import Truth
from yt8m.submission.writing import write_submission
from yt8m.vocabulary import Vocabulary

Batch = TypeVar("Batch")

SEGMENTS_PER_VIDEO = 40


@dataclass(frozen=True)
class Size:
    """Size of a ranking; `levels` above 0 rounds probabilities to that many values, which causes ties."""

    num_segments: int
    num_classes: int
    k: int
    seed: int
    batch_size: int
    levels: int


class Seconds(NamedTuple):
    """Seconds of storing, ranking and writing."""

    storing: float
    ranking: float
    writing: float


@dataclass(frozen=True)
class Measured:
    """Seconds per step, peak memory of the process, and size and digest of the file."""

    name: str
    size: Size
    storing_seconds: float
    ranking_seconds: float
    writing_seconds: float
    peak_bytes: int
    file_bytes: int
    digest: str


def make_segments(num_segments: int) -> Segments:
    """Segments of generated videos with ids of four characters, from 30 seconds on."""
    letters = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    num_videos = -(-num_segments // SEGMENTS_PER_VIDEO)
    ids = ["".join(letters[row // 62**place % 62] for place in range(4)) for row in range(num_videos)]
    rows, place = np.divmod(np.arange(num_segments, dtype=np.int32), np.int32(SEGMENTS_PER_VIDEO))
    return Segments(ids, rows, 30 + 5 * place)


def make_vocabulary(num_classes: int) -> Vocabulary:
    """Classes with ids from 3."""
    return Vocabulary(np.arange(3, 3 + num_classes, dtype=np.int64), ("",) * num_classes)


def generate(size: Size) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Batches of probabilities, mostly near zero, as with 1,000 classes."""
    generator = np.random.default_rng(size.seed)
    for start in range(0, size.num_segments, size.batch_size):
        stop = min(start + size.batch_size, size.num_segments)
        values = generator.random((stop - start, size.num_classes), np.float32)
        values *= values
        values *= values
        if size.levels:
            values = np.round(values * size.levels) / np.float32(size.levels)
        yield np.arange(start, stop), values


def generate_codes(size: Size) -> Iterator[Predictions]:
    """The same probabilities as the codes of one model."""
    for positions, values in generate(size):
        logits = torch.logit(torch.from_numpy(values), eps=1e-12)
        yield Predictions(int(positions[0]), {"model": encode(logits).numpy()})


def rank_codes(size: Size, path: Path) -> Seconds:
    """Merge (one model) and rank codes while they stream."""
    merger = Merger(MergeConfig(), ["model"])
    return rank_batches(size, path, generate_codes(size), lambda batch: (batch.positions, merger(batch.codes)))


def rank_batches(
    size: Size,
    path: Path,
    batches: Iterator[Batch],
    merged: Callable[[Batch], tuple[NDArray[np.int64], NDArray[np.float32]]],
) -> Seconds:
    """Rank batches while they stream, and write; the time includes merging them, but not generating them."""
    segments = make_segments(size.num_segments)
    started = time.perf_counter()
    topk = TopK(size.num_classes, size.k, segments)
    ranking_seconds = time.perf_counter() - started
    for batch in batches:
        started = time.perf_counter()
        topk.update(*merged(batch))
        ranking_seconds += time.perf_counter() - started
    started = time.perf_counter()
    ranking = topk.result()
    ranking_seconds += time.perf_counter() - started
    started = time.perf_counter()
    write_submission(path, ranking, make_vocabulary(size.num_classes))
    return Seconds(0.0, ranking_seconds, time.perf_counter() - started)


def rank_stored_codes(size: Size, path: Path) -> Seconds:
    """Write codes to a store, then merge and rank them class by class."""
    segments = make_segments(size.num_segments)
    index = StoreIndex(
        models={"model": StoredModel(kind="agnostic", digest="")},
        vocabulary="",
        catalog="",
        num_segments=size.num_segments,
        num_classes=size.num_classes,
    )
    writer = StoreWriter(path.with_name("store"), index)
    started = time.perf_counter()
    writer.prepare()
    storing_seconds = time.perf_counter() - started
    for batch in generate_codes(size):
        started = time.perf_counter()
        writer.write(batch)
        storing_seconds += time.perf_counter() - started
    started = time.perf_counter()
    writer.close()
    store = writer.finish()
    storing_seconds += time.perf_counter() - started
    started = time.perf_counter()
    ranking = rank_stored({"model": store}, Merger(MergeConfig(), ["model"]), segments, size.k)
    ranking_seconds = time.perf_counter() - started
    started = time.perf_counter()
    write_submission(path, ranking, make_vocabulary(size.num_classes))
    return Seconds(storing_seconds, ranking_seconds, time.perf_counter() - started)


def rank_streaming(size: Size, path: Path) -> Seconds:
    """Rank and write with the package; the time excludes generation."""
    return rank_batches(size, path, generate(size), lambda batch: batch)


def rank_with_lists(size: Size, path: Path) -> Seconds:
    """Keep a list of pairs per class and sort it at the end."""
    segments = make_segments(size.num_segments)
    ranks = segments.ranks.tolist()
    candidates: list[list[tuple[float, int]]] = [[] for _ in range(size.num_classes)]
    ranking_seconds = 0.0
    for positions, values in generate(size):
        started = time.perf_counter()
        for position, row in zip(positions.tolist(), values.tolist(), strict=True):
            for of_class, value in zip(candidates, row, strict=True):
                of_class.append((-value, ranks[position]))
        ranking_seconds += time.perf_counter() - started
    started = time.perf_counter()
    best = [sorted(of_class)[: size.k] for of_class in candidates]
    ranking_seconds += time.perf_counter() - started
    return Seconds(0.0, ranking_seconds, write_plainly(best, segments, path))


def rank_with_heaps(size: Size, path: Path) -> Seconds:
    """Keep a heap of the best K pairs per class."""
    segments = make_segments(size.num_segments)
    ranks = segments.ranks.tolist()
    heaps: list[list[tuple[float, int]]] = [[] for _ in range(size.num_classes)]
    ranking_seconds = 0.0
    for positions, values in generate(size):
        started = time.perf_counter()
        for position, row in zip(positions.tolist(), values.tolist(), strict=True):
            rank = -ranks[position]
            for heap, value in zip(heaps, row, strict=True):
                if len(heap) < size.k:
                    heapq.heappush(heap, (value, rank))
                elif (value, rank) > heap[0]:
                    heapq.heapreplace(heap, (value, rank))
        ranking_seconds += time.perf_counter() - started
    started = time.perf_counter()
    best = [[(-value, -rank) for value, rank in sorted(heap, reverse=True)] for heap in heaps]
    ranking_seconds += time.perf_counter() - started
    return Seconds(0.0, ranking_seconds, write_plainly(best, segments, path))


def write_plainly(best: list[list[tuple[float, int]]], segments: Segments, path: Path) -> float:
    """Write lists of (-probability, rank) line by line; return the seconds."""
    started = time.perf_counter()
    names = [segments.name(position) for position in segments.order]
    with path.open("w") as file:
        file.write("Class,Segments\n")
        for label_id, of_class in enumerate(best, start=3):
            file.write(f"{label_id},{' '.join(names[rank] for _, rank in of_class)}\n")
    return time.perf_counter() - started


PROBABILITIES: dict[str, Callable[[Size, Path], Seconds]] = {
    "streaming top-K": rank_streaming,
    "lists, sorted": rank_with_lists,
    "heaps of K": rank_with_heaps,
}
CODES: dict[str, Callable[[Size, Path], Seconds]] = {
    "codes, streaming": rank_codes,
    "codes, stored": rank_stored_codes,
}


def peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measure(name: str, size: Size, path: Path) -> Measured:
    """Rank in this process, and measure the file."""
    seconds = (PROBABILITIES | CODES)[name](size, path)
    peak = peak_bytes()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "blake2b").hexdigest()
    return Measured(name, size, *seconds, peak, path.stat().st_size, digest)


def measure_scoring(size: Size, path: Path) -> tuple[float, int, float]:
    """Score a file against random ratings, 237 per class; seconds, peak memory and the score."""
    generator = np.random.default_rng(size.seed)
    segments = make_segments(size.num_segments)
    rated = generator.integers(0, size.num_segments, (size.num_classes, 237))
    labels = np.repeat(np.arange(3, 3 + size.num_classes), 237)
    ids = (segments.video_ids[row] for row in segments.rows[rated].ravel().tolist())
    values = generator.random(rated.size) < 0.55
    truth = Truth.from_arrays(ids, labels, segments.start_seconds[rated].ravel(), values)
    started = time.perf_counter()
    score = map_at_k(path, truth, vocabulary=make_vocabulary(size.num_classes))
    return time.perf_counter() - started, peak_bytes(), score.mean_average_precision


def main() -> None:
    """Parse, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segments", type=int, default=1_704_348)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--k", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--levels", type=int, default=0, help="round probabilities to this many values (ties)")
    parser.add_argument(
        "--opponent-segments", type=int, default=10_000, help="segments of the comparison with baselines; 0 skips it"
    )
    parser.add_argument("--score", action="store_true", help="also score the written file")
    parser.add_argument("--folder", type=Path, help="output folder; a temporary one by default")
    options = parser.parse_args()
    full = Size(options.segments, options.classes, options.k, options.seed, options.batch_size, options.levels)

    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "submission.csv"
        print(f"{platform.machine()}, Python {platform.python_version()}, NumPy {np.__version__}")
        row = "{:<16} {:>10} {:>8} {:>8} {:>9} {:>9} {:>9} {:>9} {:>11} {:>10} {:>8}"
        titles = ("way", "segments", "classes", "k", "store", "rank", "write", "total", "segments/s")
        print(row.format(*titles, "peak", "file"))

        def show(name: str, size: Size) -> Measured:
            found = in_new_process(measure, name, size, path)
            together = found.storing_seconds + found.ranking_seconds + found.writing_seconds
            cells = (
                f"{size.num_segments:,}",
                f"{size.num_classes:,}",
                f"{size.k:,}",
                f"{found.storing_seconds:.2f} s",
                f"{found.ranking_seconds:.2f} s",
                f"{found.writing_seconds:.2f} s",
                f"{together:.2f} s",
                f"{size.num_segments / together:,.0f}",
                f"{found.peak_bytes / 2**20:,.0f} MiB",
                f"{found.file_bytes / 1e6:,.0f} MB",
            )
            print(row.format(name, *cells), flush=True)
            return found

        if options.opponent_segments:
            # K in the same proportion to the segments, so that the same fraction of them is listed.
            k = max(1, round(options.k * options.opponent_segments / options.segments))
            small = replace(full, num_segments=options.opponent_segments, k=k)
            for ways in (PROBABILITIES, CODES):
                digests = {show(name, small).digest for name in ways}
                print("the same bytes from all" if len(digests) == 1 else "DIFFERENT FILES")
        show("streaming top-K", full)
        digests = {show(name, full).digest for name in CODES}
        print("the same bytes from both" if len(digests) == 1 else "DIFFERENT FILES")
        if options.score:
            seconds, peak, score = in_new_process(measure_scoring, full, path)
            print(f"scored in {seconds:.1f} s, peak {peak / 2**20:,.0f} MiB, MAP {score:.4f} (at random)")


if __name__ == "__main__":
    main()
