"""A hostile server with a partition, and an empty dataset folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.downloads import PARTITION, SHARDS
from tests.support.hostile_server import Holdings, HostileServer


@pytest.fixture
def server() -> Iterator[HostileServer]:
    with HostileServer() as running:
        running.holdings.hold(PARTITION, SHARDS)
        running.holdings.hold_vocabularies()
        yield running


@pytest.fixture
def holdings(server: HostileServer) -> Holdings:
    return server.holdings


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"
