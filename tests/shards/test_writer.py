"""Encoded records, and shards that are written completely or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

from tests.support.tiny_shards import random_videos, write_records
from tests.support.video_level import encode_video_level
from yt8m.errors import Yt8mError
from yt8m.shards.tfrecord import iterate_records
from yt8m.shards.writer import ShardWriter, encode_video, message_class


def parsed(payload: bytes, name: str = "SequenceExample") -> Any:
    return message_class(name).FromString(payload)


def test_an_encoded_video_equals_the_protobuf_message() -> None:
    video = random_videos(1, num_frames=(5, 5), ratings_per_video=0)[0]
    payload = encode_video(video.id, video.frames, [9, 4], ratings=[(4, 0, 1.0), (9, 0, 0.0)])
    expected: Any = message_class("SequenceExample")()
    for name, span in (("rgb", slice(0, 1024)), ("audio", slice(1024, 1152))):
        features = expected.feature_lists.feature_list[name].feature
        for frame in video.frames[:, span]:
            features.add().bytes_list.value.append(frame.tobytes())
    context = expected.context.feature
    context["id"].bytes_list.value.append(video.id.encode())
    context["labels"].int64_list.value.extend([9, 4])
    context["segment_labels"].int64_list.value.extend([4, 9])
    context["segment_start_times"].int64_list.value.extend([0, 0])
    context["segment_end_times"].int64_list.value.extend([5, 5])
    context["segment_scores"].float_list.value.extend([1.0, 0.0])
    assert parsed(payload) == expected
    assert len(payload) == len(expected.SerializeToString())
    assert payload == encode_video(video.id, video.frames, [9, 4], ratings=[(4, 0, 1.0), (9, 0, 0.0)])


def test_a_video_without_labels_and_ratings_has_no_such_features() -> None:
    assert list(parsed(encode_video("abcd", np.zeros((1, 1152), np.uint8))).context.feature) == ["id"]


def test_frames_need_not_be_contiguous() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (12, 1152), np.uint8)
    assert encode_video("abcd", frames[::3]) == encode_video("abcd", frames[::3].copy())


@pytest.mark.parametrize(
    "frames", [np.zeros((3, 1024), np.uint8), np.zeros((3, 1152), np.float32), np.zeros(1152, np.uint8)]
)
def test_frames_of_another_shape_or_type_are_refused(frames: Any) -> None:
    with pytest.raises(ValueError, match="expected frames uint8"):
        encode_video("abcd", frames)


def test_a_video_level_record_equals_the_protobuf_message() -> None:
    rgb, audio = np.linspace(-2, 2, 1024, dtype=np.float32), np.linspace(0, 1, 128, dtype=np.float32)
    features = parsed(encode_video_level("abcd", rgb, audio, [1, 2]), "Example").features.feature
    assert list(features["id"].bytes_list.value) == [b"abcd"]
    assert list(features["labels"].int64_list.value) == [1, 2]
    np.testing.assert_array_equal(np.array(features["mean_rgb"].float_list.value, np.float32), rgb)
    np.testing.assert_array_equal(np.array(features["mean_audio"].float_list.value, np.float32), audio)


def test_a_shard_is_written_completely_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.tfrecord"
    with ShardWriter(path) as writer:
        writer.write(b"one")
        writer.write(b"two")
        assert not path.exists()
    assert [bytes(record.payload) for record in iterate_records(path.read_bytes(), path)] == [b"one", b"two"]
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_records(path, [b"three", "no bytes"])  # type: ignore[list-item]
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["a.tfrecord"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device /dev/full")
@pytest.mark.parametrize("num_bytes", [10, 10_000_000])
def test_a_full_disk_is_an_error_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_bytes: int
) -> None:
    def open_full(_: Path, mode: str) -> IO[Any]:
        return open("/dev/full", mode)  # noqa: PTH123

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", open_full)
        with pytest.raises(Yt8mError, match="no space left"), ShardWriter(tmp_path / "a.tfrecord") as writer:
            # A short record fails when the file is closed, a long one when it is written.
            writer.write(bytes(num_bytes))
    assert list(tmp_path.iterdir()) == []
