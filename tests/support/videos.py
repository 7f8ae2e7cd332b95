"""Video files made with real encoders, whose pictures and sound carry their time."""

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 96, 64
SILENT_TONE = 0.0


def picture(seconds: float, width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
    """A picture of a time, uint8 (height, width, 3).

    The left half is as bright as 20 + 8 per second (modulo 25 seconds); the upper right quarter is white, the lower black.
    """
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2] = 20 + 8 * (int(seconds) % 25)
    pixels[: height // 2, width // 2 :] = 255
    return pixels


def second_of(frame: NDArray[np.float32]) -> int:
    """The second (modulo 25) that a frame shows, from its upright, resized pixels (size, size, 3)."""
    size = len(frame)
    return round((float(frame[size // 4 : -size // 4, size // 8 : 3 * size // 8].mean()) - 20) / 8)


def tone_hz(second: int) -> float:
    """The tone that is heard in a second."""
    return 500.0 + 200 * (second % 12)


def heard_hz(window: NDArray[np.float32], rate: int = 16_000) -> float:
    """The loudest frequency of a window."""
    spectrum = np.abs(np.fft.rfft(window * np.hanning(len(window))))
    return float(spectrum.argmax() * rate / len(window))


@dataclass(frozen=True)
class Sound:
    """A sound track: a tone per second, full scale 0.5, the same in every channel."""

    codec: str = "aac"
    rate: int = 44_100
    layout: str = "stereo"
    seconds: float | None = None
    """As long as the pictures by default."""
    start: float = 0.0


def write_video(
    path: Path,
    seconds: float = 4.0,
    *,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    rate: int = 10,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    sound: Sound | None = None,
    start: float = 0.0,
    times: Sequence[Fraction] | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    format: str | None = None,  # noqa: A002 - PyAV's name
) -> Path:
    """Write a video file.

    Args:
        path: The file; its suffix chooses the container.
        seconds: Duration of the pictures.
        codec: Encoder of the pictures.
        pixel_format: Their pixel format.
        rate: Pictures per second.
        size: Width and height.
        sound: The sound track, if any.
        start: Time stamp of the first picture, and of the sound.
        times: Times of the pictures, for a variable frame rate.
        options: Options of the encoder.
        container_options: Options of the container.
        format: The container.
    """
    width, height = size
    clock = Fraction(1, 1000)
    with av.open(str(path), "w", format=format, options=container_options or {}) as container:
        video = container.add_stream(codec, rate=rate, options=options or {})
        video.width, video.height, video.pix_fmt = width, height, pixel_format
        video.codec_context.time_base = clock if times else Fraction(1, rate)
        audio = None
        if sound is not None:
            audio = container.add_stream(sound.codec, rate=sound.rate, layout=sound.layout)
        step = Fraction(1, rate)
        moments = times or [number * step for number in range(round(seconds * rate))]
        pictures = iter(moments)
        blocks = iter(_blocks(sound, seconds) if sound else [])
        block = next(blocks, None)
        for moment in pictures:
            while block is not None and block[0] <= moment:
                container.mux(_encoded_sound(audio, block, sound, start))
                block = next(blocks, None)
            frame = av.VideoFrame.from_ndarray(picture(float(moment), width, height), format="rgb24")
            frame.time_base = video.codec_context.time_base
            frame.pts = round((moment + Fraction(start).limit_denominator(1000)) / frame.time_base)
            container.mux(video.encode(frame))
        while block is not None:
            container.mux(_encoded_sound(audio, block, sound, start))
            block = next(blocks, None)
        container.mux(video.encode(None))
        if audio is not None:
            container.mux(audio.encode(None))
    return path


def _blocks(sound: Sound, seconds: float) -> list[tuple[float, NDArray[np.float32]]]:
    """Pieces of a tenth of a second: their time in the sound, and their samples."""
    total = round((seconds if sound.seconds is None else sound.seconds) * sound.rate)
    moments = np.arange(total) / sound.rate
    frequencies = np.vectorize(tone_hz, otypes=[float])(moments.astype(int)) if total else moments
    samples = (0.5 * np.sin(2 * np.pi * frequencies * moments)).astype(np.float32)
    step = max(1, sound.rate // 10)
    return [(first / sound.rate, samples[first : first + step]) for first in range(0, total, step)]


def _encoded_sound(
    stream: av.AudioStream, block: tuple[float, NDArray[np.float32]], sound: Sound, start: float
) -> list[av.Packet]:
    channels = av.AudioLayout(sound.layout).nb_channels
    frame = av.AudioFrame.from_ndarray(np.tile(block[1], (channels, 1)), format="fltp", layout=sound.layout)
    frame.sample_rate = sound.rate
    frame.pts = round((block[0] + sound.start + start) * sound.rate)
    frame.time_base = Fraction(1, sound.rate)
    return stream.encode(frame)


def cut_beginning(path: Path, seconds: int) -> None:
    """Let all tracks of an MP4 file begin later, by their edit lists (ISO 14496-12, `elst`): nothing is removed."""
    content = bytearray(path.read_bytes())
    tracks = [match.start() for match in re.finditer(b"trak", content)]
    for begin, end in pairwise([*tracks, len(content)]):
        # version and flags 4, times 8 (version 0), time scale 4
        (scale,) = struct.unpack_from(">I", content, content.index(b"mdhd", begin, end) + 4 + 12)
        # version and flags 4, number of entries 4, and of each: duration 4, begin 4, rate 4
        entry = content.index(b"elst", begin, end) + 4 + 8
        duration, start = struct.unpack_from(">Ii", content, entry)
        struct.pack_into(">Ii", content, entry, duration - seconds * 1000, start + seconds * scale)
    path.write_bytes(content)


def turn(path: Path, quarter_turns: int) -> None:
    """Turn an MP4 file's pictures clockwise, by the display matrix of its first track (ISO 14496-12, `tkhd`)."""
    content = bytearray(path.read_bytes())
    box = content.index(b"tkhd")
    # version and flags 4, times and id 20 (version 0), reserved 8, layer, group, volume, reserved 8
    matrix = box + 4 + 4 + 20 + 8 + 8
    cosine, sine = [(1, 0), (0, 1), (-1, 0), (0, -1)][quarter_turns % 4]
    values = [cosine << 16, sine << 16, 0, -sine << 16, cosine << 16, 0, 0, 0, 1 << 30]
    content[matrix : matrix + 36] = struct.pack(">9i", *values)
    path.write_bytes(content)
