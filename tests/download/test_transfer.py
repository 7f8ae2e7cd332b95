"""Transfers from a faulty server: a shard is either complete and correct, or missing."""

from __future__ import annotations

import hashlib
import random
import re
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from tests.support.downloads import (
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
from tests.support.hostile_server import Fault, HostileServer
from yt8m.download.download import LEDGER_FILE, PLAN_FILE, FolderReport, download
from yt8m.download.plan import other_server
from yt8m.download.transfer import RetryPolicy
from yt8m.errors import Yt8mError

# --- Faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("connections", [1, 4])
def test_a_partition_is_fetched_with_plan_ledger_and_vocabularies(
    server: HostileServer, data: Path, connections: int
) -> None:
    (report,) = fetch(server, data, connections=connections)
    assert content(data / FOLDER) == EXPECTED
    size = sum(map(len, SHARDS.values()))
    assert report == FolderReport(PARTITION, data / FOLDER, 6, 6, size, 0)
    assert {path.name for path in (data / FOLDER).iterdir()} == {*NAMES, PLAN_FILE, LEDGER_FILE}
    assert (data / FOLDER / PLAN_FILE).read_bytes() == server.state.files["/3/download_plans/frame_validate.json"]
    assert sorted(path.name for path in data.iterdir()) == ["segment", "segment_vocabulary.csv", "vocabulary.csv"]
    assert [len(server.state.find_requests(among=url_path(number))) for number in range(6)] == [1] * 6


NOT_RETRIED = (Fault.MISSING, Fault.FORBIDDEN, Fault.GONE, Fault.HUGE_LENGTH, Fault.OVERLONG)
RETRIED = [fault for fault in Fault if fault not in NOT_RETRIED]


@pytest.mark.parametrize("fault", RETRIED)
def test_shards_are_correct_after_one_fault_each(server: HostileServer, data: Path, fault: Fault) -> None:
    # Range faults need a range request, so the first request is truncated.
    range_faults = (Fault.IGNORE_RANGE, Fault.WRONG_RANGE, Fault.UNSATISFIABLE)
    before = [Fault.TRUNCATE] if fault in range_faults else []
    server.state.faults = {url_path(number): deque([*before, fault]) for number in range(6)}
    fetch(server, data)
    assert content(data / FOLDER) == EXPECTED
    assert not any(server.state.faults.values()), "a fault did not happen"


@pytest.mark.parametrize("seed", range(4))
def test_shards_are_correct_after_mixed_faults(server: HostileServer, data: Path, seed: int) -> None:
    rng = random.Random(seed)
    # At most two corrupt responses per shard: a third one would fail the shard.
    corrupting = [Fault.CORRUPT, Fault.UNSATISFIABLE]
    others = [fault for fault in RETRIED if fault not in corrupting]
    for number in range(6):
        faults = rng.choices(others, k=6) + rng.choices(corrupting, k=2)
        rng.shuffle(faults)
        server.state.faults[url_path(number)] = deque(faults)
    fetch(server, data, RetryPolicy(stall_seconds=0.1, first_delay_seconds=0, max_failures=9))
    assert content(data / FOLDER) == EXPECTED


def test_a_retry_requests_only_the_missing_bytes(server: HostileServer, data: Path) -> None:
    server.state.faults[url_path(0)] = deque([Fault.TRUNCATE, Fault.DROP, Fault.STALL])
    fetch(server, data)
    assert content(data / FOLDER) == EXPECTED
    ranges = [request.range for request in server.state.find_requests(among=url_path(0))]
    assert ranges == [None, "bytes=30000-", "bytes=30000-", "bytes=45000-"]
    tags = {request.if_range for request in server.state.find_requests(among=url_path(0))}
    tag = f'"{hashlib.sha1(SHARDS["validatea0.tfrecord"]).hexdigest()}"'
    assert tags == {None, tag}
    assert server.state.bytes_sent[url_path(0)] == 60_000


def test_a_later_run_requests_only_the_missing_bytes(server: HostileServer, data: Path) -> None:
    (data / FOLDER).mkdir(parents=True)
    for name, whole, size in zip(NAMES, SHARDS.values(), (1, 59_999, 62_000, 0, 0, 0), strict=True):
        (data / FOLDER / f".{name}.part").write_bytes(whole[:size])
    fetch(server, data)
    assert content(data / FOLDER) == EXPECTED
    ranges = [[request.range for request in server.state.find_requests(among=url_path(number))] for number in range(6)]
    # The third partial file is complete, so it is only renamed.
    assert ranges == [["bytes=1-"], ["bytes=59999-"], [], [None], [None], [None]]


def test_after_a_wrong_range_the_whole_shard_is_requested(server: HostileServer, data: Path) -> None:
    server.state.faults[url_path(0)] = deque([Fault.TRUNCATE, Fault.WRONG_RANGE])
    fetch(server, data)
    assert content(data / FOLDER) == EXPECTED
    assert [request.range for request in server.state.find_requests(among=url_path(0))] == [None, "bytes=30000-", None]


@pytest.mark.parametrize("size", [30_000, 60_000, 70_000])
def test_partial_files_with_other_content_are_fetched_again(server: HostileServer, data: Path, size: int) -> None:
    (data / FOLDER).mkdir(parents=True)
    (data / FOLDER / f".{NAMES[0]}.part").write_bytes(bytes(size))
    fetch(server, data)
    assert content(data / FOLDER) == EXPECTED
    assert [request.range for request in server.state.find_requests(among=url_path(0))] == [f"bytes={size}-", None]


def test_a_shard_that_changes_on_the_server_is_fetched_whole(server: HostileServer, data: Path) -> None:
    path = url_path(0)
    server.state.files[path] = bytes(60_000)
    server.state.faults[path] = deque([Fault.TRUNCATE])

    def change(_: float) -> None:
        server.state.files[path] = SHARDS["validatea0.tfrecord"]

    fetch(server, data, pause=change)
    assert content(data / FOLDER) == EXPECTED
    # With If-Range, the second request already returns the whole new file.
    assert len(server.state.find_requests(among=path)) == 2


PERMANENT_FAULTS = {
    Fault.MISSING: ("the server answered 404", 1),
    Fault.FORBIDDEN: ("the server answered 403", 1),
    Fault.GONE: ("the server answered 410", 1),
    Fault.HUGE_LENGTH: ("the server announces 20.00 TB, more than any shard has", 1),
    Fault.OVERLONG: ("the server sends more than 60.00 kB", 1),
    Fault.BUSY: ("the server answered 503, 8 times in a row", 8),
    Fault.TOO_MANY: ("the server answered 429, 8 times in a row", 8),
    Fault.DROP: ("the connection broke off, 8 times in a row", 8),
    Fault.CORRUPT: (f"its MD5 was not the plan's ({hashlib.md5(EXPECTED[NAMES[0]]).hexdigest()}), 3 times in a row", 3),
    Fault.UNSATISFIABLE: ("its MD5 was not the plan's", 3),
    Fault.WRONG_RANGE: ("the server sent another range than requested, 8 times in a row", 8),
}


@pytest.mark.parametrize("fault", PERMANENT_FAULTS)
def test_a_permanent_fault_fails_one_shard_and_a_later_run_fetches_it(
    server: HostileServer, data: Path, fault: Fault
) -> None:
    reason, num_requests = PERMANENT_FAULTS[fault]
    server.state.always[url_path(0)] = fault
    message = failed(server, data)
    assert message.startswith(f"{data}: 1 of 8 files could not be fetched, {data / FOLDER / NAMES[0]} ({reason}")
    assert message.endswith("; the same command continues with the missing ones.")
    assert len(server.state.find_requests(among=url_path(0))) == num_requests
    named = {name: read for name, read in content(data / FOLDER).items() if not name.startswith(".")}
    assert named == {name: EXPECTED[name] for name in NAMES[1:]}

    server.state.always.clear()
    (report,) = fetch(server, data)
    assert (report.num_complete, report.num_before) == (6, 5)
    assert content(data / FOLDER) == EXPECTED
    assert [len(server.state.find_requests(among=url_path(number))) for number in range(1, 6)] == [1] * 5


def test_several_failures_are_counted(server: HostileServer, data: Path) -> None:
    server.state.always = {url_path(number): Fault.MISSING for number in (0, 2, 3)}
    reports: list[FolderReport] = []
    with pytest.raises(Yt8mError, match=r"3 of 8 files could not be fetched, .* \(.* 404\) and 2 more; the same"):
        reports.extend(download(data, [PARTITION], other_server(server.url), policy=QUICK))
    assert [(report.num_shards, report.num_complete, report.num_before) for report in reports] == [(6, 3, 0)]


def test_retries_without_progress_end(server: HostileServer, data: Path) -> None:
    server.state.always[url_path(0)] = Fault.ALWAYS_HALF
    assert "the connection broke off, 8 times in a row" in failed(server, data)
    # The first request makes progress; the eight retries add nothing.
    assert len(server.state.find_requests(among=url_path(0))) == 9


def test_a_download_ends_after_eight_consecutive_failed_shards(server: HostileServer, data: Path) -> None:
    server.state.add_partition(PARTITION, some_shards(20))
    for name in some_shards(20):
        server.state.always[f"/{PARTITION}/{name}"] = Fault.DROP
    message = failed(server, data, connections=2)
    assert re.fullmatch(
        rf"{data / FOLDER}/validate\d{{4}}\.tfrecord \(the connection broke off, 8 times in a row\): 8 consecutive shards "
        r"could not be fetched, and the others were not tried; the same command continues when the server is reachable\.",
        message,
    )
    assert len({request.path for request in server.state.find_requests(among=PARTITION)}) <= 10


def test_missing_files_do_not_end_a_download(server: HostileServer, data: Path) -> None:
    shards = some_shards(20)
    server.state.add_partition(PARTITION, shards)
    server.state.always = {f"/{PARTITION}/{name}": Fault.MISSING for name in list(shards)[:19]}
    assert failed(server, data).startswith(f"{data}: 19 of 22 files could not be fetched, ")
    assert set(content(data / FOLDER).values()) == {list(shards.values())[19]}


def test_a_refused_connection_is_an_error(data: Path) -> None:
    with HostileServer() as stopped:
        url = stopped.url
    with pytest.raises(Yt8mError) as caught:
        list(download(data, [PARTITION], other_server(url), policy=QUICK))
    message = str(caught.value)
    assert message.startswith(f"{url}/3/download_plans/frame_validate.json: the plan of {PARTITION} could not be ")
    assert "Connection refused" in message
    assert not data.exists()


# --- Retries ----------------------------------------------------------------------------------------------------------


def pauses_of(server: HostileServer, data: Path, **policy_options: Any) -> list[float]:
    """Pauses between the retries of a shard that always fails."""
    pauses: list[float] = []
    failed(server, data, policy=RetryPolicy(stall_seconds=1, **policy_options), pause=pauses.append, connections=1)
    return pauses


def test_pauses_double_with_seeded_jitter(server: HostileServer, tmp_path: Path) -> None:
    server.state.always[url_path(0)] = Fault.BUSY
    pauses = pauses_of(server, tmp_path / "a", first_delay_seconds=1, max_delay_seconds=20)
    assert len(pauses) == 7
    for pause, longest in zip(pauses, (1, 2, 4, 8, 16, 20, 20), strict=True):
        assert longest / 2 <= pause <= longest
    assert len({pause / longest for pause, longest in zip(pauses, (1, 2, 4, 8, 16, 20, 20), strict=True)}) == 7
    again = pauses_of(server, tmp_path / "b", first_delay_seconds=1, max_delay_seconds=20)
    other = pauses_of(server, tmp_path / "c", first_delay_seconds=1, max_delay_seconds=20, seed=1)
    assert again == pauses
    assert other != pauses


@pytest.mark.parametrize(
    ("answer", "least", "most"),
    [
        ("7", 7, 7),
        ("100000", 300, 300),
        (lambda: format_datetime(datetime.now(UTC) + timedelta(seconds=40), usegmt=True), 30, 41),
        (lambda: format_datetime(datetime.now(UTC) - timedelta(seconds=40), usegmt=True), 0.5, 64),
        ("soon", 0.5, 64),
        ("-5", 0.5, 64),
    ],
)
def test_retry_after_sets_the_pause_within_limits(
    server: HostileServer, data: Path, answer: str | Callable[[], str], least: float, most: float
) -> None:
    server.state.always[url_path(0)] = Fault.TOO_MANY
    server.state.retry_after = answer if isinstance(answer, str) else answer()
    pauses = pauses_of(server, data, max_failures=4, first_delay_seconds=1)
    assert len(pauses) == 3
    assert all(least <= pause <= most for pause in pauses)
