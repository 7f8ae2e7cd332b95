"""Writing a store: several writers, kills, and full disks."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import yt8m
from tests.support.full_disk import FullDisk
from tests.support.stores import (
    BLOCK,
    FILES_OF_ONE,
    NUM_CLASSES,
    StoreCase,
    batches,
    contents,
    make_store_case,
    names_in,
    predict_slowly,
    stored_codes,
    write_blocks,
    write_store,
)
from tests.support.tiny_models import NUM_CLASSES as MODEL_CLASSES
from tests.support.tiny_models import videos_of
from tests.support.tiny_shards import write_shards
from yt8m.errors import UsageError, Yt8mError
from yt8m.prediction import store_writer
from yt8m.prediction.predict import Predictions
from yt8m.prediction.store import Store, StoredModel
from yt8m.prediction.store_writer import StoreWriter


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> StoreCase:
    return make_store_case(tmp_path_factory.mktemp("shards"))


def test_several_writers_write_blocks_in_any_order(tmp_path: Path, case: StoreCase) -> None:
    write_store(case, tmp_path / "expected", ["one", "two"])
    writers = [StoreWriter(tmp_path / "store", case.index(["one", "two"])) for _ in range(3)]
    writers[0].prepare()
    pending = writers[0].pending()
    for number, block in enumerate(reversed(pending)):
        write_blocks(case, writers[number % 3], [block])
    for writer in writers:
        writer.close()
    writers[0].finish()
    assert contents(tmp_path / "store") == contents(tmp_path / "expected")


def test_segments_out_of_order_are_refused(tmp_path: Path, case: StoreCase) -> None:
    writer = StoreWriter(tmp_path / "store", case.index(["one"]))
    writer.prepare()

    def predictions_of(start: int, count: int) -> Predictions:
        return Predictions(start, {"one": case.codes["one"][start : start + count]})

    writer.write(predictions_of(4, 2))
    for wrong in (
        predictions_of(7, 1),
        predictions_of(5, 1),
        predictions_of(4 + 2, 3),
        predictions_of(9, 1),
        predictions_of(2, 2),
    ):
        with pytest.raises(ValueError, match="are not the next of a block"):
            writer.write(wrong)
    writer.close()
    with pytest.raises(Yt8mError, match="blocks were not predicted"):
        writer.finish()


@pytest.mark.parametrize("omitted", [0, 2, -1])
def test_an_omitted_block_raises_an_error(tmp_path: Path, case: StoreCase, omitted: int) -> None:
    writer = StoreWriter(tmp_path / "store", case.index(["one"]))
    writer.prepare()
    blocks = writer.pending()
    del blocks[omitted]
    write_blocks(case, writer, blocks)
    writer.close()
    with pytest.raises(Yt8mError, match=rf"store: 1 of {len(blocks) + 1} blocks were not predicted\."):
        writer.finish()
    assert names_in(tmp_path) == ["store.unfinished"]


# --- Stopping and resuming -------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Simulates a kill; the package does not catch it."""


@pytest.mark.parametrize("num_blocks", [0, 1, 3, 6])
@pytest.mark.parametrize("synced", [True, False])
def test_synced_blocks_are_kept_after_a_kill(
    tmp_path: Path, case: StoreCase, monkeypatch: pytest.MonkeyPatch, num_blocks: int, synced: bool
) -> None:
    write_store(case, tmp_path / "expected", ["one", "two"])
    monkeypatch.setattr(store_writer, "SYNC_SECONDS", -1.0 if synced else 1e9)
    index = case.index(["one", "two"])
    first = StoreWriter(tmp_path / "store", index)
    first.prepare()
    blocks = first.pending()
    assert blocks == [
        slice(start, min(start + BLOCK, len(case.segments))) for start in range(0, len(case.segments), BLOCK)
    ]

    def killed() -> None:
        write_blocks(case, first, blocks[:num_blocks])
        # The kill is in the middle of the next block.
        first.write(next(batches(case, index.models, blocks[num_blocks])))
        raise Killed

    with pytest.raises(Killed):
        killed()
    assert names_in(tmp_path) == ["expected", "store.unfinished"]
    second = StoreWriter(tmp_path / "store", index)
    second.prepare()
    assert second.pending() == (blocks[num_blocks:] if synced else blocks)
    write_blocks(case, second, second.pending())
    second.close()
    assert second.pending() == []
    second.finish()
    assert contents(tmp_path / "store") == contents(tmp_path / "expected")
    assert names_in(tmp_path) == ["expected", "store"]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the names of open files are unknown")
def test_blocks_are_marked_done_only_after_a_flush(
    tmp_path: Path, case: StoreCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power failure only flushed bytes are certain to be on the disk."""
    events: list[str] = []
    writer = StoreWriter(tmp_path / "store", case.index(["one"]))
    writer.prepare()
    flush, put = os.fsync, os.pwrite

    def name_of(descriptor: int) -> str:
        return Path(f"/proc/self/fd/{descriptor}").readlink().name

    def recorded_flush(descriptor: int) -> None:
        events.append(f"flush {name_of(descriptor)}")
        flush(descriptor)

    def recorded_put(descriptor: int, data: Any, offset: int) -> int:
        events.append(f"write {name_of(descriptor)}")
        return put(descriptor, data, offset)

    monkeypatch.setattr(os, "fsync", recorded_flush)
    monkeypatch.setattr(os, "pwrite", recorded_put)
    write_blocks(case, writer, writer.pending()[:2])
    assert "write done.npy" not in events
    writer.close()
    done = events.index("write done.npy")
    for name in ("one.npy", "one.crc.npy"):
        last_write = max(index for index, event in enumerate(events) if event == f"write {name}")
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
def test_predictions_with_another_index_are_replaced(
    tmp_path: Path, case: StoreCase, changes: dict[str, Any], finished: bool
) -> None:
    if finished:
        write_store(case, tmp_path / "store", ["one"], **changes)
    else:
        previous = StoreWriter(tmp_path / "store", case.index(["one"], **changes))
        previous.prepare()
        write_blocks(case, previous, previous.pending()[:3])
        previous.close()
    others = {"one": case.codes["two"]}
    now = case._replace(codes=others)
    writer = StoreWriter(tmp_path / "store", now.index(["one"]))
    writer.prepare()
    assert len(writer.pending()) == -(-len(case.segments) // BLOCK)
    write_blocks(now, writer, writer.pending())
    writer.close()
    store = writer.finish()
    np.testing.assert_array_equal(stored_codes(store, "one"), others["one"])
    assert names_in(tmp_path) == ["store"]
    assert names_in(tmp_path / "store") == FILES_OF_ONE


def test_old_predictions_are_kept_until_the_new_ones_are_complete(tmp_path: Path, case: StoreCase) -> None:
    write_store(case, tmp_path / "store", ["one", "two"])
    writer = StoreWriter(tmp_path / "store", case.index(["two"]))
    writer.prepare()
    write_blocks(case, writer, writer.pending()[:-1])
    writer.close()
    assert list(Store.open(tmp_path / "store").index.models) == ["one", "two"]
    write_store(case, tmp_path / "store", ["two"])
    assert names_in(tmp_path / "store") == ["predictions.yaml", "two.crc.npy", "two.npy"]
    assert names_in(tmp_path) == ["store"]


def test_a_finished_folder_with_the_same_index_is_not_changed(tmp_path: Path, case: StoreCase) -> None:
    write_store(case, tmp_path / "store", ["one"])
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "store").iterdir()}
    writer = StoreWriter(tmp_path / "store", case.index(["one"]))
    writer.prepare()
    assert writer.pending() == []
    writer.close()
    assert writer.finish().index == case.index(["one"])
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "store").iterdir()} == before


def test_unfinished_predictions_are_not_mixed_with_finished_ones(tmp_path: Path, case: StoreCase) -> None:
    """Predict with one model, then halfway with another training of it, then with the finished first one again."""
    write_store(case, tmp_path / "store", ["one"])
    before = contents(tmp_path / "store")
    again = case.index(["one"], models={"one": StoredModel(kind="agnostic", digest="of another training")})
    half = StoreWriter(tmp_path / "store", again)
    half.prepare()
    write_blocks(case._replace(codes={"one": case.codes["two"]}), half, half.pending()[:3])
    half.close()
    write_store(case, tmp_path / "store", ["one"])
    assert contents(tmp_path / "store") == before


@pytest.mark.parametrize("lost", ["one.npy", "one.crc.npy", "done.npy", "unfinished.yaml"])
def test_an_unfinished_folder_without_a_file_is_replaced(tmp_path: Path, case: StoreCase, lost: str) -> None:
    """A kill during the creation of the folder can leave such a folder."""
    writer = StoreWriter(tmp_path / "store", case.index(["one"]))
    writer.prepare()
    write_blocks(case, writer, writer.pending()[:3])
    writer.close()
    (tmp_path / "store.unfinished" / lost).unlink()
    again = StoreWriter(tmp_path / "store", case.index(["one"]))
    again.prepare()
    assert len(again.pending()) == again.index.num_blocks
    store = write_store(case, tmp_path / "store", ["one"])
    np.testing.assert_array_equal(stored_codes(store, "one"), case.codes["one"])


@pytest.mark.parametrize("step", ["second rename", "removal"])
def test_writing_resumes_after_a_kill_during_the_renames(
    tmp_path: Path, case: StoreCase, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The old folder is renamed, then the new one, then the old one is removed."""
    write_store(case, tmp_path / "store", ["two"])
    write_store(case, tmp_path / "expected", ["one"])
    writer = StoreWriter(tmp_path / "store", case.index(["one"]))
    writer.prepare()
    write_blocks(case, writer, writer.pending())
    writer.close()
    rename = Path.replace
    calls: list[Path] = []

    def killed(path: Path, target: Path) -> Path:
        calls.append(path)
        if step == "second rename" and len(calls) == 2:
            raise Killed
        return rename(path, target)

    def killed_removal(path: Path, ignore_errors: bool = False) -> None:
        raise Killed

    monkeypatch.setattr(Path, "replace", killed)
    monkeypatch.setattr(shutil, "rmtree", killed_removal)
    with pytest.raises(Killed):
        writer.finish()
    assert len(calls) == 2
    monkeypatch.undo()
    write_store(case, tmp_path / "store", ["one"])
    assert contents(tmp_path / "expected").items() <= contents(tmp_path / "store").items()
    # Leftovers of the kill do not prevent later predictions.
    write_store(case, tmp_path / "store", ["two"])
    np.testing.assert_array_equal(stored_codes(Store.open(tmp_path / "store"), "two"), case.codes["two"])


def test_a_killed_process_resumes(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    write_shards(shards, videos_of([90, 70, 88]))
    predict_slowly(shards, tmp_path / "expected", 0)
    code = "from pathlib import Path; from yt8m.prediction import store_writer; store_writer.SYNC_SECONDS = -1.0; "
    code += "from tests.support.stores import predict_slowly; "
    code += f"predict_slowly(Path({str(shards)!r}), Path({str(tmp_path / 'store')!r}), 100)"
    source = str(Path(yt8m.__file__).parents[1])
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": f"{source}{os.pathsep}{root}", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], cwd=root, env=environment)
    done = tmp_path / "store.unfinished" / "done.npy"
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            # Before the index exists, done.npy may be incomplete.
            if (done.parent / "unfinished.yaml").is_file() and np.load(done).sum() >= 2:
                break
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "store").exists()
    num_done = int(np.load(done).sum())
    assert 2 <= num_done < len(np.load(done))
    with pytest.raises(UsageError, match="not finished"):
        Store.open(tmp_path / "store")
    predict_slowly(shards, tmp_path / "store", 0)
    assert contents(tmp_path / "store") == contents(tmp_path / "expected")
    assert Store.open(tmp_path / "store").index.num_classes == MODEL_CLASSES


# --- Folders and disks -----------------------------------------------------------------------------------------------


def test_a_folder_with_other_content_is_not_changed(tmp_path: Path, case: StoreCase) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.txt").write_text("years of work")
    with pytest.raises(UsageError, match="exists and is not a folder of predictions"):
        write_store(case, folder, ["one"])
    assert names_in(folder) == ["chapter.txt"]
    assert names_in(tmp_path) == ["thesis"]
    with pytest.raises(UsageError, match="exists and is not a folder of predictions"):
        write_store(case, folder / "chapter.txt", ["one"])


def test_a_folder_with_other_content_named_unfinished_is_not_changed(tmp_path: Path, case: StoreCase) -> None:
    folder = tmp_path / "thesis.unfinished"
    folder.mkdir()
    (folder / "chapter.txt").write_text("years of work")
    with pytest.raises(UsageError):
        write_store(case, tmp_path / "thesis", ["one"])
    assert names_in(folder) == ["chapter.txt"]


def test_a_folder_that_cannot_be_created_raises_an_error(tmp_path: Path, case: StoreCase) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Yt8mError, match=r"file/store: cannot be written \("):
        write_store(case, tmp_path / "file" / "store", ["one"])


def test_too_little_space_raises_an_error_before_prediction(
    tmp_path: Path, case: StoreCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store needs two bytes per segment, class and model."""
    needed = 2 * len(case.segments) * NUM_CLASSES * 2
    free = needed - 1
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free))
    writer = StoreWriter(tmp_path / "new" / "store", case.index(["one", "two"]))
    with pytest.raises(Yt8mError, match=r"the predictions need .* GB, and .* GB are free"):
        writer.prepare()
    assert names_in(tmp_path) == []
    free = needed
    write_store(case, tmp_path / "new" / "store", ["one", "two"])
    assert names_in(tmp_path / "new") == ["store"]


def test_space_is_reserved_at_the_start(full_disk: FullDisk, case: StoreCase, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk raises an error before prediction, not hours later."""
    usage = shutil.disk_usage(full_disk.folder)
    full_disk.fill(leave=16_384)
    if not (full_disk.folder / "filler").exists():
        pytest.skip("no disk can be mounted")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    writer = StoreWriter(full_disk.folder / "store", case.index(["wide"], num_classes=3000))
    with pytest.raises(Yt8mError, match="no space left on the disk"):
        writer.prepare()
    assert names_in(full_disk.folder) == ["filler"]


def test_a_disk_that_fills_up_loses_no_written_blocks(
    tmp_path: Path, case: StoreCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On copy-on-write file systems, a disk can fill up in spite of the reserved space."""
    write_store(case, tmp_path / "expected", ["one"])
    monkeypatch.setattr(store_writer, "SYNC_SECONDS", -1.0)
    writer = StoreWriter(tmp_path / "store", case.index(["one"]))
    writer.prepare()
    blocks = writer.pending()
    write_blocks(case, writer, blocks[:2])

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(Yt8mError, match=r"store: no space left on the disk; the blocks written so far are kept\."):
        write_blocks(case, writer, blocks[2:3])
    monkeypatch.undo()
    writer.close()
    again = StoreWriter(tmp_path / "store", case.index(["one"]))
    again.prepare()
    assert again.pending() == blocks[2:]
    write_blocks(case, again, again.pending())
    again.close()
    again.finish()
    assert contents(tmp_path / "store") == contents(tmp_path / "expected")
