"""Store the predictions of a pass: neither interruptions nor the number of processes change the store."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support.passes import (
    VOCABULARY,
    PassCase,
    RecordedPass,
    make_case,
    run_processes,
    small_chunks,
    stopping_after,
)
from tests.support.stores import contents, names_in
from tests.support.tiny_models import NUM_CLASSES
from yt8m.errors import Interrupted, UsageError
from yt8m.prediction import store_writer
from yt8m.prediction.passes import ProcessGroup, store_predictions
from yt8m.prediction.predict import predict
from yt8m.prediction.store import Store, StoreIndex
from yt8m.prediction.store_writer import StoreWriter


@pytest.fixture(scope="module", autouse=True)
def _small_chunks() -> Iterator[None]:
    with small_chunks():
        yield


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> PassCase:
    return make_case(tmp_path_factory.mktemp("shards"))


def index_of(work: RecordedPass) -> StoreIndex:
    catalog = work.reader.catalog.digest
    index = StoreIndex.of(work.models, work.segments, VOCABULARY.digest, catalog, (0,), "32-true")
    return index.model_copy(update={"segments_per_block": 10})


def store(work: RecordedPass, folder: Path) -> Store | None:
    return store_predictions(work, folder, index_of(work))


@pytest.fixture(scope="module")
def expected(case: PassCase, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Files of a store written by one uninterrupted process."""
    folder = tmp_path_factory.mktemp("store") / "store"
    store(case.work(batch_size=None), folder)
    return contents(folder)


def test_a_store_contains_the_predictions(case: PassCase, tmp_path: Path) -> None:
    work = case.work()
    stored = store(work, tmp_path / "store")
    assert stored is not None
    batches = list(predict(work.reader, work.segments, work.models))
    for name in case.models:
        codes = np.concatenate([batch.codes[name] for batch in batches])
        for class_index in range(NUM_CLASSES):
            np.testing.assert_array_equal(stored.codes(name, class_index), codes[:, class_index])


@pytest.mark.parametrize("count", [2, 3, 9])
def test_several_processes_write_the_same_files_as_one(
    case: PassCase, expected: dict[str, bytes], tmp_path: Path, count: int
) -> None:
    """Nine processes are more than the number of blocks."""
    assert 3 < index_of(case.work()).num_blocks < 9
    found = run_processes(count, lambda processes: store(case.work(processes), tmp_path / "store"))
    assert found[0] is not None
    assert found[1:] == [None] * (count - 1)
    assert contents(tmp_path / "store") == expected
    assert names_in(tmp_path) == ["store"]


def test_no_process_writes_before_all_have_listed_the_pending_blocks(
    case: PassCase, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a late process would divide only the remaining blocks."""
    pending = StoreWriter.pending

    def late(writer: StoreWriter) -> list[slice]:
        if threading.current_thread().name == "rank 1":
            time.sleep(0.5)
        return pending(writer)

    monkeypatch.setattr(StoreWriter, "pending", late)
    monkeypatch.setattr(store_writer, "SYNC_SECONDS", -1.0)
    run_processes(2, lambda processes: store(case.work(processes), tmp_path / "store"))
    assert contents(tmp_path / "store") == expected


@pytest.mark.parametrize("size", [1, 3, 10, 2048])
def test_stores_do_not_depend_on_the_batch_size(
    case: PassCase, expected: dict[str, bytes], tmp_path: Path, size: int
) -> None:
    store(case.work(batch_size=size), tmp_path / "store")
    assert contents(tmp_path / "store") == expected


@pytest.mark.parametrize("num_batches", [0, 1, 4, 8])
def test_a_stopped_pass_resumes_with_the_missing_blocks(
    case: PassCase, expected: dict[str, bytes], tmp_path: Path, num_batches: int
) -> None:
    """A block has three batches; an incomplete block is predicted again."""
    work = case.work(ProcessGroup(stop_requested=stopping_after(num_batches)))
    with pytest.raises(Interrupted, match="continues with the missing blocks"):
        store(work, tmp_path / "store")
    assert not (tmp_path / "store").exists()
    with pytest.raises(UsageError, match="not finished"):
        Store.open(tmp_path / "store")
    resumed = case.work()
    store(resumed, tmp_path / "store")
    assert resumed.starts[0] == 10 * (num_batches // 3)
    assert contents(tmp_path / "store") == expected


def test_a_different_number_of_processes_resumes(case: PassCase, expected: dict[str, bytes], tmp_path: Path) -> None:
    before: list[int] = []
    after: list[int] = []

    def interrupted(processes: ProcessGroup) -> None:
        work = case.work(replace(processes, stop_requested=stopping_after(3)), starts=before)
        with pytest.raises(Interrupted):
            store(work, tmp_path / "store")

    run_processes(2, interrupted)
    assert len(before) == 6
    run_processes(3, lambda processes: store(case.work(processes, starts=after), tmp_path / "store"))
    assert contents(tmp_path / "store") == expected
    assert not set(before) & set(after)


def test_a_finished_store_is_not_predicted_again(case: PassCase, expected: dict[str, bytes], tmp_path: Path) -> None:
    store(case.work(), tmp_path / "store")
    predicted: list[int] = []
    again = store(case.work(starts=predicted), tmp_path / "store")
    assert again is not None
    found = run_processes(2, lambda processes: store(case.work(processes, starts=predicted), tmp_path / "store"))
    assert found[0] is not None
    assert predicted == []
    assert contents(tmp_path / "store") == expected
