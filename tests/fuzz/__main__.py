"""Fuzz the shard readers with limits on memory and time. The exit status is 1 after a failure."""

from __future__ import annotations

import argparse
import faulthandler
import resource
import sys
import tempfile
from pathlib import Path

from tests.fuzz.runner import CORPUS, Tally, fuzz, grow, print_progress, table

EXTRA_MEMORY = 2 * 2**30
"""Address space that a run may use in addition to that at its start."""

MAX_SECONDS_WITHOUT_PROGRESS = 120
"""After this time without progress, the process prints its traceback and exits."""


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--records", type=int, default=10_000, help="number of records")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random generator")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="time limit")
    parser.add_argument("--save", type=Path, default=CORPUS, help="folder for failing inputs")
    parser.add_argument("--grow", action="store_true", help="also save a minimal input of each new outcome")
    arguments = parser.parse_args()

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + EXTRA_MEMORY, resource.RLIM_INFINITY))

    def progress(tally: Tally) -> None:
        faulthandler.dump_traceback_later(MAX_SECONDS_WITHOUT_PROGRESS, exit=True)
        print_progress(tally)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        print(f"The input under test is in {folder}.", file=sys.stderr)
        tally = fuzz(
            arguments.records,
            arguments.seed,
            folder,
            save=arguments.save,
            seconds=arguments.seconds,
            progress=progress,
        )
        faulthandler.cancel_dump_traceback_later()
        print(file=sys.stderr)
        print(table(tally))
        if arguments.grow:
            for path in grow(arguments.save, tally, folder):
                print(f"new: {path.name}")
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
