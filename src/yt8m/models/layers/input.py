"""Frames as numbers: dequantizing and masking."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from yt8m.models.layers.batch_norm import MaskedBatchNorm

RGB_SIZE = 1024
AUDIO_SIZE = 128
FRAME_SIZE = RGB_SIZE + AUDIO_SIZE

InputValues = Literal["dequantized", "bytes"]
"""What networks see of a byte: the value it stands for, or the number 0 to 255."""


# ---------------------------------------------------------------------------------------------------------- frames


def dequantize(frames: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Turn bytes into the values they stand for: `q * 4/255 + 4/512 - 2` (SPEC: the data, quantization).

    Args:
        frames: uint8 of any shape.
        dtype: Type of the result; computed in float32 at least.

    Returns:
        Values from -1.9921875 to 2.0078125, same shape.

    Raises:
        TypeError: The frames are not bytes; values that are dequantized already would be taken for bytes.
    """
    values = as_numbers(frames, torch.promote_types(dtype, torch.float32))
    return values.mul_(4 / 255).add_(4 / 512 - 2).to(dtype)


def as_numbers(frames: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Turn bytes into the numbers 0 to 255, a new tensor; each is exact in any floating-point type.

    Args:
        frames: uint8 of any shape.
        dtype: Type of the result.

    Raises:
        TypeError: The frames are not bytes.
    """
    if frames.dtype != torch.uint8:
        raise TypeError(f"expected frames as bytes (uint8), found {frames.dtype}")
    return frames.to(dtype)


def frame_mask(lengths: Tensor, num_frames: int) -> Tensor:
    """Mark the frames that exist.

    Args:
        lengths: Number of frames of each video, int64 (B,).
        num_frames: T, the length that the batch is padded to.

    Returns:
        bool (B, T), true where valid.
    """
    return torch.arange(num_frames, device=lengths.device) < lengths.unsqueeze(1)


class FrameInput(nn.Module):
    """The first lines of every network: bytes and lengths in, (features, mask) out, on whatever device they are.

    Args:
        batch_norm: Also normalize each feature by its mean and deviation over the batch's valid frames (running
            statistics in eval mode). It has no weight and bias of its own, since every encoder goes on with a linear
            layer; so no gradient is ever computed for (B, T, D) inputs.
        values: What a byte becomes: the value it stands for (`dequantized`), or the number 0 to 255 itself (`bytes`).
    """

    def __init__(self, batch_norm: bool = False, values: InputValues = "dequantized") -> None:
        super().__init__()
        self.values = values
        self.norm = MaskedBatchNorm(FRAME_SIZE, affine=False) if batch_norm else None

    def forward(self, frames: Tensor, lengths: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Make features of bytes, and mask them.

        Args:
            frames: uint8 (B, T, D); anything may stand beyond a video's length.
            lengths: int64 (B,), at least 1.
            dtype: Type of the features.

        Returns:
            Features (B, T, D), zero at padding, and the mask, bool (B, T).
        """
        mask = frame_mask(lengths, frames.shape[1])
        features = dequantize(frames, dtype) if self.values == "dequantized" else as_numbers(frames, dtype)
        if self.norm is not None:
            mean, scale, _ = self.norm.statistics(features, mask)
            features = features.sub_(mean.to(dtype)).mul_(scale.to(dtype))
        return features.mul_(mask.unsqueeze(-1)), mask
