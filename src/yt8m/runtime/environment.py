"""Environment variables: those that the numerical libraries read when they are loaded, and the rank of this process."""

import os
from pathlib import Path


def prepare_environment(cpu_info: Path = Path("/proc/cpuinfo")) -> None:
    """Set the variables below, before torch is imported; values that the user has set stay.

    `OMP_WAIT_POLICY=PASSIVE`: threads sleep between operations. By default they spin, and a step takes three times as
    long when another process uses the core (benchmarks/results/training.md).

    `MKL_CBWR=AUTO,STRICT`: the bits of a matrix product do not depend on the number of threads. Set on Intel CPUs only:
    on others MKL would switch to its slowest kernels, and its default ones have this property already.

    Args:
        cpu_info: The kernel's description of the CPU; without this file no CPU is taken for an Intel one.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if cpu_info.is_file() and "GenuineIntel" in cpu_info.read_text(encoding="utf-8", errors="replace"):
        os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")


def is_first_process() -> bool:
    """Whether this is the only process of a run, or the first, as `torchrun`, `srun` or Fabric number them."""
    ranks = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
    return all(os.environ.get(rank, "0") == "0" for rank in ranks)
