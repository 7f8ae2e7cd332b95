"""The video files of an extraction: how they are found, their ids, and the table `videos.csv` that leads back to them."""

import base64
import csv
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from yt8m.errors import UsageError, Yt8mError
from yt8m.files import read_names, write_csv

VIDEOS_FILE = "videos.csv"

SUFFIXES = frozenset(
    [
        ".3gp",
        ".asf",
        ".avi",
        ".divx",
        ".f4v",
        ".flv",
        ".gif",
        ".m2ts",
        ".m4v",
        ".mjpeg",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".mts",
        ".mxf",
        ".ogm",
        ".ogv",
        ".rm",
        ".rmvb",
        ".ts",
        ".vob",
        ".webm",
        ".wmv",
    ]
)
"""Names of the files that are taken from folders, in lower case."""

LIST_SUFFIX = ".txt"

ID_LENGTH = 12
"""Characters of an id: 55 bits of a digest, so a million videos collide with a probability of 1 in 70,000."""


@dataclass(frozen=True)
class Video:
    """A row of `videos.csv`: a file and its result.

    Args:
        video_id: The id, a function of the file's content; empty where it could not be read.
        path: The file, as `path_text` has it.
        num_bytes: Its size.
        mtime_ns: Its time of modification.
        seconds: Seconds in the shard, one frame each.
        shard: The shard; empty where the extraction failed.
        note: Why it failed, or what was odd.
    """

    video_id: str
    path: str
    num_bytes: int
    mtime_ns: int
    seconds: int = 0
    shard: str = ""
    note: str = ""

    @property
    def is_extracted(self) -> bool:
        """Whether the video is in a shard."""
        return bool(self.shard)

    def is_of(self, path: Path) -> bool:
        """Whether a file is the one of this row, unchanged."""
        status = path.stat()
        return (self.path, self.num_bytes, self.mtime_ns) == (path_text(path), status.st_size, status.st_mtime_ns)


def path_text(path: Path) -> str:
    """A path as text that UTF-8 can express; bytes that are no text are escaped."""
    return str(path).encode("utf-8", "backslashreplace").decode()


_HEADER = ("id", "path", "bytes", "modified_ns", "seconds", "shard", "note")


def read_videos(folder: Path) -> list[Video]:
    """Read the table of an extraction; empty where there is none.

    Raises:
        UsageError: The file is not such a table.
    """
    path = folder / VIDEOS_FILE
    if not path.exists():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
        if tuple(header) != _HEADER:
            raise ValueError
        return [
            Video(name, place, int(num_bytes), int(mtime_ns), int(seconds), shard, note)
            for name, place, num_bytes, mtime_ns, seconds, shard, note in rows
        ]
    except (OSError, ValueError, csv.Error):
        raise UsageError(
            f"{path}: is not the table of an extraction (columns {', '.join(_HEADER)}); move it away, or give another "
            "output folder."
        ) from None


def write_videos(folder: Path, videos: Iterable[Video]) -> None:
    """Write the table, atomically."""
    write_csv(folder / VIDEOS_FILE, _HEADER, map(astuple, videos))


def find_videos(inputs: Sequence[Path]) -> list[Path]:
    """Find video files; see `find_files`. Those of folders have the names of videos (`SUFFIXES`)."""
    return find_files(
        inputs, lambda path: path.suffix.lower() in SUFFIXES, f"video files ({', '.join(sorted(SUFFIXES))})"
    )


def find_files(inputs: Sequence[Path], is_wanted: Callable[[Path], bool], what: str) -> list[Path]:
    """Find files: their absolute paths, sorted.

    Args:
        inputs: Files; folders, whose wanted files are taken, at any depth; and lists (`.txt`) of such paths, relative to
            the folder of the list.
        is_wanted: Whether to take a file from a folder.
        what: What is wanted, for messages.

    Raises:
        UsageError: An input is missing, or a folder contains no such file.
    """
    found: set[Path] = set()
    for path in inputs:
        if path.suffix.lower() == LIST_SUFFIX and path.is_file():
            listed = [path.parent / name for name in read_names(path, "files")]
            found.update(find_files(listed, is_wanted, what))
        elif path.is_dir():
            inside = {file for file in path.rglob("*") if is_wanted(file) and not _is_hidden(file, path)}
            if not inside:
                raise UsageError(f"{path}: contains no {what}.")
            found |= inside
        elif path.exists():
            found.add(path)
        else:
            raise UsageError(f"{path}: there is no such file or folder.")
    return sorted(path.absolute() for path in found)


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def video_id(path: Path) -> str:
    """The id of a video file, a function of its content; see `id_of_digest`.

    Raises:
        Yt8mError: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return id_of_digest(hashlib.file_digest(file, "sha256").digest())
    except OSError as error:
        raise Yt8mError(f"{path}: cannot be read ({error.strerror}).") from None


def id_of_digest(digest: bytes) -> str:
    """The id of a video: `v` and 11 characters of the SHA-256 of its content, a to z and 2 to 7."""
    return "v" + base64.b32encode(digest).decode().lower()[: ID_LENGTH - 1]
