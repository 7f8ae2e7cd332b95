"""Dropout whose result does not depend on the number of processes."""

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class Dropout(nn.Module):
    """Dropout that drops the same values of a global batch for any number of processes.

    Each process draws for the global batch and uses its own rows; the tensors are small, one vector per video. With one
    process this is `torch.nn.Dropout`.

    Args:
        p: Probability of dropping a value in training; the others are scaled by 1 / (1 - p).
        rows: Whether to drop complete rows: of (B, clusters, features), complete clusters.
    """

    def __init__(self, p: float, rows: bool = False) -> None:
        super().__init__()
        self.p, self.rows = p, rows
        self.rank, self.num_processes = 0, 1

    def forward(self, features: Tensor) -> Tensor:
        """Drop values of (B, ...), any shape, in training."""
        if not self.training or self.p == 0:
            return features
        if self.num_processes == 1:
            return F.dropout1d(features, self.p) if self.rows else F.dropout(features, self.p)
        size = len(features)
        shape = (*features.shape[1:-1], 1) if self.rows else features.shape[1:]
        kept = features.new_empty((size * self.num_processes, *shape)).bernoulli_(1 - self.p)
        return features * kept[self.rank * size : (self.rank + 1) * size] / (1 - self.p)
