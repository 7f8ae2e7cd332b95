"""Kill the `yt8m` command at every file-system event, run it again, and compare the files with those of a whole run.

A script, because the processes are forked from one that has imported everything and computed nothing yet:

    python -m tests.support.kills FOLDER RANKS FIRST STEP COMMAND ... --out OUT

Every STEP-th event from FIRST on is tried, in each of RANKS processes that run together; when one is killed the others get
SIGTERM, as from torchrun. `OUT` stands for a folder below FOLDER. Prints a JSON object: number of events, events tried,
and what went wrong at which event.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yt8m.runtime.environment import prepare_environment

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
SECONDS_TO_STOP = 30.0
EVENTS = frozenset(
    ["os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink", "shutil.rmtree"]
)
NOT_COMPARED = ("stage.yaml", "config.yaml", "recipe.yaml")
"""Files with times, or with the folder's name: only their existence is compared."""


class EventCounter:
    """Counts what Python does to a folder and its lock, and kills the process at one of these events."""

    def __init__(self, folder: Path, kill_at: int | None) -> None:
        self.count = 0
        self._lock = str(folder.with_name(f".{folder.name}.lock"))
        self._folder, self._kill_at = str(folder), kill_at

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Handle an audit event."""
        is_write = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES
        if not (is_write or event in EVENTS):
            return
        path = arguments[0]
        if not isinstance(path, str | os.PathLike) or not os.fspath(path).startswith((self._folder, self._lock)):
            return
        if self.count == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1


@dataclass
class Ended:
    """How a command ended, by rank: exit status (negative: the signal that killed it), number of events, output."""

    statuses: list[int]
    counts: list[int]
    printed: str


def run_forked(arguments: list[str], out: Path, ranks: int, kill_at: tuple[int, int] | None = None) -> Ended:
    """Run the command in forked processes, and kill one of them, (rank, event), if asked."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = out.with_name(f"{out.name}.log")
    log.unlink(missing_ok=True)
    processes, pipes = [], []
    for rank in range(ranks):
        reading, writing = os.pipe()
        process = os.fork()
        if not process:
            if ranks > 1:
                group = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "RANK": rank, "LOCAL_RANK": rank}
                group |= {"MASTER_PORT": port}
                os.environ |= {name: str(value) for name, value in group.items()} | {"MASTER_ADDR": "127.0.0.1"}
            counter = EventCounter(out, kill_at[1] if kill_at and kill_at[0] == rank else None)
            _run_and_exit(arguments, out, log, counter, writing)
        os.close(writing)
        processes.append(process)
        pipes.append(reading)
    statuses = _wait(processes)
    counts = [int(os.fdopen(pipe).read() or 0) for pipe in pipes]
    return Ended(statuses, counts, log.read_text(errors="replace") if log.exists() else "")


def _wait(processes: list[int]) -> list[int]:
    """Wait for all processes; once one is killed, stop the others as torchrun does: SIGTERM, and SIGKILL after a while."""
    statuses: dict[int, int] = {}
    killed: float | None = None
    while len(statuses) < len(processes):
        time.sleep(0.01)
        running = [process for process in processes if process not in statuses]
        for process in running:
            found, status = os.waitpid(process, os.WNOHANG)
            if found:
                statuses[process] = os.waitstatus_to_exitcode(status)
        if killed is None and any(status < 0 for status in statuses.values()):
            killed = time.monotonic()
            _signal(processes, statuses, signal.SIGTERM)
        if killed is not None and time.monotonic() - killed > SECONDS_TO_STOP:
            _signal(processes, statuses, signal.SIGKILL)
    return [statuses[process] for process in processes]


def _signal(processes: list[int], ended: Mapping[int, int], number: signal.Signals) -> None:
    for process in processes:
        if process not in ended:
            os.kill(process, number)


def _run_and_exit(arguments: list[str], out: Path, log: Path, counter: EventCounter, writing: int) -> None:
    """Run the command in this forked process, write the number of events to a pipe, and end."""
    status = 1
    try:
        with log.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.addaudithook(counter)
        sys.argv = ["yt8m", *[str(out) if argument == "OUT" else argument for argument in arguments]]
        status = _status_of_main()
        os.write(writing, str(counter.count).encode())
    finally:
        os._exit(status)


def _status_of_main() -> int:
    from yt8m.cli.main import main

    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def contents(folder: Path) -> dict[str, bytes]:
    """Files to compare, by name; hidden ones too, but not TensorBoard's."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.parent.name != "tensorboard")
    return {
        path.relative_to(folder).as_posix(): b"" if path.name in NOT_COMPARED else path.read_bytes() for path in files
    }


def attack(folder: Path, ranks: int, first: int, step: int, arguments: list[str]) -> dict[str, Any]:
    """Kill the command at every `step`-th event of every rank; see the module."""
    whole = folder / "whole"
    ended = run_forked(arguments, whole, ranks)
    if any(ended.statuses):
        return {"events": 0, "tried": 0, "problems": {"whole": ended.printed}}
    expected = contents(whole)
    events = [(rank, event) for rank, count in enumerate(ended.counts) for event in range(count)]
    problems: dict[str, str] = {}
    tried = events[first::step]
    for rank, event in tried:
        name = f"{rank}-{event}"
        if problem := _problem(folder / f"killed-{name}", ranks, (rank, event), arguments, expected):
            problems[name] = problem
    return {"events": len(events), "tried": len(tried), "problems": problems}


def _problem(
    out: Path, ranks: int, kill_at: tuple[int, int], arguments: list[str], expected: Mapping[str, bytes]
) -> str | None:
    """Kill the command at an event, run it again, and say what is wrong afterwards."""
    ended = run_forked(arguments, out, ranks, kill_at)
    if ended.statuses[kill_at[0]] != -signal.SIGKILL:
        return f"ended with {ended.statuses} instead of being killed: {ended.printed}"
    before = sorted(contents(out))
    ended = run_forked(arguments, out, ranks)
    if any(ended.statuses):
        return f"ended with {ended.statuses} after {before[-6:]}: {ended.printed[-1500:]}"
    found = contents(out)
    names = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if names:
        return f"differs in {names} after {before[-6:]}"
    beside = [path.name for path in out.parent.iterdir() if path.name not in (out.name, f"{out.name}.log", "whole")]
    others = [name for name in beside if out.name in name]
    shutil.rmtree(out)
    return f"leaves {others}" if others else None


if __name__ == "__main__":
    prepare_environment()

    os.environ["YT8M_NOTIFY"] = ""
    print(json.dumps(attack(Path(sys.argv[1]), *map(int, sys.argv[2:5]), sys.argv[5:])))
