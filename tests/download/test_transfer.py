"""Transfers from a server that does everything wrong: a complete shard is what the server has, or is not there."""

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

# --------------------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize("connections", [1, 4])
def test_all_is_fetched(server: HostileServer, data: Path, connections: int) -> None:
    (report,) = fetch(server, data, connections=connections)
    assert content(data / FOLDER) == EXPECTED
    size = sum(map(len, SHARDS.values()))
    assert report == FolderReport(PARTITION, data / FOLDER, 6, 6, size, 0)
    assert {path.name for path in (data / FOLDER).iterdir()} == {*NAMES, PLAN_FILE, LEDGER_FILE}
    assert (data / FOLDER / PLAN_FILE).read_bytes() == server.holdings.files["/3/download_plans/frame_validate.json"]
    assert sorted(path.name for path in data.iterdir()) == ["segment", "segment_vocabulary.csv", "vocabulary.csv"]
    assert [len(server.holdings.asked(among=url_path(number))) for number in range(6)] == [1] * 6


FINAL = (Fault.MISSING, Fault.FORBIDDEN, Fault.GONE, Fault.ABSURD, Fault.OVERLONG)
SURVIVED = [fault for fault in Fault if fault not in FINAL]


@pytest.mark.parametrize("fault", SURVIVED)
def test_one_fault_a_shard(server: HostileServer, data: Path, fault: Fault) -> None:
    # A fault about ranges shows only where a range is asked for.
    about_ranges = (Fault.IGNORE_RANGE, Fault.WRONG_RANGE, Fault.UNSATISFIABLE)
    before = [Fault.TRUNCATE] if fault in about_ranges else []
    server.holdings.faults = {url_path(number): deque([*before, fault]) for number in range(6)}
    fetch(server, data)
    assert content(data / FOLDER) == EXPECTED
    assert not any(server.holdings.faults.values()), "a fault did not happen"


@pytest.mark.parametrize("seed", range(4))
def test_all_faults_together(server: HostileServer, data: Path, seed: int) -> None:
    rng = random.Random(seed)
    # Two corrupt answers a shard at most: the third would be the last.
    costly = [Fault.CORRUPT, Fault.UNSATISFIABLE]
    bearable = [fault for fault in SURVIVED if fault not in costly]
    for number in range(6):
        faults = rng.choices(bearable, k=6) + rng.choices(costly, k=2)
        rng.shuffle(faults)
        server.holdings.faults[url_path(number)] = deque(faults)
    fetch(server, data, RetryPolicy(stall_seconds=0.1, first_delay_seconds=0, max_failures=9))
    assert content(data / FOLDER) == EXPECTED


def test_a_retry_asks_for_what_is_missing(server: HostileServer, data: Path) -> None:
    server.holdings.faults[url_path(0)] = deque([Fault.TRUNCATE, Fault.DROP, Fault.STALL])
    fetch(server, data)
    assert content(data / FOLDER) == EXPECTED
    asked = [request.range for request in server.holdings.asked(among=url_path(0))]
    assert asked == [None, "bytes=30000-", "bytes=30000-", "bytes=45000-"]
    tags = {request.if_range for request in server.holdings.asked(among=url_path(0))}
    tag = f'"{hashlib.sha1(SHARDS["validatea0.tfrecord"]).hexdigest()}"'
    assert tags == {None, tag}
    assert server.holdings.bytes_sent[url_path(0)] == 60_000


def test_a_later_run_asks_for_what_is_missing(server: HostileServer, data: Path) -> None:
    (data / FOLDER).mkdir(parents=True)
    for name, whole, size in zip(NAMES, SHARDS.values(), (1, 59_999, 62_000, 0, 0, 0), strict=True):
        (data / FOLDER / f".{name}.part").write_bytes(whole[:size])
    fetch(server, data)
    assert content(data / FOLDER) == EXPECTED
    asked = [[request.range for request in server.holdings.asked(among=url_path(number))] for number in range(6)]
    # The third was whole but for its name.
    assert asked == [["bytes=1-"], ["bytes=59999-"], [], [None], [None], [None]]


def test_after_a_wrong_range_all_is_asked_for(server: HostileServer, data: Path) -> None:
    server.holdings.faults[url_path(0)] = deque([Fault.TRUNCATE, Fault.WRONG_RANGE])
    fetch(server, data)
    assert content(data / FOLDER) == EXPECTED
    assert [request.range for request in server.holdings.asked(among=url_path(0))] == [None, "bytes=30000-", None]


@pytest.mark.parametrize("size", [30_000, 60_000, 70_000])
def test_a_part_of_something_else(server: HostileServer, data: Path, size: int) -> None:
    (data / FOLDER).mkdir(parents=True)
    (data / FOLDER / f".{NAMES[0]}.part").write_bytes(bytes(size))
    fetch(server, data)
    assert content(data / FOLDER) == EXPECTED
    assert [request.range for request in server.holdings.asked(among=url_path(0))] == [f"bytes={size}-", None]


def test_a_shard_that_changes_on_the_server(server: HostileServer, data: Path) -> None:
    path = url_path(0)
    server.holdings.files[path] = bytes(60_000)
    server.holdings.faults[path] = deque([Fault.TRUNCATE])

    def change(_: float) -> None:
        server.holdings.files[path] = SHARDS["validatea0.tfrecord"]

    fetch(server, data, pause=change)
    assert content(data / FOLDER) == EXPECTED
    # If-Range spares a try whose MD5 would be wrong.
    assert len(server.holdings.asked(among=path)) == 2


LASTING = {
    Fault.MISSING: ("the server answered 404", 1),
    Fault.FORBIDDEN: ("the server answered 403", 1),
    Fault.GONE: ("the server answered 410", 1),
    Fault.ABSURD: ("the server announces 20.00 TB, more than any shard has", 1),
    Fault.OVERLONG: ("the server sends more than 60.00 kB", 1),
    Fault.BUSY: ("the server answered 503, 8 times in a row", 8),
    Fault.TOO_MANY: ("the server answered 429, 8 times in a row", 8),
    Fault.DROP: ("the connection broke off, 8 times in a row", 8),
    Fault.CORRUPT: (f"its MD5 was not the plan's ({hashlib.md5(EXPECTED[NAMES[0]]).hexdigest()}), 3 times in a row", 3),
    Fault.UNSATISFIABLE: ("its MD5 was not the plan's", 3),
    Fault.WRONG_RANGE: ("the server sent another range than requested, 8 times in a row", 8),
}


@pytest.mark.parametrize("fault", LASTING)
def test_a_fault_that_stays_costs_one_shard(server: HostileServer, data: Path, fault: Fault) -> None:
    reason, num_requests = LASTING[fault]
    server.holdings.always[url_path(0)] = fault
    sentence = failed(server, data)
    assert sentence.startswith(f"{data}: 1 of 8 files could not be fetched, {data / FOLDER / NAMES[0]} ({reason}")
    assert sentence.endswith("; the same command continues with the missing ones.")
    assert len(server.holdings.asked(among=url_path(0))) == num_requests
    named = {name: read for name, read in content(data / FOLDER).items() if not name.startswith(".")}
    assert named == {name: EXPECTED[name] for name in NAMES[1:]}

    server.holdings.always.clear()
    (report,) = fetch(server, data)
    assert (report.num_complete, report.num_before) == (6, 5)
    assert content(data / FOLDER) == EXPECTED
    assert [len(server.holdings.asked(among=url_path(number))) for number in range(1, 6)] == [1] * 5


def test_several_failures_are_counted(server: HostileServer, data: Path) -> None:
    server.holdings.always = {url_path(number): Fault.MISSING for number in (0, 2, 3)}
    reports: list[FolderReport] = []
    with pytest.raises(Yt8mError, match=r"3 of 8 files could not be fetched, .* \(.* 404\) and 2 more; the same"):
        reports.extend(download(data, [PARTITION], other_server(server.url), policy=QUICK))
    assert [(report.num_shards, report.num_complete, report.num_before) for report in reports] == [(6, 3, 0)]


def test_tries_that_never_get_further_end(server: HostileServer, data: Path) -> None:
    server.holdings.always[url_path(0)] = Fault.OBSTINATE
    assert "the connection broke off, 8 times in a row" in failed(server, data)
    # The first brought something, the others no more than that.
    assert len(server.holdings.asked(among=url_path(0))) == 9


def test_a_server_out_of_reach_is_given_up(server: HostileServer, data: Path) -> None:
    server.holdings.hold(PARTITION, some_shards(20))
    for name in some_shards(20):
        server.holdings.always[f"/{PARTITION}/{name}"] = Fault.DROP
    sentence = failed(server, data, connections=2)
    assert re.fullmatch(
        rf"{data / FOLDER}/validate\d{{4}}\.tfrecord \(the connection broke off, 8 times in a row\): 8 consecutive shards "
        r"could not be fetched, and the others were not tried; the same command continues when the server is reachable\.",
        sentence,
    )
    assert len({request.path for request in server.holdings.asked(among=PARTITION)}) <= 10


def test_what_a_server_lacks_is_no_outage(server: HostileServer, data: Path) -> None:
    shards = some_shards(20)
    server.holdings.hold(PARTITION, shards)
    server.holdings.always = {f"/{PARTITION}/{name}": Fault.MISSING for name in list(shards)[:19]}
    assert failed(server, data).startswith(f"{data}: 19 of 22 files could not be fetched, ")
    assert set(content(data / FOLDER).values()) == {list(shards.values())[19]}


def test_no_server_at_all(data: Path) -> None:
    with HostileServer() as gone:
        url = gone.url
    with pytest.raises(Yt8mError) as caught:
        list(download(data, [PARTITION], other_server(url), policy=QUICK))
    sentence = str(caught.value)
    assert sentence.startswith(f"{url}/3/download_plans/frame_validate.json: the plan of {PARTITION} could not be ")
    assert "Connection refused" in sentence
    assert not data.exists()


# -------------------------------------------------------------------------------------------------------------- patience


def pauses_of(server: HostileServer, data: Path, number: int = 0, **patience: Any) -> list[float]:
    """The pauses that a download makes for one shard that fails and fails."""
    pauses: list[float] = []
    failed(server, data, policy=RetryPolicy(stall_seconds=1, **patience), pause=pauses.append, connections=1)
    return pauses


def test_pauses_double_with_jitter(server: HostileServer, tmp_path: Path) -> None:
    server.holdings.always[url_path(0)] = Fault.BUSY
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
def test_the_server_says_when_to_come_back(
    server: HostileServer, data: Path, answer: str | Callable[[], str], least: float, most: float
) -> None:
    server.holdings.always[url_path(0)] = Fault.TOO_MANY
    server.holdings.retry_after = answer if isinstance(answer, str) else answer()
    pauses = pauses_of(server, data, max_failures=4, first_delay_seconds=1)
    assert len(pauses) == 3
    assert all(least <= pause <= most for pause in pauses)
