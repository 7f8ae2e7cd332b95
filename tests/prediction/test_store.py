"""Probabilities on disk: what is read is what was written, by whom and however often it was stopped, or a sentence."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray

import yt8m
from tests.conftest import FullDisk
from tests.prediction.test_predict import NUM_CLASSES as MODEL_CLASSES
from tests.prediction.test_predict import agnostic, videos_of
from tests.support.tiny_shards import random_videos, write_shards
from yt8m.dataset.catalog import Catalog
from yt8m.dataset.frames import FrameReader
from yt8m.dataset.indexing import index_folder
from yt8m.errors import UsageError, Yt8mError
from yt8m.inference.classifier import fold_classifiers
from yt8m.prediction import store_writer
from yt8m.prediction.passes import Pass, store_predictions
from yt8m.prediction.predict import Predictions, segments_of
from yt8m.prediction.quantization import NUM_CODES, probabilities_of_codes
from yt8m.prediction.segments import Segments
from yt8m.prediction.store import Store, StoredModel, StoreIndex, unfinished_folder
from yt8m.prediction.store_writer import StoreWriter
from yt8m.ranking.ensemble import MergeConfig, Merger
from yt8m.ranking.rank import rank_stored
from yt8m.runs.predicting import Wanted, merge_stores
from yt8m.submission.submission import read_submission
from yt8m.vocabulary import Vocabulary

LABEL_IDS = [7, 3, 11, 5]
NUM_CLASSES = len(LABEL_IDS)
BLOCK = 4

FILES_OF_ONE = ["one.crc.npy", "one.npy", "predictions.yaml"]


def write_vocabulary(path: Path, label_ids: list[int]) -> Path:
    path.write_text("Index,Name\n" + "".join(f"{label_id},class {label_id}\n" for label_id in label_ids))
    return path


class Setting(NamedTuple):
    """Some videos, their vocabulary, and codes of two models for their segments, (S, C) each."""

    catalog: Catalog
    vocabulary: Path
    segments: Segments
    codes: dict[str, NDArray[np.uint16]]

    def index(self, names: Iterable[str], **changes: Any) -> StoreIndex:
        index = StoreIndex(
            models={name: StoredModel(kind="agnostic", digest=f"of {name}") for name in names},
            vocabulary=Vocabulary.load(self.vocabulary).digest,
            catalog=self.catalog.digest,
            num_segments=len(self.segments),
            num_classes=NUM_CLASSES,
            segments_per_block=BLOCK,
        )
        return index.model_copy(update=changes)


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, random_videos(4, seed=7, num_frames=(70, 99)))
    catalog = index_folder(folder)
    segments = segments_of(FrameReader(catalog))
    # The last block is not full.
    assert len(segments) % BLOCK != 0
    rng = np.random.default_rng(5)
    shape = (len(segments), NUM_CLASSES)
    codes = {name: rng.integers(1, NUM_CODES, shape, np.uint16) for name in ("one", "two")}
    return Setting(catalog, write_vocabulary(folder / "classes.csv", LABEL_IDS), segments, codes)


def batches(setting: Setting, names: Iterable[str], block: slice, size: int = 3) -> Iterator[Predictions]:
    """The codes of a block in small batches, as if they were being predicted."""
    for start in range(block.start, block.stop, size):
        positions = slice(start, min(start + size, block.stop))
        yield Predictions(start, {name: setting.codes[name][positions] for name in names})


def write_blocks(setting: Setting, writer: StoreWriter, blocks: Iterable[slice]) -> None:
    for block in blocks:
        for predictions in batches(setting, writer.index.models, block):
            writer.write(predictions)


def write(setting: Setting, folder: Path, names: Sequence[str], **changes: Any) -> Store:
    writer = StoreWriter(folder, setting.index(names, **changes))
    writer.prepare()
    write_blocks(setting, writer, writer.pending())
    writer.close()
    return writer.finish()


def merge(setting: Setting, folders: Sequence[Path], submission: Path, top_k: int = 100, **settings: Any) -> list[str]:
    wanted = Wanted(submission, top_k=top_k)
    return merge_stores(folders, setting.catalog, setting.vocabulary, MergeConfig(**settings), wanted)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def stored_codes(store: Store, name: str) -> NDArray[np.uint16]:
    """All codes of a model as they were given, (S, C)."""
    return np.stack([store.codes(name, class_index) for class_index in range(store.index.num_classes)], axis=1)


# ---------------------------------------------------------------------------------------------------------- round trip


@pytest.mark.parametrize("segments_per_block", [1, 4, 7, 8192])
def test_round_trip(tmp_path: Path, setting: Setting, segments_per_block: int) -> None:
    given = write(setting, tmp_path / "kept", ["one", "two"], segments_per_block=segments_per_block)
    store = Store.open(tmp_path / "kept")
    assert store.index == given.index == setting.index(["one", "two"], segments_per_block=segments_per_block)
    for name in ("one", "two"):
        np.testing.assert_array_equal(stored_codes(store, name), setting.codes[name])
        # The layout that the module describes, read without it.
        np.testing.assert_array_equal(np.load(tmp_path / "kept" / f"{name}.npy"), setting.codes[name].T)
    assert names_in(tmp_path) == ["kept"]
    assert names_in(tmp_path / "kept") == [*FILES_OF_ONE, "two.crc.npy", "two.npy"]


def test_checksums_are_crc32c_of_each_class_in_each_block(tmp_path: Path, setting: Setting) -> None:
    write(setting, tmp_path / "kept", ["one"])
    found = np.load(tmp_path / "kept" / "one.crc.npy")
    assert found.dtype == np.uint32
    for number in range(-(-len(setting.segments) // BLOCK)):
        for class_index in range(NUM_CLASSES):
            of_block = setting.codes["one"][number * BLOCK : (number + 1) * BLOCK, class_index]
            assert found[number, class_index] == slow_crc32c(of_block.astype("<u2").tobytes())


def slow_crc32c(data: bytes) -> int:
    """Castagnoli's polynomial, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_blocks_may_come_in_any_order_and_from_several_writers(tmp_path: Path, setting: Setting) -> None:
    write(setting, tmp_path / "expected", ["one", "two"])
    writers = [StoreWriter(tmp_path / "kept", setting.index(["one", "two"])) for _ in range(3)]
    writers[0].prepare()
    pending = writers[0].pending()
    for number, block in enumerate(reversed(pending)):
        write_blocks(setting, writers[number % 3], [block])
    for writer in writers:
        writer.close()
    writers[0].finish()
    assert contents(tmp_path / "kept") == contents(tmp_path / "expected")


def test_segments_that_are_not_the_next_of_a_block_are_a_defect(tmp_path: Path, setting: Setting) -> None:
    writer = StoreWriter(tmp_path / "kept", setting.index(["one"]))
    writer.prepare()

    def some(start: int, count: int) -> Predictions:
        return Predictions(start, {"one": setting.codes["one"][start : start + count]})

    writer.write(some(4, 2))
    for wrong in (some(7, 1), some(5, 1), some(4 + 2, 3), some(9, 1), some(2, 2)):
        with pytest.raises(ValueError, match="are not the next of a block"):
            writer.write(wrong)
    writer.close()
    with pytest.raises(Yt8mError, match="blocks were not predicted"):
        writer.finish()


# ------------------------------------------------------------------------------------------------- what was not written


def test_what_was_never_written_is_no_probability(tmp_path: Path, setting: Setting) -> None:
    """Whoever takes an unfinished folder for a finished one finds nothing to rank where nothing was predicted."""
    writer = StoreWriter(tmp_path / "kept", setting.index(["one"]))
    writer.prepare()
    write_blocks(setting, writer, writer.pending()[:2])
    writer.close()
    work = unfinished_folder(tmp_path / "kept")
    codes = np.load(work / "one.npy")
    np.testing.assert_array_equal(codes[:, : 2 * BLOCK], setting.codes["one"][: 2 * BLOCK].T)
    assert np.isnan(probabilities_of_codes()[codes[:, 2 * BLOCK :]]).all()
    (work / "predictions.yaml").write_bytes((work / "unfinished.yaml").read_bytes())
    # Checksums that are right do not help either.
    forged = Store.open(work)
    with pytest.raises(Yt8mError, match="is damaged"):
        forged.codes("one", 0)
    sums = np.load(work / "one.crc.npy")
    sums[2:] = slow_crc32c(bytes(2 * BLOCK))
    sums[-1] = slow_crc32c(bytes(2 * (len(setting.segments) % BLOCK)))
    np.save(work / "one.crc.npy", sums)
    with pytest.raises(Yt8mError, match=rf"segment {setting.segments.name(2 * BLOCK)} for class position 0 is nan"):
        rank_stored({"one": Store.open(work)}, Merger(MergeConfig(), ["one"]), setting.segments, 5)


def test_what_a_model_did_not_say_cannot_be_ranked(tmp_path: Path, setting: Setting) -> None:
    codes = {"one": setting.codes["one"].copy(), "two": setting.codes["two"]}
    codes["one"][6, 2] = 0
    store = write(setting._replace(codes=codes), tmp_path / "kept", ["one", "two"])
    with pytest.raises(Yt8mError, match=rf"segment {setting.segments.name(6)} for class position 2 is nan"):
        merge(setting, [tmp_path / "kept"], tmp_path / "s.csv")
    assert not (tmp_path / "s.csv").exists()
    # Who has no weight is not asked.
    merge(setting, [tmp_path / "kept"], tmp_path / "s.csv", weights={"one": 0.0})
    assert store.index.num_segments == len(setting.segments)


@pytest.mark.parametrize("left_out", [0, 2, -1])
def test_a_block_left_out_is_noticed(tmp_path: Path, setting: Setting, left_out: int) -> None:
    writer = StoreWriter(tmp_path / "kept", setting.index(["one"]))
    writer.prepare()
    blocks = writer.pending()
    del blocks[left_out]
    write_blocks(setting, writer, blocks)
    writer.close()
    with pytest.raises(Yt8mError, match=rf"kept: 1 of {len(blocks) + 1} blocks were not predicted\."):
        writer.finish()
    assert names_in(tmp_path) == ["kept.unfinished"]


def test_an_unfinished_folder_is_not_opened(tmp_path: Path, setting: Setting) -> None:
    writer = StoreWriter(tmp_path / "kept", setting.index(["one"]))
    writer.prepare()
    write_blocks(setting, writer, writer.pending()[:-1])
    writer.close()
    for folder in (tmp_path / "kept", tmp_path / "kept.unfinished"):
        with pytest.raises(UsageError, match=r"is not finished; the same .* goes on with it\.$") as raised:
            Store.open(folder)
        assert str(raised.value).startswith(f"{folder}: ")
        with pytest.raises(UsageError, match="is not finished"):
            merge(setting, [folder], tmp_path / "s.csv")


# ------------------------------------------------------------------------------------------------- stopped and resumed


class Killed(BaseException):
    """Stands for a kill: nothing of the project catches it."""


@pytest.mark.parametrize("num_blocks", [0, 1, 3, 6])
@pytest.mark.parametrize("synced", [True, False])
def test_a_killed_writer_leaves_what_it_synced(
    tmp_path: Path, setting: Setting, monkeypatch: pytest.MonkeyPatch, num_blocks: int, synced: bool
) -> None:
    write(setting, tmp_path / "expected", ["one", "two"])
    monkeypatch.setattr(store_writer, "SYNC_SECONDS", -1.0 if synced else 1e9)
    index = setting.index(["one", "two"])
    first = StoreWriter(tmp_path / "kept", index)
    assert first.prepare()
    blocks = first.pending()
    assert blocks == [
        slice(start, min(start + BLOCK, len(setting.segments))) for start in range(0, len(setting.segments), BLOCK)
    ]

    def killed() -> None:
        write_blocks(setting, first, blocks[:num_blocks])
        # In the middle of the next.
        first.write(next(batches(setting, index.models, blocks[num_blocks])))
        raise Killed

    with pytest.raises(Killed):
        killed()
    assert names_in(tmp_path) == ["expected", "kept.unfinished"]
    second = StoreWriter(tmp_path / "kept", index)
    assert second.prepare()
    assert second.pending() == (blocks[num_blocks:] if synced else blocks)
    write_blocks(setting, second, second.pending())
    second.close()
    assert second.pending() == []
    second.finish()
    assert contents(tmp_path / "kept") == contents(tmp_path / "expected")
    assert names_in(tmp_path) == ["expected", "kept"]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no way to name an open file here")
def test_blocks_count_as_done_only_once_they_are_on_the_disk(
    tmp_path: Path, setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that loses its power keeps what was flushed, and may keep the rest or not."""
    events: list[str] = []
    writer = StoreWriter(tmp_path / "kept", setting.index(["one"]))
    writer.prepare()
    flush, put = os.fsync, os.pwrite

    def name_of(descriptor: int) -> str:
        return Path(f"/proc/self/fd/{descriptor}").readlink().name

    def noted_flush(descriptor: int) -> None:
        events.append(f"flush {name_of(descriptor)}")
        flush(descriptor)

    def noted_put(descriptor: int, data: Any, offset: int) -> int:
        events.append(f"write {name_of(descriptor)}")
        return put(descriptor, data, offset)

    monkeypatch.setattr(os, "fsync", noted_flush)
    monkeypatch.setattr(os, "pwrite", noted_put)
    write_blocks(setting, writer, writer.pending()[:2])
    assert "write done.npy" not in events
    writer.close()
    done = events.index("write done.npy")
    for name in ("one.npy", "one.crc.npy"):
        last_write = max(place for place, event in enumerate(events) if event == f"write {name}")
        assert last_write < events.index(f"flush {name}") < done
    assert events[-1] == "flush done.npy"


@pytest.mark.parametrize(
    "changes",
    [
        {"models": {"one": StoredModel(kind="agnostic", digest="of another training")}},
        {"models": {"one": StoredModel(kind="aware", digest="of one")}},
        {"shifts": [-1, 0, 1]},
        {"precision": "bf16-mixed"},
        {"device": "cuda"},
        {"catalog": "of other videos"},
        {"vocabulary": "of other classes"},
        {"segments_per_block": 5},
    ],
)
@pytest.mark.parametrize("finished", [False, True])
def test_predictions_of_something_else_are_begun_anew(
    tmp_path: Path, setting: Setting, changes: dict[str, Any], finished: bool
) -> None:
    if finished:
        write(setting, tmp_path / "kept", ["one"], **changes)
    else:
        former = StoreWriter(tmp_path / "kept", setting.index(["one"], **changes))
        former.prepare()
        write_blocks(setting, former, former.pending()[:3])
        former.close()
    other = {"one": setting.codes["two"]}
    now = setting._replace(codes=other)
    writer = StoreWriter(tmp_path / "kept", now.index(["one"]))
    assert writer.prepare()
    assert len(writer.pending()) == -(-len(setting.segments) // BLOCK)
    write_blocks(now, writer, writer.pending())
    writer.close()
    store = writer.finish()
    np.testing.assert_array_equal(stored_codes(store, "one"), other["one"])
    assert names_in(tmp_path) == ["kept"]
    assert names_in(tmp_path / "kept") == FILES_OF_ONE


def test_former_predictions_stay_until_the_new_ones_are_whole(tmp_path: Path, setting: Setting) -> None:
    write(setting, tmp_path / "kept", ["one", "two"])
    writer = StoreWriter(tmp_path / "kept", setting.index(["two"]))
    writer.prepare()
    write_blocks(setting, writer, writer.pending()[:-1])
    writer.close()
    assert list(Store.open(tmp_path / "kept").index.models) == ["one", "two"]
    write(setting, tmp_path / "kept", ["two"])
    assert names_in(tmp_path / "kept") == ["predictions.yaml", "two.crc.npy", "two.npy"]
    assert names_in(tmp_path) == ["kept"]


def test_a_finished_folder_of_the_same_is_left_as_it_is(tmp_path: Path, setting: Setting) -> None:
    write(setting, tmp_path / "kept", ["one"])
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "kept").iterdir()}
    writer = StoreWriter(tmp_path / "kept", setting.index(["one"]))
    assert not writer.prepare()
    assert writer.pending() == []
    writer.close()
    assert writer.finish().index == setting.index(["one"])
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "kept").iterdir()} == before


def test_an_unfinished_try_of_something_else_beside_finished_predictions_is_not_mixed_with_them(
    tmp_path: Path, setting: Setting
) -> None:
    """First one model, then half of another training of it, and then the first again, which is there."""
    write(setting, tmp_path / "kept", ["one"])
    before = contents(tmp_path / "kept")
    again = setting.index(["one"], models={"one": StoredModel(kind="agnostic", digest="of another training")})
    half = StoreWriter(tmp_path / "kept", again)
    half.prepare()
    write_blocks(setting._replace(codes={"one": setting.codes["two"]}), half, half.pending()[:3])
    half.close()
    write(setting, tmp_path / "kept", ["one"])
    assert contents(tmp_path / "kept") == before


@pytest.mark.parametrize("lost", ["one.npy", "one.crc.npy", "done.npy", "unfinished.yaml"])
def test_an_unfinished_folder_that_lost_a_file_is_begun_anew(tmp_path: Path, setting: Setting, lost: str) -> None:
    """As it is where a kill came while it was being made."""
    writer = StoreWriter(tmp_path / "kept", setting.index(["one"]))
    writer.prepare()
    write_blocks(setting, writer, writer.pending()[:3])
    writer.close()
    (tmp_path / "kept.unfinished" / lost).unlink()
    again = StoreWriter(tmp_path / "kept", setting.index(["one"]))
    assert again.prepare()
    assert len(again.pending()) == again.index.num_blocks
    store = write(setting, tmp_path / "kept", ["one"])
    np.testing.assert_array_equal(stored_codes(store, "one"), setting.codes["one"])


@pytest.mark.parametrize("place", ["first", "second"])
def test_a_kill_while_the_folder_gets_its_name(
    tmp_path: Path, setting: Setting, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Former predictions are put aside, then the new ones renamed, then the former removed."""
    write(setting, tmp_path / "kept", ["two"])
    write(setting, tmp_path / "expected", ["one"])
    writer = StoreWriter(tmp_path / "kept", setting.index(["one"]))
    writer.prepare()
    write_blocks(setting, writer, writer.pending())
    writer.close()
    renamed = Path.replace
    calls: list[Path] = []

    def killed(path: Path, target: Path) -> Path:
        calls.append(path)
        if len(calls) == (2 if place == "first" else 3):
            raise Killed
        return renamed(path, target)

    def killed_removing(path: Path) -> None:
        raise Killed

    monkeypatch.setattr(Path, "replace", killed)
    monkeypatch.setattr(shutil, "rmtree", killed_removing)
    with pytest.raises(Killed):
        writer.finish()
    monkeypatch.undo()
    write(setting, tmp_path / "kept", ["one"])
    assert contents(tmp_path / "expected").items() <= contents(tmp_path / "kept").items()
    # And the next ones replace these, whatever the kill left.
    write(setting, tmp_path / "kept", ["two"])
    np.testing.assert_array_equal(stored_codes(Store.open(tmp_path / "kept"), "two"), setting.codes["two"])


def models_of_slow_writer() -> Any:
    return fold_classifiers({"model": agnostic(seed=1)}, torch.device("cpu"))


def write_slowly(shards: Path, folder: Path, pause: float) -> None:
    """What a process of its own does: predict, and pause after the second block."""

    def progress(given: Iterable[slice | None], _: int) -> Iterator[slice | None]:
        for number, batch in enumerate(given):
            if number == 3:
                time.sleep(pause)
            yield batch

    models = models_of_slow_writer()
    catalog = index_folder(shards)
    reader = FrameReader(catalog)
    segments = segments_of(reader)
    index = StoreIndex.of(models, segments, "vocabulary", catalog.digest, (0,), "32-true")
    store_writer.SYNC_SECONDS = -1.0
    work = Pass(reader, segments, models, progress=progress)
    store_predictions(work, folder, index.model_copy(update={"segments_per_block": BLOCK}))


def test_a_killed_process_goes_on_where_it_stopped(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    write_shards(shards, videos_of([90, 70, 88]))
    write_slowly(shards, tmp_path / "expected", 0)
    code = "import sys; from pathlib import Path; from tests.prediction.test_store import write_slowly; "
    code += f"write_slowly(Path({str(shards)!r}), Path({str(tmp_path / 'kept')!r}), 100)"
    source = str(Path(yt8m.__file__).parents[1])
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": f"{source}{os.pathsep}{root}", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], cwd=root, env=environment)
    done = tmp_path / "kept.unfinished" / "done.npy"
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            # A file that is being made is not an array yet.
            if (done.parent / "unfinished.yaml").is_file() and np.load(done).sum() >= 2:
                break
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "kept").exists()
    num_done = int(np.load(done).sum())
    assert 2 <= num_done < len(np.load(done))
    with pytest.raises(UsageError, match="not finished"):
        Store.open(tmp_path / "kept")
    write_slowly(shards, tmp_path / "kept", 0)
    assert contents(tmp_path / "kept") == contents(tmp_path / "expected")
    assert Store.open(tmp_path / "kept").index.num_classes == MODEL_CLASSES


# ---------------------------------------------------------------------------------------------------------------- disk


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, setting: Setting) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.txt").write_text("years of work")
    with pytest.raises(UsageError, match="exists and is not a folder of predictions"):
        write(setting, folder, ["one"])
    assert names_in(folder) == ["chapter.txt"]
    assert names_in(tmp_path) == ["thesis"]
    with pytest.raises(UsageError, match="exists and is not a folder of predictions"):
        write(setting, folder / "chapter.txt", ["one"])


def test_a_folder_of_something_else_that_is_called_unfinished_is_left_alone(tmp_path: Path, setting: Setting) -> None:
    folder = tmp_path / "thesis.unfinished"
    folder.mkdir()
    (folder / "chapter.txt").write_text("years of work")
    with pytest.raises(UsageError):
        write(setting, tmp_path / "thesis", ["one"])
    assert names_in(folder) == ["chapter.txt"]


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path, setting: Setting) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Yt8mError, match=r"file/kept: cannot be written \("):
        write(setting, tmp_path / "file" / "kept", ["one"])


def test_too_little_space_is_said_before_anything_is_predicted(
    tmp_path: Path, setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two bytes for each segment, class and model."""
    needed = 2 * len(setting.segments) * NUM_CLASSES * 2
    free = needed - 1
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free))
    writer = StoreWriter(tmp_path / "new" / "kept", setting.index(["one", "two"]))
    with pytest.raises(Yt8mError, match=r"the predictions need .* GB, and .* GB are free"):
        writer.prepare()
    assert names_in(tmp_path) == []
    free = needed
    write(setting, tmp_path / "new" / "kept", ["one", "two"])
    assert names_in(tmp_path / "new") == ["kept"]


def test_space_is_taken_at_the_start(full_disk: FullDisk, setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found missing after hours, it would cost these."""
    usage = shutil.disk_usage(full_disk.folder)
    full_disk.fill(leave=16_384)
    if not (full_disk.folder / "filler").exists():
        pytest.skip("no disk can be mounted here")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    writer = StoreWriter(full_disk.folder / "kept", setting.index(["wide"], num_classes=3000))
    with pytest.raises(Yt8mError, match="no space left on the disk"):
        writer.prepare()
    assert names_in(full_disk.folder) == ["filler"]


def test_a_disk_that_fills_up_meanwhile_costs_nothing(
    tmp_path: Path, setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a file system writes elsewhere what is written twice, taking space at the start does not help."""
    write(setting, tmp_path / "expected", ["one"])
    monkeypatch.setattr(store_writer, "SYNC_SECONDS", -1.0)
    writer = StoreWriter(tmp_path / "kept", setting.index(["one"]))
    writer.prepare()
    blocks = writer.pending()
    write_blocks(setting, writer, blocks[:2])

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(Yt8mError, match=r"kept: no space left on the disk; what is written stays\."):
        write_blocks(setting, writer, blocks[2:3])
    monkeypatch.undo()
    writer.close()
    again = StoreWriter(tmp_path / "kept", setting.index(["one"]))
    again.prepare()
    assert again.pending() == blocks[2:]
    write_blocks(setting, again, again.pending())
    again.close()
    again.finish()
    assert contents(tmp_path / "kept") == contents(tmp_path / "expected")


# -------------------------------------------------------------------------------------------------------------- reading


def test_what_is_no_folder_of_predictions(tmp_path: Path, setting: Setting) -> None:
    with pytest.raises(UsageError, match="there is no such folder of predictions"):
        Store.open(tmp_path / "absent")
    with pytest.raises(UsageError, match="is not a folder of predictions"):
        Store.open(tmp_path)
    write(setting, tmp_path / "kept", ["one"])
    index = tmp_path / "kept" / "predictions.yaml"
    values = yaml.safe_load(index.read_text())
    assert values["format_version"] == 2
    for version in (1, 99):
        index.write_text(yaml.safe_dump(values | {"format_version": version}))
        with pytest.raises(UsageError, match=f"predictions of version {version}, expected 2; predict again"):
            Store.open(tmp_path / "kept")
    index.write_text(yaml.safe_dump(values | {"num_segments": "many"}))
    with pytest.raises(UsageError, match="'num_segments': expected a valid integer, found 'many'"):
        Store.open(tmp_path / "kept")


@pytest.mark.parametrize(
    "change", [{"segments_per_block": 0}, {"num_segments": -4}, {"num_classes": 0}, {"models": {}}]
)
def test_an_index_that_cannot_be_is_a_sentence(tmp_path: Path, setting: Setting, change: dict[str, object]) -> None:
    write(setting, tmp_path / "kept", ["one"])
    index = tmp_path / "kept" / "predictions.yaml"
    index.write_text(yaml.safe_dump(yaml.safe_load(index.read_text()) | change))
    with pytest.raises(Yt8mError):
        merge(setting, [tmp_path / "kept"], tmp_path / "s.csv")


def test_predictions_of_the_first_version_are_named(tmp_path: Path) -> None:
    """What was written before there were codes: other keys, so the version has to be looked at first."""
    (tmp_path / "predictions.yaml").write_text(
        "format_version: 1\nmodels: [one]\nvocabulary: v\ncatalog: c\nnum_segments: 3\nnum_classes: 2\n"
    )
    with pytest.raises(UsageError, match="predictions of version 1, expected 2; predict again"):
        Store.open(tmp_path)


@pytest.mark.parametrize("name", ["one.npy", "one.crc.npy"])
@pytest.mark.parametrize(
    "damage",
    ["absent", "truncated", "empty", "no array", "a zip", "other shape", "other type", "other order", "pickled"],
)
def test_damaged_files_are_a_sentence(tmp_path: Path, setting: Setting, damage: str, name: str) -> None:
    write(setting, tmp_path / "kept", ["one"])
    path = tmp_path / "kept" / name
    whole = np.load(path)
    if damage == "absent":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-10])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "no array":
        path.write_text("probabilities")
    elif damage == "a zip":
        path.write_bytes(b"PK\x03\x04" + bytes(100))
    elif damage == "other shape":
        np.save(path, whole[1:])
    elif damage == "other type":
        np.save(path, whole.astype(np.float64))
    elif damage == "other order":
        np.save(path, np.asfortranarray(whole))
    else:
        np.save(path, np.array([{"a": 1}], object))
    store = Store.open(tmp_path / "kept")
    with pytest.raises(Yt8mError) as raised:
        store.codes("one", 0)
    assert str(raised.value).startswith(f"{path}: ")
    assert str(raised.value).endswith(".")


def test_a_byte_that_changed_is_found_wherever_it_is(tmp_path: Path, setting: Setting) -> None:
    write(setting, tmp_path / "kept", ["one"])
    path = tmp_path / "kept" / "one.npy"
    whole = path.read_bytes()
    offset = np.load(path, mmap_mode="r").offset
    num_segments = len(setting.segments)
    assert len(whole) == offset + 2 * NUM_CLASSES * num_segments
    generator = np.random.default_rng(0)
    for place in range(offset, len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(damaged)
        store = Store.open(tmp_path / "kept")
        class_index, position = divmod((place - offset) // 2, num_segments)
        for other in range(NUM_CLASSES):
            if other != class_index:
                store.codes("one", other)
        sentence = rf"class position {class_index}, segments from {position // BLOCK * BLOCK}: the checksum is wrong"
        with pytest.raises(Yt8mError, match=sentence):
            store.codes("one", class_index)
    with pytest.raises(Yt8mError, match="is damaged"):
        merge(setting, [tmp_path / "kept"], tmp_path / "s.csv")
    assert not (tmp_path / "s.csv").exists()


def test_a_byte_that_changed_in_a_header_is_a_sentence_or_changes_nothing(tmp_path: Path, setting: Setting) -> None:
    write(setting, tmp_path / "kept", ["one"])
    path = tmp_path / "kept" / "one.npy"
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    for place in range(np.load(path, mmap_mode="r").offset):
        damaged = bytearray(whole)
        damaged[place] ^= int(generator.integers(1, 256))
        path.write_bytes(damaged)
        try:
            found = Store.open(tmp_path / "kept").codes("one", 0)
        except Yt8mError:
            continue
        np.testing.assert_array_equal(found, setting.codes["one"][:, 0])


# -------------------------------------------------------------------------------------------------------------- merging


def slow_ranking(setting: Setting, mean: NDArray[np.float64], class_index: int) -> list[str]:
    order = np.argsort(-mean[:, class_index])
    return [setting.segments.name(position) for position in order]


def test_merged_stores_are_the_mean_of_their_models(tmp_path: Path, setting: Setting) -> None:
    write(setting, tmp_path / "a", ["one"])
    write(setting, tmp_path / "b", ["two"], segments_per_block=7)
    submission = tmp_path / "submission.csv"
    assert merge(setting, [tmp_path / "a", tmp_path / "b"], submission, 9, weights={"two": 3.0}) == ["one", "two"]
    one, two = (
        1 / (1 + np.exp(24 - 40 * (setting.codes[name].astype(np.float64) - 1) / 65534)) for name in ("one", "two")
    )
    found = dict(read_submission(submission))
    assert list(found) == LABEL_IDS
    for class_index, label_id in enumerate(LABEL_IDS):
        expected = slow_ranking(setting, (one + 3 * two) / 4, class_index)
        assert [segment.decode() for segment in found[label_id]] == expected[:9]


@pytest.mark.parametrize("method", ["arithmetic", "geometric", "rank"])
def test_the_order_of_folders_changes_nothing(tmp_path: Path, setting: Setting, method: str) -> None:
    """Sums of three single-precision numbers depend on their order, so it is fixed."""
    rng = np.random.default_rng(1)
    # Many near ties: the same three codes in every row, in any order.
    rows = np.array([20_000, 40_000, 41_000], np.uint16)
    parts = rng.permuted(np.tile(rows, (len(setting.segments), NUM_CLASSES, 1)), axis=2)
    several = setting._replace(codes={name: np.ascontiguousarray(parts[..., i]) for i, name in enumerate("abc")})
    for name in "abc":
        write(several, tmp_path / name, [name])
    submissions = []
    for order in ("abc", "cab", "bca"):
        merge(several, [tmp_path / name for name in order], tmp_path / "s.csv", method=method)
        submissions.append((tmp_path / "s.csv").read_bytes())
    assert submissions[0] == submissions[1] == submissions[2]


def test_models_of_one_folder_and_of_several_merge_to_the_same(tmp_path: Path, setting: Setting) -> None:
    write(setting, tmp_path / "both", ["two", "one"])
    write(setting, tmp_path / "a", ["one"])
    write(setting, tmp_path / "b", ["two"])
    merge(setting, [tmp_path / "both"], tmp_path / "together.csv", method="rank")
    merge(setting, [tmp_path / "b", tmp_path / "a"], tmp_path / "apart.csv", method="rank")
    assert (tmp_path / "together.csv").read_bytes() == (tmp_path / "apart.csv").read_bytes()


def test_other_videos_are_refused(tmp_path: Path, setting: Setting) -> None:
    write(setting, tmp_path / "kept", ["one"])
    write_shards(tmp_path / "others", random_videos(4, seed=1, num_frames=(70, 99)))
    others = setting._replace(catalog=index_folder(tmp_path / "others"))
    with pytest.raises(UsageError, match=r"was predicted from other videos than those of .*others"):
        merge(others, [tmp_path / "kept"], tmp_path / "s.csv")
    assert not (tmp_path / "s.csv").exists()


@pytest.mark.parametrize("label_ids", [[7, 3, 11], [3, 7, 11, 5], [7, 3, 11, 6]])
def test_another_vocabulary_is_refused(tmp_path: Path, setting: Setting, label_ids: list[int]) -> None:
    write(setting, tmp_path / "kept", ["one"])
    other = setting._replace(vocabulary=write_vocabulary(tmp_path / "other.csv", label_ids))
    with pytest.raises(UsageError, match=r"was predicted with another vocabulary than .*other.csv"):
        merge(other, [tmp_path / "kept"], tmp_path / "s.csv")
    assert not (tmp_path / "s.csv").exists()


@pytest.mark.parametrize("change", [{"num_classes": 3}, {"num_segments": 8}])
def test_other_numbers_than_those_of_the_videos_are_refused(
    tmp_path: Path, setting: Setting, change: dict[str, int]
) -> None:
    few = setting._replace(codes={"one": setting.codes["one"][:, : change.get("num_classes", 4)]})
    write(few, tmp_path / "kept", ["one"], **change)
    with pytest.raises(UsageError, match=rf"kept: holds .* expected {len(setting.segments)} of 4\."):
        merge(setting, [tmp_path / "kept"], tmp_path / "s.csv")


def test_two_models_of_one_name_are_refused(tmp_path: Path, setting: Setting) -> None:
    write(setting, tmp_path / "a", ["one"])
    write(setting, tmp_path / "b", ["one", "two"])
    with pytest.raises(UsageError, match=r"b: a model named 'one' is in .*a already"):
        merge(setting, [tmp_path / "a", tmp_path / "b"], tmp_path / "s.csv")
    with pytest.raises(UsageError, match=r"a: a model named 'one' is in .*a already"):
        merge(setting, [tmp_path / "a", tmp_path / "a"], tmp_path / "s.csv")


def test_a_weight_of_no_model_is_refused(tmp_path: Path, setting: Setting) -> None:
    write(setting, tmp_path / "kept", ["one"])
    with pytest.raises(UsageError, match=r"'oen', which is not one of its models \(did you mean 'one'\?\)"):
        merge(setting, [tmp_path / "kept"], tmp_path / "s.csv", weights={"oen": 1.0})


def test_classifiers_of_videos_count_as_the_settings_say(tmp_path: Path, setting: Setting) -> None:
    kinds = {"one": StoredModel(kind="agnostic", digest="1"), "two": StoredModel(kind="video", digest="2")}
    write(setting, tmp_path / "kept", ["one", "two"], models=kinds)
    write(setting, tmp_path / "alone", ["one"])
    prior = {"models": ["two"], "video_exponent": 1.0, "segment_exponent": 1.0}
    assert merge(setting, [tmp_path / "kept"], tmp_path / "idle.csv") == ["one"]
    merge(setting, [tmp_path / "alone"], tmp_path / "alone.csv")
    merge(setting, [tmp_path / "kept"], tmp_path / "prior.csv", video_prior=prior)
    assert (tmp_path / "idle.csv").read_bytes() == (tmp_path / "alone.csv").read_bytes()
    one, two = (probabilities_of_codes()[setting.codes[name]].astype(np.float64) for name in ("one", "two"))
    found = dict(read_submission(tmp_path / "prior.csv"))
    for class_index, label_id in enumerate(LABEL_IDS):
        assert [segment.decode() for segment in found[label_id]] == slow_ranking(setting, one * two, class_index)
    with pytest.raises(UsageError, match="asks the video classifier 'one', which is not among"):
        merge(setting, [tmp_path / "kept"], tmp_path / "s.csv", video_prior=prior | {"models": ["one"]})
    with pytest.raises(UsageError, match="asks the video classifier 'two', which is not among"):
        merge(setting, [tmp_path / "alone"], tmp_path / "s.csv", video_prior=prior)
