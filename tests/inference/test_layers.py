"""Folded layers."""

from __future__ import annotations

import pytest
import torch

from tests.support.tiny_models import CPU
from yt8m.inference.layers import FoldedLinear


@pytest.mark.parametrize("rows", [64, 512, 1024])
@pytest.mark.parametrize(
    ("num_inputs", "num_outputs"), [(1152, 40), (40, 5), (24, 10), (10, 2), (150, 9), (2047, 11), (512, 65)]
)
def test_results_do_not_depend_on_the_position_of_a_row(rows: int, num_inputs: int, num_outputs: int) -> None:
    generator = torch.Generator().manual_seed(num_inputs)
    weight, bias = torch.randn(num_outputs, num_inputs + 1, generator=generator, dtype=torch.float64).split(
        [num_inputs, 1], dim=1
    )
    linear = FoldedLinear(weight, bias.squeeze(1), torch.float32, CPU)
    features = torch.randn(rows, num_inputs, generator=generator)
    order = torch.randperm(rows, generator=generator)
    assert torch.equal(linear(features[order]), linear(features)[order])
