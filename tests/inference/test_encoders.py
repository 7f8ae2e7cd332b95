"""Folding of encoders; their results are tested with those of classifiers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.support.tiny_models import CPU
from yt8m.inference.encoders import fold_encoder
from yt8m.models.config import DBoFConfig
from yt8m.models.encoder import Encoder


def test_an_unknown_encoder_is_rejected() -> None:
    class Mean(Encoder):
        def encode(self, features: Tensor, mask: Tensor) -> Tensor:
            return features.mean(1)

    with pytest.raises(TypeError, match="no folded form of Mean"):
        fold_encoder(Mean(DBoFConfig()), torch.float32, CPU)
