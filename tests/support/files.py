"""List the files of a folder; open pipes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def files_in(folder: Path) -> set[str]:
    """Relative paths of all files in a folder, including hidden ones."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def opened_pipe(path: Path) -> Iterator[Callable[[], bytes]]:
    """Make a named pipe and open it; yield what reads the bytes written so far, of which a pipe holds 64 KB."""
    os.mkfifo(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        yield lambda: b"".join(iter(lambda: os.read(descriptor, 2**16), b""))
    finally:
        os.close(descriptor)
