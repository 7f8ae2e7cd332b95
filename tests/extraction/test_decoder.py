"""Decoding in child processes: a crash, a hang or a kill costs one video, and leaves no process."""

import os
import signal
from pathlib import Path

import pytest

from tests.support.videos import Sound, second_of, write_video
from yt8m.extraction.decode import Frames, UnreadableVideoError
from yt8m.extraction.decoder import DecoderProcess, Decoding


def process_of(decoding: DecoderProcess) -> int:
    process = decoding._process.pid
    assert process is not None
    return process


def test_a_child_delivers_what_it_decodes(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", 20, sound=Sound())
    child = DecoderProcess(Decoding(path, 64, max_seconds=11))
    seconds = [second_of(frame) for result in child if isinstance(result, Frames) for frame in result.values]
    assert seconds == list(range(11))
    assert child.odd.found == []
    child.close()


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_child_that_dies_is_an_error_of_its_video(tmp_path: Path, number: signal.Signals) -> None:
    path = write_video(tmp_path / "a.mkv", 100)
    child = DecoderProcess(Decoding(path, 299))
    results = iter(child)
    next(results)
    os.kill(process_of(child), number)
    with pytest.raises(UnreadableVideoError, match=f"the decoder was killed by {number.name}"):
        list(results)
    child.close()


def test_a_child_that_hangs_is_an_error_of_its_video(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.mp4")
    child = DecoderProcess(Decoding(tmp_path / "a.mp4", 64), max_seconds_silent=3)
    with pytest.raises(UnreadableVideoError, match="the decoder hung for 3 seconds"):
        list(child)
    process = process_of(child)
    child.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_8k_is_within_the_limits_of_a_child(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 3, rate=1, size=(7680, 4320), options={"preset": "ultrafast"})
    child = DecoderProcess(Decoding(path, 64))
    seconds = [second_of(frame) for result in child if isinstance(result, Frames) for frame in result.values]
    child.close()
    assert seconds == [0, 1, 2]


def test_an_unreadable_file_is_an_error_of_its_video(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("no video")
    child = DecoderProcess(Decoding(tmp_path / "a.mp4", 64))
    with pytest.raises(UnreadableVideoError, match="Invalid data"):
        list(child)
    child.close()
