"""Atomic writes: a file or folder is written under a temporary name beside its final one, then renamed."""

import csv
import errno
import glob
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import google_crc32c

from yt8m.errors import UsageError, Yt8mError

_CANNOT_WRITE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.EFBIG}

_MOST_LINKS = 40
"""Links in a row, as in Linux."""


@contextmanager
def written_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block succeeds, remove it otherwise.

    Creates the parent folder of `path`. For a folder, create the temporary path as a folder; it replaces an existing
    one. A file is flushed to the disk before the rename.

    A link stays a link: the file that it leads to is written. A device, a pipe or an open file of the process
    (`/dev/stdout`) is never replaced: the file is complete before its bytes are written into it.

    Yields:
        The path to write to, with the same suffix; in the same folder, or in the system's folder of temporary files if
        `path` is a device or a pipe.

    Raises:
        Yt8mError: The disk is full, the folder cannot be written to, or `path` is a device and the temporary path a
            folder.
    """
    try:
        target = end_of_links(path)
        into_stream = is_stream(target)
        folder = Path(tempfile.gettempdir()) if into_stream else target.parent
        folder.resolve().mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise writing_error(error, path, is_of_path=True) from error
    temporary = folder / f".{target.stem}.{secrets.token_hex(4)}{target.suffix}"
    try:
        yield temporary
        if temporary.is_dir():
            if into_stream:
                raise Yt8mError(f"{path}: is a device, a pipe or an open file; expected a name for a folder.")
            replace_folder(temporary, target)
        elif into_stream:
            with temporary.open("rb") as file, target.open("ab") as stream:
                shutil.copyfileobj(file, stream)
        else:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(target)
    except OSError as error:
        is_of_path = str(error.filename).startswith((str(temporary), str(target)))
        raise writing_error(error, path, is_of_path=is_of_path) from error
    finally:
        _remove(temporary, ignore_errors=True)


def is_stream(path: Path) -> bool:
    """Whether `path` is a device, a pipe or an open file of a process, which is written into and never replaced.

    Raises:
        OSError: The path cannot be examined.
    """
    path = end_of_links(path)
    return path.exists() and (_is_open_file(path) or not (path.is_file() or path.is_dir()))


def is_standard_output(path: Path) -> bool:
    """Whether writing to `path` writes to standard output, where messages would end up in the file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(1))
    except OSError:
        return False


def end_of_links(path: Path) -> Path:
    """The path that a chain of links leads to, existing or not; a link to an open file of a process is not followed.

    Raises:
        Yt8mError: The chain has no end.
    """
    end = path
    for _ in range(_MOST_LINKS):
        if not end.is_symlink() or _is_open_file(end):
            return end
        end = end.parent / end.readlink()
    raise Yt8mError(f"{path}: cannot be written ({os.strerror(errno.ELOOP)}).")


def _is_open_file(path: Path) -> bool:
    return re.fullmatch(r"/proc/.+/fd|/dev/fd", str(path.parent.resolve())) is not None


_LEFTOVER = re.compile(r"\.(?P<stem>.+)\.[0-9a-f]{8}(?P<suffix>(?:\.(?!old\Z)[^.]+)?)(?P<old>\.old)?")
"""Temporary names of `written_atomically` and `replace_folder`."""


def clear_leftovers(*paths: Path) -> None:
    """Remove what killed processes left of writing some files or folders; restore a folder that was being replaced.

    Call this only while no other process writes them.
    """
    for path in map(end_of_links, paths):
        for leftover in path.parent.glob(f".{glob.escape(path.stem)}.*"):
            _clear(leftover, path.name)


def clear_all_leftovers(folder: Path) -> None:
    """Do what `clear_leftovers` does for everything below a folder."""
    for leftover in list(folder.rglob(".*")):
        _clear(leftover)


def _clear(path: Path, written: str | None = None) -> None:
    """Remove or restore a leftover, of the file or folder of this name if one is given; keep anything else."""
    match = _LEFTOVER.fullmatch(path.name)
    name = match and match["stem"] + match["suffix"]
    if match is None or name is None or (written or name) != name:
        return
    if match["old"] and not path.with_name(name).exists():
        path.replace(path.with_name(name))
    else:
        _remove(path, ignore_errors=True)


def replace_folder(new: Path, path: Path) -> None:
    """Rename the folder `new`, beside `path`, to `path`; an existing `path` is removed only after the rename."""
    old = new.with_name(new.name + ".old")
    if not path.exists():
        new.replace(path)
        # Left by a kill between the two renames below.
        _remove(old)
        return
    _remove(old)
    path.replace(old)
    new.replace(path)
    _remove(old)


def _remove(path: Path, ignore_errors: bool = False) -> None:
    """Remove a file or folder if it exists; `ignore_errors` concerns the contents of folders."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=ignore_errors)
    elif path.exists():
        path.unlink(missing_ok=True)


def writing_error(
    error: OSError,
    path: Path,
    remains: str = "nothing was written under that name. Free some space and run again",
    is_of_path: bool = False,
) -> Exception:
    """Turn an operating-system error of a write into a `Yt8mError`; return other errors unchanged.

    Args:
        error: The error.
        path: File or folder that was being written.
        remains: What is left after the disk was full, and what to do.
        is_of_path: Whether the error is certainly about `path`, so that any error means that it cannot be written.
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Yt8mError(f"{path}: no space left on the disk; {remains}.")
    if error.errno in _CANNOT_WRITE or is_of_path:
        return Yt8mError(f"{path}: cannot be written ({error.strerror}).")
    return error


def file_checksum(path: Path, num_bytes: int | None = None) -> int:
    """CRC32C of a file, or of its first bytes.

    Raises:
        Yt8mError: The file cannot be read.
    """
    checksum = 0
    try:
        with path.open("rb", buffering=0) as file:
            remaining = path.stat().st_size if num_bytes is None else num_bytes
            while content := file.read(min(remaining, 2**20)):
                checksum = google_crc32c.extend(checksum, content)
                remaining -= len(content)
    except OSError as error:
        raise Yt8mError(f"{path}: cannot be read ({error.strerror}).") from None
    return checksum


def cache_folder(name: str, variable: str) -> Path:
    """A folder of what can be made or fetched again: that which an environment variable names, or one in the user's cache.

    Args:
        name: Its name below `yt8m` in the user's cache (XDG Base Directory Specification).
        variable: The environment variable.

    Raises:
        UsageError: The variable is not set, and there is no home folder to have a cache in.
    """
    if chosen := os.environ.get(variable):
        return Path(chosen)
    cache = os.environ.get("XDG_CACHE_HOME", "")
    try:
        # Relative paths are to be ignored.
        base = Path(cache) if cache.startswith("/") else Path.home() / ".cache"
    except RuntimeError:
        raise UsageError(f"{variable}: is not set, and there is no home folder; set it to a folder.") from None
    return base / "yt8m" / name


def shown_checksum(checksum: int) -> str:
    """A CRC32C as text; digits alone could be a number in YAML."""
    return f"crc32c:{checksum:08x}"


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[str | float]]) -> None:
    """Write a CSV file in UTF-8; the write is atomic (see `written_atomically`)."""
    with written_atomically(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(chain([header], rows))


def read_names(path: Path, what: str) -> list[str]:
    """Read a list of names, one per line; blank lines and comments (`#` to the end of the line) are skipped.

    Args:
        path: The file.
        what: What it lists, for messages.

    Raises:
        UsageError: The file cannot be read, or contains no name.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UsageError(f"{path}: cannot be read as a list of {what} ({reason}).") from None
    names = [name for line in lines if (name := re.sub(r"(^|\s)#.*", "", line).strip())]
    if not names:
        raise UsageError(f"{path}: contains no names; expected a list of {what}, one per line.")
    return names
