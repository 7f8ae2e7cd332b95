"""Shared functions of the benchmarks: fresh processes, and the memory of a process."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")


def new_process() -> ProcessPoolExecutor:
    """A fresh process that executes one job after the other."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def in_new_process(function: Callable[..., Result], *arguments: object) -> Result:
    """Run a function in a fresh process and return its result."""
    with new_process() as pool:
        return pool.submit(function, *arguments).result()


def memory(field: str, process: int | str = "self") -> float:
    """Memory of a process in MiB, a field of /proc/PID/status on Linux; NaN on other systems."""
    status = Path(f"/proc/{process}/status")
    if not status.is_file():
        return float("nan")
    lines = status.read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))
