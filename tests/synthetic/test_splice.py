"""Spliced videos and datasets: labels and ratings of every segment, statistics of the noise, files and errors."""

from __future__ import annotations

import csv
import errno
import filecmp
import math
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.support.processes import run_python
from tests.support.progress import RecordedProgress
from tests.support.rows import labels_of, ratings_of
from tests.support.spliced import CLASSES, dequantized, distinct_sources, owners
from tests.support.video_level import encode_video_level
from yt8m.dataset.catalog import Catalog
from yt8m.dataset.frames import FrameReader
from yt8m.dataset.indexing import index_folder
from yt8m.dataset.layout import dataset_parts
from yt8m.errors import UsageError, Yt8mError
from yt8m.shards.writer import frame_record
from yt8m.synthetic.splice import (
    Sizes,
    Sources,
    _choices,
    choose_ratings,
    num_shards,
    quantize,
    read_sources,
    splice,
    video_id,
    write_dataset,
)
from yt8m.vocabulary import Vocabulary

SIZES = Sizes(train=5, valid=2, rated=4, test=3)


def constant_sources(count: int, seed: int = 0) -> Sources:
    """Sources with different labels and small means, so that little of the noise is clipped."""
    rng = np.random.default_rng(seed)
    means = rng.normal(0, 0.3, (count, 1152)).astype(np.float32)
    labels = tuple(np.array([[13, 3, 8, 5][i % 4], 100 + i]) for i in range(count))
    return Sources(means, labels)


def read_csv(path: Path) -> tuple[list[str], list[tuple[str, ...]]]:
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    return header, [tuple(row) for row in rows]


# --- Single videos ----------------------------------------------------------------------------------------------------


def test_quantize_inverts_dequantization() -> None:
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(quantize(dequantized(every).astype(np.float32)), every)
    values = np.linspace(-1.9921875, 2.0078125, 10001, dtype=np.float32)
    assert np.abs(dequantized(quantize(values)) - values).max() <= 2 / 255 + 1e-6
    assert quantize(np.array([-9, -1.9921875, 2.0078125, 9], np.float32)).tolist() == [0, 0, 255, 255]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_labels_of_every_segment_are_those_of_its_source(count: int) -> None:
    sources = distinct_sources(6)
    lengths = set()
    for seed in range(12):
        rng = np.random.default_rng([seed, count])
        chosen = rng.permutation(6)[:count]
        video = splice(sources, chosen, rng)
        found = owners(video.frames, sources)
        lengths.add(len(found))
        assert 24 * 5 - 4 <= len(found) <= 60 * 5
        assert len(video.segment_labels) == math.ceil(len(found) / 5)
        for position, labels in enumerate(video.segment_labels):
            of_segment = set(found[5 * position : 5 * position + 5])
            assert len(of_segment) == 1
            assert labels.tolist() == sorted(sources.labels[of_segment.pop()].tolist())
        # Blocks have the given order, and each has at least one segment.
        assert [owner for i, owner in enumerate(found) if i == 0 or owner != found[i - 1]] == chosen.tolist()
        assert video.labels.tolist() == sorted({label for i in chosen for label in sources.labels[i].tolist()})
        starts = [position * 5 for position in range(len(video.segment_labels))][6:-2]
        assert [position * 5 for position in video.evaluated_positions] == starts
    assert len(lengths) > 8


def test_noise_has_the_deviation_and_correlation_of_real_frames() -> None:
    # The mean is the middle of the range, and noise is clipped at 2 / 0.95 standard deviations on both sides, so the
    # expected deviation is that of a clipped normal variable.
    sources = Sources(np.full((1, 1152), 0.0078125, np.float32), (np.array([3]),))
    frames = dequantized(splice(sources, np.array([0]), np.random.default_rng(0)).frames) - 0.0078125
    bound = 2 / 0.95
    density = math.exp(-(bound**2) / 2) / math.sqrt(2 * math.pi)
    inside = math.erf(bound / math.sqrt(2))
    cut_std = 0.95 * math.sqrt(inside - 2 * bound * density + bound**2 * (1 - inside))
    values = frames.size
    assert values > 130_000
    assert frames.std() == pytest.approx(cut_std, rel=0.01)
    assert frames.mean() == pytest.approx(0, abs=5 * 0.95 * math.sqrt((1.4 / 0.6) / values))
    correlation = (frames[1:] * frames[:-1]).mean() / frames.var()
    assert correlation == pytest.approx(0.4, abs=0.015)
    assert (frames[2:] * frames[:-2]).mean() / frames.var() == pytest.approx(0.16, abs=0.015)
    # Features are uncorrelated.
    assert abs((frames[:, 1:] * frames[:, :-1]).mean() / frames.var()) < 0.02


def test_blocks_have_the_mean_of_their_source_and_independent_noise() -> None:
    sources = constant_sources(2)
    jumps = []
    for seed in range(20):
        video = splice(sources, np.array([0, 1]), np.random.default_rng(seed))
        found = np.array([labels[-1] - 100 for labels in video.segment_labels]).repeat(5)[: len(video.frames)]
        deviations = dequantized(video.frames) - sources.means[found]
        cut = int(np.flatnonzero(np.diff(found))[0])
        jumps.append((deviations[cut] * deviations[cut + 1]).mean() / deviations.var())
        for source in (0, 1):
            block = deviations[found == source]
            # Clipping changes a mean of 0.3 by at most 0.02.
            assert abs((block.mean(0) * np.sign(sources.means[source])).mean()) < 0.03
            assert block.mean(0).std() < 1.3 * 0.95 * math.sqrt((1.4 / 0.6) / len(block))
    assert abs(np.mean(jumps)) < 0.02


def test_ratings_are_five_per_class_correct_and_inside_the_evaluated_range() -> None:
    sources = distinct_sources(6)
    positions: Counter[int] = Counter()
    values: Counter[float] = Counter()
    for seed in range(30):
        rng = np.random.default_rng(seed)
        chosen = rng.permutation(6)[:3]
        video = splice(sources, chosen, rng)
        ratings = choose_ratings(video, CLASSES, rng)
        assert ratings == sorted(ratings)
        assert len(set(ratings)) == len(ratings)
        classes = {[13, 3, 8, 5][i % 4] for i in chosen.tolist()}
        assert Counter(label for label, _, _ in ratings) == dict.fromkeys(classes, 5)
        found = owners(video.frames, sources)
        for label, start, value in ratings:
            assert start % 5 == 0
            assert 30 <= start < len(found) - 10
            assert value == float(label in sources.labels[found[start]])
            positions[start] += 1
            values[value] += 1
    assert len(positions) > 30
    assert min(values[0.0], values[1.0]) > 50


def test_ids_are_short_and_unique() -> None:
    ids = [video_id(number) for number in range(100_000)]
    assert len(set(ids)) == 100_000
    assert all(len(name) == 4 and name.isalnum() and name.isascii() for name in ids)
    # number -> (a * number + b) mod 62^4 is injective exactly if a and 62 = 2 * 31 have no common factor.
    first, second = (sum("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ".index(c) * 62**i
                         for i, c in enumerate(name)) for name in ids[:2])  # fmt: skip
    assert math.gcd(second - first, 62) == 1


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 9])
def test_sources_are_used_equally_often(size: int) -> None:
    pool = np.arange(10, 10 + size)
    used: Counter[int] = Counter(dict.fromkeys(pool.tolist(), 0))
    counts: Counter[int] = Counter()
    for chosen in _choices(pool, 200, np.random.default_rng(size)):
        assert len(set(chosen.tolist())) == len(chosen)
        counts[len(chosen)] += 1
        used.update(chosen.tolist())
        assert max(used.values()) - min(used.values()) <= 1
    assert set(used) == set(pool.tolist())
    assert set(counts) == set(range(1, min(size, 4) + 1))


# --- Datasets ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Sources]:
    folder, sources = tmp_path_factory.mktemp("spliced") / "data", distinct_sources(40)
    write_dataset(folder, sources, CLASSES, SIZES, seed=3)
    return folder, sources


def catalogs(folder: Path) -> dict[str, Catalog]:
    return {str(part.relative_to(folder)): index_folder(part) for part in dataset_parts(folder)}


def test_a_dataset_has_four_parts_a_vocabulary_and_the_test_truth(dataset: tuple[Path, Sources]) -> None:
    found = catalogs(dataset[0])
    assert {name: len(catalog) for name, catalog in found.items()} == {
        "video/train": 5, "video/valid": 2, "segment/train": 4, "segment/test": 3,
    }  # fmt: skip
    assert not any(catalog.problems for catalog in found.values())
    assert sorted(p.name for p in (dataset[0] / "segment").iterdir()) == [
        "test", "test_positives.csv", "test_ratings.csv", "train",
    ]  # fmt: skip
    vocabulary = Vocabulary.load(dataset[0])
    assert (vocabulary.label_ids.tolist(), vocabulary.names) == ([13, 3, 8, 5], CLASSES.names)
    ids = [name for catalog in found.values() for name in catalog.video_ids]
    assert len(set(ids)) == 14
    # Only rated videos have ratings; test videos have no labels either.
    assert [len(catalog.rating_values) > 0 for catalog in found.values()] == [False, False, True, False]
    assert [len(catalog.label_values) > 0 for catalog in found.values()] == [True, True, True, False]
    assert found["segment/test"].oddities == {"videos without labels (kept)": 3}


def test_labels_and_ratings_of_shards_match_the_sources_of_their_frames(
    dataset: tuple[Path, Sources],
) -> None:
    folder, sources = dataset
    for name, catalog in catalogs(folder).items():
        reader = FrameReader(catalog)
        for row in range(len(catalog)):
            found = owners(reader.read(row), sources)
            labels = sorted({label for owner in found for label in sources.labels[owner].tolist()})
            assert labels_of(catalog, row).tolist() == ([] if name == "segment/test" else labels)
            label_ids, starts, values = ratings_of(catalog, row)
            if name == "segment/train":
                assert len(values) == 5 * len({13, 3, 8, 5} & set(labels))
            for label, start, value in zip(label_ids, starts, values, strict=True):
                assert value == (label in sources.labels[found[start]])


def test_the_test_truth_matches_the_sources_of_its_frames(dataset: tuple[Path, Sources]) -> None:
    folder, sources = dataset
    reader = FrameReader(index_folder(folder / "segment" / "test"))
    header, ratings = read_csv(folder / "segment" / "test_ratings.csv")
    assert header == ["video", "label", "start", "score"]
    header, positives = read_csv(folder / "segment" / "test_positives.csv")
    assert header == ["video", "label", "start"]
    assert len(set(positives)) == len(positives)
    shown, rated = set(), Counter[tuple[str, str]]()
    for row, name in enumerate(reader.catalog.video_ids):
        found = owners(reader.read(row), sources)
        for start in range(0, len(found), 5)[6:-2]:
            shown |= {
                (name, str(label), str(start))
                for label in sources.labels[found[start]].tolist()
                if label in (13, 3, 8, 5)
            }
        classes = {label for owner in found for label in sources.labels[owner].tolist()} & {13, 3, 8, 5}
        rated.update({(name, str(label)): 5 for label in classes})
    assert set(positives) == shown
    assert Counter((video, label) for video, label, *_ in ratings) == rated
    assert len({rating[:3] for rating in ratings}) == len(ratings)
    for video, label, start, score in ratings:
        assert score == str(int((video, label, start) in shown))


def sources_of(folder: Path, sources: Sources) -> set[int]:
    reader = FrameReader(index_folder(folder))
    return {owner for row in range(len(reader.catalog)) for owner in owners(reader.read(row), sources)}


def test_parts_have_no_source_in_common(dataset: tuple[Path, Sources]) -> None:
    folder, sources = dataset
    used = [sources_of(part, sources) for part in dataset_parts(folder)]
    assert len(set.union(*used)) == sum(map(len, used))
    assert all(used)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_different_ones(
    dataset: tuple[Path, Sources], tmp_path: Path
) -> None:
    folder, sources = dataset
    write_dataset(tmp_path / "again", sources, CLASSES, SIZES, seed=3)
    first, again = contents(folder), contents(tmp_path / "again")
    assert first == again
    write_dataset(tmp_path / "other", sources, CLASSES, SIZES, seed=4)
    other = contents(tmp_path / "other")
    assert first.keys() == other.keys()
    assert [name for name in first if first[name] == other[name]] == ["segment_vocabulary.csv"]


def test_a_larger_dataset_begins_with_the_same_videos(dataset: tuple[Path, Sources], tmp_path: Path) -> None:
    folder, sources = dataset
    # Sizes in the same proportions, so that each part has the same sources.
    write_dataset(tmp_path / "twice", sources, CLASSES, Sizes(10, 4, 8, 6), seed=3)
    for part in dataset_parts(folder):
        small, large = index_folder(part), index_folder(tmp_path / "twice" / part.relative_to(folder))
        assert len(large) == 2 * len(small)
        readers = FrameReader(small), FrameReader(large)
        for row in range(len(small)):
            np.testing.assert_array_equal(readers[0].read(row), readers[1].read(row))
            assert labels_of(small, row).tolist() == labels_of(large, row).tolist()
            for ours, theirs in zip(ratings_of(small, row), ratings_of(large, row), strict=True):
                assert ours.tolist() == theirs.tolist()


def test_progress_counts_the_videos_of_each_part(tmp_path: Path) -> None:
    progress = RecordedProgress()
    write_dataset(tmp_path / "a", distinct_sources(20), CLASSES, Sizes(2, 1, 1, 1), 0, progress)
    assert progress.reports == {
        "pre-training videos": [(1, 2, ""), (2, 2, "")],
        "validation videos": [(1, 1, "")],
        "rated videos": [(1, 1, "")],
        "test videos": [(1, 1, "")],
    }


@pytest.mark.parametrize(("videos", "shards"), [(1, 1), (8, 8), (16, 16), (400, 16), (640, 16), (3000, 75)])
def test_the_number_of_shards_grows_with_the_videos(videos: int, shards: int) -> None:
    assert num_shards(videos) == shards


# --- Errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "problem"),
    [
        (Sizes(0, 1, 1, 1), "pre-training videos: expected at least 1, found 0."),
        (Sizes(1, 0, 1, 1), "validation videos: expected at least 1, found 0."),
        (Sizes(1, 1, -3, 1), "rated videos: expected at least 1, found -3."),
        (Sizes(1, 1, 1, 0), "test videos: expected at least 1, found 0."),
    ],
)
def test_impossible_sizes_are_refused(sizes: Sizes, problem: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as raised:
        write_dataset(tmp_path / "a", distinct_sources(20), CLASSES, sizes, 0)
    assert str(raised.value) == problem
    assert not (tmp_path / "a").exists()


def test_too_few_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^15 of the 15 sources have a label .* at least 16 are needed\. Do "):
        write_dataset(tmp_path / "a", distinct_sources(15), CLASSES, SIZES, 0)
    other_classes = Vocabulary(np.array([999]), ("other",))
    with pytest.raises(UsageError, match=r"^0 of the 40 sources have a label of the segment vocabulary; "):
        write_dataset(tmp_path / "a", distinct_sources(40), other_classes, SIZES, 0)
    with pytest.raises(UsageError, match=r"^20 sources are too few for parts of "):
        write_dataset(tmp_path / "a", distinct_sources(20), CLASSES, Sizes(1000, 1, 1, 1), 0)
    assert not (tmp_path / "a").exists()


def test_sources_without_a_class_are_never_spliced(tmp_path: Path) -> None:
    sources = distinct_sources(36)
    labels = tuple(np.array([100 + i]) if i % 2 else of_source for i, of_source in enumerate(sources.labels))
    write_dataset(tmp_path / "a", Sources(sources.means, labels), CLASSES, SIZES, 0)
    for part in dataset_parts(tmp_path / "a"):
        assert all(source % 2 == 0 for source in sources_of(part, sources))


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine").write_text("precious")
    (tmp_path / "file").write_text("x")
    for name in ("a", "file"):
        with pytest.raises(UsageError, match=rf"{name}: exists and is not empty; give a new folder\.$"):
            write_dataset(tmp_path / name, distinct_sources(20), CLASSES, SIZES, 0)
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["mine"]
    (tmp_path / "empty").mkdir()
    write_dataset(tmp_path / "empty", distinct_sources(20), CLASSES, Sizes(1, 1, 1, 1), 0)
    assert (tmp_path / "empty" / "segment_vocabulary.csv").exists()


def test_a_full_disk_is_an_error_and_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> bytes:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("yt8m.shards.writer.frame_record", full)
    with pytest.raises(Yt8mError, match="no space left on the disk"):
        write_dataset(tmp_path / "a", distinct_sources(20), CLASSES, SIZES, 0)
    assert not list(tmp_path.iterdir())
    # A folder that existed may be a mount point.
    (tmp_path / "a").mkdir()
    inode = (tmp_path / "a").stat().st_ino
    with pytest.raises(Yt8mError, match="no space left on the disk"):
        write_dataset(tmp_path / "a", distinct_sources(20), CLASSES, SIZES, 0)
    assert (tmp_path / "a").stat().st_ino == inode
    assert not list((tmp_path / "a").iterdir())


def test_a_killed_splice_can_be_repeated(tmp_path: Path) -> None:
    script = """
import os, signal, sys
from pathlib import Path
from tests.synthetic.test_splice import CLASSES, SIZES, distinct_sources
from yt8m.synthetic import splice

def kill(*_): os.kill(os.getpid(), signal.SIGKILL)

write_csv = splice.write_csv
splice.write_csv = lambda path, *rest: kill() if path.name == "test_ratings.csv" else write_csv(path, *rest)
splice.write_dataset(Path(sys.argv[1]), distinct_sources(20), CLASSES, SIZES, 0)
"""
    assert run_python("-c", script, tmp_path / "a").status == -signal.SIGKILL
    assert (tmp_path / "a" / "segment" / "test").is_dir()
    for name in ("a", "b"):
        write_dataset(tmp_path / name, distinct_sources(20), CLASSES, SIZES, 0)
    assert not filecmp.dircmp(tmp_path / "a", tmp_path / "b").diff_files
    assert sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*")) == sorted(
        path.relative_to(tmp_path / "b") for path in (tmp_path / "b").rglob("*")
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


# --- Real features ----------------------------------------------------------------------------------------------------


def test_real_sources_make_a_dataset_of_the_segment_vocabulary(shared_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sources"
    folder.mkdir()
    shard = shared_data / "yt8m_video_level" / "validate0003.tfrecord"
    (folder / shard.name).write_bytes(shard.read_bytes())
    sources = read_sources(folder)
    assert len(sources) > 200
    # Real feature means are within the range of dequantized values.
    assert np.abs(sources.means).max() < 2.01
    vocabulary = Vocabulary.load(shared_data / "segment_vocabulary.csv")
    write_dataset(tmp_path / "data", sources, vocabulary, Sizes(4, 2, 3, 2), seed=0)
    with (shared_data / "segment_vocabulary.csv").open(newline="") as file:
        classes = [row["Index"] for row in csv.DictReader(file)]
    with (tmp_path / "data" / "segment_vocabulary.csv").open(newline="") as file:
        assert [row["Index"] for row in csv.DictReader(file)] == classes
    found = catalogs(tmp_path / "data")
    for name in ("video/train", "video/valid", "segment/train"):
        catalog = found[name]
        for row in range(len(catalog)):
            assert set(map(str, labels_of(catalog, row).tolist())) & set(classes)
    assert set(map(str, found["segment/train"].rating_labels.tolist())) <= set(classes)
    _, positives = read_csv(tmp_path / "data" / "segment" / "test_positives.csv")
    assert positives
    assert {label for _, label, _ in positives} <= set(classes)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_sources_that_are_not_finite_are_skipped_and_counted(tmp_path: Path, value: float) -> None:
    rgb, audio = np.ones(1024, np.float32), np.ones(128, np.float32)
    broken = audio.copy()
    broken[5] = value
    path, reports = tmp_path / "a.tfrecord", list[str]()
    records = [encode_video_level("ab", rgb, broken, [1]), encode_video_level("cd", rgb, audio, [2])]
    path.write_bytes(b"".join(map(frame_record, records)))
    sources = read_sources(tmp_path, report=reports.append)
    assert [labels.tolist() for labels in sources.labels] == [[2]]
    assert reports == [f"{tmp_path}: skipped 1 video with features that are not finite (NaN or infinity)"]
    path.write_bytes(frame_record(records[0]))
    with pytest.raises(UsageError, match=r"contain no videos but 1 video with features that are not finite"):
        read_sources(tmp_path)
