"""Input layer: bytes are dequantized and masked."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from yt8m.errors import UsageError
from yt8m.features import MODALITIES, YOUTUBE8M, Features, Modality
from yt8m.models.config import InputValues
from yt8m.models.layers.batch_norm import MaskedBatchNorm

Frames = Tensor | NDArray[np.uint8]
"""Frames as a tensor or as an array."""


def as_batch(
    frames: Frames, lengths: Tensor | ArrayLike | None, device: torch.device, features: Features = YOUTUBE8M
) -> tuple[Tensor, Tensor]:
    """Frames and lengths as the tensors that networks take.

    Args:
        frames: Bytes of the frames, uint8 (B, T, bytes), rgb ++ audio as in the shards.
        lengths: Number of frames of each, (B,), from 1 to T; None if all T frames exist.
        device: Device of the network.
        features: What the frames are.

    Raises:
        TypeError: The frames are not uint8.
        ValueError: The frames or the lengths have another shape or range.
    """
    # Copied where an array is read-only, as memory-mapped ones are: tensors cannot be.
    tensor = torch.as_tensor(frames if isinstance(frames, Tensor) else np.require(frames, requirements="W"))
    if tensor.dtype != torch.uint8:
        raise TypeError(f"expected frames as bytes (uint8), found {tensor.dtype}")
    if tensor.ndim != 3 or tensor.shape[2] != features.frame_bytes:
        raise ValueError(f"expected frames (B, T, {features.frame_bytes}), found {tuple(tensor.shape)}")
    if lengths is None:
        lengths = torch.full(tensor.shape[:1], tensor.shape[1])
    counts = torch.as_tensor(lengths, dtype=torch.int64)
    if counts.shape != tensor.shape[:1] or not bool(((counts >= 1) & (counts <= tensor.shape[1])).all()):
        raise ValueError(f"expected {tensor.shape[0]} lengths from 1 to {tensor.shape[1]}, found {counts.tolist()}")
    return tensor.to(device), counts.to(device)


def dequantize(
    frames: Tensor, dtype: torch.dtype = torch.float32, scale: float = 4 / 255, offset: float = 4 / 512 - 2
) -> Tensor:
    """Dequantize bytes: `q * 4/255 + 4/512 - 2` in YouTube-8M (docs/method.md, "Quantization").

    Args:
        frames: uint8 of any shape.
        dtype: Type of the result; computed in float32 at least.
        scale: Step between two bytes.
        offset: Value of the byte 0.

    Returns:
        Values of the same shape, in YouTube-8M from -1.9921875 to 2.0078125.

    Raises:
        TypeError: The frames are not uint8, for example because they are already dequantized.
    """
    values = as_numbers(frames, torch.promote_types(dtype, torch.float32))
    return values.mul_(scale).add_(offset).to(dtype)


def as_numbers(frames: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Convert uint8 of any shape to the numbers 0 to 255, exact in any floating-point type; TypeError for others."""
    if frames.dtype != torch.uint8:
        raise TypeError(f"expected frames as bytes (uint8), found {frames.dtype}")
    return frames.to(dtype)


def frame_mask(lengths: Tensor, num_frames: int) -> Tensor:
    """Mask of the frames that exist, bool (B, T), from lengths int64 (B,); T is `num_frames`."""
    return torch.arange(num_frames, device=lengths.device) < lengths.unsqueeze(1)


def _of_each(modalities: Iterable[Modality], name: str) -> Tensor:
    """The scale or offset of each number, float32 (D,)."""
    parts = [np.broadcast_to(np.float32(getattr(modality, name)), modality.size) for modality in modalities]
    return torch.from_numpy(np.concatenate(parts))


class FrameInput(nn.Module):
    """The first layer of every network: bytes and lengths -> (features, mask).

    Args:
        batch_norm: Also normalize each feature by its mean and standard deviation over the batch's valid frames (running
            statistics in eval mode), without weight and bias, since a linear layer follows; so no gradient is ever
            computed for inputs (B, T, D).
        values: Whether to dequantize (`dequantized`), or to use the bytes 0 to 255 (`bytes`).
        features: What the frames are.
        modalities: Those to use; the others are cut off.

    Raises:
        UsageError: There is none of these modalities, or bytes are to be used and frames are half-precision numbers.
    """

    scale: Tensor
    offset: Tensor

    def __init__(
        self,
        batch_norm: bool = False,
        values: InputValues = "dequantized",
        features: Features = YOUTUBE8M,
        modalities: Sequence[str] = MODALITIES,
    ) -> None:
        super().__init__()
        used = {name: modality for name, modality in features.modalities.items() if name in modalities}
        if not used:
            raise UsageError(
                f"A network of {' and '.join(modalities)} cannot be trained on features {features.name!r}, which have "
                f"{' and '.join(features.modalities)} alone."
            )
        if values == "bytes" and features.dtype != "uint8":
            raise UsageError(
                f"`input: bytes` needs features of bytes, and those of {features.name!r} are {features.dtype}."
            )
        self.values = values
        self.sizes = {name: modality.size for name, modality in used.items()}
        self.size = sum(self.sizes.values())
        self.norm = MaskedBatchNorm(self.size, affine=False) if batch_norm else None
        self._is_half = features.dtype == "float16"
        begin = 0 if "rgb" in used else features.bytes_of("rgb")
        self._bytes = slice(begin, begin + self.size * features.item_bytes)
        self._is_cut = self.size != features.size
        affine = {(str(modality.scale), str(modality.offset)): modality for modality in used.values()}
        first = next(iter(affine.values()))
        self._affine: tuple[float, float] | None = None
        if len(affine) == 1 and isinstance(first.scale, float) and isinstance(first.offset, float):
            self._affine = (first.scale, first.offset)
        else:
            # Derived from the settings, so not part of the weights.
            self.register_buffer("scale", _of_each(used.values(), "scale"), persistent=False)
            self.register_buffer("offset", _of_each(used.values(), "offset"), persistent=False)

    def forward(self, frames: Tensor, lengths: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Convert and mask frames.

        Args:
            frames: Bytes, uint8 (B, T, bytes), any content beyond a video's length.
            lengths: int64 (B,), at least 1.
            dtype: Type of the features.

        Returns:
            Features (B, T, D) of the modalities used, zero at padding, and the mask, bool (B, T).
        """
        mask = frame_mask(lengths, frames.shape[1])
        if self._is_cut:
            frames = frames[..., self._bytes]
        features = self._values(frames, dtype)
        if self.norm is not None:
            mean, scale, _ = self.norm.statistics(features, mask)
            features = features.sub_(mean.to(dtype)).mul_(scale.to(dtype))
        return features.mul_(mask.unsqueeze(-1)), mask

    def _values(self, frames: Tensor, dtype: torch.dtype) -> Tensor:
        if self._is_half:
            as_numbers(frames[..., :0])  # bytes are expected
            # Padding is of any content; a NaN would outlive the mask.
            return frames.contiguous().view(torch.float16).to(dtype, copy=True).nan_to_num_()
        if self.values == "bytes":
            return as_numbers(frames, dtype)
        if self._affine is not None:
            return dequantize(frames, dtype, *self._affine)
        return (
            as_numbers(frames, torch.promote_types(dtype, torch.float32)).mul_(self.scale).add_(self.offset).to(dtype)
        )
