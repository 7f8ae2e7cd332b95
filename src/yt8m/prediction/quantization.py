"""Quantization of probabilities to 16-bit codes, in which they are merged, ranked and stored.

A code is the logit on a uniform grid from -24 to 16. A decoded logit is off by at most 3.1e-4, so p and 1 - p have a
relative error of at most 0.031%, and p an absolute error of at most 7.7e-5 (at 0.5). Half precision has the same relative
error of p, but is off by 2.4e-4 near 1 and by 50% near 1e-7. Code 0 stands for a missing probability: a NaN, or bytes
that were never written.

Only codes of tensors need torch, which is imported there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

LOWEST_LOGIT = -24.0
HIGHEST_LOGIT = 16.0
NUM_CODES = 65536
NO_PROBABILITY = 0
"""Code of a missing probability."""
_STEP = (HIGHEST_LOGIT - LOWEST_LOGIT) / (NUM_CODES - 2)
_STEPS_PER_LOGIT = 1 / _STEP


def encode(logits: Tensor) -> Tensor:
    """Codes of logits.

    Args:
        logits: float32, any shape, on any device; clamped to the grid.

    Returns:
        uint16, same shape; 0 where a logit is NaN.
    """
    import torch

    steps = (logits - LOWEST_LOGIT).mul_(_STEPS_PER_LOGIT).round_().clamp_(0, NUM_CODES - 2).add_(1)
    steps = torch.nan_to_num_(steps, nan=float(NO_PROBABILITY))
    # Not all devices convert to uint16; the bits of int16 are the same.
    return steps.to(torch.int32).to(torch.int16).view(torch.uint16)


def mean_logits(logits: list[Tensor]) -> Tensor:
    """Logits of the mean of several probabilities, accurate near 0 and 1; float32, same shape as each."""
    import torch

    if len(logits) == 1:
        return logits[0]
    stacked = torch.stack(logits)
    return torch.sigmoid(stacked).mean(0).log_() - torch.sigmoid(-stacked).mean(0).log_()


def logits_of_codes() -> NDArray[np.float64]:
    """Logit of each code, float64 (65536,); NaN for code 0."""
    logits: NDArray[np.float64] = LOWEST_LOGIT + _STEP * (np.arange(NUM_CODES, dtype=np.float64) - 1)
    logits[NO_PROBABILITY] = np.nan
    return logits


def probabilities_of_codes() -> NDArray[np.float32]:
    """Probability of each code, float32 (65536,), rounded from float64; NaN for code 0."""
    probabilities: NDArray[np.float32] = (1 / (1 + np.exp(-logits_of_codes()))).astype(np.float32)
    return probabilities


def lookup(table: NDArray[np.float32], codes: NDArray[np.uint16]) -> NDArray[np.float32]:
    """`table[codes]`, but faster: float32 (65536,) at uint16 of any shape."""
    # With `clip`, numpy does not check each index; a 16-bit index is never out of range.
    return np.take(table, codes, mode="clip")
