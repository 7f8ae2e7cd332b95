"""Fuzzing of the shard readers: the corpus, new records, and readers with defects that the checker must detect."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz.check import check_record
from tests.fuzz.mutations import mutated_record
from tests.fuzz.runner import CORPUS, fuzz, limited_time, replay
from tests.support.wire import bytes_feature, entry, frame_list, record
from yt8m.dataset import frames, indexing
from yt8m.shards import ids, records, wire
from yt8m.shards.wire import MalformedRecordError

FILES = sorted(path for path in CORPUS.iterdir() if path.suffix in (".record", ".shard"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_corpus_files_keep_their_outcomes(path: Path, tmp_path: Path) -> None:
    """Files of earlier failures must pass the checks; files of outcomes must be accepted or rejected as before."""
    kinds = replay(path, tmp_path)
    reader, outcome, _ = path.name.split("-", 2)
    assert reader == "failed" or any(kind.startswith(f"{reader}: {outcome}") for kind in kinds)


def test_the_corpus_is_small() -> None:
    assert FILES
    assert max(path.stat().st_size for path in FILES) < 20_000
    assert sum(path.stat().st_size for path in FILES) < 2**20


def test_new_records_and_shards_pass_the_checks(tmp_path: Path) -> None:
    tally = fuzz(3000, 20190, tmp_path)
    assert tally.failures == []
    assert tally.num_shards > 20
    # Inputs must reach all parts of the readers, so many different outcomes have to occur.
    for reader in ("read_video", "read_video_level", "index_folder"):
        assert sum(count for kind, count in tally.kinds.items() if kind.startswith(f"{reader}: accepted")) > 20
    assert len([kind for kind in tally.kinds if ": rejected" in kind]) > 40


@pytest.mark.slow
def test_the_command_checks_a_hundred_thousand_records(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--records", "100000", "--seed", "8", "--save", str(tmp_path)]
    done = subprocess.run(command, cwd=CORPUS.parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


def test_the_same_seed_gives_the_same_records() -> None:
    assert [mutated_record(3, number) for number in range(50)] == [mutated_record(3, number) for number in range(50)]
    assert mutated_record(3, 0) != mutated_record(4, 0)


def test_checker_and_reader_agree_at_the_limits() -> None:
    """Records at a limit and one step beyond: `check_record` raises if its rules disagree with the reader."""
    lists = entry("rgb", frame_list([bytes(1024)])) + entry("audio", frame_list([bytes(128)]))
    for size in (0, 1, 64, 65):
        is_rejected = size in (0, 65)
        kinds = check_record(record(entry("id", bytes_feature(b"a" * size)), lists)).kinds
        assert kinds[0].startswith("read_video: rejected" if is_rejected else "read_video: accepted")


EXPECTED_DIFFERENCES = (
    "only the reader rejects: ",
    "Python protobuf rejects entries with unknown fields",
    "Python protobuf reads other values in entries with unknown fields",
    "TensorFlow's own parser ",
)


def test_every_difference_from_other_parsers_is_of_a_known_kind() -> None:
    """None from protobuf in C++, and from TensorFlow's own parser only in forms that no writer produces."""
    pytest.importorskip("tensorflow")
    from tests.fuzz.differences import WRITTEN, count_differences

    counts = count_differences(1500, 5)
    assert counts["no difference"] > 750
    assert [kind for kind in counts if not kind.startswith(("no difference", *EXPECTED_DIFFERENCES))] == []
    assert [kind for kind in counts if kind.endswith(WRITTEN)] == []


# --- Readers with defects ---------------------------------------------------------------------------------------------


def one_byte_late(layout: Callable[..., Any]) -> Callable[..., Any]:
    def broken(*args: Any) -> Any:
        right = layout(*args)
        return replace(right, offset=right.offset + 1)

    return broken


def without_last(integers: Callable[..., Any]) -> Callable[..., Any]:
    return lambda payload, context, name: integers(payload, context, name)[: -1 if name == b"labels" else None]


def of_any_size(walk: Callable[..., Any]) -> Callable[..., Any]:
    def broken(payload: bytes, lists: Any, name: bytes, size: int) -> Any:
        try:
            return walk(payload, lists, name, size)
        except MalformedRecordError:
            return walk(payload, lists, name, size - 1)

    return broken


def endless(varint: Callable[..., Any]) -> Callable[..., Any]:
    def broken(*args: Any) -> Any:
        number, at = varint(*args)
        while number == 2**21:
            at += 0
        return number, at

    return broken


def allocating(varint: Callable[..., Any]) -> Callable[..., Any]:
    def broken(*args: Any) -> Any:
        number, at = varint(*args)
        # At most 64 MiB, to limit the memory of the tests.
        return number + 0 * len(bytearray(min(number, 2**26))), at

    return broken


def first_of_a_name(entries: Callable[..., Any]) -> Callable[..., Any]:
    def broken(payload: bytes, parts: Any, names: Any, check: Any) -> Any:
        found: dict[bytes, Any] = {}
        for part in parts:
            found = entries(payload, [part], names, check) | found
        return found

    return broken


def without_numbers_of_ten_bytes(numbers: Callable[..., Any]) -> Callable[..., Any]:
    def broken(*args: Any) -> Any:
        if any(number < 0 for number in numbers(*args)):
            raise OverflowError("negative")
        return numbers(*args)

    return broken


def of_the_next_video(read: Callable[..., Any]) -> Callable[..., Any]:
    return lambda reader, row: read(reader, (row + 1) % len(reader.catalog))


def unverified(iterate: Callable[..., Any]) -> Callable[..., Any]:
    return lambda data, path, verify: iterate(data, path, verify=False)


BROKEN = {
    "an offset off by one": (records, "_layout", one_byte_late, "rgb: "),
    "the last label dropped": (records, "read_integers", without_last, "labels: "),
    "frames of any size": (records, "_walk_frames", of_any_size, "of the wrong size, and"),
    "an endless loop": (wire, "read_varint", endless, "TimeoutError: still busy after"),
    "memory by an untrusted length": (wire, "read_varint", allocating, "bytes of memory for"),
    "the first of repeated entries": (records, "parse_map", first_of_a_name, ", and read_video "),
    "another exception": (wire, "_packed_varints", without_numbers_of_ten_bytes, "raises OverflowError"),
    "another video's frames": (frames.FrameReader, "read", of_the_next_video, "frames: "),
    "checksums not verified": (indexing, "iterate_records", unverified, "records that are rows: |problems: "),
}


@pytest.mark.parametrize("case", BROKEN)
def test_defects_of_readers_are_detected(case: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    target, name, break_function, failure = BROKEN[case]
    monkeypatch.setattr("tests.fuzz.runner.MAX_SECONDS_EACH", 0.5)
    monkeypatch.setattr(target, name, break_function(getattr(target, name)))
    tally = fuzz(6000, 1, tmp_path, save=tmp_path, max_failures=1)
    assert len(tally.failures) == 1
    assert any(part in tally.failures[0] for part in failure.split("|"))
    assert (tmp_path / tally.failures[0].partition(":")[0]).is_file()


@pytest.mark.parametrize(
    ("target", "constant", "value"),
    [
        (ids, "MAX_ID_BYTES", 3),
        (ids, "MAX_ID_BYTES", 100),
        (wire, "MAX_KEY_BYTES", 10),
        (wire, "MAX_PARTS", 1),
    ],
)
def test_wrong_limits_of_readers_are_detected(
    target: Any, constant: str, value: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(target, constant, value)
    assert fuzz(6000, 1, tmp_path, max_failures=1).failures


def test_the_alarm_repeats_until_an_exception_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exceptions in destructors are ignored, so a later alarm must interrupt the code after them."""

    class Busy:
        def __del__(self) -> None:
            spin(0.15)

    def spin(seconds: float) -> None:
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass

    monkeypatch.setattr("tests.fuzz.runner.MAX_SECONDS_EACH", 0.05)
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    with pytest.raises(TimeoutError), limited_time():
        spin(5 if Busy() else 0)  # the object is deleted at once
