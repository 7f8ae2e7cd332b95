"""Which files a folder contains."""

from __future__ import annotations

from pathlib import Path


def files_in(folder: Path) -> set[str]:
    """Paths of all files of a folder, hidden ones too."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
