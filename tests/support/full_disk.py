"""Small disks that a test can fill."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class FullDisk:
    """A folder on a disk that can be filled and freed."""

    is_real = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self, leave: int = 0) -> None:
        """Use up all space except `leave` bytes."""
        free = shutil.disk_usage(self.folder).free
        with (self.folder / "filler").open("wb", buffering=0) as file:
            file.write(bytes(max(0, free - leave)))

    def free(self) -> None:
        """Free the space again."""
        (self.folder / "filler").unlink()


class SimulatedFullDisk(FullDisk):
    """A substitute without mounting: fsync of a file of more than `leave` bytes fails as on a full disk."""

    is_real = False

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        super().__init__(folder)
        self._patch = patch
        self._flush = os.fsync

    def fill(self, leave: int = 0) -> None:
        def flush(file: int) -> None:
            if os.fstat(file).st_size > leave:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._flush(file)

        self._patch.setattr(os, "fsync", flush)

    def free(self) -> None:
        self._patch.setattr(os, "fsync", self._flush)


@contextmanager
def mounted_disk(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[FullDisk]:
    """A 64 MB disk mounted at a folder, or a simulated one if this process may not mount."""
    folder.mkdir()
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    is_real = mount is not None and subprocess.run([mount, *options], capture_output=True, check=False).returncode == 0
    if not is_real:
        yield SimulatedFullDisk(folder, patch)
        return
    try:
        yield FullDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
