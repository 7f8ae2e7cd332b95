"""docs/cli.md is generated from the commands."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_reference_matches_the_commands(tmp_path: Path) -> None:
    version = importlib.metadata.version("typer")
    if f"typer=={version}\n" not in (ROOT / "constraints.txt").read_text():
        pytest.skip(f"typer {version} is not the version that docs/cli.md was written with")
    command = [sys.executable, "-m", "typer", "yt8m.cli.main", "utils", "docs", "--name", "yt8m"]
    command += ["--title", "Command reference", "--output", str(tmp_path / "cli.md")]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    written, current = (ROOT / "docs" / "cli.md").read_text(), (tmp_path / "cli.md").read_text()
    assert written == current, "the commands have changed: run `make docs`"
