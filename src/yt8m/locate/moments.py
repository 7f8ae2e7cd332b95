"""Moments of a video file as files: clips that are cut out without encoding them again, and chapters that players show."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from yt8m.errors import UsageError, Yt8mError
from yt8m.files import written_atomically
from yt8m.locate.timeline import Timeline

CHAPTER_SUFFIXES = (".vtt", ".ffmetadata")
"""WebVTT chapters, and FFmpeg's metadata, which `ffmpeg -i VIDEO -i FILE -map_metadata 1 -codec copy` adds to a file."""

_EARLY = 0.1
"""Seconds by which sound may begin before the pictures, which shifts them against the beginning of the file."""

_SEEK_SECONDS = 15
"""Seconds before a moment from which its key frame is looked for; some containers have no index."""


@dataclass(frozen=True)
class Moment:
    """A concept on screen.

    Args:
        name: The concept.
        start: Its first second.
        end: The second at which it ends.
    """

    name: str
    start: int
    end: int


def moments_of(timeline: Timeline) -> list[Moment]:
    """The moments of a timeline: each time span at which a concept is on screen, in the order of the concepts."""
    spans = zip(timeline.names, timeline.spans(), strict=True)
    return [Moment(name, start, end) for name, of_concept in spans for start, end in of_concept]


def write_chapters(path: Path, moments: Sequence[Moment]) -> None:
    """Write moments as chapters, in the format that the suffix names.

    Args:
        path: The file, `.vtt` (WebVTT) or `.ffmetadata` (FFmpeg's metadata format).
        moments: Moments in any order; they may overlap.

    Raises:
        UsageError: The suffix names another format.
    """
    ordered = sorted(moments, key=lambda moment: (moment.start, moment.end, moment.name))
    if path.suffix == ".vtt":
        cues = [
            f"{number}\n{_stamp(moment.start)} --> {_stamp(moment.end)}\n{_cue_text(moment.name)}\n"
            for number, moment in enumerate(ordered, start=1)
        ]
        text = "\n".join(["WEBVTT\n", *cues])
    elif path.suffix == ".ffmetadata":
        chapters = [
            f"[CHAPTER]\nTIMEBASE=1/1\nSTART={moment.start}\nEND={moment.end}\ntitle={_metadata_text(moment.name)}\n"
            for moment in ordered
        ]
        text = "\n".join([";FFMETADATA1\n", *chapters])
    else:
        raise UsageError(f"{path}: expected a name that ends with {' or '.join(CHAPTER_SUFFIXES)}.")
    with written_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _stamp(seconds: int) -> str:
    """A WebVTT time stamp."""
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.000"


def _cue_text(name: str) -> str:
    """Text of a WebVTT cue: no markup, one line."""
    return " ".join(name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").split())


def _metadata_text(name: str) -> str:
    """A value of FFmpeg's metadata format, one line."""
    return re.sub(r"([=;#\\])", r"\\\1", " ".join(name.split()))


def write_clips(video: Path, folder: Path, moments: Sequence[Moment]) -> list[Path]:
    """Cut moments out of a video file, without encoding them again.

    A clip can only begin at a key frame, so it begins at the last one before its moment, up to some seconds earlier.

    Args:
        video: The video file.
        folder: Receives a file per moment, in the container of the video.
        moments: The moments.

    Returns:
        The clips.

    Raises:
        Yt8mError: The video cannot be read, or its streams cannot be copied.
    """
    clips = []
    for moment in moments:
        name = re.sub(r"[^\w.-]+", "-", moment.name).strip("-")
        clip = folder / f"{video.stem}_{moment.start:05d}-{moment.end:05d}_{name}{video.suffix}"
        with written_atomically(clip) as temporary:
            _copy(video, temporary, moment)
        clips.append(clip)
    return clips


def _copy(video: Path, clip: Path, moment: Moment) -> None:
    """Copy the packets of a moment."""
    import av

    try:
        with av.open(str(video)) as source, av.open(str(clip), "w") as target:
            chosen = [*source.streams.video[:1], *source.streams.audio[:1]]
            copies = {stream.index: target.add_stream_from_template(stream) for stream in chosen}
            origin = (source.start_time or 0) / av.time_base
            begin, end = moment.start + origin, moment.end + origin
            if moment.start > _SEEK_SECONDS:
                source.seek(round((begin - _SEEK_SECONDS) * av.time_base))
            packets: list[Any] = []
            for packet in source.demux(chosen):
                if packet.pts is None:
                    continue
                time, is_video = packet.pts * packet.time_base, packet.stream.type == "video"
                if is_video and packet.is_keyframe and time <= begin + _EARLY:
                    packets.clear()
                if time < end:
                    packets.append(packet)
                elif is_video and (packet.dts is None or packet.dts * packet.time_base >= end):
                    break
            _complete_decoding_times(packets)
            first = min((packet.dts * packet.time_base for packet in packets), default=Fraction(0))
            for packet in packets:
                shift = round(first / packet.time_base)
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = copies[packet.stream.index]
                target.mux(packet)
    except (av.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise Yt8mError(
            f"{video}: the clip from {moment.start} s to {moment.end} s cannot be cut ({reason})."
        ) from None


def _complete_decoding_times(packets: Sequence[Any]) -> None:
    """Give packets their decoding times where a container leaves out the first ones (Matroska)."""
    following: dict[int, int] = {}
    for packet in reversed(packets):
        if packet.dts is None:
            packet.dts = min(
                packet.pts, following.get(packet.stream.index, packet.pts + 1) - max(packet.duration or 0, 1)
            )
        following[packet.stream.index] = packet.dts
