"""Context-gated deep bag of frames (DBoF): a wide layer and a gate per frame, then pooling over the video.

Shapes: B videos or segments, T frames, D features (1152 of YouTube-8M), H hidden channels, C classes.

frames -> Linear(D -> H) -> ReLU -> SE gate -> masked max ++ masked mean (2H) -> BatchNorm -> Dropout ->
Linear(2H -> output_size, no bias) -> ReLU -> SE gate (docs/method.md, "DBoF"). Weights have torch's initialization.
"""

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from yt8m.features import YOUTUBE8M, Features
from yt8m.models.config import DBoFConfig
from yt8m.models.encoder import Encoder
from yt8m.models.layers.batch_norm import MaskedBatchNorm
from yt8m.models.layers.dropout import Dropout
from yt8m.models.layers.gating import squeeze_excite
from yt8m.models.layers.pooling import gated_max_mean_pool


class DBoFEncoder(Encoder):
    """Gated DBoF: (B, T, D) -> (B, output_size)."""

    def __init__(self, config: DBoFConfig, features: Features = YOUTUBE8M) -> None:
        super().__init__(config, features)
        self.config = config
        self.frame_projection = nn.Linear(self.frame_input.size, config.hidden_size)
        self.frame_gate = squeeze_excite(config.hidden_size, config.frame_se_reduction)
        self.pooled_norm = MaskedBatchNorm(2 * config.hidden_size)
        self.pooled_dropout = Dropout(config.dropout)
        self.video_projection = nn.Linear(2 * config.hidden_size, config.output_size, bias=False)
        self.video_gate = squeeze_excite(config.output_size, config.video_se_reduction)

    def encode(self, features: Tensor, mask: Tensor) -> Tensor:
        """Encode features (B, T, D) with their mask (B, T) as (B, output_size)."""
        # Two-dimensional, since the gradient of an in-place ReLU on a view would be copied. hidden: (B, T, H).
        hidden = F.relu(self.frame_projection(features.flatten(0, 1)), inplace=True).view(*mask.shape, -1)
        gate_logits = None if self.frame_gate is None else self.frame_gate.gate_logits(hidden, mask)
        pooled = gated_max_mean_pool(hidden, gate_logits, mask)  # (B, 2H)
        encoded = F.relu(self.video_projection(self.pooled_dropout(self.pooled_norm(pooled))))
        return encoded if self.video_gate is None else self.video_gate(encoded)
