"""Readers of frame-level and video-level records, compared with protobuf."""

from __future__ import annotations

import contextlib
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.tiny_shards import TinyVideo, random_videos, write_records, write_video_level_shard
from tests.support.video_level import encode_video_level
from tests.support.wire import (
    bytes_feature,
    delimited,
    entry,
    frame_list,
    packed_integers,
    protobuf_frames,
    record,
    unpacked_integers,
    varint,
)
from yt8m.errors import ShardError
from yt8m.shards import wire
from yt8m.shards.records import (
    FrameLayout,
    VideoRecord,
    frame_offsets,
    read_video,
    read_video_level,
    read_video_level_shard,
)
from yt8m.shards.wire import MalformedRecordError, WrongDatasetError
from yt8m.shards.writer import encode_video, message_class

ID = entry("id", bytes_feature(b"abcd"))
RGB = [bytes([i]) * 1024 for i in range(3)]
AUDIO = [bytes([100 + i]) * 128 for i in range(3)]
LISTS = entry("rgb", frame_list(RGB)) + entry("audio", frame_list(AUDIO))


def frames_at(payload: bytes, layout: FrameLayout, size: int) -> list[bytes]:
    """Frames at the offsets of a layout."""
    starts = [layout.offset + i * layout.stride for i in range(layout.num_frames)]
    return [payload[start : start + size] for start in starts]


def protobuf(payload: bytes) -> Any:
    """A record as protobuf parses it."""
    return message_class("SequenceExample").FromString(payload)


def test_every_field_of_a_rated_video_is_read() -> None:
    ratings = ((7, 30, 1.0), (3861, 35, 0.0), (7, 300, 1.0))
    video = TinyVideo("SjJ3", random_videos(1)[0].frames, (0, 128, 3861), ratings)
    payload = video.encoded()
    found = read_video(payload)
    assert (found.id, found.labels) == ("SjJ3", (0, 128, 3861))
    assert found.segment_labels == (7, 3861, 7)
    assert found.segment_start_times == (30, 35, 300)
    assert found.segment_end_times == (35, 40, 305)
    assert found.segment_scores == (1.0, 0.0, 1.0)
    assert (found.rgb.num_frames, found.audio.num_frames) == (len(video.frames),) * 2
    assert (found.rgb.stride, found.audio.stride) == (1033, 137)
    assert frames_at(payload, found.rgb, 1024) == [bytes(frame) for frame in video.frames[:, :1024]]
    assert frames_at(payload, found.audio, 128) == [bytes(frame) for frame in video.frames[:, 1024:]]


def test_a_video_without_labels_and_ratings_is_read() -> None:
    found = read_video(record(ID, LISTS))
    assert found.labels == found.segment_labels == found.segment_start_times == found.segment_scores == ()


@pytest.mark.parametrize("integers", [packed_integers, unpacked_integers])
def test_packed_and_unpacked_integers_are_read(integers: Any) -> None:
    values = (0, 1, 127, 128, 3861, 2**40, 2**63 - 1, -1, -(2**63))
    assert read_video(record(ID + entry("labels", integers(*values)), LISTS)).labels == values


def test_packed_and_unpacked_integers_in_one_list_are_read() -> None:
    both = delimited(3, delimited(1, varint(5) + varint(300)) + varint(8) + varint(6) + delimited(1, varint(7)))
    assert read_video(record(ID + entry("labels", both), LISTS)).labels == (5, 300, 6, 7)


def test_unpacked_floats_are_read() -> None:
    scores = delimited(2, b"".join(varint(8 + 5) + struct.pack("<f", score) for score in (0.0, 1.0, 0.5)))
    assert read_video(record(ID + entry("segment_scores", scores), LISTS)).segment_scores == (0.0, 1.0, 0.5)


def test_fields_are_read_in_any_order() -> None:
    labels = entry("labels", packed_integers(4, 5))
    backwards = delimited(2, entry("audio", frame_list(AUDIO)) + entry("rgb", frame_list(RGB))) + delimited(
        1, labels + ID
    )
    value_first = delimited(1, delimited(2, bytes_feature(b"abcd")) + delimited(1, b"id"))
    for payload in (backwards, record(value_first + labels, LISTS)):
        found = read_video(payload)
        assert (found.id, found.labels) == ("abcd", (4, 5))
        assert frames_at(payload, found.rgb, 1024) == RGB
        assert frames_at(payload, found.audio, 128) == AUDIO


def test_the_last_entry_of_a_name_is_used() -> None:
    context = entry("labels", packed_integers(1)) + ID + entry("labels", packed_integers(2, 3))
    lists = entry("rgb", frame_list(RGB[:1])) + LISTS
    payload = record(context, lists)
    found = read_video(payload)
    assert found.labels == (2, 3)
    assert frames_at(payload, found.rgb, 1024) == RGB == protobuf_frames(protobuf(payload), "rgb")


def test_unknown_fields_and_features_are_skipped() -> None:
    unknown = varint(8 * 9) + varint(2**60) + varint(8 * 10 + 1) + bytes(8) + varint(8 * 11 + 5) + bytes(4)
    unknown += delimited(2**29 - 1, b"anything")
    context = unknown + ID + entry("url", bytes_feature(b"https://x")) + entry("labels", unknown + packed_integers(8))
    payload = unknown + record(context, unknown + LISTS) + unknown
    found = read_video(payload)
    assert (found.id, found.labels) == ("abcd", (8,))
    assert frames_at(payload, found.rgb, 1024) == RGB


def test_messages_split_into_parts_are_joined() -> None:
    """Protobuf merges the parts of a message."""
    labels = delimited(
        1, delimited(1, b"labels") + delimited(2, packed_integers(1, 2)) + delimited(2, packed_integers(3))
    )
    rgb = delimited(1, delimited(1, b"rgb") + delimited(2, frame_list(RGB[:2])) + delimited(2, frame_list(RGB[2:])))
    payload = (
        delimited(1, ID) + delimited(2, rgb) + delimited(1, labels) + delimited(2, entry("audio", frame_list(AUDIO)))
    )
    found = read_video(payload)
    assert found.labels == (1, 2, 3) == tuple(protobuf(payload).context.feature["labels"].int64_list.value)
    assert (found.rgb.num_frames, found.rgb.stride) == (3, 0)
    assert (
        [payload[at : at + 1024] for at in frame_offsets(payload)[0]]
        == RGB
        == protobuf_frames(protobuf(payload), "rgb")
    )


def test_the_last_kind_of_a_feature_is_used() -> None:
    labels = entry("labels", bytes_feature(b"x") + packed_integers(1) + delimited(2, b"") + packed_integers(2))
    payload = record(ID + labels, LISTS)
    assert read_video(payload).labels == (2,) == tuple(protobuf(payload).context.feature["labels"].int64_list.value)


def raw_entry(name: bytes, value: bytes) -> bytes:
    return delimited(1, delimited(1, name) + delimited(2, value))


BROKEN_FEATURE = b"\xff\xff"
PART_OF_A_FLOAT = delimited(2, delimited(1, b"abc"))
BROKEN_NUMBER = delimited(3, delimited(1, b"\x80"))
DAMAGED = {
    "a name in the context": (raw_entry(b"\xff", b"") + ID, LISTS),
    "an overridden name": (delimited(1, delimited(1, b"\xff") + delimited(1, b"url")) + ID, LISTS),
    "a name of a list": (ID, LISTS + raw_entry(b"rgb\xc3", b"")),
    "an unknown feature": (ID + entry("url", BROKEN_FEATURE), LISTS),
    "an unknown float": (ID + entry("speed", PART_OF_A_FLOAT), LISTS),
    "an unknown number": (ID + entry("views", BROKEN_NUMBER), LISTS),
    "an overridden entry": (entry("labels", BROKEN_NUMBER) + entry("labels", packed_integers(5)) + ID, LISTS),
    "an overridden kind": (ID + entry("labels", PART_OF_A_FLOAT + packed_integers(5)), LISTS),
    "video_id beside id": (ID + entry("video_id", BROKEN_NUMBER), LISTS),
    "mean_rgb beside frames": (ID + entry("mean_rgb", PART_OF_A_FLOAT), LISTS),
    "an unknown list": (ID, LISTS + entry("motion", delimited(1, BROKEN_FEATURE))),
    "audio_embedding beside rgb": (ID, LISTS + entry("audio_embedding", delimited(1, BROKEN_NUMBER))),
    "an overridden list": (ID, entry("rgb", delimited(1, PART_OF_A_FLOAT)) + LISTS),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_outside_of_what_is_read_is_rejected_as_by_protobuf(case: str) -> None:
    payload = record(*DAMAGED[case])
    with pytest.raises(DecodeError):
        protobuf(payload)
    with pytest.raises(MalformedRecordError):
        read_video(payload)


def test_entries_with_unknown_fields_are_read_although_python_s_protobuf_drops_them() -> None:
    """Protobuf in C++ reads them (tests/fuzz/differences.py)."""
    odd = delimited(1, delimited(1, b"labels") + delimited(9, b"odd") + delimited(2, packed_integers(5)))
    payload = record(ID + odd, LISTS)
    assert "labels" not in protobuf(payload).context.feature
    assert read_video(payload).labels == (5,)


def test_groups_are_rejected_although_protobuf_reads_them() -> None:
    payload = varint(8 * 9 + 3) + varint(8 * 9 + 4) + record(ID, LISTS)
    assert protobuf(payload).context.feature["id"].bytes_list.value == [b"abcd"]
    with pytest.raises(MalformedRecordError, match="wire type 3, which these records do not use"):
        read_video(payload)


def float_feature(*values: float) -> bytes:
    return delimited(2, delimited(1, struct.pack(f"<{len(values)}f", *values)))


def test_whole_numbers_are_read_as_integers_and_as_floats() -> None:
    context = ID + entry("labels", float_feature(3, 3861)) + entry("segment_scores", packed_integers(0, 1, 2))
    found = read_video(record(context + entry("segment_labels", float_feature(7, 8, -9)), LISTS))
    assert (found.labels, found.segment_labels, found.segment_scores) == ((3, 3861), (7, 8, -9), (0.0, 1.0, 2.0))
    assert all(isinstance(label, int) for label in (*found.labels, *found.segment_labels))
    assert all(isinstance(score, float) for score in found.segment_scores)


@pytest.mark.parametrize(("value", "shown"), [(1.5, "1.5"), (float("nan"), "nan"), (float("-inf"), "-inf")])
def test_other_floats_as_integers_are_rejected(value: float, shown: str) -> None:
    payload = record(ID + entry("labels", float_feature(3, value, 0.5)), LISTS)
    with pytest.raises(MalformedRecordError, match=f"labels contains {shown}, expected whole numbers"):
        read_video(payload)


def test_unequally_spaced_frames_have_stride_0() -> None:
    padding = delimited(15, b"between")
    frames = [delimited(1, bytes_feature(frame)) for frame in RGB]
    payload = record(ID, entry("rgb", frames[0] + padding + frames[1] + frames[2]) + entry("audio", frame_list(AUDIO)))
    found = read_video(payload)
    assert (found.rgb.num_frames, found.rgb.stride) == (3, 0)
    rgb, audio = frame_offsets(payload)
    assert [payload[at : at + 1024] for at in rgb] == RGB
    assert [payload[at : at + 128] for at in audio] == AUDIO


def test_equally_spaced_frames_with_unknown_fields_have_a_stride() -> None:
    frames = b"".join(delimited(1, bytes_feature(frame) + delimited(9, b"odd")) for frame in RGB)
    payload = record(ID, entry("rgb", frames) + entry("audio", frame_list(AUDIO)))
    found = read_video(payload)
    assert found.rgb.stride == 1033 + 5
    assert frames_at(payload, found.rgb, 1024) == RGB


@pytest.mark.parametrize("name", ["id", "video_id"])
def test_ids_of_both_names_are_read(name: str) -> None:
    assert read_video(record(entry(name, bytes_feature("Ünï4".encode())), LISTS)).id == "Ünï4"


def test_id_is_preferred_to_video_id() -> None:
    assert read_video(record(entry("video_id", bytes_feature(b"old")) + ID, LISTS)).id == "abcd"


MALFORMED = {
    "no id": (b"", LISTS, "has no id"),
    "two ids": (entry("id", bytes_feature(b"a", b"b")), LISTS, "more than one"),
    "integer id": (entry("id", packed_integers(3)), LISTS, "contains no byte string"),
    "id not UTF-8": (entry("id", bytes_feature(b"\xff\xfe")), LISTS, "not UTF-8"),
    "empty id": (entry("id", bytes_feature(b"")), LISTS, "1 to 64 bytes"),
    "long id": (entry("id", bytes_feature(b"a" * 65)), LISTS, "1 to 64 bytes"),
    "id with a space": (entry("id", bytes_feature(b"a b")), LISTS, "white space"),
    "id with a comma": (entry("id", bytes_feature(b"a,b")), LISTS, "a comma"),
    "id with a colon": (entry("id", bytes_feature(b"a:5")), LISTS, "a colon"),
    "id with a line break": (entry("id", bytes_feature(b"ab\n")), LISTS, "white space"),
    "id with a no-break space": (entry("id", bytes_feature(b"a\xc2\xa0b")), LISTS, "white space"),
    "id with a zero byte": (entry("id", bytes_feature(b"ab\0")), LISTS, "control character"),
    "labels of text": (
        ID + entry("labels", bytes_feature(b"x")),
        LISTS,
        "contains byte strings, expected whole numbers",
    ),
    "part of a float": (ID + entry("segment_scores", delimited(2, delimited(1, b"abc"))), LISTS, "part of a float"),
    "no frames": (ID, entry("motion", frame_list(RGB)), "no rgb or audio frames"),
    "zero frames": (ID, entry("rgb", b"") + entry("audio", b""), "no rgb or audio frames"),
    "short frame": (
        ID,
        entry("rgb", frame_list([*RGB, b"x" * 1000])) + entry("audio", frame_list(AUDIO)),
        "frame 3 of rgb has 1,000 bytes, expected 1,024",
    ),
    "wide audio": (ID, entry("rgb", frame_list(RGB)) + entry("audio", frame_list(RGB)), "1,024 bytes, expected 128"),
    "frame without bytes": (
        ID,
        entry("rgb", frame_list(RGB) + delimited(1, b"")) + entry("audio", frame_list(AUDIO)),
        "frame 3 of rgb contains no byte string",
    ),
    "two strings in a frame": (
        ID,
        entry("rgb", delimited(1, bytes_feature(*RGB[:2]))) + entry("audio", frame_list(AUDIO)),
        "more than one byte string",
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_records_are_rejected_with_their_reason(case: str) -> None:
    context, lists, message = MALFORMED[case]
    payload = record(context, lists)
    with pytest.raises(MalformedRecordError, match=message) as caught:
        read_video(payload)
    assert 0 <= caught.value.offset <= len(payload)
    assert not isinstance(caught.value, WrongDatasetError)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"\x80", "breaks off inside a number"),
        (b"\xff" * 11, "longer than 5 bytes"),
        (varint(8 * 9) + b"\xff" * 11, "longer than 10 bytes"),
        (delimited(1, b"abc")[:-1], "1 bytes beyond the end"),
        (varint(2) + varint(2**63), "longer than 5 bytes"),
        (varint(2) + varint(2**35 - 1), "beyond the end"),
        (varint(8 * 3 + 3), "wire type 3"),
        (varint(7), "wire type 7"),
        (varint(2) + varint(0), "impossible number 0"),
        (varint(8 * 2**29) + varint(0), "impossible number"),
        (varint(8 * 3 + 1) + b"1234567", "1 bytes beyond"),
    ],
)
def test_invalid_messages_are_rejected(payload: bytes, message: str) -> None:
    with pytest.raises(MalformedRecordError, match=message):
        read_video(payload)


@pytest.mark.parametrize("num_bytes", range(2, 12))
def test_padded_keys_and_lengths_are_accepted_up_to_five_bytes_as_by_protobuf(num_bytes: int) -> None:
    """Padded numbers are valid, but a key or a length may have at most five bytes."""
    padding = b"\x80" * (num_bytes - 2) + b"\0"
    for padded in (b"\xca" + padding + b"\1z", b"\x4a\x81" + padding + b"z"):
        payload = padded + record(ID, LISTS)
        if num_bytes <= 5:
            assert read_video(payload).id == protobuf(payload).context.feature["id"].bytes_list.value[0].decode()
            continue
        with pytest.raises(DecodeError):
            protobuf(payload)
        with pytest.raises(MalformedRecordError, match="longer than 5 bytes"):
            read_video(payload)


def test_records_truncated_at_any_byte_are_rejected() -> None:
    payload = encode_video("abcd", np.zeros((2, 1152), np.uint8), [1, 2], ratings=[(1, 0, 1.0)])
    for length in range(len(payload)):
        with pytest.raises(MalformedRecordError):
            read_video(payload[:length])


def test_numbers_of_values_and_parts_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_VALUES", 3)
    monkeypatch.setattr(wire, "MAX_PARTS", 3)
    assert read_video(record(ID + entry("labels", packed_integers(1, 2, 3)), LISTS)).labels == (1, 2, 3)
    for integers in (packed_integers, unpacked_integers):
        with pytest.raises(MalformedRecordError, match="labels contains more than 3 numbers"):
            read_video(record(ID + entry("labels", integers(1, 2, 3, 4)), LISTS))
    with pytest.raises(MalformedRecordError, match="segment_scores contains more than 3 numbers"):
        read_video(record(ID + entry("segment_scores", delimited(2, delimited(1, bytes(16)))), LISTS))
    with pytest.raises(MalformedRecordError, match="more than 3 parts"):
        read_video(delimited(1, ID) * 4 + delimited(2, LISTS))


@pytest.mark.parametrize("unit", [b"\n\x00", b"\n\x02\x12\x00", delimited(1, b"\n\x01a"), b"\x08\x01"])
def test_memory_is_proportional_to_the_record(unit: bytes) -> None:
    """Many tiny fields, as context, as map entries, as one feature and as frames."""
    many = unit * (100_000 // len(unit))
    payloads = [
        many,
        record(many, LISTS),
        record(ID + entry("labels", many), LISTS),
        record(ID, entry("rgb", many) + entry("audio", frame_list(AUDIO))),
    ]
    tracemalloc.start()
    try:
        for payload in payloads:
            with contextlib.suppress(MalformedRecordError):
                read_video(payload)
        assert tracemalloc.get_traced_memory()[1] < 16 * 100_000
    finally:
        tracemalloc.stop()


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_mutated_records_are_read_as_by_protobuf_or_rejected(data: st.DataObject) -> None:
    """For any mutation, the result is a record whose frames are inside the payload or a `MalformedRecordError`."""
    payload = bytearray(encode_video("abcd", np.full((2, 1152), 7, np.uint8), [3, 300], ratings=[(3, 0, 1.0)]))
    # Positions of all bytes except those of frames.
    structure = [i for i, byte in enumerate(payload) if byte != 7]
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.sampled_from(structure)) % len(payload)
        match data.draw(st.sampled_from(["set", "delete", "insert", "copy"])):
            case "set":
                payload[at] = data.draw(st.integers(0, 255))
            case "delete":
                del payload[at : at + data.draw(st.integers(1, 8))]
            case "insert":
                payload[at:at] = data.draw(st.binary(min_size=1, max_size=4))
            case "copy":
                payload[at:at] = payload[at : at + data.draw(st.integers(1, 1200))]
    mutated = bytes(payload)
    try:
        found = read_video(mutated)
    except MalformedRecordError:
        return
    rgb, audio = frame_offsets(mutated)
    assert (len(rgb), len(audio)) == (found.rgb.num_frames, found.audio.num_frames)
    places = np.concatenate([rgb, audio])
    assert places.min() >= 0
    assert (np.concatenate([rgb + 1024, audio + 128]) <= len(mutated)).all()
    if found.rgb.stride:
        assert (rgb == found.rgb.offset + found.rgb.stride * np.arange(len(rgb))).all()
    assert_same_as_protobuf(mutated, found)


def assert_same_as_protobuf(payload: bytes, found: VideoRecord) -> None:
    try:
        message = protobuf(payload)
    except Exception:
        raise AssertionError("the reader accepts what protobuf rejects") from None
    assert found.labels == tuple(message.context.feature["labels"].int64_list.value)
    assert found.segment_start_times == tuple(message.context.feature["segment_start_times"].int64_list.value)
    rgb, audio = frame_offsets(payload)
    assert [payload[at : at + 1024] for at in rgb] == protobuf_frames(message, "rgb")
    assert [payload[at : at + 128] for at in audio] == protobuf_frames(message, "audio")


def test_a_video_level_record_is_read() -> None:
    rng = np.random.default_rng(0)
    rgb, audio = rng.normal(size=1024).astype(np.float32), rng.normal(size=128).astype(np.float32)
    found = read_video_level(encode_video_level("abcd", rgb, audio, [5, 3000]))
    assert (found.id, found.labels) == ("abcd", (5, 3000))
    np.testing.assert_array_equal(found.mean_rgb, rgb)
    np.testing.assert_array_equal(found.mean_audio, audio)
    assert found.mean_rgb.dtype == found.mean_audio.dtype == np.float32


def test_a_video_level_record_with_a_short_mean_is_rejected() -> None:
    payload = encode_video_level("abcd", np.zeros(1023, np.float32), np.zeros(128, np.float32))
    with pytest.raises(MalformedRecordError, match="mean_rgb contains 1,023 numbers, expected 1,024"):
        read_video_level(payload)


def test_records_of_another_level_or_dataset_are_rejected() -> None:
    video_level = encode_video_level("abcd", np.zeros(1024, np.float32), np.zeros(128, np.float32))
    with pytest.raises(WrongDatasetError, match=r"video-level shard .* 2/frame and 3/frame"):
        read_video(video_level)
    audioset = record(ID, entry("audio_embedding", frame_list(AUDIO)))
    with pytest.raises(WrongDatasetError, match="AudioSet"):
        read_video(audioset)
    with pytest.raises(WrongDatasetError, match="AudioSet"):
        read_video_level(audioset)
    with pytest.raises(WrongDatasetError, match="frame-level shard, and video-level ones"):
        read_video_level(record(ID, LISTS))


def test_errors_of_video_level_shards_name_record_and_byte(tmp_path: Path) -> None:
    path = write_video_level_shard(tmp_path / "video.tfrecord", 3)
    assert [found.id for found in read_video_level_shard(path)] == ["0000", "0001", "0002"]
    data = bytearray(path.read_bytes())
    data[-6] ^= 1
    path.write_bytes(data)
    with pytest.raises(ShardError, match=r"video.tfrecord, record 2, byte \d+: the checksum"):
        list(read_video_level_shard(path))
    frames = write_records(tmp_path / "frames.tfrecord", [record(ID, LISTS)])
    with pytest.raises(ShardError, match="record 0, byte 12: this is a frame-level shard"):
        list(read_video_level_shard(frames))


def test_real_video_level_records_are_read_and_audioset_is_rejected(shared_data: Path) -> None:
    video_level = shared_data / "yt8m_video_level" / "validate0000.tfrecord"
    found = list(read_video_level_shard(video_level))
    assert len(found) == 284
    assert (found[0].id, found[0].labels) == ("02aa", (3, 4, 9, 34))
    with pytest.raises(ShardError, match="AudioSet"):
        list(read_video_level_shard(shared_data / "audioset_frame_level" / "rm.tfrecord"))
