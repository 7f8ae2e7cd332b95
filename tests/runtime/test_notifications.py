"""Notifications: sent with the real apprise to a local server; runs are unaffected and no secret is printed."""

from __future__ import annotations

import base64
import http.server
import json
import logging
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.command import refused, succeeds
from tests.support.command import yt8m as command
from tests.support.tiny_run import FinishedRun
from yt8m.errors import Interrupted, UsageError
from yt8m.runtime import notifications
from yt8m.runtime.notifications import notify_when_done

SECRET = "hunter2-Zq9"


class Inbox(http.server.ThreadingHTTPServer):
    """A server that receives messages of apprise's `json` plugin and answers with a status."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receiver)
        self.status = 200
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.received: list[dict[str, str]] = []
        self.credentials: list[str] = []

    @property
    def url(self) -> str:
        return f"json://someone:{SECRET}@127.0.0.1:{self.server_port}/{SECRET}"


class _Receiver(http.server.BaseHTTPRequestHandler):
    server: Inbox

    def do_POST(self) -> None:
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.may_answer.wait(60)
        self.server.received.append({name: message[name] for name in ("title", "message", "type")})
        self.server.credentials.append(base64.b64decode(self.headers["Authorization"].split()[1]).decode())
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def inbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Inbox]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Inbox() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("YT8M_NOTIFY", server.url)
        yield server
        server.may_answer.set()
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def printed(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    """Lines printed since the last call; no test may print or log the secret."""
    caplog.set_level(logging.DEBUG)
    everything = ""

    def lines() -> list[str]:
        nonlocal everything
        out, err = capfd.readouterr()
        everything += out + err
        return (out + err).splitlines()

    yield lines
    lines()
    assert SECRET not in everything + caplog.text


# --- Outcomes --------------------------------------------------------------------------------------------------------


def test_a_successful_run_sends_its_result(inbox: Inbox, printed: Callable[[], list[str]]) -> None:
    with notify_when_done("yt8m run demo --out <runs & more>") as notification:
        notification.result = "MAP@100,000 0.8123"
    (message,) = inbox.received
    assert message == {
        "title": "yt8m run demo --out <runs & more>: finished",
        "message": f"MAP@100,000 0.8123\n{socket.gethostname()}, after 0 s",
        "type": "success",
    }
    assert inbox.credentials == [f"someone:{SECRET}"]
    assert printed() == []


@pytest.mark.parametrize(
    ("error", "outcome", "kind", "text", "seconds", "duration"),
    [
        (UsageError("data: there is no such folder."), "failed", "failure", "data: there is no such", 0.4, "0 s"),
        (Interrupted("Stopped; the same command goes on."), "stopped", "warning", "Stopped; the", 59.6, "1 min 0 s"),
        (KeyboardInterrupt(), "stopped", "warning", "Interrupted; the same command resumes", 754, "12 min 34 s"),
        (ZeroDivisionError("by zero"), "failed", "failure", "ZeroDivisionError: by zero\n", 8000, "2 h 13 min"),
        (ValueError("long " * 1000), "failed", "failure", "ValueError: long long", 90_000, "25 h 0 min"),
    ],
)
def test_a_failed_or_stopped_run_sends_its_error(
    inbox: Inbox,
    printed: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    outcome: str,
    kind: str,
    text: str,
    seconds: float,
    duration: str,
) -> None:
    def run() -> None:
        with notify_when_done("yt8m demo") as notification:
            notification.result = "not sent"
            now = time.monotonic()
            monkeypatch.setattr(time, "monotonic", lambda: now + seconds)
            raise error

    with pytest.raises(type(error)) as raised:
        run()
    assert raised.value is error
    (message,) = inbox.received
    assert (message["title"], message["type"]) == (f"yt8m demo: {outcome}", kind)
    assert message["message"].startswith(text)
    assert message["message"].endswith(f"\n{socket.gethostname()}, after {duration}")
    assert len(message["message"]) < notifications.MAX_CHARACTERS + 200
    assert printed() == []


# --- Failures --------------------------------------------------------------------------------------------------------


def test_a_server_error_is_printed_and_does_not_affect_the_run(inbox: Inbox, printed: Callable[[], list[str]]) -> None:
    inbox.status = 500
    with notify_when_done("yt8m demo"):
        assert printed() == []
    assert printed() == ["yt8m: the notification to json could not be sent."]
    with pytest.raises(UsageError, match="as it was"), notify_when_done("yt8m demo"):
        raise UsageError("as it was")
    assert printed() == ["yt8m: the notification to json could not be sent."]


def test_a_connection_error_is_printed(monkeypatch: pytest.MonkeyPatch, printed: Callable[[], list[str]]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("YT8M_NOTIFY", f"json://{SECRET}@127.0.0.1:{unused.getsockname()[1]}/{SECRET}")
        with notify_when_done("yt8m demo"):
            assert printed() == []
    assert printed() == ["yt8m: the notification to json could not be sent."]


def test_a_server_that_does_not_answer_times_out(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch, printed: Callable[[], list[str]]
) -> None:
    with Inbox() as silent:
        # This server accepts the connection and never reads from it; the timeout of apprise is longer.
        slow = silent.url.replace("json://", "xml://") + "?rto=60&cto=60"
        monkeypatch.setenv("YT8M_NOTIFY", f"{slow}\n{inbox.url}")
        with notify_when_done("yt8m demo"):
            monkeypatch.setattr(notifications, "TIMEOUT_SECONDS", 6.0)
            started = time.monotonic()
        assert time.monotonic() - started < 12
    assert printed() == ["yt8m: the notification to xml could not be sent."]
    assert [message["title"] for message in inbox.received] == ["yt8m demo: finished"]


def test_a_second_ctrl_c_cancels_only_the_message(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def run() -> None:
        with notify_when_done("yt8m demo"):
            monkeypatch.setattr(subprocess, "run", interrupted)
            raise UsageError("as it was")

    with pytest.raises(UsageError, match="as it was"):
        run()
    assert inbox.received == []
    with pytest.raises(KeyboardInterrupt), notify_when_done("yt8m demo"):
        pytest.fail("Ctrl-C before the run starts must end it")


def test_an_unsupported_url_is_reported_at_the_start(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch, printed: Callable[[], list[str]]
) -> None:
    wrong = [f"nosuch://{SECRET}", SECRET, f"tgram://{SECRET}", f"{SECRET}://host"]
    monkeypatch.setenv("YT8M_NOTIFY", f"  {inbox.url}\n {'  '.join(wrong)} ")
    with notify_when_done("yt8m demo"):
        for number, line in enumerate(printed(), start=2):
            assert line.startswith(f"yt8m: YT8M_NOTIFY, URL {number}: no notification will be sent there")
        assert number == 5
    assert printed() == []
    assert len(inbox.received) == 1


def test_missing_apprise_is_reported_at_the_start(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch, printed: Callable[[], list[str]]
) -> None:
    monkeypatch.setitem(sys.modules, "apprise", None)
    with notify_when_done("yt8m demo"):
        (line,) = printed()
        assert "apprise is not installed; pip install 'yt8m[notifications]'" in line
    assert printed() == []
    assert inbox.received == []
    monkeypatch.setenv("YT8M_NOTIFY", "")
    with notify_when_done("yt8m demo"):
        pass
    assert printed() == []


# --- Destinations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", [True, False])
def test_destinations_are_read_from_a_file(
    inbox: Inbox,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    printed: Callable[[], list[str]],
    named: bool,
) -> None:
    monkeypatch.delenv("YT8M_NOTIFY")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with notify_when_done("yt8m demo"):
        pass
    assert printed() == []
    path = tmp_path / ("somewhere" if named else "yt8m/notify")
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"# mine: {SECRET}\n\n  {inbox.url}\n{SECRET}\n")
    path.chmod(0o600)
    if named:
        monkeypatch.setenv("YT8M_NOTIFY_FILE", str(path))
    with notify_when_done("yt8m demo"):
        (line,) = printed()
        assert line.startswith(f"yt8m: {path}, line 4: no notification will be sent there")
    assert len(inbox.received) == 1
    # The variable takes precedence over the file, even when it is empty.
    monkeypatch.setenv("YT8M_NOTIFY", "")
    with notify_when_done("yt8m demo"):
        pass
    assert len(inbox.received) == 1
    assert printed() == []


def test_the_default_file_is_in_the_home_folder(inbox: Inbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("YT8M_NOTIFY")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".config/yt8m").mkdir(parents=True)
    (tmp_path / ".config/yt8m/notify").write_text(inbox.url)
    with notify_when_done("yt8m demo"):
        pass
    assert len(inbox.received) == 1


@pytest.mark.parametrize(("mode", "is_reported"), [(0o600, False), (0o640, True)])
def test_a_file_readable_by_other_users_is_reported(
    inbox: Inbox,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    printed: Callable[[], list[str]],
    mode: int,
    is_reported: bool,
) -> None:
    path = tmp_path / "notify"
    path.write_text(inbox.url)
    path.chmod(mode)
    monkeypatch.delenv("YT8M_NOTIFY")
    monkeypatch.setenv("YT8M_NOTIFY_FILE", str(path))
    with notify_when_done("yt8m demo"):
        lines = printed()
    assert lines == (
        [f"yt8m: {path}: other users can read this file, which contains secrets: chmod 600 {path}"] * is_reported
    )
    assert len(inbox.received) == 1


@pytest.mark.parametrize("content", [None, b"\xff\xfe" + SECRET.encode()])
def test_a_file_that_cannot_be_read_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, printed: Callable[[], list[str]], content: bytes | None
) -> None:
    path = tmp_path / "notify"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.delenv("YT8M_NOTIFY")
    monkeypatch.setenv("YT8M_NOTIFY_FILE", str(path))
    with notify_when_done("yt8m demo"):
        (line,) = printed()
        assert line.startswith(f"yt8m: {path}: no notification will be sent: this file cannot be read (")
    assert printed() == []


@pytest.mark.parametrize(
    ("ranks", "sends"),
    [
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "1", "LOCAL_RANK": "1"}, False),
        ({"RANK": "8", "LOCAL_RANK": "0"}, False),
        ({"LOCAL_RANK": "1"}, False),
        ({"NODE_RANK": "1"}, False),
    ],
)
def test_only_the_first_process_sends_messages(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch, ranks: dict[str, str], sends: bool
) -> None:
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, rank in ranks.items():
        monkeypatch.setenv(name, rank)
    with notify_when_done("yt8m demo"):
        pass
    assert len(inbox.received) == sends


# --- Commands --------------------------------------------------------------------------------------------------------


def test_run_sends_its_scores(inbox: Inbox, finished_run: FinishedRun, tiny_dataset: Path, tiny_recipe: Path) -> None:
    where = [tiny_recipe, "--data", tiny_dataset, "--out", finished_run.out]
    succeeds("run", *where)
    (message,) = inbox.received
    assert message["title"] == f"yt8m run {tiny_recipe} --out {finished_run.out}: finished"
    table = re.search(r"│ ensemble +│ ensemble +│ +(0\.\d{4}) │ +(0\.\d{4}) │", finished_run.outcome.out)
    assert table
    assert message["message"].startswith(f"MAP@100,000 {table[1]}, dense MAP {table[2]}\n")


def test_pretrain_and_finetune_send_their_metrics(
    inbox: Inbox, finished_run: FinishedRun, tiny_dataset: Path, tiny_recipe: Path
) -> None:
    where = ["--data", tiny_dataset, "--out", finished_run.out]
    for stage, model in (("pretrain", "dbof"), ("finetune", "bare")):
        succeeds(stage, tiny_recipe, model, *where)
        message = inbox.received.pop()
        assert message["title"].startswith(f"yt8m {stage} {tiny_recipe} {model} ")
        reported = re.search(rf"^{stage} {model}: (.*) at step", finished_run.outcome.err, re.MULTILINE)
        assert reported
        assert message["message"].startswith(f"{reported[1]}\n")


def test_a_failed_command_sends_its_error(inbox: Inbox, tmp_path: Path) -> None:
    error = refused(2, "run", "demo", "--data", tmp_path / "nowhere", "--out", tmp_path / "out")
    (message,) = inbox.received
    assert message["title"].endswith(": failed")
    assert message["message"].startswith(f"{error}\n")


def test_demo_sends_its_error(inbox: Inbox, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    refused(2, "demo", tmp_path)
    assert inbox.received[0]["title"] == f"yt8m demo {tmp_path}: failed"


def test_ctrl_c_sends_a_message(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_dataset: Path, tiny_recipe: Path
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("yt8m.runs.run.Run.run", interrupted)
    ended = command("run", tiny_recipe, "--data", tiny_dataset, "--out", tmp_path)
    assert ended.status == 130
    assert ended.err.strip().startswith("yt8m: Interrupted. ")
    assert inbox.received[0]["title"].endswith(": stopped")
