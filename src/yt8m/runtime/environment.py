"""Environment variables that the numerical libraries read when they are loaded: set them before torch is imported."""

from __future__ import annotations

import os
from pathlib import Path


def prepare_environment(cpu_info: Path = Path("/proc/cpuinfo")) -> None:
    """Set the variables that this process does not have yet.

    `OMP_WAIT_POLICY=PASSIVE`: threads sleep between operations. By default they spin, and where another process wants
    the core, a step takes three times as long (benchmarks/results/training.md).

    `MKL_CBWR=AUTO,STRICT`: the bits of a matrix product do not depend on the number of threads. Set on Intel CPUs only;
    elsewhere MKL would take its slowest kernels, and its usual ones do not need it.

    Args:
        cpu_info: What the kernel reports about the CPU; nothing is assumed where there is no such file.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if cpu_info.is_file() and "GenuineIntel" in cpu_info.read_text(encoding="utf-8", errors="replace"):
        os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
