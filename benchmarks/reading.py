"""Reading frames from the page cache, against TensorFlow's reader and a plain memory copy.

One core each, page cache warm; rates are per second of CPU time, because threads that share one core also wait for each other.
TensorFlow parses every record of the same shards (TFRecordDataset, SequenceExample, decode_raw) into the same uint8
arrays, rgb and audio. "memory copy" copies the same number of bytes from one array to another, an upper bound for any
reader that fills an array. Each way runs in its own process, and the ways alternate, so that other load affects all of
them. Figures are medians over the rounds, ratios included. Further parts: batches of 128 through worker processes, against a
plain torch DataLoader (new shared memory for each batch), and indexing.

    python benchmarks/reading.py                    # splices 1.1 GB of shards into build/reading, once
    python benchmarks/reading.py --rounds 9 --data build/reading --videos 4800
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from measuring import in_new_process, memory, new_process
from yt8m.dataset.batches import FrameSampling
from yt8m.dataset.catalog import Catalog
from yt8m.dataset.frames import FrameReader
from yt8m.dataset.indexing import index_folder, load_or_index
from yt8m.dataset.sampling import crop, even_frames
from yt8m.features import MODALITIES, YOUTUBE8M
from yt8m.shards.records import row_bytes

RGB_ROW, AUDIO_ROW = (row_bytes(YOUTUBE8M.bytes_of(name)) for name in MODALITIES)
BATCH = 128
SAMPLED = 150
WINDOW = 11
PARTS = ("whole", "sampled", "segments", "loader", "index")
FULL_SET_BYTES = 1.53e12
"""Frame-level training, validation and test shards (docs/method.md, "Data format")."""


# ------------------------------------------------------------------------------------------------------ one process


@cache
def one_core() -> None:
    """Pin this process, and the threads that it starts later, to one core."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


@cache
def reader_of(folder: Path) -> FrameReader:
    """The reader of a folder, shared by all rounds."""
    return FrameReader(Catalog.load(folder))


@cache
def tensorflow() -> Any:
    """TensorFlow with one thread."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    return tf


def tensorflow_videos(
    folder: Path, choose: Callable[[Any, Any], Any] | None = None
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Rgb and audio of every video as TensorFlow reads them; `choose` samples frames, given TensorFlow and their number."""
    tf = tensorflow()
    context = {"id": tf.io.FixedLenFeature([], tf.string), "labels": tf.io.VarLenFeature(tf.int64)}
    lists = {name: tf.io.FixedLenSequenceFeature([], tf.string) for name in ("rgb", "audio")}

    def parse(record: Any) -> Any:
        features = tf.io.parse_single_sequence_example(record, context, lists)[1]
        rgb, audio = features["rgb"], features["audio"]
        if choose is not None:
            frames = choose(tf, tf.shape(rgb)[0])
            rgb, audio = tf.gather(rgb, frames), tf.gather(audio, frames)
        return tf.io.decode_raw(rgb, tf.uint8), tf.io.decode_raw(audio, tf.uint8)

    shards = [str(folder / shard.name) for shard in Catalog.load(folder).shards]
    yield from tf.data.TFRecordDataset(shards).map(parse).as_numpy_iterator()


def sample_in_tensorflow(tf: Any, num_frames: Any) -> Any:
    """Sample frames of the cropped video without replacement, in order."""
    inside = tf.cond(num_frames > 40, lambda: tf.range(30, num_frames - 10), lambda: tf.range(num_frames))
    return tf.sort(tf.random.shuffle(inside)[:SAMPLED])


def even_in_tensorflow(tf: Any, num_frames: Any) -> Any:
    """Evenly spaced frames of the cropped video, to compare the frames that both sides read."""
    start, stop = tf.where(num_frames > 40, 30, 0), tf.where(num_frames > 40, num_frames - 10, num_frames)
    length = stop - start
    wanted = tf.minimum(length, SAMPLED)
    return start + ((2 * tf.range(wanted) + 1) * length) // (2 * wanted)


# ------------------------------------------------------------------------------- the ways, each (folder, round) -> rate


def copy_whole(folder: Path, _: int) -> float:
    """Copy the number of bytes of each video."""
    return _copies_per_second(reader_of(folder).catalog.num_frames.tolist())


def copy_sampled(folder: Path, _: int) -> float:
    """Copy the number of bytes of the sampled frames."""
    return _copies_per_second([min(SAMPLED, _cropped(n)) for n in reader_of(folder).catalog.num_frames.tolist()])


def _cropped(num_frames: int) -> int:
    start, stop = crop(num_frames)
    return stop - start


@cache
def _gigabyte() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, 2**30, np.uint8)


def _copies_per_second(frames: list[int]) -> float:
    source, target, at = _gigabyte(), np.empty(2**20, np.uint8), 0
    started = time.process_time()
    for count in frames:
        size = count * YOUTUBE8M.frame_bytes
        if at + size > len(source):
            at = 0
        target[:size] = source[at : at + size]
        at += size
    return len(frames) / (time.process_time() - started)


def ours_whole(folder: Path, _: int) -> float:
    """Read every video completely, in the order of the catalog, four at a time."""
    reader = reader_of(folder)
    lengths = reader.catalog.num_frames
    rgb, audio = (np.empty(4 * int(lengths.max()) * row, np.uint8) for row in (RGB_ROW, AUDIO_ROW))
    started = time.process_time()
    for begin in range(0, len(lengths), 4):
        rows = np.arange(begin, min(begin + 4, len(lengths)))
        frames = lengths[rows].tolist()
        count, longest = len(frames), max(frames)
        reader.fill(
            rgb[: count * longest * RGB_ROW].reshape(count, longest, RGB_ROW),
            audio[: count * longest * AUDIO_ROW].reshape(count, longest, AUDIO_ROW),
            rows,
            [slice(0, length) for length in frames],
        )
    return len(lengths) / (time.process_time() - started)


def tensorflow_whole(folder: Path, _: int) -> float:
    """Read every video completely with TensorFlow."""
    started = time.process_time()
    count = sum(1 for _ in tensorflow_videos(folder))
    return count / (time.process_time() - started)


def ours_sampled(folder: Path, number: int) -> float:
    """Read 150 sampled frames of every video, in batches of 128, in the order of a permutation."""
    reader = reader_of(folder)
    choice = FrameSampling(SAMPLED)
    order = np.random.default_rng(number).permutation(len(reader.catalog))
    rgb, audio = (np.empty((16, SAMPLED, row), np.uint8) for row in (RGB_ROW, AUDIO_ROW))
    started = time.process_time()
    for begin in range(0, len(order), BATCH):
        rows = order[begin : begin + BATCH]
        chosen = choice.of_videos(reader.catalog.num_frames[rows], number, np.arange(begin, begin + len(rows)))
        for first in range(0, len(rows), 16):
            some = rows[first : first + 16]
            reader.fill(rgb[: len(some)], audio[: len(some)], some, chosen[first : first + 16])
    return len(order) / (time.process_time() - started)


def tensorflow_sampled(folder: Path, _: int) -> float:
    """Read 150 sampled frames of every video with TensorFlow."""
    started = time.process_time()
    count = sum(1 for _ in tensorflow_videos(folder, sample_in_tensorflow))
    return count / (time.process_time() - started)


def ours_segments(folder: Path, number: int) -> float:
    """Read random windows of 11 frames, in batches of 128."""
    reader = reader_of(folder)
    lengths = reader.catalog.num_frames
    rng = np.random.default_rng(number)
    rows = rng.integers(0, len(lengths), 50_000 // BATCH * BATCH)
    starts = (rng.random(len(rows)) * (lengths[rows] - WINDOW)).astype(np.int64)
    rgb, audio = (np.empty((BATCH, WINDOW, row), np.uint8) for row in (RGB_ROW, AUDIO_ROW))
    started = time.process_time()
    for begin in range(0, len(rows), BATCH):
        chosen = [slice(start, start + WINDOW) for start in starts[begin : begin + BATCH].tolist()]
        reader.fill(rgb, audio, rows[begin : begin + BATCH], chosen)
    return len(rows) / (time.process_time() - started)


def parsed_segments(folder: Path, number: int) -> float:
    """Read the same windows by parsing each record with protobuf: the baseline with an index of records."""
    from yt8m.shards.writer import message_class

    catalog = reader_of(folder).catalog
    rng = np.random.default_rng(number)
    rows = rng.integers(0, len(catalog), 1000)
    starts = (rng.random(len(rows)) * (catalog.num_frames[rows] - WINDOW)).astype(np.int64)
    message = message_class("SequenceExample")
    started = time.process_time()
    for row, start in zip(rows.tolist(), starts.tolist(), strict=True):
        with catalog.shard_path(row).open("rb") as file:
            file.seek(int(catalog.record_offset[row]))
            video: Any = message.FromString(file.read(int(catalog.record_length[row])))
        parts = [video.feature_lists.feature_list[name].feature[start : start + WINDOW] for name in ("rgb", "audio")]
        both = [b"".join(frame.bytes_list.value[0] for frame in part) for part in parts]
        np.concatenate([np.frombuffer(part, np.uint8).reshape(WINDOW, -1) for part in both], 1)
    return len(rows) / (time.process_time() - started)


def index_verified(folder: Path, _: int) -> float:
    """Index with all checksums; bytes per second."""
    return _indexed_bytes_per_second(folder, verify=True)


def index_unverified(folder: Path, _: int) -> float:
    """Index without the checksums of payloads; bytes per second."""
    return _indexed_bytes_per_second(folder, verify=False)


def _indexed_bytes_per_second(folder: Path, verify: bool) -> float:
    started = time.process_time()
    catalog = index_folder(folder, verify=verify)
    return sum(shard.num_bytes for shard in catalog.shards) / (time.process_time() - started)


def measure(way: Callable[[Path, int], float], folder: Path, number: int) -> tuple[float, float]:
    """One round on one core: the rate, and the memory of this process in MiB, without pages of the page cache."""
    one_core()
    return way(folder, number), memory("RssAnon")


# ------------------------------------------------------------------------------------------------- several processes


def deliver(folder: Path, kind: str, num_workers: int, plain: bool, steps: int) -> float:
    """Examples per second delivered to this process in batches of 128, after a warm-up; every batch is touched."""
    import torch
    from torch.utils.data import DataLoader

    from yt8m.dataset.batches import Batches, SegmentBatches, VideoBatches
    from yt8m.dataset.labels import rated_segments
    from yt8m.dataset.read_ahead import BATCHES_AHEAD, step_loader
    from yt8m.vocabulary import Vocabulary

    torch.set_num_threads(1)
    classes = Vocabulary.load(folder.parents[1])
    reader = FrameReader(Catalog.load(folder))
    stream: Batches
    if kind == "videos":
        stream = VideoBatches(reader, classes, FrameSampling(SAMPLED), BATCH, 0)
    else:
        stream = SegmentBatches(reader, classes, rated_segments(reader.catalog, classes), 3, BATCH, 0)
    # Every worker touches all shards during the warm-up: the first access to a page costs more than its bytes.
    warm_up = max(1, num_workers) * -(-stream.num_items // BATCH) + 12
    stop = warm_up + steps
    if plain and num_workers:
        loader: Any = DataLoader(
            stream,
            batch_size=None,
            sampler=range(stop),
            num_workers=num_workers,
            prefetch_factor=BATCHES_AHEAD,
        )
    else:
        loader = step_loader(stream, 0, stop, num_workers)
    started = ended = 0.0
    for step, batch in enumerate(loader):
        if step == warm_up:
            started = time.perf_counter()
        int(batch.rgb[0, 0, -1])
        ended = time.perf_counter()  # before the workers are shut down
    return (steps - 1) * BATCH / (ended - started)


# -------------------------------------------------------------------------------------------------------------- report


def check(folder: Path) -> str:
    """Compare the frames that both sides read, complete videos and evenly spaced frames; digest of the complete ones."""
    reader = reader_of(folder)
    ours, theirs = hashlib.blake2b(), hashlib.blake2b()
    for row, video in enumerate(tensorflow_videos(folder)):
        theirs.update(np.concatenate(video, 1).data)
        ours.update(reader.read(row).data)
    if row + 1 != len(reader.catalog) or ours.digest() != theirs.digest():
        raise SystemExit("TensorFlow and yt8m do not read the same frames")
    for row, video in enumerate(tensorflow_videos(folder, even_in_tensorflow)):
        frames = even_frames(*crop(reader.num_frames(row)), SAMPLED)
        if not np.array_equal(np.concatenate(video, 1), reader.gather(row, frames)):
            raise SystemExit(f"TensorFlow and yt8m do not read the same chosen frames of row {row}")
    return ours.hexdigest()[:16]


def make_data(folder: Path, num_videos: int) -> Path:
    """Splice a dataset, unless it exists; return the indexed folder of its training shards."""
    from yt8m.synthetic.invented import invented_sources, invented_vocabulary
    from yt8m.synthetic.splice import Sizes, write_dataset

    if not folder.is_dir():
        classes = invented_vocabulary()
        write_dataset(folder, invented_sources(6000, classes), classes, Sizes(num_videos, 40, 400, 40), 0)
    for part in ("video/train", "segment/train"):
        load_or_index(folder / part)
    return folder / "video/train"


def machine() -> str:
    """CPU, cores and versions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores of {name}, Python {platform.python_version()}, "
        f"numpy {np.__version__}"
    )


def in_turns(folder: Path, ways: dict[str, Callable[[Path, int], float]], rounds: int) -> dict[str, list[float]]:
    """Rates of each way per round, with its memory as the last element; a first round is a warm-up and not counted."""
    pools = {name: new_process() for name in ways}
    found: dict[str, list[float]] = {name: [] for name in ways}
    taken = dict.fromkeys(ways, 0.0)
    for number in range(rounds + 1):
        for name, way in ways.items():
            rate, taken[name] = pools[name].submit(measure, way, folder, number).result()
            if number:
                found[name].append(rate)
    for name, pool in pools.items():
        pool.shutdown()
        found[name].append(taken[name])
    return found


def show(title: str, found: dict[str, list[float]], frames: float, against: list[str], ours: str) -> None:
    """Print a table: rates, bytes per second, and ratios of ours to others."""
    print(f"\n| {title} | per second | GB/s | {' | '.join(f'ours / {name}' for name in against)} | memory |")
    print("|---|---|---|" + "---|" * len(against) + "---|")
    for name, (*rates, taken) in found.items():
        rate = statistics.median(rates)
        ratios = [
            f"{statistics.median(a / b for a, b in zip(found[ours][:-1], found[other][:-1], strict=True)):.2f}"
            if name == ours
            else ""
            for other in against
        ]
        print(
            f"| {name} | {rate:,.0f} ({min(rates):,.0f} to {max(rates):,.0f}) | {rate * frames * YOUTUBE8M.frame_bytes / 1e9:.2f} "
            f"| {' | '.join(ratios)} | {taken:,.0f} MiB |",
            flush=True,
        )


def main() -> None:
    """Parse, measure, print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("build/reading"), help="spliced data, made if missing")
    parser.add_argument("--videos", type=int, default=4800, help="training videos to splice")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure")
    parser.add_argument("--steps", type=int, default=150, help="batches delivered by each loader")
    options = parser.parse_args()
    folder = make_data(options.data, options.videos)
    catalog = Catalog.load(folder)
    size = sum(shard.num_bytes for shard in catalog.shards)
    frames = float(catalog.num_frames.mean())
    print(machine())
    print(f"{len(catalog):,} videos of {frames:.0f} frames, {size / 1e9:.2f} GB, {len(catalog.shards)} shards")
    print(f"TensorFlow and yt8m read the same frames: {in_new_process(check, folder)}")

    if "whole" in options.parts:
        whole = {"memory copy": copy_whole, "yt8m": ours_whole, "TensorFlow": tensorflow_whole}
        show("complete videos", in_turns(folder, whole, options.rounds), frames, ["TensorFlow", "memory copy"], "yt8m")
    if "sampled" in options.parts:
        sampled = {"memory copy": copy_sampled, "yt8m": ours_sampled, "TensorFlow": tensorflow_sampled}
        seen = float(np.mean([min(SAMPLED, _cropped(n)) for n in catalog.num_frames.tolist()]))
        found = in_turns(folder, sampled, options.rounds)
        show(f"{SAMPLED} frames", found, seen, ["TensorFlow", "memory copy"], "yt8m")
    if "segments" in options.parts:
        segments = {"yt8m": ours_segments, "record parsed": parsed_segments}
        show(f"{WINDOW} frames", in_turns(folder, segments, options.rounds), WINDOW, ["record parsed"], "yt8m")
    if "loader" in options.parts:
        show_loaders(options.data, options.rounds, options.steps)
    if "index" in options.parts:
        ways = {"every checksum": index_verified, "no checksums": index_unverified}
        print("\n| indexing, one core | GB/s | the 1.53 TB set |")
        print("|---|---|---|")
        for name, (*speeds, _) in in_turns(folder, ways, options.rounds).items():
            speed = statistics.median(speeds)
            print(f"| {name} | {speed / 1e9:.2f} | {FULL_SET_BYTES / speed / 60:.0f} minutes |")


def show_loaders(data: Path, rounds: int, steps: int) -> None:
    """Print the rates delivered to one process through workers, ours and DataLoader's, each measured in its own process."""
    print(
        f"\n| delivered to one process, batches of {BATCH} | workers | yt8m, examples/s | plain DataLoader, examples/s | ratio |"
    )
    print("|---|---|---|---|---|")
    for kind, part in (("videos", "video/train"), ("segments", "segment/train")):
        for num_workers in (0, 1, 2, 4):
            rates: dict[bool, list[float]] = {False: [], True: []}
            for _ in range(max(1, rounds // 2)):
                for plain in (False, True) if num_workers else (False,):
                    rates[plain].append(in_new_process(deliver, data / part, kind, num_workers, plain, steps))
            ours = statistics.median(rates[False])
            theirs = statistics.median(rates[True]) if num_workers else 0.0
            other = (f"{theirs:,.0f}", f"{ours / theirs:.1f}") if num_workers else ("", "")
            print(f"| {kind} | {num_workers} | {ours:,.0f} | {other[0]} | {other[1]} |", flush=True)


if __name__ == "__main__":
    main()
