from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from tests.conftest import FullDisk
from tests.tiny_shards import random_videos, write_shards
from yt8m.dataset.catalog import Catalog, index_folder
from yt8m.dataset.frames import FrameReader
from yt8m.errors import UsageError, Yt8mError
from yt8m.predictions import merge_stores
from yt8m.ranking.predict import Predictions, segments_of
from yt8m.ranking.store import Store, stored_predictions, write_store
from yt8m.ranking.submission import read_submission
from yt8m.ranking.topk import Segments
from yt8m.vocabulary import Vocabulary

LABEL_IDS = [7, 3, 11, 5]
NUM_CLASSES = len(LABEL_IDS)
BATCH = 5


def write_vocabulary(path: Path, label_ids: list[int]) -> Path:
    path.write_text("Index,Name\n" + "".join(f"{label_id},class {label_id}\n" for label_id in label_ids))
    return path


class Setting(NamedTuple):
    """Some videos, their vocabulary, and probabilities of two models for their segments, (S, C) each."""

    catalog: Catalog
    vocabulary: Path
    segments: Segments
    probabilities: dict[str, NDArray[np.float32]]

    @property
    def digest(self) -> str:
        return Vocabulary.load(self.vocabulary).digest


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, random_videos(4, num_frames=(70, 99)))
    catalog = index_folder(folder)
    segments = segments_of(FrameReader(catalog))
    rng = np.random.default_rng(5)
    probabilities = {name: rng.random((len(segments), NUM_CLASSES), np.float32) for name in ("one", "two")}
    return Setting(catalog, write_vocabulary(folder / "classes.csv", LABEL_IDS), segments, probabilities)


def batches(setting: Setting, names: list[str], stop: int | None = None) -> Iterator[Predictions]:
    """The probabilities in small batches, the last ones first, as if they were being predicted."""
    num_segments = len(setting.segments) if stop is None else stop
    for start in reversed(range(0, num_segments, BATCH)):
        positions = np.arange(start, min(start + BATCH, num_segments))
        yield Predictions(positions, {name: setting.probabilities[name][positions] for name in names})


def write(setting: Setting, folder: Path, names: list[str]) -> Store:
    return write_store(
        folder, batches(setting, names), names, setting.segments, NUM_CLASSES, setting.digest, setting.catalog.digest
    )


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_round_trip(tmp_path: Path, setting: Setting) -> None:
    write(setting, tmp_path / "kept", ["one", "two"])
    store = Store.open(tmp_path / "kept")
    assert store.index.models == ["one", "two"]
    assert (store.index.num_segments, store.index.num_classes) == (len(setting.segments), NUM_CLASSES)
    assert (store.index.vocabulary, store.index.catalog) == (setting.digest, setting.catalog.digest)
    for name in ("one", "two"):
        np.testing.assert_array_equal(store.probabilities(name), setting.probabilities[name])
        assert not store.probabilities(name).flags.writeable
    assert names_in(tmp_path) == ["kept"]
    assert names_in(tmp_path / "kept") == ["one.npy", "predictions.yaml", "two.npy"]


@pytest.mark.parametrize("rows_per_batch", [1, 7, 10_000])
def test_stored_predictions_are_those_predicted(tmp_path: Path, setting: Setting, rows_per_batch: int) -> None:
    stores = {"one": write(setting, tmp_path / "a", ["one"]), "two": write(setting, tmp_path / "b", ["two"])}
    found = list(stored_predictions(stores, rows_per_batch))
    assert max(len(batch.positions) for batch in found) == min(rows_per_batch, len(setting.segments))
    np.testing.assert_array_equal(
        np.concatenate([batch.positions for batch in found]), np.arange(len(setting.segments))
    )
    for name in ("one", "two"):
        together = np.concatenate([batch.probabilities[name] for batch in found])
        np.testing.assert_array_equal(together, setting.probabilities[name])


def test_former_predictions_are_replaced_whole(tmp_path: Path, setting: Setting) -> None:
    write(setting, tmp_path / "kept", ["one", "two"])
    write(setting, tmp_path / "kept", ["two"])
    assert names_in(tmp_path / "kept") == ["predictions.yaml", "two.npy"]
    assert names_in(tmp_path) == ["kept"]


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, setting: Setting) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.txt").write_text("years of work")
    with pytest.raises(UsageError, match="exists and is not a folder of predictions"):
        write(setting, folder, ["one"])
    assert names_in(folder) == ["chapter.txt"]


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_an_interrupted_prediction_leaves_nothing(tmp_path: Path, setting: Setting, error: BaseException) -> None:
    def interrupted() -> Iterator[Predictions]:
        yield next(batches(setting, ["one"]))
        raise error

    with pytest.raises(type(error)):
        write_store(tmp_path / "kept", interrupted(), ["one"], setting.segments, NUM_CLASSES, setting.digest, "catalog")
    assert names_in(tmp_path) == []


def test_a_segment_left_out_is_noticed(tmp_path: Path, setting: Setting) -> None:
    some = batches(setting, ["one"], stop=len(setting.segments) - 1)
    with pytest.raises(Yt8mError, match=f"{len(setting.segments) - 1} of {len(setting.segments)} segments"):
        write_store(tmp_path / "kept", some, ["one"], setting.segments, NUM_CLASSES, setting.digest, "catalog")
    assert names_in(tmp_path) == []


def test_too_little_space_is_said_before_anything_is_predicted(
    tmp_path: Path, setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = 4 * len(setting.segments) * NUM_CLASSES * 2
    free = needed - 1
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free))

    def never() -> Iterator[Predictions]:
        raise AssertionError("predicted all the same")
        yield

    def attempt(predictions: Iterator[Predictions]) -> Store:
        names = ["one", "two"]
        return write_store(
            tmp_path / "new" / "kept", predictions, names, setting.segments, NUM_CLASSES, setting.digest, "catalog"
        )

    with pytest.raises(Yt8mError, match=r"the predictions need .* GB, and .* GB are free"):
        attempt(never())
    assert names_in(tmp_path) == []
    free = needed
    attempt(batches(setting, ["one", "two"]))
    assert names_in(tmp_path / "new" / "kept") == ["one.npy", "predictions.yaml", "two.npy"]


def test_a_disk_that_fills_up_meanwhile(full_disk: FullDisk, setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write to mapped memory without space behind it would end the process, so space is taken at the start."""
    usage = shutil.disk_usage(full_disk.folder)
    full_disk.fill(leave=16_384)
    if not (full_disk.folder / "filler").exists():
        pytest.skip("no disk can be mounted here")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    wide = np.zeros((len(setting.segments), 3000), np.float32)
    predictions = [Predictions(np.arange(len(wide)), {"wide": wide})]
    with pytest.raises(Yt8mError, match="no space left on the disk"):
        write_store(full_disk.folder / "kept", predictions, ["wide"], setting.segments, 3000, setting.digest, "catalog")
    assert names_in(full_disk.folder) == ["filler"]


def test_what_is_no_folder_of_predictions(tmp_path: Path, setting: Setting) -> None:
    with pytest.raises(UsageError, match="there is no such folder of predictions"):
        Store.open(tmp_path / "absent")
    with pytest.raises(UsageError, match="is not a folder of predictions"):
        Store.open(tmp_path)
    write(setting, tmp_path / "kept", ["one"])
    index = tmp_path / "kept" / "predictions.yaml"
    values = yaml.safe_load(index.read_text())
    index.write_text(yaml.safe_dump(values | {"format_version": 99}))
    with pytest.raises(UsageError, match="predictions of version 99, expected 1"):
        Store.open(tmp_path / "kept")
    index.write_text(yaml.safe_dump(values | {"num_segments": "many"}))
    with pytest.raises(UsageError, match="'num_segments': expected a valid integer, found 'many'"):
        Store.open(tmp_path / "kept")


@pytest.mark.parametrize("damage", ["absent", "truncated", "no array", "other shape", "other type", "pickled"])
def test_damaged_probabilities_are_a_sentence(tmp_path: Path, setting: Setting, damage: str) -> None:
    store = write(setting, tmp_path / "kept", ["one"])
    path = tmp_path / "kept" / "one.npy"
    whole = np.load(path)
    if damage == "absent":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-10])
    elif damage == "no array":
        path.write_text("probabilities")
    elif damage == "other shape":
        np.save(path, whole[1:])
    elif damage == "other type":
        np.save(path, whole.astype(np.float64))
    else:
        np.save(path, np.array([{"a": 1}], object))
    with pytest.raises(Yt8mError) as raised:
        store.probabilities("one")
    assert str(raised.value).startswith(f"{path}: ")
    assert str(raised.value).endswith(".")


# ------------------------------------------------------------------------------------------------------------- merging


def expected_ranking(setting: Setting, mean: NDArray[np.float64], class_index: int) -> list[str]:
    order = np.argsort(-mean[:, class_index])
    return [setting.segments.name(position) for position in order]


def test_merged_stores_are_the_mean_of_their_models(tmp_path: Path, setting: Setting) -> None:
    write(setting, tmp_path / "a", ["one"])
    write(setting, tmp_path / "b", ["two"])
    submission = tmp_path / "submission.csv"
    folders = [tmp_path / "a", tmp_path / "b"]
    names = merge_stores(folders, setting.catalog, setting.vocabulary, submission, {"two": 3.0}, 9)
    assert names == ["one", "two"]
    one, two = (setting.probabilities[name].astype(np.float64) for name in ("one", "two"))
    found = dict(read_submission(submission))
    assert list(found) == LABEL_IDS
    for class_index, label_id in enumerate(LABEL_IDS):
        expected = expected_ranking(setting, (one + 3 * two) / 4, class_index)
        assert [segment.decode() for segment in found[label_id]] == expected[:9]


def test_the_order_of_folders_changes_nothing(tmp_path: Path, setting: Setting) -> None:
    """Sums of three single-precision numbers depend on their order, so it is fixed."""
    rng = np.random.default_rng(1)
    # Many near ties: three numbers that add up to nearly the same in every row.
    parts = rng.dirichlet([1, 1, 1], (len(setting.segments), NUM_CLASSES)).astype(np.float32)
    several = setting._replace(
        probabilities={name: np.ascontiguousarray(parts[..., i]) for i, name in enumerate("abc")}
    )
    for name in "abc":
        write(several, tmp_path / name, [name])
    submissions = []
    for order in ("abc", "cab", "bca"):
        folders = [tmp_path / name for name in order]
        merge_stores(folders, setting.catalog, setting.vocabulary, tmp_path / "submission.csv", {}, 100)
        submissions.append((tmp_path / "submission.csv").read_bytes())
    assert submissions[0] == submissions[1] == submissions[2]


def test_other_videos_are_refused(tmp_path: Path, setting: Setting) -> None:
    write(setting, tmp_path / "kept", ["one"])
    write_shards(tmp_path / "others", random_videos(4, seed=1, num_frames=(70, 99)))
    others = index_folder(tmp_path / "others")
    with pytest.raises(UsageError, match=r"was predicted from other videos than those of .*others"):
        merge_stores([tmp_path / "kept"], others, setting.vocabulary, tmp_path / "submission.csv", {}, 10)
    assert not (tmp_path / "submission.csv").exists()


@pytest.mark.parametrize("label_ids", [[7, 3, 11], [3, 7, 11, 5], [7, 3, 11, 6]])
def test_another_vocabulary_is_refused(tmp_path: Path, setting: Setting, label_ids: list[int]) -> None:
    write(setting, tmp_path / "kept", ["one"])
    other = write_vocabulary(tmp_path / "other.csv", label_ids)
    with pytest.raises(UsageError, match=r"was predicted with another vocabulary than .*other.csv"):
        merge_stores([tmp_path / "kept"], setting.catalog, other, tmp_path / "submission.csv", {}, 10)
    assert not (tmp_path / "submission.csv").exists()


def test_two_models_of_one_name_are_refused(tmp_path: Path, setting: Setting) -> None:
    write(setting, tmp_path / "a", ["one"])
    write(setting, tmp_path / "b", ["one", "two"])
    folders = [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(UsageError, match=r"b: a model named 'one' is in .*a already"):
        merge_stores(folders, setting.catalog, setting.vocabulary, tmp_path / "submission.csv", {}, 10)


def test_a_weight_of_no_model_is_refused(tmp_path: Path, setting: Setting) -> None:
    write(setting, tmp_path / "kept", ["one"])
    with pytest.raises(UsageError, match=r"'oen', which is not one of its models \(did you mean 'one'\?\)"):
        merge_stores([tmp_path / "kept"], setting.catalog, setting.vocabulary, tmp_path / "s.csv", {"oen": 1.0}, 10)


def test_stored_numbers_that_are_no_probabilities_are_refused(tmp_path: Path, setting: Setting) -> None:
    write(setting, tmp_path / "kept", ["one"])
    array = np.load(tmp_path / "kept" / "one.npy")
    array[3, 1] = np.nan
    np.save(tmp_path / "kept" / "one.npy", array)
    with pytest.raises(Yt8mError):
        merge_stores([tmp_path / "kept"], setting.catalog, setting.vocabulary, tmp_path / "s.csv", {}, 10)
    assert not (tmp_path / "s.csv").exists()
