"""Clips and chapters of the moments of a video file."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.videos import Sound, heard_hz, second_of, tone_hz, write_video
from yt8m.errors import UsageError, Yt8mError
from yt8m.extraction.decode import Frames, decode
from yt8m.locate.moments import Moment, write_chapters, write_clips

VIDEOS: dict[str, dict[str, Any]] = {
    "a.mp4": {"sound": Sound()},
    "a.mkv": {"codec": "libvpx-vp9", "sound": Sound("libopus", 48_000)},
    "b-frames.mkv": {"sound": Sound("flac")},
    "a.ts": {"sound": Sound(), "rate": 25, "options": {"g": "50"}},
}


@pytest.mark.parametrize("name", VIDEOS)
@pytest.mark.parametrize(("start", "end"), [(0, 3), (5, 10), (18, 20)])
def test_a_clip_contains_its_moment_from_the_key_frame_before(tmp_path: Path, name: str, start: int, end: int) -> None:
    video = write_video(tmp_path / name, 20, **({"options": {"g": "20"}} | VIDEOS[name]))
    (clip,) = write_clips(video, tmp_path / "clips", [Moment("Food & drink", start, end)])
    assert clip == tmp_path / "clips" / f"{video.stem}_{start:05d}-{end:05d}_Food-drink{video.suffix}"
    results = list(decode(clip, 64))
    seconds = [second_of(frame) for result in results if isinstance(result, Frames) for frame in result.values]
    # There is a key frame every two seconds.
    assert seconds == list(range(start - start % 2, end))
    tones = [heard_hz(w[2000:-2000]) for result in results if not isinstance(result, Frames) for w in result.values]
    assert tones[: len(seconds)] == pytest.approx([tone_hz(second) for second in seconds], abs=5)


def test_files_that_cannot_be_cut_are_reported(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("no video")
    with pytest.raises(Yt8mError, match=r"a\.mp4: the clip from 1 s to 2 s cannot be cut \(Invalid data"):
        write_clips(tmp_path / "a.mp4", tmp_path / "clips", [Moment("Food", 1, 2)])
    assert not list((tmp_path / "clips").iterdir())


MOMENTS = [Moment("Rock = roll; #1\\2", 3700, 3705), Moment("Food <&> drink", 5, 65)]


def test_chapters_as_webvtt(tmp_path: Path) -> None:
    write_chapters(tmp_path / "a.vtt", MOMENTS)
    assert (tmp_path / "a.vtt").read_text() == (
        "WEBVTT\n\n1\n00:00:05.000 --> 00:01:05.000\nFood &lt;&amp;&gt; drink\n\n"
        "2\n01:01:40.000 --> 01:01:45.000\nRock = roll; #1\\2\n"
    )


def test_chapters_as_ffmetadata(tmp_path: Path) -> None:
    import av

    write_chapters(tmp_path / "a.ffmetadata", MOMENTS)
    with av.open(str(tmp_path / "a.ffmetadata"), format="ffmetadata") as container:
        chapters = [
            (chapter["start"], chapter["end"], chapter["metadata"]["title"]) for chapter in container.chapters()
        ]
    assert chapters == [(5, 65, "Food <&> drink"), (3700, 3705, "Rock = roll; #1\\2")]


def test_other_formats_of_chapters_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a\.srt: expected a name that ends with \.vtt or \.ffmetadata\."):
        write_chapters(tmp_path / "a.srt", MOMENTS)
