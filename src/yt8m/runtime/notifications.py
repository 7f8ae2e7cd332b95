"""Notifications at the end of a run: to Telegram, Slack, mail and the other services that apprise supports.

Destinations are URLs with tokens and passwords: they come from the environment or a private file, and only their scheme
is ever printed. A subprocess sends the messages; its output is discarded, so that no library can log a secret, and it
is killed when it hangs.
"""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from yt8m.errors import Interrupted, Stopped, Yt8mError
from yt8m.runtime.console import format_duration
from yt8m.runtime.environment import is_first_process

VARIABLE = "YT8M_NOTIFY"
"""Environment variable: apprise URLs, separated by white space; an empty value turns notifications off."""
FILE_VARIABLE = "YT8M_NOTIFY_FILE"
"""Environment variable: file of URLs, read if `YT8M_NOTIFY` is not set. Default: `~/.config/yt8m/notify`."""
TIMEOUT_SECONDS = 20.0
"""Timeout for sending to all destinations together."""
MAX_CHARACTERS = 1000
"""Longer texts are truncated; services refuse messages above their own limits."""


@dataclass
class Notification:
    """The message that a run sends when it succeeds; set `result` before the run ends."""

    result: str = ""


@dataclass(frozen=True)
class _Destination:
    """A URL, which is secret, and where it was configured, for messages."""

    url: str = field(repr=False)
    place: str

    @property
    def scheme(self) -> str:
        return self.url.partition("://")[0].lower()


@contextmanager
def notify_when_done(title: str) -> Iterator[Notification]:
    """Send a message when the block ends, successfully or not; exceptions pass unchanged.

    Only the first process of a run sends it. Problems with destinations are printed on standard error, at the start if
    they can be detected then, and never raised.
    """
    destinations = _usable_destinations() if is_first_process() else []
    notification = Notification()
    started = time.monotonic()

    def send(outcome: str, kind: str, text: str) -> None:
        place = f"{socket.gethostname()}, after {format_duration(time.monotonic() - started)}"
        body = f"{text[:MAX_CHARACTERS]}\n{place}".strip()
        # Ctrl-C cancels the message and does not change how the run ended.
        with suppress(KeyboardInterrupt):
            message = {"title": f"{title}: {outcome}", "body": body, "notify_type": kind}
            for destination in _undelivered(destinations, message):
                _warn(f"the notification to {destination.scheme} could not be sent.")

    try:
        yield notification
    except KeyboardInterrupt:
        send("stopped", "warning", "Interrupted; the same command resumes from the last checkpoint.")
        raise
    except BaseException as error:
        outcome, kind = ("stopped", "warning") if isinstance(error, Interrupted | Stopped) else ("failed", "failure")
        send(
            outcome, kind, str(error) if isinstance(error, Yt8mError | Stopped) else f"{type(error).__name__}: {error}"
        )
        raise
    send("finished", "success", notification.result)


def _usable_destinations() -> list[_Destination]:
    """Destinations that can be used; print a warning for each of the others."""
    destinations = _destinations()
    if destinations and importlib.util.find_spec("apprise") is None:
        _warn("no notification will be sent: apprise is not installed; pip install 'yt8m[notifications]'.")
        return []
    unknown = _undelivered(destinations, None)
    for destination in unknown:
        _warn(f"{destination.place}: no notification will be sent there: apprise does not support this URL.")
    return [destination for destination in destinations if destination not in unknown]


def _destinations() -> list[_Destination]:
    if VARIABLE in os.environ:
        urls = os.environ[VARIABLE].split()
        return [_Destination(url, f"{VARIABLE}, URL {number}") for number, url in enumerate(urls, start=1)]
    named = os.environ.get(FILE_VARIABLE)
    settings = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    # A user without a home has no such file; `Path.expanduser` would raise.
    path = Path(os.path.expanduser(named or f"{settings}/yt8m/notify"))  # noqa: PTH111
    try:
        if not (named or path.exists()):
            return []
        lines = path.read_text(encoding="utf-8").splitlines()
        is_private = not path.stat().st_mode & 0o077
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        _warn(f"{path}: no notification will be sent: this file cannot be read ({reason}).")
        return []
    if not is_private:
        _warn(f"{path}: other users can read this file, which contains secrets: chmod 600 {path}")
    return [
        _Destination(line.strip(), f"{path}, line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip() and not line.lstrip().startswith("#")
    ]


def _undelivered(destinations: Sequence[_Destination], message: dict[str, str] | None) -> list[_Destination]:
    """Send a message, or only validate the URLs if there is none; return the destinations that failed."""
    if not destinations:
        return []
    task = json.dumps({"urls": [destination.url for destination in destinations], "message": message})
    try:
        delivered = subprocess.run(
            # -P: do not import modules from the working folder.
            [sys.executable, "-P", "-m", "yt8m.runtime.notifications"],
            input=task.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=TIMEOUT_SECONDS,
            check=False,
        ).stdout
    except subprocess.TimeoutExpired as expired:
        delivered = expired.stdout or b""
    except OSError:
        delivered = b""
    numbers = delivered.split()
    return [destination for number, destination in enumerate(destinations) if str(number).encode() not in numbers]


def _deliver() -> None:
    """Subprocess of `_undelivered`: read URLs and message from standard input, print the number of each URL that worked."""
    import apprise

    task = json.load(sys.stdin)
    asset = apprise.AppriseAsset(app_id="yt8m", app_desc="yt8m", storage_mode="memory")

    def deliver(number: int) -> None:
        service = apprise.Apprise.instantiate(task["urls"][number], asset=asset)
        works = service is not None
        if works and task["message"] is not None:
            client = apprise.Apprise(asset=asset)
            client.add(service)
            works = bool(client.notify(**task["message"], body_format="text"))
        if works:
            print(f"{number}\n", end="", flush=True)  # noqa: T201

    with ThreadPoolExecutor(len(task["urls"])) as pool:
        list(pool.map(deliver, range(len(task["urls"]))))


def _warn(message: str) -> None:
    print(f"yt8m: {message}", file=sys.stderr)  # noqa: T201 - like the errors of commands


if __name__ == "__main__":
    _deliver()
