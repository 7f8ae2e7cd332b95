"""Losses: binary cross-entropy over video labels, and the loss of rated segments with mined negatives.

All take logits, so that probabilities near 0 and 1 lose no digits. Shapes: B videos or segments, C classes.
"""

from typing import Literal

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from yt8m.training.config import MINED_WEIGHT, POSITIVE_WEIGHT


def video_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy, averaged over videos and classes.

    Args:
        logits: float (B, C).
        labels: bool (B, C).

    Returns:
        A scalar, float32.
    """
    return F.binary_cross_entropy_with_logits(logits.float(), labels.float())


def rating_loss(
    logits: Tensor,
    class_indices: Tensor,
    ratings: Tensor,
    positive_weight: float = POSITIVE_WEIGHT,
    reduction: Literal["mean", "none"] = "mean",
) -> Tensor:
    """Loss of the rated class of each segment: -(w y log p + (1 - y) log(1 - p)).

    Args:
        logits: float (B, C).
        class_indices: The rated class, int64 (B,).
        ratings: y, 0 or 1, float32 (B,).
        positive_weight: w.
        reduction: Whether to average over the segments.

    Returns:
        float32, a scalar or (B,).
    """
    rated = logits.float().gather(1, class_indices.unsqueeze(1)).squeeze(1)  # (B, C) -> (B,)
    losses = -(positive_weight * ratings * F.logsigmoid(rated) + (1 - ratings) * F.logsigmoid(-rated))
    return losses.mean() if reduction == "mean" else losses


def mined_loss(logits: Tensor, negatives: Tensor) -> Tensor:
    """Mean of -log(1 - p) over the mined negatives of each segment, averaged over segments.

    Args:
        logits: float (B, C).
        negatives: Mined negative classes, bool (B, C). A segment without any contributes 0.

    Returns:
        A scalar, float32.
    """
    weights = negatives.float()
    losses = F.softplus(logits.float()) * weights  # (B, C); softplus(z) = -log(1 - sigmoid(z))
    return (losses.sum(1) / weights.sum(1).clamp_min(1)).mean()


def segment_loss(
    logits: Tensor,
    class_indices: Tensor,
    ratings: Tensor,
    negatives: Tensor,
    positive_weight: float = POSITIVE_WEIGHT,
    mined_weight: float = MINED_WEIGHT,
) -> Tensor:
    """The fine-tuning loss: `rating_loss` plus `mined_weight` times `mined_loss`."""
    return rating_loss(logits, class_indices, ratings, positive_weight) + mined_weight * mined_loss(logits, negatives)
