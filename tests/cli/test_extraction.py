"""The commands extract and locate on video files, with networks that need no weights."""

import csv
import json
from pathlib import Path

import pytest

from tests.support.command import refused, succeeds, yt8m
from tests.support.extractors import PlainExtractor
from tests.support.tiny_run import FinishedRun
from tests.support.videos import Sound, second_of, write_video
from yt8m.dataset.catalog import Catalog
from yt8m.extraction.decode import Frames, decode


@pytest.fixture
def videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two videos; the networks are replaced, and the cache is in a folder of the test."""
    monkeypatch.setattr("yt8m.cli.extraction.load_extractor", lambda accelerator, weights: PlainExtractor())
    monkeypatch.setattr("yt8m.cli.prediction.load_extractor", lambda accelerator, weights: PlainExtractor())
    monkeypatch.setenv("YT8M_VIDEOS", str(tmp_path / "cache"))
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "a.mp4", 3, sound=Sound())
    write_video(tmp_path / "videos" / "b.mkv", 62, rate=5, sound=Sound("flac"))
    return tmp_path / "videos"


def test_extract_writes_shards_a_catalog_and_a_table(videos: Path, out: Path) -> None:
    shown = succeeds("extract", videos, "--out", out)
    assert (
        shown.out
        == f"{out}: 2 new videos, 0 known before, 1 min 5 s of video in all\n{out}/videos.csv: ids, paths and lengths\n"
    )
    assert sorted(path.name for path in out.iterdir()) == [
        "catalog.parquet", "extraction.yaml", "videos.csv", "videos0000.tfrecord",
    ]  # fmt: skip
    catalog = Catalog.load(out)
    with (out / "videos.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == list(catalog.video_ids)
    assert [int(row["seconds"]) for row in rows] == catalog.num_frames.tolist() == [3, 62]
    again = json.loads(succeeds("extract", videos, "--out", out, "--json").out)
    assert (again["new"], again["known"], len(again["videos"])) == (0, 2, 2)


def test_extract_lists_files_that_fail(videos: Path, out: Path) -> None:
    (videos / "c.mp4").write_text("no video")
    outcome = yt8m("extract", videos, "--out", out)
    assert outcome.status == 1
    assert "c.mp4: Invalid data found" in outcome.err
    assert outcome.err.endswith(f"yt8m: {out}: 1 file could not be extracted, as listed above and in videos.csv.\n")
    assert outcome.out.startswith(f"{out}: 2 new videos")


def test_locate_shows_the_timeline_of_a_video_file(videos: Path, finished_run: FinishedRun, tmp_path: Path) -> None:
    options = ["--run", finished_run.out, "--threshold", 0, "--top", 2]
    chapters = ["--chapters", tmp_path / "a.vtt", "--clips", tmp_path / "clips"]
    shown = succeeds("locate", videos / "b.mkv", *options, *chapters)
    assert ", 1:02\n" in shown.out
    assert (tmp_path / "a.vtt").read_text().count("00:00:00.000 --> 00:01:02.000") == 2
    clips = sorted((tmp_path / "clips").iterdir())
    assert len(clips) == 2
    frames = [result.values for result in decode(clips[0], 64) if isinstance(result, Frames)]
    assert [second_of(frame) for chunk in frames for frame in chunk][:5] == [0, 1, 2, 3, 4]
    # The features are in the cache.
    monkeypatched = json.loads(succeeds("locate", videos / "b.mkv", *options, "--json").out)
    assert monkeypatched[0]["seconds"] == 62
    assert len(list((tmp_path / "cache" / "plain-0").glob("*.tfrecord"))) == 1


def test_bad_input_of_extract_and_locate(videos: Path, out: Path, finished_run: FinishedRun) -> None:
    assert refused(2, "extract", videos) == "yt8m extract needs videos and --out DIR, or --self-test DIR."
    assert refused(2, "extract", videos / "none", "--out", out) == f"{videos}/none: there is no such file or folder."
    (videos / "c.mp4").write_text("no video")
    assert refused(1, "locate", videos / "c.mp4", "--run", finished_run.out) == (
        f"{videos}/c.mp4: Invalid data found when processing input."
    )
    assert "--clips cuts moments out of a video file" in refused(
        2, "locate", "abcd", "--run", finished_run.out, "--clips", out
    )
