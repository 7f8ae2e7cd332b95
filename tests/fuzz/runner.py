"""The fuzzing loop: create and check records and shards, count outcomes, and store inputs.

A reader that hangs is interrupted by a timer of processor time, and that counts as a failure. Failing inputs are
written immediately and unchanged. For new outcomes, the smallest input is minimized and written.
"""

from __future__ import annotations

import hashlib
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from tests.fuzz.check import DefectError, check_record, check_shard
from tests.fuzz.fields import Path as FieldPath
from tests.fuzz.fields import replaced, tree
from tests.fuzz.mutations import mutated_record, mutated_shard

CORPUS = Path(__file__).parent / "corpus"
CURRENT = "current.record"
"""The record under test, in the folder of the shards."""

MAX_SECONDS_EACH = 5.0
"""Processor time after which a record or a shard is interrupted."""

SHARD_EVERY = 60
"""One of this many inputs is a shard, of 15 records on average; the others are single records."""

Progress = Callable[["Tally"], None]


@dataclass
class Tally:
    """Counts and failures of a run.

    Args:
        num_records: Records tested, singly or in a shard.
        num_shards: Shards tested.
        kinds: Number of occurrences of each outcome.
        smallest: The smallest input of each outcome.
        failures: File name of the input and error of each failed check.
        slowest: Seconds and size of the slowest record.
        peak_bytes: Largest memory, and the size of its record.
    """

    num_records: int = 0
    num_shards: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    smallest: dict[str, bytes] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    slowest: tuple[float, int] = (0.0, 0)
    peak_bytes: tuple[int, int] = (0, 0)

    def count(self, kind: str, data: bytes) -> None:
        self.kinds[kind] += 1
        if kind not in self.smallest or len(data) < len(self.smallest[kind]):
            self.smallest[kind] = data


def fuzz(
    num_records: int,
    seed: int,
    folder: Path,
    *,
    save: Path | None = None,
    seconds: float = float("inf"),
    max_failures: int = 20,
    progress: Progress | None = None,
) -> Tally:
    """Check mutated records and shards.

    Args:
        num_records: Number of records, including those in shards.
        seed: Seed of the random generator.
        folder: An empty folder for the shards.
        save: Folder for failing inputs.
        seconds: Time after which to stop.
        max_failures: Failures after which to stop.
        progress: Called with the tally from time to time.
    """
    tally = Tally()
    end = time.monotonic() + seconds
    number = 0
    while tally.num_records < num_records and len(tally.failures) < max_failures and time.monotonic() < end:
        if number % SHARD_EVERY == SHARD_EVERY - 1:
            _try_shard(tally, seed, number, folder, save)
        else:
            _try_record(tally, seed, number, folder, save)
        if progress is not None and number % 1000 == 0:
            progress(tally)
        number += 1
    return tally


def replay(path: Path, folder: Path) -> tuple[str, ...]:
    """Check a file of the corpus.

    Args:
        path: `*.record` or `*.shard`.
        folder: An empty folder for shards.

    Returns:
        The outcomes.

    Raises:
        DefectError: A check failed.
    """
    with limited_time():
        if path.suffix == ".shard":
            return (check_shard(path.read_bytes(), folder / "replayed.tfrecord"),)
        return check_record(path.read_bytes()).kinds


@contextmanager
def limited_time() -> Iterator[None]:
    """Raise `TimeoutError` after too much processor time. Waiting without processor time is left to a watchdog."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"still busy after {MAX_SECONDS_EACH:g} s")

    before = signal.signal(signal.SIGVTALRM, interrupt)
    # Exceptions in weak-reference callbacks are ignored, so the alarm repeats until one is raised elsewhere.
    signal.setitimer(signal.ITIMER_VIRTUAL, MAX_SECONDS_EACH, 0.1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _try_record(tally: Tally, seed: int, number: int, folder: Path, save: Path | None) -> None:
    payload = mutated_record(seed, number)
    tally.num_records += 1
    # Left in the folder if a watchdog ends the process.
    (folder / CURRENT).write_bytes(payload)
    try:
        with limited_time():
            outcome = check_record(payload)
    except Exception as error:
        _fail(tally, error, payload, f"seed{seed}-{number}.record", save)
        return
    for kind in outcome.kinds:
        tally.count(kind, payload)
    tally.slowest = max(tally.slowest, (outcome.seconds, len(payload)))
    tally.peak_bytes = max(tally.peak_bytes, (outcome.peak_bytes, len(payload)))


def _try_shard(tally: Tally, seed: int, number: int, folder: Path, save: Path | None) -> None:
    records, shard = mutated_shard(seed, number)
    tally.num_records += len(records)
    tally.num_shards += 1
    try:
        with limited_time():
            # Readers map shards, so each needs a different name.
            tally.count(check_shard(shard, folder / f"{seed}-{number}.tfrecord"), shard)
    except Exception as error:
        _fail(tally, error, shard, f"seed{seed}-{number}.shard", save)


def _fail(tally: Tally, error: Exception, data: bytes, name: str, save: Path | None) -> None:
    """Count a failure. The checker must accept any input, so any exception is a failure."""
    found = str(error) if isinstance(error, DefectError) else f"{type(error).__name__}: {error}"
    tally.failures.append(f"failed-{name}: {found}")
    if save is not None:
        save.mkdir(parents=True, exist_ok=True)
        (save / f"failed-{name}").write_bytes(data)


def grow(corpus: Path, tally: Tally, folder: Path) -> list[Path]:
    """Add a minimal input for each outcome that no file of the corpus has.

    Args:
        corpus: The folder of the corpus.
        tally: Outcomes of a run.
        folder: An empty folder for shards.

    Returns:
        The files added.
    """
    known = {kind for path in corpus.glob("*.*") if path.suffix != ".md" for kind in replay(path, folder)}
    added = []
    for kind in sorted(tally.smallest):
        if kind in known:
            continue
        suffix = "shard" if kind.startswith("index_folder") else "record"
        data = _smaller(tally.smallest[kind], kind, folder, suffix)
        slug = re.sub(r"[^a-z0-9_]+", "-", kind.lower()).strip("-")[:90].strip("-")
        path = corpus / f"{slug}-{hashlib.sha256(data).hexdigest()[:6]}.{suffix}"
        path.write_bytes(data)
        known.update(replay(path, folder))
        added.append(path)
    return added


def _smaller(data: bytes, kind: str, folder: Path, suffix: str) -> bytes:
    """Minimize an input while it keeps its outcome: first remove fields, then spans of bytes."""
    candidate = folder / f"candidate.{suffix}"

    def is_kept(shorter: bytes) -> bool:
        candidate.write_bytes(shorter)
        try:
            return kind in replay(candidate, folder)
        except DefectError:
            return False
        finally:
            candidate.unlink()

    size = len(data) + 1
    while len(data) < size:
        size = len(data)
        if suffix == "record":
            data = _without_fields(data, is_kept)
        data = _without_spans(data, is_kept)
    return data


def _without_fields(data: bytes, is_kept: Callable[[bytes], bool]) -> bytes:
    position = 0
    while position < len(paths := list(_paths((tree(data),)))):
        shorter = replaced(data, paths[position], b"", update_lengths=True)
        if len(shorter) < len(data) and is_kept(shorter):
            data = shorter
        else:
            position += 1
    return data


def _without_spans(data: bytes, is_kept: Callable[[bytes], bool]) -> bytes:
    width = max(1, len(data) // 2)
    while width >= max(1, len(data) // 64):
        at = 0
        while at < len(data):
            shorter = data[:at] + data[at + width :]
            if is_kept(shorter):
                data = shorter
            else:
                at += width
        if width == 1:
            break
        width //= 2
    return data


def _paths(path: FieldPath) -> Iterator[FieldPath]:
    for child in path[-1].children:
        yield (*path, child)
        yield from _paths((*path, child))


def print_progress(tally: Tally) -> None:
    """Print progress over the previous line."""
    print(f"\r{tally.num_records:,} records, {len(tally.failures)} failures", end="", file=sys.stderr, flush=True)


def table(tally: Tally) -> str:
    """A readable summary of a run."""
    lines = [
        f"{count:9,}  {kind}" for kind, count in sorted(tally.kinds.items(), key=lambda item: (item[0][:22], -item[1]))
    ]
    lines += [
        f"{tally.num_records:9,}  records tested, in {tally.num_shards:,} shards and singly",
        f"slowest reading {1000 * tally.slowest[0]:.1f} ms, of {tally.slowest[1]:,} bytes",
        f"most memory {tally.peak_bytes[0]:,} bytes, for a record of {tally.peak_bytes[1]:,}",
        f"failures {len(tally.failures)}",
    ]
    return "\n".join(lines + tally.failures)
