"""Batches from worker processes through a ring of shared memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.batches import assert_same_batch
from tests.support.tiny_shards import random_videos, write_shards
from yt8m.dataset import read_ahead
from yt8m.dataset.batches import Batches, FrameSampling, SegmentBatches, VideoBatches
from yt8m.dataset.frames import FrameReader
from yt8m.dataset.indexing import index_folder
from yt8m.dataset.labels import rated_segments
from yt8m.dataset.read_ahead import on_device, step_loader
from yt8m.errors import ShardError, Yt8mError
from yt8m.vocabulary import Vocabulary

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # warns on machines with few cores

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


def test_the_death_of_a_worker_is_an_error(reader: FrameReader, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = stream_of("videos", reader)

    def die(*_: object, **__: object) -> NamedTuple:
        os._exit(9)

    monkeypatch.setattr(stream, "batch", die)
    with pytest.raises(RuntimeError, match="exited unexpectedly"):
        list(step_loader(stream, 0, 9, 1))


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
