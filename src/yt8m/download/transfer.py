"""HTTP downloads that resume: requests, retries, and checks of what a server sends.

A retry continues after the last byte that arrived, and failures count only while no byte arrives, which urllib3's `Retry`
does not support. A file is complete when its MD5 is right, so a faulty server costs time and nothing else.
"""

import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3 import exceptions as http_errors

from yt8m.download.partial import Part, StoppableThreads
from yt8m.errors import reason_of
from yt8m.runtime.console import format_bytes

MAX_SHARD_BYTES = 16 * 2**30
"""Largest shard to accept. The official ones have about 300 MB."""

MAX_SMALL_BYTES = 64 * 2**20
"""Largest plan or vocabulary to accept. The official ones have about 200 kB."""

MAX_DOWNLOADS = 3
"""Complete downloads of a shard whose MD5 is wrong each time."""

MAX_SMALL_ATTEMPTS = 4
"""Attempts at a small file: few, since a person waits for it."""

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_BLOCK_BYTES = 2**18
_TRANSIENT_STATUSES = frozenset([408, 429, 500, 502, 503, 504])


@dataclass(frozen=True)
class RetryPolicy:
    """When and how often a download retries.

    Args:
        stall_seconds: Timeout: longest time without a byte.
        max_failures: Consecutive attempts without progress after which a shard fails.
        first_delay_seconds: Delay before the second attempt; it doubles with each further failure.
        max_delay_seconds: Longest delay of the exponential backoff.
        max_retry_after_seconds: Longest delay that a server can request (Retry-After).
        seed: Seed of the jitter; different for each client, so that they do not retry at the same time.
    """

    stall_seconds: float = 30.0
    max_failures: int = 8
    first_delay_seconds: float = 1.0
    max_delay_seconds: float = 60.0
    max_retry_after_seconds: float = 300.0
    seed: int = 0


class _TransientError(Exception):
    """A failure that the next attempt may not have.

    Args:
        reason: What happened.
        retry_after: Seconds that the server asks to wait; None where it does not.
    """

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class PermanentError(Exception):
    """A failure that another attempt would have too.

    Args:
        reason: What happened.
        is_outage: Whether it is a transient failure that persisted.
    """

    def __init__(self, reason: str, is_outage: bool = False) -> None:
        super().__init__(reason)
        self.is_outage = is_outage


class _Attempts:
    """Counts failed attempts, and waits between them.

    Args:
        policy: Delays.
        name: What is fetched; part of the jitter's seed.
        max_failures: Consecutive attempts that may fail.
        pause: Waits for a number of seconds.
    """

    def __init__(self, policy: RetryPolicy, name: str, max_failures: int, pause: Callable[[float], object]) -> None:
        self._policy = policy
        self._max_failures = max_failures
        self._pause = pause
        self._random = random.Random(f"{policy.seed} {name}")
        self._failures = 0

    def after(self, error: _TransientError, progressed: bool = False) -> None:
        """Wait before the next attempt.

        Raises:
            PermanentError: Too many attempts have failed.
        """
        self._failures = 0 if progressed else self._failures + 1
        if self._failures == self._max_failures:
            raise PermanentError(f"{error}, {self._failures} times in a row", is_outage=True)
        policy = self._policy
        delay = min(policy.max_delay_seconds, policy.first_delay_seconds * 2 ** max(0, self._failures - 1))
        delay *= self._random.uniform(0.5, 1)
        if error.retry_after is not None:
            delay = max(delay, min(error.retry_after, policy.max_retry_after_seconds))
        self._pause(delay)


class Network:
    """Requests to a server, through the proxy of the environment where there is one.

    Args:
        address: Address of the server.
        threads: The threads that fetch: one connection each.
        policy: Timeouts and retries.
        pause: Waits for a number of seconds between attempts; by default until the threads stop, at most.
        authorization: The header of this name; not sent to other hosts that the server redirects to.
    """

    def __init__(
        self,
        address: str,
        threads: StoppableThreads,
        policy: RetryPolicy,
        pause: Callable[[float], object] | None = None,
        authorization: str | None = None,
    ) -> None:
        self._headers = {} if authorization is None else {"Authorization": authorization}
        self._threads = threads
        self._policy = policy
        self._pause = threads.stopping.wait if pause is None else pause
        parts = urlsplit(address)
        proxy = getproxies().get(parts.scheme)
        timeout = urllib3.Timeout(connect=policy.stall_seconds, read=policy.stall_seconds)
        if proxy is None or proxy_bypass(parts.hostname or ""):
            self._pool = urllib3.PoolManager(maxsize=threads.size, timeout=timeout)
        else:
            self._pool = urllib3.ProxyManager(proxy, maxsize=threads.size, timeout=timeout)

    def close(self) -> None:
        """Close the connections."""
        self._pool.clear()

    def small(self, url: str) -> bytes:
        """Fetch a small file.

        Raises:
            PermanentError: It cannot be fetched.
        """
        attempts = _Attempts(self._policy, url, min(MAX_SMALL_ATTEMPTS, self._policy.max_failures), self._pause)
        while True:
            self._threads.check()
            try:
                return self._read_small(url)
            except _TransientError as error:
                attempts.after(error)

    def _read_small(self, url: str) -> bytes:
        content = bytearray()
        with closing(self._open("GET", url)) as response, _network_errors(self._policy):
            while block := response.read(_BLOCK_BYTES):
                content += block
                if len(content) > MAX_SMALL_BYTES:
                    raise PermanentError(f"it is longer than {format_bytes(MAX_SMALL_BYTES)}")
        return bytes(content)

    def size_of(self, url: str) -> int | None:
        """Size of a shard in bytes; None where the server does not report it, or reports an implausible one."""
        self._threads.check()
        try:
            with closing(self._open("HEAD", url, {"Accept-Encoding": "identity"})) as response:
                size = _content_length(response)
        except (_TransientError, PermanentError):
            return None
        return size if size is not None and size <= MAX_SHARD_BYTES else None

    def fetch(self, url: str, part: Part, md5: str) -> None:
        """Fetch a shard, or the rest of it.

        Args:
            url: Its address.
            part: The part that has arrived; complete afterwards.
            md5: MD5 of the complete shard.

        Raises:
            PermanentError: It cannot be fetched.
        """
        attempts = _Attempts(self._policy, url, self._policy.max_failures, self._pause)
        largest, num_downloads = part.size, 0
        while not part.matches(md5):
            self._threads.check()
            try:
                self._receive(url, part)
            except _TransientError as error:
                attempts.after(error, part.size > largest)
                largest = max(largest, part.size)
            else:
                if part.matches(md5):
                    return
                mismatch = part.mismatch(md5)
                part.clear()
                largest, num_downloads = 0, num_downloads + 1
                if num_downloads == MAX_DOWNLOADS:
                    raise PermanentError(f"{mismatch}, {num_downloads} times in a row")

    def _receive(self, url: str, part: Part) -> None:
        """Request the rest of a shard once; return when the server has sent all that it announced."""
        headers = {"Accept-Encoding": "identity"}
        requested = part.size if part.can_resume else 0
        if requested:
            headers["Range"] = f"bytes={requested}-"
            if part.validator is not None:
                headers["If-Range"] = part.validator
        with closing(self._open("GET", url, headers)) as response:
            if response.status == 416:
                # The server has no bytes after the part, which is wrong: as if a complete download were wrong.
                return
            part.can_resume = True
            end, total = _announced_range(response, requested, part)
            if total is not None and total > MAX_SHARD_BYTES:
                raise PermanentError(f"the server announces {format_bytes(total)}, more than any shard has")
            if part.size and not (response.status == 206 and requested):
                part.clear()
            part.validator = _validator(response)
            with _network_errors(self._policy):
                part.append(_blocks(response, part, end))
            if total is not None and part.size < total:
                raise _TransientError(f"the server sent {part.size:,} of {total:,} bytes")

    def _open(self, method: str, url: str, headers: dict[str, str] | None = None) -> urllib3.BaseHTTPResponse:
        redirects = urllib3.Retry(
            total=None, connect=0, read=0, status=0, other=0, redirect=5, respect_retry_after_header=False
        )
        with _network_errors(self._policy):
            response = self._pool.request(
                method, url, headers=self._headers | (headers or {}), preload_content=False, retries=redirects
            )
        history = response.retries.history if response.retries is not None else ()
        is_downgraded = url.startswith("https:") and any(
            (hop.redirect_location or "").lower().startswith("http:") for hop in history
        )
        if response.status in (200, 206, 416) and not is_downgraded:
            return response
        response.close()
        if is_downgraded:
            raise PermanentError("the server redirects to an address without TLS")
        if response.status in _TRANSIENT_STATUSES:
            raise _TransientError(f"the server answered {response.status}", _retry_after(response))
        raise PermanentError(f"the server answered {response.status}")


@contextmanager
def _network_errors(policy: RetryPolicy) -> Iterator[None]:
    """Turn exceptions of urllib3 into transient and permanent errors."""
    try:
        yield
    except http_errors.HTTPError as error:
        cause = getattr(error, "reason", None) or error
        if isinstance(cause, http_errors.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(cause):
            raise PermanentError(f"the server's certificate cannot be trusted: {cause}") from error
        if isinstance(cause, http_errors.NewConnectionError):
            reason = f"no connection ({str(cause).partition(': ')[2]})"
        elif isinstance(cause, http_errors.TimeoutError):
            reason = f"no byte came for {policy.stall_seconds:g} seconds"
        elif isinstance(cause, http_errors.ProtocolError):
            reason = "the connection broke off"
        else:
            reason = reason_of(cause)
        raise _TransientError(reason) from error


def _blocks(response: urllib3.BaseHTTPResponse, part: Part, end: int | None) -> Iterator[bytes]:
    """The body of a response as it arrives: `read1` returns what is there, so a stall loses nothing.

    Raises:
        PermanentError: It is longer than announced, or longer than any shard.
    """
    limit = MAX_SHARD_BYTES if end is None else end
    # A body of known length ends there, whatever the server sends after it.
    is_bounded = _content_length(response) is not None
    while block := response.read1(min(_BLOCK_BYTES, limit - part.size) if is_bounded else _BLOCK_BYTES):
        if part.size + len(block) > limit:
            raise PermanentError(f"the server sends more than {format_bytes(limit)}")
        yield block


def _announced_range(response: urllib3.BaseHTTPResponse, requested: int, part: Part) -> tuple[int | None, int | None]:
    """Offset in the shard at which the body of a response ends, and size of the shard, as far as the server reports them.

    Raises:
        _TransientError: The server sent another range than requested; the next attempt requests the complete shard.
    """
    length = _content_length(response)
    if response.status == 200:
        return length, length
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if match is not None:
        first, last = int(match[1]), int(match[2])
        total = None if match[3] == "*" else int(match[3])
        is_whole_body = length is None or length == last + 1 - first
        if first == requested and first <= last and is_whole_body and (total is None or last < total):
            return last + 1, total
    part.can_resume = False
    raise _TransientError("the server sent another range than requested")


def _content_length(response: urllib3.BaseHTTPResponse) -> int | None:
    text = response.headers.get("Content-Length", "")
    is_chunked = "Transfer-Encoding" in response.headers
    return int(text) if re.fullmatch("[0-9]{1,18}", text) and not is_chunked else None


def _validator(response: urllib3.BaseHTTPResponse) -> str | None:
    """Validator of this version of a shard for If-Range, where weak tags are not allowed (RFC 9110, 13.1.5)."""
    tag = response.headers.get("ETag")
    return tag if tag is not None and tag.startswith('"') else response.headers.get("Last-Modified")


def _retry_after(response: urllib3.BaseHTTPResponse) -> float | None:
    """Seconds that the server asks to wait, which it sends as a number or as a date."""
    text = response.headers.get("Retry-After", "").strip()
    if re.fullmatch("[0-9]{1,9}", text):
        return float(text)
    with suppress(ValueError):
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    return None
