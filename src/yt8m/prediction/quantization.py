"""Probabilities in 16 bits: what models say is kept, merged and ranked in this form, streamed or stored alike.

A code is the logit on an even grid from -24 to 16, the resolution of a ranking's two ends alike: a logit is off by at
most 3.1e-4, so p and 1 - p each by 0.031% of themselves, and p by 7.7e-5 at most (at 0.5). Half precision would be off
by as much relative to p, but by 2.4e-4 near 1 and by half of itself near 1e-7. Code 0 is no probability: neither what a
model says that is not a number, nor what was never written, can be taken for one.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LOWEST_LOGIT = -24.0
HIGHEST_LOGIT = 16.0
NUM_CODES = 65536
_STEP = (HIGHEST_LOGIT - LOWEST_LOGIT) / (NUM_CODES - 2)
_STEPS = 1 / _STEP

MAX_LOGIT_ERROR = _STEP / 2
"""How far a decoded logit can be off, between the two ends of the grid; single precision adds a hundredth of that."""

NOT_A_PROBABILITY = 0
"""The code of nothing."""


def encode(logits: Tensor) -> Tensor:
    """Codes of logits.

    Args:
        logits: float32, any shape, on any device; beyond the ends of the grid they count as the ends.

    Returns:
        uint16, same shape; 0 where a logit is not a number.
    """
    steps = (logits - LOWEST_LOGIT).mul_(_STEPS).round_().clamp_(0, NUM_CODES - 2).add_(1)
    steps = torch.nan_to_num_(steps, nan=float(NOT_A_PROBABILITY))
    # Signed numbers of 16 bits are what all devices can make; the bits are the same.
    return steps.to(torch.int32).to(torch.int16).view(torch.uint16)


def mean_logits(logits: list[Tensor]) -> Tensor:
    """Logits of the mean of several probabilities, without loss at either end: float32 of the shape of each."""
    if len(logits) == 1:
        return logits[0]
    stacked = torch.stack(logits)
    return torch.sigmoid(stacked).mean(0).log_() - torch.sigmoid(-stacked).mean(0).log_()


def logits_of_codes() -> NDArray[np.float64]:
    """The logit of each code, float64 (65536,); that of code 0 is not a number."""
    logits: NDArray[np.float64] = LOWEST_LOGIT + _STEP * (np.arange(NUM_CODES, dtype=np.float64) - 1)
    logits[NOT_A_PROBABILITY] = np.nan
    return logits


def probabilities_of_codes() -> NDArray[np.float32]:
    """The probability of each code, float32 (65536,), rounded from float64; that of code 0 is not a number."""
    probabilities: NDArray[np.float32] = (1 / (1 + np.exp(-logits_of_codes()))).astype(np.float32)
    return probabilities


def look_up(table: NDArray[np.float32], codes: NDArray[np.uint16]) -> NDArray[np.float32]:
    """`table[codes]`, quickly.

    Args:
        table: float32 (65536,).
        codes: uint16 of any shape.

    Returns:
        float32 of that shape.
    """
    # With `clip` numpy does not check each index; no 16-bit number is outside.
    return np.take(table, codes, mode="clip")
