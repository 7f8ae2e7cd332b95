"""Decode a video file: one frame and one window of sound per second, in a single pass over the file.

Second k has the frame that a player shows at time k, which is the last one that begins until then, and the sound from time
k on. Time 0 is the beginning of the file, whatever its time stamps are. Both are prepared as networks
want them, so what leaves this module is small and its memory does not grow with the video.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from yt8m.errors import Yt8mError
from yt8m.extraction.log_mel import SAMPLE_RATE, WINDOW_SAMPLES
from yt8m.extraction.resize import resize_bilinear

CHUNK = 8
"""Frames or windows to yield at a time."""

MAX_PIXELS = 1 << 26
"""Pixels of a frame; 8K has half as many. Damaged files can claim any number."""

_EARLY = Fraction(1, 1000)
"""A frame that begins this much later than a second still belongs to it: time stamps are rounded."""

_MAX_GAP_SECONDS = 60
"""A time stamp this far beyond the declared end of the file is wrong."""

_MAX_EARLY = 1000
"""Packets of sound to keep until the first picture."""

_MAX_JITTER = Fraction(1, 20)
"""Seconds between the end of one packet of sound and the beginning of the next that are not a gap."""


class UnreadableVideoError(Yt8mError):
    """A file is no video, or nothing of it can be decoded; the message does not name the file."""


@dataclass
class Odd:
    """What was odd about a file, in words; each once."""

    found: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Note something."""
        if text not in self.found:
            self.found.append(text)


@dataclass(frozen=True, eq=False)
class Frames:
    """Frames of consecutive seconds: float32 (n, size, size, 3), values 0 to 255."""

    values: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows of sound of consecutive seconds: float32 (n, 15600), mono at 16 kHz."""

    values: NDArray[np.float32]


def decode(path: Path, size: int, max_seconds: int | None = None, odd: Odd | None = None) -> Iterator[Frames | Windows]:
    """Decode a video file.

    Args:
        path: The file.
        size: Width and height to resize frames to; see `resize_bilinear`.
        max_seconds: Stop after this many seconds.
        odd: Receives what is odd about the file.

    Yields:
        Frames from second 0 on, and windows of sound from second 0 on, as they are decoded. Sound may end before or
        after the frames; without sound there are no windows.

    Raises:
        UnreadableVideoError: The file is no video, or has no frame that can be decoded.
    """
    odd = Odd() if odd is None else odd
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            yield from _Decoder(container, size, max_seconds, odd).run()
    except (av.FFmpegError, ValueError, MemoryError) as error:
        raise UnreadableVideoError(_reason(error)) from None


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())


class _Decoder:
    """A pass over an open file."""

    def __init__(self, container: InputContainer, size: int, max_seconds: int | None, odd: Odd) -> None:
        self._container, self._size, self._max_seconds, self._odd = container, size, max_seconds, odd
        self._video = _video_stream(container)
        self._audio = container.streams.audio[0] if container.streams.audio else None
        start = container.start_time
        self._start = Fraction(0) if start is None else Fraction(start, av.time_base)
        seconds = None if container.duration is None else Fraction(container.duration, av.time_base)
        self._end = None if seconds is None else seconds + _MAX_GAP_SECONDS
        self._frames = _FrameOfEachSecond(size, self._end, odd)
        self._sound = _Sound(self._end, odd)

    def run(self) -> Iterator[Frames | Windows]:
        streams: list[VideoStream | AudioStream] = [self._video]
        self._video.thread_type = "AUTO"
        self._video.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        if self._audio is not None:
            streams.append(self._audio)
        for frame in self._pictures_first(self._decoded(streams)):
            if isinstance(frame, VideoFrame):
                self._frames.add(frame, self._time(frame), _duration(frame, self._video))
            elif isinstance(frame, AudioFrame):
                self._sound.add(frame, self._time(frame))
            yield from self._ready(CHUNK)
            if self._max_seconds is not None and self._frames.count >= self._max_seconds:
                break
        self._frames.finish()
        self._sound.finish()
        yield from self._ready(1)
        if not self._frames.count:
            raise UnreadableVideoError("no frame could be decoded")

    def _decoded(self, streams: list[VideoStream | AudioStream]) -> Iterator[VideoFrame | AudioFrame]:
        """Decoded frames of all streams; damage is noted, and decoding continues after it."""
        packets = self._container.demux(streams)
        while True:
            try:
                packet = next(packets, None)
            except av.FFmpegError as error:
                self._odd.note(f"ends early ({_reason(error)})")
                packet = None
            if packet is None:
                return
            try:
                frames = packet.decode()
            except av.FFmpegError as error:
                kind = "video" if packet.stream is self._video else "audio"
                self._odd.note(f"damaged {kind} ({_reason(error)})")
                continue
            for frame in frames:
                if isinstance(frame, VideoFrame | AudioFrame):
                    yield frame

    def _pictures_first(self, frames: Iterator[VideoFrame | AudioFrame]) -> Iterator[VideoFrame | AudioFrame]:
        """Set time 0 to the first picture, unless it is late by a second or more.

        Sound may begin a little earlier, by the delay of its encoder, and some containers count the delay of the pictures'.
        """
        early: list[VideoFrame | AudioFrame] = []
        for frame in frames:
            early.append(frame)
            if isinstance(frame, VideoFrame):
                time = self._time(frame)
                if time is not None and abs(time) < 1:
                    self._start += time
                break
            if len(early) > _MAX_EARLY:
                break
        yield from early
        yield from frames

    def _time(self, frame: VideoFrame | AudioFrame) -> Fraction | None:
        """Seconds from the beginning of the file; None without a time stamp."""
        if frame.pts is None or not frame.time_base:
            return None
        return frame.pts * frame.time_base - self._start

    def _ready(self, at_least: int) -> Iterator[Frames | Windows]:
        limit = self._max_seconds
        if len(self._frames.pending) >= at_least:
            done = self._frames.count - len(self._frames.pending)
            taken = self._frames.take()[: None if limit is None else max(0, limit - done)]
            if taken:
                yield Frames(np.stack(taken))
        if (windows := self._sound.take(at_least)) is not None:
            yield Windows(windows)


def _video_stream(container: InputContainer) -> VideoStream:
    """The first video stream that is no cover picture."""
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            return stream
    found = [stream.type for stream in container.streams]
    raise UnreadableVideoError(f"has no video stream (streams: {', '.join(found) or 'none'})")


def _duration(frame: VideoFrame, stream: VideoStream) -> Fraction:
    """Seconds that a frame is shown."""
    if frame.duration and frame.time_base:
        return frame.duration * frame.time_base
    rate = stream.average_rate or stream.guessed_rate
    return 1 / rate if rate else Fraction(1, 25)


class _FrameOfEachSecond:
    """Selects the frame that is shown at each second, and resizes it."""

    def __init__(self, size: int, end: Fraction | None, odd: Odd) -> None:
        self._size, self._end, self._odd = size, end, odd
        self._current: VideoFrame | None = None
        self._time, self._shown_until = Fraction(0), Fraction(0)
        self.count = 0
        """Seconds selected so far."""
        self.pending: list[NDArray[np.float32]] = []

    def add(self, frame: VideoFrame, time: Fraction | None, duration: Fraction) -> None:
        """Add the next frame in order of presentation."""
        if time is None or _is_wrong(time, self._shown_until, self._end):
            if time is not None:
                self._odd.note("wrong time stamps")
            time = self._shown_until
        if self._current is not None and time < self._time:
            self._odd.note("wrong time stamps")
            time = self._time
        if self._current is None:
            self._current = frame
        self._emit_until(time - _EARLY)
        self._current, self._time, self._shown_until = frame, time, max(time, Fraction(0)) + duration

    def finish(self) -> None:
        """Select the remaining seconds; the last frame is shown for its duration."""
        if self._current is not None:
            self._emit_until(max(self._shown_until - _EARLY, _EARLY))

    def take(self) -> list[NDArray[np.float32]]:
        """The pending frames, which are then no longer pending."""
        taken, self.pending = self.pending, []
        return taken

    def _emit_until(self, time: Fraction) -> None:
        """Select the current frame for every second before a time."""
        if self.count < time and self._current is not None:
            values = resize_bilinear(_upright_rgb(self._current), self._size)
            while self.count < time:
                self.pending.append(values)
                self.count += 1


def _is_wrong(time: Fraction, expected: Fraction, end: Fraction | None) -> bool:
    """Whether a time stamp lies so far ahead that it cannot be right."""
    return time > expected + _MAX_GAP_SECONDS and (time > end if end is not None else time > expected + 3600)


def _upright_rgb(frame: VideoFrame) -> NDArray[np.uint8]:
    """The pixels, uint8 (height, width, 3), turned as players turn them."""
    pixels = frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
    return np.rot90(pixels, round(frame.rotation / 90) % 4)


class _Sound:
    """Mono sound at 16 kHz, cut into one window per second."""

    def __init__(self, end: Fraction | None, odd: Odd) -> None:
        self._end, self._odd = end, odd
        self._resampler: AudioResampler | None = None
        self._rate = 0
        self._heard = Fraction(0)
        """Seconds of sound received."""
        self._samples: list[NDArray[np.float32]] = []
        self._num_samples = 0
        self._is_finished = False

    def add(self, frame: AudioFrame, time: Fraction | None) -> None:
        """Add the next frame of sound; gaps are silent, and what was heard already is dropped."""
        samples = _mono(frame)
        rate = frame.sample_rate
        if rate <= 0 or not len(samples):
            return
        if rate != self._rate:
            self._flush()
            self._rate = rate
            self._resampler = AudioResampler(format="fltp", layout="mono", rate=SAMPLE_RATE)
        # The first frame decides the alignment; later time stamps are rounded.
        if time is not None and abs(time - self._heard) > (_MAX_JITTER if self._heard else 0):
            if _is_wrong(time, self._heard, self._end):
                self._odd.note("wrong time stamps of sound")
            elif time > self._heard:
                self._feed(np.zeros(round((time - self._heard) * rate), np.float32))
            else:
                samples = samples[round((self._heard - time) * rate) :]
        self._feed(samples)

    def finish(self) -> None:
        """Complete the last window with silence."""
        self._flush()
        self._is_finished = True

    def take(self, at_least: int) -> NDArray[np.float32] | None:
        """The complete windows, float32 (n, 15600), if there are this many."""
        if self._is_finished:
            count = -(-self._num_samples // SAMPLE_RATE)
            self._append(np.zeros(count * SAMPLE_RATE - self._num_samples, np.float32))
        count = self._num_samples // SAMPLE_RATE
        if count < at_least:
            return None
        samples = np.concatenate(self._samples)
        used, rest = samples[: count * SAMPLE_RATE], samples[count * SAMPLE_RATE :]
        self._samples, self._num_samples = [rest], len(rest)
        return np.ascontiguousarray(used.reshape(count, SAMPLE_RATE)[:, :WINDOW_SAMPLES])

    def _feed(self, samples: NDArray[np.float32]) -> None:
        """Resample some seconds, in pieces of one second."""
        self._heard += Fraction(len(samples), self._rate)
        for start in range(0, len(samples), self._rate):
            frame = AudioFrame.from_ndarray(samples[None, start : start + self._rate], format="fltp", layout="mono")
            frame.sample_rate = self._rate
            self._collect(frame)

    def _flush(self) -> None:
        if self._resampler is not None:
            self._collect(None)
            self._resampler = None

    def _collect(self, frame: AudioFrame | None) -> None:
        assert self._resampler is not None
        for resampled in self._resampler.resample(frame):
            self._append(resampled.to_ndarray()[0])

    def _append(self, samples: NDArray[np.float32]) -> None:
        self._samples.append(samples)
        self._num_samples += len(samples)


_FULL_SCALE = {np.dtype(np.uint8): 1 << 7, np.dtype(np.int16): 1 << 15, np.dtype(np.int32): 1 << 31}


def _mono(frame: AudioFrame) -> NDArray[np.float32]:
    """The mean of all channels, float32 (samples,), full scale at 1."""
    values = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(-1, frame.layout.nb_channels).T
    mean = values.mean(axis=0, dtype=np.float64)
    if values.dtype == np.uint8:
        mean -= 1 << 7
    samples: NDArray[np.float32] = (mean / _FULL_SCALE.get(values.dtype, 1)).astype(np.float32)
    samples[~np.isfinite(samples)] = 0
    return samples
