"""Kill the `yt8m` command at every file-system event, run it again, and compare the files with those of a whole run.

A script, because the processes are forked from one that has imported everything and computed nothing yet:

    python -m tests.support.kills FOLDER RANKS FIRST STEP COMMAND ... --out OUT

Every STEP-th event from FIRST on is tried. `OUT` stands for a folder below FOLDER. Prints a JSON object: number of events,
events tried, and what went wrong at which event.

What a killed process leaves is what its files contain at that moment, so a single process is run once, and its folder is
copied at each event. Of RANKS processes that run together, one is killed and the others get SIGTERM, as from torchrun.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yt8m.runtime.environment import prepare_environment

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
SECONDS_TO_STOP = 30.0
EVENTS = frozenset(
    ["os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink", "shutil.rmtree"]
)
MOST_EVENTS = 10_000
NOT_COMPARED = ("stage.yaml", "config.yaml", "recipe.yaml", "catalog.parquet")
"""Files with times, or with the folder's name: only their existence is compared."""


class EventCounter:
    """Counts what Python does to a folder and its lock, and kills the process at one of these events.

    Args:
        folder: The folder.
        kill_at: The event; None for no kill.
        copies: Receives a copy of the folder before each of the events `copied`, named by its number.
        copied: The events to copy the folder at.
    """

    def __init__(
        self, folder: Path, kill_at: int | None, copies: Path | None = None, copied: Container[int] = ()
    ) -> None:
        self.count = 0
        self._lock = str(folder.with_name(f".{folder.name}.lock"))
        self._folder, self._kill_at = folder, kill_at
        self._copies, self._copied, self._is_copying = copies, copied, False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Handle an audit event."""
        if self._is_copying:
            return
        is_write = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES
        if not (is_write or event in EVENTS):
            return
        path = arguments[0]
        if not isinstance(path, str | os.PathLike) or not os.fspath(path).startswith((str(self._folder), self._lock)):
            return
        if self.count == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if self._copies is not None and self.count in self._copied:
            self._is_copying = True
            if self._folder.exists():
                _copy_at_rest(self._folder, self._copies / str(self.count))
            self._is_copying = False
        self.count += 1


def _copy_at_rest(folder: Path, copy: Path) -> None:
    """Copy a folder in which other threads may rename files meanwhile."""
    for _ in range(100):
        before = sorted(folder.rglob("*"))
        with contextlib.suppress(shutil.Error):
            shutil.copytree(folder, copy)
            if before == sorted(folder.rglob("*")):
                return
        shutil.rmtree(copy)
    raise RuntimeError(f"{folder} never rests")


@dataclass
class Ended:
    """How a command ended, by rank: exit status (negative: the signal that killed it), number of events, output."""

    statuses: list[int]
    counts: list[int]
    printed: str


def run_forked(
    arguments: list[str],
    out: Path,
    ranks: int,
    kill_at: tuple[int, int] | None = None,
    copies: Path | None = None,
    copied: Container[int] = (),
) -> Ended:
    """Run the command in forked processes, and kill one of them, (rank, event), if asked; see `EventCounter`."""
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
            counter = EventCounter(out, kill_at[1] if kill_at and kill_at[0] == rank else None, copies, copied)
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
    """Files to compare, by name; hidden ones too, but neither TensorBoard's nor locks, which a dead process does not hold."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.parent.name != "tensorboard")
    files = (path for path in found if path.suffix != ".lock")
    return {
        path.relative_to(folder).as_posix(): b"" if path.name in NOT_COMPARED else path.read_bytes() for path in files
    }


def _comparable(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Unfinished files have random names, and a checkpoint contains times."""
    unfinished = re.compile(r"\.[0-9a-f]{8}(/|$)")
    return {
        unfinished.sub(r"\1", name): b"" if name.endswith("checkpoint.pt") else content
        for name, content in files.items()
    }


def _differing(found: Mapping[str, bytes], expected: Mapping[str, bytes]) -> list[str]:
    return sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))


def attack(folder: Path, ranks: int, first: int, step: int, arguments: list[str]) -> dict[str, Any]:
    """Kill the command at every `step`-th event of every rank; see the module."""
    out, copies = folder / "run", folder / "copies"
    copied = range(first, MOST_EVENTS, step) if ranks == 1 else ()
    ended = run_forked(arguments, out, ranks, None, copies, copied)
    if any(ended.statuses):
        return {"events": 0, "tried": 0, "problems": {"whole": ended.printed}}
    expected = contents(out)
    events = [(rank, event) for rank, count in enumerate(ended.counts) for event in range(count)]
    problems: dict[str, str] = {}
    tried = events[first::step]
    for rank, event in tried:
        shutil.rmtree(out)
        if ranks == 1:
            # The first one is killed too, to prove that its copy is what a kill leaves.
            problem = _killed(out, ranks, (rank, event), arguments) if event == first else None
            killed = contents(out) if out.exists() else {}
            copy = copies / str(event)
            if (
                problem is None
                and event == first
                and (names := _differing(_comparable(killed), _comparable(contents(copy))))
            ):
                problem = f"a kill leaves other files than the copy has: {names}"
            shutil.rmtree(out, ignore_errors=True)
            if copy.exists():
                copy.rename(out)
            out.with_name(f".{out.name}.lock").touch()
        else:
            problem = _killed(out, ranks, (rank, event), arguments)
        if problem := problem or _problem(out, ranks, arguments, expected):
            problems[f"{rank}-{event}"] = problem
    return {"events": len(events), "tried": len(tried), "problems": problems}


def _killed(out: Path, ranks: int, kill_at: tuple[int, int], arguments: list[str]) -> str | None:
    """Kill the command at an event, and say what is wrong."""
    ended = run_forked(arguments, out, ranks, kill_at)
    if ended.statuses[kill_at[0]] != -signal.SIGKILL:
        return f"ended with {ended.statuses} instead of being killed: {ended.printed}"
    return None


def _problem(out: Path, ranks: int, arguments: list[str], expected: Mapping[str, bytes]) -> str | None:
    """Run the command again, and say what is wrong afterwards."""
    before = sorted(contents(out)) if out.exists() else []
    ended = run_forked(arguments, out, ranks)
    if any(ended.statuses):
        return f"ended with {ended.statuses} after {before[-6:]}: {ended.printed[-1500:]}"
    found = contents(out)
    if names := _differing(found, expected):
        return f"differs in {names} after {before[-6:]}"
    beside = {path.name for path in out.parent.iterdir()} - {out.name, f"{out.name}.log", "copies"}
    return f"leaves {sorted(beside)}" if beside else None


def main() -> None:
    """Attack as the arguments say, and print what was found."""
    prepare_environment()

    os.environ["YT8M_NOTIFY"] = ""
    print(json.dumps(attack(Path(sys.argv[1]), *map(int, sys.argv[2:5]), sys.argv[5:])))


if __name__ == "__main__":
    main()
