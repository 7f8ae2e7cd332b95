"""Input layer: bytes are dequantized and masked."""

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from yt8m.models.config import FRAME_SIZE, InputValues
from yt8m.models.layers.batch_norm import MaskedBatchNorm

Frames = Tensor | NDArray[np.uint8]
"""Frames as a tensor or as an array."""


def as_batch(frames: Frames, lengths: Tensor | ArrayLike | None, device: torch.device) -> tuple[Tensor, Tensor]:
    """Frames and lengths as the tensors that networks take.

    Args:
        frames: uint8 (B, T, D), rgb ++ audio as in the shards.
        lengths: Number of frames of each, (B,), from 1 to T; None if all T frames exist.
        device: Device of the network.

    Raises:
        TypeError: The frames are not uint8.
        ValueError: The frames or the lengths have another shape or range.
    """
    # Copied where an array is read-only, as memory-mapped ones are: tensors cannot be.
    tensor = torch.as_tensor(frames if isinstance(frames, Tensor) else np.require(frames, requirements="W"))
    if tensor.dtype != torch.uint8:
        raise TypeError(f"expected frames as bytes (uint8), found {tensor.dtype}")
    if tensor.ndim != 3 or tensor.shape[2] != FRAME_SIZE:
        raise ValueError(f"expected frames (B, T, {FRAME_SIZE}), found {tuple(tensor.shape)}")
    if lengths is None:
        lengths = torch.full(tensor.shape[:1], tensor.shape[1])
    counts = torch.as_tensor(lengths, dtype=torch.int64)
    if counts.shape != tensor.shape[:1] or not bool(((counts >= 1) & (counts <= tensor.shape[1])).all()):
        raise ValueError(f"expected {tensor.shape[0]} lengths from 1 to {tensor.shape[1]}, found {counts.tolist()}")
    return tensor.to(device), counts.to(device)


def dequantize(frames: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Dequantize bytes: `q * 4/255 + 4/512 - 2` (docs/method.md, "Quantization").

    Args:
        frames: uint8 of any shape.
        dtype: Type of the result; computed in float32 at least.

    Returns:
        Values from -1.9921875 to 2.0078125, same shape.

    Raises:
        TypeError: The frames are not uint8, for example because they are already dequantized.
    """
    values = as_numbers(frames, torch.promote_types(dtype, torch.float32))
    return values.mul_(4 / 255).add_(4 / 512 - 2).to(dtype)


def as_numbers(frames: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Convert uint8 of any shape to the numbers 0 to 255, exact in any floating-point type; TypeError for others."""
    if frames.dtype != torch.uint8:
        raise TypeError(f"expected frames as bytes (uint8), found {frames.dtype}")
    return frames.to(dtype)


def frame_mask(lengths: Tensor, num_frames: int) -> Tensor:
    """Mask of the frames that exist, bool (B, T), from lengths int64 (B,); T is `num_frames`."""
    return torch.arange(num_frames, device=lengths.device) < lengths.unsqueeze(1)


class FrameInput(nn.Module):
    """The first layer of every network: bytes and lengths -> (features, mask).

    Args:
        batch_norm: Also normalize each feature by its mean and standard deviation over the batch's valid frames (running
            statistics in eval mode), without weight and bias, since a linear layer follows; so no gradient is ever
            computed for inputs (B, T, D).
        values: Whether to dequantize (`dequantized`), or to use the bytes 0 to 255 (`bytes`).
    """

    def __init__(self, batch_norm: bool = False, values: InputValues = "dequantized") -> None:
        super().__init__()
        self.values = values
        self.norm = MaskedBatchNorm(FRAME_SIZE, affine=False) if batch_norm else None

    def forward(self, frames: Tensor, lengths: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Convert and mask frames.

        Args:
            frames: uint8 (B, T, D), any content beyond a video's length.
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
