"""`yt8m download`: output, errors, kills and interrupts."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

import yt8m
from tests.support.command import refused, succeeds
from tests.support.command import yt8m as command
from tests.support.downloads import (
    EXPECTED,
    FOLDER,
    NAMES,
    PARTITION,
    SHARDS,
    content,
    fetch,
    some_shards,
    url_path,
)
from tests.support.hostile_server import Fault, HostileServer
from tests.support.tiny_shards import random_videos, write_shards
from yt8m.dataset.catalog import FILE_NAME, Catalog
from yt8m.download.plan import local_name
from yt8m.download.transfer import RetryPolicy


@pytest.fixture
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the timeout and the retry delays of the command."""
    monkeypatch.setattr(
        "yt8m.download.transfer.RetryPolicy", partial(RetryPolicy, stall_seconds=0.25, first_delay_seconds=0)
    )


def start(*arguments: object) -> subprocess.Popen[str]:
    """Start the command in its own process, with SIGINT handled even if the tests run in the background."""
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from yt8m.cli.main import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, "download", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(yt8m.__file__).parents[1])},
    )


@pytest.mark.usefixtures("short_delays")
def test_the_command_downloads_and_indexes_all_partitions(server: HostileServer, data: Path, tmp_path: Path) -> None:
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
        server.state.add_partition(partition, shards)
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

    # The second run finds everything complete: it sends no requests and indexes nothing.
    server.state.requests.clear()
    again = succeeds("download", data, "--server", server.url)
    assert again.out.splitlines() == [line.replace("0 of them", "2 of them") for line in lines]
    assert server.state.requests == []


@pytest.mark.usefixtures("short_delays")
def test_the_command_fetches_lists_and_fractions_and_checks(server: HostileServer, data: Path, tmp_path: Path) -> None:
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


@pytest.mark.usefixtures("short_delays")
def test_errors_of_the_command_are_one_sentence(server: HostileServer, data: Path, tmp_path: Path) -> None:
    where = [data, PARTITION, "--server", server.url]
    server.state.always[url_path(0)] = Fault.GONE
    message = refused(1, "download", *where)
    assert message.startswith(f"{data}: 1 of 8 files could not be fetched, {data / FOLDER / NAMES[0]} (the server ")
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
    server.state.files["/3/download_plans/frame_validate.json"] = b'{"files": {"/etc/passwd": "0"}}'
    assert "contains '/etc/passwd', which is no name of a shard" in refused(
        1, "download", tmp_path / "other", PARTITION, "--server", server.url
    )
    assert not (tmp_path / "other").exists()


def test_a_killed_download_resumes_and_fetches_little_twice(server: HostileServer, data: Path, tmp_path: Path) -> None:
    shards = some_shards(12, 300_000)
    server.state.add_partition(PARTITION, shards)
    fetch(server, tmp_path / "undisturbed")
    server.state.block_bytes, server.state.block_seconds = 20_000, 0.02
    server.state.bytes_sent.clear()
    server.state.requests.clear()

    def sent() -> int:
        with server.state.lock:
            return sum(sent for path, sent in server.state.bytes_sent.items() if PARTITION in path)

    # Kills are timed by bytes sent, independent of the start-up time of Python; the first kill is before any byte.
    rng = random.Random(0)
    num_kills = 6
    for more in [0, *(rng.randrange(600_000) for _ in range(num_kills - 1))]:
        before = sent()
        process = start(data, PARTITION, "--server", server.url, "--no-index")
        deadline = time.monotonic() + 30
        while (sent() - before < more or not server.state.requests) and time.monotonic() < deadline:
            time.sleep(0.002)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    process = start(data, PARTITION, "--server", server.url, "--no-index")
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert content(data) == content(tmp_path / "undisturbed")
    assert content(data / FOLDER) == {local_name(name): whole for name, whole in shards.items()}
    # A kill loses at most the data in flight on four connections, not the partial shards.
    assert sent() < sum(map(len, shards.values())) + num_kills * 4 * 60_000


def test_an_interrupt_ends_the_command_and_the_next_run_completes(server: HostileServer, data: Path) -> None:
    server.state.always = {url_path(number): Fault.STALL for number in range(6)}
    process = start(data, PARTITION, "--server", server.url)
    deadline = time.monotonic() + 20
    while len(server.state.find_requests(among=PARTITION)) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    sent = time.monotonic()
    out, err = process.communicate(timeout=20)
    assert time.monotonic() - sent < 1.5
    assert (process.returncode, out) == (75, "")
    assert err == "yt8m: Stopped by SIGINT; the same command continues with what is not finished.\n"
    server.state.always.clear()
    fetch(server, data)


@pytest.mark.usefixtures("short_delays")
def test_a_password_is_sent_and_never_printed(server: HostileServer, data: Path) -> None:
    url = server.url.replace("http://", "http://user:SECRET@")
    done = succeeds("download", data, PARTITION, "--server", url, "--no-index")
    assert "SECRET" not in done.out + done.err
    failed = command("download", data, "2/frame/test", "--server", url, "--no-index")
    assert failed.err.startswith(
        f"yt8m: {server.url}/2/download_plans/frame_test.json: the plan of 2/frame/test could not "
    )
    assert "SECRET" not in failed.out + failed.err
    assert {request.authorization for request in server.state.requests} == {"Basic dXNlcjpTRUNSRVQ="}
