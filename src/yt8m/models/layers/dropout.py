"""Dropout that does not depend on the number of processes."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from torch import Tensor, nn

from yt8m.models.layers.batch_norm import MaskedBatchNorm

# --------------------------------------------------------------------------------------------------------- dropout


class Dropout(nn.Module):
    """Dropout that drops the same of a batch however many processes share it.

    A process draws for the whole global batch and uses its own rows of it; batches are small here, a vector a video.
    With one process this is `torch.nn.Dropout`.

    Args:
        p: Share of what is dropped in training; the rest is scaled by 1 / (1 - p).
        whole: Drop the last dimension whole: (B, clusters, features) loses clusters.
    """

    def __init__(self, p: float, whole: bool = False) -> None:
        super().__init__()
        self.p, self.whole = p, whole
        self.rank, self.num_processes = 0, 1

    def extra_repr(self) -> str:
        """What printing the module shows."""
        return f"{self.p}, whole={self.whole}"

    def forward(self, features: Tensor) -> Tensor:
        """Drop in training: (B, ...), any shape -> the same."""
        if not self.training or self.p == 0:
            return features
        if self.num_processes == 1:
            return F.dropout1d(features, self.p) if self.whole else F.dropout(features, self.p)
        rows = len(features)
        shape = (*features.shape[1:-1], 1) if self.whole else features.shape[1:]
        kept = features.new_empty((rows * self.num_processes, *shape)).bernoulli_(1 - self.p)
        return features * kept[self.rank * rows : (self.rank + 1) * rows] / (1 - self.p)


def split_over_processes(module: nn.Module, rank: int, num_processes: int, sync_batch_norm: bool = True) -> None:
    """Prepare a network for batches that several processes share: each sees an equal part, the network the whole.

    Dropout drops what one process would drop. Batch norm takes the statistics of the global batch, at the price of two
    small sums over all processes a layer, in each direction; or of the process's part where `sync_batch_norm` is off.

    Args:
        module: Changed in place; its weights are not.
        rank: Which process this is. Process `rank` has the part `rank` of every global batch.
        num_processes: Processes in all; torch.distributed is set up where there is more than one.
        sync_batch_norm: Whether batch norm looks at the global batch.
    """
    for layer in module.modules():
        if isinstance(layer, Dropout):
            layer.rank, layer.num_processes = rank, num_processes
        elif isinstance(layer, MaskedBatchNorm):
            layer.synchronized = sync_batch_norm and num_processes > 1
