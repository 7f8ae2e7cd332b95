"""Features of other programs as shards: MediaPipe's, the official extractor's, floats, and NumPy's archives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.command import refused, succeeds, yt8m
from tests.support.kills import contents
from tests.support.rows import labels_of, ratings_of
from tests.support.tensorflow import tf
from yt8m.dataset.frames import FrameReader
from yt8m.dataset.indexing import index_folder
from yt8m.errors import UsageError
from yt8m.extraction.converting import convert
from yt8m.extraction.videos import read_videos
from yt8m.shards.ids import id_fault

SECONDS = 7


def floats(seed: int, size: int, seconds: int = SECONDS) -> np.ndarray:
    """Features of a video, some of them beyond the range of bytes."""
    return np.random.default_rng(seed).normal(size=(seconds, size)).astype(np.float32)


def slowly_quantized(values: np.ndarray) -> list[list[int]]:
    """Bytes by the formula, one number after the other."""
    rows = [[float(value) for value in row] for row in values]
    return [[math.floor((min(2, max(-2, value)) + 2) * 255 / 4 + 0.5) for value in row] for row in rows]


def example(lists: dict[str, Any], **context: Any) -> bytes:
    """A SequenceExample, serialized by TensorFlow, of lists of floats or of byte strings."""

    def feature(values: Any) -> Any:
        if isinstance(values, bytes):
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=[values]))
        if isinstance(values[0], int):
            return tf.train.Feature(int64_list=tf.train.Int64List(value=values))
        return tf.train.Feature(float_list=tf.train.FloatList(value=values))

    named = {name: tf.train.FeatureList(feature=map(feature, rows)) for name, rows in lists.items()}
    message = tf.train.SequenceExample(
        context=tf.train.Features(feature={name.replace("__", "/"): feature(value) for name, value in context.items()}),
        feature_lists=tf.train.FeatureLists(feature_list=named),
    )
    serialized: bytes = message.SerializeToString()
    return serialized


def write_tfrecord(path: Path, records: Sequence[bytes]) -> Path:
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    return path


def official(path: str, seed: int) -> bytes:
    """A record of the official extractor: bytes of rgb, zeros for sound, the path of the video as id."""
    rgb = np.random.default_rng(seed).integers(0, 256, (SECONDS, 1024), dtype=np.uint8)
    lists = {"rgb": [row.tobytes() for row in rgb], "audio": [bytes(128)] * SECONDS}
    return example(lists, id=path.encode(), labels=[3, 5], mean_rgb=[0.0] * 1024)


def frames_of(folder: Path, video_id: str) -> np.ndarray:
    catalog = index_folder(folder)
    row = catalog.video_ids.index(video_id)
    return FrameReader(catalog).read(row, 0, int(catalog.num_frames[row]))


def test_mediapipe_features_are_quantized(tmp_path: Path) -> None:
    rgb, audio = floats(0, 1024), floats(1, 128, SECONDS - 2)
    lists = {"RGB/feature/floats": rgb.tolist(), "AUDIO/feature/floats": audio.tolist()}
    lists["RGB/feature/timestamp"] = [[second * 1_000_000] for second in range(SECONDS)]
    path = tmp_path / "features.pb"
    path.write_bytes(example(lists, clip__data_path=b"/videos/holiday.mp4"))
    found = convert([path], tmp_path / "out")
    [video] = found.videos
    assert (video.path, video.seconds, video.shard) == (str(path), SECONDS, "videos0000.tfrecord")
    assert video.note == "of /videos/holiday.mp4; no sound in the last 2 seconds"
    frames = frames_of(tmp_path / "out", video.video_id)
    assert frames[:, :1024].tolist() == slowly_quantized(rgb)
    assert frames[: SECONDS - 2, 1024:].tolist() == slowly_quantized(audio)
    assert (frames[SECONDS - 2 :, 1024:] == 127).all()


def test_shards_of_the_official_extractor_get_ids_that_lead_back_to_the_paths(tmp_path: Path) -> None:
    paths = ["/my videos/a b.mp4", "/" + "long/" * 20 + "c.mp4", "/videos/ü.mp4"]
    records = [official(path, seed) for seed, path in enumerate(paths)]
    shard = write_tfrecord(tmp_path / "features.tfrecord", records)
    catalog = index_folder(tmp_path)
    assert catalog.video_ids == ["/videos/ü.mp4"]
    found = convert([shard], tmp_path / "out")
    assert [video.path for video in found.videos] == paths
    ids = [video.video_id for video in found.videos]
    assert ids[2] == "/videos/ü.mp4"
    assert len(set(ids)) == 3
    assert all(id_fault(video_id.encode()) is None and len(video_id) < 16 for video_id in ids)
    catalog = index_folder(tmp_path / "out")
    assert catalog.video_ids == ids
    assert labels_of(catalog, 0).tolist() == [3, 5]
    frames = frames_of(tmp_path / "out", ids[0])
    expected = np.random.default_rng(0).integers(0, 256, (SECONDS, 1024), dtype=np.uint8)
    np.testing.assert_array_equal(frames[:, :1024], expected)
    # Zeros stand for sound that was not extracted.
    assert (frames[:, 1024:] == 127).all()
    assert found.videos[0].note == f"record 0 of {shard}; no sound"


def test_shards_of_floats_keep_ids_labels_and_ratings(tmp_path: Path) -> None:
    rgb, audio = floats(0, 1024), floats(1, 128)
    record = example(
        {"rgb": rgb.tolist(), "audio": audio.tolist()},
        video_id=b"abcd", labels=[7], segment_labels=[7, 8], segment_start_times=[0, 5], segment_scores=[1.0, 0.0],
    )  # fmt: skip
    shard = write_tfrecord(tmp_path / "train0000.tfrecord", [record])
    assert refused(1, "index", tmp_path).endswith(
        "this is a frame-level shard of floats, and bytes are needed; `yt8m extract --from-features SHARD --out FOLDER` "
        "converts it."
    )
    convert([shard], tmp_path / "out")
    catalog = index_folder(tmp_path / "out")
    assert catalog.video_ids == ["abcd"]
    assert labels_of(catalog, 0).tolist() == [7]
    assert [column.tolist() for column in ratings_of(catalog, 0)] == [[7, 8], [0, 5], [1, 0]]
    frames = frames_of(tmp_path / "out", "abcd")
    assert frames.tolist() == [a + b for a, b in zip(slowly_quantized(rgb), slowly_quantized(audio), strict=True)]


def test_records_of_mediapipe_in_a_shard_are_recognized(tmp_path: Path) -> None:
    record = example({"RGB/feature/floats": floats(0, 1024).tolist()}, id=b"abcd")
    write_tfrecord(tmp_path / "a.tfrecord", [record])
    assert "yt8m extract --from-features" in refused(1, "index", tmp_path)
    assert [video.note for video in convert([tmp_path / "a.tfrecord"], tmp_path / "out").videos] == [
        f"record 0 of {tmp_path / 'a.tfrecord'}; no sound"
    ]


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_archives_of_numpy_are_read(tmp_path: Path, dtype: type) -> None:
    rgb, audio = floats(0, 1024), floats(1, 128, SECONDS + 3)
    if dtype is np.uint8:
        rgb, audio = (np.array(slowly_quantized(values), np.uint8) for values in (rgb, audio))
    np.savez_compressed(tmp_path / "a.npz", rgb=rgb.astype(dtype), audio=audio.astype(dtype))
    np.savez(tmp_path / "b.npz", rgb=rgb[:3].astype(dtype))
    found = convert([tmp_path], tmp_path / "out")
    with_sound, without = found.videos
    frames = frames_of(tmp_path / "out", with_sound.video_id)
    expected = [values if dtype is np.uint8 else slowly_quantized(values) for values in (rgb, audio[:SECONDS])]
    np.testing.assert_array_equal(frames, np.concatenate(expected, axis=1))
    assert (frames_of(tmp_path / "out", without.video_id)[:, 1024:] == 127).all()
    assert [video.note for video in found.videos] == ["", "no sound"]


def test_files_that_fail_are_listed_and_the_others_are_converted(tmp_path: Path) -> None:
    folder = tmp_path / "features"
    folder.mkdir()
    (folder / "a.pb").write_bytes(b"\xff\xff")
    (folder / "b.npz").write_bytes(b"PK")
    np.savez(folder / "c.npz", rgb=floats(0, 512))
    np.savez(folder / "d.npz", other=floats(0, 1024))
    np.savez(folder / "e.npz", rgb=np.full((3, 1024), np.nan, np.float32))
    np.savez(folder / "f.npz", rgb=np.empty((0, 1024), np.float32))
    np.savez(folder / "g.npz", rgb=np.array([None]), allow_pickle=True)
    (folder / "h.pb").write_bytes(example({"rgb": [[0.0] * 10]}))
    (folder / "i.pb").write_bytes(example({"audio": [[0.0] * 128]}))
    good = write_tfrecord(tmp_path / "good", [official("/a b", 0), b"\xff", official("/c d", 1)]).read_bytes()
    (folder / "j.tfrecord").write_bytes(good[:-5])
    np.savez(folder / "k.npz", rgb=floats(0, 1024))
    messages: list[str] = []
    found = convert([folder], tmp_path / "out", report=messages.append)
    assert found.num_new == 2
    shown = [message.removeprefix(f"{folder}/") for message in messages]
    for start, expected in zip(
        ["a.pb", "b.npz", "c.npz", "d.npz", "e.npz", "f.npz", "g.npz", "h.pb", "i.pb"],
        [
            "is damaged, or is no SequenceExample", "is damaged, or is no .npz file", "rgb has the shape (7, 512)",
            "contains other; expected rgb and audio", "rgb contains numbers that are not finite", "contains no frames",
            "pickled objects, which are not read", "frame 0 of rgb has 10 numbers, expected 1,024",
            "contains no frames of rgb; expected the lists rgb (RGB/feature/floats)",
        ],
        strict=True,
    ):  # fmt: skip
        assert any(line.startswith(f"{start}: ") and expected in line for line in shown), (expected, shown)
    assert "j.tfrecord, record 1: is damaged, or is no SequenceExample" in shown
    assert "j.tfrecord, record 2: the shard ends inside a record (5 bytes are missing)" in shown
    assert len(found.failed) == len(messages) == 11
    assert read_videos(tmp_path / "out") == found.videos
    # A file that is right now is converted, and is no longer listed as failed.
    (folder / "j.tfrecord").write_bytes(good)
    found = convert([folder], tmp_path / "out")
    assert (found.num_new, found.num_known, len(found.failed)) == (1, 2, 10)
    assert len(index_folder(tmp_path / "out")) == 3


def test_an_interrupted_conversion_ends_with_the_same_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "features"
    folder.mkdir()
    for seed in range(4):
        np.savez(folder / f"{seed}.npz", rgb=floats(seed % 3, 1024))
    (folder / "2b.pb").write_bytes(b"\xff")
    write_tfrecord(folder / "z.tfrecord", [official(f"/a {seed}", seed) for seed in range(3)])
    write_tfrecord(folder / "zz.tfrecord", [official("/x", 0), official("/x", 1)])

    def converted(out: Path, stop_after: int | None = None) -> int:
        def progress(*_: object) -> Any:
            class Task:
                def __enter__(self) -> Any:
                    return self

                def __exit__(self, *_: object) -> None:
                    pass

                def __call__(self, done: int, *_: object, **__: object) -> None:
                    if done == stop_after:
                        raise KeyboardInterrupt

            return Task()

        return convert([folder], out, videos_per_shard=2, progress=progress).num_new

    assert converted(tmp_path / "whole") == 7
    whole = contents(tmp_path / "whole")
    assert [name for name in whole if name.endswith(".tfrecord")]
    assert converted(tmp_path / "whole") == 0
    assert contents(tmp_path / "whole") == whole
    notes = {video.path: video.note for video in read_videos(tmp_path / "whole")}
    assert notes[str(folder / "3.npz")] == f"no sound; the same content as {folder / '0.npz'}"
    last = folder / "zz.tfrecord"
    assert notes["/x"] == f"record 1 of {last}; no sound; the same id as record 0 of {last}"
    for stop_after in range(7):
        out = tmp_path / f"stopped-{stop_after}"
        with pytest.raises(KeyboardInterrupt):
            converted(out, stop_after)
        converted(out)
        assert contents(out) == whole


def test_the_command_converts_without_weights_and_indexes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YT8M_WEIGHTS", str(tmp_path / "none"))
    np.savez(tmp_path / "a.npz", rgb=floats(0, 1024), audio=floats(1, 128))
    out = tmp_path / "out"
    shown = succeeds("extract", "--from-features", tmp_path / "a.npz", "--out", out)
    assert shown.out.startswith(f"{out}: 1 new video, 0 known before, 7 s of video in all\n")
    assert (out / "catalog.parquet").is_file()
    (tmp_path / "b.npz").write_bytes(b"PK")
    outcome = yt8m("extract", "--from-features", tmp_path, "--out", out)
    assert outcome.status == 1
    assert "b.npz: is damaged, or is no .npz file" in outcome.err
    assert "give neither" in refused(2, "extract", "--from-features", tmp_path, "--out", out, "--max-seconds", 3)
    (tmp_path / "empty").mkdir()
    assert refused(2, "extract", "--from-features", tmp_path / "empty", "--out", out) == (
        f"{tmp_path / 'empty'}: contains no files of features (*.pb, *.npz, *.tfrecord, *.tfrecords or "
        "NAME-00000-of-00100)."
    )
    with pytest.raises(UsageError, match="was extracted with videos_per_shard 256, not 2"):
        convert([tmp_path], out, videos_per_shard=2)


def test_a_folder_of_ids_that_cannot_be_used_names_the_command(tmp_path: Path) -> None:
    write_tfrecord(tmp_path / "a.tfrecord", [official("/my videos/a.mp4", 0)])
    assert "`yt8m extract --from-features` gives them others" in refused(1, "index", tmp_path)
