"""Rank a stream of predictions: neither interruptions nor the number of processes change the rankings."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.passes import (
    LENGTHS,
    SMALL_BATCH,
    VOCABULARY,
    PassCase,
    RecordedPass,
    make_case,
    run_processes,
    small_chunks,
    stopping_after,
)
from tests.support.progress import RecordedProgress
from tests.support.rankings import slow_ranking
from tests.support.tiny_models import NUM_CLASSES, videos_of
from tests.support.tiny_shards import write_shards
from yt8m.errors import Interrupted, Yt8mError
from yt8m.prediction.passes import PredictionPass, ProcessGroup
from yt8m.prediction.predict import Predictions, predict
from yt8m.prediction.segments import Segments
from yt8m.ranking import streaming
from yt8m.ranking.ensemble import MergeConfig, Merger
from yt8m.ranking.streaming import Merge, rank_streaming, remove_partial_rankings
from yt8m.ranking.topk import TopK
from yt8m.submission.writing import write_submission

K = 17
MERGER = Merger(MergeConfig(weights={"aware": 0.7}), ["bare", "aware"])


@pytest.fixture(scope="module", autouse=True)
def _small_chunks() -> Iterator[None]:
    with small_chunks():
        yield


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> PassCase:
    return make_case(tmp_path_factory.mktemp("shards"))


def merge_all(predictions: Predictions) -> NDArray[np.float32]:
    return MERGER(predictions.codes)


def merge_coarsely(predictions: Predictions) -> NDArray[np.float32]:
    """Probabilities of few values, so that most segments are tied."""
    return np.round(MERGER(predictions.codes) * 16) / np.float32(16)


MERGES: list[Merge] = [merge_all, merge_coarsely]


def rank(work: PredictionPass, folder: Path, fingerprint: str = "fingerprint") -> list[TopK] | None:
    """Rank, and remove the partial rankings, as commands do after the result is written."""
    rankers = rank_streaming(work, MERGES, NUM_CLASSES, K, folder / "partial", fingerprint)
    if rankers is not None:
        remove_partial_rankings(folder / "partial")
    return rankers


def submissions(rankers: Sequence[TopK] | None, folder: Path) -> list[bytes]:
    assert rankers is not None
    contents = []
    for ranker in rankers:
        write_submission(folder / "s.csv", ranker.result(), VOCABULARY)
        contents.append((folder / "s.csv").read_bytes())
    (folder / "s.csv").unlink()
    return contents


@pytest.fixture(scope="module")
def expected(case: PassCase, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The submissions of one uninterrupted process, predicted in one batch."""
    folder = tmp_path_factory.mktemp("expected")
    return submissions(rank(case.work(batch_size=None), folder), folder)


def num_batches(work: RecordedPass) -> int:
    return -(-len(work.segments) // SMALL_BATCH)


def slow_submission(segments: Segments, ranked: list[list[int]]) -> bytes:
    lines = ["Class,Segments"]
    for label_id, positions in zip(VOCABULARY.label_ids.tolist(), ranked, strict=True):
        lines.append(f"{label_id}," + " ".join(segments.name(position) for position in positions))
    return ("\n".join(lines) + "\n").encode()


def test_streaming_equals_a_full_sort(case: PassCase, expected: list[bytes]) -> None:
    work = case.work()
    batches = list(predict(work.reader, work.segments, work.models))
    for merge, submission in zip(MERGES, expected, strict=True):
        probabilities = np.concatenate([merge(batch) for batch in batches])
        assert submission == slow_submission(work.segments, slow_ranking(work.segments, probabilities, K))
    # In the second submission, most segments are tied, including those at the end of the list.
    coarse = np.concatenate([merge_coarsely(batch) for batch in batches])
    assert len(np.unique(coarse[:, 0])) < K < len(coarse)
    assert expected[0] != expected[1]


@pytest.mark.parametrize("size", [1, 3, 7, 2048])
def test_rankings_do_not_depend_on_the_batch_size(
    case: PassCase, expected: list[bytes], tmp_path: Path, size: int
) -> None:
    assert submissions(rank(case.work(batch_size=size), tmp_path), tmp_path) == expected


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("size", [2, 4, 2048])
def test_rankings_do_not_depend_on_the_number_of_processes(
    case: PassCase, expected: list[bytes], tmp_path: Path, count: int, size: int
) -> None:
    """With batches of 2,048, only the first process has a batch."""
    found = run_processes(count, lambda processes: rank(case.work(processes, batch_size=size), tmp_path))
    assert found[1:] == [None] * (count - 1)
    assert submissions(found[0], tmp_path) == expected
    assert not list(tmp_path.rglob("*.part"))


def test_each_process_predicts_its_slice(case: PassCase, tmp_path: Path) -> None:
    progress = {rank: RecordedProgress() for rank in range(3)}
    works: dict[int, RecordedPass] = {}

    def one(processes: ProcessGroup) -> list[TopK] | None:
        works[processes.rank] = case.work(processes, progress=progress[processes.rank])
        return rank(works[processes.rank], tmp_path)

    run_processes(3, one)
    positions = [works[rank].positions for rank in range(3)]
    everything = [position for of_process in positions for position in of_process]
    assert sorted(everything) == list(range(len(works[0].segments)))
    assert max(map(len, positions)) - min(map(len, positions)) <= 4
    # All processes call `stop_requested` equally often; otherwise they would wait for each other forever.
    totals = {of_process.reports["predict"][-1][:2] for of_process in progress.values()}
    assert len(totals) == 1


def test_rankings_do_not_depend_on_the_order_of_shards(case: PassCase, expected: list[bytes], tmp_path: Path) -> None:
    order = [4, 7, 0, 6, 2, 5, 1, 3]
    videos = videos_of(LENGTHS)
    write_shards(tmp_path / "shards", [videos[number] for number in order], num_shards=2, prefix="other")
    work = PassCase(tmp_path / "shards", case.models).work()
    assert work.reader.catalog.video_ids == [f"video{number}" for number in order]
    assert submissions(rank(work, tmp_path), tmp_path) == expected


# --- Stopping and resuming -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("calls", [0, 1, 5, 11])
def test_a_stopped_pass_resumes(case: PassCase, expected: list[bytes], tmp_path: Path, calls: int) -> None:
    stopped = case.work(ProcessGroup(stop_requested=stopping_after(calls)))
    with pytest.raises(Interrupted, match="the same command continues") as raised:
        rank(stopped, tmp_path)
    assert raised.value.exit_code == 75
    assert stopped.starts == [4 * number for number in range(calls)]
    resumed = case.work()
    assert submissions(rank(resumed, tmp_path), tmp_path) == expected
    assert sorted(stopped.starts + resumed.starts) == [4 * number for number in range(num_batches(resumed))]
    assert not set(stopped.starts) & set(resumed.starts)
    assert not (tmp_path / "partial").exists()


def test_a_pass_stopped_several_times_resumes(case: PassCase, expected: list[bytes], tmp_path: Path) -> None:
    starts: list[int] = []
    tries = 0
    while True:
        tries += 1
        # `stop_requested` is also called for batches that were predicted before.
        work = case.work(ProcessGroup(stop_requested=stopping_after(3 * tries)), starts=starts)
        try:
            rankers = rank(work, tmp_path)
        except Interrupted:
            continue
        break
    assert tries > 3
    assert len(starts) == len(set(starts))
    assert submissions(rankers, tmp_path) == expected


@pytest.mark.parametrize("count", [2, 3])
def test_stopped_processes_resume(case: PassCase, expected: list[bytes], tmp_path: Path, count: int) -> None:
    before: list[int] = []

    def stopped(processes: ProcessGroup) -> str:
        work = case.work(replace(processes, stop_requested=stopping_after(2)), starts=before)
        with pytest.raises(Interrupted) as raised:
            rank(work, tmp_path)
        return str(raised.value)

    assert len(set(run_processes(count, stopped))) == 1
    assert len(before) == 2 * count
    names = sorted(path.name for path in (tmp_path / "partial").iterdir())
    assert names == [f"ranked-{rank}-of-{count}.part" for rank in range(count)]
    after: list[int] = []
    found = run_processes(count, lambda processes: rank(case.work(processes, starts=after), tmp_path))
    assert submissions(found[0], tmp_path) == expected
    assert not set(before) & set(after)


@pytest.fixture
def stopped(case: PassCase, tmp_path: Path) -> Path:
    """The partial rankings of a pass that was stopped after five batches."""
    with pytest.raises(Interrupted):
        rank(case.work(ProcessGroup(stop_requested=stopping_after(5))), tmp_path)
    [path] = (tmp_path / "partial").iterdir()
    return path


def test_partial_rankings_with_another_fingerprint_are_not_used(
    case: PassCase, expected: list[bytes], tmp_path: Path, stopped: Path
) -> None:
    work = case.work()
    assert submissions(rank(work, tmp_path, "another fingerprint"), tmp_path) == expected
    assert len(work.starts) == num_batches(work)
    assert not stopped.exists()


def test_partial_rankings_of_another_number_of_processes_are_not_used(
    case: PassCase, expected: list[bytes], tmp_path: Path, stopped: Path
) -> None:
    predicted: list[int] = []
    found = run_processes(2, lambda processes: rank(case.work(processes, starts=predicted), tmp_path))
    assert submissions(found[0], tmp_path) == expected
    assert len(predicted) == num_batches(case.work())
    assert not stopped.exists()


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_truncated_partial_rankings_raise_an_error_or_are_not_used(
    case: PassCase, expected: list[bytes], tmp_path: Path, stopped: Path, fraction: float
) -> None:
    content = stopped.read_bytes()
    stopped.write_bytes(content[: int(fraction * len(content))])
    try:
        rankers = rank(case.work(), tmp_path)
    except Yt8mError as error:
        # The message must name the file to delete.
        assert str(stopped) in str(error)  # noqa: PT017
        stopped.unlink()
        rankers = rank(case.work(), tmp_path)
    assert submissions(rankers, tmp_path) == expected


@pytest.mark.parametrize("size", [3, 16])
def test_a_pass_resumes_with_another_batch_size(
    case: PassCase, expected: list[bytes], tmp_path: Path, stopped: Path, size: int
) -> None:
    assert stopped.is_file()
    assert submissions(rank(case.work(batch_size=size), tmp_path), tmp_path) == expected


def test_a_kill_loses_only_the_batches_since_the_last_save(
    case: PassCase, expected: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    monkeypatch.setattr(streaming, "SAVE_SECONDS", 0.0)
    request = stopping_after(6)

    def kill() -> bool:
        if request():
            raise Killed
        return False

    with pytest.raises(Killed):
        rank(case.work(ProcessGroup(stop_requested=kill)), tmp_path)
    # A kill during a write leaves such a file.
    leftover = tmp_path / "partial" / ".ranked-0-of-1.0123abcd.part"
    leftover.write_bytes(b"half")
    work = case.work()
    assert submissions(rank(work, tmp_path), tmp_path) == expected
    assert work.starts == [4 * number for number in range(6, num_batches(work))]
    assert not (tmp_path / "partial").exists()


def test_leftovers_of_another_number_of_processes_are_removed(case: PassCase, tmp_path: Path) -> None:
    (tmp_path / "partial").mkdir()
    (tmp_path / "partial" / ".ranked-1-of-2.0123abcd.part").write_bytes(b"half")
    rank(case.work(), tmp_path)
    assert not (tmp_path / "partial").exists()


def test_processes_without_a_shared_folder_raise_an_error(case: PassCase, tmp_path: Path) -> None:
    def one(processes: ProcessGroup) -> list[TopK] | None:
        try:
            return rank(case.work(processes), tmp_path / str(processes.rank))
        except threading.BrokenBarrierError:
            return None

    with pytest.raises(Yt8mError, match=r"ranked-1-of-2\.part: the ranking of process 1 is missing"):
        run_processes(2, one)
