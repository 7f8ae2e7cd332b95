"""One pass by one process or several, stopped or not: always the same ranking, and the same store."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.prediction.test_predict import DBOF, NEXTVLAD, NUM_CLASSES, agnostic, aware, videos_of
from tests.ranking.test_topk import slow_ranking
from tests.support.tiny_shards import TinyVideo, write_shards
from yt8m.dataset.frames import FrameReader
from yt8m.dataset.indexing import index_folder
from yt8m.errors import Interrupted, UsageError, Yt8mError
from yt8m.inference import classifier, linear
from yt8m.inference.classifier import FoldedClassifier, fold_classifiers
from yt8m.inference.linear import Chunks
from yt8m.models.classifier import ContextAgnosticClassifier, ContextAgnosticClassifierConfig
from yt8m.models.dbof import DBoFConfig
from yt8m.models.layers.mixture import MixtureConfig
from yt8m.prediction.passes import Pass, Processes, store_predictions
from yt8m.prediction.predict import Predictions, predict, segments_of
from yt8m.prediction.segments import Segments
from yt8m.prediction.store import Store, StoreIndex
from yt8m.prediction.store_writer import StoreWriter
from yt8m.ranking import streaming
from yt8m.ranking.ensemble import MergeConfig, Merger
from yt8m.ranking.rank import rank_stored
from yt8m.ranking.streaming import Merge, forget_ranking, rank_streaming
from yt8m.ranking.topk import Ranking, TopK
from yt8m.scoring.map_at_k import average_precision
from yt8m.submission.submission import write_submission
from yt8m.vocabulary import Vocabulary

T = TypeVar("T")

CPU = torch.device("cpu")
VOCABULARY = Vocabulary(np.arange(NUM_CLASSES, dtype=np.int64) * 7 + 3, tuple("abcde"))
LENGTHS = (70, 44, 95, 46, 120, 81, 60, 3)
K = 17


class World(NamedTuple):
    """Some videos, and two models folded."""

    folder: Path
    models: dict[str, FoldedClassifier]

    def reader(self) -> FrameReader:
        """A reader of one's own, as each process has it."""
        return FrameReader(index_folder(self.folder))

    def work(self, processes: Processes = Processes(), **more: object) -> Pass:  # noqa: B008
        reader = self.reader()
        return replace(Pass(reader, segments_of(reader), self.models, processes=processes), **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module", autouse=True)
def _small_chunks() -> Iterator[None]:
    """Chunks that are no larger than what there is to predict here; tests/ranking/test_predict.py has those of users."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "_ON_CPU", Chunks(frames=64, windows=16, gathered=1 << 20))
        patch.setattr(classifier, "VIDEOS_PER_CHUNK", 4)
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, videos_of(LENGTHS), num_shards=3)
    models = {"bare": agnostic(DBOF, seed=1), "aware": aware(NEXTVLAD, DBOF, seed=2)}
    return World(folder, fold_classifiers(models, CPU))


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    in_batches_of(monkeypatch, 4)


def in_batches_of(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr("yt8m.prediction.predict.SEGMENTS_PER_BATCH", size)


MERGER = Merger(MergeConfig(weights={"aware": 0.7}), ["bare", "aware"])


def merge_all(predictions: Predictions) -> NDArray[np.float32]:
    return MERGER(predictions.codes)


def merge_coarsely(predictions: Predictions) -> NDArray[np.float32]:
    """Probabilities of few values, so that most segments are tied."""
    return np.round(MERGER(predictions.codes) * 16) / np.float32(16)


MERGES: list[Merge] = [merge_all, merge_coarsely]


def submissions(rankers: Sequence[TopK] | None, folder: Path) -> list[bytes]:
    assert rankers is not None
    contents = []
    for ranker in rankers:
        write_submission(folder / "s.csv", ranker.result(), VOCABULARY)
        contents.append((folder / "s.csv").read_bytes())
    (folder / "s.csv").unlink()
    return contents


def streamed(work: Pass, folder: Path, mark: str = "mark", k: int = K) -> list[TopK] | None:
    """Rank, and forget what was kept for a ranking that is whole, as commands do once it is written."""
    rankers = rank_streaming(work, MERGES, NUM_CLASSES, k, folder / "kept", mark)
    if rankers is not None:
        forget_ranking(folder / "kept")
    return rankers


def together(count: int, one: Callable[[Processes], T]) -> list[T]:
    """What so many processes return; threads stand for them here."""
    barrier = threading.Barrier(count, timeout=60)
    results: dict[int, T] = {}
    errors: list[BaseException] = []

    def wait() -> None:
        barrier.wait()

    def run(rank: int) -> None:
        try:
            results[rank] = one(Processes(rank, count, wait))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(rank,), name=f"rank {rank}") for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [results[rank] for rank in range(count)]


@pytest.fixture(scope="module")
def alone(world: World, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The submissions of one process that nobody disturbs, in one batch."""
    folder = tmp_path_factory.mktemp("alone")
    return submissions(streamed(world.work(), folder), folder)


def lines_of(segments: Segments, ranked: list[list[int]]) -> bytes:
    """A submission, written anew."""
    lines = ["Class,Segments"]
    for label_id, positions in zip(VOCABULARY.label_ids.tolist(), ranked, strict=True):
        lines.append(f"{label_id}," + " ".join(segments.name(position) for position in positions))
    return ("\n".join(lines) + "\n").encode()


def test_streaming_is_a_full_sort(world: World, alone: list[bytes]) -> None:
    work = world.work()
    batches = list(predict(work.reader, work.segments, work.models))
    for merge, submission in zip(MERGES, alone, strict=True):
        probabilities = np.concatenate([merge(batch) for batch in batches])
        assert submission == lines_of(work.segments, slow_ranking(work.segments, probabilities, K))
    # Ties are the rule in the second, and the list is cut among them.
    coarse = np.concatenate([merge_coarsely(batch) for batch in batches])
    assert len(np.unique(coarse[:, 0])) < K < len(coarse)
    assert alone[0] != alone[1]


@pytest.mark.parametrize("size", [1, 3, 7, 2048])
def test_any_size_of_batches(
    world: World, alone: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    in_batches_of(monkeypatch, size)
    assert submissions(streamed(world.work(), tmp_path), tmp_path) == alone


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("size", [2, 4, 2048])
def test_any_number_of_processes(
    world: World, alone: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, size: int
) -> None:
    """With batches of 2,048 all but the first process have nothing to do."""
    in_batches_of(monkeypatch, size)
    found = together(count, lambda processes: streamed(world.work(processes), tmp_path))
    assert found[1:] == [None] * (count - 1)
    assert submissions(found[0], tmp_path) == alone
    assert not list(tmp_path.rglob("*.part"))


def test_each_process_takes_its_share(world: World, tmp_path: Path) -> None:
    taken: dict[int, list[slice]] = {}
    turns: dict[int, int] = {}

    def one(processes: Processes) -> list[TopK] | None:
        def noted(batches: Iterable[slice | None], count: int) -> Iterator[slice | None]:
            turns[processes.rank] = count
            for batch in batches:
                if batch is not None:
                    taken.setdefault(processes.rank, []).append(batch)
                yield batch

        return streamed(world.work(processes, progress=noted), tmp_path)

    together(3, one)
    positions = [
        [position for batch in taken[rank] for position in range(batch.start, batch.stop)] for rank in range(3)
    ]
    everything = sorted(position for share in positions for position in share)
    assert everything == list(range(len(world.work().segments)))
    assert max(map(len, positions)) - min(map(len, positions)) <= 4
    # All ask equally often whether to stop, or they would wait for each other.
    assert len(set(turns.values())) == 1


def test_any_order_of_shards(world: World, alone: list[bytes], tmp_path: Path) -> None:
    order = [4, 7, 0, 6, 2, 5, 1, 3]
    videos = videos_of(LENGTHS)
    write_shards(tmp_path / "shards", [videos[number] for number in order], num_shards=2, prefix="other")
    other = World(tmp_path / "shards", world.models)
    reader = other.reader()
    assert reader.catalog.video_ids == [f"video{number}" for number in order]
    assert submissions(streamed(other.work(), tmp_path), tmp_path) == alone


@pytest.mark.parametrize("k", [1, 5, 10_000])
def test_streamed_and_stored_give_the_same(world: World, tmp_path: Path, k: int) -> None:
    work = world.work()
    rankers = rank_streaming(work, [merge_all], NUM_CLASSES, k, tmp_path / "kept", "mark")
    store = stored(world, tmp_path / "store")
    ranking = rank_stored(dict.fromkeys(world.models, store), MERGER, work.segments, k)
    write_submission(tmp_path / "stored.csv", ranking, VOCABULARY)
    assert submissions(rankers, tmp_path) == [(tmp_path / "stored.csv").read_bytes()]


# ------------------------------------------------------------------------------------------------------------ stopping


def stopping_after(turns: int) -> Callable[[], bool]:
    """Says no so many times, and then yes."""
    asked = iter(range(turns))
    return lambda: next(asked, None) is None


def counted(predicted: list[int]) -> Callable[[Iterable[slice | None], int], Iterator[slice | None]]:
    """Notes where the batches begin that are predicted."""

    def progress(batches: Iterable[slice | None], _: int) -> Iterator[slice | None]:
        for batch in batches:
            yield batch
            # Asked for the next one: this one was taken, unless the pass was stopped at it.
            if batch is not None:
                predicted.append(batch.start)

    return progress


@pytest.mark.parametrize("turns", [0, 1, 5, 11])
def test_a_pass_that_was_asked_to_stop_goes_on(world: World, alone: list[bytes], tmp_path: Path, turns: int) -> None:
    before: list[int] = []
    processes = Processes(stop_requested=stopping_after(turns))
    with pytest.raises(Interrupted, match="the same command goes on") as raised:
        streamed(world.work(processes, progress=counted(before)), tmp_path)
    assert raised.value.exit_code == 75
    assert before == [4 * number for number in range(turns)]
    after: list[int] = []
    assert submissions(streamed(world.work(progress=counted(after)), tmp_path), tmp_path) == alone
    assert sorted(before + after) == [4 * number for number in range(-(-len(world.work().segments) // 4))]
    assert not set(before) & set(after)
    assert not (tmp_path / "kept").exists()


def test_a_pass_may_be_stopped_again_and_again(world: World, alone: list[bytes], tmp_path: Path) -> None:
    seen: list[int] = []
    tries = 0
    while True:
        tries += 1
        # Batches that are done take a turn as well.
        work = world.work(Processes(stop_requested=stopping_after(3 * tries)), progress=counted(seen))
        try:
            rankers = streamed(work, tmp_path)
        except Interrupted:
            continue
        break
    assert tries > 3
    assert len(seen) == len(set(seen))
    assert submissions(rankers, tmp_path) == alone


@pytest.mark.parametrize("count", [2, 3])
def test_processes_that_were_asked_to_stop_go_on(world: World, alone: list[bytes], tmp_path: Path, count: int) -> None:
    before: list[int] = []

    def stopped(processes: Processes) -> str:
        asked = replace(processes, stop_requested=stopping_after(2))
        with pytest.raises(Interrupted) as raised:
            streamed(world.work(asked, progress=counted(before)), tmp_path)
        return str(raised.value)

    assert len(set(together(count, stopped))) == 1
    assert len(before) == 2 * count
    names = sorted(path.name for path in (tmp_path / "kept").iterdir())
    assert names == [f"ranked-{rank}-of-{count}.part" for rank in range(count)]
    after: list[int] = []
    found = together(count, lambda processes: streamed(world.work(processes, progress=counted(after)), tmp_path))
    assert submissions(found[0], tmp_path) == alone
    assert not set(before) & set(after)


@pytest.fixture
def stopped(world: World, tmp_path: Path) -> Path:
    """What a pass keeps that was stopped after five batches: its one file."""
    with pytest.raises(Interrupted):
        streamed(world.work(Processes(stop_requested=stopping_after(5))), tmp_path)
    [path] = (tmp_path / "kept").iterdir()
    return path


def test_what_was_kept_of_another_pass_is_not_used(
    world: World, alone: list[bytes], tmp_path: Path, stopped: Path
) -> None:
    predicted: list[int] = []
    work = world.work(progress=counted(predicted))
    assert submissions(streamed(work, tmp_path, "another mark"), tmp_path) == alone
    assert len(predicted) == -(-len(work.segments) // 4)
    assert not stopped.exists()


def test_what_another_number_of_processes_kept_is_not_used(
    world: World, alone: list[bytes], tmp_path: Path, stopped: Path
) -> None:
    predicted: list[int] = []
    found = together(2, lambda processes: streamed(world.work(processes, progress=counted(predicted)), tmp_path))
    assert submissions(found[0], tmp_path) == alone
    assert len(predicted) == -(-len(world.work().segments) // 4)
    assert not stopped.exists()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_what_was_kept_and_is_damaged_is_a_sentence_or_not_used(
    world: World, alone: list[bytes], tmp_path: Path, stopped: Path, share: float
) -> None:
    content = stopped.read_bytes()
    stopped.write_bytes(content[: int(share * len(content))])
    try:
        rankers = streamed(world.work(), tmp_path)
    except Yt8mError as error:
        # Whoever reads it has to know which file to delete.
        assert str(stopped) in str(error)  # noqa: PT017
        stopped.unlink()
        rankers = streamed(world.work(), tmp_path)
    assert submissions(rankers, tmp_path) == alone


@pytest.mark.parametrize("size", [3, 16])
def test_a_pass_goes_on_with_batches_of_another_size(
    world: World, alone: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: Path, size: int
) -> None:
    """Devices have batches of their own sizes, and who goes on may have another."""
    assert stopped.is_file()
    in_batches_of(monkeypatch, size)
    assert submissions(streamed(world.work(), tmp_path), tmp_path) == alone


def test_a_kill_costs_what_was_not_saved(
    world: World, alone: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    monkeypatch.setattr(streaming, "SAVE_SECONDS", 0.0)

    def killed(batches: Iterable[slice | None], _: int) -> Iterator[slice | None]:
        for number, batch in enumerate(batches):
            if number == 6:
                raise Killed
            yield batch

    with pytest.raises(Killed):
        streamed(world.work(progress=killed), tmp_path)
    # What a kill in the middle of writing leaves.
    leftover = tmp_path / "kept" / ".ranked-0-of-1.0123abcd.part"
    leftover.write_bytes(b"half")
    predicted: list[int] = []
    assert submissions(streamed(world.work(progress=counted(predicted)), tmp_path), tmp_path) == alone
    assert predicted == [4 * number for number in range(6, -(-len(world.work().segments) // 4))]
    assert not (tmp_path / "kept").exists()


def test_nothing_is_left_of_killed_processes_of_another_number(world: World, tmp_path: Path) -> None:
    """Whoever calls removes the folder when all is done, and cannot where something is in it."""
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / ".ranked-1-of-2.0123abcd.part").write_bytes(b"half")
    streamed(world.work(), tmp_path)
    assert not (tmp_path / "kept").exists()


def test_a_process_whose_folder_is_another_is_noticed(world: World, tmp_path: Path) -> None:
    """Two machines that do not share a disk."""

    def one(processes: Processes) -> list[TopK] | None:
        folder = tmp_path / str(processes.rank)
        try:
            return streamed(world.work(processes), folder)
        except threading.BrokenBarrierError:
            return None

    with pytest.raises(Yt8mError, match=r"ranked-1-of-2\.part: what process 1 ranked is not there"):
        together_with_patience(2, one, 5)


def together_with_patience(count: int, one: Callable[[Processes], T], seconds: float) -> None:
    """The same as `together` where one process fails: the others give up waiting for it."""
    barrier = threading.Barrier(count, timeout=seconds)
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            one(Processes(rank, count, lambda: (barrier.wait(), None)[1]))
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


# -------------------------------------------------------------------------------------------------------------- storing


def index_of(world: World, segments_per_block: int = 10) -> StoreIndex:
    reader = world.reader()
    index = StoreIndex.of(world.models, segments_of(reader), VOCABULARY.digest, reader.catalog.digest, (0,), "32-true")
    return index.model_copy(update={"segments_per_block": segments_per_block})


def stored(world: World, folder: Path, processes: Processes = Processes(), **more: object) -> Store:  # noqa: B008
    store = store_predictions(world.work(processes, **more), folder, index_of(world))
    assert store is not None
    return store


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def one_process(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a store that one process wrote in one go."""
    folder = tmp_path_factory.mktemp("store") / "store"
    stored(world, folder)
    return contents(folder)


def test_a_store_holds_what_is_predicted(world: World, tmp_path: Path) -> None:
    store = stored(world, tmp_path / "store")
    work = world.work()
    batches = list(predict(work.reader, work.segments, work.models))
    for name in world.models:
        whole = np.concatenate([batch.codes[name] for batch in batches])
        for class_index in range(NUM_CLASSES):
            np.testing.assert_array_equal(store.codes(name, class_index), whole[:, class_index])


@pytest.mark.parametrize("count", [2, 3, 9])
def test_processes_write_the_files_of_one(
    world: World, one_process: dict[str, bytes], tmp_path: Path, count: int
) -> None:
    """Nine of them are more than there are blocks."""
    index = index_of(world)
    assert 3 < index.num_blocks < 9
    found = together(count, lambda processes: store_predictions(world.work(processes), tmp_path / "store", index))
    assert found[1:] == [None] * (count - 1)
    assert contents(tmp_path / "store") == one_process
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_nobody_writes_before_all_know_what_there_is_to_do(
    world: World, one_process: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is late would else take what others have left for all there is, and share that out."""
    pending = StoreWriter.pending

    def late(writer: StoreWriter) -> list[slice]:
        if threading.current_thread().name == "rank 1":
            time.sleep(0.5)
        return pending(writer)

    monkeypatch.setattr(StoreWriter, "pending", late)
    monkeypatch.setattr("yt8m.prediction.store_writer.SYNC_SECONDS", -1.0)
    index = index_of(world)
    together(2, lambda processes: store_predictions(world.work(processes), tmp_path / "store", index))
    assert contents(tmp_path / "store") == one_process


@pytest.mark.parametrize("size", [1, 3, 10, 2048])
def test_any_size_of_batches_stores_the_same(
    world: World, one_process: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    in_batches_of(monkeypatch, size)
    stored(world, tmp_path / "store")
    assert contents(tmp_path / "store") == one_process


@pytest.mark.parametrize("turns", [0, 1, 4, 8])
def test_a_store_that_was_asked_to_stop_goes_on(
    world: World, one_process: dict[str, bytes], tmp_path: Path, turns: int
) -> None:
    """A block is three batches; what is there of one that is not whole is predicted again."""
    before: list[int] = []
    work = world.work(Processes(stop_requested=stopping_after(turns)), progress=counted(before))
    with pytest.raises(Interrupted, match="goes on with what is missing"):
        store_predictions(work, tmp_path / "store", index_of(world))
    assert not (tmp_path / "store").exists()
    with pytest.raises(UsageError, match="not finished"):
        Store.open(tmp_path / "store")
    after: list[int] = []
    stored(world, tmp_path / "store", progress=counted(after))
    assert after[0] == 10 * (turns // 3)
    assert contents(tmp_path / "store") == one_process


def test_other_numbers_of_processes_go_on_with_a_store(
    world: World, one_process: dict[str, bytes], tmp_path: Path
) -> None:
    before: list[int] = []
    after: list[int] = []
    index = index_of(world)

    def interrupted(processes: Processes) -> None:
        asked = replace(processes, stop_requested=stopping_after(3))
        with pytest.raises(Interrupted):
            store_predictions(world.work(asked, progress=counted(before)), tmp_path / "store", index)

    together(2, interrupted)
    assert len(before) == 6
    together(
        3,
        lambda processes: store_predictions(world.work(processes, progress=counted(after)), tmp_path / "store", index),
    )
    assert contents(tmp_path / "store") == one_process
    assert not set(before) & set(after)


def test_a_finished_store_is_not_predicted_again(world: World, one_process: dict[str, bytes], tmp_path: Path) -> None:
    stored(world, tmp_path / "store")
    predicted: list[int] = []
    stored(world, tmp_path / "store", progress=counted(predicted))
    found = together(
        2,
        lambda processes: store_predictions(
            world.work(processes, progress=counted(predicted)), tmp_path / "store", index_of(world)
        ),
    )
    assert found[0] is not None
    assert predicted == []
    assert contents(tmp_path / "store") == one_process


# --------------------------------------------------------------------------------------------------------------- shifts


def linear_model(margin: int = 0) -> ContextAgnosticClassifier:
    """A model that says one feature's mean over the frames it sees, all the rest switched off."""
    config = ContextAgnosticClassifierConfig(
        encoder=DBoFConfig(hidden_size=1, output_size=1, frame_se_reduction=0, video_se_reduction=0),
        mixture=MixtureConfig(num_experts=1),
        margin_frames=margin,
    )
    model = ContextAgnosticClassifier(config, 1)
    state = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    for name in state:
        if name.endswith(("running_var", "norm.weight")):
            state[name] += 1
    state["encoder.frame_projection.weight"][0, 0] = 1
    state["encoder.frame_projection.bias"] += 3  # so that ReLU cuts nothing off
    state["encoder.video_projection.weight"][0, 1] = 1  # the mean, not the maximum
    state["mixture.experts.weight"] += 8
    state["mixture.experts.bias"] -= 24
    state["mixture.gate.bias"][0] = 20
    model.load_state_dict(state)
    return model.eval()


def test_shifts_help_where_frames_are_noisy_and_concepts_last(tmp_path: Path) -> None:
    """Three windows see three times as many frames of a scene of a minute as one."""
    generator = np.random.default_rng(0)
    videos, truth = [], []
    for number in range(40):
        is_there = np.repeat(generator.random(4) < 0.3, 60)
        frames = np.zeros((240, 1152), np.uint8)
        frames[:, 0] = np.clip(128 + 20 * is_there + 50 * generator.normal(size=240), 0, 255).astype(np.uint8)
        videos.append(TinyVideo(f"v{number:03d}", frames))
        truth.append(is_there)
    write_shards(tmp_path, videos)
    reader = FrameReader(index_folder(tmp_path))
    segments = segments_of(reader)
    wanted = np.array(
        [truth[row][start] for row, start in zip(segments.rows, segments.start_seconds, strict=True)], np.bool_
    )
    models = fold_classifiers({"linear": linear_model()}, CPU)

    def score(shifts: tuple[int, ...], folder: str) -> float:
        work = Pass(reader, segments, models, shifts)
        rankers = rank_streaming(
            work,
            [lambda batch: Merger(MergeConfig(), ["linear"])(batch.codes)],
            1,
            len(segments),
            tmp_path / folder,
            "mark",
        )
        assert rankers is not None
        ranking: Ranking = rankers[0].result()
        return average_precision(wanted[ranking.positions(0)], int(wanted.sum()))

    without = score((0,), "without")
    assert without > 1.5 * wanted.mean()
    assert score((-5, 0, 5), "with") > without + 0.1
