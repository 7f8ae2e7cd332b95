"""Fuzz the readers of shards, with bounds on memory and time: exit status 1 if anything failed."""

from __future__ import annotations

import argparse
import faulthandler
import resource
import sys
import tempfile
from pathlib import Path

from tests.fuzz.runner import CORPUS, Tally, fuzz, grow, print_progress, table

MORE_MEMORY = 2 * 2**30
"""Addresses that a run may take beyond those that it begins with."""

MAX_SECONDS_STILL = 120
"""Without a sign of life for so long the process says where it hangs and ends."""


def main() -> int:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--records", type=int, default=10_000, help="records to try")
    parser.add_argument("--seed", type=int, default=0, help="decides everything")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--save", type=Path, default=CORPUS, help="folder for inputs that fail")
    parser.add_argument("--grow", action="store_true", help="save a minimal input of each new outcome as well")
    arguments = parser.parse_args()

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MORE_MEMORY, resource.RLIM_INFINITY))

    def progress(tally: Tally) -> None:
        faulthandler.dump_traceback_later(MAX_SECONDS_STILL, exit=True)
        print_progress(tally)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        print(f"If this hangs, what is being tried lies in {folder}.", file=sys.stderr)
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
