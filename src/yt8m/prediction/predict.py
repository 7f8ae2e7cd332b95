"""One pass: every segment of a catalog, seen by every model at once.

A video's frames are read once. Its context is encoded once for each different context encoder, what a frame adds to
the segments is computed once for all segments that see it, and the segments of many videos make up a batch (DESIGN: one
pass to predict). What a model says of a segment depends on the video and the model alone, to the last bit: not on the
batch, the order of the shards or the number of processes (`models.folded` says how).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from yt8m.dataset.frames import NUM_FEATURES, FrameReader
from yt8m.dataset.sampling import crop, evaluated_segments, even_frames
from yt8m.errors import UsageError
from yt8m.inference.classifier import FoldedClassifier
from yt8m.inference.encoders import FoldedEncoder
from yt8m.models.classifier import ContextAgnosticClassifier, ContextAwareClassifier
from yt8m.prediction.quantization import encode, mean_logits
from yt8m.prediction.segments import Segments
from yt8m.shards.records import SEGMENT_SECONDS

SegmentClassifier = ContextAgnosticClassifier | ContextAwareClassifier

SEGMENTS_PER_BATCH = 2048
"""Segments of a batch, those of some 55 videos: enough that little of the last chunk of each product is filler. On a
device the chunks are four times as large, and so are batches."""


def segments_per_batch(device: torch.device) -> int:
    """Segments of a batch on a device."""
    return SEGMENTS_PER_BATCH if device.type == "cpu" else 4 * SEGMENTS_PER_BATCH


_SHORTEST_WIDTH = 512
"""Contexts are filled up to so many frames at least, or to all that an encoder sees."""

NO_SHIFT = (0,)
"""Segments are seen where they are."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """What models say of some consecutive segments.

    Args:
        start: Position of the first of them in the `Segments` to rank.
        codes: Probabilities of each model, by name, as `ranking.codes` encodes them: uint16 (n, C).
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


def batches_of(runs: Iterable[slice], size: int) -> list[slice]:
    """Cut runs of positions into batches of `size` segments."""
    return [slice(start, min(start + size, run.stop)) for run in runs for start in range(run.start, run.stop, size)]


def predict(
    reader: FrameReader,
    segments: Segments,
    models: Mapping[str, FoldedClassifier],
    batches: Iterable[slice] | None = None,
    shifts: Sequence[int] = NO_SHIFT,
) -> Iterator[Predictions]:
    """Predict segments with every model, in one pass over their videos.

    On a GPU a batch is computed while whoever asks works on the one before it.

    Args:
        reader: Frames of the videos.
        segments: Segments of these videos, row by row of the catalog; see `segments_of`.
        models: Classifiers by name, on one device. What a classifier of whole videos says, it says of each segment.
        batches: Positions in `segments` to predict, a batch each; all by default.
        shifts: Seconds by which to move what is seen of a segment; the mean of the probabilities is taken.

    Yields:
        Predictions of each batch, in order.
    """
    if batches is None:
        batches = batches_of([slice(0, len(segments))], segments_per_batch(next(iter(models.values())).device))
    waiting: _Started | None = None
    for batch in batches:
        with torch.inference_mode():
            started = _start(reader, segments, models, batch, shifts)
        if waiting is not None:
            yield waiting.finished()
        waiting = started
        if not started.is_on_its_way:
            yield started.finished()
            waiting = None
    if waiting is not None:
        yield waiting.finished()


class _Started(NamedTuple):
    """A batch whose codes are being computed, and copied to the processor's memory, by a device."""

    start: int
    codes: dict[str, Tensor]
    done: torch.cuda.Event | None

    @property
    def is_on_its_way(self) -> bool:
        return self.done is not None

    def finished(self) -> Predictions:
        if self.done is not None:
            self.done.synchronize()
        return Predictions(self.start, {name: codes.numpy() for name, codes in self.codes.items()})


class _Window(NamedTuple):
    """Frames that windows see: which of a batch's frames are described, and where each window finds its own.

    Args:
        frames: Rows of the batch's frames, int64 (N,).
        windows: Rows of `frames`, int64 (S, W), a tensor for each shift.
        masks: Where there is a frame, bool (S, W), a tensor for each shift.
    """

    frames: Tensor
    windows: list[Tensor]
    masks: list[Tensor]


def _start(
    reader: FrameReader,
    segments: Segments,
    models: Mapping[str, FoldedClassifier],
    batch: slice,
    shifts: Sequence[int],
) -> _Started:
    """Read the videos of a batch of segments and set the device to work on them."""
    device = next(iter(models.values())).device
    rows, places = np.unique(segments.rows[batch], return_inverse=True)
    starts = segments.start_seconds[batch].astype(np.int64)
    lengths = reader.catalog.num_frames[rows].astype(np.int64)
    ends = np.cumsum(lengths)
    offsets = ends - lengths
    flat = torch.empty((int(ends[-1]), NUM_FEATURES), dtype=torch.uint8, pin_memory=device.type == "cuda")
    for row, offset, end in zip(rows.tolist(), offsets.tolist(), ends.tolist(), strict=True):
        reader.read(row, out=flat.numpy()[offset:end])
    frames = flat.to(device, non_blocking=True)
    place_of_segment = torch.from_numpy(places).to(device)

    windows: dict[int, _Window] = {}
    vectors: dict[FoldedEncoder, Tensor] = {}
    codes = {}
    for name, model in models.items():
        of_video = None
        if model.context_encoder is not None:
            if model.context_encoder not in vectors:
                vectors[model.context_encoder] = _encoded_contexts(model, frames, lengths, offsets)
            of_video = model.of_videos(vectors[model.context_encoder])
        if model.segment_encoder is None:
            if of_video is not None:
                codes[name] = encode(of_video).view(torch.int16)[place_of_segment].view(torch.uint16)
            continue
        margin = model.margin_frames
        if margin not in windows:
            windows[margin] = _windows(lengths[places], offsets[places], starts, margin, shifts, device)
        window = windows[margin]
        described = model.segment_encoder.describe(frames[window.frames])
        shared = None if of_video is None else of_video[place_of_segment]
        logits = [
            model.of_windows(described, where, mask, shared)
            for where, mask in zip(window.windows, window.masks, strict=True)
        ]
        codes[name] = encode(mean_logits(logits))
    return _fetched(batch.start, codes, device)


def _fetched(start: int, codes: Mapping[str, Tensor], device: torch.device) -> _Started:
    """Begin to copy a batch's codes to the processor's memory."""
    if device.type != "cuda":
        return _Started(start, {name: tensor.cpu() for name, tensor in codes.items()}, None)
    fetched = {}
    for name, tensor in codes.items():
        fetched[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        fetched[name].copy_(tensor, non_blocking=True)
    return _Started(start, fetched, torch.cuda.current_stream(device).record_event())


def _windows(
    lengths: NDArray[np.int64],
    offsets: NDArray[np.int64],
    starts: NDArray[np.int64],
    margin: int,
    shifts: Sequence[int],
    device: torch.device,
) -> _Window:
    """Windows of segments: the segment and its margins, as far as they are inside the video.

    Args:
        lengths: Frames of each segment's video, (S,).
        offsets: Where that video's frames begin, (S,).
        starts: Start seconds, (S,).
        margin: Frames on either side.
        shifts: Seconds by which the windows are moved.
        device: Where to.
    """
    index, masks = [], []
    for shift in shifts:
        # A window that a shift moves out of the video keeps the frame nearest to it.
        first = np.clip(starts + shift - margin, 0, lengths - 1)
        stop = np.clip(starts + shift + SEGMENT_SECONDS + margin, first + 1, lengths)
        frames = first[:, None] + np.arange(SEGMENT_SECONDS + 2 * margin)
        masks.append(frames < stop[:, None])
        index.append(np.minimum(frames, stop[:, None] - 1) + offsets[:, None])
    return _window(index, masks, device)


def _encoded_contexts(
    model: FoldedClassifier, frames: Tensor, lengths: NDArray[np.int64], offsets: NDArray[np.int64]
) -> Tensor:
    """What the context encoder says of videos: (V, d)."""
    chosen = [even_frames(*crop(length), model.max_frames) for length in lengths.tolist()]
    widths = np.array([context_width(len(indices), model.max_frames) for indices in chosen])
    vectors: Tensor | None = None
    for width in np.unique(widths).tolist():
        members = np.flatnonzero(widths == width)
        index, mask = np.zeros((len(members), width), np.int64), np.zeros((len(members), width), np.bool_)
        for row, member in enumerate(members.tolist()):
            count = len(chosen[member])
            index[row] = offsets[member] + chosen[member][0]
            index[row, :count] = offsets[member] + chosen[member]
            mask[row, :count] = True
        context = _window([index], [mask], frames.device)
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
    """Frames that a context is filled up to: a function of the video and the model alone, as its bits shall be.

    Args:
        num_frames: Frames of the context.
        max_frames: The most that the encoder sees of a video. Where that is far more than videos have (there need not be a
            limit), the next power of two from 512 on.
    """
    return min(max_frames, max(_SHORTEST_WIDTH, 1 << (num_frames - 1).bit_length()))


def _window(index: list[NDArray[np.int64]], masks: list[NDArray[np.bool_]], device: torch.device) -> _Window:
    """Leave out the frames that no window sees."""
    frames, places = np.unique(np.stack(index), return_inverse=True)
    where = torch.from_numpy(places.reshape(len(index), *index[0].shape)).to(device)
    return _Window(
        torch.from_numpy(frames).to(device), list(where), [torch.from_numpy(mask).to(device) for mask in masks]
    )
