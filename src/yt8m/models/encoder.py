"""The base class of encoders: frames of a video or segment -> one vector.

Shapes: B videos or segments, T frames, D=1152 features.
"""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from yt8m.models.config import InputValues
from yt8m.models.layers.input import FrameInput


class Encoder(nn.Module, ABC):
    """Encodes the frames of a video or segment as one vector; subclasses implement `encode`.

    Args:
        output_size: Size of the vector.
        input_batch_norm: See `FrameInput`.
        input_values: See `FrameInput`.
    """

    def __init__(self, output_size: int, input_batch_norm: bool, input_values: InputValues = "dequantized") -> None:
        super().__init__()
        self.output_size = output_size
        self.frame_input = FrameInput(input_batch_norm, input_values)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Encode frames, uint8 (B, T, D) with lengths int64 (B,) from 1 to T, as (B, output_size).

        Padding has no influence, and in eval mode a video's row depends on that video alone.
        """
        dtype = next(self.parameters()).dtype
        features, mask = self.frame_input(frames, lengths, dtype)
        return self.encode(features, mask)

    @abstractmethod
    def encode(self, features: Tensor, mask: Tensor) -> Tensor:
        """Encode features (B, T, D) with their mask (B, T) as (B, output_size)."""
