"""A server with one partition that can misbehave, and the path of a dataset folder that does not exist yet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.downloads import PARTITION, SHARDS
from tests.support.hostile_server import HostileServer


@pytest.fixture
def server() -> Iterator[HostileServer]:
    with HostileServer() as running:
        running.state.add_partition(PARTITION, SHARDS)
        running.state.add_vocabularies()
        yield running


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"
