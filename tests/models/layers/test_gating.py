"""Squeeze-and-excitation gates, compared with their formula."""

from __future__ import annotations

import pytest
import torch

from tests.support.plain_layers import plain_gate
from tests.support.tiny_models import randomize
from yt8m.models.layers.gating import SqueezeExcite, squeeze_excite
from yt8m.models.layers.input import frame_mask

LENGTHS = torch.tensor([5, 1, 3, 4])


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("channels", [6, 64])
def test_squeeze_excite_equals_the_formula(training: bool, channels: int) -> None:
    gate = SqueezeExcite(channels, 3).double()
    randomize(gate)
    gate.train(training)
    rows = torch.randn(9, channels, dtype=torch.float64)
    torch.testing.assert_close(gate(rows), plain_gate(gate, rows), atol=1e-11, rtol=1e-11)
    mask = frame_mask(LENGTHS, 5)
    frames = torch.randn(4, 5, channels, dtype=torch.float64)
    frames[~mask] = 100
    torch.testing.assert_close(gate(frames, mask)[mask], plain_gate(gate, frames[mask]), atol=1e-11, rtol=1e-11)


def test_reduction_sets_the_hidden_size_and_zero_disables_the_gate() -> None:
    assert SqueezeExcite(64, 8).squeeze.weight.shape == (8, 64)
    assert SqueezeExcite(4, 8).squeeze.weight.shape == (1, 4)
    assert squeeze_excite(64, 0) is None
    assert isinstance(squeeze_excite(64, 2), SqueezeExcite)
