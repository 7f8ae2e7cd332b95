"""Dataset folders: their parts, the shards of a folder, and lists of the shards to use."""

import re
from pathlib import Path
from typing import NamedTuple

from yt8m.errors import ShardError, UsageError, counted
from yt8m.files import read_names

LIST_NAME = "shards.txt"

PARTS = ("video/train", "video/valid", "segment/train", "segment/test")
"""Folders of shards in a dataset folder."""

SHARD_NAMES = "*.tfrecord, *.tfrecords or NAME-00000-of-00100"
"""Names of shards, for messages."""

_SHARD_NAME = re.compile(r"[^./][^/]*?(\.tfrecords?(-\d+-of-\d+)?|-\d+-of-\d+(\.tfrecords?)?)")


class ShardInfo(NamedTuple):
    """A shard as it was when it was indexed."""

    name: str
    num_bytes: int
    mtime_ns: int


class ShardList(NamedTuple):
    """A list of the shards to use: its file, and the sorted names of those in one folder."""

    path: Path
    names: list[str]


def is_shard_name(name: str) -> bool:
    """Whether a file name is that of a shard; hidden files, such as shards being written, are not."""
    return _SHARD_NAME.fullmatch(name) is not None


def shard_info(path: Path) -> ShardInfo:
    """Name, size and modification time of a shard, by which a changed one is recognized.

    Raises:
        ShardError: The shard is missing or not accessible.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise ShardError(path, f"cannot be read ({error.strerror}).") from None
    return ShardInfo(path.name, status.st_size, status.st_mtime_ns)


def find_shards(folder: Path) -> list[Path]:
    """Shards of a folder, sorted by name; those of the list of shards where there is one (see `shard_list`).

    Raises:
        UsageError: The folder is missing, is a file, or contains no shards; or shards of the list are missing.
    """
    require_folder(folder)
    shards = {path.name: path for path in folder.iterdir() if is_shard_name(path.name)}
    listed = shard_list(folder)
    if listed is None:
        if not shards:
            raise UsageError(f"{folder}: contains no shards (files named {SHARD_NAMES}).")
        return [shards[name] for name in sorted(shards)]
    missing = [name for name in listed.names if name not in shards]
    if missing:
        few = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise UsageError(
            f"{listed.path}: {len(missing):,} of {counted(len(listed.names), 'listed shard')} are not in {folder} "
            f"({few}); download them, or remove them from the list."
        )
    return [shards[name] for name in listed.names]


def shard_list(folder: Path) -> ShardList | None:
    """The list of the shards to use of a folder; None where all are used.

    `shards.txt` lists shards, one per line, in the folder of shards itself or in the dataset folder above it. There the
    names are paths (`video/train/train0001.tfrecord`), and parts of the dataset that it does not mention are used
    completely.

    Raises:
        UsageError: The list cannot be read, is empty, or names a file that is no shard of this folder.
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
    named = {name.removeprefix("./") for name in read_names(path, "shards")}
    for name in sorted(named):
        parent, _, shard = name.rpartition("/")
        if not is_shard_name(shard) or parent not in ((*PARTS, "") if prefix else ("",)):
            raise UsageError(
                f"{path}: {name!r} is no shard; expected "
                + (f"paths such as {PARTS[0]}/train0000.tfrecord." if prefix else "names such as train0000.tfrecord.")
            )
    names = sorted(name.removeprefix(prefix) for name in named if name.startswith(prefix))
    return ShardList(path, names) if names else None


def dataset_parts(folder: Path) -> list[Path]:
    """Folders of shards in a dataset folder, and the folder itself where it contains shards.

    Raises:
        UsageError: The folder is missing, or contains neither shards nor such folders.
    """
    require_folder(folder)
    parts = [folder / part for part in PARTS if (folder / part).is_dir()]
    if any(is_shard_name(path.name) for path in folder.iterdir()):
        return [folder, *parts]
    if not parts:
        raise UsageError(
            f"{folder}: contains neither shards (files named {SHARD_NAMES}) nor the folders of a dataset "
            f"({', '.join(PARTS)})."
        )
    return parts


def require_folder(folder: Path) -> None:
    """Require that a folder of shards exists.

    Raises:
        UsageError: It is missing or is a file.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "there is no such folder"
        raise UsageError(f"{folder}: {what}; expected a folder of shards ({SHARD_NAMES}).")
