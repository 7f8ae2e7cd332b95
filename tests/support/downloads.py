"""Shards that a hostile server offers, and helpers that download them."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest

from tests.support.hostile_server import HostileServer
from yt8m.download.download import LEDGER_FILE, PLAN_FILE, FolderReport, download
from yt8m.download.plan import other_server
from yt8m.download.transfer import RetryPolicy
from yt8m.errors import Yt8mError

PARTITION, FOLDER = "3/frame/validate", "segment/train"
QUICK = RetryPolicy(stall_seconds=0.25, first_delay_seconds=0)
ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
"""The characters that a shard name ends in, in the order of the official numbering."""

BOOKKEEPING_FILES = {PLAN_FILE, LEDGER_FILE}


def some_shards(count: int = 6, size: int = 60_000, seed: int = 0, prefix: str = "validate") -> dict[str, bytes]:
    """Shards of random bytes, by their names in the plan: validatea0, validatea1, ..."""
    rng = random.Random(seed)
    return {
        f"{prefix}{first}{second}.tfrecord": rng.randbytes(size + 1000 * number)
        for number, (first, second) in enumerate(itertools.islice(itertools.product("ab", "0123456789"), count))
    }


SHARDS = some_shards()
NAMES = [f"validate{52 + number:04d}.tfrecord" for number in range(6)]
"""Local file names of `SHARDS`: 'a' counts as 0, and digits start at 52."""


def url_path(number: int) -> str:
    """Path of a shard on the server."""
    return f"/{PARTITION}/{list(SHARDS)[number]}"


def fetch(server: HostileServer, data: Path, policy: RetryPolicy = QUICK, **options: Any) -> list[FolderReport]:
    """Download the partition."""
    return list(download(data, [PARTITION], other_server(server.url), policy=policy, **options))


def content(folder: Path) -> dict[str, bytes]:
    """Contents of all files below a folder except the plan and the ledger, by relative path."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in BOOKKEEPING_FILES)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


EXPECTED = dict(zip(NAMES, SHARDS.values(), strict=True))


def failed(server: HostileServer, data: Path, **options: Any) -> str:
    """Run a download that fails and return its error message."""
    with pytest.raises(Yt8mError) as caught:
        fetch(server, data, **options)
    assert caught.value.exit_code == 1
    return str(caught.value)
