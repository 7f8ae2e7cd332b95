"""Datasets as others store them: read-only, copied, in the layout of the official download; and their verification."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.command import refused, succeeds
from tests.support.command import yt8m as command
from tests.support.files import files_in
from tests.support.read_only import read_only
from tests.support.tiny_run import FinishedRun
from yt8m.dataset.catalog import FILE_NAME, Catalog
from yt8m.dataset.frames import FrameReader
from yt8m.dataset.layout import OFFICIAL_PARTS
from yt8m.shards.contents import ShardFile


def test_a_read_only_dataset_in_the_official_layout_is_used_from_index_to_submission(
    data: Path, tmp_path: Path, tiny_recipe: Path, finished_run: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("YT8M_CATALOGS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for part, name in OFFICIAL_PARTS.items():
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / part).rename(data / name)
    before = files_in(data)
    with read_only(data, tmp_path / "mounted") as folder:
        shown = succeeds("index", folder)
        cache = tmp_path / "cache/yt8m/catalogs"
        written = [line for line in shown.out.splitlines() if line.startswith(str(cache))]
        assert len(written) == len(list(cache.rglob(FILE_NAME))) == len(OFFICIAL_PARTS)
        assert [line for line in shown.err.splitlines() if "cannot be written to, so its catalog is" not in line] == []
        described = succeeds("describe", folder)
        assert described.err == ""
        assert all(str(folder / name) in described.out for name in OFFICIAL_PARTS.values())
        out = tmp_path / "out"
        succeeds("run", tiny_recipe, "--data", folder, "--out", out)
        assert (out / "submission.csv").read_bytes() == (finished_run.out / "submission.csv").read_bytes()
        shards = ["--shards", folder / "3/frame/test", "--vocabulary", folder]
        model = finished_run.model("finetune/bare")
        succeeds("predict", model, *shards, "--out", tmp_path / "submission.csv", "--accelerator", "cpu")
    assert files_in(data) == before


def test_verify_compares_every_record_with_the_catalogs(data: Path) -> None:
    folder = data / "segment/test"
    # The first time there is nothing to compare with.
    assert succeeds("index", folder, "--verify").out.startswith(f"{folder / FILE_NAME}: ")
    num_shards = len(Catalog.load(folder).shards)
    assert (
        succeeds("index", folder, "--verify").out
        == f"{folder}: {num_shards} shards as indexed, every record verified\n"
    )
    path = next(folder.glob("*.tfrecord"))
    status, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    catalog = (folder / FILE_NAME).read_bytes()
    outcome = command("index", folder, "--verify")
    assert outcome.status == 1
    shown = outcome.err.splitlines()
    assert shown[0].startswith(f"{path}, record ")
    assert shown[0].endswith("the checksum of the record's payload is wrong.")
    assert shown[1] == (
        f"yt8m: {folder}: 1 change since it was indexed, as listed above; `yt8m index {folder}` indexes the shards as "
        "they are now."
    )
    assert (folder / FILE_NAME).read_bytes() == catalog
    assert "give one of them" in refused(2, "index", folder, "--verify", "--strict")


def test_a_shard_that_is_truncated_during_training_is_one_sentence(
    data: Path, tiny_recipe: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    succeeds("index", data)
    original = FrameReader._current

    def truncated_after_check(self: FrameReader, position: int) -> ShardFile:
        file = original(self, position)
        os.truncate(file.path, 100)
        return file

    monkeypatch.setattr(FrameReader, "_current", truncated_after_check)
    sentence = refused(1, "pretrain", tiny_recipe, "dbof", "--data", data, "--out", out)
    assert sentence.startswith(str(data / "video"))
    assert "another process truncated it" in sentence
