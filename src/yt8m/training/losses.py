"""What training minimizes: binary cross-entropy over video labels, and the rated-segment loss with mined negatives.

Both take logits, so that a probability of almost 0 or 1 loses no digits.
"""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

POSITIVE_WEIGHT = 1.5
"""Weight of a positive rating (SPEC: fine-tuning loss)."""

MINED_WEIGHT = 0.5
"""Weight of the mined negatives beside the rating itself."""


def video_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy, averaged over videos and classes (SPEC: pre-training).

    Args:
        logits: float (B, C).
        labels: bool (B, C).

    Returns:
        A scalar, float32.
    """
    return F.binary_cross_entropy_with_logits(logits.float(), labels.float())


def rating_loss(
    logits: Tensor, class_indices: Tensor, ratings: Tensor, positive_weight: float = POSITIVE_WEIGHT
) -> Tensor:
    """Loss of the rated class of each segment: -(w y log p + (1 - y) log(1 - p)), averaged over segments.

    Args:
        logits: float (B, C).
        class_indices: The rated class, int64 (B,).
        ratings: 0 or 1, float32 (B,).
        positive_weight: w.

    Returns:
        A scalar, float32.
    """
    rated = logits.float().gather(1, class_indices.unsqueeze(1)).squeeze(1)
    return -(positive_weight * ratings * F.logsigmoid(rated) + (1 - ratings) * F.logsigmoid(-rated)).mean()


def mined_loss(logits: Tensor, negatives: Tensor) -> Tensor:
    """Mean of -log(1 - p) over each segment's mined negatives, averaged over segments.

    Args:
        logits: float (B, C).
        negatives: Classes that the video surely does not show, bool (B, C). A row without any counts 0.

    Returns:
        A scalar, float32.
    """
    weights = negatives.float()
    surprise = F.softplus(logits.float()) * weights
    return (surprise.sum(1) / weights.sum(1).clamp_min(1)).mean()


def segment_loss(
    logits: Tensor,
    class_indices: Tensor,
    ratings: Tensor,
    negatives: Tensor,
    positive_weight: float = POSITIVE_WEIGHT,
    mined_weight: float = MINED_WEIGHT,
) -> Tensor:
    """The fine-tuning loss: `rating_loss` plus `mined_weight` times `mined_loss` (SPEC: fine-tuning loss)."""
    return rating_loss(logits, class_indices, ratings, positive_weight) + mined_weight * mined_loss(logits, negatives)
