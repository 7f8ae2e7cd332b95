"""Table and check of a full-size submission, each against a baseline.

The table (`yt8m.submission.table`) is compared with pyarrow's defaults and one row group per class; both must contain the same
rows. The check (`yt8m.submission.check`), without and with a catalog of the videos, is compared with `read_submission`, which
stops at the first fault. Each way runs in its own process, and peaks exclude the memory used before it (libraries, the
ranking). Memory is measured on Linux only.

    python benchmarks/outputs.py                          # 1,704,348 segments, 1,000 classes, K = 100,000
    python benchmarks/outputs.py --segments 100000 --classes 50 --k 10000
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from measuring import in_new_process, memory
from ranking import SEGMENTS_PER_VIDEO, make_segments, make_vocabulary
from yt8m.dataset.catalog import Catalog
from yt8m.dataset.layout import ShardInfo
from yt8m.ranking.topk import Ranking
from yt8m.submission.check import check_submission
from yt8m.submission.format import read_submission
from yt8m.submission.table import SCHEMA, write_table
from yt8m.submission.writing import write_submission

Size = tuple[int, int, int]
"""Segments, classes, K."""
Measured = tuple[float, float, float, int]
"""Wall time and CPU time in seconds, peak memory in MiB above that before, bytes of the file."""


def make_ranking(size: Size) -> Ranking:
    """A ranking of the top K of random probabilities, mostly near zero, without drawing all of them."""
    num_segments, num_classes, k = size
    segments = make_segments(num_segments)
    keys = []
    for class_index in range(num_classes):
        generator = np.random.default_rng(class_index)
        ranks = generator.choice(num_segments, k, replace=False, shuffle=False).astype(np.uint64)
        values = (1 - k / num_segments * generator.random(k, np.float32)) ** 4
        bits = (~values.view(np.uint32)).astype(np.uint64)
        keys.append(np.sort((bits << np.uint64(32)) | ranks))
    ranking = Ranking(segments, tuple(keys))
    ranking.positions(0)
    return ranking


def make_catalog(size: Size) -> Catalog:
    """A catalog of the videos of these segments; only ids and lengths are used."""
    ids = np.array([video_id.encode() for video_id in make_segments(size[0]).video_ids])
    count = len(ids)
    frames = np.full(count, 30 + 5 * SEGMENTS_PER_VIDEO + 10, np.int32)
    small, large = np.zeros(count, np.int32), np.zeros(count, np.int64)
    empty, starts = np.zeros(0, np.int32), np.zeros(count + 1, np.int64)
    places = dict.fromkeys(("shard_index", "record_number", "rgb_stride", "audio_stride"), small)
    places |= dict.fromkeys(("record_offset", "record_length", "rgb_offset", "audio_offset"), large)
    return Catalog(
        Path("shards"), (ShardInfo("invented", 0, 0),), ids=ids, num_frames=frames, **places,
        label_values=empty, label_starts=starts, rating_labels=empty, rating_start_seconds=empty,
        rating_values=empty.astype(np.uint8), rating_starts=starts, oddities={}, problems=(), num_problems=0,
    )  # fmt: skip


def write_by_default(path: Path, ranking: Ranking, size: Size) -> None:
    """Write the table with pyarrow's defaults, one row group per class."""
    vocabulary, segments = make_vocabulary(size[1]), ranking.segments
    ids = pa.array(segments.video_ids)
    writer = None
    for class_index, label_id in enumerate(vocabulary.label_ids.tolist()):
        positions = ranking.positions(class_index)
        table = pa.table(
            {
                "class": np.full(len(positions), label_id, np.int32),
                "name": pa.DictionaryArray.from_arrays(np.zeros(len(positions), np.int32), pa.array([""])),
                "video": pa.DictionaryArray.from_arrays(segments.rows[positions], ids),
                "start": segments.start_seconds[positions],
                "probability": ranking.probabilities(class_index),
            }
        )
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()


def measure_writing(write: Callable[[Path, Ranking, Size], None], size: Size, path: Path) -> Measured:
    """Write an output of a ranking in this process."""
    ranking = make_ranking(size)
    return measure(lambda: write(path, ranking, size), path)


def measure_reading(read: Callable[[Path, Size], None], size: Size, path: Path) -> Measured:
    """Read or check a submission in this process."""
    return measure(lambda: read(path, size), path)


def measure(work: Callable[[], None], path: Path) -> Measured:
    """Run a function in this process and measure it, and the file that it leaves."""
    # Resets the peak on Linux.
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    started, used = time.perf_counter(), time.process_time()
    work()
    seconds, used = time.perf_counter() - started, time.process_time() - used
    return seconds, used, memory("VmHWM") - before, path.stat().st_size


def submission(path: Path, ranking: Ranking, size: Size) -> None:
    """Write the submission."""
    write_submission(path, ranking, make_vocabulary(size[1]))


def table(path: Path, ranking: Ranking, size: Size) -> None:
    """Write the table."""
    write_table(path, ranking, make_vocabulary(size[1]))


def reading(path: Path, size: Size) -> None:
    """Read the submission, as scoring does."""
    for _ in read_submission(path, make_vocabulary(size[1])):
        pass


def checking(path: Path, size: Size) -> None:
    """Check the submission without the videos."""
    if not check_submission(path, make_vocabulary(size[1])).is_accepted:
        raise SystemExit("the submission was refused")


def checking_videos(path: Path, size: Size) -> None:
    """Check the submission with the videos."""
    if not check_submission(path, make_vocabulary(size[1]), make_catalog(size)).is_accepted:
        raise SystemExit("the submission was refused")


def same_rows(path: Path, other: Path) -> bool:
    """Whether two tables contain the same rows, compared column by column."""

    def column(of: Path, name: str) -> pa.ChunkedArray:
        values = pq.read_table(of, columns=[name])[name]
        return values.cast(pa.string()) if pa.types.is_dictionary(values.type) else values

    return all(column(path, name).equals(column(other, name)) for name in SCHEMA.names)


def main() -> None:
    """Parse, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segments", type=int, default=1_704_348)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--k", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="output folder; a temporary one by default")
    options = parser.parse_args()
    size = (options.segments, options.classes, options.k)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        print(f"{platform.machine()}, Python {platform.python_version()}, pyarrow {pa.__version__}, {size}")

        def show(title: str, found: Measured) -> None:
            seconds, used, peak, num_bytes = found
            print(
                f"{title:<34} {seconds:>7.1f} s {used:>7.1f} s {peak:>7,.0f} MiB {num_bytes / 1e6:>7,.0f} MB",
                flush=True,
            )

        tables = folder / "table.parquet", folder / "default.parquet"
        show("write the table", in_new_process(measure_writing, table, size, tables[0]))
        show("the same, pyarrow's defaults", in_new_process(measure_writing, write_by_default, size, tables[1]))
        print("the same rows in both" if in_new_process(same_rows, *tables) else "DIFFERENT TABLES")
        path = folder / "submission.csv"
        show("write the submission", in_new_process(measure_writing, submission, size, path))
        show("read the submission", in_new_process(measure_reading, reading, size, path))
        show("check it without the videos", in_new_process(measure_reading, checking, size, path))
        show("check it with the videos", in_new_process(measure_reading, checking_videos, size, path))


if __name__ == "__main__":
    main()
