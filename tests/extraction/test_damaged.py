"""Damaged copies of video files, decoded in child processes: frames or an error, within limits of time and memory."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.mutations import mutations
from tests.support.videos import Sound, write_video
from yt8m.extraction.decode import Frames, UnreadableVideoError
from yt8m.extraction.decoder import DecoderProcess, Decoding

FORMATS: dict[str, dict[str, Any]] = {
    "a.mp4": {"sound": Sound()},
    "a.webm": {"codec": "libvpx-vp9", "sound": Sound("libopus", 48_000)},
    "a.ts": {"codec": "mpeg2video", "rate": 25, "sound": Sound("mp2", 48_000)},
    "a.mkv": {"codec": "libx265", "options": {"x265-params": "log-level=0"}, "sound": Sound("flac")},
}
MAX_SECONDS = 60.0
MAX_MEMORY = 1 << 30
MAX_FRAMES = 200
"""A file of 4 seconds whose damaged times and durations are believed as far as they can be."""


@dataclass
class Ended:
    """How a child ended: number of frames, the error if there was one, seconds, and the most memory seen in bytes."""

    num_frames: int = 0
    error: str = ""
    seconds: float = 0.0
    memory: int = 0


def decoded(path: Path) -> Ended:
    ended = Ended()
    start = time.monotonic()
    child = DecoderProcess(Decoding(path, 64), max_seconds_silent=MAX_SECONDS)
    try:
        for result in child:
            assert np.isfinite(result.values).all()
            ended.num_frames += len(result.values) if isinstance(result, Frames) else 0
            found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{child._process.pid}/status").read_text())
            ended.memory = max(ended.memory, int(found[1]) * 1024 if found else 0)
    except UnreadableVideoError as error:
        ended.error = str(error) or "none"
    finally:
        child.close()
    ended.seconds = time.monotonic() - start
    return ended


@pytest.mark.parametrize("count", [2, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_cost_neither_time_nor_memory(tmp_path: Path, name: str, count: int) -> None:
    content = write_video(tmp_path / name, 4, **FORMATS[name]).read_bytes()
    num_decoded = 0
    for damaged in mutations(content, count):
        (tmp_path / name).write_bytes(damaged)
        ended = decoded(tmp_path / name)
        assert ended.seconds < MAX_SECONDS
        assert ended.memory < MAX_MEMORY
        # A child that hangs or crashes is an error too, which must not occur.
        assert "decoder" not in ended.error
        assert ended.error or 1 <= ended.num_frames <= MAX_FRAMES
        num_decoded += not ended.error
    assert count == 2 or count / 3 < num_decoded <= count
