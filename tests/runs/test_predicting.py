"""Merge stores into a submission, outside of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from tests.support.codes import exact_probabilities
from tests.support.stores import (
    LABEL_IDS,
    NUM_CLASSES,
    StoreCase,
    make_store_case,
    write_blocks,
    write_store,
    write_vocabulary,
)
from tests.support.tiny_shards import random_videos, write_shards
from yt8m.dataset.indexing import index_folder
from yt8m.errors import UsageError, Yt8mError
from yt8m.prediction.quantization import probabilities_of_codes
from yt8m.prediction.store import StoredModel
from yt8m.prediction.store_writer import StoreWriter
from yt8m.ranking.ensemble import MergeConfig
from yt8m.runs.predicting import PredictionOutputs, merge_stores
from yt8m.submission.format import read_submission
from yt8m.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> StoreCase:
    return make_store_case(tmp_path_factory.mktemp("shards"))


def merge(case: StoreCase, folders: Sequence[Path], submission: Path, top_k: int = 100, **settings: Any) -> list[str]:
    outputs = PredictionOutputs(submission, top_k=top_k)
    return merge_stores(folders, case.catalog, Vocabulary.load(case.vocabulary), MergeConfig(**settings), outputs)


def slow_names(case: StoreCase, mean: NDArray[np.float64], class_index: int) -> list[str]:
    order = np.argsort(-mean[:, class_index])
    return [case.segments.name(position) for position in order]


def test_merged_stores_rank_by_the_mean_of_their_models(tmp_path: Path, case: StoreCase) -> None:
    write_store(case, tmp_path / "a", ["one"])
    write_store(case, tmp_path / "b", ["two"], segments_per_block=7)
    submission = tmp_path / "submission.csv"
    assert merge(case, [tmp_path / "a", tmp_path / "b"], submission, 9, weights={"two": 3.0}) == ["one", "two"]
    one, two = (exact_probabilities(case.codes[name]) for name in ("one", "two"))
    found = dict(read_submission(submission))
    assert list(found) == LABEL_IDS
    for class_index, label_id in enumerate(LABEL_IDS):
        expected = slow_names(case, (one + 3 * two) / 4, class_index)
        assert [segment.decode() for segment in found[label_id]] == expected[:9]


@pytest.mark.parametrize("method", ["arithmetic", "geometric", "rank"])
def test_the_order_of_folders_does_not_change_the_submission(tmp_path: Path, case: StoreCase, method: str) -> None:
    """Sums of three numbers in single precision depend on their order, so it is fixed."""
    rng = np.random.default_rng(1)
    # Many near ties: the same three codes in every row, in any order.
    rows = np.array([20_000, 40_000, 41_000], np.uint16)
    parts = rng.permuted(np.tile(rows, (len(case.segments), NUM_CLASSES, 1)), axis=2)
    several = case._replace(codes={name: np.ascontiguousarray(parts[..., i]) for i, name in enumerate("abc")})
    for name in "abc":
        write_store(several, tmp_path / name, [name])
    submissions = []
    for order in ("abc", "cab", "bca"):
        merge(several, [tmp_path / name for name in order], tmp_path / "s.csv", method=method)
        submissions.append((tmp_path / "s.csv").read_bytes())
    assert submissions[0] == submissions[1] == submissions[2]


def test_models_of_one_folder_and_of_several_merge_equally(tmp_path: Path, case: StoreCase) -> None:
    write_store(case, tmp_path / "both", ["two", "one"])
    write_store(case, tmp_path / "a", ["one"])
    write_store(case, tmp_path / "b", ["two"])
    merge(case, [tmp_path / "both"], tmp_path / "together.csv", method="rank")
    merge(case, [tmp_path / "b", tmp_path / "a"], tmp_path / "apart.csv", method="rank")
    assert (tmp_path / "together.csv").read_bytes() == (tmp_path / "apart.csv").read_bytes()


def test_stores_of_other_videos_are_refused(tmp_path: Path, case: StoreCase) -> None:
    write_store(case, tmp_path / "store", ["one"])
    write_shards(tmp_path / "others", random_videos(4, seed=1, num_frames=(70, 99)))
    others = case._replace(catalog=index_folder(tmp_path / "others"))
    with pytest.raises(UsageError, match=r"was predicted from other videos than those of .*others"):
        merge(others, [tmp_path / "store"], tmp_path / "s.csv")
    assert not (tmp_path / "s.csv").exists()


@pytest.mark.parametrize("label_ids", [[7, 3, 11], [3, 7, 11, 5], [7, 3, 11, 6]])
def test_stores_of_another_vocabulary_are_refused(tmp_path: Path, case: StoreCase, label_ids: list[int]) -> None:
    write_store(case, tmp_path / "store", ["one"])
    other = case._replace(vocabulary=write_vocabulary(tmp_path / "other.csv", label_ids))
    with pytest.raises(UsageError, match=r"was predicted with another vocabulary than the one in use"):
        merge(other, [tmp_path / "store"], tmp_path / "s.csv")
    assert not (tmp_path / "s.csv").exists()


@pytest.mark.parametrize("change", [{"num_classes": 3}, {"num_segments": 8}])
def test_stores_of_other_numbers_of_segments_or_classes_are_refused(
    tmp_path: Path, case: StoreCase, change: dict[str, int]
) -> None:
    few = case._replace(codes={"one": case.codes["one"][:, : change.get("num_classes", 4)]})
    write_store(few, tmp_path / "store", ["one"], **change)
    with pytest.raises(UsageError, match=rf"store: contains .* expected {len(case.segments)} of 4\."):
        merge(case, [tmp_path / "store"], tmp_path / "s.csv")


def test_two_models_of_the_same_name_are_refused(tmp_path: Path, case: StoreCase) -> None:
    write_store(case, tmp_path / "a", ["one"])
    write_store(case, tmp_path / "b", ["one", "two"])
    with pytest.raises(UsageError, match=r"b: a model named 'one' is in .*a already"):
        merge(case, [tmp_path / "a", tmp_path / "b"], tmp_path / "s.csv")
    with pytest.raises(UsageError, match=r"a: a model named 'one' is in .*a already"):
        merge(case, [tmp_path / "a", tmp_path / "a"], tmp_path / "s.csv")


def test_a_weight_of_an_unknown_model_is_refused(tmp_path: Path, case: StoreCase) -> None:
    write_store(case, tmp_path / "store", ["one"])
    with pytest.raises(UsageError, match=r"'oen', which is not one of its models \(did you mean 'one'\?\)"):
        merge(case, [tmp_path / "store"], tmp_path / "s.csv", weights={"oen": 1.0})


def test_video_classifiers_are_used_as_configured(tmp_path: Path, case: StoreCase) -> None:
    kinds = {"one": StoredModel(kind="agnostic", digest="1"), "two": StoredModel(kind="video", digest="2")}
    write_store(case, tmp_path / "store", ["one", "two"], models=kinds)
    write_store(case, tmp_path / "alone", ["one"])
    prior = {"models": ["two"], "video_exponent": 1.0, "segment_exponent": 1.0}
    assert merge(case, [tmp_path / "store"], tmp_path / "idle.csv") == ["one"]
    merge(case, [tmp_path / "alone"], tmp_path / "alone.csv")
    merge(case, [tmp_path / "store"], tmp_path / "prior.csv", video_prior=prior)
    assert (tmp_path / "idle.csv").read_bytes() == (tmp_path / "alone.csv").read_bytes()
    one, two = (probabilities_of_codes()[case.codes[name]].astype(np.float64) for name in ("one", "two"))
    found = dict(read_submission(tmp_path / "prior.csv"))
    for class_index, label_id in enumerate(LABEL_IDS):
        assert [segment.decode() for segment in found[label_id]] == slow_names(case, one * two, class_index)
    with pytest.raises(UsageError, match="uses the video classifier 'one', which is not among"):
        merge(case, [tmp_path / "store"], tmp_path / "s.csv", video_prior=prior | {"models": ["one"]})
    with pytest.raises(UsageError, match="uses the video classifier 'two', which is not among"):
        merge(case, [tmp_path / "alone"], tmp_path / "s.csv", video_prior=prior)


# --- Refused stores --------------------------------------------------------------------------------------------------


def test_a_missing_probability_cannot_be_ranked(tmp_path: Path, case: StoreCase) -> None:
    codes = {"one": case.codes["one"].copy(), "two": case.codes["two"]}
    codes["one"][6, 2] = 0
    store = write_store(case._replace(codes=codes), tmp_path / "store", ["one", "two"])
    with pytest.raises(Yt8mError, match=rf"segment {case.segments.name(6)} for class position 2 is nan"):
        merge(case, [tmp_path / "store"], tmp_path / "s.csv")
    assert not (tmp_path / "s.csv").exists()
    # A model of weight 0 is not used.
    merge(case, [tmp_path / "store"], tmp_path / "s.csv", weights={"one": 0.0})
    assert store.index.num_segments == len(case.segments)


def test_an_unfinished_folder_is_refused(tmp_path: Path, case: StoreCase) -> None:
    writer = StoreWriter(tmp_path / "store", case.index(["one"]))
    writer.prepare()
    write_blocks(case, writer, writer.pending()[:-1])
    writer.close()
    for folder in (tmp_path / "store", tmp_path / "store.unfinished"):
        with pytest.raises(UsageError, match="is not finished"):
            merge(case, [folder], tmp_path / "s.csv")


@pytest.mark.parametrize(
    "change", [{"segments_per_block": 0}, {"num_segments": -4}, {"num_classes": 0}, {"models": {}}]
)
def test_an_invalid_index_is_refused(tmp_path: Path, case: StoreCase, change: dict[str, object]) -> None:
    write_store(case, tmp_path / "store", ["one"])
    index = tmp_path / "store" / "predictions.yaml"
    index.write_text(yaml.safe_dump(yaml.safe_load(index.read_text()) | change))
    with pytest.raises(Yt8mError):
        merge(case, [tmp_path / "store"], tmp_path / "s.csv")


def test_a_damaged_store_is_refused(tmp_path: Path, case: StoreCase) -> None:
    write_store(case, tmp_path / "store", ["one"])
    path = tmp_path / "store" / "one.npy"
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(Yt8mError, match="is damaged"):
        merge(case, [tmp_path / "store"], tmp_path / "s.csv")
    assert not (tmp_path / "s.csv").exists()
