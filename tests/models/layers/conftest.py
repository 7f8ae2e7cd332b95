"""Fixtures of the tests of layers."""

from __future__ import annotations

import pytest
import torch

from yt8m.models.layers import blocks as blocks_module


@pytest.fixture(params=[blocks_module.BLOCK_ELEMENTS, 7], ids=["one block", "many blocks"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test in one block, and again in blocks of one or two rows."""
    monkeypatch.setattr(blocks_module, "BLOCK_ELEMENTS", request.param)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
