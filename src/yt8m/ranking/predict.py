"""One pass: every segment of a catalog, seen by every model at once.

A video's frames are read once. Its context is encoded once for each different context encoder, its segments are
windows of the same array, and the segments of several videos make up a batch (DESIGN: one pass to predict). What a
model says of a segment depends on the video and the model alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from yt8m.dataset.frames import FrameReader
from yt8m.dataset.loading import joined, padded
from yt8m.dataset.sampling import crop, evaluated_segments, even_frames, num_evaluated_segments
from yt8m.errors import UsageError
from yt8m.models.classifier import ContextAgnosticClassifier, ContextAwareClassifier
from yt8m.ranking.topk import Segments
from yt8m.shards.example import SEGMENT_SECONDS

SegmentClassifier = ContextAgnosticClassifier | ContextAwareClassifier

SEGMENTS_PER_BATCH = 512
"""Segments that fill a batch; a few videos of about 35 segments each."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """Probabilities of some segments.

    Args:
        positions: Positions in the `Segments` to rank, int64 (n,).
        probabilities: Of each model, by name, float32 (n, C).
    """

    positions: NDArray[np.int64]
    probabilities: dict[str, NDArray[np.float32]]


def segments_of(reader: FrameReader) -> Segments:
    """All segments of a catalog that are predicted: all but the first six and last two of each video.

    Raises:
        UsageError: No video is long enough to have one.
    """
    rows, starts = evaluated_segments(reader.catalog.num_frames)
    if not len(rows):
        raise UsageError(
            f"{reader.catalog.folder}: none of its {len(reader.catalog)} videos is longer than 40 seconds, "
            "so there is no segment to predict."
        )
    return Segments(reader.catalog.video_ids, rows, starts)


def predict(
    reader: FrameReader,
    models: Mapping[str, SegmentClassifier],
    device: torch.device,
    segments_per_batch: int = SEGMENTS_PER_BATCH,
    progress: Callable[[Iterable[slice]], Iterable[slice]] = lambda batches: batches,
) -> Iterator[Predictions]:
    """Predict every segment of a catalog with every model, in one pass over the videos.

    Args:
        reader: Frames of the videos.
        models: Segment classifiers by name, in eval mode on `device`.
        device: Where they compute.
        segments_per_batch: Segments wanted in a batch; whole videos are put together until it is full.
        progress: Wraps the batches (slices of the videos' rows).

    Yields:
        Predictions of a batch; each segment of `segments_of(reader)` once, in order.
    """
    counts = num_evaluated_segments(reader.catalog.num_frames)
    ends = np.cumsum(counts)
    contexts = {
        name: _digest(model.context_encoder)
        for name, model in models.items()
        if isinstance(model, ContextAwareClassifier)
    }
    for batch in progress(video_batches(counts, segments_per_batch)):
        rows = np.arange(batch.start, batch.stop)[counts[batch] > 0]
        first = int(ends[rows[0]] - counts[rows[0]])
        with torch.inference_mode():
            probabilities = _predict_videos(reader, models, contexts, rows, device)
        positions = np.arange(first, int(ends[rows[-1]]))
        yield Predictions(positions, {name: tensor.cpu().numpy() for name, tensor in probabilities.items()})


def video_batches(counts: NDArray[np.int64], segments_per_batch: int) -> list[slice]:
    """Split videos, in order, into runs of about `segments_per_batch` segments; runs without a segment are left out.

    Args:
        counts: Segments of each video, int64 (N,).
        segments_per_batch: A run ends with the video that reaches it.
    """
    batches, start, waiting = [], 0, 0
    for row, count in enumerate(counts.tolist()):
        waiting += count
        if waiting >= segments_per_batch:
            batches.append(slice(start, row + 1))
            start, waiting = row + 1, 0
    if waiting:
        batches.append(slice(start, len(counts)))
    return batches


def _predict_videos(
    reader: FrameReader,
    models: Mapping[str, SegmentClassifier],
    encoders: Mapping[str, str],
    rows: NDArray[np.int64],
    device: torch.device,
) -> dict[str, Tensor]:
    """Probabilities of all segments of some videos, float32 (n, C) for each model.

    `encoders` tells which context encoder a context-aware model has: those with the same one share its vectors.
    """
    lengths = reader.catalog.num_frames[rows].astype(np.int64)
    rgb, audio, _ = padded(reader, rows, [slice(0, length) for length in lengths.tolist()])
    frames = joined(rgb.to(device, non_blocking=True), audio.to(device, non_blocking=True))
    places, starts = evaluated_segments(lengths)
    windows: dict[int, tuple[Tensor, Tensor]] = {}
    vectors: dict[str, Tensor] = {}
    probabilities = {}
    for name, model in models.items():
        margin = model.config.margin_frames
        if margin not in windows:
            windows[margin] = _windows(frames, lengths, places, starts, margin)
        if isinstance(model, ContextAwareClassifier):
            encoder = encoders[name]
            if encoder not in vectors:
                max_frames = model.config.context_encoder.max_frames
                vectors[encoder] = model.encode_context(*_contexts(frames, lengths, max_frames))
            of_segments = vectors[encoder][torch.from_numpy(places).to(device)]
            logits = model(*windows[margin], of_segments)
        else:
            logits = model(*windows[margin])
        probabilities[name] = torch.sigmoid(logits.float())
    return probabilities


def _windows(
    frames: Tensor, lengths: NDArray[np.int64], places: NDArray[np.int32], starts: NDArray[np.int32], margin: int
) -> tuple[Tensor, Tensor]:
    """Cut the windows of segments out of padded videos: uint8 (n, 5 + 2 margin, D) and their lengths.

    Valid frames come first, as everywhere; the window of a segment near an end is shorter.
    """
    first = np.maximum(starts - margin, 0)
    stop = np.minimum(starts + SEGMENT_SECONDS + margin, lengths[places])
    index = first[:, None] + np.arange(SEGMENT_SECONDS + 2 * margin)
    index = np.minimum(index, frames.shape[1] - 1)
    windows = frames[torch.from_numpy(places.astype(np.int64))[:, None], torch.from_numpy(index.astype(np.int64))]
    return windows, torch.from_numpy((stop - first).astype(np.int64)).to(frames.device)


def _contexts(frames: Tensor, lengths: NDArray[np.int64], max_frames: int) -> tuple[Tensor, Tensor]:
    """Cut the context of each video out of padded videos: uint8 (B, T, D) and lengths."""
    chosen = [even_frames(*crop(int(length)), max_frames) for length in lengths]
    sizes = np.array([len(indices) for indices in chosen])
    index = np.zeros((len(chosen), int(sizes.max())), np.int64)
    for row, indices in enumerate(chosen):
        index[row, : len(indices)] = indices
    rows = torch.arange(len(chosen))[:, None]
    return frames[rows, torch.from_numpy(index)], torch.from_numpy(sizes).to(frames.device)


def _digest(module: nn.Module) -> str:
    """Fingerprint of a network: its settings and its weights."""
    digest = hashlib.sha256(repr(getattr(module, "config", "")).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
