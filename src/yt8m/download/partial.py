"""Partial downloads: threads that stop together, and the `.NAME.part` files that they append to."""

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing import TimeoutError as NoResultYet
from multiprocessing.pool import ThreadPool
from pathlib import Path
from threading import Event, Lock
from typing import TypeVar

_TICK_SECONDS = 0.2
_STOP_SECONDS = 0.5

Item = TypeVar("Item")
Result = TypeVar("Result")


class Stopped(Exception):  # noqa: N818 - control flow, no error
    """Raised in a thread that has to stop."""


class Counter:
    """A number that several threads add to."""

    def __init__(self) -> None:
        self._lock = Lock()
        self.value = 0

    def add(self, number: int) -> None:
        """Add a number, which may be negative."""
        with self._lock:
            self.value += number


class StoppableThreads:
    """Daemon threads that stop together; one that waits for the network does not delay the end of the command."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.stopping = Event()
        self._active = Counter()

    def check(self) -> None:
        """Raise `Stopped`, in a thread, once all have to stop; called before a file is written to."""
        if self.stopping.is_set():
            raise Stopped

    def stop(self) -> None:
        """Stop all threads; wait a moment for those that are writing."""
        self.stopping.set()
        deadline = time.monotonic() + _STOP_SECONDS
        while self._active.value and time.monotonic() < deadline:
            time.sleep(0.01)

    def map(
        self, work: Callable[[Item], Result], items: Sequence[Item], tick: Callable[[], None]
    ) -> Iterator[tuple[Item, Result]]:
        """Call a function for each item, and yield the results as they come, in any order.

        Args:
            work: Called in a thread; its exceptions are raised here.
            items: Its arguments.
            tick: Called in this thread several times a second.
        """

        def run(item: Item) -> tuple[Item, Result]:
            self.check()
            self._active.add(1)
            try:
                return item, work(item)
            finally:
                self._active.add(-1)

        pool = ThreadPool(max(1, min(self.size, len(items))))
        try:
            results = pool.imap_unordered(run, items)
            for _ in items:
                yield _next(results.next, tick)
        finally:
            pool.terminate()


def _next(next_result: Callable[[float], tuple[Item, Result]], tick: Callable[[], None]) -> tuple[Item, Result]:
    while True:
        tick()
        try:
            return next_result(_TICK_SECONDS)
        except NoResultYet:
            continue


def part_path(path: Path) -> Path:
    """The file that a download grows in: always the same, so that an interrupted download finds it again."""
    return path.with_name(f".{path.name}.part")


def publish(path: Path) -> None:
    """Flush a part to the disk and give it its final name."""
    part = part_path(path)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)


def write_complete(path: Path, content: bytes) -> None:
    """Write a small file that is complete or absent; after a kill, the next download reuses its part."""
    part_path(path).write_bytes(content)
    publish(path)


def hash_file(path: Path, threads: StoppableThreads, count: Counter) -> "tuple[hashlib._Hash, int]":
    """MD5 of a file, to be updated further, and its size in bytes."""
    digest, size = hashlib.md5(usedforsecurity=False), 0
    with path.open("rb") as file:
        while block := file.read(2**20):
            threads.check()
            digest.update(block)
            size += len(block)
            count.add(len(block))
    return digest, size


class Part:
    """The part of a shard that has arrived: its size and its MD5 so far.

    Args:
        path: The shard's final name.
        threads: Checked between blocks.
        count: Counts bytes that arrive, and negatively those discarded.
    """

    def __init__(self, path: Path, threads: StoppableThreads, count: Counter) -> None:
        self.path = path
        self.part = part_path(path)
        self.size = 0
        self.validator: str | None = None
        self.can_resume = True
        self._threads = threads
        self._count = count
        self._digest = hashlib.md5(usedforsecurity=False)
        if self.part.exists():
            self._digest, self.size = hash_file(self.part, threads, Counter())

    def matches(self, md5: str) -> bool:
        """Whether the part is complete: whether this is its MD5."""
        return self._digest.hexdigest() == md5 and self.part.exists()

    def mismatch(self, md5: str) -> str:
        """What is wrong with a complete download that does not match."""
        return f"its MD5 was not the plan's ({md5})"

    def clear(self) -> None:
        """Discard the part."""
        self._threads.check()
        self.part.unlink(missing_ok=True)
        self._count.add(-self.size)
        self._digest = hashlib.md5(usedforsecurity=False)
        self.size = 0
        self.validator = None

    def append(self, blocks: Iterable[bytes]) -> None:
        """Append blocks, until they end or their iterator raises."""
        self._threads.check()
        with self.part.open("ab") as file:
            for block in blocks:
                self._threads.check()
                file.write(block)
                self._digest.update(block)
                self.size += len(block)
                self._count.add(len(block))
