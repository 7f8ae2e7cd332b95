"""Folders of shards, and lists of the shards to use."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from yt8m.download.plan import list_lines
from yt8m.errors import ShardError, UsageError

LIST_NAME = "shards.txt"


PARTS = ("video/train", "video/valid", "segment/train", "segment/test")
"""Folders of shards of a dataset folder, in the classic layout."""


class ShardInfo(NamedTuple):
    """A shard as it was when it was indexed."""

    name: str
    num_bytes: int
    mtime_ns: int


def shard_info(path: Path) -> ShardInfo:
    """What tells a shard from a changed one.

    Raises:
        ShardError: The shard is missing or cannot be looked at.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise ShardError(path, f"cannot be read ({error.strerror}).") from None
    return ShardInfo(path.name, status.st_size, status.st_mtime_ns)


def find_shards(folder: Path) -> list[Path]:
    """Shards of a folder, `*.tfrecord`, sorted by name whatever order the file system lists them in.

    Where there is a list of shards (see `shard_list`), those that it names.

    Raises:
        UsageError: The folder is missing, is no folder, or holds no shards; or shards of the list are missing.
    """
    require_folder(folder)
    # A leading dot marks a shard that is being written (see `files.written_atomically`).
    shards = {path.name: path for path in folder.glob("*.tfrecord") if not path.name.startswith(".")}
    listed = shard_list(folder)
    if listed is None:
        if not shards:
            raise UsageError(f"{folder}: holds no shards (files named *.tfrecord).")
        return [shards[name] for name in sorted(shards)]
    missing = [name for name in listed.names if name not in shards]
    if missing:
        few = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise UsageError(
            f"{listed.path}: {len(missing):,} of the {len(listed.names):,} shards that it names are not in {folder} "
            f"({few}); fetch them, or take them off the list."
        )
    return [shards[name] for name in listed.names]


class ShardList(NamedTuple):
    """A list of the shards to use: its file, and the names of shards of one folder, sorted."""

    path: Path
    names: list[str]


def shard_list(folder: Path) -> ShardList | None:
    """The list of the shards to use of a folder, None where all are used.

    `shards.txt` names a shard a line, in the folder of shards itself or in the dataset folder above it; there the
    names are paths (`video/train/train0001.tfrecord`), and a part of the dataset that it does not name is used whole.
    Blank lines and lines that begin with # do not count.

    Raises:
        UsageError: The list cannot be read, names nothing, or names a file that is no shard of this folder.
    """
    if (folder / LIST_NAME).is_file():
        path, prefix = folder / LIST_NAME, ""
    else:
        part = next((part for part in PARTS if folder.resolve().match(f"*/{part}")), None)
        if part is None:
            return None
        path, prefix = folder.resolve().parents[part.count("/")] / LIST_NAME, f"{part}/"
        if not path.is_file():
            return None
    named = {line.removeprefix("./") for line in list_lines(path) if line and not line.startswith("#")}
    if not named:
        raise UsageError(f"{path}: names no shard; write one name a line, or remove it to use all shards.")
    for name in sorted(named):
        folder_of_name = name.rpartition("/")[0]
        if not name.endswith(".tfrecord") or folder_of_name not in ((*PARTS, "") if prefix else ("",)):
            raise UsageError(
                f"{path}: {name!r} is no shard; expected "
                + (f"paths such as {PARTS[0]}/train0000.tfrecord." if prefix else "names such as train0000.tfrecord.")
            )
    names = sorted(name.removeprefix(prefix) for name in named if name.startswith(prefix))
    return ShardList(path, names) if names else None


def dataset_parts(folder: Path) -> list[Path]:
    """Folders of shards of a dataset folder in the classic layout, or the folder itself where it holds shards.

    Raises:
        UsageError: The folder is missing, or holds neither shards nor such folders.
    """
    require_folder(folder)
    parts = [folder / part for part in PARTS if (folder / part).is_dir()]
    if any(folder.glob("*.tfrecord")):
        return [folder, *parts]
    if not parts:
        raise UsageError(
            f"{folder}: holds neither shards (files named *.tfrecord) nor the folders of a dataset ({', '.join(PARTS)})."
        )
    return parts


def require_folder(folder: Path) -> None:
    """Raise UsageError where a folder of shards is missing or is a file."""
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "there is no such folder"
        raise UsageError(f"{folder}: {what}; expected a folder of shards (*.tfrecord).")
