"""Locks on outputs: no two commands write the same files at the same time.

A lock is a hidden file beside its output, locked with flock. The operating system releases it when its process ends,
however it ends, so a lock file that a kill left is free. Network file systems pass flock on to their server (NFS since
Linux 2.6.12, and Lustre where it is mounted with `flock`); where a file system has no locks, nothing is locked.
"""

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from yt8m.errors import Yt8mError
from yt8m.files import is_stream, writing_error

_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS}


@contextmanager
def locked(*paths: Path) -> Iterator[None]:
    """Hold the locks of some outputs, files or folders; they need not exist. Devices and pipes are not locked.

    Raises:
        Yt8mError: Another process holds one of them, or a folder cannot be written to.
    """
    with ExitStack() as stack:
        for resolved, path in sorted({path.resolve(): path for path in paths}.items()):
            if not is_stream(path):
                stack.enter_context(_locked(resolved, path))
        yield


@contextmanager
def _locked(path: Path, name: Path) -> Iterator[None]:
    """Hold the lock of one output, called `name` in messages."""
    lock = path.with_name(f".{path.name}.lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _open_locked(lock)
    except BlockingIOError:
        raise Yt8mError(
            f"{name}: another command is writing there ({_holder(lock)}); wait for it, stop it, or give another output."
        ) from None
    except OSError as error:
        raise writing_error(error, name, is_of_path=True) from error
    try:
        yield
    finally:
        # Removed while it is locked: who has opened it meanwhile notices that it is gone.
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def _open_locked(lock: Path) -> int:
    """Open a lock file, locked, with the name of this process in it.

    Raises:
        BlockingIOError: Another process has locked it.
    """
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(descriptor)
                raise
        if _is_same_file(descriptor, lock):
            # Only a message has it, so a full disk is reported by the output itself.
            with suppress(OSError):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
            return descriptor
        os.close(descriptor)


def _is_same_file(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one at a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _holder(lock: Path) -> str:
    """The process named in a lock file."""
    try:
        return lock.read_text(errors="replace") or "it is starting"
    except OSError:
        return "it is ending"
