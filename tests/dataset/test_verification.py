"""All bytes of shards against their catalog."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.tiny_shards import TinyVideo, random_videos, write_records, write_shard, write_shards
from yt8m.dataset.catalog import Catalog
from yt8m.dataset.indexing import index_folder
from yt8m.dataset.verification import changes


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    write_shards(tmp_path, random_videos(4))
    write_records(tmp_path / "x.tfrecord", [random_videos(1, id_prefix="x")[0].encoded(), b"garbage"])
    with (tmp_path / "x.tfrecord").open("ab") as file:
        file.write(b"tail")
    (tmp_path / "empty.tfrecord").touch()
    return index_folder(tmp_path)


def test_unchanged_shards_have_no_changes(catalog: Catalog) -> None:
    assert changes(catalog) == []
    for path in catalog.folder.iterdir():
        os.utime(path, ns=(0, 0))
    assert changes(catalog) == []


@pytest.mark.parametrize("place", [3, 20, 5_000, 100_000, -3])
def test_a_flipped_bit_is_found(catalog: Catalog, place: int) -> None:
    path = catalog.shard_path(0)
    status, data = path.stat(), bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    found = changes(catalog)
    assert found
    assert {error.path for error in found} == {path}
    assert "checksum" in found[0].message


def test_another_intact_record_is_found(catalog: Catalog) -> None:
    """The record has other frames, the same length and a right checksum."""
    path = catalog.shard_path(0)
    status = path.stat()
    first, second = random_videos(4)[:2]
    write_shard(path, [first, TinyVideo(second.id, second.frames ^ 1, second.labels)])
    assert path.stat().st_size == status.st_size
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    [found] = changes(catalog)
    assert str(found) == f"{path}: has other records than those that were indexed."


def test_missing_new_and_shorter_shards_are_found(catalog: Catalog) -> None:
    first, second = (catalog.folder / f"tiny000{number}.tfrecord" for number in (0, 1))
    first.unlink()
    os.truncate(second, 1000)
    write_shard(catalog.folder / "new.tfrecord", random_videos(1))
    assert [(error.path.name, error.message) for error in changes(catalog)] == [
        ("new.tfrecord", "is not in the catalog."),
        (first.name, "cannot be opened (No such file or directory)."),
        (second.name, changes(catalog)[-1].message),
    ]
    assert "the shard ends inside a record" in changes(catalog)[-1].message
