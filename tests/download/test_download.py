"""Downloads into dataset folders: complete and damaged files, selections, disk space, vocabularies and progress."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import shutil
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import urllib3

from tests.support.downloads import (
    ALPHABET,
    EXPECTED,
    FOLDER,
    NAMES,
    PARTITION,
    QUICK,
    SHARDS,
    content,
    failed,
    fetch,
    some_shards,
    url_path,
)
from tests.support.full_disk import FullDisk
from tests.support.hostile_server import Fault, HostileServer
from tests.support.progress import RecordedProgress
from yt8m.download.download import LEDGER_FILE, PLAN_FILE, download
from yt8m.download.plan import Fraction, other_server
from yt8m.download.transfer import Network, PermanentError, StoppableThreads
from yt8m.errors import Yt8mError


def test_a_second_run_sends_no_requests_and_hashes_nothing(
    server: HostileServer, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch(server, data)
    server.state.requests.clear()
    with monkeypatch.context() as patch:
        patch.setattr("yt8m.download.download.hash_file", None)
        (report,) = fetch(server, data)
    assert (report.num_complete, report.num_before) == (6, 6)
    assert server.state.requests == []
    assert len((data / FOLDER / LEDGER_FILE).read_text().splitlines()) == 6


def test_existing_shards_are_verified_and_wrong_ones_replaced(server: HostileServer, data: Path) -> None:
    (data / FOLDER).mkdir(parents=True)
    (data / FOLDER / NAMES[1]).write_bytes(EXPECTED[NAMES[1]])
    (data / FOLDER / f".{NAMES[1]}.part").write_bytes(b"needless")
    (data / FOLDER / NAMES[2]).write_bytes(EXPECTED[NAMES[2]][:-1])
    (data / FOLDER / "notes.txt").write_text("mine")
    messages: list[str] = []
    (report,) = fetch(server, data, report=messages.append)
    assert (report.num_complete, report.num_before) == (6, 1)
    assert content(data / FOLDER) == EXPECTED | {"notes.txt": b"mine"}
    wrong, right = (hashlib.md5(EXPECTED[NAMES[2]][:end]).hexdigest() for end in (-1, None))
    assert messages == [
        f"{data / FOLDER / NAMES[2]}: its MD5 is {wrong}, that of the plan {right}; it is fetched again."
    ]
    assert [len(server.state.find_requests(among=url_path(number))) for number in range(6)] == [1, 0, 1, 1, 1, 1]


def test_wrong_shards_are_kept_until_replaced(server: HostileServer, data: Path) -> None:
    (data / FOLDER).mkdir(parents=True)
    (data / FOLDER / NAMES[2]).write_bytes(b"what there is")
    server.state.always[url_path(2)] = Fault.MISSING
    failed(server, data)
    assert (data / FOLDER / NAMES[2]).read_bytes() == b"what there is"


def test_modified_shards_are_fetched_again(server: HostileServer, data: Path) -> None:
    fetch(server, data)
    path = data / FOLDER / NAMES[3]
    before = path.stat().st_mtime_ns
    path.write_bytes(b"x" + EXPECTED[NAMES[3]][1:])
    assert path.stat().st_mtime_ns != before
    messages: list[str] = []
    (report,) = fetch(server, data, report=messages.append)
    assert (report.num_before, len(messages)) == (5, 1)
    assert content(data / FOLDER) == EXPECTED


def test_check_detects_changes_that_keep_size_and_time(server: HostileServer, data: Path) -> None:
    fetch(server, data)
    path = data / FOLDER / NAMES[3]
    before = path.stat()
    path.write_bytes(b"x" + EXPECTED[NAMES[3]][1:])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert fetch(server, data)[0].num_before == 6
    server.state.requests.clear()
    assert fetch(server, data, check=True)[0].num_before == 5
    assert content(data / FOLDER) == EXPECTED
    assert [request.path for request in server.state.find_requests()] == [
        "/3/download_plans/frame_validate.json",
        url_path(3),
    ]
    # One line per shard, and one more for the shard that was fetched again.
    assert len((data / FOLDER / LEDGER_FILE).read_text().splitlines()) == 7


@pytest.mark.parametrize("damage", ["torn", "gone", "binary", "of another plan"])
def test_with_a_damaged_ledger_shards_are_hashed_but_not_fetched_again(
    server: HostileServer, data: Path, damage: str
) -> None:
    fetch(server, data)
    ledger = data / FOLDER / LEDGER_FILE
    lines = ledger.read_text()
    if damage == "torn":
        ledger.write_text(lines[:-8])
    elif damage == "gone":
        ledger.unlink()
    elif damage == "binary":
        ledger.write_bytes(bytes(range(256)))
    else:
        ledger.write_text(re.sub("[0-9a-f]{32}", "0" * 32, lines))
    server.state.requests.clear()
    (report,) = fetch(server, data)
    assert report.num_before == 6
    assert server.state.requests == []
    assert set(lines.splitlines()) <= set(ledger.read_text(errors="replace").splitlines())


def test_a_damaged_plan_is_fetched_again(server: HostileServer, data: Path) -> None:
    fetch(server, data)
    (data / FOLDER / PLAN_FILE).write_text("{")
    fetch(server, data)
    assert (data / FOLDER / PLAN_FILE).read_bytes() == server.state.files["/3/download_plans/frame_validate.json"]


def test_a_second_download_into_the_same_folder_is_refused(server: HostileServer, data: Path) -> None:
    first = download(data, [PARTITION], other_server(server.url), policy=QUICK)
    next(first)
    assert failed(server, data).startswith(
        f"{data / FOLDER}: another command is writing there (process {os.getpid()} on "
    )
    assert list(first) == []
    assert fetch(server, data)[0].num_before == 6


def test_only_selected_shards_are_fetched(server: HostileServer, data: Path, tmp_path: Path) -> None:
    server.state.add_partition("2/frame/validate", SHARDS)
    (tmp_path / "list.txt").write_text("segment/train/validate0053.tfrecord\n")
    partitions = ["2/frame/validate", PARTITION]
    options: dict[str, Any] = {"policy": QUICK, "listed": tmp_path / "list.txt"}
    (report,) = download(data, partitions, other_server(server.url), **options)
    assert (report.num_shards, report.num_complete) == (1, 1)
    assert content(data / FOLDER) == {NAMES[1]: EXPECTED[NAMES[1]]}
    assert not (data / "video").exists()

    halves = [
        {name for name in SHARDS if int(hashlib.md5(name.encode()).hexdigest(), 16) % 2 == half} for half in range(2)
    ]
    assert all(halves)
    fetch(server, data / "half", fraction=Fraction(1, 2))
    assert set(content(data / "half" / FOLDER).values()) == {SHARDS[name] for name in halves[0]}
    fetch(server, data / "half", fraction=Fraction(2, 2))
    assert content(data / "half" / FOLDER) == EXPECTED


def test_each_partition_has_its_folder(server: HostileServer, data: Path) -> None:
    folders = {
        "2/frame/train": "video/train",
        "2/frame/validate": "video/valid",
        "2/frame/test": "video/test",
        "2/video/train": "video_level/train",
        "2/video/validate": "video_level/validate",
        "2/video/test": "video_level/test",
        "3/frame/validate": "segment/train",
        "3/frame/test": "segment/test",
    }
    for number, partition in enumerate(folders):
        server.state.add_partition(partition, some_shards(1, seed=number, prefix=partition.split("/")[2]))
    reports = list(download(data, list(folders), other_server(server.url), policy=QUICK))
    assert {report.partition: report.folder.relative_to(data).as_posix() for report in reports} == folders
    for number, (partition, folder) in enumerate(folders.items()):
        (expected,) = some_shards(1, seed=number).values()
        assert content(data / folder) == {f"{partition.split('/')[2]}0052.tfrecord": expected}
    assert [report.is_frame_level for report in reports] == [True, True, True, False, False, False, True, True]


# --- Disk space -------------------------------------------------------------------------------------------------------


def free_space(monkeypatch: pytest.MonkeyPatch, free: float) -> None:
    """Simulate a disk with this many free bytes."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=int(free)))


def test_too_little_disk_space_is_an_error_before_any_fetch(
    server: HostileServer, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = sum(map(len, SHARDS.values()))
    assert size == 375_000
    free_space(monkeypatch, 1.02 * size - 1)
    assert failed(server, data) == (
        f"{data / FOLDER}: about 375.00 kB are still to be fetched to this disk, and 382.50 kB are free; free some "
        "space, or fetch a part with --shard or --list."
    )
    assert content(data / FOLDER) == {}
    assert server.state.find_requests(among=PARTITION) == []
    assert len(server.state.find_requests("HEAD")) == 6

    # Bytes of partial files count as fetched.
    (data / FOLDER / f".{NAMES[0]}.part").write_bytes(EXPECTED[NAMES[0]][:10])
    fetch(server, data)
    assert content(data / FOLDER) == EXPECTED


def test_the_size_of_a_partition_is_estimated_from_32_shards(
    server: HostileServer, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"test{first}{second}.tfrecord" for first in "abcde" for second in ALPHABET]
    server.state.add_partition("3/frame/test", {name: bytes(10 + number) for number, name in enumerate(names)})
    free_space(monkeypatch, 0)
    with pytest.raises(Yt8mError) as caught:
        list(download(data, ["3/frame/test"], other_server(server.url), policy=QUICK))
    positions = sorted(names.index(Path(request.path).name) for request in server.state.find_requests("HEAD"))
    assert len(positions) == 32
    assert positions[0] == 0
    assert {after - before for before, after in itertools.pairwise(positions)} == {9, 10}
    estimate = sum(10 + number for number in positions) / 32 * 310
    assert abs(estimate / sum(10 + number for number in range(310)) - 1) < 0.05
    assert f"about {estimate / 1000:.2f} kB" in str(caught.value)


def test_a_full_disk_is_an_error_and_fetched_bytes_are_kept(
    full_disk: FullDisk, server: HostileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = full_disk.folder / "data"
    data.mkdir()
    for name in ("vocabulary.csv", "segment_vocabulary.csv"):
        (data / name).write_text("Index\n")
    full_disk.fill(leave=62_000)
    with monkeypatch.context() as patch:
        free_space(patch, 10**12)
        assert failed(server, data) == (
            f"{data}: no space left on the disk. Free some space and run the same command again; what was fetched is "
            "kept."
        )
    kept = sum(path.stat().st_size for path in (data / FOLDER).iterdir() if path.name.endswith(("part", "tfrecord")))
    assert kept > 30_000
    full_disk.free()
    server.state.bytes_sent.clear()
    fetch(server, data)
    assert content(data / FOLDER) == EXPECTED
    assert sum(sent for path, sent in server.state.bytes_sent.items() if PARTITION in path) <= 375_000 - kept


# --- Vocabularies and plans -------------------------------------------------------------------------------------------


def test_vocabularies_are_fetched_once_and_never_replaced(server: HostileServer, data: Path) -> None:
    fetch(server, data)
    for name, place in (("vocabulary.csv", "2"), ("segment_vocabulary.csv", "segments")):
        assert (data / name).read_bytes() == server.state.files[f"/csv/{place}/vocabulary.csv"]
    (data / "vocabulary.csv").write_text("mine")
    (data / "segment_vocabulary.csv").unlink()
    server.state.requests.clear()
    fetch(server, data, check=True)
    assert (data / "vocabulary.csv").read_text() == "mine"
    assert len(server.state.find_requests(among="/csv/")) == 1


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        (b"", "found no header and 0 rows"),
        (b"<html>404</html>", "found a first column '<html>404</html>' and 0 rows"),
        (b"Index,Name\n" + b"1,x\n" * 999, "found a first column 'Index' and 999 rows"),
        (b"Index,Name\n" + b"1,x\n" * 1001, "found a first column 'Index' and 1,001 rows"),
        (b"Id,Name\n" + b"1,x\n" * 1000, "found a first column 'Id' and 1,000 rows"),
        (b"Index\xff", "can't decode"),
    ],
)
def test_shards_are_fetched_although_a_vocabulary_is_invalid(
    server: HostileServer, data: Path, wrong: bytes, found: str
) -> None:
    server.state.files["/csv/segments/vocabulary.csv"] = wrong
    message = failed(server, data)
    assert message.startswith(f"{data}: 1 of 8 files could not be fetched, {data / 'segment_vocabulary.csv'} (")
    assert found in message
    assert not (data / "segment_vocabulary.csv").exists()
    assert content(data / FOLDER) == EXPECTED


@pytest.mark.parametrize("fault", [Fault.TRUNCATE, Fault.BUSY, Fault.DROP, Fault.STALL, Fault.CHUNKED, Fault.REDIRECT])
def test_plans_and_vocabularies_are_retried(server: HostileServer, data: Path, fault: Fault) -> None:
    for path in ("/3/download_plans/frame_validate.json", "/csv/2/vocabulary.csv"):
        server.state.faults[path] = deque([fault] * 3)
    fetch(server, data)
    assert content(data / FOLDER) == EXPECTED
    assert (data / "vocabulary.csv").read_bytes() == server.state.files["/csv/2/vocabulary.csv"]


def test_plans_above_the_size_limit_are_refused(
    server: HostileServer, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("yt8m.download.transfer.MAX_SMALL_BYTES", 100)
    assert "could not be fetched (it is longer than 100 bytes)" in failed(server, data)
    assert not data.exists()


# --- Threads, TLS and progress ----------------------------------------------------------------------------------------


def test_exceptions_in_threads_are_raised(server: HostileServer, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr("yt8m.download.transfer.Network.fetch", broken)
    with pytest.raises(RuntimeError, match="a defect"):
        fetch(server, data)


def test_redirects_from_https_to_http_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network("https://localhost", StoppableThreads(1), QUICK)
    hops = urllib3.Retry(redirect=2).new(
        history=(urllib3.util.retry.RequestHistory("GET", "/x", None, 302, "HTTP://localhost/x"),)
    )
    answer = urllib3.HTTPResponse(b"{}", status=200, retries=hops)
    monkeypatch.setattr(network, "_pool", type("Pool", (), {"request": lambda *_, **__: answer}))
    with pytest.raises(PermanentError, match="an address without TLS"):
        network.small("https://localhost/x")


def test_progress_counts_bytes_and_shards(server: HostileServer, data: Path) -> None:
    progress = RecordedProgress()
    (data / FOLDER).mkdir(parents=True)
    (data / FOLDER / NAMES[0]).write_bytes(EXPECTED[NAMES[0]])
    (data / FOLDER / f".{NAMES[1]}.part").write_bytes(EXPECTED[NAMES[1]][:1000])
    server.state.block_bytes, server.state.block_seconds = 20_000, 0.1
    fetch(server, data, progress=progress)
    check, fetched = f"check {data / FOLDER}", f"fetch {data / FOLDER}"
    assert progress.units == {check: "bytes", fetched: "bytes"}
    assert {total for _, total, _ in progress.reports[check]} == {60_000}
    assert {note.split("/")[1] for _, _, note in progress.reports[check]} == {"1 shards"}
    reports = progress.reports[fetched]
    assert {total for _, total, _ in reports} == {315_000}
    assert {note.split("/")[1] for _, _, note in reports} == {"6 shards"}
    num_shards = [int(note.split("/")[0]) for _, _, note in reports]
    assert num_shards[0] == 1
    assert 1000 <= reports[0][0] < 315_000
    assert num_shards == sorted(num_shards)
    assert len({completed for completed, _, _ in reports}) > 4
