"""Catalogs that were edited or damaged: never a crash or a traceback, and the shards are indexed again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.catalogs import assert_same
from tests.support.tiny_shards import random_videos, write_shards
from yt8m.dataset.catalog import FILE_NAME, RATING_COLUMNS, ROW_COLUMNS, Catalog
from yt8m.dataset.frames import FrameReader
from yt8m.dataset.indexing import index_and_save, load_or_index
from yt8m.dataset.sampling import even_frames
from yt8m.dataset.validation import require_valid
from yt8m.errors import Yt8mError

KEY = b"yt8m"
LISTS = ("label_values", *RATING_COLUMNS)
COLUMNS = ("ids", *ROW_COLUMNS, *LISTS)
NUM_VIDEOS = 6


class Case(NamedTuple):
    """A folder with a catalog, and what the catalog contained."""

    folder: Path
    intact: Catalog

    @property
    def path(self) -> Path:
        return self.folder / FILE_NAME


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("tampered")
    write_shards(folder, random_videos(NUM_VIDEOS, num_frames=(50, 60), ratings_per_video=4), num_shards=2)
    return Case(folder, index_and_save(folder))


def assert_indexed_again(case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    """Require a one-sentence message, and the intact catalog, in memory and on disk."""
    with pytest.raises(Yt8mError, match="is not a catalog, or is damaged"):
        Catalog.load(case.folder)
    capfd.readouterr()
    assert_same(load_or_index(case.folder), case.intact)
    message = capfd.readouterr().err.splitlines()
    assert len(message) == 1
    assert message[0].startswith(f"{case.path}: is not a catalog, or is damaged")
    assert message[0].endswith("; the folder is indexed again.")
    assert_same(Catalog.load(case.folder), case.intact)


# --- Columns of the file ----------------------------------------------------------------------------------------------


def numbers_changed(numbers: pa.Array) -> Iterator[tuple[str, pa.Array]]:
    """Other numbers of the same type and count."""
    kind = numbers.type.to_pandas_dtype()
    values = numbers.to_numpy()
    limits = np.iinfo(kind)
    for name, value in (("least", limits.min), ("zero", 0), ("large", limits.max // 2), ("most", limits.max)):
        for places, changed in (("all", slice(None)), ("first", slice(0, 1)), ("last", slice(-1, None))):
            other = values.copy()
            other[changed] = value
            yield f"{name} in {places}", pa.array(other)
    for name, step in (("one more", 1), ("one less", -1)):
        other = values.copy()
        other[1] = (int(other[1]) + step) % (int(limits.max) + 1)
        yield name, pa.array(other)
    yield "reversed", pa.array(values[::-1])
    yield "rotated", pa.array(np.roll(values, 1))


def columns_changed(column: pa.Array) -> Iterator[tuple[str, pa.Array]]:
    """Other contents of a column of the same number of rows."""
    kind = column.type
    if pa.types.is_string(kind):
        for name, values in {
            "reversed": column.to_pylist()[::-1],
            "empty": [""] * len(column),
            "equal": [column[0].as_py()] * len(column),
            "long": ["x" * 10_000] * len(column),
            "with a NUL": ["a\0b", *column.to_pylist()[1:]],
            "with a space": ["a b", *column.to_pylist()[1:]],
        }.items():
            yield name, pa.array(values)
        broken = pa.array([b"\xff\xfe"] * len(column), pa.binary())
        yield "not UTF-8", pa.StringArray.from_buffers(len(column), *broken.buffers()[1:])
        yield "bytes", column.cast(pa.binary())
        yield "large strings", column.cast(pa.large_string())
        yield "numbers", pa.array(np.arange(len(column)))
    elif pa.types.is_large_list(kind):
        for name, values in numbers_changed(column.values):
            yield name, pa.LargeListArray.from_arrays(column.offsets, values)
        lists = column.to_pylist()
        for name, changed in {
            "reversed rows": lists[::-1],
            "no lists": [[]] * len(lists),
            "first list empty": [[], *lists[1:]],
            "one number less": [lists[0][:-1], *lists[1:]],
            "one number more": [[*lists[0], 200], *lists[1:]],
            "moved to the next row": [lists[0][:-1], [lists[0][-1], *lists[1]], *lists[2:]],
            "a list missing": [None, *lists[1:]],
            "a number missing": [[None, *lists[0][1:]], *lists[1:]],
        }.items():
            yield name, pa.array(changed, kind)
        yield "small lists", column.cast(pa.list_(kind.value_type))
        yield "other numbers", column.cast(pa.large_list(pa.int64()))
        yield "no lists at all", pa.array(np.zeros(len(lists), np.int32))
    else:
        yield from numbers_changed(column)
        yield "a number missing", pa.array([None, *column.to_pylist()[1:]], kind)
        yield "all missing", pa.nulls(len(column), kind)
        yield "floats", column.cast(pa.float64())
        yield "text", column.cast(pa.string())
        yield "other width", column.cast(pa.int64() if kind == pa.int32() else pa.float32(), safe=False)
        yield "lists", pa.array([[number] for number in column.to_pylist()])


def tables_changed(table: pa.Table, name: str) -> Iterator[tuple[str, pa.Table]]:
    """The table with one column tampered with."""
    place = table.schema.get_field_index(name)
    column = table.column(name).combine_chunks()
    for change, other in columns_changed(column):
        if not other.equals(column):
            yield change, table.set_column(place, name, other)
    yield "dropped", table.drop_columns([name])
    yield "renamed", table.rename_columns([f"{each}x" if each == name else each for each in table.column_names])
    yield "twice", table.append_column(name, column)
    yield "extra", table.append_column(f"{name}2", column)


@pytest.mark.parametrize("name", COLUMNS)
def test_a_changed_column_is_found(case: Case, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    table = pq.read_table(case.path)
    count = 0
    for _, changed in tables_changed(table, name):
        pq.write_table(changed, case.path)
        assert_indexed_again(case, capfd)
        count += 1
    assert count >= 12


@pytest.mark.parametrize("change", ["one row less", "no rows", "rows reversed", "rows twice"])
def test_changed_rows_are_found(case: Case, change: str, capfd: pytest.CaptureFixture[str]) -> None:
    table = pq.read_table(case.path)
    changed = {
        "one row less": table.slice(0, NUM_VIDEOS - 1),
        "no rows": table.slice(0, 0),
        "rows reversed": table.take(list(reversed(range(NUM_VIDEOS)))),
        "rows twice": pa.concat_tables([table, table]),
    }[change]
    pq.write_table(changed, case.path)
    assert_indexed_again(case, capfd)


# --- Metadata ---------------------------------------------------------------------------------------------------------


def metadata_changed(about: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Other metadata of a catalog."""
    for key, present in about.items():
        yield {name: value for name, value in about.items() if name != key}
        for value in (None, -1, 0, 10**30, 1.5, "x", [], [1], {}, {"x": "y"}, [[]], [["a", 1, 2, 3, 4]], True):
            # Other formats are refused with another message.
            if value != present and (key != "format" or value is True):
                yield about | {key: value}
    shard = about["shards"][0]
    for place in range(len(shard)):
        for value in (None, -1, 0, 2**31, 2**62, 2**63, 1.5, "../../etc/passwd", "x.tfrecord", [], True):
            other = [*shard[:place], value, *shard[place + 1 :]]
            yield about | {"shards": [other, *about["shards"][1:]]}
    yield about | {"shards": about["shards"][::-1]}
    yield about | {"shards": about["shards"][:1]}
    yield about | {"shards": [*about["shards"], about["shards"][-1]]}
    yield about | {"shards": [each[:3] for each in about["shards"]]}
    yield about | {"extra": 1}


def test_changed_metadata_are_found(case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    table = pq.read_table(case.path)
    about = json.loads(table.schema.metadata[KEY])
    count = 0
    for changed in metadata_changed(about):
        pq.write_table(table.replace_schema_metadata({KEY: json.dumps(changed).encode()}), case.path)
        assert_indexed_again(case, capfd)
        count += 1
    for text in (b"", b"null", b"[]", b"1", b'"x"', b"\xff", b"[" * 100_000, b"NaN"):
        pq.write_table(table.replace_schema_metadata({KEY: text}), case.path)
        assert_indexed_again(case, capfd)
        count += 1
    assert count > 100


# --- Bytes of the file ------------------------------------------------------------------------------------------------


def test_changed_bytes_are_found_or_change_nothing(case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    data = case.path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for number in range(150):
        changed = bytearray(data)
        match number % 3:
            case 0:
                changed[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
            case 1:
                del changed[rng.integers(len(data)) :]
            case 2:
                start = int(rng.integers(len(data)))
                changed[start : start + 64] = bytes(len(changed[start : start + 64]))
        case.path.write_bytes(changed)
        try:
            loaded = Catalog.load(case.folder)
        except Yt8mError:
            refused += 1
            assert_same(load_or_index(case.folder), case.intact)
        else:
            # Parts of a Parquet file, such as statistics, have no meaning for a catalog.
            assert_same(loaded, case.intact)
    assert refused > 100
    case.path.write_bytes(data)


# --- Values with a right checksum -------------------------------------------------------------------------------------


def read_everything(catalog: Catalog) -> None:
    reader = FrameReader(catalog)
    for row in range(len(catalog)):
        reader.read(row)
        reader.gather(row, even_frames(0, reader.num_frames(row), 20))


def values_changed(column: np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
    if column.dtype.kind == "S":
        yield column[::-1]
        yield np.full_like(column, column[0])
        return
    limits = np.iinfo(column.dtype)
    for value in (limits.min, 0, 1, 9, 10, 11, 12, 1024, 1033, limits.max // 2, limits.max):
        for place in (0, 1, -1, slice(None)):
            other = column.copy()
            other[place] = min(value, limits.max)
            yield other
    for step in (-1033, -137, -16, -9, -1, 1, 9, 16, 137, 1033):
        for place in (0, 1, -1):
            other = column.astype(np.int64)
            other[place] += step
            yield other.clip(limits.min, limits.max).astype(column.dtype)
    yield column[::-1]
    yield column[:-1]
    yield np.append(column, column[-1:])


@pytest.mark.parametrize("name", ["ids", *ROW_COLUMNS, *LISTS])
def test_a_catalog_made_with_other_values_never_leaves_the_shards(case: Case, name: str) -> None:
    """Only a sealed catalog, with a right checksum, can have other values: reading it succeeds or is an error."""
    refused = 0
    for values in values_changed(getattr(case.intact, name)):
        catalog = replace(case.intact, **{name: np.ascontiguousarray(values)})
        try:
            catalog.save()
            read_everything(Catalog.load(case.folder))
        except (Yt8mError, pa.ArrowInvalid):
            refused += 1
    assert refused
    case.intact.save()
    assert_same(load_or_index(case.folder), case.intact)


@pytest.mark.parametrize("name", ["label_starts", "rating_starts"])
def test_lists_that_are_not_divided_among_the_videos_are_invalid(case: Case, name: str) -> None:
    """A file cannot contain these."""
    refused = 0
    for values in values_changed(getattr(case.intact, name)):
        try:
            require_valid(replace(case.intact, **{name: values}))
        except ValueError:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("rgb_offset", lambda catalog: catalog.record_offset),
        ("rgb_offset", lambda catalog: catalog.record_offset + 8),
        ("rgb_offset", lambda _: 9),
        ("audio_offset", lambda _: 9),
        ("audio_offset", lambda catalog: catalog.record_offset + 8),
        ("audio_offset", lambda catalog: catalog.record_offset + catalog.record_length - 127),
        ("rgb_stride", lambda _: 1032),
        ("audio_stride", lambda _: 136),
        ("num_frames", lambda catalog: catalog.num_frames + 1),
        ("record_length", lambda catalog: catalog.record_length + 1),
        ("rating_start_seconds", lambda catalog: catalog.rating_start_seconds + 1),
        ("rating_start_seconds", lambda catalog: catalog.rating_start_seconds + 60),
        ("rating_values", lambda catalog: catalog.rating_values + 1),
        ("label_values", lambda catalog: -1 - catalog.label_values),
    ],
)
def test_a_catalog_with_impossible_values_is_refused(case: Case, name: str, change: Callable[[Catalog], Any]) -> None:
    column = getattr(case.intact, name)
    changed = np.broadcast_to(np.asarray(change(case.intact)).astype(column.dtype), column.shape)
    replace(case.intact, **{name: np.ascontiguousarray(changed)}).save()
    with pytest.raises(Yt8mError, match=r"is not a catalog, or is damaged \(.*\); run `yt8m index"):
        Catalog.load(case.folder)
    case.intact.save()


def test_a_damaged_catalog_without_shards_is_one_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for path in write_shards(tmp_path, random_videos(2)):
        index_and_save(tmp_path)
        path.unlink()
    (tmp_path / FILE_NAME).write_bytes(b"damaged")
    with pytest.raises(Yt8mError, match="contains no shards"):
        load_or_index(tmp_path)
    assert "is not a catalog, or is damaged" in capfd.readouterr().err
