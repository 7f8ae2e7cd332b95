"""Layers set up for global batches that are split over several processes."""

from torch import nn

from yt8m.models.layers.batch_norm import MaskedBatchNorm
from yt8m.models.layers.dropout import Dropout


def split_over_processes(module: nn.Module, rank: int, num_processes: int, sync_batch_norm: bool = True) -> None:
    """Prepare a network for global batches that are split over several processes, in place.

    Dropout drops what one process would drop. Batch norm uses the statistics of the global batch, which costs two small
    all-reduces per layer and direction, or those of the process's slice without `sync_batch_norm`.

    Args:
        module: The network.
        rank: Rank of this process, which has slice `rank` of every global batch.
        num_processes: Number of processes; torch.distributed must be set up if there are several.
        sync_batch_norm: Whether batch norm uses the global batch.
    """
    for layer in module.modules():
        if isinstance(layer, Dropout):
            layer.rank, layer.num_processes = rank, num_processes
        elif isinstance(layer, MaskedBatchNorm):
            layer.synchronized = sync_batch_norm and num_processes > 1
