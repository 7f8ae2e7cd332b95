"""The official download against a server that does everything wrong: what arrives is what the server has, or nothing."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import urllib3

import yt8m
from tests.support.command import refused, succeeds
from tests.support.command import yt8m as command
from tests.support.full_disk import FullDisk
from tests.support.hostile_server import Fault, Holdings, HostileServer
from tests.support.progress import RecordedProgress
from tests.support.tiny_shards import random_videos, write_shards
from yt8m.dataset.catalog import FILE_NAME, Catalog
from yt8m.download.download import LEDGER_FILE, PLAN_FILE, FolderReport, download
from yt8m.download.plan import Fraction, Shard, local_name, official_server, other_server, read_plan, select
from yt8m.download.transfer import Network, PermanentError, RetryPolicy, StoppableThreads
from yt8m.errors import UsageError, Yt8mError

PARTITION, FOLDER = "3/frame/validate", "segment/train"
QUICK = RetryPolicy(stall_seconds=0.25, first_delay_seconds=0)
ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
"""The official order of the characters that a shard's name ends in."""

LISTED_BESIDE = {PLAN_FILE, LEDGER_FILE}


def some_shards(count: int = 6, size: int = 60_000, seed: int = 0, prefix: str = "validate") -> dict[str, bytes]:
    """Shards of random bytes, by their names in the plan: validatea0, validatea1, ..."""
    rng = random.Random(seed)
    return {
        f"{prefix}{first}{second}.tfrecord": rng.randbytes(size + 1000 * number)
        for number, (first, second) in enumerate(itertools.islice(itertools.product("ab", "0123456789"), count))
    }


SHARDS = some_shards()
NAMES = [f"validate{52 + number:04d}.tfrecord" for number in range(6)]
"""Their files: a is 0, and the digits begin at 52."""


@pytest.fixture
def server() -> Iterator[HostileServer]:
    with HostileServer() as running:
        running.holdings.hold(PARTITION, SHARDS)
        running.holdings.hold_vocabularies()
        yield running


@pytest.fixture
def holdings(server: HostileServer) -> Holdings:
    return server.holdings


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def url_path(number: int) -> str:
    """Where the server has a shard."""
    return f"/{PARTITION}/{list(SHARDS)[number]}"


def fetch(server: HostileServer, data: Path, policy: RetryPolicy = QUICK, **options: Any) -> list[FolderReport]:
    """Download the partition."""
    return list(download(data, [PARTITION], other_server(server.url), policy=policy, **options))


def content(folder: Path) -> dict[str, bytes]:
    """Shards of a folder, and whatever else is not part of every download."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in LISTED_BESIDE)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


EXPECTED = dict(zip(NAMES, SHARDS.values(), strict=True))


# ------------------------------------------------------------------------------------------------- names and selections


@pytest.mark.parametrize(
    ("plan_name", "name"),
    [
        ("trainaa.tfrecord", "train0000.tfrecord"),
        ("trainab.tfrecord", "train0001.tfrecord"),
        ("trainaA.tfrecord", "train0026.tfrecord"),
        ("trainba.tfrecord", "train0062.tfrecord"),
        ("trainAA.tfrecord", "train1638.tfrecord"),
        ("train00.tfrecord", "train3276.tfrecord"),
        ("train99.tfrecord", "train3843.tfrecord"),
        ("validateaz.tfrecord", "validate0025.tfrecord"),
        ("train-1.tfrecord", "train-1.tfrecord"),
        ("a.tfrecord", "a.tfrecord"),
    ],
)
def test_local_names(plan_name: str, name: str) -> None:
    assert local_name(plan_name) == name


def test_the_names_of_a_partition_count_its_shards() -> None:
    names = [local_name(f"test{first}{second}.tfrecord") for first in ALPHABET for second in ALPHABET]
    assert names == [f"test{number:04d}.tfrecord" for number in range(3844)]


# The remainders are those of md5sum and bc.
@pytest.mark.parametrize(
    ("plan_name", "of_100", "of_7"),
    [("trainaa", 37, 5), ("trainab", 45, 4), ("train00", 58, 4), ("validateZ9", 24, 5), ("testq7", 81, 2)],
)
def test_fractions(plan_name: str, of_100: int, of_7: int) -> None:
    for count, remainder in ((100, of_100), (7, of_7)):
        holds = [Fraction(number, count).contains(f"{plan_name}.tfrecord") for number in range(1, count + 1)]
        assert holds.index(True) == remainder
        assert sum(holds) == 1
    assert Fraction.parse(f"{of_100 + 1}/100") == Fraction(of_100 + 1, 100)


@pytest.mark.parametrize("text", ["", "1", "0/5", "6/5", "1/0", "-1/5", "1/5/9", "1.5/3", " 1/5", "1,100", "١/٢"])
def test_fractions_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--shard .*expected NUMBER/COUNT"):
        Fraction.parse(text)


def plan_of(*names: str) -> tuple[Shard, ...]:
    return read_plan(json.dumps({"files": dict.fromkeys(names, "0" * 32)}).encode(), "plan")


def test_lists(tmp_path: Path) -> None:
    names = [f"validatea{digit}.tfrecord" for digit in "0123"]
    plans = {"2/frame/validate": plan_of(*names), "3/frame/validate": plan_of(*names)}
    path = tmp_path / "list.txt"
    path.write_text(
        "# a comment\n\n  video/valid/validate0052.tfrecord  \nvalidatea1.tfrecord # in both\n"
        "3/frame/validate/validate0055.tfrecord\n./segment/train/validate0055.tfrecord\n"
    )
    chosen = select(plans, None, path)
    assert {name: [shard.plan_name[-10] for shard in shards] for name, shards in chosen.items()} == {
        "2/frame/validate": ["0", "1"],
        "3/frame/validate": ["1", "3"],
    }
    path.write_text("".join(f"video/valid/other{number}.tfrecord\n" for number in range(5)))
    with pytest.raises(UsageError) as caught:
        select(plans, None, path)
    assert str(caught.value) == (
        f"{path}: not in the plans of 2/frame/validate, 3/frame/validate: video/valid/other0.tfrecord, "
        "video/valid/other1.tfrecord, video/valid/other2.tfrecord and 2 more."
    )
    for line in ("segment/test/validate0052.tfrecord", "../validate0052.tfrecord", "validate0052"):
        path.write_text(line)
        with pytest.raises(UsageError, match="not in the plans"):
            select(plans, None, path)
    path.write_text("# nothing\n")
    with pytest.raises(UsageError, match="contains no names"):
        select(plans, None, path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8"):
        select(plans, None, path)
    with pytest.raises(UsageError, match="No such file"):
        select(plans, None, tmp_path / "absent.txt")


def test_a_list_and_a_fraction_both_hold(tmp_path: Path) -> None:
    plans = {"2/frame/train": plan_of("trainaa.tfrecord", "trainab.tfrecord", "train00.tfrecord")}
    path = tmp_path / "list.txt"
    path.write_text("trainaa.tfrecord\ntrainab.tfrecord\n")
    # Of seven parts, trainab and train00 are in the fifth.
    assert [shard.name for shard in select(plans, Fraction(5, 7), path)["2/frame/train"]] == ["train0001.tfrecord"]
    with pytest.raises(UsageError, match=r"^None of the 3 shards of 2/frame/train is selected"):
        select(plans, Fraction(1, 7), None)


GOOD = "0123456789abcdef0123456789ABCDEF"


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        (b"", "is no download plan ("),
        (b"<html>", "is no download plan ("),
        (b"\xff\xff", "is no download plan ("),
        (b"[" * 100_000, "is no download plan ("),
        (b"[]", 'expected JSON with an object "files"'),
        (b"{}", 'expected JSON with an object "files"'),
        (b'{"files": []}', 'expected JSON with an object "files"'),
        (b'{"files": {}}', 'expected JSON with an object "files"'),
        (b'{"files": {"aa.tfrecord": "%b", "aa.tfrecord": "%b"}}' % (GOOD.encode(), GOOD.encode()), "occurs twice"),
        ({"../aa.tfrecord": GOOD}, "contains '../aa.tfrecord'"),
        ({"a/aa.tfrecord": GOOD}, "is no name of a shard"),
        ({"a\\aa.tfrecord": GOOD}, "is no name of a shard"),
        ({"/aa.tfrecord": GOOD}, "is no name of a shard"),
        ({".aa.tfrecord": GOOD}, "is no name of a shard"),
        ({"aa.tfrecord\n": GOOD}, "is no name of a shard"),
        ({"a\taa.tfrecord": GOOD}, "is no name of a shard"),
        ({"aa.tfrecord.exe": GOOD}, "is no name of a shard"),
        ({".tfrecord": GOOD}, "is no name of a shard"),
        ({"": GOOD}, "is no name of a shard"),
        ({"träinaa.tfrecord": GOOD}, "is no name of a shard"),
        ({"x" * 300 + ".tfrecord": GOOD}, "is no name of a shard"),
        ({"aa.tfrecord": GOOD[1:]}, "expected 32 hexadecimal digits"),
        ({"aa.tfrecord": "g" * 32}, "expected 32 hexadecimal digits"),
        ({"aa.tfrecord": None}, "expected 32 hexadecimal digits"),
        # The first is stored under the name that the second keeps; those of the next pair differ in case only.
        ({"0000.tfrecord": GOOD, "003276.tfrecord": GOOD}, None),
        ({"t-aa.tfrecord": GOOD, "T-aa.tfrecord": GOOD}, "would be the same file, T-0000.tfrecord"),
        ({"x-.tfrecord": GOOD, "X-.tfrecord": GOOD}, "x-.tfrecord and X-.tfrecord would be the same file"),
    ],
)
def test_plans_are_not_trusted(plan: bytes | dict[str, Any], expected: str | None) -> None:
    if isinstance(plan, dict):
        plan = json.dumps({"files": plan, "other": 1}).encode()
    if expected is None:
        assert len(read_plan(plan, "plan")) == 2
        return
    with pytest.raises(Yt8mError) as caught:
        read_plan(plan, "https://host/plan.json")
    sentence = str(caught.value)
    assert sentence.startswith("https://host/plan.json: ")
    assert expected in sentence
    assert sentence.endswith(".")
    assert len(sentence) < 400
    assert sentence.isprintable()


def test_plans() -> None:
    plan = {"files": {"trainab.tfrecord": GOOD, "trainaa.tfrecord": "0" * 32}, "mirrors": ["us"]}
    assert read_plan(json.dumps(plan).encode(), "plan") == (
        Shard("train0000.tfrecord", "trainaa.tfrecord", "0" * 32),
        Shard("train0001.tfrecord", "trainab.tfrecord", GOOD.lower()),
    )


def test_where_the_official_files_are() -> None:
    server = official_server("eu")
    (shard,) = plan_of("trainaa.tfrecord")
    assert server.plan_url("2/frame/train") == (
        "https://storage.googleapis.com/data.yt8m.org/2/download_plans/frame_train.json"
    )
    assert server.shard_url("3/frame/test", shard) == (
        "https://storage.googleapis.com/eu.data.yt8m.org/3/frame/test/trainaa.tfrecord"
    )
    assert f"{server.vocabularies}/2/vocabulary.csv" == "https://research.google.com/youtube8m/csv/2/vocabulary.csv"


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


def failed(server: HostileServer, data: Path, **options: Any) -> str:
    """Download where something cannot be had, and give the sentence."""
    with pytest.raises(Yt8mError) as caught:
        fetch(server, data, **options)
    assert caught.value.exit_code == 1
    return str(caught.value)


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


# ------------------------------------------------------------------------------------------------------- what is there


def test_a_second_run_asks_for_nothing(server: HostileServer, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch(server, data)
    server.holdings.requests.clear()
    with monkeypatch.context() as patch:
        patch.setattr("yt8m.download.download.hash_file", None)
        (report,) = fetch(server, data)
    assert (report.num_complete, report.num_before) == (6, 6)
    assert server.holdings.requests == []
    assert len((data / FOLDER / LEDGER_FILE).read_text().splitlines()) == 6


def test_shards_that_were_there_before(server: HostileServer, data: Path) -> None:
    (data / FOLDER).mkdir(parents=True)
    (data / FOLDER / NAMES[1]).write_bytes(EXPECTED[NAMES[1]])
    (data / FOLDER / f".{NAMES[1]}.part").write_bytes(b"needless")
    (data / FOLDER / NAMES[2]).write_bytes(EXPECTED[NAMES[2]][:-1])
    (data / FOLDER / "notes.txt").write_text("mine")
    said: list[str] = []
    (report,) = fetch(server, data, report=said.append)
    assert (report.num_complete, report.num_before) == (6, 1)
    assert content(data / FOLDER) == EXPECTED | {"notes.txt": b"mine"}
    wrong, right = (hashlib.md5(EXPECTED[NAMES[2]][:end]).hexdigest() for end in (-1, None))
    assert said == [f"{data / FOLDER / NAMES[2]}: its MD5 is {wrong}, that of the plan {right}; it is fetched again."]
    assert [len(server.holdings.asked(among=url_path(number))) for number in range(6)] == [1, 0, 1, 1, 1, 1]


def test_a_wrong_shard_stays_until_the_right_one_is_there(server: HostileServer, data: Path) -> None:
    (data / FOLDER).mkdir(parents=True)
    (data / FOLDER / NAMES[2]).write_bytes(b"what there is")
    server.holdings.always[url_path(2)] = Fault.MISSING
    failed(server, data)
    assert (data / FOLDER / NAMES[2]).read_bytes() == b"what there is"


def test_changes_are_noticed(server: HostileServer, data: Path) -> None:
    fetch(server, data)
    path = data / FOLDER / NAMES[3]
    before = path.stat().st_mtime_ns
    path.write_bytes(b"x" + EXPECTED[NAMES[3]][1:])
    assert path.stat().st_mtime_ns != before
    said: list[str] = []
    (report,) = fetch(server, data, report=said.append)
    assert (report.num_before, len(said)) == (5, 1)
    assert content(data / FOLDER) == EXPECTED


def test_check_finds_what_changed_in_silence(server: HostileServer, data: Path) -> None:
    fetch(server, data)
    path = data / FOLDER / NAMES[3]
    before = path.stat()
    path.write_bytes(b"x" + EXPECTED[NAMES[3]][1:])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert fetch(server, data)[0].num_before == 6
    server.holdings.requests.clear()
    assert fetch(server, data, check=True)[0].num_before == 5
    assert content(data / FOLDER) == EXPECTED
    assert [request.path for request in server.holdings.asked()] == [
        "/3/download_plans/frame_validate.json",
        url_path(3),
    ]
    # One line a shard, and one more for the shard that came anew.
    assert len((data / FOLDER / LEDGER_FILE).read_text().splitlines()) == 7


@pytest.mark.parametrize("damage", ["torn", "gone", "binary", "of another plan"])
def test_a_damaged_ledger_costs_hashing_only(server: HostileServer, data: Path, damage: str) -> None:
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
    server.holdings.requests.clear()
    (report,) = fetch(server, data)
    assert report.num_before == 6
    assert server.holdings.requests == []
    assert set(lines.splitlines()) <= set(ledger.read_text(errors="replace").splitlines())


def test_a_damaged_plan_is_fetched_again(server: HostileServer, data: Path) -> None:
    fetch(server, data)
    (data / FOLDER / PLAN_FILE).write_text("{")
    fetch(server, data)
    assert (data / FOLDER / PLAN_FILE).read_bytes() == server.holdings.files["/3/download_plans/frame_validate.json"]


def test_two_downloads_do_not_meet(server: HostileServer, data: Path) -> None:
    first = download(data, [PARTITION], other_server(server.url), policy=QUICK)
    next(first)
    assert (
        failed(server, data)
        == f"{data / FOLDER}: another process is downloading into this folder; wait for it to finish."
    )
    assert list(first) == []
    assert fetch(server, data)[0].num_before == 6


def test_a_selection_is_all_that_is_fetched(server: HostileServer, data: Path, tmp_path: Path) -> None:
    server.holdings.hold("2/frame/validate", SHARDS)
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


def test_folders_of_partitions(server: HostileServer, data: Path) -> None:
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
        server.holdings.hold(partition, some_shards(1, seed=number, prefix=partition.split("/")[2]))
    reports = list(download(data, list(folders), other_server(server.url), policy=QUICK))
    assert {report.partition: report.folder.relative_to(data).as_posix() for report in reports} == folders
    for number, (partition, folder) in enumerate(folders.items()):
        (expected,) = some_shards(1, seed=number).values()
        assert content(data / folder) == {f"{partition.split('/')[2]}0052.tfrecord": expected}
    assert [report.is_frame_level for report in reports] == [True, True, True, False, False, False, True, True]


# ---------------------------------------------------------------------------------------------------------------- disk


def free_space(monkeypatch: pytest.MonkeyPatch, free: float) -> None:
    """Let the disk seem to have so many bytes free."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=int(free)))


def test_too_little_space(server: HostileServer, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = sum(map(len, SHARDS.values()))
    assert size == 375_000
    free_space(monkeypatch, 1.02 * size - 1)
    assert failed(server, data) == (
        f"{data / FOLDER}: about 375.00 kB are still to be fetched to this disk, and 382.50 kB are free; free some "
        "space, or fetch a part with --shard or --list."
    )
    assert content(data / FOLDER) == {}
    assert server.holdings.asked(among=PARTITION) == []
    assert len(server.holdings.asked("HEAD")) == 6

    # What is there of a shard need not be fetched.
    (data / FOLDER / f".{NAMES[0]}.part").write_bytes(EXPECTED[NAMES[0]][:10])
    fetch(server, data)
    assert content(data / FOLDER) == EXPECTED


def test_sizes_are_asked_of_a_sample(server: HostileServer, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"test{first}{second}.tfrecord" for first in "abcde" for second in ALPHABET]
    server.holdings.hold("3/frame/test", {name: bytes(10 + number) for number, name in enumerate(names)})
    free_space(monkeypatch, 0)
    with pytest.raises(Yt8mError) as caught:
        list(download(data, ["3/frame/test"], other_server(server.url), policy=QUICK))
    asked = sorted(names.index(Path(request.path).name) for request in server.holdings.asked("HEAD"))
    assert len(asked) == 32
    assert asked[0] == 0
    assert {after - before for before, after in itertools.pairwise(asked)} == {9, 10}
    estimate = sum(10 + number for number in asked) / 32 * 310
    assert abs(estimate / sum(10 + number for number in range(310)) - 1) < 0.05
    assert f"about {estimate / 1000:.2f} kB" in str(caught.value)


def test_a_disk_that_fills_up(full_disk: FullDisk, server: HostileServer, monkeypatch: pytest.MonkeyPatch) -> None:
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
    server.holdings.bytes_sent.clear()
    fetch(server, data)
    assert content(data / FOLDER) == EXPECTED
    assert sum(sent for path, sent in server.holdings.bytes_sent.items() if PARTITION in path) <= 375_000 - kept


# ---------------------------------------------------------------------------------------------------------- vocabularies


def test_vocabularies(server: HostileServer, data: Path) -> None:
    fetch(server, data)
    for name, place in (("vocabulary.csv", "2"), ("segment_vocabulary.csv", "segments")):
        assert (data / name).read_bytes() == server.holdings.files[f"/csv/{place}/vocabulary.csv"]
    (data / "vocabulary.csv").write_text("mine")
    (data / "segment_vocabulary.csv").unlink()
    server.holdings.requests.clear()
    fetch(server, data, check=True)
    assert (data / "vocabulary.csv").read_text() == "mine"
    assert len(server.holdings.asked(among="/csv/")) == 1


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
def test_a_wrong_vocabulary_does_not_stop_the_shards(
    server: HostileServer, data: Path, wrong: bytes, found: str
) -> None:
    server.holdings.files["/csv/segments/vocabulary.csv"] = wrong
    sentence = failed(server, data)
    assert sentence.startswith(f"{data}: 1 of 8 files could not be fetched, {data / 'segment_vocabulary.csv'} (")
    assert found in sentence
    assert not (data / "segment_vocabulary.csv").exists()
    assert content(data / FOLDER) == EXPECTED


@pytest.mark.parametrize("fault", [Fault.TRUNCATE, Fault.BUSY, Fault.DROP, Fault.STALL, Fault.CHUNKED, Fault.REDIRECT])
def test_small_files_are_fetched_with_patience(server: HostileServer, data: Path, fault: Fault) -> None:
    for path in ("/3/download_plans/frame_validate.json", "/csv/2/vocabulary.csv"):
        server.holdings.faults[path] = deque([fault] * 3)
    fetch(server, data)
    assert content(data / FOLDER) == EXPECTED
    assert (data / "vocabulary.csv").read_bytes() == server.holdings.files["/csv/2/vocabulary.csv"]


def test_small_files_are_small(server: HostileServer, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yt8m.download.transfer.MAX_SMALL_BYTES", 100)
    assert "could not be fetched (it is longer than 100 bytes)" in failed(server, data)
    assert not data.exists()


# ----------------------------------------------------------------------------------------------------- threads and TLS


def test_a_defect_in_a_thread_is_raised(server: HostileServer, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr("yt8m.download.transfer.Network.fetch", broken)
    with pytest.raises(RuntimeError, match="a defect"):
        fetch(server, data)


def test_no_way_leads_out_of_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network("https://localhost", StoppableThreads(1), QUICK)
    hops = urllib3.Retry(redirect=2).new(
        history=(urllib3.util.retry.RequestHistory("GET", "/x", None, 302, "HTTP://localhost/x"),)
    )
    answer = urllib3.HTTPResponse(b"{}", status=200, retries=hops)
    monkeypatch.setattr(network, "_pool", type("Pool", (), {"request": lambda *_, **__: answer}))
    with pytest.raises(PermanentError, match="an address without TLS"):
        network.small("https://localhost/x")


def test_progress(server: HostileServer, data: Path) -> None:
    progress = RecordedProgress()
    (data / FOLDER).mkdir(parents=True)
    (data / FOLDER / NAMES[0]).write_bytes(EXPECTED[NAMES[0]])
    (data / FOLDER / f".{NAMES[1]}.part").write_bytes(EXPECTED[NAMES[1]][:1000])
    server.holdings.block_bytes, server.holdings.block_seconds = 20_000, 0.1
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


# ------------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command have little patience."""
    monkeypatch.setattr(
        "yt8m.download.transfer.RetryPolicy", partial(RetryPolicy, stall_seconds=0.25, first_delay_seconds=0)
    )


def start(*arguments: object) -> subprocess.Popen[str]:
    """The command in a process of its own, which heeds Ctrl-C even where these tests run in the background."""
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from yt8m.cli.main import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, "download", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(yt8m.__file__).parents[1])},
    )


@pytest.mark.usefixtures("hasty")
def test_the_command(server: HostileServer, data: Path, tmp_path: Path) -> None:
    parts = {
        "2/frame/train": ("video/train", "train", {}),
        "2/frame/validate": ("video/valid", "validate", {}),
        "3/frame/validate": ("segment/train", "validate", {"ratings_per_video": 3}),
        "3/frame/test": ("segment/test", "test", {"labeled": False}),
    }
    lines = []
    for number, (partition, (folder, split, options)) in enumerate(parts.items()):
        videos = random_videos(4, seed=number, id_prefix=str(number), **options)
        paths = write_shards(tmp_path / "made" / str(number), videos)
        shards = {f"{split}a{letter}.tfrecord": path.read_bytes() for letter, path in zip("ab", paths, strict=True)}
        server.holdings.hold(partition, shards)
        size = sum(map(len, shards.values()))
        lines.append(f"{data / folder}: 2 shards, {size / 1000:.2f} kB, 0 of them present before")
    shown = succeeds("download", data, "--server", f"{server.url}/")
    printed = shown.out.splitlines()
    assert printed[:4] == lines
    for (folder, split, _), line in zip(parts.values(), printed[4:8], strict=False):
        assert line.startswith(f"{data / folder / FILE_NAME}: 4 videos")
        catalog = Catalog.load(data / folder)
        assert [shard.name for shard in catalog.shards] == [f"{split}0000.tfrecord", f"{split}0001.tfrecord"]
    assert shown.err == ""
    described = succeeds("describe", data)
    assert described.out.startswith(f"{data / 'segment_vocabulary.csv'}: 1,000 segment classes\n")

    # All is there: nothing is asked for, and nothing indexed again.
    server.holdings.requests.clear()
    again = succeeds("download", data, "--server", server.url)
    assert again.out.splitlines() == [line.replace("0 of them", "2 of them") for line in lines]
    assert server.holdings.requests == []


@pytest.mark.usefixtures("hasty")
def test_the_command_with_a_part(server: HostileServer, data: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("validatea1.tfrecord\n")
    where = [data, PARTITION, "--server", server.url, "--no-index", "--connections", 1]
    assert "1 shards, 61.00 kB, 0 of" in succeeds("download", *where, "--list", tmp_path / "list.txt").out
    chosen = [len(part) for name, part in SHARDS.items() if int(hashlib.md5(name.encode()).hexdigest(), 16) % 3 == 1]
    assert f"{len(chosen)} shards, {sum(chosen) / 1000:.2f} kB" in succeeds("download", *where, "--shard", "2/3").out
    assert "6 shards, 375.00 kB" in succeeds("download", *where).out
    assert content(data / FOLDER) == EXPECTED
    (data / FOLDER / NAMES[0]).write_bytes(b"wrong")
    shown = succeeds("download", *where, "--check")
    assert "its MD5 is" in shown.err
    assert "6 shards, 375.00 kB, 5 of them present before" in shown.out
    assert list(data.rglob(FILE_NAME)) == []


@pytest.mark.usefixtures("hasty")
def test_the_command_fails_in_one_sentence(server: HostileServer, data: Path, tmp_path: Path) -> None:
    where = [data, PARTITION, "--server", server.url]
    server.holdings.always[url_path(0)] = Fault.GONE
    sentence = refused(1, "download", *where)
    assert sentence.startswith(f"{data}: 1 of 8 files could not be fetched, {data / FOLDER / NAMES[0]} (the server ")
    assert list(data.rglob(FILE_NAME)) == []
    assert "5 of 6 shards" in command("download", *where).out

    (tmp_path / "file").write_text("")
    for expected, arguments in {
        "is not a partition of the dataset; expected one of 2/frame/train,": [data, "2/frame/training"],
        "expected one of us, eu, asia": [data, "--mirror", "mars"],
        "give one of them": [data, "--mirror", "us", "--server", server.url],
        "expected NUMBER/COUNT": [*where, "--shard", "0/3"],
        "is a file; expected a dataset folder": [tmp_path / "file", "--server", server.url],
        "cannot be read as a list of shards": [*where, "--list", tmp_path / "absent"],
        "expected an address such as": [data, "--server", "ftp://host"],
        "--server 127.0.0.1:80: expected an address": [data, "--server", "127.0.0.1:80"],
        "--server http://: expected an address": [data, "--server", "http://"],
        "--server http://host:x: expected an address": [data, "--server", "http://host:x"],
    }.items():
        assert expected in refused(2, "download", *arguments)
    assert "Not a directory" in refused(1, "download", tmp_path / "file" / "under", *where[1:])
    server.holdings.files["/3/download_plans/frame_validate.json"] = b'{"files": {"/etc/passwd": "0"}}'
    assert "names '/etc/passwd'" in refused(1, "download", tmp_path / "other", PARTITION, "--server", server.url)
    assert not (tmp_path / "other").exists()


def test_killed_at_any_moment(server: HostileServer, data: Path, tmp_path: Path) -> None:
    shards = some_shards(12, 300_000)
    server.holdings.hold(PARTITION, shards)
    fetch(server, tmp_path / "undisturbed")
    server.holdings.block_bytes, server.holdings.block_seconds = 20_000, 0.02
    server.holdings.bytes_sent.clear()
    server.holdings.requests.clear()

    def sent() -> int:
        with server.holdings.lock:
            return sum(sent for path, sent in server.holdings.bytes_sent.items() if PARTITION in path)

    # Moments are counted in bytes sent, and so do not depend on how fast Python starts; the first is before any.
    rng = random.Random(0)
    num_kills = 6
    for more in [0, *(rng.randrange(600_000) for _ in range(num_kills - 1))]:
        before = sent()
        process = start(data, PARTITION, "--server", server.url, "--no-index")
        deadline = time.monotonic() + 30
        while (sent() - before < more or not server.holdings.requests) and time.monotonic() < deadline:
            time.sleep(0.002)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    process = start(data, PARTITION, "--server", server.url, "--no-index")
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert content(data) == content(tmp_path / "undisturbed")
    assert content(data / FOLDER) == {local_name(name): whole for name, whole in shards.items()}
    # A kill costs what was on its way through four connections, not the shards begun.
    assert sent() < sum(map(len, shards.values())) + num_kills * 4 * 60_000


def test_interrupted(server: HostileServer, data: Path) -> None:
    server.holdings.always = {url_path(number): Fault.STALL for number in range(6)}
    process = start(data, PARTITION, "--server", server.url)
    deadline = time.monotonic() + 20
    while len(server.holdings.asked(among=PARTITION)) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    sent = time.monotonic()
    out, err = process.communicate(timeout=20)
    assert time.monotonic() - sent < 1.5
    assert (process.returncode, out) == (130, "")
    assert re.fullmatch(r"yt8m: Interrupted. The same command .*\.\n", err)
    server.holdings.always.clear()
    fetch(server, data)
    assert content(data / FOLDER) == EXPECTED
    assert [request.range for request in server.holdings.asked(among=url_path(0))] == [None, "bytes=30000-"]
