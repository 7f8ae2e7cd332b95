"""Batches from worker processes through a ring of shared memory."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.batches import assert_same_batch
from tests.support.processes import run_python, wait_for_the_end
from tests.support.tiny_shards import random_videos, write_shards
from yt8m.dataset import read_ahead
from yt8m.dataset.batches import Batches, FrameSampling, SegmentBatches, VideoBatches
from yt8m.dataset.frames import FrameReader
from yt8m.dataset.indexing import index_folder
from yt8m.dataset.labels import rated_segments
from yt8m.dataset.read_ahead import on_device, step_loader
from yt8m.errors import ShardError, Yt8mError
from yt8m.vocabulary import Vocabulary

VOCABULARY = Vocabulary(np.arange(20), ("",) * 20)


@pytest.fixture
def reader(tmp_path: Path) -> FrameReader:
    write_shards(tmp_path, random_videos(13, seed=1, num_frames=(36, 64), ratings_per_video=6), num_shards=4)
    return FrameReader(index_folder(tmp_path))


def stream_of(kind: str, reader: FrameReader, batch_size: int = 4) -> Batches:
    if kind == "videos":
        return VideoBatches(reader, VOCABULARY, FrameSampling(9, clip_probability=0.3), batch_size, 0)
    return SegmentBatches(reader, VOCABULARY, rated_segments(reader.catalog, VOCABULARY), 3, batch_size, 0)


@pytest.mark.parametrize("kind", ["videos", "segments"])
@pytest.mark.parametrize("num_workers", [0, 1, 4])
@pytest.mark.parametrize("start", [0, 5])
def test_batches_are_the_same_with_any_number_of_workers(
    reader: FrameReader, kind: str, num_workers: int, start: int
) -> None:
    stream = stream_of(kind, reader)
    steps = range(start, 40)
    num_batches = 0
    for step, batch in zip(steps, step_loader(stream, start, 40, num_workers), strict=True):
        assert_same_batch(batch, stream[step])
        num_batches += 1
    assert num_batches == len(steps)
    assert list(step_loader(stream, 7, 7, num_workers)) == []


def test_the_previous_batch_is_not_overwritten(reader: FrameReader) -> None:
    stream = stream_of("videos", reader)
    before: tuple[int, NamedTuple] | None = None
    for step, batch in enumerate(step_loader(stream, 0, 60, 2)):
        if before is not None:
            assert_same_batch(before[1], stream[before[0]])
        before = step, batch


def test_memory_is_reused_in_a_ring(reader: FrameReader) -> None:
    stream = stream_of("videos", reader)
    addresses = [batch[0].data_ptr() for batch in step_loader(stream, 0, 30, 1)]
    slots = read_ahead.BATCHES_AHEAD + 2
    assert len(set(addresses)) == slots
    assert addresses == addresses[:slots] * (30 // slots) + addresses[: 30 % slots]


def test_the_largest_batches_fit_their_slots(reader: FrameReader) -> None:
    """All frames of every video are sampled, so batches have the maximum size."""
    stream = VideoBatches(reader, VOCABULARY, FrameSampling(10_000), 13, 0)
    for step, batch in enumerate(step_loader(stream, 0, 4, 1)):
        assert_same_batch(batch, stream[step])
        assert batch[0].shape[1] == max(n - 40 if n > 40 else n for n in reader.catalog.num_frames.tolist())


def test_without_workers_batches_are_copied_to_page_locked_memory(
    reader: FrameReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Page-locked memory needs a GPU, so a plain copy replaces it.
    monkeypatch.setattr(Tensor, "pin_memory", Tensor.clone)
    stream = stream_of("videos", reader)
    kept = list(step_loader(stream, 0, 20, 0, pin_memory=True))
    assert len(kept) == 20
    for step, batch in enumerate(kept):
        assert_same_batch(batch, stream[step])


class Runtime:
    """Fake CUDA runtime that records page-locked memory.

    Args:
        fails: Whether locking fails.
    """

    class cudaError:
        success = 0

    def __init__(self, fails: bool) -> None:
        self.fails = fails
        self.locked: dict[int, int] = {}
        self.all_locked: dict[int, int] = {}

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        if self.fails:
            return 1
        self.locked[address] = self.all_locked[address] = size
        return 0

    def cudaHostUnregister(self, address: int) -> int:
        del self.locked[address]
        return 0


@pytest.mark.parametrize("fails", [False, True])
def test_the_ring_is_page_locked_only_during_iteration(
    fails: bool, reader: FrameReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = Runtime(fails)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    stream = stream_of("videos", reader)
    for step, batch in enumerate(step_loader(stream, 0, 20, 2, pin_memory=True)):
        assert_same_batch(batch, stream[step])
        if not fails:
            ((address, size),) = runtime.locked.items()
            assert all(address <= t.data_ptr() and t.data_ptr() + t.nbytes <= address + size for t in batch)
    assert runtime.locked == {}
    assert len(runtime.all_locked) == (not fails)


def test_batches_are_padded_to_a_fixed_number_of_frames(reader: FrameReader) -> None:
    stream = stream_of("videos", reader)
    padded_frames = stream.max_frames + 3
    cpu = torch.device("cpu")
    for step, batch in enumerate(on_device((stream[step] for step in range(3)), cpu, padded_frames)):
        original = stream[step]
        num_frames = original[0].shape[1]
        assert [tensor.shape[1] for tensor in batch[:2]] == [padded_frames, padded_frames]
        assert torch.equal(batch[0][:, :num_frames], original[0])
        assert not batch[0][:, num_frames:].any()
        assert not batch[1][:, num_frames:].any()
        for ours, theirs in zip(batch[2:], original[2:], strict=True):
            assert torch.equal(ours, theirs)


def test_errors_of_a_worker_are_raised_in_the_main_process(reader: FrameReader) -> None:
    path = reader.catalog.shard_path(0)
    for shard in reader.catalog.shards:
        os.truncate(path.with_name(shard.name), 100)
    with pytest.raises(ShardError, match="has changed since it was indexed"):
        list(step_loader(stream_of("videos", reader), 0, 9, 1))


def test_other_exceptions_of_a_worker_keep_their_traceback(
    reader: FrameReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = stream_of("videos", reader)
    monkeypatch.setattr(stream, "rows", None)
    with pytest.raises(TypeError, match="not subscriptable") as raised:
        list(step_loader(stream, 0, 9, 2))
    assert "in batch" in raised.value.__notes__[0]
    assert multiprocessing.active_children() == []


def dying(reader: FrameReader, monkeypatch: pytest.MonkeyPatch, die: Callable[[], object]) -> str:
    """The error when the worker of the third batch dies."""
    stream = stream_of("videos", reader)
    read = stream.batch

    def batch(step: int, *arguments: Any) -> NamedTuple:
        if step == 2:
            faulthandler.disable()  # pytest's, which would print a traceback
            die()
        return read(step, *arguments)

    monkeypatch.setattr(stream, "batch", batch)
    seen = []
    with pytest.raises(Yt8mError) as raised:
        seen.extend(step_loader(stream, 0, 9, 1))
    assert multiprocessing.active_children() == []
    return str(raised.value)


def test_the_death_of_a_worker_is_one_sentence(reader: FrameReader, monkeypatch: pytest.MonkeyPatch) -> None:
    def die_of(number: signal.Signals) -> str:
        return dying(reader, monkeypatch, lambda: os.kill(os.getpid(), number))

    assert die_of(signal.SIGKILL) == (
        "A process that reads batches was killed (SIGKILL), probably because the memory ran out; set machine.num_workers "
        "lower, or give it more memory."
    )
    assert die_of(signal.SIGBUS).startswith(
        "A process that reads batches was killed (SIGBUS), because a shard could not"
    )
    assert die_of(signal.SIGABRT).startswith("A process that reads batches was killed (SIGABRT), which nothing")
    ended = dying(reader, monkeypatch, lambda: os._exit(9))
    assert ended.startswith("A process that reads batches ended with status 9; run again")


def test_a_bus_error_names_the_shards_that_have_changed(reader: FrameReader, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, names = reader.catalog.folder, [shard.name for shard in reader.catalog.shards]

    def die() -> None:
        os.truncate(folder / names[1], 100)
        (folder / names[3]).unlink()
        os.kill(os.getpid(), signal.SIGBUS)

    assert dying(reader, monkeypatch, die) == (
        f"{folder / names[1]} and 1 more: has changed in size since it was indexed, and reading it killed a process that "
        f"reads batches (SIGBUS); restore it, or run `yt8m index {folder}`."
    )


def test_closing_ends_the_workers(reader: FrameReader, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if they read for ever."""
    stream = stream_of("videos", reader)
    read = stream.batch

    def batch(step: int, *arguments: Any) -> NamedTuple:
        if step > 2:
            time.sleep(1000)
        return read(step, *arguments)

    monkeypatch.setattr(stream, "batch", batch)
    loader = step_loader(stream, 0, 20, 2)
    next(loader)
    assert len(multiprocessing.active_children()) == 2
    loader.close()
    assert multiprocessing.active_children() == []


ENDING = """
import multiprocessing, os, signal, sys, time
from pathlib import Path
import numpy as np
from yt8m.dataset.indexing import index_folder
from yt8m.dataset.frames import FrameReader
from yt8m.dataset.batches import FrameSampling, VideoBatches
from yt8m.dataset.read_ahead import step_loader
from yt8m.vocabulary import Vocabulary
class Slow(VideoBatches):
    def batch(self, step, *arguments):
        if step > 2 and sys.argv[2] != "killed":
            time.sleep(1000)
        return super().batch(step, *arguments)
reader = FrameReader(index_folder(Path(sys.argv[1])))
loader = step_loader(Slow(reader, Vocabulary(np.arange(20), ("",) * 20), FrameSampling(20), 8, 0), 0, 9, 2)
next(loader)
print(*[process.pid for process in multiprocessing.active_children()], flush=True)
match sys.argv[2]:
    case "error":
        raise ValueError
    case "exit":
        sys.exit(7)
    case "killed":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("how", "status"), [("error", 1), ("exit", 7), ("killed", -signal.SIGKILL)])
def test_no_worker_survives_the_training_process(reader: FrameReader, how: str, status: int) -> None:
    ended = run_python("-c", ENDING, reader.catalog.folder, how)
    pids = [int(pid) for pid in ended.out.split()]
    assert (ended.status, len(pids)) == (status, 2), ended.err
    wait_for_the_end(pids)


def test_an_error_of_shared_memory_is_explained(reader: FrameReader, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Tensor) -> Tensor:
        raise RuntimeError("unable to resize file\n<filename not specified>")

    monkeypatch.setattr(Tensor, "share_memory_", refuse)
    with pytest.raises(Yt8mError, match=r"too little shared memory for 6 batches .*--shm-size.*num_workers lower\.$"):
        list(step_loader(stream_of("videos", reader), 0, 9, 2))


LITTLE_MEMORY = """
import sys
from pathlib import Path
import numpy as np
from yt8m.dataset.indexing import index_folder
from yt8m.dataset.frames import FrameReader
from yt8m.dataset.batches import FrameSampling, VideoBatches
from yt8m.dataset.read_ahead import on_device, step_loader
from yt8m.errors import Yt8mError
from yt8m.vocabulary import Vocabulary
reader = FrameReader(index_folder(Path(sys.argv[1])))
stream = VideoBatches(reader, Vocabulary(np.arange(20), ("",) * 20), FrameSampling(20), 64, 0)
try:
    print(len(list(step_loader(stream, 0, 9, 1))))
except Yt8mError as error:
    print(error)
"""


@pytest.fixture
def little_shared_memory() -> list[str]:
    """A command prefix that limits /dev/shm to one megabyte, as in some containers."""
    unshare = shutil.which("unshare")
    command = [unshare or "", "--mount", "sh", "-c", 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"', "sh"]
    if unshare is None or subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this process may not mount a small /dev/shm")
    return command


def test_too_little_shared_memory_is_explained(reader: FrameReader, little_shared_memory: list[str]) -> None:
    code = [sys.executable, "-c", LITTLE_MEMORY, str(reader.catalog.folder)]
    shown = subprocess.run([*little_shared_memory, *code], capture_output=True, text=True, check=False, timeout=120)
    assert (shown.returncode, shown.stdout[:40]) == (0, "There is too little shared memory for 4 "), shown.stderr


FEW_FILES = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
import numpy as np
from yt8m.dataset.indexing import index_folder
from yt8m.dataset.frames import FrameReader
from yt8m.dataset.batches import FrameSampling, VideoBatches
from yt8m.dataset.read_ahead import on_device, step_loader
from yt8m.vocabulary import Vocabulary
reader = FrameReader(index_folder(Path(sys.argv[1])))
stream = VideoBatches(reader, Vocabulary(np.arange(20), ("",) * 20), FrameSampling(20), 50, 0)
print(sum(len(batch.lengths) for batch in step_loader(stream, 0, 24, 4)))
for row in range(len(reader.catalog)):
    reader.read(row)
print(row + 1, len(list(Path("/proc/self/fd").iterdir())) < 100)
"""


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files in /proc")
@pytest.mark.parametrize("num_shards", [300, pytest.param(3844, marks=pytest.mark.slow)])
def test_more_shards_are_read_than_files_may_be_open(tmp_path: Path, num_shards: int) -> None:
    write_shards(tmp_path, random_videos(num_shards, num_frames=(2, 3)), num_shards=num_shards)
    code = [sys.executable, "-W", "ignore", "-c", FEW_FILES, str(tmp_path)]
    shown = subprocess.run(code, capture_output=True, text=True, check=False, timeout=300)
    assert (shown.returncode, shown.stdout.split()) == (0, ["1200", str(num_shards), "True"]), shown.stderr
