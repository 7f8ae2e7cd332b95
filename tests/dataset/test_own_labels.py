"""Own labels and ratings beside shards: added to those of the records, checked like them, and part of the catalog."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from tests.support.command import refused, succeeds
from tests.support.rows import labels_of, ratings_of
from tests.support.tiny_shards import TinyVideo, random_videos, write_shards
from yt8m.dataset.catalog import Catalog, OutdatedError
from yt8m.dataset.indexing import current_catalog, index_and_save, index_folder, load_or_index
from yt8m.dataset.labels import label_mask, rated_segments
from yt8m.dataset.problems import REPORT_NAME, Oddity
from yt8m.dataset.verification import changes
from yt8m.errors import ShardError, UsageError
from yt8m.extraction.videos import Video, write_videos
from yt8m.vocabulary import Vocabulary


def video(video_id: str, labels: tuple[int, ...] = (), ratings: tuple[tuple[int, int, float], ...] = ()) -> TinyVideo:
    return TinyVideo(video_id, np.full((20, 1152), 7, np.uint8), labels, ratings)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    videos = [video("aaaa"), video("bbbb", (3, 9)), video("cccc", (3,), ((3, 0, 1.0), (3, 5, 0.0))), video("dddd")]
    write_shards(tmp_path, videos)
    return tmp_path


def report(folder: Path) -> list[tuple[str, str, str]]:
    with (folder / REPORT_NAME).open(newline="", encoding="utf-8") as file:
        return [(row["shard"], row["kind"], row["found"]) for row in csv.DictReader(file)]


def everything(catalog: Catalog) -> dict[str, tuple[list[int], list[list[int]]]]:
    return {
        name: (labels_of(catalog, row).tolist(), [column.tolist() for column in ratings_of(catalog, row)])
        for row, name in enumerate(catalog.video_ids)
    }


def test_labels_and_ratings_are_added_to_those_of_the_records(folder: Path) -> None:
    (folder / "labels.csv").write_text("label,video,by\n5,aaaa,me\n1,bbbb,me\n3,bbbb,me\n")
    (folder / "ratings.csv").write_text("video,label,start,score\ncccc,9,5,1\ncccc,2,0,0\naaaa,5,15,1.0\naaaa,5,10,0\n")
    catalog = index_and_save(folder)
    none: list[list[int]] = [[], [], []]
    assert everything(catalog) == everything(Catalog.load(folder)) == {
        "aaaa": ([5], [[5, 5], [10, 15], [0, 1]]),
        "bbbb": ([1, 3, 9], none),
        "cccc": ([3], [[2, 3, 3, 9], [0, 0, 5, 5], [0, 1, 0, 1]]),
        "dddd": ([], none),
    }  # fmt: skip
    assert catalog.oddities == {Oddity.NO_LABELS: 1}
    assert not (folder / REPORT_NAME).exists()


def test_rows_that_cannot_be_used_are_reported_and_the_others_are_used(folder: Path) -> None:
    (folder / "labels.csv").write_text(
        "video,label\naaaa,5\naaaa,5\naaaa,dog\nzzzz,5\naaaa,-1\naaaa,1000000\naaaa\n,5\ndddd,999999\n"
    )
    (folder / "ratings.csv").write_text(
        "video,label,start,score\n"
        "aaaa,5,0,1\naaaa,5,0,1\naaaa,5,5,1\naaaa,5,5,0\naaaa,5,20,1\naaaa,5,7,1\naaaa,5,10,0.5\naaaa,5,x,1\naaaa,5,10,nan\n"
        "cccc,3,5,1\ncccc,3,0,1\naaaa,5,10,\ncccc,1000000,0,1\n"
    )
    catalog = index_and_save(folder)
    found = everything(catalog)
    assert found["aaaa"] == ([5], [[5], [0], [1]])
    assert found["dddd"][0] == [999_999]
    # The record has 0 for the second segment, and the file 1; they agree on the first.
    assert found["cccc"] == ([3], [[3], [0], [1]])
    assert catalog.oddities == {
        Oddity.LABELS_REPEATED: 1, Oddity.LABELS_UNKNOWN: 1, Oddity.RATINGS_OUTSIDE: 1, Oddity.RATINGS_OFF_GRID: 1,
        Oddity.RATINGS_UNKNOWN: 1, Oddity.RATINGS_SCORE: 1, Oddity.RATINGS_REPEATED: 2, Oddity.RATINGS_CONTRADICTORY: 4,
        Oddity.ROWS_UNREADABLE: 6, Oddity.ROWS_OF_OTHERS: 2,
    }  # fmt: skip
    assert report(folder) == [
        *(("labels.csv", "oddity", found) for found in [
            "line 4: expected a whole number as label, found 'dog'", "line 5: no video, or several, 'zzzz'",
            "line 6: expected a whole number as label, found '-1'", "line 8: expected a whole number as label, found ''",
            "line 9: no video, or several, ''", "line 3: the label 5 again", "line 7: the label 1000000, above 999,999",
        ]),
        *(("ratings.csv", "oddity", found) for found in [
            "line 9: expected a whole number as start, found 'x'", "line 10: expected 0 or 1 as score, found 'nan'",
            "line 13: expected 0 or 1 as score, found ''",
            "line 6: a rating of label 5 at second 20 of a video of 20 frames",
            "line 7: a rating of label 5 at second 7, which is not a multiple of 5",
            "line 8: a rating of label 5 at second 10 is 0.5, neither 0 nor 1",
            "line 3: 2 ratings of label 5 at second 0 are equal",
            "line 5: 2 ratings of label 5 at second 5 contradict each other",
            "line 14: a rating of label 1000000 at second 0, and the vocabulary has no such label",
            "line 12: 2 ratings of label 3 at second 0 are equal",
            "line 11: 2 ratings of label 3 at second 5 contradict each other",
        ]),
    ]  # fmt: skip
    with pytest.raises(ShardError, match=r"labels\.csv: line 4: expected a whole number"):
        index_folder(folder, strict=True)
    shown = succeeds("index", folder)
    assert "rows of labels.csv and ratings.csv that are none (dropped): 6" in shown.out


def test_many_ratings_equal_those_of_a_plain_loop(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    videos = random_videos(9, num_frames=(60, 60), ratings_per_video=8)
    write_shards(tmp_path, videos, 3)
    expected: dict[str, dict[tuple[int, int], set[int]]] = {}
    for given in videos:
        expected[given.id] = {}
        for label, start, score in given.ratings:
            expected[given.id].setdefault((start, label), set()).add(int(score))
    lines = ["video,label,start,score"]
    for _ in range(300):
        name, label = f"{generator.integers(9):04d}", int(generator.integers(20))
        start, score = 5 * int(generator.integers(12)), int(generator.integers(2))
        lines.append(f"{name},{label},{start},{score}")
        expected[name].setdefault((start, label), set()).add(score)
    (tmp_path / "ratings.csv").write_text("\n".join(lines))
    found = everything(index_folder(tmp_path))
    for name, ratings in expected.items():
        kept = sorted((start, label, *values) for (start, label), values in ratings.items() if len(values) == 1)
        labels, starts, values = found[name][1]
        assert list(zip(starts, labels, values, strict=True)) == kept


def test_videos_may_be_named_by_path_or_file_name(folder: Path) -> None:
    write_videos(folder, [
        Video("aaaa", "/my videos/a.mp4", 1, 1, 20, "tiny0000.tfrecord"),
        Video("bbbb", "/my videos/x/same.mp4", 1, 1, 20, "tiny0000.tfrecord"),
        Video("cccc", "/my videos/y/same.mp4", 1, 1, 20, "tiny0001.tfrecord"),
        Video("", "/broken/a.mp4", 1, 1, note="damaged"),
    ])  # fmt: skip
    (folder / "labels.csv").write_text(
        'video,label\na.mp4,11\n/my videos/x/same.mp4,12\nsame.mp4,13\ndddd,14\n"/my videos/a.mp4",15\n', "utf-8-sig"
    )
    catalog = index_and_save(folder)
    assert {name: labels for name, (labels, _) in everything(catalog).items()} == {
        "aaaa": [11, 15], "bbbb": [3, 9, 12], "cccc": [3], "dddd": [14],
    }  # fmt: skip
    assert report(folder) == [("labels.csv", "oddity", "line 4: no video, or several, 'same.mp4'")]
    # A renamed video has another path, although the shards have not changed.
    write_videos(folder, [Video("aaaa", "/my videos/b.mp4", 1, 1, 20, "tiny0000.tfrecord")])
    assert current_catalog(folder) is None


def test_a_catalog_is_current_only_with_the_same_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = index_and_save(folder)
    assert plain.own_labels == ""
    (folder / "labels.csv").write_text("video,label\naaaa,5\n")
    with pytest.raises(OutdatedError, match="has other labels or ratings than when it was indexed"):
        plain.refreshed()
    labeled = load_or_index(folder)
    assert labels_of(labeled, 0).tolist() == [5]
    assert labeled.digest != plain.digest
    loaded = current_catalog(folder)
    assert loaded is not None
    assert (loaded.digest, loaded.own_labels) == (labeled.digest, labeled.own_labels)
    assert changes(loaded) == []
    # The same size and time of modification, other bytes.
    status = (folder / "labels.csv").stat()
    (folder / "labels.csv").write_text("video,label\naaaa,6\n")
    os.utime(folder / "labels.csv", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert [str(change) for change in changes(loaded)] == [
        f"{folder}: has other labels or ratings than when it was indexed."
    ]
    assert labels_of(load_or_index(folder), 0).tolist() == [6]
    # Another order of the same rows is the same data.
    (folder / "labels.csv").write_text("video,label\nbbbb,1\naaaa,6\n")
    first = load_or_index(folder).digest
    (folder / "labels.csv").write_text("video,label\naaaa,6\nbbbb,1\n")
    assert load_or_index(folder).digest == first
    (folder / "ratings.csv").write_text("video,label,start,score\naaaa,6,0,1\n")
    assert load_or_index(folder).digest != first
    for name in ("labels.csv", "ratings.csv"):
        (folder / name).unlink()
    assert load_or_index(folder).digest == plain.digest
    # An outdated catalog is no fault, so nothing is said about it.
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("labels.csv", b"", "expected a header with the columns video, label."),
        ("labels.csv", b"video;label\naaaa;5\n", "expected a header with the columns video, label."),
        ("ratings.csv", b"video,label\naaaa,5\n", "expected a header with the columns video, label, start, score."),
        ("ratings.csv", b"video,label,start,score\n\xff,5,0,1\n", "cannot be read as a CSV file ("),
        ("labels.csv", b'video,label\n"' + b"a" * 200_000 + b'",5\n', "cannot be read as a CSV file ("),
    ],
)
def test_files_that_are_no_tables_are_refused(folder: Path, name: str, content: bytes, expected: str) -> None:
    (folder / name).write_bytes(content)
    assert refused(2, "index", folder).startswith(f"{folder / name}: {expected}")
    with pytest.raises(UsageError):
        index_folder(folder)


def test_an_own_vocabulary_is_used_whatever_its_ids(folder: Path) -> None:
    (folder / "labels.csv").write_text("video,label\naaaa,70000\ndddd,4000\n")
    (folder / "ratings.csv").write_text("video,label,start,score\ndddd,70000,5,1\n")
    vocabulary = Vocabulary(np.array([70_000, 4000], np.int64), ("surfing", "dog"))
    catalog = index_folder(folder)
    mask = label_mask(catalog, vocabulary, np.arange(4))
    assert mask.tolist() == [[True, False], [False, False], [False, False], [False, True]]
    ratings = rated_segments(catalog, vocabulary)
    assert (ratings.rows.tolist(), ratings.class_indices.tolist(), ratings.start_seconds.tolist()) == ([3], [0], [5])
