"""Dataset folders: their parts, the shards of a folder, lists of the shards to use, and where catalogs are."""

import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from yt8m.download.plan import PARTITIONS
from yt8m.errors import ShardError, UsageError, Yt8mError, counted
from yt8m.files import cache_folder, read_names
from yt8m.shards.contents import ShardFile
from yt8m.shards.names import SHARD_NAMES, is_shard_name

LIST_NAME = "shards.txt"

CATALOGS_VARIABLE = "YT8M_CATALOGS"
"""Environment variable that names a folder for catalogs."""

PARTS = ("video/train", "video/valid", "segment/train", "segment/test")
"""Folders of shards in a dataset folder."""

OFFICIAL_PARTS = {part: partition for partition, part in PARTITIONS.items() if part in PARTS}
"""The same folders in the layout of the official download: 2/frame/train and others."""


class ShardInfo(NamedTuple):
    """A shard as it was when it was indexed.

    Args:
        name: File name.
        num_bytes: Size; 0 for a link that leads nowhere.
        mtime_ns: Modification time.
        checksum: Of all its records; None in catalogs of format 1.
        sample: Of some of its bytes (`ShardFile.sample_checksum`); None in catalogs of format 1.
    """

    name: str
    num_bytes: int
    mtime_ns: int
    checksum: int | None = None
    sample: int | None = None

    def is_unchanged(self, file: ShardFile) -> bool:
        """Whether an open file is this shard: same size, and same modification time or sample."""
        if file.num_bytes != self.num_bytes:
            return False
        return file.mtime_ns == self.mtime_ns or (self.sample is not None and file.sample_checksum() == self.sample)


class ShardList(NamedTuple):
    """A list of the shards to use: its file, and the sorted names of those in one folder."""

    path: Path
    names: list[str]


def shard_info(path: Path) -> ShardInfo:
    """Name, size and modification time of a shard, by which a changed one is recognized.

    A link that leads nowhere has no bytes, like an empty file.

    Raises:
        ShardError: The shard is missing or not accessible.
    """
    try:
        status = path.stat()
    except OSError as error:
        if path.is_symlink() and error.errno in (errno.ENOENT, errno.ELOOP):
            return ShardInfo(path.name, 0, 0)
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
    found = next(_lists_for(folder), None)
    if found is None:
        return None
    path, part = found
    # A list may have the names of either layout.
    parts = {name: part for part in PARTS for name in (part, OFFICIAL_PARTS[part])} if part else {"": ""}
    chosen = set()
    for name in sorted({name.removeprefix("./") for name in read_names(path, "shards")}):
        parent, _, shard = name.rpartition("/")
        if not is_shard_name(shard) or parent not in (*parts, ""):
            raise UsageError(
                f"{path}: {name!r} is no shard; expected "
                + (f"paths such as {PARTS[0]}/train0000.tfrecord." if part else "names such as train0000.tfrecord.")
            )
        if parts.get(parent) == part:
            chosen.add(shard)
    return ShardList(path, sorted(chosen)) if chosen else None


def _lists_for(folder: Path) -> Iterator[tuple[Path, str]]:
    """Lists of shards that concern a folder: their files, each with the part of the dataset that the folder is ("")."""
    if (folder / LIST_NAME).is_file():
        yield folder / LIST_NAME, ""
    # A part may be a link to a folder of another layout.
    for place in (folder.absolute(), folder.resolve()):
        for part in PARTS:
            for name in (part, OFFICIAL_PARTS[part]):
                path = place.parents[min(name.count("/"), len(place.parents) - 1)] / LIST_NAME
                if place.match(f"*/{name}") and path.is_file():
                    yield path, part


def part_folder(data: Path, part: str) -> Path:
    """Folder of a part of a dataset ("video/train", ...), by its name in the official download if only that exists."""
    official = data / OFFICIAL_PARTS[part]
    return official if official.is_dir() and not (data / part).is_dir() else data / part


def dataset_parts(folder: Path) -> list[Path]:
    """Folders of shards in a dataset folder, and the folder itself where it contains shards.

    Raises:
        UsageError: The folder is missing, or contains neither shards nor such folders.
    """
    require_folder(folder)
    parts = [place for part in PARTS if (place := part_folder(folder, part)).is_dir()]
    if any(is_shard_name(path.name) for path in folder.iterdir()):
        return [folder, *parts]
    if not parts:
        raise UsageError(
            f"{folder}: contains neither shards (files named {SHARD_NAMES}) nor the folders of a dataset "
            f"({', '.join(PARTS)}, or {', '.join(OFFICIAL_PARTS.values())})."
        )
    return parts


def catalog_folders(folder: Path) -> list[Path]:
    """Where the catalog of a folder of shards may be, the preferred place first.

    A catalog is beside its shards, or in the user's cache where that cannot be written to. The environment variable
    YT8M_CATALOGS names another folder for all catalogs.
    """
    try:
        cache = cache_folder("catalogs", CATALOGS_VARIABLE)
    except UsageError:
        return [folder]
    path = str(folder.resolve())
    elsewhere = cache / f"{Path(path).name}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}"
    return [elsewhere, folder] if os.environ.get(CATALOGS_VARIABLE) else [folder, elsewhere]


def writable_catalog_folder(folder: Path) -> Path:
    """Where to write the catalog of a folder of shards; the folder may not exist yet.

    Raises:
        Yt8mError: No place can be written to.
    """
    places = catalog_folders(folder)
    for place in places:
        existing = next(path for path in (place, *place.absolute().parents) if path.exists())
        if os.access(existing, os.W_OK | os.X_OK):
            return place
    tried = " and ".join(map(str, places))
    raise Yt8mError(
        f"{folder}: its catalog has no place, since {tried} cannot be written to; set {CATALOGS_VARIABLE} to a folder "
        "that can."
    )


def require_folder(folder: Path) -> None:
    """Require that a folder of shards exists.

    Raises:
        UsageError: It is missing or is a file.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "there is no such folder"
        raise UsageError(f"{folder}: {what}; expected a folder of shards ({SHARD_NAMES}).")
