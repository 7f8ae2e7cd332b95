"""The base class of encoders: frames of a video or segment -> one vector.

Shapes: B videos or segments, T frames, D features (1152 of YouTube-8M).
"""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from yt8m.features import YOUTUBE8M, Features
from yt8m.models.config import DBoFConfig, NeXtVLADConfig
from yt8m.models.layers.input import FrameInput


class Encoder(nn.Module, ABC):
    """Encodes the frames of a video or segment as one vector; subclasses implement `encode`.

    Args:
        config: Settings.
        features: What the frames are.

    Raises:
        UsageError: See `FrameInput`.
    """

    def __init__(self, config: DBoFConfig | NeXtVLADConfig, features: Features = YOUTUBE8M) -> None:
        super().__init__()
        self.output_size, self.features = config.output_size, features
        self.frame_input = FrameInput(config.input_batch_norm, config.input, features, config.modalities)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Encode frames, uint8 (B, T, bytes) with lengths int64 (B,) from 1 to T, as (B, output_size).

        Padding has no influence, and in eval mode a video's row depends on that video alone.
        """
        dtype = next(self.parameters()).dtype
        features, mask = self.frame_input(frames, lengths, dtype)
        return self.encode(features, mask)

    @abstractmethod
    def encode(self, features: Tensor, mask: Tensor) -> Tensor:
        """Encode features (B, T, D) with their mask (B, T) as (B, output_size)."""
