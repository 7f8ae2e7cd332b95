"""The commands index, describe and splice."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from tests.support.command import succeeds
from tests.support.processes import run_command
from tests.support.tiny_run import TINY_SIZES
from tests.support.tiny_shards import random_videos, write_shards
from yt8m.dataset.catalog import FILE_NAME, Catalog
from yt8m.dataset.layout import PARTS
from yt8m.vocabulary import Vocabulary


def test_index_writes_the_catalog_of_each_part(data: Path) -> None:
    shown = run_command("index", data)
    assert (shown.status, shown.err) == (0, "")
    for part, size in zip(PARTS, vars(TINY_SIZES).values(), strict=True):
        catalog = Catalog.load(data / part)
        assert len(catalog) == size
        line = next(line for line in shown.out.splitlines() if line.startswith(str(data / part / FILE_NAME)))
        numbers = [
            int(number.replace(",", "")) for number in re.findall(r"[\d,]*\d", line.removeprefix(str(data / part)))
        ]
        assert numbers == [size, catalog.num_frames.sum(), len(catalog.rating_labels), len(catalog.shards)]
    assert f"videos without labels (kept): {TINY_SIZES.test}" in shown.out


def test_index_of_one_part_writes_one_catalog(data: Path) -> None:
    shown = succeeds("index", data / "segment/train", "--no-verify")
    assert len(shown.out.splitlines()) == 1
    assert [path.parent.name for path in data.rglob(FILE_NAME)] == ["train"]


def test_index_contains_only_the_listed_shards(data: Path) -> None:
    listed = data / "shards.txt"
    listed.write_text("segment/train/rated0003.tfrecord\nsegment/train/rated0001.tfrecord\n")
    shown = succeeds("index", data)
    line = next(line for line in shown.out.splitlines() if str(data / "segment/train") in line)
    assert line.endswith(f"2 shards (those in {listed})")
    assert [shard.name for shard in Catalog.load(data / "segment/train").shards] == [
        "rated0001.tfrecord",
        "rated0003.tfrecord",
    ]
    assert len(Catalog.load(data / "segment/test")) == TINY_SIZES.test


def test_describe_counts_videos_frames_and_ratings(data: Path, tiny_vocabulary: Vocabulary) -> None:
    shown = succeeds("describe", data)
    assert shown.err == ""
    lines = [" ".join(line.split()) for line in shown.out.splitlines()]
    assert lines[0] == f"{data / 'segment_vocabulary.csv'}: {len(tiny_vocabulary)} segment classes"
    rated = lines[lines.index(str(data / "segment/train")) : lines.index(str(data / "segment/test"))]
    catalog = Catalog.load(data / "segment/train")
    frames = catalog.num_frames
    per_class = [int((catalog.rating_labels == label).sum()) for label in tiny_vocabulary.label_ids]
    assert f"videos {len(catalog)} ({frames.sum() / 3600:.1f} hours)" in rated
    assert (
        f"frames {frames.sum():,}, per video {frames.min()} to {frames.max()}, median {np.median(frames):.0f}" in rated
    )
    positive = int(catalog.rating_values.sum())
    assert any(line.startswith(f"ratings {sum(per_class)} ({positive} positive) of ") for line in rated)
    assert f"ratings per class {min(per_class)} to {max(per_class)}, median {np.median(per_class):.0f}" in rated
    assert lines[-1] == "irregular videos without labels (kept): 8"
    assert len(list(data.rglob(FILE_NAME))) == 4


def test_describe_counts_all_classes_without_a_vocabulary(tmp_path: Path) -> None:
    write_shards(tmp_path, random_videos(3, label_ids=[3, 9], ratings_per_video=4))
    shown = succeeds("describe", tmp_path)
    assert shown.err == f"{tmp_path / 'segment_vocabulary.csv'} is missing, so classes are counted without it.\n"
    assert re.search(r"ratings +12 ", shown.out)


def test_splice_of_builtin_sources_depends_only_on_the_seed(tmp_path: Path) -> None:
    sizes = ["--pretrain", 3, "--segments", 4, "--test", 2]
    shown = succeeds("splice", tmp_path / "a", *sizes, "--seed", 1)
    assert "10 videos spliced from" in shown.out
    for part, count in (("video/train", 3), ("video/valid", 1), ("segment/train", 4), ("segment/test", 2)):
        assert len(list((tmp_path / "a" / part).glob("*.tfrecord"))) == count
    succeeds("splice", tmp_path / "b", *sizes, "--seed", 1)
    succeeds("splice", tmp_path / "c", *sizes, "--seed", 2)

    def content(folder: Path) -> dict[str, bytes]:
        files = (path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert content(tmp_path / "a") != content(tmp_path / "c")
