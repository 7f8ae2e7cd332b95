from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.shards.wire import bytes_feature, entry, frame_list, packed_integers, record
from tests.tiny_shards import (
    Rating,
    TinyVideo,
    random_videos,
    write_records,
    write_shard,
    write_shards,
    write_video_level_shard,
)
from yt8m.dataset import catalog as catalog_module
from yt8m.dataset.catalog import Catalog, Oddity, find_shards, index_folder, load_or_index
from yt8m.errors import ShardError, UsageError, Yt8mError
from yt8m.shards.tfrecord import frame_record
from yt8m.shards.writer import encode_video

FRAMES = np.zeros((40, 1152), np.uint8)


def assert_same(one: Catalog, other: Catalog) -> None:
    for field in fields(Catalog):
        left, right = getattr(one, field.name), getattr(other, field.name)
        if isinstance(left, np.ndarray):
            np.testing.assert_array_equal(left, right, err_msg=field.name)
            assert left.dtype == right.dtype, field.name
            assert not left.flags.writeable
            assert not right.flags.writeable
        else:
            assert left == right, field.name


def index_videos(folder: Path, *videos: TinyVideo) -> Catalog:
    write_shard(folder / "a.tfrecord", videos)
    return index_folder(folder)


def rated(*ratings: Rating, video_id: str = "abcd") -> TinyVideo:
    return TinyVideo(video_id, FRAMES, (1,), ratings)


def ratings_in(catalog: Catalog, row: int = 0) -> list[tuple[int, int, int]]:
    return list(zip(*(column.tolist() for column in catalog.ratings_of(row)), strict=True))


def test_rows_are_the_videos_in_order(tmp_path: Path) -> None:
    videos = random_videos(9, seed=1, ratings_per_video=6)
    paths = write_shards(tmp_path, videos, num_shards=3)
    catalog = index_folder(tmp_path)
    assert len(catalog) == 9
    assert [catalog.id_of(row) for row in range(9)] == [video.id for video in videos]
    assert catalog.num_frames.tolist() == [len(video.frames) for video in videos]
    assert catalog.shard_index.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert catalog.record_number.tolist() == [0, 1, 2] * 3
    assert [catalog.shard_path(row) for row in (0, 4, 8)] == paths
    assert [tuple(info) for info in catalog.shards] == [
        (path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths
    ]
    assert (catalog.oddities, catalog.problems, catalog.num_problems) == ({}, (), 0)
    for row, video in enumerate(videos):
        assert catalog.labels_of(row).tolist() == list(video.labels)
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


def test_order_of_the_file_system_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path, random_videos(6), num_shards=3)
    expected = index_folder(tmp_path)
    original = Path.glob

    def backwards(self: Path, pattern: str) -> Iterator[Path]:
        return iter(sorted(original(self, pattern), reverse=True))

    monkeypatch.setattr(Path, "glob", backwards)
    assert [path.name for path in find_shards(tmp_path)] == [f"tiny000{i}.tfrecord" for i in range(3)]
    assert_same(index_folder(tmp_path), expected)


def test_round_trip_through_parquet(tmp_path: Path) -> None:
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


def test_catalog_of_videos_without_labels_and_ratings_round_trips(tmp_path: Path) -> None:
    write_shards(tmp_path, random_videos(3, labeled=False))
    catalog = index_folder(tmp_path)
    assert catalog.oddities == {Oddity.NO_LABELS: 3}
    catalog.save()
    assert_same(Catalog.load(tmp_path), catalog)


def test_progress_counts_bytes(tmp_path: Path) -> None:
    sizes = [path.stat().st_size for path in write_shards(tmp_path, random_videos(4))]
    seen: list[tuple[int, int]] = []
    index_folder(tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(sizes[0], sum(sizes)), (sum(sizes), sum(sizes))]


# --- Oddities


def test_bad_ratings_go_and_the_video_stays(tmp_path: Path) -> None:
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
def test_lists_of_ratings_that_do_not_fit_each_other(
    tmp_path: Path, payload: bytes, oddities: dict[str, int], ratings: list[tuple[int, int, int]]
) -> None:
    write_records(tmp_path / "a.tfrecord", [payload])
    catalog = index_folder(tmp_path)
    assert catalog.oddities == oddities
    assert ratings_in(catalog) == ratings


def test_labels_are_of_the_vocabulary_once_each(tmp_path: Path) -> None:
    write_shard(
        tmp_path / "a.tfrecord", [TinyVideo("a", FRAMES, (9, 3, 3862, 9, -1, 9, 3861)), TinyVideo("b", FRAMES, (4000,))]
    )
    catalog = index_folder(tmp_path)
    assert catalog.labels_of(0).tolist() == [3, 9, 3861]
    assert catalog.labels_of(1).tolist() == []
    assert catalog.oddities == {Oddity.LABELS_UNKNOWN: 3, Oddity.LABELS_REPEATED: 2, Oddity.NO_LABELS: 1}
    assert index_folder(tmp_path, vocabulary_size=5).labels_of(1).tolist() == []
    assert index_folder(tmp_path, vocabulary_size=5).labels_of(0).tolist() == [3]


def test_first_of_repeated_ids_is_kept(tmp_path: Path) -> None:
    first = TinyVideo("same", FRAMES[:20], (1, 2), ((1, 5, 1.0), (2, 5, 0.0)))
    again = TinyVideo("same", FRAMES[:30], (3,), ((3, 10, 1.0),))
    other = TinyVideo("other", FRAMES[:25], (4,), ((4, 15, 1.0),))
    write_shard(tmp_path / "a.tfrecord", [first, again])
    write_shard(tmp_path / "b.tfrecord", [again, other])
    catalog = index_folder(tmp_path)
    assert [catalog.id_of(row) for row in range(len(catalog))] == ["same", "other"]
    assert catalog.num_frames.tolist() == [20, 25]
    assert [catalog.labels_of(row).tolist() for row in (0, 1)] == [[1, 2], [4]]
    assert [ratings_in(catalog, row) for row in (0, 1)] == [[(1, 5, 1), (2, 5, 0)], [(4, 15, 1)]]
    assert catalog.oddities == {Oddity.IDS_REPEATED: 2}


def test_shorter_of_rgb_and_audio_decides(tmp_path: Path) -> None:
    lists = entry("rgb", frame_list([bytes(1024)] * 12)) + entry("audio", frame_list([bytes(128)] * 10))
    labels = entry("labels", packed_integers(1))
    write_records(tmp_path / "a.tfrecord", [record(entry("id", bytes_feature(b"abcd")) + labels, lists)])
    catalog = index_folder(tmp_path)
    assert catalog.num_frames.tolist() == [10]
    assert catalog.oddities == {Oddity.LENGTHS_DIFFER: 1}


# --- Damage

GOOD = [frame_record(video.encoded()) for video in random_videos(3, num_frames=(2, 3))]


def test_truncation_at_any_byte_keeps_the_records_before(tmp_path: Path) -> None:
    """At every byte of the last record's first kilobyte and of its end, and of a few kilobytes between."""
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
def test_flipped_bit_costs_one_record_or_the_rest(tmp_path_factory: pytest.TempPathFactory, bit: int) -> None:
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


def test_records_that_cannot_be_used_are_skipped_with_their_place(tmp_path: Path) -> None:
    good = random_videos(2, num_frames=(3, 3))
    no_audio = record(entry("id", bytes_feature(b"x")), entry("rgb", frame_list([bytes(1024)])))
    video_level = write_video_level_shard(tmp_path / "other" / "v.tfrecord", 1).read_bytes()[12:-4]
    payloads = [
        b"\xff garbage",
        good[0].encoded(),
        no_audio,
        encode_video("zero", FRAMES[:0]),
        video_level,
        good[1].encoded(),
    ]
    write_records(tmp_path / "a.tfrecord", payloads)
    (tmp_path / "b.tfrecord").touch()
    catalog = index_folder(tmp_path)
    assert catalog.record_number.tolist() == [1, 5]
    reasons = ["beyond|breaks off|wire type", "has no audio", "has no rgb", "video-level shard", "the file is empty"]
    assert catalog.num_problems == len(catalog.problems) == len(reasons)
    for problem, number, reason in zip(catalog.problems, (0, 2, 3, 4, None), reasons, strict=True):
        assert any(part in problem for part in reason.split("|"))
        if number is not None:
            assert f"a.tfrecord, record {number}, byte " in problem
            assert problem.endswith("; the record was skipped.")
    assert catalog.problems[-1] == f"{tmp_path / 'b.tfrecord'}: the file is empty; the shard was skipped."


def test_checksums_are_verified_unless_told_otherwise(tmp_path: Path) -> None:
    data = bytearray(GOOD[0] + GOOD[1])
    data[-100] ^= 1
    (tmp_path / "a.tfrecord").write_bytes(data)
    assert len(index_folder(tmp_path)) == 1
    assert len(index_folder(tmp_path, verify=False)) == 2


def test_list_of_problems_is_bounded_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_module, "MAX_PROBLEMS", 5)
    for name in ("a", "b"):
        write_records(tmp_path / f"{name}.tfrecord", [b"garbage"] * 4)
    write_shard(tmp_path / "c.tfrecord", random_videos(1))
    catalog = index_folder(tmp_path)
    assert (len(catalog.problems), catalog.num_problems) == (5, 8)


def test_folders_without_usable_shards(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no such folder"):
        index_folder(tmp_path / "missing")
    with pytest.raises(UsageError, match="holds no shards"):
        index_folder(tmp_path)
    (tmp_path / ".a.0123.tfrecord").touch()
    with pytest.raises(UsageError, match="holds no shards"):
        index_folder(tmp_path)
    path = write_records(tmp_path / "a.tfrecord", [b"garbage"])
    with pytest.raises(UsageError, match="is a file; expected a folder"):
        index_folder(path)
    with pytest.raises(ShardError, match=r"no video of its 1 shards can be used: .*a.tfrecord, record 0"):
        index_folder(tmp_path)


def test_shards_of_another_dataset_are_an_error_at_once(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tfrecord", random_videos(1))
    write_video_level_shard(tmp_path / "b.tfrecord", 3)
    with pytest.raises(ShardError, match=r"b.tfrecord, record 0, byte 12: this is a video-level shard .* 2/frame"):
        index_folder(tmp_path)


def test_real_shards_of_another_dataset(shared_data: Path) -> None:
    with pytest.raises(ShardError, match=r"rm.tfrecord, record 0, byte 12: this is an AudioSet shard"):
        index_folder(shared_data / "audioset_frame_level")
    with pytest.raises(ShardError, match=r"validate0000.tfrecord, record 0, byte 12: this is a video-level shard"):
        index_folder(shared_data / "yt8m_video_level")


def test_real_video(shared_data: Path) -> None:
    catalog = index_folder(shared_data / "yt8m_frame_level")
    assert [catalog.id_of(row) for row in range(len(catalog))] == ["SjJ3"]
    assert catalog.num_frames.tolist() == [170]
    assert catalog.labels_of(0).tolist() == [11]
    assert (catalog.oddities, catalog.problems) == ({}, ())


# --- Kept catalogs


def test_missing_foreign_and_damaged_catalogs_are_refused_in_words(tmp_path: Path) -> None:
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
        with pytest.raises(Yt8mError, match="is no catalog, or a damaged one; run `yt8m index"):
            Catalog.load(tmp_path)


def test_catalog_of_another_format_is_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path, random_videos(2))
    with monkeypatch.context() as older:
        older.setattr(catalog_module, "FORMAT_VERSION", 0)
        index_folder(tmp_path).save()
    with pytest.raises(Yt8mError, match="format 0, and this version reads format 1; run `yt8m index"):
        Catalog.load(tmp_path)
    assert len(load_or_index(tmp_path)) == 2
    assert len(Catalog.load(tmp_path)) == 2


def test_load_or_index_reads_shards_only_when_they_changed(tmp_path: Path) -> None:
    write_shards(tmp_path, random_videos(4))
    reads: list[int] = []
    first = load_or_index(tmp_path, progress=lambda done, _: reads.append(done))
    assert len(reads) == 2
    assert_same(load_or_index(tmp_path, progress=lambda done, _: reads.append(done)), first)
    assert len(reads) == 2
    write_shard(tmp_path / "new.tfrecord", random_videos(1, id_prefix="n"))
    assert not first.is_current()
    assert len(load_or_index(tmp_path, progress=lambda done, _: reads.append(done))) == 5
    assert len(reads) == 5
    with pytest.raises(UsageError):
        load_or_index(tmp_path / "missing")


@pytest.mark.parametrize("change", ["touch", "grow", "remove", "rename"])
def test_changed_shards_make_a_catalog_stale(tmp_path: Path, change: str) -> None:
    path = write_shards(tmp_path, random_videos(2))[0]
    catalog = index_folder(tmp_path)
    assert catalog.is_current()
    match change:
        case "touch":
            os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
        case "grow":
            time = path.stat().st_mtime_ns
            path.write_bytes(path.read_bytes() + b"x")
            os.utime(path, ns=(time, time))
        case "remove":
            path.unlink()
        case "rename":
            path.rename(tmp_path / "other.tfrecord")
    assert not catalog.is_current()
    assert not replace(catalog, folder=tmp_path / "missing").is_current()
