"""Block-wise computation over rows: cache-sized blocks, and the precision of sums over them."""

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK_ELEMENTS = 1 << 20
"""Elements of a block on a CPU: 4 MB of float32, which stay in the cache from one operation to the next. Smaller blocks
gain little, and threads then synchronize so often that a busy machine stalls (up to tenfold, measured)."""


def row_blocks(rows: Tensor) -> Iterator[slice]:
    """Slices of the first dimension: cache-sized on a CPU, everything at once on a GPU or while compiling."""
    count = rows.shape[0]
    if rows.device.type != "cpu" or torch.compiler.is_compiling() or count == 0:
        yield slice(0, count)
        return
    step = max(1, BLOCK_ELEMENTS * count // max(rows.numel(), 1))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def statistics_dtype(features: Tensor) -> torch.dtype:
    """Type for sums over frames, at least float32: thousands of bfloat16 terms would lose most of their precision."""
    return torch.promote_types(features.dtype, torch.float32)
