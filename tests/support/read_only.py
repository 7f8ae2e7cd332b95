"""Folders that cannot be written to, not even by root."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def read_only(folder: Path, place: Path) -> Iterator[Path]:
    """A read-only mount of a folder at a place, which is created; the test is skipped if this process may not mount."""
    place.mkdir()
    mount = shutil.which("mount")
    for options in (["--bind", str(folder), str(place)], ["-o", "remount,ro,bind", str(place)]):
        if mount is None or subprocess.run([mount, *options], capture_output=True, check=False).returncode:
            subprocess.run(["umount", "--lazy", str(place)], capture_output=True, check=False)
            pytest.skip("needs a read-only mount, and this process may not mount")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)
