"""Fetching files from a server that may stall, break off, lie or be out of reach, with several connections.

A file grows in `.NAME.part`. A retry goes on behind the last byte that arrived, which is why retries are ours and not
urllib3's; what is whole is decided by MD5 and nothing else, so whatever a server does, it can only cost time.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread
from typing import TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3 import exceptions as http_errors

MAX_SHARD_BYTES = 16 * 2**30
"""Longest shard that is taken. The real ones have some 300 MB."""

MAX_SMALL_BYTES = 64 * 2**20
"""Longest plan or vocabulary that is taken. The real ones have some 200 kB."""

MAX_DOWNLOADS = 3
"""How often a shard is fetched whole, when its MD5 is wrong each time."""

MAX_SMALL_TRIES = 4
"""Tries of a small file: nothing large has begun, and a person waits for it."""

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_BLOCK_BYTES = 2**18
_TICK_SECONDS = 0.2
_PASSING_STATUSES = frozenset([408, 429, 500, 502, 503, 504])

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Patience:
    """How long a download bears with a server.

    Args:
        stall_seconds: Longest time without a byte.
        max_in_vain: Tries of a shard in a row that brought no byte further.
        first_delay_seconds: Pause before the second try; it doubles with each further one in vain.
        longest_delay_seconds: Longest pause of our own.
        longest_wanted_seconds: Longest pause that a server can ask for (Retry-After).
        seed: Decides the jitter of the pauses; other for other clients, so that they do not come back all at once.
    """

    stall_seconds: float = 30.0
    max_in_vain: int = 8
    first_delay_seconds: float = 1.0
    longest_delay_seconds: float = 60.0
    longest_wanted_seconds: float = 300.0
    seed: int = 0


def in_words(num_bytes: float) -> str:
    """A number of bytes for people: 1.23 GB."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:,.2f} {unit}"
    return f"{num_bytes:,.0f} bytes"


class StoppedError(Exception):
    """Raised in a thread that has to leave its work."""


class Crew:
    """Threads that work side by side and stop together.

    They are daemons: one that waits for the network does not hold up the end of the command, and looks at `stopping`
    before it touches a file again.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.stopping = Event()
        self._threads: list[Thread] = []

    def check(self) -> None:
        """Leave the work, in a thread, once all have to stop."""
        if self.stopping.is_set():
            raise StoppedError

    def stop(self) -> None:
        """Let all threads leave their work; wait a moment for those that are not waiting themselves."""
        self.stopping.set()
        deadline = time.monotonic() + 0.5
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def each(
        self, work: Callable[[Item], Result], items: Sequence[Item], tick: Callable[[], None]
    ) -> Iterator[tuple[Item, Result]]:
        """Do a work for each item, and yield what it gave as it is done, in any order.

        Args:
            work: Called in a thread. An exception of it ends the loop of the caller.
            items: What it is called with.
            tick: Called in this thread every now and then.
        """
        waiting: SimpleQueue[Item] = SimpleQueue()
        finished: SimpleQueue[tuple[Item, Result] | Exception] = SimpleQueue()
        for item in items:
            waiting.put(item)

        def labor() -> None:
            while not self.stopping.is_set():
                try:
                    item = waiting.get_nowait()
                except Empty:
                    return
                try:
                    finished.put((item, work(item)))
                except StoppedError:
                    return
                except Exception as error:
                    # Raised again in the thread that waits.
                    finished.put(error)
                    return

        self._threads = [Thread(target=labor, daemon=True) for _ in range(min(self.size, len(items)))]
        for thread in self._threads:
            thread.start()
        for _ in items:
            yield _next(finished, tick)


def _next(finished: SimpleQueue[tuple[Item, Result] | Exception], tick: Callable[[], None]) -> tuple[Item, Result]:
    while True:
        tick()
        try:
            result = finished.get(timeout=_TICK_SECONDS)
        except Empty:
            continue
        if isinstance(result, Exception):
            raise result
        return result


class Count:
    """A number of bytes that several threads add to."""

    def __init__(self) -> None:
        self._lock = Lock()
        self.num_bytes = 0

    def add(self, num_bytes: int) -> None:
        """Count bytes; less than 0 for those thrown away."""
        with self._lock:
            self.num_bytes += num_bytes


def part_path(path: Path) -> Path:
    """Where a file grows until it is whole. Always the same, so that a stopped download finds it again."""
    return path.with_name(f".{path.name}.part")


def publish(path: Path) -> None:
    """Give a part its name."""
    part = part_path(path)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)


def write_whole(path: Path, content: bytes) -> None:
    """Write a small file that is whole or absent.

    Unlike `files.written_atomically`, a process that is killed leaves nothing that the next one does not pick up.
    """
    part_path(path).write_bytes(content)
    publish(path)


class Part:
    """What has arrived of a shard: how many bytes, and their MD5 so far.

    Args:
        path: The shard's final name.
        crew: Asked between blocks whether to go on.
        count: Told of bytes that came or were thrown away.
    """

    def __init__(self, path: Path, crew: Crew, count: Count) -> None:
        self.path = path
        self.part = part_path(path)
        self.size = 0
        self.validator: str | None = None
        self.can_resume = True
        self._crew = crew
        self._count = count
        self._digest = hashlib.md5(usedforsecurity=False)
        if self.part.exists():
            self._digest, self.size = hashed(self.part, crew, Count())

    def holds(self, md5: str) -> bool:
        """Say whether that is the MD5 of what has arrived."""
        return self._digest.hexdigest() == md5 and self.part.exists()

    def clear(self) -> None:
        """Throw away what has arrived."""
        self._crew.check()
        self.part.unlink(missing_ok=True)
        self._count.add(-self.size)
        self._digest = hashlib.md5(usedforsecurity=False)
        self.size = 0
        self.validator = None

    def append(self, blocks: Iterable[bytes]) -> None:
        """Write blocks behind what has arrived, until they end or an exception comes in place of one."""
        self._crew.check()
        with self.part.open("ab") as file:
            for block in blocks:
                self._crew.check()
                file.write(block)
                self._digest.update(block)
                self.size += len(block)
                self._count.add(len(block))


def hashed(path: Path, crew: Crew, count: Count) -> tuple[hashlib._Hash, int]:
    """The MD5 of a file, to be gone on with, and its size."""
    digest, size = hashlib.md5(usedforsecurity=False), 0
    with path.open("rb") as file:
        while block := file.read(2**20):
            crew.check()
            digest.update(block)
            size += len(block)
            count.add(len(block))
    return digest, size


class _PassingError(Exception):
    """What may be over at the next try.

    Args:
        reason: What happened.
        wanted_seconds: How long the server asks to wait, where it does.
    """

    def __init__(self, reason: str, wanted_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.wanted_seconds = wanted_seconds


class LastingError(Exception):
    """What another try would not change.

    Args:
        reason: What happened.
        is_outage: Whether it is something passing that did not pass.
    """

    def __init__(self, reason: str, is_outage: bool = False) -> None:
        super().__init__(reason)
        self.is_outage = is_outage


class _Tries:
    """Counts tries that brought nothing, and pauses between them.

    Args:
        patience: How many, and how long the pauses.
        name: What is fetched; with the seed, it decides the jitter.
        max_in_vain: How many tries may bring nothing.
        pause: Waits for some seconds.
    """

    def __init__(self, patience: Patience, name: str, max_in_vain: int, pause: Callable[[float], object]) -> None:
        self._patience = patience
        self._max_in_vain = max_in_vain
        self._pause = pause
        self._random = random.Random(f"{patience.seed} {name}")
        self._in_vain = 0

    def after(self, error: _PassingError, got_further: bool = False) -> None:
        """Wait before the next try.

        Raises:
            LastingError: There were too many in vain.
        """
        self._in_vain = 0 if got_further else self._in_vain + 1
        if self._in_vain == self._max_in_vain:
            raise LastingError(f"{error}, {self._in_vain} times in a row", is_outage=True)
        patience = self._patience
        delay = min(patience.longest_delay_seconds, patience.first_delay_seconds * 2 ** max(0, self._in_vain - 1))
        delay *= self._random.uniform(0.5, 1)
        if error.wanted_seconds is not None:
            delay = max(delay, min(error.wanted_seconds, patience.longest_wanted_seconds))
        self._pause(delay)


class Network:
    """Requests to a server, whose failures are passing or lasting.

    Args:
        address: Of the server, which is asked through the environment's proxy where there is one for it.
        crew: As many connections, and whether to go on.
        patience: Time limits and retries.
        pause: Waits for some seconds between tries; None for a wait that ends when the crew stops.
    """

    def __init__(
        self, address: str, crew: Crew, patience: Patience, pause: Callable[[float], object] | None = None
    ) -> None:
        self._crew = crew
        self._patience = patience
        self._pause = crew.stopping.wait if pause is None else pause
        parts = urlsplit(address)
        proxy = getproxies().get(parts.scheme)
        timeout = urllib3.Timeout(connect=patience.stall_seconds, read=patience.stall_seconds)
        if proxy is None or proxy_bypass(parts.hostname or ""):
            self._pool = urllib3.PoolManager(maxsize=crew.size, timeout=timeout)
        else:
            self._pool = urllib3.ProxyManager(proxy, maxsize=crew.size, timeout=timeout)

    def close(self) -> None:
        """Close the connections."""
        self._pool.clear()

    def small(self, url: str) -> bytes:
        """Fetch a small file.

        Raises:
            LastingError: It cannot be had.
        """
        tries = _Tries(self._patience, url, min(MAX_SMALL_TRIES, self._patience.max_in_vain), self._pause)
        while True:
            self._crew.check()
            try:
                return self._read_small(url)
            except _PassingError as error:
                tries.after(error)

    def _read_small(self, url: str) -> bytes:
        content = bytearray()
        with closing(self._open("GET", url)) as response, _network_errors(self._patience):
            while block := response.read(_BLOCK_BYTES):
                content += block
                if len(content) > MAX_SMALL_BYTES:
                    raise LastingError(f"it is longer than {in_words(MAX_SMALL_BYTES)}")
        return bytes(content)

    def size_of(self, url: str) -> int | None:
        """Ask how many bytes a shard has; None where the server does not say, or nothing credible."""
        self._crew.check()
        try:
            with closing(self._open("HEAD", url, {"Accept-Encoding": "identity"})) as response:
                size = _content_length(response)
        except (_PassingError, LastingError):
            return None
        return size if size is not None and size <= MAX_SHARD_BYTES else None

    def fetch(self, url: str, part: Part, md5: str) -> None:
        """Fetch a shard, or what is missing of it.

        Args:
            url: Where it is.
            part: What is there, and will be all.
            md5: What it must be.

        Raises:
            LastingError: It cannot be had.
        """
        tries = _Tries(self._patience, url, self._patience.max_in_vain, self._pause)
        furthest, num_downloads = part.size, 0
        while not part.holds(md5):
            self._crew.check()
            try:
                self._receive(url, part)
            except _PassingError as error:
                tries.after(error, part.size > furthest)
                furthest = max(furthest, part.size)
            else:
                if part.holds(md5):
                    return
                part.clear()
                furthest, num_downloads = 0, num_downloads + 1
                if num_downloads == MAX_DOWNLOADS:
                    raise LastingError(f"its MD5 was not the plan's ({md5}), {num_downloads} times in a row")

    def _receive(self, url: str, part: Part) -> None:
        """Ask for what is missing, once; return when the server says that it sent it all."""
        headers = {"Accept-Encoding": "identity"}
        asked = part.size if part.can_resume else 0
        if asked:
            headers["Range"] = f"bytes={asked}-"
            if part.validator is not None:
                headers["If-Range"] = part.validator
        with closing(self._open("GET", url, headers)) as response:
            if response.status == 416:
                # Nothing comes behind a part that is not right: it is as if all had come, and was wrong.
                return
            part.can_resume = True
            end, total = _announced(response, asked, part)
            if total is not None and total > MAX_SHARD_BYTES:
                raise LastingError(f"the server announces {in_words(total)}, more than any shard has")
            if part.size and not (response.status == 206 and asked):
                part.clear()
            part.validator = _validator(response)
            with _network_errors(self._patience):
                part.append(_blocks(response, part, end))
            if total is not None and part.size < total:
                raise _PassingError(f"the server sent {part.size:,} of {total:,} bytes")

    def _open(self, method: str, url: str, headers: dict[str, str] | None = None) -> urllib3.BaseHTTPResponse:
        redirects = urllib3.Retry(
            total=None, connect=0, read=0, status=0, other=0, redirect=5, respect_retry_after_header=False
        )
        with _network_errors(self._patience):
            response = self._pool.request(method, url, headers=headers, preload_content=False, retries=redirects)
        history = response.retries.history if response.retries is not None else ()
        is_downgraded = url.startswith("https:") and any(
            (hop.redirect_location or "").lower().startswith("http:") for hop in history
        )
        if response.status in (200, 206, 416) and not is_downgraded:
            return response
        response.close()
        if is_downgraded:
            raise LastingError("the server sends us on to an address without TLS")
        if response.status in _PASSING_STATUSES:
            raise _PassingError(f"the server answered {response.status}", _retry_after(response))
        raise LastingError(f"the server answered {response.status}")


@contextmanager
def _network_errors(patience: Patience) -> Iterator[None]:
    """Say a failure of the network in words, and whether it may pass."""
    try:
        yield
    except http_errors.HTTPError as error:
        cause = getattr(error, "reason", None) or error
        if isinstance(cause, http_errors.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(cause):
            raise LastingError(f"the server's certificate cannot be trusted: {cause}") from error
        if isinstance(cause, http_errors.NewConnectionError):
            reason = f"no connection ({str(cause).partition(': ')[2]})"
        elif isinstance(cause, http_errors.TimeoutError):
            reason = f"no byte came for {patience.stall_seconds:g} seconds"
        elif isinstance(cause, http_errors.ProtocolError):
            reason = "the connection broke off"
        else:
            reason = str(cause)
        raise _PassingError(reason) from error


def _blocks(response: urllib3.BaseHTTPResponse, part: Part, end: int | None) -> Iterator[bytes]:
    """The body of a response as it arrives: `read1` waits for no more than there is, so a stall loses nothing.

    Raises:
        LastingError: It is longer than announced, or than any shard.
    """
    limit = MAX_SHARD_BYTES if end is None else end
    # A body whose length is known ends there, whatever the server sends behind it.
    is_bounded = _content_length(response) is not None
    while block := response.read1(min(_BLOCK_BYTES, limit - part.size) if is_bounded else _BLOCK_BYTES):
        if part.size + len(block) > limit:
            raise LastingError(f"the server sends more than {in_words(limit)}")
        yield block


def _announced(response: urllib3.BaseHTTPResponse, asked: int, part: Part) -> tuple[int | None, int | None]:
    """Where the body of a response ends in the shard, and how long the shard is, as far as the server says.

    Raises:
        _PassingError: It is another part than the one asked for; the next try asks for all.
    """
    length = _content_length(response)
    if response.status == 200:
        return length, length
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if match is not None:
        first, last = int(match[1]), int(match[2])
        total = None if match[3] == "*" else int(match[3])
        is_whole_body = length is None or length == last + 1 - first
        if first == asked and first <= last and is_whole_body and (total is None or last < total):
            return last + 1, total
    part.can_resume = False
    raise _PassingError("the server sent another part than the one asked for")


def _content_length(response: urllib3.BaseHTTPResponse) -> int | None:
    text = response.headers.get("Content-Length", "")
    is_chunked = "Transfer-Encoding" in response.headers
    return int(text) if re.fullmatch("[0-9]{1,18}", text) and not is_chunked else None


def _validator(response: urllib3.BaseHTTPResponse) -> str | None:
    """What tells this version of a shard from others; a weak tag may not stand in If-Range (RFC 9110, 13.1.5)."""
    tag = response.headers.get("ETag")
    return tag if tag is not None and tag.startswith('"') else response.headers.get("Last-Modified")


def _retry_after(response: urllib3.BaseHTTPResponse) -> float | None:
    """Seconds that the server asks to wait: it may say them or a date."""
    text = response.headers.get("Retry-After", "").strip()
    if re.fullmatch("[0-9]{1,9}", text):
        return float(text)
    with suppress(ValueError):
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    return None
