"""Decode video files in child processes: a codec that crashes, hangs or runs out of memory costs one video.

A child decodes one file after the other. Its results arrive through a pipe, which holds it back while the parent is busy,
so children can be started ahead of their turn.
"""

import contextlib
import multiprocessing
import os
import resource
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from yt8m.extraction.decode import Frames, Odd, UnreadableVideoError, Windows, decode

MAX_SECONDS_SILENT = 300.0
"""A child that delivers nothing for this long hangs."""

MAX_MEMORY = 8 << 30
"""Address space of a child in bytes."""


@dataclass(frozen=True)
class Decoding:
    """What a child decodes.

    Args:
        path: The file.
        size: Width and height to resize frames to.
        max_seconds: Stop after this many seconds.
    """

    path: Path
    size: int
    max_seconds: int | None = None


class DecoderProcess:
    """A child process that decodes a file from the moment this is made.

    Args:
        decoding: What to decode.
        max_seconds_silent: Seconds without a result after which the child is killed.
    """

    def __init__(self, decoding: Decoding, max_seconds_silent: float = MAX_SECONDS_SILENT) -> None:
        context = multiprocessing.get_context("spawn")
        self._results, sending = context.Pipe(duplex=False)
        self._process = context.Process(target=_decode, args=(decoding, sending), daemon=True)
        self._process.start()
        sending.close()
        self._max_seconds_silent = max_seconds_silent
        self.odd = Odd()
        """What was odd about the file, once everything is received."""

    def __iter__(self) -> Iterator[Frames | Windows]:
        """Yield what the child decodes.

        Raises:
            UnreadableVideoError: The file cannot be decoded, or the child died or hung.
        """
        while True:
            if not self._results.poll(self._max_seconds_silent):
                raise UnreadableVideoError(f"the decoder hung for {self._max_seconds_silent:g} seconds")
            try:
                result = self._results.recv()
            except EOFError:
                raise UnreadableVideoError(self._death()) from None
            if isinstance(result, Odd):
                self.odd = result
                return
            if isinstance(result, UnreadableVideoError):
                raise result
            yield result

    def close(self) -> None:
        """End the child."""
        self._process.kill()
        self._process.join()
        self._results.close()

    def _death(self) -> str:
        """How the child died."""
        self._process.join()
        code = self._process.exitcode or 0
        if code < 0:
            with contextlib.suppress(ValueError):
                return f"the decoder was killed by {signal.Signals(-code).name}"
        return f"the decoder ended with status {code}"


def _decode(decoding: Decoding, results: Connection) -> None:
    """Decode in a child, and send the results."""
    # Ctrl-C goes to all processes of a terminal; the parent ends the child.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    odd = Odd()
    try:
        for result in decode(decoding.path, decoding.size, decoding.max_seconds, odd):
            results.send(result)
        results.send(odd)
    except UnreadableVideoError as error:
        results.send(error)
    except (BrokenPipeError, ConnectionResetError):
        # The parent has ended.
        os._exit(1)
