"""Where catalogs are: beside the shards, in the user's cache, or in a folder that an environment variable names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.catalogs import assert_same
from tests.support.read_only import read_only
from tests.support.tiny_shards import random_videos, write_records, write_shard, write_shards
from yt8m.dataset.catalog import FILE_NAME, Catalog
from yt8m.dataset.indexing import current_catalog, index_and_save, load_or_index
from yt8m.dataset.layout import catalog_folders, writable_catalog_folder
from yt8m.dataset.problems import REPORT_NAME
from yt8m.dataset.verification import changes
from yt8m.errors import UsageError, Yt8mError
from yt8m.submission.table import RankingTable


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("YT8M_CATALOGS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/yt8m/catalogs"


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_shards(tmp_path / "shards", random_videos(4))
    write_records(tmp_path / "shards/z.tfrecord", [b"garbage"])
    return tmp_path / "shards"


def test_a_catalog_is_beside_its_shards(cache: Path, shards: Path) -> None:
    index_and_save(shards)
    assert (shards / FILE_NAME).is_file()
    assert not cache.exists()


def test_a_read_only_folder_has_its_catalog_in_the_cache(
    cache: Path, shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with read_only(shards, tmp_path / "mounted") as folder:
        catalog = load_or_index(folder)
        [place] = cache.iterdir()
        assert capfd.readouterr().err == f"{folder}: cannot be written to, so its catalog is written to {place}.\n"
        assert place.name.startswith("mounted-")
        assert {path.name for path in place.iterdir()} == {FILE_NAME, REPORT_NAME}
        again = current_catalog(folder)
        assert again is not None
        assert_same(again, catalog)
        assert capfd.readouterr().err == ""
    assert {path.suffix for path in shards.iterdir()} == {".tfrecord"}


def test_a_read_only_copy_with_a_catalog_needs_no_other(cache: Path, shards: Path, tmp_path: Path) -> None:
    index_and_save(shards)
    for path in shards.glob("*.tfrecord"):
        os.utime(path, ns=(0, 0))
    with read_only(shards, tmp_path / "mounted") as folder:
        assert load_or_index(folder).folder == folder
    assert not cache.exists()


def test_a_damaged_catalog_of_a_read_only_folder_is_replaced_in_the_cache(
    cache: Path, shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    catalog = index_and_save(shards)
    (shards / FILE_NAME).write_bytes(b"damaged")
    with read_only(shards, tmp_path / "mounted") as folder:
        assert load_or_index(folder).digest == catalog.digest
        assert "is not a catalog, or is damaged; the folder is indexed again." in capfd.readouterr().err
        assert load_or_index(folder).digest == catalog.digest
        assert capfd.readouterr().err == ""
    assert len(list(cache.rglob(FILE_NAME))) == 1


def test_a_variable_names_a_folder_for_all_catalogs(
    cache: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("YT8M_CATALOGS", str(tmp_path / "chosen"))
    index_and_save(shards)
    [place] = (tmp_path / "chosen").iterdir()
    assert {path.name for path in place.iterdir()} == {FILE_NAME, REPORT_NAME}
    assert Catalog.load(shards).folder == shards
    assert not cache.exists()
    assert not (shards / FILE_NAME).exists()
    assert capfd.readouterr().err == ""
    # Catalogs beside the shards are still found.
    monkeypatch.setenv("YT8M_CATALOGS", str(tmp_path / "empty"))
    index_and_save(shards).save()
    assert (tmp_path / "empty").is_dir()


def test_folders_of_the_same_name_have_different_places(cache: Path, tmp_path: Path) -> None:
    one, two = (catalog_folders(tmp_path / part / "train")[1] for part in ("a", "b"))
    assert one != two
    assert one.parent == two.parent == cache
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert catalog_folders(tmp_path / "link/train")[1] == one


def test_no_place_for_a_catalog_is_one_sentence(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("YT8M_CATALOGS", raising=False)
    with read_only(shards, tmp_path / "mounted") as folder:
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
        with pytest.raises(Yt8mError, match="cannot be written to; set YT8M_CATALOGS to a folder that can"):
            writable_catalog_folder(folder)


def test_folders_and_shards_may_have_names_that_are_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, name = tmp_path / os.fsdecode(b"caf\xe9"), os.fsdecode(b"\xe9.tfrecord")
    write_shard(folder / name, random_videos(2))
    with (folder / name).open("ab") as file:
        file.write(b"tail")
    catalog = index_and_save(folder)
    assert [shard.name for shard in catalog.shards] == [name]
    assert (folder / REPORT_NAME).read_text().splitlines()[1].startswith("\\udce9.tfrecord,2,")
    loaded = current_catalog(folder)
    assert loaded is not None
    assert loaded.digest == catalog.digest
    assert changes(loaded) == []
    with pytest.raises(UsageError, match="there is no such table"):
        RankingTable.open(folder / "absent.parquet")
    # The cache of catalogs too.
    monkeypatch.setenv("YT8M_CATALOGS", str(tmp_path / os.fsdecode(b"\xff")))
    assert load_or_index(folder).digest == catalog.digest
