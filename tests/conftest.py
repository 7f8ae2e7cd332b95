"""Fixtures that several folders of tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real YouTube-8M and AudioSet data; not part of the project, so tests that need it may skip."""
    named = os.environ.get("YT8M_SHARED_DATA")
    folder = Path(named) if named else Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set YT8M_SHARED_DATA to the folder that holds it")
    return folder
