"""What a stage trains, on what, judged by what: videos on their labels, segments on their ratings.

Evaluation counts every held-out example once, whatever the number of processes, and sees frames as inference does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from lightning_fabric import Fabric
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_auroc

from yt8m.dataset.batches import (
    FrameChoice,
    SegmentBatch,
    SegmentBatches,
    Share,
    VideoBatch,
    VideoBatches,
    context_frames,
    segment_batch,
)
from yt8m.dataset.frames import FrameReader
from yt8m.dataset.labels import fold_of_videos, label_mask, rated_segments, videos_with_classes
from yt8m.errors import UsageError
from yt8m.models.classifier import ContextAgnosticClassifier, ContextAwareClassifier, VideoClassifier
from yt8m.models.saved import save_model
from yt8m.prediction.segments import segment_hashes
from yt8m.scoring.map_at_k import average_precision, map_from_probabilities
from yt8m.settings import Settings
from yt8m.training.losses import MINED_WEIGHT, POSITIVE_WEIGHT, segment_loss, video_loss
from yt8m.vocabulary import Vocabulary

EVALUATION_BATCH = 128
"""Videos or segments in a batch of evaluation."""


def gathered(fabric: Fabric, array: NDArray[Any]) -> NDArray[Any]:
    """Join the rows of all processes' arrays, in the order of the processes."""
    if fabric.world_size == 1:
        return array
    parts: list[NDArray[Any]] = [array] * fabric.world_size
    torch.distributed.all_gather_object(parts, array)
    return np.concatenate(parts)


def _nothing() -> None:
    """Check nothing."""


def _share_of(fabric: Fabric, items: NDArray[np.int64], check: Callable[[], None]) -> Iterable[NDArray[np.int64]]:
    """This process's items, in batches; `check` is called before each, equally often by every process."""
    mine = items[fabric.global_rank :: fabric.world_size]
    most = -(-len(items) // fabric.world_size)
    for start in range(0, most, EVALUATION_BATCH):
        check()
        if start < len(mine):
            yield mine[start : start + EVALUATION_BATCH]


class VideoTask:
    """Pre-training: a video classifier on video labels.

    Args:
        train: Frames of the training videos.
        valid: Frames of the held-out videos.
        vocabulary: The segment classes.
        max_frames: L_max, of the videos that the model is judged on.
        choice: Which frames of a training video a visit sees.
        batch_size: Videos in a step.
        seed: Seed of order and sampling.
        provenance: What the model folder says of where the model comes from.
    """

    def __init__(
        self,
        train: FrameReader,
        valid: FrameReader,
        vocabulary: Vocabulary,
        max_frames: int,
        choice: FrameChoice,
        batch_size: int,
        seed: int,
        provenance: dict[str, Any],
    ) -> None:
        self.train, self.valid, self.vocabulary = train, valid, vocabulary
        self.max_frames, self.choice = max_frames, choice
        self.batch_size, self.seed = batch_size, seed
        self.provenance = provenance
        self.valid_rows = videos_with_classes(valid.catalog, vocabulary)
        if not len(self.valid_rows):
            raise UsageError(f"{valid.catalog.folder}: none of its videos carries a label of the segment vocabulary.")

    def batches(self, share: Share) -> VideoBatches:
        """Training batches of this process."""
        return VideoBatches(self.train, self.vocabulary, self.choice, self.batch_size, self.seed, share)

    def loss(self, model: nn.Module, batch: VideoBatch) -> Tensor:
        """Binary cross-entropy over all classes."""
        return video_loss(model(batch.frames, batch.lengths), batch.labels)

    @torch.inference_mode()
    def evaluate(self, fabric: Fabric, model: nn.Module, check: Callable[[], None] = _nothing) -> dict[str, float]:
        """Loss, AUC over all (video, class) pairs, and mean average precision over classes (on a 0 to 1 scale)."""
        probabilities, labels, losses = [np.zeros((0, len(self.vocabulary)), np.float32)], [], [np.zeros(0)]
        labels.append(np.zeros((0, len(self.vocabulary)), np.bool_))
        for rows in _share_of(fabric, self.valid_rows, check):
            videos = fabric.to_device(context_frames(self.valid, rows, self.max_frames))
            truth = label_mask(self.valid.catalog, self.vocabulary, rows)
            with fabric.autocast():
                logits = model(videos.frames, videos.lengths).float().cpu()
            targets = torch.from_numpy(truth).float()
            losses.append(
                F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1).double().numpy()
            )
            probabilities.append(torch.sigmoid(logits).numpy())
            labels.append(truth)
        p, y = gathered(fabric, np.concatenate(probabilities)), gathered(fabric, np.concatenate(labels))
        order = np.argsort(-p, axis=0, kind="stable")
        hits = np.take_along_axis(y, order, axis=0)
        shown = np.flatnonzero(y.any(axis=0)).tolist()
        return {
            "loss": float(gathered(fabric, np.concatenate(losses)).mean()),
            "auc": float(binary_auroc(torch.from_numpy(p).flatten(), torch.from_numpy(y).flatten().long())),
            "map": float(np.mean([average_precision(hits[:, c], int(hits[:, c].sum())) for c in shown])),
        }

    def encoder_parameters(self, model: nn.Module) -> list[nn.Parameter]:
        """None: everything is new."""
        return []

    def save(self, folder: Path, model: nn.Module, step: int, metrics: dict[str, float]) -> None:
        """Write the model folder."""
        _save(folder, model, self.vocabulary, self.provenance, step, metrics)


class SegmentLossConfig(Settings):
    """The parts of the fine-tuning loss."""

    positive_weight: float = Field(default=POSITIVE_WEIGHT, gt=0)
    """Weight of a positive rating."""
    mined_weight: float = Field(default=MINED_WEIGHT, ge=0)
    """Weight of the mined negatives beside the rating itself."""


class ContextVectors:
    """The frozen context encoder's vector of each video, computed once.

    The encoder does not change and sees a video as inference does (evenly spaced frames), so nothing is lost by not
    encoding a video again for each of its segments.

    Args:
        fabric: Device and precision.
        model: Whose context encoder is used.
        reader: The videos.
        rows: Rows of the videos that are asked for later, unique.
    """

    @torch.inference_mode()
    def __init__(
        self, fabric: Fabric, model: ContextAwareClassifier, reader: FrameReader, rows: NDArray[np.int64]
    ) -> None:
        place = np.full(len(reader.catalog), -1, np.int64)
        place[rows] = np.arange(len(rows))
        self._place = fabric.to_device(torch.from_numpy(place))
        parts = []
        for start in range(0, len(rows), EVALUATION_BATCH // 4):
            chosen = rows[start : start + EVALUATION_BATCH // 4]
            context = fabric.to_device(context_frames(reader, chosen, model.config.context_encoder.max_frames))
            with fabric.autocast():
                parts.append(model.encode_context(context.frames, context.lengths).float())
        self._vectors = torch.cat(parts)

    def of(self, rows: Tensor) -> Tensor:
        """Vectors of some videos.

        Args:
            rows: Rows in the catalog, int64 (B,), on the encoder's device.

        Returns:
            float32 (B, d) on the encoder's device. Not an inference tensor: it may stand in a graph.
        """
        return self._vectors[self._place[rows]].clone()


class SegmentTask:
    """Fine-tuning: a segment classifier, context-agnostic or context-aware, on the rated segments of all folds but one.

    Args:
        fabric: Device and precision, for the context vectors.
        model: What will be trained; tells whether context is needed.
        reader: Frames of the rated videos.
        vocabulary: The segment classes.
        fold: The held-out fold.
        num_folds: Folds, by shard.
        config: The loss.
        batch_size: Segments in a step.
        seed: Seed of order and sampling.
        provenance: What the model folder says of where the model comes from.

    Raises:
        UsageError: There are no ratings to train on, or none to judge by.
    """

    def __init__(
        self,
        fabric: Fabric,
        model: ContextAgnosticClassifier | ContextAwareClassifier,
        reader: FrameReader,
        vocabulary: Vocabulary,
        fold: int,
        num_folds: int,
        config: SegmentLossConfig,
        batch_size: int,
        seed: int,
        provenance: dict[str, Any],
    ) -> None:
        self.reader, self.vocabulary, self.config = reader, vocabulary, config
        self.batch_size, self.seed, self.provenance = batch_size, seed, provenance
        self.margin = model.config.margin_frames
        is_held_out = fold_of_videos(reader.catalog, num_folds) == fold
        self.train_ratings = rated_segments(reader.catalog, vocabulary, ~is_held_out)
        self.valid_ratings = rated_segments(reader.catalog, vocabulary, is_held_out)
        for what, ratings in (("training", self.train_ratings), ("held-out", self.valid_ratings)):
            if not ratings.values.any() or ratings.values.all():
                raise UsageError(
                    f"{reader.catalog.folder}: the {what} folds (fold {fold} of {num_folds} is held out) need positive and "
                    f"negative ratings of segment classes, found {int(ratings.values.sum())} positive of {len(ratings)}."
                )
        self._hashes = segment_hashes(
            reader.catalog.video_ids,
            self.valid_ratings.rows.astype(np.int32),
            self.valid_ratings.start_seconds.astype(np.int32),
        )
        self._context: ContextVectors | None = None
        if isinstance(model, ContextAwareClassifier):
            rows = np.union1d(self.train_ratings.rows, self.valid_ratings.rows)
            self._context = ContextVectors(fabric, model, reader, rows)

    def batches(self, share: Share) -> SegmentBatches:
        """Training batches of this process."""
        return SegmentBatches(
            self.reader, self.vocabulary, self.train_ratings, self.margin, self.batch_size, self.seed, share
        )

    def _logits(self, model: nn.Module, batch: SegmentBatch) -> Tensor:
        context = () if self._context is None else (self._context.of(batch.rows),)
        logits: Tensor = model(batch.frames, batch.lengths, *context)
        return logits

    def loss(self, model: nn.Module, batch: SegmentBatch) -> Tensor:
        """The fine-tuning loss."""
        return segment_loss(
            self._logits(model, batch),
            batch.class_indices,
            batch.ratings,
            batch.negatives,
            self.config.positive_weight,
            self.config.mined_weight,
        )

    @torch.inference_mode()
    def evaluate(self, fabric: Fabric, model: nn.Module, check: Callable[[], None] = _nothing) -> dict[str, float]:
        """Loss of the ratings, AUC over all rated (segment, class) pairs, and MAP of the held-out fold."""
        ratings = self.valid_ratings
        items, losses = [np.zeros(0, np.int64)], [np.zeros(0)]
        probabilities = [np.zeros((0, len(self.vocabulary)), np.float32)]
        for chosen in _share_of(fabric, np.arange(len(ratings)), check):
            batch = fabric.to_device(segment_batch(self.reader, self.vocabulary, ratings, chosen, self.margin))
            with fabric.autocast():
                logits = self._logits(model, batch).float()
            rated = logits.gather(1, batch.class_indices.unsqueeze(1)).squeeze(1)
            weight = self.config.positive_weight
            loss = -(weight * batch.ratings * F.logsigmoid(rated) + (1 - batch.ratings) * F.logsigmoid(-rated))
            items.append(chosen)
            probabilities.append(torch.sigmoid(logits).cpu().numpy())
            losses.append(loss.double().cpu().numpy())
        order = np.argsort(gathered(fabric, np.concatenate(items)))
        p = gathered(fabric, np.concatenate(probabilities))[order]
        each = np.arange(len(ratings))
        of_rated = torch.from_numpy(p[each, ratings.class_indices])
        return {
            "loss": float(gathered(fabric, np.concatenate(losses)).mean()),
            "auc": float(binary_auroc(of_rated, torch.from_numpy(ratings.values).long())),
            "map": map_from_probabilities(p, self._hashes, each, ratings.class_indices, ratings.values),
        }

    def encoder_parameters(self, model: nn.Module) -> list[nn.Parameter]:
        """The segment encoder's, where it stands beside new layers."""
        return list(model.segment_encoder.parameters()) if isinstance(model, ContextAwareClassifier) else []

    def save(self, folder: Path, model: nn.Module, step: int, metrics: dict[str, float]) -> None:
        """Write the model folder."""
        _save(folder, model, self.vocabulary, self.provenance, step, metrics)


def _save(
    folder: Path,
    model: nn.Module,
    vocabulary: Vocabulary,
    provenance: dict[str, Any],
    step: int,
    metrics: dict[str, float],
) -> None:
    if not isinstance(model, VideoClassifier | ContextAwareClassifier):
        raise TypeError(f"not a classifier: {type(model).__name__}")
    save_model(
        folder,
        model,
        vocabulary_digest=vocabulary.digest,
        provenance={**provenance, "step": step, "metrics": dict(metrics)},
    )
