"""Dropout in one process."""

from __future__ import annotations

import torch
from torch import nn

from yt8m.models.layers.dropout import Dropout


def test_dropout_of_one_process_equals_torch() -> None:
    features = torch.randn(8, 6, 5)
    for ours, theirs in ((Dropout(0.3), nn.Dropout(0.3)), (Dropout(0.3, rows=True), nn.Dropout1d(0.3))):
        torch.manual_seed(1)
        found = ours(features)
        torch.manual_seed(1)
        assert torch.equal(found, theirs(features))
        assert ours.eval()(features) is features
        assert Dropout(0.0)(features) is features
