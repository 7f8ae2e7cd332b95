"""Training tasks: video classifiers on video labels, segment classifiers on rated segments.

Evaluation counts every held-out example once, for any number of processes, and selects frames as inference does.
Shapes: B videos or segments, N of them in a process's evaluation, T frames, D=1152 features, C classes.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_auroc

from yt8m.dataset.batches import (
    FrameSampling,
    ProcessSlice,
    SegmentBatch,
    SegmentBatches,
    VideoBatch,
    VideoBatches,
    context_frames,
    join_features,
    segment_batch,
)
from yt8m.dataset.frames import FrameReader
from yt8m.dataset.labels import label_mask, labeled_videos, split_ratings
from yt8m.models.classifier import ContextAgnosticClassifier, ContextAwareClassifier, VideoClassifier
from yt8m.models.saved import save_model
from yt8m.prediction.segments import segment_hashes
from yt8m.scoring.map_at_k import average_precision, map_from_probabilities
from yt8m.training.config import SegmentLossConfig
from yt8m.training.losses import rating_loss, segment_loss, video_loss
from yt8m.vocabulary import Vocabulary


def all_gather(fabric: Fabric, array: NDArray[Any]) -> NDArray[Any]:
    """Concatenate the arrays of all processes along their first axis, in the order of the processes."""
    if fabric.world_size == 1:
        return array
    arrays: list[NDArray[Any]] = [array] * fabric.world_size
    torch.distributed.all_gather_object(arrays, array)
    return np.concatenate(arrays)


class _ClassifierTask:
    """Batches of evaluation, and saving."""

    evaluation_batch_size = 128
    """Videos or segments per batch of evaluation."""

    def __init__(self, vocabulary: Vocabulary, batch_size: int, seed: int, provenance: dict[str, Any]) -> None:
        self.vocabulary, self.batch_size, self.seed, self.provenance = vocabulary, batch_size, seed, provenance

    def _evaluation_batches(self, fabric: Fabric, num_items: int, check: Callable[[], None]) -> Iterator[slice]:
        """Slices of this process's items, every `world_size`-th; `check` is called equally often on every process."""
        num_own = len(range(fabric.global_rank, num_items, fabric.world_size))
        for start in range(0, -(-num_items // fabric.world_size), self.evaluation_batch_size):
            check()
            if start < num_own:
                yield slice(start, min(start + self.evaluation_batch_size, num_own))

    def save(self, folder: Path, model: nn.Module, step: int, metrics: dict[str, float]) -> None:
        """Write the model folder."""
        if not isinstance(model, VideoClassifier | ContextAwareClassifier):
            raise TypeError(f"not a classifier: {type(model).__name__}")
        save_model(
            folder,
            model,
            vocabulary_digest=self.vocabulary.digest,
            classes=self.vocabulary,
            provenance={**self.provenance, "step": step, "metrics": dict(metrics)},
        )


class VideoTask(_ClassifierTask):
    """Pre-training of a video classifier on video labels.

    Args:
        train: Frames of the training videos.
        valid: Frames of the held-out videos.
        vocabulary: The segment classes.
        max_frames: L_max of evaluation.
        choice: Frame sampling of training videos.
        batch_size: Videos per step.
        seed: Seed of order and sampling.
        provenance: Origin of the model, saved in its folder.

    Raises:
        UsageError: No held-out video has a label of the vocabulary.
    """

    def __init__(
        self,
        train: FrameReader,
        valid: FrameReader,
        vocabulary: Vocabulary,
        max_frames: int,
        choice: FrameSampling,
        batch_size: int,
        seed: int,
        provenance: dict[str, Any],
    ) -> None:
        super().__init__(vocabulary, batch_size, seed, provenance)
        self.train, self.valid = train, valid
        self.max_frames, self.choice = max_frames, choice
        self.valid_rows = labeled_videos(valid.catalog, vocabulary)

    def batches(self, share: ProcessSlice) -> VideoBatches:
        """Training batches of this process."""
        return VideoBatches(self.train, self.vocabulary, self.choice, self.batch_size, self.seed, share)

    def loss(self, model: nn.Module, batch: VideoBatch) -> Tensor:
        """Binary cross-entropy over all classes."""
        return video_loss(model(join_features(batch), batch.lengths), batch.labels)

    @torch.inference_mode()
    def evaluate(self, fabric: Fabric, model: nn.Module, check: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Loss, AUC over all (video, class) pairs, and mean average precision over classes (from 0 to 1)."""
        rows = self.valid_rows[fabric.global_rank :: fabric.world_size]  # (N,)
        labels = label_mask(self.valid.catalog, self.vocabulary, rows)  # (N, C)
        probabilities, losses = np.empty(labels.shape, np.float32), np.empty(len(rows))  # (N, C), (N,)
        for batch in self._evaluation_batches(fabric, len(self.valid_rows), check):
            videos = fabric.to_device(context_frames(self.valid, rows[batch], self.max_frames))  # frames (B, T, D)
            with fabric.autocast():
                logits = model(join_features(videos), videos.lengths).float().cpu()  # (B, C)
            targets = torch.from_numpy(labels[batch]).float()  # (B, C)
            losses[batch] = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1).numpy()
            probabilities[batch] = torch.sigmoid(logits).numpy()
        # Of all processes:
        p, y = all_gather(fabric, probabilities), all_gather(fabric, labels)
        hits = np.take_along_axis(y, np.argsort(-p, axis=0, kind="stable"), axis=0)  # each class by descending p
        positive_classes = np.flatnonzero(y.any(axis=0)).tolist()
        return {
            "loss": float(all_gather(fabric, losses).mean()),
            "auc": float(binary_auroc(torch.from_numpy(p).flatten(), torch.from_numpy(y).flatten().long())),
            "map": float(np.mean([average_precision(hits[:, c], int(hits[:, c].sum())) for c in positive_classes])),
        }

    def encoder_parameters(self, model: nn.Module) -> list[nn.Parameter]:
        """None: all parameters are trained from scratch."""
        return []


class ContextVectors:
    """The context vector of each video, computed once with the frozen context encoder.

    Args:
        fabric: Device and precision.
        model: The model with the context encoder.
        reader: The videos.
        rows: Catalog rows of the videos to encode, unique.
    """

    batch_size = 32
    """Videos per batch of the encoder."""

    @torch.inference_mode()
    def __init__(
        self, fabric: Fabric, model: ContextAwareClassifier, reader: FrameReader, rows: NDArray[np.int64]
    ) -> None:
        positions = np.full(len(reader.catalog), -1, np.int64)  # catalog row -> row of _vectors
        positions[rows] = np.arange(len(rows))
        self._positions = fabric.to_device(torch.from_numpy(positions))
        vectors = []
        for start in range(0, len(rows), self.batch_size):
            batch = rows[start : start + self.batch_size]
            # Evenly spaced frames, as in inference: frames (B, T, D).
            context = fabric.to_device(context_frames(reader, batch, model.config.context_encoder.max_frames))
            with fabric.autocast():
                vectors.append(model.encode_context(join_features(context), context.lengths).float())  # (B, d)
        self._vectors = torch.cat(vectors)  # (len(rows), d)

    def lookup(self, rows: Tensor) -> Tensor:
        """Context vectors of some videos.

        Args:
            rows: Catalog rows, int64 (B,), on the encoder's device.

        Returns:
            float32 (B, d) on the encoder's device; no inference tensor, so autograd accepts it.
        """
        return self._vectors[self._positions[rows]].clone()


class SegmentTask(_ClassifierTask):
    """Fine-tuning of a segment classifier, context-agnostic or context-aware, on the rated segments of all folds but one.

    Args:
        fabric: Device and precision, for the context vectors.
        model: The model to train; its class decides whether context is needed.
        reader: Frames of the rated videos.
        vocabulary: The segment classes.
        fold: The held-out fold.
        num_folds: Number of folds, split by shard.
        config: The loss.
        batch_size: Segments per step.
        seed: Seed of order and sampling.
        provenance: Origin of the model, saved in its folder.

    Raises:
        UsageError: The training or the held-out folds lack positive or negative ratings.
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
        super().__init__(vocabulary, batch_size, seed, provenance)
        self.reader, self.config, self.margin_frames = reader, config, model.config.margin_frames
        self.train_ratings, self.valid_ratings = split_ratings(reader.catalog, vocabulary, fold, num_folds)
        self._hashes = segment_hashes(
            reader.catalog.video_ids,
            self.valid_ratings.rows.astype(np.int32),
            self.valid_ratings.start_seconds.astype(np.int32),
        )
        self._context: ContextVectors | None = None
        if isinstance(model, ContextAwareClassifier):
            rows = np.union1d(self.train_ratings.rows, self.valid_ratings.rows)
            self._context = ContextVectors(fabric, model, reader, rows)

    def batches(self, share: ProcessSlice) -> SegmentBatches:
        """Training batches of this process."""
        return SegmentBatches(
            self.reader, self.vocabulary, self.train_ratings, self.margin_frames, self.batch_size, self.seed, share
        )

    def _logits(self, model: nn.Module, batch: SegmentBatch) -> Tensor:
        context = () if self._context is None else (self._context.lookup(batch.rows),)
        logits: Tensor = model(join_features(batch), batch.lengths, *context)
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
    def evaluate(self, fabric: Fabric, model: nn.Module, check: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Loss of the ratings, AUC over all rated (segment, class) pairs, and MAP of the held-out fold."""
        ratings = self.valid_ratings
        own = np.arange(fabric.global_rank, len(ratings), fabric.world_size)  # numbers of ratings, (N,)
        probabilities, losses = np.empty((len(own), len(self.vocabulary)), np.float32), np.empty(len(own))
        for part in self._evaluation_batches(fabric, len(ratings), check):
            batch = fabric.to_device(
                segment_batch(self.reader, self.vocabulary, ratings, own[part], self.margin_frames)
            )
            with fabric.autocast():
                logits = self._logits(model, batch).float()  # (B, C)
            weight = self.config.positive_weight
            loss = rating_loss(logits, batch.class_indices, batch.ratings, weight, reduction="none")  # (B,)
            losses[part] = loss.cpu().numpy()
            probabilities[part] = torch.sigmoid(logits).cpu().numpy()
        order = np.argsort(all_gather(fabric, own))
        p = all_gather(fabric, probabilities)[order]  # of all processes, one row per rating
        numbers = np.arange(len(ratings))
        rated = torch.from_numpy(p[numbers, ratings.class_indices])
        return {
            "loss": float(all_gather(fabric, losses).mean()),
            "auc": float(binary_auroc(rated, torch.from_numpy(ratings.values).long())),
            "map": map_from_probabilities(p, self._hashes, numbers, ratings.class_indices, ratings.values),
        }

    def encoder_parameters(self, model: nn.Module) -> list[nn.Parameter]:
        """Those of the segment encoder of a context-aware model."""
        return list(model.segment_encoder.parameters()) if isinstance(model, ContextAwareClassifier) else []
