"""Files that are complete or absent: everything is written beside its final name and renamed into place."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from yt8m.errors import Yt8mError

_CANNOT_WRITE = frozenset(
    [errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.EFBIG]
)


@contextmanager
def written_atomically(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it to `path` when the block ends well, remove it otherwise.

    The folder of `path` is created. Works for a file and for a folder (create the temporary path as a folder); a
    file is flushed to the disk before the rename, and an existing folder of that name is replaced.

    Args:
        path: The final name.

    Yields:
        The path to write to, in the same folder and with the same suffix.

    Raises:
        Yt8mError: The disk is full, or the folder cannot be written to.
    """
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if temporary.is_dir():
            replace_folder(temporary, path)
        else:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    except OSError as error:
        raise writing_error(error, path) from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        elif temporary.exists():
            temporary.unlink()


def clear_leftovers(path: Path) -> None:
    """Remove what kills left of former tries to write `path`; a folder that was being replaced gets its name back.

    Not to be called while something else may be writing `path`.

    Args:
        path: A final name given to `written_atomically` before.
    """
    ours = re.compile(rf"\.{re.escape(path.stem)}\.[0-9a-f]{{8}}{re.escape(path.suffix)}(\.old)?")
    for leftover in path.parent.glob(".*"):
        match = ours.fullmatch(leftover.name)
        if match and match[1] and not path.exists():
            leftover.replace(path)
        elif match and leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        elif match:
            leftover.unlink(missing_ok=True)


def replace_folder(new: Path, path: Path) -> None:
    """Rename a folder into place, beside which it is; what stood there goes only once the new one has its name."""
    old = new.with_name(new.name + ".old")
    if not path.exists():
        new.replace(path)
        # What a kill between the two renamings below left.
        _remove(old)
        return
    _remove(old)
    path.replace(old)
    new.replace(path)
    _remove(old)


def _remove(path: Path) -> None:
    """Remove a file or a folder, if there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def writing_error(
    error: OSError, path: Path, remains: str = "nothing was written under that name. Free some space and run again"
) -> Exception:
    """Say an operating-system error on writing as a sentence; errors of other kinds pass unchanged.

    Args:
        error: The error.
        path: What was being written.
        remains: What there is after a full disk, and what to do.
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Yt8mError(f"{path}: no space left on the disk; {remains}.")
    if error.errno in _CANNOT_WRITE:
        return Yt8mError(f"{path}: cannot be written ({error.strerror}).")
    return error
