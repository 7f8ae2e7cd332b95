"""A local web server that injects network faults: stalls, resets, corrupt bodies, wrong headers and error statuses."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread
from types import TracebackType
from typing import Any

LABELS, CLASSES = 3862, 1000
"""Numbers of rows in the two vocabularies of the real dataset."""


class Fault(Enum):
    """A fault in a response."""

    STALL = "half of the body is sent, then nothing"
    TRUNCATE = "half of the body is sent, then the connection is closed"
    CORRUPT = "one bit of the body is flipped"
    DROP = "the connection is reset before a response"
    ALWAYS_HALF = "half of the file is sent whatever the range, then the connection is closed"
    IGNORE_RANGE = "the whole file is sent whatever the range"
    WRONG_RANGE = "a different range is sent than the one requested"
    UNSATISFIABLE = "416"
    BUSY = "503"
    TOO_MANY = "429 with Retry-After"
    MISSING = "404"
    FORBIDDEN = "403"
    GONE = "410"
    CHUNKED = "the body is sent in chunks, without its length"
    OVERLONG = "the body is longer than its Content-Range"
    SURPLUS = "bytes follow the body"
    HUGE_LENGTH = "the Content-Length is 20 TB"
    REDIRECT = "302 to the same path with a question mark"


STATUSES = {Fault.BUSY: 503, Fault.TOO_MANY: 429, Fault.MISSING: 404, Fault.FORBIDDEN: 403, Fault.GONE: 410}


@dataclass(frozen=True)
class Request:
    """A request that the server received."""

    method: str
    path: str
    range: str | None
    if_range: str | None
    authorization: str | None = None


@dataclass
class ServerState:
    """Files of a server, faults to inject, and requests received so far."""

    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, deque[Fault]] = field(default_factory=dict)
    always: dict[str, Fault] = field(default_factory=dict)
    retry_after: str = "0"
    block_bytes: int = 2**20
    block_seconds: float = 0.0
    requests: list[Request] = field(default_factory=list)
    bytes_sent: dict[str, int] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)
    closing: Event = field(default_factory=Event)

    def add_partition(self, partition: str, shards: Mapping[str, bytes]) -> None:
        """Add a partition: its shards, by their names in the plan, and the plan."""
        version, level, split = partition.split("/")
        plan = {"files": {name: hashlib.md5(content).hexdigest() for name, content in shards.items()}}
        self.files[f"/{version}/download_plans/{level}_{split}.json"] = json.dumps(plan).encode()
        for name, content in shards.items():
            self.files[f"/{partition}/{name}"] = content

    def add_vocabularies(self) -> None:
        """Add the two vocabularies, with the real numbers of rows."""
        for name, count in (("2", LABELS), ("segments", CLASSES)):
            rows = "".join(f'{number},"A name, with a comma"\n' for number in range(count))
            self.files[f"/csv/{name}/vocabulary.csv"] = f"Index,Name\n{rows}".encode()

    def find_requests(self, method: str = "GET", among: str = "") -> list[Request]:
        """Requests so far with this method and this text in their path."""
        with self.lock:
            return [request for request in self.requests if request.method == method and among in request.path]

    def next_fault(self, path: str) -> Fault | None:
        """The fault of the next response for a path."""
        with self.lock:
            if path in self.always:
                return self.always[path]
            waiting = self.faults.get(path)
            return waiting.popleft() if waiting else None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: ServerState

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def do_HEAD(self) -> None:
        self._record_request()
        content = self.state.files.get(self.path.rstrip("?"))
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()

    def do_GET(self) -> None:
        self._record_request()
        path = self.path.rstrip("?")
        content = self.state.files.get(path)
        fault = Fault.MISSING if content is None else self.state.next_fault(path)
        if fault is Fault.REDIRECT and self.path.endswith("?"):
            fault = None
        if fault is Fault.DROP:
            # Closing with SO_LINGER of 0 seconds resets the connection.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
        elif fault is Fault.REDIRECT:
            self._answer(302, {"Location": f"{path}?"})
        elif fault in STATUSES:
            self._answer(STATUSES[fault], {"Retry-After": self.state.retry_after} if fault is Fault.TOO_MANY else {})
        else:
            assert content is not None
            self._send(content, fault)

    def _record_request(self) -> None:
        request = Request(
            self.command,
            self.path,
            self.headers.get("Range"),
            self.headers.get("If-Range"),
            self.headers.get("Authorization"),
        )
        with self.state.lock:
            self.state.requests.append(request)

    def _answer(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": "0"} | headers).items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, content: bytes, fault: Fault | None) -> None:
        tag = f'"{hashlib.sha1(content).hexdigest()}"'
        requested = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if self.headers.get("If-Range", tag) != tag or fault in (Fault.IGNORE_RANGE, Fault.ALWAYS_HALF):
            requested = None
        start = int(requested[1]) if requested else 0
        if fault is Fault.UNSATISFIABLE or (requested and start >= len(content)):
            self._answer(416, {"Content-Range": f"bytes */{len(content)}"})
            return
        first = min(start + 1, len(content) - 1) if fault is Fault.WRONG_RANGE else start
        body = content[first:]
        self.send_response(206 if requested or fault in (Fault.WRONG_RANGE, Fault.OVERLONG) else 200)
        self.send_header("ETag", tag)
        if requested or fault in (Fault.WRONG_RANGE, Fault.OVERLONG):
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        if fault in (Fault.CHUNKED, Fault.OVERLONG):
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(20 * 10**12 if fault is Fault.HUGE_LENGTH else len(body)))
        self.end_headers()
        if fault is Fault.CORRUPT:
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 16]) + body[middle + 1 :]
        if fault in (Fault.STALL, Fault.TRUNCATE, Fault.ALWAYS_HALF):
            self._write(body[: len(body) // 2])
            if fault is Fault.STALL:
                self.state.closing.wait(60)
            self.close_connection = True
        elif fault in (Fault.CHUNKED, Fault.OVERLONG):
            body += b"more" if fault is Fault.OVERLONG else b""
            for begin in range(0, len(body), 10_000):
                block = body[begin : begin + 10_000]
                self._write(b"%x\r\n%b\r\n" % (len(block), block))
            self._write(b"0\r\n\r\n")
        else:
            self._write(body + (b"surplus" if fault is Fault.SURPLUS else b""))

    def _write(self, body: bytes) -> None:
        step = self.state.block_bytes
        for begin in range(0, len(body), step):
            block = body[begin : begin + step]
            self.wfile.write(block)
            with self.state.lock:
                sent = self.state.bytes_sent
                sent[self.path] = sent.get(self.path, 0) + len(block)
            if self.state.block_seconds:
                self.state.closing.wait(self.state.block_seconds)


class _Listener(ThreadingHTTPServer):
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect; report all other errors."""
        if not isinstance(sys.exc_info()[1], ConnectionError | ValueError):
            super().handle_error(request, client_address)


class HostileServer:
    """A server that runs inside a `with` block; `url` is its address."""

    def __init__(self) -> None:
        self.state = ServerState()

    def __enter__(self) -> HostileServer:
        handler = type("Handler", (_Handler,), {"state": self.state})
        self._server = _Listener(("127.0.0.1", 0), handler)
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.state.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
