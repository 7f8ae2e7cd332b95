"""An extraction that is killed at any file-system event ends, at the next try, with the files of an undisturbed one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.support.processes import run_python
from tests.support.videos import Sound, write_video


def kill_extraction(folder: Path, first: int, step: int, *command: object) -> int:
    """Kill a command at every `step`-th event from `first` on; the number of events."""
    arguments = [folder, 1, first, step, "extract", *command, "--out", "OUT", "--videos-per-shard", 2]
    ended = run_python("-m", "tests.support.kills_of_extract", *arguments, timeout=1000)
    assert ended.status == 0, ended.err
    found = json.loads(ended.out)
    assert found["problems"] == {}
    assert found["tried"] == len(range(first, found["events"], step))
    events: int = found["events"]
    return events


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """A folder of four files: two without sound, two of the same content."""
    folder = tmp_path / "videos"
    folder.mkdir()
    write_video(folder / "a.mp4", 1, sound=Sound())
    write_video(folder / "b.mkv", 2)
    (folder / "c.mp4").write_bytes((folder / "a.mp4").read_bytes())
    write_video(folder / "d.mp4", 3)
    return folder


@pytest.fixture
def features(tmp_path: Path) -> Path:
    """A folder of three files of features."""
    folder = tmp_path / "features"
    folder.mkdir()
    for seed in range(3):
        rgb = np.random.default_rng(seed).normal(size=(3, 1024))
        np.savez(folder / f"{seed}.npz", rgb=rgb)
    return folder


def test_a_kill_at_some_events_of_an_extraction(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "kills").mkdir()
    assert kill_extraction(tmp_path / "kills", 9, 30, videos) > 20


@pytest.mark.slow
@pytest.mark.parametrize("first", range(3))
def test_a_kill_at_any_event_of_an_extraction(videos: Path, tmp_path: Path, first: int) -> None:
    (tmp_path / "kills").mkdir()
    kill_extraction(tmp_path / "kills", first, 3, videos)


@pytest.mark.parametrize(("first", "step"), [(5, 20), pytest.param(0, 1, marks=pytest.mark.slow)])
def test_a_kill_at_any_event_of_a_conversion(features: Path, tmp_path: Path, first: int, step: int) -> None:
    (tmp_path / "kills").mkdir()
    assert kill_extraction(tmp_path / "kills", first, step, "--from-features", features) > 15
