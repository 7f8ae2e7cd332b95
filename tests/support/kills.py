"""Kill the `yt8m` command at every file-system event, run it again, and compare the files with those of a whole run.

A script, because the processes are forked from one that has imported everything and computed nothing yet:

    python -m tests.support.kills FOLDER FIRST STEP COMMAND ... --out OUT

Every STEP-th event from FIRST on is tried. `OUT` stands for a folder below FOLDER. Prints a JSON object: number of events,
events tried, and what went wrong at which event.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from yt8m.runtime.environment import prepare_environment

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
EVENTS = frozenset(
    ["os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink", "shutil.rmtree"]
)
NOT_COMPARED = ("stage.yaml", "config.yaml", "recipe.yaml")
"""Files with times, or with the folder's name: only their existence is compared."""


class EventCounter:
    """Counts what Python does to the files of a folder, and kills the process at one of these events."""

    def __init__(self, folder: Path, kill_at: int | None) -> None:
        self.count = 0
        self._folder, self._kill_at = str(folder), kill_at

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Handle an audit event."""
        is_write = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES
        if not (is_write or event in EVENTS):
            return
        path = arguments[0]
        if not isinstance(path, str | os.PathLike) or not os.fspath(path).startswith(self._folder):
            return
        if self.count == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1


def run_forked(arguments: list[str], out: Path, kill_at: int | None) -> tuple[int, int, str]:
    """Run the command in a forked process.

    Returns:
        Exit status (negative: the signal that killed it), number of events, and what it printed.
    """
    log = out.with_name(f"{out.name}.log")
    reading, writing = os.pipe()
    process = os.fork()
    if not process:
        status = 1
        try:
            with log.open("wb") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            counter = EventCounter(out, kill_at)
            sys.addaudithook(counter)
            sys.argv = ["yt8m", *[str(out) if argument == "OUT" else argument for argument in arguments]]
            status = _status_of_main()
            os.write(writing, str(counter.count).encode())
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        count = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return status, int(count or 0), log.read_text(errors="replace")


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
    """Files to compare, by name: neither TensorBoard's nor hidden temporary ones."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.parent.name != "tensorboard")
    return {
        path.relative_to(folder).as_posix(): b"" if path.name in NOT_COMPARED else path.read_bytes()
        for path in files
        if not path.name.startswith(".")
    }


def attack(folder: Path, first: int, step: int, arguments: list[str]) -> dict[str, Any]:
    """Kill the command at every `step`-th event; see the module."""
    whole = folder / "whole"
    status, num_events, printed = run_forked(arguments, whole, None)
    if status:
        return {"events": 0, "tried": 0, "problems": {"whole": printed}}
    expected = contents(whole)
    problems: dict[int, str] = {}
    tried = range(first, num_events, step)
    for event in tried:
        out = folder / f"killed-{event}"
        status, _, printed = run_forked(arguments, out, event)
        if status != -signal.SIGKILL:
            problems[event] = f"ended with {status} instead of being killed: {printed}"
            continue
        before = sorted(contents(out))
        status, _, printed = run_forked(arguments, out, None)
        if status:
            problems[event] = f"ended with {status} after {before[-6:]}: {printed[-1500:]}"
            continue
        found = contents(out)
        names = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        if names:
            problems[event] = f"differs in {names} after {before[-6:]}"
        shutil.rmtree(out)
    return {"events": num_events, "tried": len(tried), "problems": problems}


if __name__ == "__main__":
    prepare_environment()

    os.environ["YT8M_NOTIFY"] = ""
    print(json.dumps(attack(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])))
