"""Run the `yt8m` command in separate processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import yt8m
from tests.support.command import Outcome

IN_SMALL_BATCHES = """
from yt8m.cli.main import main
from yt8m.prediction import predict

predict.SEGMENTS_PER_BATCH = 16
main()
"""
"""Script that runs the command with batches small enough that each of several processes predicts some."""


def environment(**variables: str) -> dict[str, str]:
    """Environment variables with this checkout's package, one thread, and no process group."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    package = {"PYTHONPATH": str(Path(yt8m.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    return inherited | package | variables


def run_python(*arguments: object, timeout: float = 200, **variables: str) -> Outcome:
    """Run Python with these arguments and additional environment variables."""
    ended = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
        env=environment(**variables),
    )
    return Outcome(ended.returncode, ended.stdout, ended.stderr)


@contextmanager
def python_process(*arguments: object, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """Start Python with these arguments and pipes to its standard streams; kill it in the end."""
    command = [sys.executable, *map(str, arguments)]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment(**variables)
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def run_command(*arguments: object, **variables: str) -> Outcome:
    """Run `yt8m` as the installed script does."""
    return run_python("-c", "from yt8m.cli.main import main; main()", *arguments, **variables)


def torchrun(script: Path, *arguments: object) -> Outcome:
    """Run `IN_SMALL_BATCHES` as two processes.

    Args:
        script: Where to write it.
        arguments: Arguments of the command.
    """
    script.write_text(IN_SMALL_BATCHES)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return run_python(*launcher, script, *arguments)


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 120) -> None:
    """Wait until a condition holds, and fail if it never does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not after {seconds} s"
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    """Child processes of a process."""
    lists = [file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/children")]
    return [int(child) for listed in lists for child in listed.split()]


def is_running(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_for_the_end(pids: Iterable[int]) -> None:
    """Wait until none of these processes runs any more."""
    for pid in pids:
        wait_until(lambda pid=pid: not is_running(pid), f"process {pid} ends")  # type: ignore[misc]
