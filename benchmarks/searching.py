"""`yt8m search` on a table of full size, against pyarrow's filter on the class.

Every call runs in its own process, so start-up and imports are included. Both must find the same number of segments.

    python benchmarks/searching.py                        # 1,704,348 segments, 1,000 classes, K = 100,000
    python benchmarks/searching.py --segments 100000 --classes 50 --k 10000
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from outputs import make_ranking
from ranking import make_vocabulary
from yt8m.ranking.calibration import Calibration
from yt8m.submission.table import write_table

THRESHOLD = 0.5
FILTERED = """
import sys
import pyarrow.parquet as pq
rows = pq.read_table(sys.argv[1], columns=["video", "start", "probability"],
                     filters=[("class", "=", int(sys.argv[2])), ("probability", ">=", float(sys.argv[3]))])
print(len(rows))
"""


def measure(command: list[str]) -> tuple[float, float, str]:
    """Run a command; wall time and CPU time in seconds, and its output."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, command
    return time.perf_counter() - started, usage.ru_utime + usage.ru_stime, output


def main() -> None:
    """Write the table, and measure each way with several classes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segments", type=int, default=1_704_348)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--k", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    vocabulary = make_vocabulary(arguments.classes)
    print(
        f"{os.cpu_count()} CPUs, Python {platform.python_version()}, numpy {np.__version__}, pyarrow {pa.__version__}"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "segments.parquet"
        ranking = make_ranking((arguments.segments, arguments.classes, arguments.k))
        identity = Calibration(low=1, high=1, offset=0, ensemble="", num_ratings=0)
        write_table(path, ranking, vocabulary, calibration=identity)
        print(f"{arguments.classes * arguments.k:,} rows, {path.stat().st_size / 1e6:.0f} MB")
        label_ids = np.random.default_rng(0).choice(vocabulary.label_ids, arguments.repeats, replace=False).tolist()
        ways: dict[str, list[tuple[float, float]]] = {"yt8m search": [], "pyarrow's filter": []}
        for label_id in label_ids:
            options = [str(label_id), "--table", str(path), "--threshold", str(THRESHOLD), "--limit", "0", "--json"]
            *times, found = measure([sys.executable, "-m", "yt8m", "search", *options])
            ways["yt8m search"].append((times[0], times[1]))
            *times, number = measure([sys.executable, "-c", FILTERED, str(path), str(label_id), str(THRESHOLD)])
            ways["pyarrow's filter"].append((times[0], times[1]))
            assert sum(moment["num_segments"] for moment in json.loads(found)[0]["moments"]) == int(number)
            # As a person calls it: the best 20.
            *times, _ = measure([sys.executable, "-m", "yt8m", "search", *options[:5]])
            ways.setdefault("yt8m search, the best 20", []).append((times[0], times[1]))
    for way, measured in ways.items():
        wall, cpu = np.median(np.array(measured), axis=0)
        lowest = min(seconds for seconds, _ in measured)
        print(f"| {way} | {wall:.2f} s (fastest {lowest:.2f} s) | {cpu:.2f} s |")


if __name__ == "__main__":
    main()
