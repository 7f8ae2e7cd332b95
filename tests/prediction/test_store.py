"""Stores: probabilities are read back unchanged, and damage raises an error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.support.stores import (
    BLOCK,
    FILES_OF_ONE,
    NUM_CLASSES,
    StoreCase,
    make_store_case,
    names_in,
    stored_codes,
    write_blocks,
    write_store,
)
from yt8m.errors import UsageError, Yt8mError
from yt8m.prediction.quantization import probabilities_of_codes
from yt8m.prediction.store import Store, unfinished_folder
from yt8m.prediction.store_writer import StoreWriter
from yt8m.ranking.ensemble import MergeConfig, Merger
from yt8m.ranking.rank import rank_stored


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> StoreCase:
    return make_store_case(tmp_path_factory.mktemp("shards"))


@pytest.mark.parametrize("segments_per_block", [1, 4, 7, 8192])
def test_round_trip(tmp_path: Path, case: StoreCase, segments_per_block: int) -> None:
    written = write_store(case, tmp_path / "store", ["one", "two"], segments_per_block=segments_per_block)
    store = Store.open(tmp_path / "store")
    assert store.index == written.index == case.index(["one", "two"], segments_per_block=segments_per_block)
    for name in ("one", "two"):
        np.testing.assert_array_equal(stored_codes(store, name), case.codes[name])
        # The documented layout.
        np.testing.assert_array_equal(np.load(tmp_path / "store" / f"{name}.npy"), case.codes[name].T)
    assert names_in(tmp_path) == ["store"]
    assert names_in(tmp_path / "store") == [*FILES_OF_ONE, "two.crc.npy", "two.npy"]


def test_checksums_are_crc32c_of_each_class_in_each_block(tmp_path: Path, case: StoreCase) -> None:
    write_store(case, tmp_path / "store", ["one"])
    found = np.load(tmp_path / "store" / "one.crc.npy")
    assert found.dtype == np.uint32
    for number in range(-(-len(case.segments) // BLOCK)):
        for class_index in range(NUM_CLASSES):
            of_block = case.codes["one"][number * BLOCK : (number + 1) * BLOCK, class_index]
            assert found[number, class_index] == slow_crc32c(of_block.astype("<u2").tobytes())


def slow_crc32c(data: bytes) -> int:
    """CRC32C, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_codes_never_written_are_missing_probabilities(tmp_path: Path, case: StoreCase) -> None:
    """Predictions of an unfinished folder that is opened as a finished one cannot be ranked."""
    writer = StoreWriter(tmp_path / "store", case.index(["one"]))
    writer.prepare()
    write_blocks(case, writer, writer.pending()[:2])
    writer.close()
    work = unfinished_folder(tmp_path / "store")
    codes = np.load(work / "one.npy")
    np.testing.assert_array_equal(codes[:, : 2 * BLOCK], case.codes["one"][: 2 * BLOCK].T)
    assert np.isnan(probabilities_of_codes()[codes[:, 2 * BLOCK :]]).all()
    (work / "predictions.yaml").write_bytes((work / "unfinished.yaml").read_bytes())
    # Even with correct checksums, the missing probabilities are refused.
    forged = Store.open(work)
    with pytest.raises(Yt8mError, match="is damaged"):
        forged.codes("one", 0)
    sums = np.load(work / "one.crc.npy")
    sums[2:] = slow_crc32c(bytes(2 * BLOCK))
    sums[-1] = slow_crc32c(bytes(2 * (len(case.segments) % BLOCK)))
    np.save(work / "one.crc.npy", sums)
    with pytest.raises(Yt8mError, match=rf"segment {case.segments.name(2 * BLOCK)} for class position 0 is nan"):
        rank_stored({"one": Store.open(work)}, Merger(MergeConfig(), ["one"]), case.segments, 5)


def test_an_unfinished_folder_is_refused(tmp_path: Path, case: StoreCase) -> None:
    writer = StoreWriter(tmp_path / "store", case.index(["one"]))
    writer.prepare()
    write_blocks(case, writer, writer.pending()[:-1])
    writer.close()
    for folder in (tmp_path / "store", tmp_path / "store.unfinished"):
        with pytest.raises(UsageError, match=r"is not finished; run the same .* to resume it\.$") as raised:
            Store.open(folder)
        assert str(raised.value).startswith(f"{folder}: ")


def test_folders_other_than_stores_are_refused(tmp_path: Path, case: StoreCase) -> None:
    with pytest.raises(UsageError, match="there is no such folder of predictions"):
        Store.open(tmp_path / "absent")
    with pytest.raises(UsageError, match="is not a folder of predictions"):
        Store.open(tmp_path)
    write_store(case, tmp_path / "store", ["one"])
    index = tmp_path / "store" / "predictions.yaml"
    values = yaml.safe_load(index.read_text())
    assert values["format_version"] == 2
    for version in (1, 99):
        index.write_text(yaml.safe_dump(values | {"format_version": version}))
        with pytest.raises(UsageError, match=f"predictions of version {version}, expected 2; predict again"):
            Store.open(tmp_path / "store")
    index.write_text(yaml.safe_dump(values | {"num_segments": "many"}))
    with pytest.raises(UsageError, match="'num_segments': expected a valid integer, found 'many'"):
        Store.open(tmp_path / "store")


def test_predictions_of_the_first_version_are_refused(tmp_path: Path) -> None:
    """Its index has other keys, so the version is checked first."""
    (tmp_path / "predictions.yaml").write_text(
        "format_version: 1\nmodels: [one]\nvocabulary: v\ncatalog: c\nnum_segments: 3\nnum_classes: 2\n"
    )
    with pytest.raises(UsageError, match="predictions of version 1, expected 2; predict again"):
        Store.open(tmp_path)


@pytest.mark.parametrize("name", ["one.npy", "one.crc.npy"])
@pytest.mark.parametrize(
    "damage",
    ["absent", "truncated", "empty", "no array", "a zip", "other shape", "other type", "other order", "pickled"],
)
def test_damaged_files_raise_an_error(tmp_path: Path, case: StoreCase, damage: str, name: str) -> None:
    write_store(case, tmp_path / "store", ["one"])
    path = tmp_path / "store" / name
    content = np.load(path)
    if damage == "absent":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-10])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "no array":
        path.write_text("probabilities")
    elif damage == "a zip":
        path.write_bytes(b"PK\x03\x04" + bytes(100))
    elif damage == "other shape":
        np.save(path, content[1:])
    elif damage == "other type":
        np.save(path, content.astype(np.float64))
    elif damage == "other order":
        np.save(path, np.asfortranarray(content))
    else:
        np.save(path, np.array([{"a": 1}], object))
    store = Store.open(tmp_path / "store")
    with pytest.raises(Yt8mError) as raised:
        store.codes("one", 0)
    assert str(raised.value).startswith(f"{path}: ")
    assert str(raised.value).endswith(".")


def test_any_changed_byte_of_the_codes_is_detected(tmp_path: Path, case: StoreCase) -> None:
    write_store(case, tmp_path / "store", ["one"])
    path = tmp_path / "store" / "one.npy"
    content = path.read_bytes()
    offset = np.load(path, mmap_mode="r").offset
    num_segments = len(case.segments)
    assert len(content) == offset + 2 * NUM_CLASSES * num_segments
    generator = np.random.default_rng(0)
    for byte in range(offset, len(content)):
        damaged = bytearray(content)
        damaged[byte] ^= 1 << int(generator.integers(8))
        path.write_bytes(damaged)
        store = Store.open(tmp_path / "store")
        class_index, position = divmod((byte - offset) // 2, num_segments)
        for other in range(NUM_CLASSES):
            if other != class_index:
                store.codes("one", other)
        message = rf"class position {class_index}, segments from {position // BLOCK * BLOCK}: the checksum is wrong"
        with pytest.raises(Yt8mError, match=message):
            store.codes("one", class_index)


def test_a_changed_byte_of_a_header_is_detected_or_harmless(tmp_path: Path, case: StoreCase) -> None:
    write_store(case, tmp_path / "store", ["one"])
    path = tmp_path / "store" / "one.npy"
    content = path.read_bytes()
    generator = np.random.default_rng(0)
    for byte in range(np.load(path, mmap_mode="r").offset):
        damaged = bytearray(content)
        damaged[byte] ^= int(generator.integers(1, 256))
        path.write_bytes(damaged)
        try:
            found = Store.open(tmp_path / "store").codes("one", 0)
        except Yt8mError:
            continue
        np.testing.assert_array_equal(found, case.codes["one"][:, 0])
