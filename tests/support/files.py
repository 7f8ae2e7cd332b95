"""List the files of a folder."""

from __future__ import annotations

from pathlib import Path


def files_in(folder: Path) -> set[str]:
    """Relative paths of all files in a folder, including hidden ones."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
