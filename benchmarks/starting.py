"""Time of commands that fail at once because of their arguments, and of `yt8m --help`.

Every call runs in its own process, so start-up and imports are included. RUN is the folder of a finished run, DATA its
dataset.

    python benchmarks/starting.py build/demo/data build/demo/run
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

CALLS = {
    "yt8m --help": 0,
    "yt8m predict absent --out s.csv": 2,
    "yt8m predict --run RUN --out s.csv --set metod=rank": 2,
    "yt8m predict RUN/finetune/agnostic-dbof/model --out s.csv --precision bf17": 2,
    "yt8m run demo --data DATA --out out --set foldz=3": 2,
    "yt8m run demo --data absent --out out": 2,
    "yt8m find-lr demo dboff --data DATA --out out": 2,
    "yt8m merge absent --out s.csv": 2,
    "yt8m locate absent --run RUN": 2,
    "yt8m locate absent --run absent": 2,
    "yt8m search absent --run RUN": 2,
    "yt8m evaluate absent --truth absent": 2,
}
"""Commands, and the exit status of each."""


def measure(arguments: list[str], status: int) -> tuple[float, float]:
    """Run a command; wall time and CPU time in seconds."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, ended, usage = os.wait4(process.pid, 0)
    assert os.waitstatus_to_exitcode(ended) == status, arguments
    return time.perf_counter() - started, usage.ru_utime + usage.ru_stime


def main() -> None:
    """Measure each command several times; print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} CPUs, Python {platform.python_version()}")
    for call, status in CALLS.items():
        command = call.replace("RUN", str(arguments.run)).replace("DATA", str(arguments.data)).split()
        wall, cpu = np.median([measure(command, status) for _ in range(arguments.repeats)], axis=0)
        print(f"| `{call}` | {wall:.2f} s | {cpu:.2f} s |")


if __name__ == "__main__":
    main()
