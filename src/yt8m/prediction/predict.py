"""Predict every segment of a catalog with every model, in one pass.

The frames of a video are read once. Its context is encoded once per distinct context encoder, the embeddings of frames are
computed once for all segments that contain them, and the segments of many videos make up a batch. Predictions are
batch-invariant: they do not depend on the batch, the order of the shards or the number of processes (see `inference`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from yt8m.dataset.frames import FrameReader
from yt8m.dataset.sampling import crop, evaluated_segments, even_frames
from yt8m.errors import UsageError
from yt8m.inference.classifier import FoldedClassifier
from yt8m.inference.encoders import FoldedEncoder
from yt8m.prediction.quantization import encode, mean_logits
from yt8m.prediction.segments import Segments
from yt8m.shards.ids import SEGMENT_SECONDS

SEGMENTS_PER_BATCH = 2048
"""Segments of a batch, those of some 55 videos, so that little of the last chunk of each product is padding. GPUs use
chunks and batches that are four times as large."""

_MIN_CONTEXT_WIDTH = 512
"""Contexts are padded to at least this number of frames, or to the encoder's maximum if that is smaller."""

NO_SHIFT = (0,)
"""No test-time shift."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions of all models for consecutive segments.

    Args:
        start: Position of the first segment in `Segments`.
        codes: Codes of each model's probabilities, by name (see `quantization`), uint16 (n, C).
    """

    start: int
    codes: dict[str, NDArray[np.uint16]]

    def __len__(self) -> int:
        return len(next(iter(self.codes.values())))

    @property
    def positions(self) -> NDArray[np.int64]:
        """Positions of the segments, int64 (n,)."""
        return np.arange(self.start, self.start + len(self))


def segments_of(reader: FrameReader) -> Segments:
    """Segments of a catalog to predict: all but the first six and the last two of each video.

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


def segments_per_batch(device: torch.device) -> int:
    """Default number of segments of a batch on a device."""
    return SEGMENTS_PER_BATCH if device.type == "cpu" else 4 * SEGMENTS_PER_BATCH


def batches_of(runs: Iterable[slice], size: int) -> list[slice]:
    """Split ranges of positions into batches of `size` segments."""
    return [slice(start, min(start + size, run.stop)) for run in runs for start in range(run.start, run.stop, size)]


def predict(
    reader: FrameReader,
    segments: Segments,
    models: Mapping[str, FoldedClassifier],
    batches: Iterable[slice] | None = None,
    shifts: Sequence[int] = NO_SHIFT,
) -> Iterator[Predictions]:
    """Predict segments with every model, in one pass over their videos.

    A GPU computes a batch while the caller processes the previous one.

    Args:
        reader: Frames of the videos.
        segments: Segments of these videos, in the order of the catalog's rows; see `segments_of`.
        models: Classifiers by name, on one device. A video classifier's predictions hold for all segments of a video.
        batches: Ranges of positions in `segments`, one per batch; all by default.
        shifts: Test-time shifts: seconds to move the window of a segment by; the probabilities are averaged.

    Yields:
        Predictions of each batch, in order.

    Raises:
        UsageError: A model was trained on other features than the videos have.
    """
    for name, model in models.items():
        model.features.require_same(reader.features, f"{name}: was trained on")
    if batches is None:
        batches = batches_of([slice(0, len(segments))], segments_per_batch(next(iter(models.values())).device))
    previous: _PendingBatch | None = None
    for batch in batches:
        with torch.inference_mode():
            pending = _launch(reader, segments, models, batch, shifts)
        if previous is not None:
            yield previous.result()
        previous = None if pending.done is None else pending
        if previous is None:
            yield pending.result()
    if previous is not None:
        yield previous.result()


class _PendingBatch(NamedTuple):
    """A batch whose codes a GPU is computing and copying to the memory of the CPU; `done` is None on other devices."""

    start: int
    codes: dict[str, Tensor]
    done: torch.cuda.Event | None

    def result(self) -> Predictions:
        if self.done is not None:
            self.done.synchronize()
        return Predictions(self.start, {name: codes.numpy() for name, codes in self.codes.items()})


class _Windows(NamedTuple):
    """Windows of frames: the distinct frames that they contain, and where each window finds its own among these.

    Args:
        frames: Rows of the batch's frames, int64 (N,).
        windows: Rows of `frames`, int64 (S, W), a tensor per shift.
        masks: Whether there is a frame, bool (S, W), a tensor per shift.
    """

    frames: Tensor
    windows: list[Tensor]
    masks: list[Tensor]


def _launch(
    reader: FrameReader,
    segments: Segments,
    models: Mapping[str, FoldedClassifier],
    batch: slice,
    shifts: Sequence[int],
) -> _PendingBatch:
    """Read the videos of a batch of S segments, and start the device's computations."""
    device = next(iter(models.values())).device
    rows, places = np.unique(segments.rows[batch], return_inverse=True)  # (V,) videos; (S,) video of each segment
    starts = segments.start_seconds[batch].astype(np.int64)  # (S,)
    lengths = reader.catalog.num_frames[rows].astype(np.int64)  # (V,)
    ends = np.cumsum(lengths)
    offsets = ends - lengths  # (V,) row of each video's first frame
    flat = torch.empty(
        (int(ends[-1]), reader.features.frame_bytes), dtype=torch.uint8, pin_memory=device.type == "cuda"
    )
    for row, offset, end in zip(rows.tolist(), offsets.tolist(), ends.tolist(), strict=True):
        reader.read(row, out=flat.numpy()[offset:end])
    frames = flat.to(device, non_blocking=True)  # (frames of all videos, bytes)
    video_of_segment = torch.from_numpy(places).to(device)

    windows: dict[int, _Windows] = {}
    vectors: dict[FoldedEncoder, Tensor] = {}
    codes = {}
    for name, model in models.items():
        of_video = None
        if model.context_encoder is not None:
            if model.context_encoder not in vectors:
                vectors[model.context_encoder] = _encode_contexts(model, frames, lengths, offsets)  # (V, d)
            of_video = model.video_terms(vectors[model.context_encoder])
        if model.segment_encoder is None:
            if of_video is not None:
                codes[name] = encode(of_video).view(torch.int16)[video_of_segment].view(torch.uint16)  # (S, C)
            continue
        margin = model.margin_frames
        if margin not in windows:
            windows[margin] = _segment_windows(lengths[places], offsets[places], starts, margin, shifts, device)
        window = windows[margin]
        embedded = model.segment_encoder.embed_frames(frames[window.frames])  # (N, embedding)
        context = None if of_video is None else of_video[video_of_segment]
        logits = [
            model.window_logits(embedded, where, mask, context)  # (S, C)
            for where, mask in zip(window.windows, window.masks, strict=True)
        ]
        codes[name] = encode(mean_logits(logits))
    return _fetch(batch.start, codes, device)


def _fetch(start: int, codes: Mapping[str, Tensor], device: torch.device) -> _PendingBatch:
    """Start copying a batch's codes to the memory of the CPU."""
    if device.type != "cuda":
        return _PendingBatch(start, {name: tensor.cpu() for name, tensor in codes.items()}, None)
    fetched = {}
    for name, tensor in codes.items():
        fetched[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        fetched[name].copy_(tensor, non_blocking=True)
    return _PendingBatch(start, fetched, torch.cuda.current_stream(device).record_event())


def _segment_windows(
    lengths: NDArray[np.int64],
    offsets: NDArray[np.int64],
    starts: NDArray[np.int64],
    margin: int,
    shifts: Sequence[int],
    device: torch.device,
) -> _Windows:
    """Windows of segments, with their margins, as far as they are inside the video.

    Args:
        lengths: Frames of each segment's video, (S,).
        offsets: Row of that video's first frame, (S,).
        starts: Start seconds, (S,).
        margin: Frames on either side.
        shifts: Test-time shifts.
        device: Device of the result.
    """
    index, masks = [], []
    for shift in shifts:
        # A window that a shift moves out of the video keeps the frame nearest to it.
        first = np.clip(starts + shift - margin, 0, lengths - 1)  # (S,)
        stop = np.clip(starts + shift + SEGMENT_SECONDS + margin, first + 1, lengths)
        frames = first[:, None] + np.arange(SEGMENT_SECONDS + 2 * margin)  # (S, W)
        masks.append(frames < stop[:, None])
        index.append(np.minimum(frames, stop[:, None] - 1) + offsets[:, None])
    return _distinct_frames(index, masks, device)


def _encode_contexts(
    model: FoldedClassifier, frames: Tensor, lengths: NDArray[np.int64], offsets: NDArray[np.int64]
) -> Tensor:
    """Context vectors of videos, (V, d)."""
    chosen = [even_frames(*crop(length), model.max_frames) for length in lengths.tolist()]  # V arrays of frame indices
    widths = np.array([context_width(len(indices), model.max_frames) for indices in chosen])
    vectors: Tensor | None = None
    for width in np.unique(widths).tolist():
        members = np.flatnonzero(widths == width)  # (M,) videos of this width
        index, mask = np.zeros((len(members), width), np.int64), np.zeros((len(members), width), np.bool_)
        for row, member in enumerate(members.tolist()):
            count = len(chosen[member])
            # Padding repeats the first frame, so that no other frame is embedded.
            index[row] = offsets[member] + chosen[member][0]
            index[row, :count] = offsets[member] + chosen[member]
            mask[row, :count] = True
        context = _distinct_frames([index], [mask], frames.device)
        encoded = model.encode_contexts(frames[context.frames], context.windows[0], context.masks[0])
        if len(members) == len(lengths):
            return encoded
        if vectors is None:
            vectors = encoded.new_empty((len(lengths), encoded.shape[1]))
        vectors[torch.from_numpy(members).to(frames.device)] = encoded
    if vectors is None:
        raise ValueError("no video to encode")
    return vectors


def context_width(num_frames: int, max_frames: int) -> int:
    """Number of frames to pad a context to: a function of the video and the model, so that results are batch-invariant.

    Args:
        num_frames: Frames of the context.
        max_frames: Most frames that the encoder takes. If that is more than 512, the width is at most the next power of
            two from 512.
    """
    return min(max_frames, max(_MIN_CONTEXT_WIDTH, 1 << (num_frames - 1).bit_length()))


def _distinct_frames(index: list[NDArray[np.int64]], masks: list[NDArray[np.bool_]], device: torch.device) -> _Windows:
    """Collect the distinct frames of windows, given as one array (S, W) of frames and one mask per shift."""
    frames, places = np.unique(np.stack(index), return_inverse=True)  # (N,); positions in it of all windows' frames
    where = torch.from_numpy(places.reshape(len(index), *index[0].shape)).to(device)
    return _Windows(
        torch.from_numpy(frames).to(device), list(where), [torch.from_numpy(mask).to(device) for mask in masks]
    )
