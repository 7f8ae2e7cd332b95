"""Resource limits of reading: open files, memory over many epochs, and a catalog of full size.

3,844 shards, as many as the dataset has, are read for ten epochs by four workers in a process that may open 256 files (`ulimit
-n 256`). After each epoch, the memory of the process and of its workers is printed, without pages of the page cache. Then a
catalog of four million videos is generated, saved, and loaded in a fresh process.

    python benchmarks/limits.py
    python benchmarks/limits.py --shards 3844 --epochs 10 --workers 4 --videos 4000000
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from measuring import in_new_process, memory
from yt8m.dataset.batches import FrameSampling, VideoBatches
from yt8m.dataset.catalog import Catalog
from yt8m.dataset.frames import FrameReader
from yt8m.dataset.indexing import index_and_save
from yt8m.dataset.labels import videos_with_classes
from yt8m.dataset.layout import ShardInfo
from yt8m.dataset.read_ahead import step_loader
from yt8m.features import YOUTUBE8M
from yt8m.shards.writer import ShardWriter, encode_video
from yt8m.vocabulary import Vocabulary

BATCH = 128
CLASSES = Vocabulary(np.arange(1000), ("",) * 1000)


def write_many_shards(folder: Path, num_shards: int) -> None:
    """Write shards of two videos each, 10 to 40 frames long."""
    rng = np.random.default_rng(0)
    for number in range(num_shards):
        with ShardWriter(folder / f"train{number:04d}.tfrecord") as writer:
            for video in range(2):
                frames = rng.integers(0, 256, (int(rng.integers(10, 41)), YOUTUBE8M.frame_bytes), np.uint8)
                writer.write(encode_video(f"{number:04d}{video}", frames, [int(rng.integers(0, 1000))]))


def read_epochs(folder: Path, num_epochs: int, num_workers: int, max_files: int) -> list[tuple[float, float, int]]:
    """Read epochs with a limit of open files; MiB of this process and of its largest worker, and open files, per epoch."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (max_files, max_files))
    stream = VideoBatches(FrameReader(Catalog.load(folder)), CLASSES, FrameSampling(150), BATCH, 0)
    steps = -(-stream.num_items // BATCH)
    found = []
    for step, _ in enumerate(step_loader(stream, 0, steps * num_epochs, num_workers)):
        if step % steps == steps - 1:
            workers = [child.pid for child in multiprocessing.active_children() if child.pid]
            files = sum(1 for _ in Path("/proc/self/fd").iterdir())
            largest = max(memory("RssAnon", pid) for pid in workers)
            found.append((memory("RssAnon"), largest, files))
    return found


def write_large_catalog(folder: Path, num_videos: int) -> float:
    """Save a catalog of generated videos in 3,844 shards; return the size of the file in bytes."""
    rng = np.random.default_rng(0)
    letters = np.frombuffer(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", np.uint8)
    number = np.arange(num_videos)
    ids = np.stack([letters[number // 62**place % 62] for place in range(4)], 1).view("S4")[:, 0]
    num_frames = rng.integers(120, 301, num_videos).astype(np.int32)
    shard = (number * 3844 // num_videos).astype(np.int32)
    length = num_frames.astype(np.int64) * 1171 + 200
    ends = np.cumsum(length + 16)
    begins = ends - length - 16
    firsts = np.searchsorted(shard, np.arange(3844))
    offset = begins - begins[firsts][shard] + 12
    labels = np.sort(rng.integers(0, 3862, (num_videos, 3), np.int32), axis=1)
    sizes = np.append(begins[firsts[1:]], ends[-1]) - begins[firsts]
    none = np.zeros(0, np.int32)
    catalog = Catalog(
        folder=folder,
        shards=tuple(ShardInfo(f"train{i:04d}.tfrecord", size, 0) for i, size in enumerate(sizes.tolist())),
        shard_index=shard,
        record_number=(number - firsts[shard]).astype(np.int32),
        record_offset=offset,
        record_length=length,
        ids=ids,
        num_frames=num_frames,
        rgb_offset=offset + 100,
        rgb_stride=np.full(num_videos, 1034, np.int32),
        audio_offset=offset + 150 + num_frames.astype(np.int64) * 1034,
        audio_stride=np.full(num_videos, 137, np.int32),
        label_values=labels.ravel(),
        label_starts=np.arange(0, 3 * num_videos + 1, 3),
        rating_labels=none,
        rating_start_seconds=none,
        rating_values=np.zeros(0, np.uint8),
        rating_starts=np.zeros(num_videos + 1, np.int64),
        oddities={},
        problems=(),
        num_problems=0,
    )
    return catalog.save().stat().st_size


def load_large_catalog(folder: Path) -> dict[str, float]:
    """Load the catalog and run the first operations of training; seconds of each, and peak memory in MiB."""
    found = {}

    def timed(name: str, started: float) -> None:
        found[name] = time.perf_counter() - started

    before = memory("VmRSS")
    started = time.perf_counter()
    catalog = Catalog.load(folder)
    timed("load", started)
    found["peak after loading"] = memory("VmHWM")
    started = time.perf_counter()
    str(catalog.digest)
    timed("digest", started)
    started = time.perf_counter()
    rows = videos_with_classes(catalog, CLASSES)
    timed("videos with a class", started)
    started = time.perf_counter()
    stream = VideoBatches(FrameReader(catalog), CLASSES, FrameSampling(150), BATCH, 0)
    for step in (0, 1_000_000):
        stream._items(stream._positions(step))
    timed("order of two epochs", started)
    found["videos"], found["with a class"] = len(catalog), len(rows)
    found["peak overall"], found["before"] = memory("VmHWM"), before
    return found


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=3844)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--files", type=int, default=256, help="files that the reading process may open")
    parser.add_argument("--videos", type=int, default=4_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "shards"
        write_many_shards(folder, options.shards)
        index_and_save(folder)
        print(f"{options.shards:,} shards, {options.workers} workers, at most {options.files} open files")
        print("\n| epoch | this process | largest worker | open files here |\n|---|---|---|---|")
        epochs = in_new_process(read_epochs, folder, options.epochs, options.workers, options.files)
        for epoch, (here, worker, files) in enumerate(epochs, start=1):
            print(f"| {epoch} | {here:.0f} MiB | {worker:.0f} MiB | {files} |")
        folder = Path(name) / "catalog"
        folder.mkdir()
        size = in_new_process(write_large_catalog, folder, options.videos)
        found = in_new_process(load_large_catalog, folder)
        print(f"\nA catalog of {found['videos']:,.0f} videos, {size / 1e6:,.0f} MB as Parquet\n\n| | |\n|---|---|")
        for step in ("load", "digest", "videos with a class", "order of two epochs"):
            print(f"| {step} | {found[step]:.2f} s |")
        for peak in ("before", "peak after loading", "peak overall"):
            print(f"| memory, {peak} | {found[peak]:,.0f} MiB |")


if __name__ == "__main__":
    main()
