"""Work in chunks of fixed sizes, so that results are batch-invariant (see `classifier`); short chunks are padded."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class ChunkSizes(NamedTuple):
    """Sizes of the chunks of work; shorter chunks are padded.

    Args:
        frames: Frames to embed at a time.
        windows: Windows to encode at a time.
        gathered: Elements of embeddings to gather at a time: on a CPU, what its cache holds until they are summed.
    """

    frames: int
    windows: int
    gathered: int


CPU_CHUNKS = ChunkSizes(frames=1024, windows=512, gathered=1 << 20)
DEVICE_CHUNKS = ChunkSizes(frames=4096, windows=2048, gathered=1 << 27)
VIDEOS_PER_CHUNK = 64


def chunk_sizes(device: torch.device) -> ChunkSizes:
    """Sizes of the chunks on a device."""
    return CPU_CHUNKS if device.type == "cpu" else DEVICE_CHUNKS


def apply_in_chunks(function: Callable[..., Tensor], size: int, *tensors: Tensor) -> Tensor:
    """Apply a function to exactly `size` rows at a time; the last chunk is padded with its first row.

    Args:
        function: Maps rows of each tensor to as many rows.
        size: Rows of a chunk.
        tensors: At least one row each, equally many.
    """
    results = []
    for start in range(0, len(tensors[0]), size):
        parts = [tensor[start : start + size] for tensor in tensors]
        results.append(function(*(pad_rows(part, size) for part in parts))[: len(parts[0])])
    return results[0] if len(results) == 1 else torch.cat(results)


def pad_rows(rows: Tensor, size: int) -> Tensor:
    """Pad rows to `size` with the first of them."""
    filler = size - len(rows)
    return torch.cat([rows, rows[:1].expand(filler, *rows.shape[1:])]) if filler else rows
