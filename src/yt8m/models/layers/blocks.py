"""Blocks of rows that fit into the processor's cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK_ELEMENTS = 1 << 20
"""Elements of a block on a CPU: 4 MB of float32, which the cache keeps from one operation to the next. Smaller blocks
gain little, and make threads wait for each other so often that a busy machine stalls (measured: up to tenfold)."""


def row_blocks(rows: Tensor) -> Iterator[slice]:
    """Slices of the first dimension: cache-sized on a CPU, all at once on a device or while compiling (which fuses)."""
    count = rows.shape[0]
    if rows.device.type != "cpu" or torch.compiler.is_compiling() or count == 0:
        yield slice(0, count)
        return
    step = max(1, BLOCK_ELEMENTS * count // max(rows.numel(), 1))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def statistics_dtype(features: Tensor) -> torch.dtype:
    """Float32 at least: sums over thousands of bfloat16 frames would lose most of their digits."""
    return torch.promote_types(features.dtype, torch.float32)
