"""Features of any width: descriptions, shards, catalogs and frames."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.support.wire import bytes_feature, entry, frame_list, record
from yt8m.dataset.batches import join_features, read_padded
from yt8m.dataset.catalog import Catalog, OutdatedError
from yt8m.dataset.frames import FrameReader
from yt8m.dataset.indexing import current_catalog, index_and_save, index_folder
from yt8m.dataset.problems import Oddity
from yt8m.errors import UsageError, Yt8mError
from yt8m.features import YOUTUBE8M, Extractor, Features, Modality
from yt8m.shards.writer import ShardWriter, encode_video

WIDE = Features(name="wide", rgb=Modality(size=1280), audio=Modality(size=64))
RGB_ONLY = Features(name="seen", rgb=Modality(size=3, scale=[1.0, 0.5, 2.0], offset=[0.0, -10.0, -511.0]), audio=None)
AUDIO_ONLY = Features(name="heard", rgb=None, audio=Modality(size=40))
HALVES = Features(name="halves", dtype="float16", rgb=Modality(size=5), audio=Modality(size=2))
ALL = pytest.mark.parametrize("features", [YOUTUBE8M, WIDE, RGB_ONLY, AUDIO_ONLY, HALVES], ids=lambda f: f.name)


def random_frames(features: Features, num_frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num_frames, features.frame_bytes), np.uint8)


def written(folder: Path, features: Features, lengths: tuple[int, ...] = (50, 70)) -> list[np.ndarray]:
    """Write one shard of videos, and the description of their features."""
    videos = [random_frames(features, length, length) for length in lengths]
    with ShardWriter(folder / "a.tfrecord") as writer:
        for number, frames in enumerate(videos):
            writer.write(encode_video(f"v{number}", frames, [3], features=features))
    features.save(folder)
    return videos


# --- Descriptions ----------------------------------------------------------------------------------------------------


def test_the_default_is_youtube8m() -> None:
    assert (YOUTUBE8M.size, YOUTUBE8M.frame_bytes, YOUTUBE8M.bytes_of("rgb")) == (1152, 1152, 1024)
    # 127 * 4/255 + 4/512 - 2 = 0.0000, the value nearest to 0.
    assert set(YOUTUBE8M.missing("audio")) == {127}
    assert (HALVES.size, HALVES.frame_bytes, HALVES.bytes_of("audio")) == (7, 14, 4)
    assert RGB_ONLY.missing("rgb").tolist() == [0, 20, 255]
    assert len(RGB_ONLY.missing("audio")) == 0


@ALL
def test_a_description_is_read_as_it_was_written(features: Features, tmp_path: Path) -> None:
    described = features.model_copy(update={"extractor": Extractor(name="net", digest="abc")})
    described.save(tmp_path)
    assert Features.of_folder(tmp_path) == described
    assert Features.of_folder(tmp_path / "segment" / "train") == described
    assert described.digest != features.digest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rgb": None, "audio": None}, "expected rgb, audio or both"),
        ({"rgb": {"size": 3, "scale": [1.0, 2.0]}}, "'rgb': scale: expected one number or 3, found 2"),
        ({"rgb": {"size": 3, "scale": 0.0}}, "'rgb': scale: expected numbers above 0"),
        ({"rgb": {"size": 0}}, "'rgb.size': expected greater than or equal to 1, found 0"),
        ({"frames_per_second": 2}, "only 1 frame per second is supported"),
        ({"dtype": "float32"}, "'dtype': expected 'uint8' or 'float16', found 'float32'"),
        ({"name": "a b"}, "'name'"),
        ({"widht": 3}, "unknown key 'widht'"),
    ],
)
def test_an_invalid_description_is_refused(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    written(tmp_path, YOUTUBE8M)
    path = tmp_path / "features.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))
    with pytest.raises(UsageError, match=f"^{path}: .*{message.replace('[', '.')}"):
        index_folder(tmp_path)


def test_differing_features_are_named() -> None:
    with pytest.raises(UsageError, match=r"^m: was trained on features 'wide', and these are 'youtube8m'\.$"):
        WIDE.require_same(YOUTUBE8M, "m: was trained on")
    other = WIDE.model_copy(update={"audio": None, "dtype": "float16"})
    with pytest.raises(UsageError, match=r"other features 'wide' than these: dtype, audio differ\.$"):
        WIDE.require_same(other, "m: was trained on")
    WIDE.require_same(WIDE.model_copy(), "m: was trained on")


# --- Shards, catalogs and frames -------------------------------------------------------------------------------------


@ALL
def test_frames_are_read_as_they_were_written(features: Features, tmp_path: Path) -> None:
    videos = written(tmp_path, features)
    index_and_save(tmp_path)
    catalog = Catalog.load(tmp_path)
    assert (catalog.features, catalog.num_problems, catalog.num_frames.tolist()) == (features, 0, [50, 70])
    assert catalog.oddities == {}
    reader = FrameReader(catalog)
    for row, frames in enumerate(videos):
        assert (reader.read(row) == frames).all()
        assert (reader.gather(row, np.array([40, 2, 7])) == frames[[40, 2, 7]]).all()
    chosen = [slice(0, 50), np.array([0, 33, 34, 69])]
    batch = read_padded(reader, np.array([0, 1]), chosen)
    joined = join_features(batch).numpy()
    assert joined.shape == (2, 50, features.frame_bytes)
    assert (joined[0] == videos[0]).all()
    assert (joined[1, :4] == videos[1][[0, 33, 34, 69]]).all()
    assert not joined[1, 4:].any()


def test_a_changed_description_makes_the_catalog_outdated(tmp_path: Path) -> None:
    written(tmp_path, WIDE)
    first = index_and_save(tmp_path)
    assert current_catalog(tmp_path) is not None
    WIDE.model_copy(update={"name": "other"}).save(tmp_path)
    with pytest.raises(OutdatedError, match="has other features than when it was indexed"):
        Catalog.load(tmp_path).refreshed()
    second = index_and_save(tmp_path)
    assert (second.features.name, second.digest == first.digest) == ("other", False)


def test_frames_of_another_size_are_damage_with_both_sizes(tmp_path: Path) -> None:
    written(tmp_path, WIDE)
    (tmp_path / "features.yaml").unlink()
    with pytest.raises(Yt8mError, match="frame 0 of rgb has 1,280 bytes, expected 1,024"):
        index_folder(tmp_path)


@pytest.mark.parametrize("name", ["rgb", "audio"])
@pytest.mark.parametrize("spaced", [True, False])
def test_a_video_without_a_modality_has_values_of_zero_there(name: str, spaced: bool, tmp_path: Path) -> None:
    size, columns = (1024, slice(0, 1024)) if name == "audio" else (128, slice(1024, 1152))
    other = "rgb" if name == "audio" else "audio"
    values = [bytes([7 * i % 256]) * size for i in range(60)]
    listed = frame_list(values)
    if not spaced:
        # An unknown field after the first frame: no equal distances.
        first = frame_list(values[:1])
        listed = first + b"\x78\x01" + frame_list(values[1:])
    empty = entry(name, b"")
    with ShardWriter(tmp_path / "a.tfrecord") as writer:
        writer.write(encode_video("both", random_frames(YOUTUBE8M, 60)))
        writer.write(record(entry("id", bytes_feature(b"one")), entry(other, listed)))
        writer.write(record(entry("id", bytes_feature(b"none")), entry(other, listed) + empty))
    catalog = index_folder(tmp_path)
    oddity = Oddity.RGB_MISSING if name == "rgb" else Oddity.AUDIO_MISSING
    assert catalog.oddities[oddity] == 2
    assert catalog.num_problems == 0
    assert catalog.save() == tmp_path / "catalog.parquet"
    reader = FrameReader(Catalog.load(tmp_path))
    for row in (1, 2):
        frames = reader.read(row)
        assert frames.shape == (60, 1152)
        assert [bytes(frame[columns]) for frame in frames] == values
        missing = frames[:, 1024:] if name == "audio" else frames[:, :1024]
        assert (missing == 127).all()
        sampled = join_features(read_padded(reader, np.array([row, 0]), [np.array([1, 30, 59]), slice(0, 3)])).numpy()
        assert (sampled[0] == frames[[1, 30, 59]]).all()
    assert (reader.read(0) == random_frames(YOUTUBE8M, 60)).all()


def test_a_tampered_row_without_frames_is_refused(tmp_path: Path) -> None:
    written(tmp_path, AUDIO_ONLY)
    catalog = index_folder(tmp_path)
    zeros = np.zeros_like(catalog.audio_offset)
    object.__setattr__(catalog, "audio_offset", zeros)
    object.__setattr__(catalog, "audio_stride", zeros.astype(np.int32))
    catalog.save()
    with pytest.raises(Yt8mError, match="a row has no frames"):
        Catalog.load(tmp_path)


def test_a_copy_of_the_folder_keeps_its_features(tmp_path: Path) -> None:
    written(tmp_path / "a", HALVES)
    digest = index_and_save(tmp_path / "a").digest
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert Catalog.load(tmp_path / "b").refreshed().digest == digest
