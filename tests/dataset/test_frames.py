"""FrameReader: random access to the frames of videos."""

from __future__ import annotations

import os
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.tiny_shards import TinyVideo, random_videos, write_records, write_shards
from tests.support.wire import bytes_feature, delimited, entry, frame_list, record
from yt8m.dataset.batches import FrameSampling, VideoBatches
from yt8m.dataset.frames import FrameReader
from yt8m.dataset.indexing import index_folder
from yt8m.dataset.read_ahead import step_loader
from yt8m.dataset.sampling import FrameIndices
from yt8m.errors import ShardError
from yt8m.shards.contents import ShardFile
from yt8m.vocabulary import Vocabulary


@pytest.fixture
def videos() -> list[TinyVideo]:
    return random_videos(6, num_frames=(12, 20))


@pytest.fixture
def reader(tmp_path: Path, videos: list[TinyVideo]) -> FrameReader:
    write_shards(tmp_path, videos, num_shards=3)
    catalog = index_folder(tmp_path)
    return FrameReader(catalog, max_open_shards=2)


def test_whole_videos_are_read(reader: FrameReader, videos: list[TinyVideo]) -> None:
    for row in (5, 0, 3, 1, 4, 2, 5):
        frames = reader.read(row)
        assert frames.dtype == np.uint8
        np.testing.assert_array_equal(frames, videos[row].frames)
        assert reader.num_frames(row) == len(videos[row].frames)


def test_any_span_of_a_video_is_read(reader: FrameReader, videos: list[TinyVideo]) -> None:
    frames = videos[2].frames
    for start in range(len(frames) + 1):
        for stop in range(start, len(frames) + 1):
            np.testing.assert_array_equal(reader.read(2, start, stop), frames[start:stop])


def test_frames_are_gathered_in_any_order(reader: FrameReader, videos: list[TinyVideo]) -> None:
    rng = np.random.default_rng(0)
    for row, video in enumerate(videos):
        for kind in (np.int64, np.int32):
            indices = rng.integers(0, len(video.frames), 7).astype(kind)
            np.testing.assert_array_equal(reader.gather(row, indices), video.frames[indices])
    assert reader.gather(0, np.zeros(0, np.int64)).shape == (0, 1152)


def test_frames_are_written_to_a_given_part_of_an_array(reader: FrameReader, videos: list[TinyVideo]) -> None:
    batch = np.full((2, 10, 1152), 77, np.uint8)
    target = batch[1, 2:6]
    assert reader.read(3, 4, 8, out=target) is target
    np.testing.assert_array_equal(batch[1, 2:6], videos[3].frames[4:8])
    spaced = batch[0, ::3]
    assert reader.gather(3, np.array([1, 5, 3, 0]), out=spaced) is spaced
    np.testing.assert_array_equal(batch[0, [0, 3, 6, 9]], videos[3].frames[[1, 5, 3, 0]])
    untouched = np.ones((2, 10), np.bool_)
    untouched[1, 2:6] = untouched[0, ::3] = False
    assert (batch[untouched] == 77).all()


def test_frames_outside_the_video_are_refused(reader: FrameReader) -> None:
    length = reader.num_frames(0)
    for start, stop in ((-1, 3), (0, length + 1), (5, 4)):
        with pytest.raises(IndexError):
            reader.read(0, start, stop)
    for index in (-1, length):
        with pytest.raises(IndexError):
            reader.gather(0, np.array([0, index]))


def test_output_arrays_of_another_shape_or_type_are_refused(reader: FrameReader) -> None:
    for out in (np.zeros((3, 1152), np.uint8), np.zeros((4, 1152), np.int8)):
        with pytest.raises(ValueError, match=r"expected uint8 \(4, 1152\)"):
            reader.read(0, 0, 4, out=out)  # type: ignore[arg-type]


def test_the_number_of_open_files_is_limited(reader: FrameReader, videos: list[TinyVideo]) -> None:
    def num_open() -> int:
        links = [entry.path for entry in os.scandir("/proc/self/fd")]
        return sum(os.path.realpath(link).startswith(str(reader.catalog.folder)) for link in links)

    for row in (0, 2, 4, 1, 3, 5):
        np.testing.assert_array_equal(reader.read(row), videos[row].frames)
        assert num_open() <= 2
    rows = np.array([0, 2, 4, 1, 3, 5])
    rgb, audio = (np.empty((6, 5, row), np.uint8) for row in (1033, 137))
    reader.fill(rgb, audio, rows, [slice(0, 5)] * 6)
    for place, row in enumerate(rows.tolist()):
        np.testing.assert_array_equal(rgb[place, :, -1024:], videos[row].frames[:5, :1024])
    assert num_open() == 2
    del reader.__dict__["_files"]
    assert num_open() == 0


def test_frames_far_apart_are_read_one_by_one(tmp_path: Path) -> None:
    video = random_videos(1, num_frames=(90, 90))[0]
    write_shards(tmp_path, [video], num_shards=1)
    reader = FrameReader(index_folder(tmp_path))
    for chosen in (np.array([0, 89]), np.array([80, 3, 41]), np.array([7])):
        np.testing.assert_array_equal(reader.gather(0, chosen), video.frames[chosen])


def test_a_batch_is_filled_and_padded_with_zeros(reader: FrameReader, videos: list[TinyVideo]) -> None:
    rows = np.array([4, 0, 4, 5, 1])
    chosen: list[FrameIndices] = [
        slice(2, 9), np.array([0, 3, 4, 11]), np.array([5]), np.arange(1, 8), slice(0, len(videos[1].frames)),
    ]  # fmt: skip
    rgb, audio = np.full((5, 21, 1033), 77, np.uint8), np.full((5, 21, 137), 77, np.uint8)
    reader.fill(rgb, audio, rows, chosen)
    for of_rgb, of_audio, row, frames in zip(rgb, audio, rows.tolist(), chosen, strict=True):
        wanted = videos[row].frames[frames]
        length = len(wanted)
        np.testing.assert_array_equal(of_rgb[:length, -1024:], wanted[:, :1024])
        np.testing.assert_array_equal(of_audio[:length, -128:], wanted[:, 1024:])
        assert not of_rgb[length:].any()
        assert not of_audio[length:].any()


@pytest.mark.parametrize("frames", [slice(-1, 3), slice(4, 4), slice(0, 21), np.array([-1, 3]), np.array([0, 20])])
def test_a_batch_with_frames_outside_the_video_is_refused(reader: FrameReader, frames: FrameIndices) -> None:
    with pytest.raises(IndexError, match="of row 0, which has"):
        reader.fill(*(np.zeros((1, 30, row), np.uint8) for row in (1033, 137)), np.array([0]), [frames])


def unequally_spaced(frames: NDArray[np.uint8]) -> bytes:
    """A valid record with unknown fields of different lengths between its rgb frames."""
    rgb = b"".join(
        delimited(1, bytes_feature(frame[:1024].tobytes())) + delimited(15, bytes(i % 3))
        for i, frame in enumerate(frames)
    )
    audio = frame_list([frame[1024:].tobytes() for frame in frames])
    return record(entry("id", bytes_feature(b"odd")), entry("rgb", rgb) + entry("audio", audio))


def test_widely_spaced_frames_at_the_start_of_a_shard_are_read(tmp_path: Path) -> None:
    """The stride is larger than the offset of the first frame."""
    frames = random_videos(1, num_frames=(15, 15))[0].frames
    spaced = [
        b"".join(delimited(1, bytes_feature(frame.tobytes())) + delimited(15, bytes(9000)) for frame in part)
        for part in (frames[:, :1024], frames[:, 1024:])
    ]
    payload = record(entry("id", bytes_feature(b"far")), entry("rgb", spaced[0]) + entry("audio", spaced[1]))
    write_records(tmp_path / "a.tfrecord", [payload])
    reader = FrameReader(index_folder(tmp_path))
    assert reader.catalog.rgb_stride[0] > reader.catalog.rgb_offset[0]
    np.testing.assert_array_equal(reader.read(0), frames)
    np.testing.assert_array_equal(reader.gather(0, np.array([14, 0, 7])), frames[[14, 0, 7]])


def test_unequally_spaced_frames_are_read(tmp_path: Path) -> None:
    frames = random_videos(1, num_frames=(15, 15))[0].frames
    path = tmp_path / "a.tfrecord"
    write_records(path, [random_videos(1)[0].encoded(), unequally_spaced(frames)])
    catalog = index_folder(tmp_path)
    assert (catalog.rgb_stride[1], catalog.audio_stride[1]) == (0, 137)
    reader = FrameReader(catalog)
    np.testing.assert_array_equal(reader.read(1), frames)
    np.testing.assert_array_equal(reader.read(1, 3, 9), frames[3:9])
    np.testing.assert_array_equal(reader.gather(1, np.array([14, 0, 7])), frames[[14, 0, 7]])


@pytest.mark.parametrize("num_audio", [9, 15])
def test_rgb_and_audio_of_different_lengths_are_read_to_the_end_of_the_shorter(tmp_path: Path, num_audio: int) -> None:
    frames = random_videos(1, num_frames=(15, 15))[0].frames
    audio = entry("audio", frame_list([frame[1024:].tobytes() for frame in frames[:num_audio]]))
    rgb_frames = [frame[:1024].tobytes() for frame in frames[:12]]
    rgb = entry("rgb", frame_list(rgb_frames[:1]) + delimited(15, b"odd") + frame_list(rgb_frames[1:]))
    payloads = [
        record(entry("id", bytes_feature(b"even")), entry("rgb", frame_list(rgb_frames)) + audio),
        record(entry("id", bytes_feature(b"odd")), rgb + audio),
    ]
    write_records(tmp_path / "a.tfrecord", payloads)
    reader = FrameReader(index_folder(tmp_path))
    length = min(12, num_audio)
    for row in (0, 1):
        assert reader.num_frames(row) == length
        np.testing.assert_array_equal(reader.read(row), frames[:length])
        np.testing.assert_array_equal(reader.gather(row, np.array([length - 1, 2])), frames[[length - 1, 2]])


@pytest.mark.parametrize("change", ["grown", "shrunk", "removed", "replaced", "other bytes"])
def test_a_shard_that_changed_since_indexing_is_refused(reader: FrameReader, change: str) -> None:
    path = reader.catalog.shard_path(0)
    status, data = path.stat(), path.read_bytes()
    match change:
        case "grown":
            path.write_bytes(data + b"x")
        case "shrunk":
            os.truncate(path, status.st_size - 1)
        case "removed":
            path.unlink()
        case "replaced":
            path.unlink()
            path.mkdir()
        case "other bytes":
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    if path.is_file() and change != "other bytes":
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    expected = {"removed": "cannot be opened", "replaced": "is no regular file"}
    with pytest.raises(ShardError, match=expected.get(change, "has changed since it was indexed; run `yt8m index")):
        reader.read(0)
    assert reader.changed_shards() == [path]
    reader.read(2)


def test_a_shard_with_the_same_bytes_and_another_time_is_read(reader: FrameReader, videos: list[TinyVideo]) -> None:
    path = reader.catalog.shard_path(0)
    os.utime(path, ns=(0, 0))
    for _ in range(2):
        np.testing.assert_array_equal(reader.read(0), videos[0].frames)
    os.utime(path, ns=(5, 5))
    np.testing.assert_array_equal(reader.read(1), videos[1].frames)


@pytest.mark.parametrize("num_bytes", [0, 100, 20_000])
def test_truncation_of_an_open_shard_is_detected(reader: FrameReader, num_bytes: int) -> None:
    reader.read(0)
    os.truncate(reader.catalog.shard_path(0), num_bytes)
    with pytest.raises(ShardError, match="has changed since it was indexed"):
        reader.read(0)


@pytest.mark.parametrize("chosen", [slice(2, 12), np.array([1, 3, 5, 11]), np.array([0, 11])])
def test_truncation_between_the_check_and_the_read_is_an_error(
    reader: FrameReader, monkeypatch: pytest.MonkeyPatch, chosen: FrameIndices
) -> None:
    """Access to a map would kill the process."""
    original = FrameReader._current

    def truncated_after_check(self: FrameReader, position: int) -> ShardFile:
        file = original(self, position)
        os.truncate(file.path, 100)
        return file

    monkeypatch.setattr(FrameReader, "_current", truncated_after_check)
    arrays = [np.zeros((1, 12, row), np.uint8) for row in (1033, 137)]
    path = reader.catalog.shard_path(0)
    with pytest.raises(ShardError, match=rf"{path}, byte \d+: .* truncated"):
        reader.fill(*arrays, np.array([0]), [chosen])


def test_truncation_under_a_worker_is_an_error_of_the_main_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(tmp_path, random_videos(6, num_frames=(50, 60)), num_shards=2)
    stream = VideoBatches(
        FrameReader(index_folder(tmp_path)), Vocabulary(np.arange(20), ("",) * 20), FrameSampling(5), 4, 0
    )
    original = FrameReader._current

    def truncated_after_check(self: FrameReader, position: int) -> ShardFile:
        file = original(self, position)
        os.truncate(file.path, 100)
        return file

    monkeypatch.setattr(FrameReader, "_current", truncated_after_check)
    with pytest.raises(ShardError, match=rf"{tmp_path}/tiny000\d.tfrecord, byte \d+: .* truncated"):
        list(step_loader(stream, 0, 9, 1))


def test_a_reader_is_pickled_without_its_files(reader: FrameReader, videos: list[TinyVideo]) -> None:
    reader.read(0)
    copy = pickle.loads(pickle.dumps(reader))
    assert not copy._files
    np.testing.assert_array_equal(copy.read(1), videos[1].frames)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_reader_works_in_other_processes(reader: FrameReader, videos: list[TinyVideo], method: str) -> None:
    reader.read(0)
    with ProcessPoolExecutor(2, mp_context=get_context(method)) as pool:
        for row, frames in enumerate(pool.map(reader.read, range(6), timeout=60)):
            np.testing.assert_array_equal(frames, videos[row].frames)
