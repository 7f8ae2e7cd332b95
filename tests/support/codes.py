"""Logits and probabilities of 16-bit codes, by formulas in double precision."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from yt8m.prediction.quantization import encode

MAX_LOGIT_ERROR = 20 / 65534
"""Half a step of the grid of 65,535 logits from -24 to 16."""


def sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    probabilities: NDArray[np.float64] = 1 / (1 + np.exp(-logits))
    return probabilities


def exact_probabilities(codes: NDArray[np.uint16]) -> NDArray[np.float64]:
    """Probabilities of codes: logits from -24 to 16 in even steps from code 1 on."""
    return sigmoid(-24 + 40 * (codes.astype(np.float64) - 1) / 65534)


def codes_of(logits: NDArray[np.floating] | list[float] | list[list[float]]) -> NDArray[np.uint16]:
    """Codes of logits."""
    codes: NDArray[np.uint16] = encode(torch.from_numpy(np.asarray(logits, np.float32))).numpy()
    return codes
