"""Extraction into shards: resumable, by content, and a file that fails is listed while the others go on."""

import csv
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.support.extractors import PlainExtractor
from tests.support.videos import Sound, tone_hz, write_video
from yt8m.dataset.frames import FrameReader
from yt8m.dataset.indexing import index_folder
from yt8m.errors import UsageError
from yt8m.extraction.extract import extract
from yt8m.extraction.output import Extracted
from yt8m.extraction.videos import VIDEOS_FILE, Video, find_videos, read_videos, video_id


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of five video files of different lengths, one of them without sound; change only copies of it."""
    folder = tmp_path_factory.mktemp("library") / "my videos"
    (folder / "süd").mkdir(parents=True)
    write_video(folder / "a.mp4", 3, sound=Sound())
    write_video(folder / "b.mkv", 5, sound=Sound("flac", seconds=2))
    write_video(folder / "süd" / "c d.webm", 2, codec="libvpx-vp9", sound=Sound("libopus", 48_000))
    write_video(folder / "süd" / "e.MOV", 4)
    write_video(folder / "süd" / "f.mp4", 12, sound=Sound())
    (folder / "notes.txt.bak").write_text("no video")
    return folder


def run(library: Path, out: Path, **settings: int) -> tuple[Extracted, list[str]]:
    messages: list[str] = []
    result = extract([library], out, PlainExtractor(), videos_per_shard=2, report=messages.append, **settings)
    return result, messages


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def by_name(videos: list[Video]) -> dict[str, Video]:
    return {Path(video.path).name: video for video in videos}


def test_frame_k_of_a_record_is_second_k_of_its_file(library: Path, tmp_path: Path) -> None:
    result, messages = run(library, tmp_path / "out")
    assert messages == []
    assert (result.num_new, result.num_known, result.failed) == (5, 0, [])
    catalog = index_folder(tmp_path / "out")
    assert [shard.name for shard in catalog.shards] == [f"videos000{number}.tfrecord" for number in range(3)]
    rows = dict(zip(catalog.video_ids, range(len(catalog)), strict=True))
    found = by_name(result.videos)
    assert {name: (video.seconds, video.note) for name, video in found.items()} == {
        "a.mp4": (3, ""),
        "b.mkv": (5, "no sound in the last 3 seconds"),
        "c d.webm": (2, ""),
        "e.MOV": (4, "no sound"),
        "f.mp4": (12, ""),
    }
    reader = FrameReader(catalog)
    for name, video in found.items():
        with_sound = {"b.mkv": 2, "e.MOV": 0}.get(name, video.seconds)
        frames = reader.read(rows[video.video_id], 0, video.seconds)
        np.testing.assert_array_equal(frames[:, 0], range(video.seconds))
        tones = [round(tone_hz(second) / 20) for second in range(with_sound)]
        np.testing.assert_allclose(frames[:with_sound, 1024].astype(int), tones, atol=1)
        assert (frames[with_sound:, 1024:] == 127).all()


def test_the_table_leads_from_ids_to_files(library: Path, tmp_path: Path) -> None:
    result, _ = run(library, tmp_path / "out")
    assert read_videos(tmp_path / "out") == result.videos
    with (tmp_path / "out" / VIDEOS_FILE).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == list(map(str, find_videos([library])))
    assert len({row["id"] for row in rows}) == 5
    for row in rows:
        assert row["id"] == video_id(Path(row["path"]))
        assert len(row["id"]) == 12
        assert row["id"].isalnum()


def test_known_videos_are_not_extracted_again(library: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(library, tmp_path / "library"))
    run(copy, tmp_path / "out")
    first = contents(tmp_path / "out")
    result, _ = run(copy, tmp_path / "out")
    assert (result.num_new, result.num_known) == (0, 5)
    assert contents(tmp_path / "out") == first
    # A renamed file is found by its content; a new one becomes a new shard.
    (copy / "a.mp4").rename(copy / "z.mp4")
    write_video(copy / "new.mp4", 1)
    result, _ = run(copy, tmp_path / "out")
    assert (result.num_new, result.num_known) == (1, 4)
    found = by_name(result.videos)
    assert found["new.mp4"].shard == "videos0003.tfrecord"
    assert found["z.mp4"].shard == "videos0000.tfrecord"
    assert len(index_folder(tmp_path / "out")) == 6


def test_files_of_the_same_content_are_one_video(library: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(library, tmp_path / "library"))
    for name in ("a2.mp4", "z.mp4"):
        shutil.copy(copy / "a.mp4", copy / name)
    result, _ = run(copy, tmp_path / "out")
    assert result.num_new == 5
    found = by_name(result.videos)
    assert found["a2.mp4"].video_id == found["a.mp4"].video_id == found["z.mp4"].video_id
    assert found["z.mp4"].note == found["a2.mp4"].note == f"the same content as {copy / 'a.mp4'}"
    assert len(index_folder(tmp_path / "out")) == 5


def test_a_file_that_fails_is_listed_and_tried_again(library: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(library, tmp_path / "library"))
    good = (copy / "a.mp4").read_bytes()
    (copy / "a.mp4").write_bytes(b"no video")
    result, messages = run(copy, tmp_path / "out")
    assert [Path(video.path).name for video in result.failed] == ["a.mp4"]
    assert len(messages) == 1
    assert messages[0].startswith(f"{copy / 'a.mp4'}: Invalid data")
    assert result.num_new == 4
    (copy / "a.mp4").write_bytes(good)
    result, messages = run(copy, tmp_path / "out")
    assert (result.num_new, result.failed, messages) == (1, [], [])
    assert len(index_folder(tmp_path / "out")) == 5


def test_pipes_and_dangling_links_are_listed(library: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(library, tmp_path / "library"))
    os.mkfifo(copy / "pipe.mp4")
    (copy / "link.mp4").symlink_to(copy / "none.mp4")
    (copy / "other.mp4").symlink_to(copy / "süd")
    result, messages = run(copy, tmp_path / "out")
    assert result.num_new == 5
    assert sorted(message.removeprefix(f"{copy}/") for message in messages) == [
        "link.mp4: cannot be read (No such file or directory)",
        "other.mp4: is not a file",
        "pipe.mp4: is not a file",
    ]


class KilledError(Exception):
    """Stands for a kill."""


def test_an_interrupted_extraction_ends_with_the_same_bytes(library: Path, tmp_path: Path) -> None:
    run(library, tmp_path / "whole")
    for after in (2, 4, 9, 13, 20):

        class Dying(PlainExtractor):
            def rgb(self, frames: np.ndarray, after: int = after) -> np.ndarray:
                if self.num_frames + len(frames) > after:
                    raise KilledError
                return super().rgb(frames)

        out = tmp_path / f"killed-{after}"
        with pytest.raises(KilledError):
            extract([library], out, Dying(), videos_per_shard=2)
        extractor = PlainExtractor()
        extract([library], out, extractor, videos_per_shard=2)
        assert extractor.num_frames < 26 or after == 2
        assert contents(out) == contents(tmp_path / "whole")


def test_other_settings_need_another_folder(library: Path, tmp_path: Path) -> None:
    run(library, tmp_path / "out", max_seconds=2)
    assert [video.seconds for video in read_videos(tmp_path / "out")] == [2] * 5
    with pytest.raises(UsageError, match="out: was extracted with max_seconds 2, not None; give the same, or another"):
        run(library, tmp_path / "out")


@pytest.mark.parametrize("num_decoders", [1, 4])
def test_any_number_of_decoders_gives_the_same_bytes(library: Path, tmp_path: Path, num_decoders: int) -> None:
    run(library, tmp_path / "two")
    run(library, tmp_path / "other", num_decoders=num_decoders)
    assert contents(tmp_path / "two") == contents(tmp_path / "other")


def test_inputs_may_be_lists(library: Path, tmp_path: Path) -> None:
    (library.parent / "some.txt").write_text("my videos/a.mp4\nmy videos/süd\n")
    found = find_videos([library.parent / "some.txt", library / "b.mkv", library / "b.mkv"])
    assert found == find_videos([library])
    with pytest.raises(UsageError, match="there is no such file or folder"):
        find_videos([library / "none.mp4"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="empty: contains no video files"):
        find_videos([tmp_path / "empty"])
