"""Decoded seconds: second k of a file is picture and sound of time k, for every container and codec."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition

from tests.support.videos import Sound, cut_beginning, heard_hz, picture, second_of, tone_hz, turn, write_video
from yt8m.extraction.decode import Frames, Odd, UnreadableVideoError, decode
from yt8m.extraction.resize import resize_bilinear

SIZE = 64


def seconds_of(path: Path, max_seconds: int | None = None) -> tuple[list[int], list[float], list[str]]:
    """The second that each frame shows, the tone of each window, and what was odd."""
    odd = Odd()
    frames: list[int] = []
    tones: list[float] = []
    for result in decode(path, SIZE, max_seconds, odd):
        if isinstance(result, Frames):
            assert result.values.shape[1:] == (SIZE, SIZE, 3)
            frames += map(second_of, result.values)
        else:
            assert result.values.shape[1:] == (15_600,)
            tones += (heard_hz(window[2000:-2000]) for window in result.values)
    return frames, tones, odd.found


FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "H.264, AAC, MP4": ("a.mp4", {"sound": Sound()}),
    "H.264, AAC, MOV": ("a.mov", {"sound": Sound()}),
    "H.264, MP3, MKV": ("a.mkv", {"sound": Sound("libmp3lame")}),
    "H.264, AAC, TS": ("a.ts", {"sound": Sound()}),
    "HEVC, Opus, MKV": ("a.mkv", {"codec": "libx265", "sound": Sound("libopus", 48_000), "options": {"x265-params": "log-level=0"}}),
    "HEVC, 10 bits": ("a.mp4", {"codec": "libx265", "pixel_format": "yuv420p10le", "options": {"x265-params": "log-level=0"}}),
    "VP9, Opus, WebM": ("a.webm", {"codec": "libvpx-vp9", "sound": Sound("libopus", 48_000)}),
    "AV1, MP4": ("a.mp4", {"codec": "libsvtav1", "sound": Sound()}),
    "MPEG-4, MP3, MP4": ("a.mp4", {"codec": "mpeg4", "sound": Sound("libmp3lame")}),
    "MJPEG, PCM, AVI": ("a.avi", {"codec": "mjpeg", "pixel_format": "yuvj420p", "sound": Sound("pcm_s16le")}),
    "MPEG-2, MP2, TS": ("a.ts", {"codec": "mpeg2video", "rate": 25, "sound": Sound("mp2", 48_000)}),
    "GIF": ("a.gif", {"codec": "gif", "pixel_format": "rgb8"}),
    "PCM, 8 kHz, mono": ("a.mkv", {"sound": Sound("pcm_s16le", 8_000, "mono")}),
    "PCM, 8 bits": ("a.mkv", {"sound": Sound("pcm_u8", 16_000, "mono")}),
    "FLAC, 96 kHz, 5.1": ("a.mkv", {"sound": Sound("flac", 96_000, "5.1")}),
    "odd size, 4:4:4": ("a.mkv", {"size": (97, 63), "pixel_format": "yuv444p"}),
    "portrait": ("a.mp4", {"size": (64, 96)}),
    "30 pictures a second": ("a.mp4", {"rate": 30, "sound": Sound()}),
    "starts at 5 s": ("a.mkv", {"start": 5.0, "sound": Sound()}),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_second_k_is_picture_and_sound_of_time_k(tmp_path: Path, name: str) -> None:
    file, settings = FORMATS[name]
    frames, tones, odd = seconds_of(write_video(tmp_path / file, 4, **settings))
    assert frames == [0, 1, 2, 3]
    if "sound" in settings:
        # Encoders append silence to complete their last block.
        assert len(tones) in (4, 5)
        np.testing.assert_allclose(tones[:4], [tone_hz(second) for second in range(4)], atol=5)
    else:
        assert tones == []
    assert odd == []


@pytest.mark.parametrize(("seconds", "expected"), [(0.1, 1), (0.4, 1), (1.0, 1), (1.1, 2), (2.9, 3)])
def test_every_second_that_has_begun_has_a_frame(tmp_path: Path, seconds: float, expected: int) -> None:
    frames, _, _ = seconds_of(write_video(tmp_path / "a.mp4", seconds))
    assert frames == list(range(expected))


def test_a_frame_is_shown_until_the_next_one_begins(tmp_path: Path) -> None:
    times = [Fraction(time) / 1000 for time in (0, 300, 900, 1950, 2600, 2999, 6500)]
    frames, _, _ = seconds_of(write_video(tmp_path / "a.mkv", times=times))
    assert frames[:7] == [0, 0, 1, 2, 2, 2, 2]


@pytest.mark.parametrize("sound_seconds", [1.5, 6.5])
def test_sound_may_be_shorter_or_longer_than_the_pictures(tmp_path: Path, sound_seconds: float) -> None:
    path = write_video(tmp_path / "a.mkv", 4, sound=Sound("flac", seconds=sound_seconds))
    frames, tones, _ = seconds_of(path)
    assert frames == [0, 1, 2, 3]
    assert len(tones) == np.ceil(sound_seconds)
    np.testing.assert_allclose(tones[:-1], [tone_hz(second) for second in range(len(tones) - 1)], atol=5)


@pytest.mark.parametrize("late", [0.5, 2.0])
def test_sound_that_begins_late_is_silent_before(tmp_path: Path, late: float) -> None:
    path = write_video(tmp_path / "a.mkv", 4, sound=Sound("flac", 16_000, seconds=2, start=late))
    windows = np.concatenate([result.values for result in decode(path, SIZE) if not isinstance(result, Frames)])
    samples = np.zeros((len(windows), 16_000), np.float32)
    samples[:, :15_600] = windows
    loud = np.flatnonzero(np.abs(samples.ravel()) > 0.01)
    assert abs(loud[0] / 16_000 - late) < 0.002


def test_max_seconds_ends_the_decoding(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 20, sound=Sound())
    frames, tones, _ = seconds_of(path, max_seconds=3)
    assert frames == [0, 1, 2]
    assert 2 <= len(tones) <= 12


@pytest.mark.parametrize("content", [b"", b"no video", b"\x00\x00\x00\x18ftypmp42" + bytes(100)])
def test_files_that_are_no_videos_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(UnreadableVideoError, match=r"Invalid data|no frame|End of file|no video stream"):
        list(decode(tmp_path / "a.mp4", SIZE))


def test_truncated_files_give_what_is_there(tmp_path: Path) -> None:
    content = write_video(tmp_path / "a.mkv", 20, sound=Sound()).read_bytes()
    (tmp_path / "half.mkv").write_bytes(content[: len(content) // 2])
    frames, _, _ = seconds_of(tmp_path / "half.mkv")
    assert frames == list(range(len(frames)))
    assert 5 < len(frames) < 15


def slow_resize(image: np.ndarray, size: int) -> np.ndarray:
    """TensorFlow's legacy bilinear resize, one value after the other, in double precision."""
    height, width, _ = image.shape
    result = np.empty((size, size, 3))
    for row in range(size):
        for column in range(size):
            y, x = row * height / size, column * width / size
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = image[top, left] * (1 - (x - left)) + image[top, right] * (x - left)
            lower = image[bottom, left] * (1 - (x - left)) + image[bottom, right] * (x - left)
            result[row, column] = upper * (1 - (y - top)) + lower * (y - top)
    return result


@pytest.mark.parametrize(("height", "width"), [(7, 11), (40, 30), (1, 1), (16, 16)])
def test_resizing_equals_a_plain_loop(height: int, width: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    np.testing.assert_allclose(resize_bilinear(image, 16), slow_resize(image, 16), atol=2e-4)


def first_frame(path: Path) -> np.ndarray:
    result = next(iter(decode(path, SIZE)))
    assert isinstance(result, Frames)
    return result.values[0]


@pytest.mark.parametrize("quarter_turns", range(4))
def test_pictures_are_turned_as_players_turn_them(tmp_path: Path, quarter_turns: int) -> None:
    path = write_video(tmp_path / "a.mp4", 1)
    turn(path, quarter_turns)
    # White is at the top right; turned clockwise it goes to the bottom right, the bottom left, the top left.
    corners = {"top right": (0, -1), "bottom right": (-1, -1), "bottom left": (-1, 0), "top left": (0, 0)}
    frame = first_frame(path)
    white = [name for name, (row, column) in corners.items() if frame[row, column].mean() > 200]
    assert white == [list(corners)[quarter_turns]]


@pytest.mark.parametrize("options", [{}, {"bf": "0"}], ids=["B frames", "no B frames"])
def test_what_an_edit_list_leaves_out_is_neither_seen_nor_heard(tmp_path: Path, options: dict[str, str]) -> None:
    path = write_video(tmp_path / "a.mp4", 6, sound=Sound(), options=options)
    cut_beginning(path, 2)
    frames, tones, odd = seconds_of(path)
    assert frames == [2, 3, 4, 5]
    np.testing.assert_allclose(tones[:4], [tone_hz(second) for second in range(2, 6)], atol=5)
    assert odd == []


def test_the_first_of_several_tracks_is_used(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        tracks = [container.add_stream("libx264", rate=10) for _ in range(2)]
        sounds = [container.add_stream("flac", rate=16_000, layout="mono") for _ in range(2)]
        for video in tracks:
            video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        for second in range(3):
            for audio, hertz in zip(sounds, (tone_hz(second), 3_100), strict=True):
                samples = 0.5 * np.sin(2 * np.pi * hertz * np.arange(16_000) / 16_000).astype(np.float32)
                frame = av.AudioFrame.from_ndarray(
                    (samples[None] * 32_767).astype(np.int16), format="s16", layout="mono"
                )
                frame.sample_rate, frame.pts, frame.time_base = 16_000, second * 16_000, Fraction(1, 16_000)
                container.mux(audio.encode(frame))
            for number in range(10):
                for video, time in zip(tracks, (second + number / 10, 20), strict=True):
                    container.mux(video.encode(av.VideoFrame.from_ndarray(picture(time), format="rgb24")))
        for stream in [*tracks, *sounds]:
            container.mux(stream.encode(None))
    frames, tones, _ = seconds_of(path)
    assert frames == [0, 1, 2]
    np.testing.assert_allclose(tones, [tone_hz(second) for second in range(3)], atol=5)


def test_cover_pictures_are_not_the_video(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        video = container.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        container.mux(cover.encode(av.VideoFrame.from_ndarray(np.full((32, 32, 3), 255, np.uint8), format="rgb24")))
        container.mux(cover.encode(None))
        for number in range(20):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture(number / 10), format="rgb24")))
        container.mux(video.encode(None))
    assert seconds_of(path)[0] == [0, 1]


def test_sound_without_pictures_is_no_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        audio = container.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16_000
        container.mux(audio.encode(frame))
        container.mux(audio.encode(None))
    with pytest.raises(UnreadableVideoError, match=r"has no video stream \(streams: audio\)"):
        list(decode(tmp_path / "a.mp4", SIZE))


@pytest.mark.parametrize(("name", "settings"), [FORMATS["H.264, AAC, MP4"], FORMATS["VP9, Opus, WebM"]])
@pytest.mark.parametrize("damage", ["bits", "truncation", "zeros"])
def test_damaged_files_give_frames_or_an_error(
    tmp_path: Path, name: str, settings: dict[str, Any], damage: str
) -> None:
    content = write_video(tmp_path / name, 4, **settings).read_bytes()
    rng = np.random.default_rng(0)
    decoded = 0
    for _ in range(10):
        damaged = bytearray(content)
        if damage == "bits":
            for position in rng.integers(0, len(content), 20):
                damaged[position] ^= 1 << rng.integers(8)
        elif damage == "zeros":
            start = rng.integers(0, len(content))
            damaged[start : start + 500] = bytes(len(damaged[start : start + 500]))
        else:
            del damaged[rng.integers(0, len(content)) :]
        (tmp_path / name).write_bytes(damaged)
        try:
            frames, tones, _ = seconds_of(tmp_path / name)
        except UnreadableVideoError as error:
            assert str(error)  # noqa: PT017
        else:
            decoded += 1
            assert 1 <= len(frames) <= 70
            assert len(tones) <= 70
    assert decoded or damage == "truncation"
