"""Files of own labels and ratings beside shards: `labels.csv` and `ratings.csv`, read as rows of numbers."""

import csv
import hashlib
import io
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from yt8m.errors import UsageError, reason_of
from yt8m.extraction.videos import VIDEOS_FILE

LABELS_FILE = "labels.csv"
RATINGS_FILE = "ratings.csv"

COLUMNS = {LABELS_FILE: ("video", "label"), RATINGS_FILE: ("video", "label", "start", "score")}


class Row(NamedTuple):
    """A row of a file.

    Args:
        line: Its line, from 1.
        video: Id, path or file name of the video.
        label: Label id.
        start: Seconds; 0 of a label.
        score: 0 or 1 in a valid rating; 1 of a label.
        fault: Why it is no row of this file; empty where it is one.
    """

    line: int
    video: str
    label: int = 0
    start: int = 0
    score: float = 1.0
    fault: str = ""


def read_files(folder: Path) -> dict[str, bytes]:
    """Contents of the files by name; empty without labels and ratings. The table of an extraction names their videos.

    Raises:
        UsageError: One cannot be read.
    """
    if not any((folder / name).exists() for name in COLUMNS):
        return {}
    contents = {}
    for name in (*COLUMNS, VIDEOS_FILE):
        path = folder / name
        try:
            if path.exists():
                contents[name] = path.read_bytes()
        except OSError as error:
            raise UsageError(f"{path}: cannot be read ({error.strerror}).") from None
    return contents


def digest_of(contents: Mapping[str, bytes]) -> str:
    """Hash of the files; empty without."""
    digest = hashlib.sha256()
    for name, content in contents.items():
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16] if contents else ""


def rows_of(path: Path, content: bytes) -> Iterator[Row]:
    """Rows of a file; other columns are ignored.

    Args:
        path: The file, whose name decides the columns.
        content: Its bytes.

    Raises:
        UsageError: It is no CSV file with these columns.
    """
    columns = COLUMNS[path.name]
    try:
        reader = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""))
        if not set(columns) <= set(reader.fieldnames or ()):
            raise UsageError(f"{path}: expected a header with the columns {', '.join(columns)}.")
        for row in reader:
            texts = [(row[name] or "").strip() for name in columns]
            yield _parsed(reader.line_num, *texts)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path}: cannot be read as a CSV file ({reason_of(error)}).") from None


def _parsed(line: int, video: str, label: str, start: str = "0", score: str = "1") -> Row:
    for name, text in (("label", label), ("start", start)):
        if not (text.isascii() and text.isdecimal() and len(text) < 10):
            return Row(line, video, fault=f"expected a whole number as {name}, found {text[:40]!r}")
    try:
        value = float(score)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        return Row(line, video, fault=f"expected 0 or 1 as score, found {score[:40]!r}")
    return Row(line, video, int(label), int(start), value)
