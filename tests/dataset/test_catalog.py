"""Catalogs: indexing, irregular ratings, reports, lists of shards, damage, and saving and loading."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.catalogs import assert_same
from tests.support.progress import RecordedProgress
from tests.support.rows import labels_of, ratings_of
from tests.support.tiny_shards import (
    Rating,
    TinyVideo,
    random_videos,
    write_records,
    write_shard,
    write_shards,
    write_video_level_shard,
)
from tests.support.wire import bytes_feature, entry, frame_list, packed_integers, record
from yt8m.dataset import indexing, problems
from yt8m.dataset.catalog import FILE_NAME, Catalog
from yt8m.dataset.indexing import index_and_save, index_folder, index_shard, load_or_index
from yt8m.dataset.layout import find_shards
from yt8m.dataset.problems import Oddity
from yt8m.errors import ShardError, UsageError, Yt8mError
from yt8m.shards.contents import ShardFile
from yt8m.shards.tfrecord import frame_record
from yt8m.shards.writer import encode_video

FRAMES = np.zeros((40, 1152), np.uint8)


def index_videos(folder: Path, *videos: TinyVideo) -> Catalog:
    write_shard(folder / "a.tfrecord", videos)
    return index_folder(folder)


def rated(*ratings: Rating, video_id: str = "abcd") -> TinyVideo:
    return TinyVideo(video_id, FRAMES, (1,), ratings)


def ratings_in(catalog: Catalog, row: int = 0) -> list[tuple[int, int, int]]:
    return list(zip(*(column.tolist() for column in ratings_of(catalog, row)), strict=True))


def test_rows_are_the_videos_in_shard_order(tmp_path: Path) -> None:
    videos = random_videos(9, seed=1, ratings_per_video=6)
    paths = write_shards(tmp_path, videos, num_shards=3)
    catalog = index_folder(tmp_path)
    assert len(catalog) == 9
    assert [catalog.id_of(row) for row in range(9)] == [video.id for video in videos]
    assert catalog.num_frames.tolist() == [len(video.frames) for video in videos]
    assert catalog.shard_index.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert catalog.record_number.tolist() == [0, 1, 2] * 3
    assert [catalog.shard_path(row) for row in (0, 4, 8)] == paths
    assert [info[:3] for info in catalog.shards] == [
        (path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths
    ]
    assert (catalog.oddities, catalog.problems, catalog.num_problems) == ({}, (), 0)
    for row, video in enumerate(videos):
        assert labels_of(catalog, row).tolist() == list(video.labels)
        in_order = sorted(video.ratings, key=lambda rating: (rating[1], rating[0]))
        assert ratings_in(catalog, row) == [(label, start, int(value)) for label, start, value in in_order]
        data = catalog.shard_path(row).read_bytes()
        offset = catalog.record_offset[row]
        assert data[offset : offset + catalog.record_length[row]] == video.encoded()
        for column, stride, span in (
            (catalog.rgb_offset, catalog.rgb_stride, slice(0, 1024)),
            (catalog.audio_offset, catalog.audio_stride, slice(1024, 1152)),
        ):
            last = column[row] + (len(video.frames) - 1) * stride[row]
            assert data[last : last + span.stop - span.start] == video.frames[-1, span].tobytes()


def test_shards_are_sorted_whatever_order_the_file_system_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path, random_videos(6), num_shards=3)
    expected = index_folder(tmp_path)
    original = Path.glob

    def backwards(self: Path, pattern: str) -> Iterator[Path]:
        return iter(sorted(original(self, pattern), reverse=True))

    monkeypatch.setattr(Path, "glob", backwards)
    assert [path.name for path in find_shards(tmp_path)] == [f"tiny000{i}.tfrecord" for i in range(3)]
    assert_same(index_folder(tmp_path), expected)


def test_a_saved_catalog_is_loaded_unchanged(tmp_path: Path) -> None:
    videos = random_videos(5, ratings_per_video=3)
    videos += [TinyVideo("Ünïcödé", FRAMES), TinyVideo("x", FRAMES, (5, 5000))]
    write_shards(tmp_path, videos)
    write_records(tmp_path / "zz.tfrecord", [b"garbage"])
    catalog = index_folder(tmp_path)
    assert catalog.oddities
    assert catalog.problems
    assert catalog.save() == tmp_path / "catalog.parquet"
    assert_same(Catalog.load(tmp_path), catalog)
    assert sorted(path.name for path in tmp_path.iterdir())[0] == "catalog.parquet"
    row = pq.read_table(tmp_path / "catalog.parquet").slice(5, 1).to_pylist()[0]
    assert (row["ids"], row["num_frames"], row["label_values"]) == ("Ünïcödé", 40, [])


def test_a_saved_catalog_without_labels_and_ratings_is_loaded_unchanged(tmp_path: Path) -> None:
    write_shards(tmp_path, random_videos(3, labeled=False))
    catalog = index_folder(tmp_path)
    assert catalog.oddities == {Oddity.NO_LABELS: 3}
    catalog.save()
    assert_same(Catalog.load(tmp_path), catalog)


def test_progress_counts_bytes(tmp_path: Path) -> None:
    sizes = [path.stat().st_size for path in write_shards(tmp_path, random_videos(4))]
    progress = RecordedProgress()
    index_folder(tmp_path, progress=progress)
    assert progress.reports == {f"index {tmp_path}": [(sizes[0], sum(sizes), ""), (sum(sizes), sum(sizes), "")]}
    assert progress.units == {f"index {tmp_path}": "bytes"}


# --- Irregular videos -------------------------------------------------------------------------------------------------


def test_invalid_ratings_are_dropped_and_the_video_is_kept(tmp_path: Path) -> None:
    catalog = index_videos(
        tmp_path,
        rated(
            (3, 40, 1.0),  # the video has 40 frames
            (3, -5, 1.0),
            (3, 500, 1.0),
            (3, 12, 1.0),
            (3862, 10, 1.0),
            (-1, 10, 1.0),
            (3, 10, 0.5),
            (3, 15, float("nan")),
            (7, 20, 0.0),
            (3, 20, 1.0),
            (3, 20, 1.0),
            (3, 20, 1.0),
            (9, 5, 1.0),
            (9, 5, 0.0),
            (9, 5, 1.0),
            (3, 35, 1.0),
        ),
    )
    assert ratings_in(catalog) == [(3, 20, 1), (7, 20, 0), (3, 35, 1)]
    assert catalog.oddities == {
        Oddity.RATINGS_OUTSIDE: 3,
        Oddity.RATINGS_OFF_GRID: 1,
        Oddity.RATINGS_UNKNOWN: 2,
        Oddity.RATINGS_SCORE: 2,
        Oddity.RATINGS_REPEATED: 2,
        Oddity.RATINGS_CONTRADICTORY: 3,
    }
    assert not catalog.problems


def with_lists(labels: list[int], starts: list[int], ends: list[int], scores: list[float]) -> bytes:
    context = entry("id", bytes_feature(b"abcd")) + entry("labels", packed_integers(1))
    context += entry("segment_labels", packed_integers(*labels))
    context += entry("segment_start_times", packed_integers(*starts))
    context += entry("segment_end_times", packed_integers(*ends)) if ends else b""
    encoded_scores = np.array(scores, "<f4").tobytes()
    context += entry(
        "segment_scores", b"\x12" + bytes([len(encoded_scores) + 2, 10, len(encoded_scores)]) + encoded_scores
    )
    lists = entry("rgb", frame_list([bytes(1024)] * 30)) + entry("audio", frame_list([bytes(128)] * 30))
    return record(context, lists)


@pytest.mark.parametrize(
    ("payload", "oddities", "ratings"),
    [
        (with_lists([1, 2], [5, 10], [10, 15], [1.0, 0.0]), {}, [(1, 5, 1), (2, 10, 0)]),
        (with_lists([1, 2], [5, 10], [], [1.0, 0.0]), {}, [(1, 5, 1), (2, 10, 0)]),
        (with_lists([1, 2], [5, 10], [9, 15], [1.0, 0.0]), {Oddity.RATINGS_END: 1}, [(1, 5, 1), (2, 10, 0)]),
        (with_lists([1], [5, 10], [10, 15], [1.0, 0.0]), {Oddity.RATINGS_UNPAIRED: 1}, []),
        (with_lists([1, 2], [5, 10], [10, 15], [1.0]), {Oddity.RATINGS_UNPAIRED: 1}, []),
        (with_lists([1, 2], [5, 10], [10], [1.0, 1.0]), {Oddity.RATINGS_UNPAIRED: 1}, []),
        (with_lists([], [5], [10], [1.0]), {Oddity.RATINGS_UNPAIRED: 1}, []),
    ],
)
def test_ratings_whose_lists_differ_in_length_are_dropped(
    tmp_path: Path, payload: bytes, oddities: dict[str, int], ratings: list[tuple[int, int, int]]
) -> None:
    write_records(tmp_path / "a.tfrecord", [payload])
    catalog = index_folder(tmp_path)
    assert catalog.oddities == oddities
    assert ratings_in(catalog) == ratings


def test_unknown_and_repeated_labels_are_dropped(tmp_path: Path) -> None:
    write_shard(
        tmp_path / "a.tfrecord", [TinyVideo("a", FRAMES, (9, 3, 3862, 9, -1, 9, 3861)), TinyVideo("b", FRAMES, (4000,))]
    )
    catalog = index_folder(tmp_path)
    assert labels_of(catalog, 0).tolist() == [3, 9, 3861]
    assert labels_of(catalog, 1).tolist() == []
    assert catalog.oddities == {Oddity.LABELS_UNKNOWN: 3, Oddity.LABELS_REPEATED: 2, Oddity.NO_LABELS: 1}
    assert labels_of(index_folder(tmp_path, vocabulary_size=5), 1).tolist() == []
    assert labels_of(index_folder(tmp_path, vocabulary_size=5), 0).tolist() == [3]


def test_the_first_video_of_a_repeated_id_is_kept(tmp_path: Path) -> None:
    first = TinyVideo("same", FRAMES[:20], (1, 2), ((1, 5, 1.0), (2, 5, 0.0)))
    again = TinyVideo("same", FRAMES[:30], (3,), ((3, 10, 1.0),))
    other = TinyVideo("other", FRAMES[:25], (4,), ((4, 15, 1.0),))
    write_shard(tmp_path / "a.tfrecord", [first, again])
    write_shard(tmp_path / "b.tfrecord", [again, other])
    catalog = index_folder(tmp_path)
    assert [catalog.id_of(row) for row in range(len(catalog))] == ["same", "other"]
    assert catalog.num_frames.tolist() == [20, 25]
    assert [labels_of(catalog, row).tolist() for row in (0, 1)] == [[1, 2], [4]]
    assert [ratings_in(catalog, row) for row in (0, 1)] == [[(1, 5, 1), (2, 5, 0)], [(4, 15, 1)]]
    assert catalog.oddities == {Oddity.IDS_REPEATED: 2}


def test_the_number_of_frames_is_that_of_the_shorter_list(tmp_path: Path) -> None:
    lists = entry("rgb", frame_list([bytes(1024)] * 12)) + entry("audio", frame_list([bytes(128)] * 10))
    labels = entry("labels", packed_integers(1))
    write_records(tmp_path / "a.tfrecord", [record(entry("id", bytes_feature(b"abcd")) + labels, lists)])
    catalog = index_folder(tmp_path)
    assert catalog.num_frames.tolist() == [10]
    assert catalog.oddities == {Oddity.LENGTHS_DIFFER: 1}


# --- The report -------------------------------------------------------------------------------------------------------


def report_of(folder: Path) -> list[list[str]]:
    with (folder / "catalog_report.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["shard", "record", "byte", "kind", "found", "done"]
    return rows


def payload_starts(folder: Path) -> dict[tuple[str, int], int]:
    """First byte of the payload of each record, by a plain loop."""
    found = {}
    for path in folder.glob("*.tfrecord"):
        data, at, number = path.read_bytes(), 0, 0
        while at < len(data):
            found[path.name, number] = at + 12
            at, number = at + 16 + int.from_bytes(data[at : at + 8], "little"), number + 1
    return found


def test_the_report_lists_every_problem_with_its_record_and_byte(tmp_path: Path) -> None:
    lists = entry("rgb", frame_list([bytes(1024)] * 12)) + entry("audio", frame_list([bytes(128)] * 10))
    ratings = (
        (3, 40, 1.0), (3, 12, 1.0), (4000, 10, 1.0), (3, 10, 0.5), (3, 20, 1.0), (3, 20, 1.0), (9, 5, 1.0), (9, 5, 0.0),
    )  # fmt: skip
    payloads = [
        TinyVideo("a", FRAMES, (1, 1, 5000, -1), ratings).encoded(),
        record(entry("id", bytes_feature(b"b")) + entry("labels", packed_integers(1)), lists),
        b"\xff garbage",
        with_lists([1, 2], [5, 10], [10, 15], [1.0]),
        with_lists([1], [5], [9], [1.0]),
    ]
    write_records(tmp_path / "one.tfrecord", payloads)
    write_records(tmp_path / "two.tfrecord", [TinyVideo("a", FRAMES, (2,)).encoded(), TinyVideo("c", FRAMES).encoded()])
    (tmp_path / "zero.tfrecord").touch()
    with (tmp_path / "two.tfrecord").open("ab") as file:
        file.write(b"tail")
    size = (tmp_path / "two.tfrecord").stat().st_size
    # Two records of one.tfrecord have the id abcd, so the second is dropped.
    catalog = index_and_save(tmp_path)
    at = payload_starts(tmp_path)
    one, rows = "one.tfrecord", report_of(tmp_path)
    expected = [
        (one, 0, "oddity", "2 labels outside the vocabulary, the first 5000", "dropped"),
        (one, 0, "oddity", "1 repeated label", "kept once"),
        (one, 0, "oddity", "a rating of label 3 at second 40 of a video of 40 frames", "dropped"),
        (one, 0, "oddity", "a rating of label 3 at second 12, which is not a multiple of 5", "dropped"),
        (one, 0, "oddity", "a rating of label 4000 at second 10, and the vocabulary has no such label", "dropped"),
        (one, 0, "oddity", "a rating of label 3 at second 10 is 0.5, neither 0 nor 1", "dropped"),
        (one, 0, "oddity", "2 ratings of label 9 at second 5 contradict each other", "all dropped"),
        (one, 0, "oddity", "2 ratings of label 3 at second 20 are equal", "kept once"),
        (one, 1, "oddity", "12 rgb frames and 10 audio frames", "cut to the shorter"),
        (one, 2, "damage", "", "the record was skipped"),
        (one, 3, "oddity", "2 labels, 2 starts, 2 ends and 1 scores of ratings", "their ratings dropped"),
        (one, 4, "oddity", "a rating of label 1 at second 5 ends at second 9", "kept"),
        ("two.tfrecord", 2, "damage", "", "the rest of the shard was skipped"),
        ("zero.tfrecord", "", "damage", "the file is empty", "the shard was skipped"),
        (one, 4, "oddity", "the id 'abcd' was that of record 3 of one.tfrecord", "dropped"),
        ("two.tfrecord", 0, "oddity", "the id 'a' was that of record 0 of one.tfrecord", "dropped"),
    ]
    assert len(rows) == len(expected)
    for (shard, number, kind, found, done), row in zip(expected, rows, strict=True):
        assert (row[0], row[1], row[3], row[5]) == (shard, str(number), kind, done), row
        assert found in row[4]
        if kind == "oddity":
            assert int(row[2]) == at[shard, int(number)]
    garbage, tail = rows[9], rows[12]
    assert at[one, 2] <= int(garbage[2]) <= at[one, 3]
    assert (int(tail[2]), tail[4]) == (size - 4, "the shard ends inside a record's header (4 of 12 bytes)")
    assert catalog.num_problems == sum(row[3] == "damage" for row in rows) == 3
    counted = sum(count for oddity, count in catalog.oddities.items() if oddity != Oddity.NO_LABELS)
    # Unknown labels and contradictory ratings are counted individually and listed in one row.
    assert counted == sum(row[3] == "oddity" for row in rows) + 1 + 1


def test_a_folder_without_problems_has_no_report_and_an_old_report_is_removed(tmp_path: Path) -> None:
    path = write_records(tmp_path / "a.tfrecord", [random_videos(1)[0].encoded(), b"garbage"])
    index_and_save(tmp_path)
    assert len(report_of(tmp_path)) == 1
    write_shard(path, random_videos(2))
    index_and_save(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.tfrecord", "catalog.parquet"]


def test_the_report_lists_a_limited_number_of_problems_per_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "MAX_REPORTED", 5)
    monkeypatch.setattr(problems, "MAX_REPORTED", 5)
    for name in ("a", "b"):
        write_records(tmp_path / f"{name}.tfrecord", [b"garbage"] * 8)
    write_shard(tmp_path / "c.tfrecord", [TinyVideo("same", FRAMES, (1,))] * 9)
    index_and_save(tmp_path)
    rows = report_of(tmp_path)
    assert [row[0][:1] for row in rows] == ["a"] * 6 + ["b"] * 6 + ["c"] * 5 + [""]
    assert rows[5][4:] == ["3 more problems", "not listed"]
    assert rows[-1][4:] == ["3 more videos with such ids", "dropped"]


@pytest.mark.parametrize(
    ("payloads", "message"),
    [
        ([b"garbage"], r"a\.tfrecord, record 1, byte \d+: .*"),
        (
            [TinyVideo("x", FRAMES, (5000,)).encoded()],
            r"a\.tfrecord, record 1, byte \d+: 1 label outside the vocabulary",
        ),
        ([rated((3, 40, 1.0)).encoded()], r"a\.tfrecord, record 1, .*second 40 of a video of 40 frames\.$"),
        ([rated(), rated()], r"a\.tfrecord, record 2, byte \d+: the id 'abcd' was that of record 1 of a\.tfrecord\.$"),
    ],
)
def test_strict_indexing_raises_the_first_problem(tmp_path: Path, payloads: list[Any], message: str) -> None:
    given = [payload if isinstance(payload, bytes) else payload.encoded() for payload in payloads]
    write_records(tmp_path / "a.tfrecord", [random_videos(1)[0].encoded(), *given])
    with pytest.raises(ShardError, match=message):
        index_and_save(tmp_path, strict=True)
    write_records(tmp_path / "b.tfrecord", [b"more garbage"])
    with pytest.raises(ShardError):
        index_and_save(tmp_path, strict=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.tfrecord", "b.tfrecord"]
    assert len(index_and_save(tmp_path)) >= 1


def test_strict_indexing_accepts_videos_without_labels(tmp_path: Path) -> None:
    write_shards(tmp_path, random_videos(3, labeled=False))
    assert len(index_and_save(tmp_path, strict=True)) == 3


# --- Lists of shards --------------------------------------------------------------------------------------------------


def test_a_list_in_the_folder_selects_its_shards(tmp_path: Path) -> None:
    write_shards(tmp_path, random_videos(6), num_shards=3)
    whole = index_and_save(tmp_path)
    (tmp_path / "shards.txt").write_text(
        "# those of 2019\n\ntiny0002.tfrecord\n  tiny0000.tfrecord  \ntiny0002.tfrecord\n"
    )
    assert not whole.is_current()
    catalog = load_or_index(tmp_path)
    assert [shard.name for shard in catalog.shards] == ["tiny0000.tfrecord", "tiny0002.tfrecord"]
    assert len(catalog) == 4
    assert catalog.is_current()
    assert catalog.digest != whole.digest
    (tmp_path / "shards.txt").unlink()
    assert not catalog.is_current()


def test_a_list_in_the_dataset_folder_selects_shards_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, valid = tmp_path / "video/train", tmp_path / "video/valid"
    for part in (train, valid):
        write_shards(part, random_videos(6), num_shards=3)
    (tmp_path / "shards.txt").write_text("video/train/tiny0001.tfrecord\nvideo/train/tiny0000.tfrecord\n")
    assert [path.name for path in find_shards(train)] == ["tiny0000.tfrecord", "tiny0001.tfrecord"]
    assert len(find_shards(valid)) == 3
    monkeypatch.chdir(train)
    assert len(find_shards(Path())) == 2
    # A list in the folder of the shards takes precedence.
    (train / "shards.txt").write_text("tiny0002.tfrecord\n")
    assert [path.name for path in find_shards(train)] == ["tiny0002.tfrecord"]


def test_missing_shards_of_a_list_are_an_error_that_names_them(tmp_path: Path) -> None:
    write_shards(tmp_path, random_videos(6), num_shards=3)
    catalog = index_and_save(tmp_path)
    names = [f"tiny{number:04d}.tfrecord" for number in range(10)]
    (tmp_path / "shards.txt").write_text("\n".join(names))
    with pytest.raises(UsageError) as raised:
        load_or_index(tmp_path)
    assert str(raised.value) == (
        f"{tmp_path / 'shards.txt'}: 7 of 10 listed shards are not in {tmp_path} "
        f"({', '.join(names[3:8])}, ...); download them, or remove them from the list."
    )
    assert not catalog.is_current()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# nothing\n\n", "contains no names; expected a list of shards, one per line"),
        ("../tiny0000.tfrecord", r"'../tiny0000.tfrecord' is no shard; expected names such as"),
        ("/etc/passwd", "'/etc/passwd' is no shard"),
        ("tiny0000.csv", "'tiny0000.csv' is no shard"),
        (b"\xff\xfe", "cannot be read as a list of shards"),
    ],
)
def test_invalid_lists_of_shards_are_refused(tmp_path: Path, text: str | bytes, message: str) -> None:
    write_shards(tmp_path, random_videos(2))
    (tmp_path / "shards.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError, match=message):
        find_shards(tmp_path)


def test_a_list_in_the_dataset_folder_with_another_path_is_refused(tmp_path: Path) -> None:
    write_shards(tmp_path / "segment/test", random_videos(2))
    (tmp_path / "shards.txt").write_text("holiday/a.tfrecord")
    with pytest.raises(UsageError, match=r"'holiday/a.tfrecord' is no shard; expected paths such as video/train/"):
        find_shards(tmp_path / "segment/test")


# --- Damage -----------------------------------------------------------------------------------------------------------

GOOD = [frame_record(video.encoded()) for video in random_videos(3, num_frames=(2, 3))]


def test_records_before_a_truncation_are_kept(tmp_path: Path) -> None:
    """Truncate at many bytes of the first kilobyte and of the middle of the last record, and at its last 20 bytes."""
    path = tmp_path / "a.tfrecord"
    whole = b"".join(GOOD)
    start = len(whole) - len(GOOD[2])
    for length in [
        *range(start + 1, start + 1000, 7),
        *range(start + 1000, len(whole) - 20, 97),
        *range(len(whole) - 20, len(whole)),
    ]:
        path.write_bytes(whole[:length])
        catalog = index_folder(tmp_path)
        assert len(catalog) == 2
        assert catalog.num_problems == 1
        assert f"a.tfrecord, record 2, byte {start}: the shard ends inside a record" in catalog.problems[0]
        assert catalog.problems[0].endswith("; the rest of the shard was skipped.")


@settings(max_examples=150, deadline=None)
@given(bit=st.integers(0, 8 * len(GOOD[1]) - 1))
def test_a_flipped_bit_skips_one_record_or_the_rest_of_the_shard(
    tmp_path_factory: pytest.TempPathFactory, bit: int
) -> None:
    folder = tmp_path_factory.mktemp("flipped")
    data = bytearray(b"".join(GOOD))
    at = len(GOOD[0]) + bit // 8
    data[at] ^= 1 << bit % 8
    (folder / "a.tfrecord").write_bytes(data)
    catalog = index_folder(folder)
    in_length = bit // 8 < 12
    assert catalog.record_number.tolist() == ([0] if in_length else [0, 2])
    assert catalog.num_problems == 1
    assert "record 1" in catalog.problems[0]
    assert catalog.problems[0].endswith(
        "the rest of the shard was skipped." if in_length else "the record was skipped."
    )
    shutil.rmtree(folder)


def test_damaged_records_are_skipped_and_reported_with_their_place(tmp_path: Path) -> None:
    good = random_videos(2, num_frames=(3, 3))
    no_frames = record(entry("id", bytes_feature(b"x")), entry("motion", frame_list([bytes(1024)])))
    video_level = write_video_level_shard(tmp_path / "other" / "v.tfrecord", 1).read_bytes()[12:-4]
    payloads = [
        b"\xff garbage",
        good[0].encoded(),
        no_frames,
        encode_video("zero", FRAMES[:0]),
        video_level,
        good[1].encoded(),
    ]
    write_records(tmp_path / "a.tfrecord", payloads)
    (tmp_path / "b.tfrecord").touch()
    catalog = index_folder(tmp_path)
    assert catalog.record_number.tolist() == [1, 5]
    reasons = [
        "beyond|breaks off|wire type",
        "has no rgb or audio",
        "has no rgb or audio",
        "video-level shard",
        "the file is empty",
    ]
    assert catalog.num_problems == len(catalog.problems) == len(reasons)
    for problem, number, reason in zip(catalog.problems, (0, 2, 3, 4, None), reasons, strict=True):
        assert any(part in problem for part in reason.split("|"))
        if number is not None:
            assert f"a.tfrecord, record {number}, byte " in problem
            assert problem.endswith("; the record was skipped.")
    assert catalog.problems[-1] == f"{tmp_path / 'b.tfrecord'}: the file is empty; the shard was skipped."


def test_checksums_are_verified_by_default(tmp_path: Path) -> None:
    data = bytearray(GOOD[0] + GOOD[1])
    data[-100] ^= 1
    (tmp_path / "a.tfrecord").write_bytes(data)
    assert len(index_folder(tmp_path)) == 1
    assert len(index_folder(tmp_path, verify=False)) == 2


def test_a_catalog_lists_a_limited_number_of_problems_and_counts_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "MAX_PROBLEMS", 5)
    for name in ("a", "b"):
        write_records(tmp_path / f"{name}.tfrecord", [b"garbage"] * 4)
    write_shard(tmp_path / "c.tfrecord", random_videos(1))
    catalog = index_folder(tmp_path)
    assert (len(catalog.problems), catalog.num_problems) == (5, 8)


def test_folders_without_usable_videos_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no such folder"):
        index_folder(tmp_path / "missing")
    with pytest.raises(UsageError, match="contains no shards"):
        index_folder(tmp_path)
    (tmp_path / ".a.0123.tfrecord").touch()
    with pytest.raises(UsageError, match="contains no shards"):
        index_folder(tmp_path)
    path = write_records(tmp_path / "a.tfrecord", [b"garbage"])
    with pytest.raises(UsageError, match="is a file; expected a folder"):
        index_folder(path)
    with pytest.raises(ShardError, match=r"no usable video in 1 shard: .*a.tfrecord, record 0"):
        index_folder(tmp_path)


def test_a_shard_of_another_dataset_is_an_error(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tfrecord", random_videos(1))
    write_video_level_shard(tmp_path / "b.tfrecord", 3)
    with pytest.raises(ShardError, match=r"b.tfrecord, record 0, byte 12: this is a video-level shard .* 2/frame"):
        index_folder(tmp_path)


def test_real_shards_of_another_dataset_are_an_error(shared_data: Path) -> None:
    with pytest.raises(ShardError, match=r"rm.tfrecord, record 0, byte 12: this is an AudioSet shard"):
        index_folder(shared_data / "audioset_frame_level")
    with pytest.raises(ShardError, match=r"validate0000.tfrecord, record 0, byte 12: this is a video-level shard"):
        index_folder(shared_data / "yt8m_video_level")


def test_a_real_video_is_indexed(shared_data: Path) -> None:
    catalog = index_folder(shared_data / "yt8m_frame_level")
    assert [catalog.id_of(row) for row in range(len(catalog))] == ["SjJ3"]
    assert catalog.num_frames.tolist() == [170]
    assert labels_of(catalog, 0).tolist() == [11]
    assert (catalog.oddities, catalog.problems) == ({}, ())


# --- Saved catalogs ---------------------------------------------------------------------------------------------------


def test_missing_foreign_and_damaged_catalogs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no such folder"):
        Catalog.load(tmp_path / "missing")
    with pytest.raises(UsageError, match=r"has no catalog.parquet; run `yt8m index .*`"):
        Catalog.load(tmp_path)
    path = tmp_path / "catalog.parquet"
    write_shards(tmp_path, random_videos(2))
    index_folder(tmp_path).save()
    whole = path.read_bytes()
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)
    foreign = path.read_bytes()
    for content in (b"", b"some text", whole[:-10], whole[: len(whole) // 2], foreign):
        path.write_bytes(content)
        with pytest.raises(Yt8mError, match="is not a catalog, or is damaged; run `yt8m index"):
            Catalog.load(tmp_path)


def test_a_catalog_of_another_format_is_refused(tmp_path: Path) -> None:
    write_shards(tmp_path, random_videos(2))
    index_and_save(tmp_path)
    for number in (0, 3):
        with_metadata(tmp_path, {"format": number})
        with pytest.raises(
            Yt8mError, match=f"format {number}, and this version reads formats 1 and 2; run `yt8m index"
        ):
            Catalog.load(tmp_path)
        assert len(load_or_index(tmp_path)) == 2
        assert len(Catalog.load(tmp_path)) == 2


def with_metadata(folder: Path, changes: dict[str, Any]) -> None:
    """Write other metadata into the catalog of a folder."""
    table = pq.read_table(folder / FILE_NAME)
    about = json.loads(table.schema.metadata[b"yt8m"]) | changes
    about = {key: value for key, value in about.items() if value is not None}
    pq.write_table(table.replace_schema_metadata({b"yt8m": json.dumps(about).encode()}), folder / FILE_NAME)


def test_a_catalog_of_format_1_is_used_by_size_and_time(tmp_path: Path) -> None:
    path = write_shards(tmp_path, random_videos(2, ratings_per_video=2))[0]
    catalog = index_and_save(tmp_path)
    shards = tuple(shard._replace(checksum=None, sample=None) for shard in catalog.shards)
    with_metadata(tmp_path, {"format": 1, "checksum": None, "shards": [shard[:3] for shard in shards]})
    assert_same(load_or_index(tmp_path), replace(catalog, shards=shards))
    assert replace(catalog, shards=shards).digest != catalog.digest
    os.utime(path, ns=(0, 0))
    assert load_or_index(tmp_path).digest == catalog.digest


@pytest.mark.parametrize(
    "change",
    [
        {"num_frames": 0}, {"num_frames": 2**31 - 1}, {"shard_index": 2}, {"rgb_offset": -1}, {"rgb_offset": 2**40},
        {"audio_offset": 2**62}, {"rgb_stride": 2**31 - 1}, {"record_length": -1}, {"record_offset": 2**63 - 1},
    ],
)  # fmt: skip
def test_a_catalog_with_invalid_numbers_is_refused(tmp_path: Path, change: dict[str, int]) -> None:
    write_shards(tmp_path, random_videos(4))
    catalog = index_folder(tmp_path)
    [(name, value)] = change.items()
    column = getattr(catalog, name).copy()
    column[1] = value
    replace(catalog, **{name: column}).save()
    with pytest.raises(Yt8mError, match="is not a catalog, or is damaged"):
        Catalog.load(tmp_path)


def test_load_or_index_reads_shards_only_after_changes(tmp_path: Path) -> None:
    write_shards(tmp_path, random_videos(4))
    reads: list[float] = []
    progress = RecordedProgress(lambda _, num_bytes: reads.append(num_bytes))
    first = load_or_index(tmp_path, progress=progress)
    assert len(reads) == 2
    assert_same(load_or_index(tmp_path, progress=progress), first)
    assert len(reads) == 2
    write_shard(tmp_path / "new.tfrecord", random_videos(1, id_prefix="n"))
    assert not first.is_current()
    assert len(load_or_index(tmp_path, progress=progress)) == 5
    assert len(reads) == 5
    with pytest.raises(UsageError):
        load_or_index(tmp_path / "missing")


@pytest.mark.parametrize("change", ["grow", "remove", "rename", "add", "other bytes"])
def test_a_catalog_is_outdated_after_its_shards_change(
    tmp_path: Path, change: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_shards(tmp_path, random_videos(4))[0]
    catalog = index_and_save(tmp_path)
    assert catalog.is_current()
    time, data = path.stat().st_mtime_ns, path.read_bytes()
    match change:
        case "grow":
            path.write_bytes(data + b"x")
        case "other bytes":
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        case "remove":
            path.unlink()
        case "rename":
            path.rename(tmp_path / "other.tfrecord")
        case "add":
            write_shard(tmp_path / "new.tfrecord", random_videos(1, id_prefix="n"))
    if path.is_file():
        os.utime(path, ns=(time, time))
    assert not catalog.is_current()
    assert not replace(catalog, folder=tmp_path / "missing").is_current()
    assert load_or_index(tmp_path).digest != catalog.digest
    message = capfd.readouterr().err
    if change in ("grow", "other bytes"):
        assert message == (
            f"{path}: has other bytes than when it was indexed, and the same modification time; "
            "the folder is indexed again.\n"
        )
    else:
        assert message == ""


def test_a_copy_with_other_times_is_the_same(tmp_path: Path) -> None:
    write_shards(tmp_path / "one", random_videos(4))
    catalog = index_and_save(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two", copy_function=shutil.copyfile)
    written = (tmp_path / "two" / FILE_NAME).stat().st_mtime_ns
    copy = load_or_index(tmp_path / "two", progress=RecordedProgress(lambda *_: pytest.fail("a shard was read")))
    assert copy.digest == catalog.digest
    assert [shard.mtime_ns for shard in copy.shards] != [shard.mtime_ns for shard in catalog.shards]
    assert not copy.changed_shards()
    assert (tmp_path / "two" / FILE_NAME).stat().st_mtime_ns == written


@pytest.mark.parametrize("num_bytes", [10, 4 * 2**17, 4 * 2**17 + 1, 3_000_000])
def test_the_sample_of_a_shard_includes_both_ends(tmp_path: Path, num_bytes: int) -> None:
    data = np.random.default_rng(0).integers(0, 256, num_bytes, np.uint8)
    path = tmp_path / "a.tfrecord"
    path.write_bytes(data)
    before = ShardFile(path).sample_checksum()
    assert ShardFile(path).sample_checksum() == before
    for place in (0, num_bytes - 1, num_bytes // 3):
        changed = data.copy()
        changed[place] ^= 1
        path.write_bytes(changed)
        assert ShardFile(path).sample_checksum() != before


def test_index_shard_reads_one_shard_only(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, random_videos(5, ratings_per_video=3), num_shards=2)
    (tmp_path / "zzzz.tfrecord").write_bytes(b"no shard at all")
    whole, alone = index_folder(tmp_path), index_shard(paths[1])
    assert alone.shards == whole.shards[1:2]
    of_shard = np.flatnonzero(whole.shard_index == 1)
    assert alone.video_ids == [whole.id_of(row) for row in of_shard.tolist()]
    for name in ("record_number", "record_offset", "num_frames", "rgb_offset", "audio_stride"):
        np.testing.assert_array_equal(getattr(alone, name), getattr(whole, name)[of_shard])
    assert [alone.shard_path(row) for row in range(len(alone))] == [paths[1]] * len(alone)
    assert not (tmp_path / FILE_NAME).exists()
    with pytest.raises(ShardError, match=r"zzzz.tfrecord"):
        index_shard(tmp_path / "zzzz.tfrecord")
