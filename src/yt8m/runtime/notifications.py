"""A message when a run ends or fails, to Telegram, Slack, mail or whatever else apprise can reach.

Destinations are URLs that hold tokens and passwords, so they come from the environment or from a private file, and
nothing of them but the scheme is ever said. They are used in a process of their own, whose output goes nowhere: what
the libraries in there log is lost with it, and when it hangs it is killed.
"""

from __future__ import annotations

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

from yt8m.errors import Interrupted, Yt8mError

VARIABLE = "YT8M_NOTIFY"
"""Environment variable: apprise URLs, between them white space. Set to nothing, it turns messages off."""
FILE_VARIABLE = "YT8M_NOTIFY_FILE"
"""Environment variable: the file to read without the former; `notify` in the user's folder of settings if not set."""
TIMEOUT_SECONDS = 20.0
"""What all messages of a run may take together."""
MAX_CHARACTERS = 1000
"""Where the text of a message is cut; services refuse what is too long for them."""

_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")


@dataclass
class Announcement:
    """What a message will say of a run that ended well; whoever runs it fills that in."""

    result: str = ""


@dataclass(frozen=True)
class _Destination:
    """A URL, which nobody may see, and where it stands, for people."""

    url: str = field(repr=False)
    place: str

    @property
    def scheme(self) -> str:
        return self.url.partition("://")[0].lower()


@contextmanager
def announced(title: str) -> Iterator[Announcement]:
    """Send a message when what happens inside ends, however it ends; exceptions pass unchanged.

    Only the first process of a run sends one. What keeps messages from being sent is said on standard error: now, where
    it is known now, and never as an error.

    Args:
        title: What runs, for the message's first line.
    """
    destinations = _usable_destinations() if all(os.environ.get(rank, "0") == "0" for rank in _RANKS) else []
    announcement = Announcement()
    started = time.monotonic()

    def send(outcome: str, kind: str, text: str) -> None:
        place = f"{socket.gethostname()}, after {_duration(time.monotonic() - started)}"
        body = f"{text[:MAX_CHARACTERS]}\n{place}".strip()
        # Ctrl-C gives up on the message, and changes nothing about how the run ended.
        with suppress(KeyboardInterrupt):
            for destination in _unreached(
                destinations, {"title": f"{title}: {outcome}", "body": body, "notify_type": kind}
            ):
                _say(f"the message to {destination.scheme} could not be sent.")

    try:
        yield announcement
    except Interrupted as error:
        send("stopped", "warning", str(error))
        raise
    except KeyboardInterrupt:
        send("stopped", "warning", "Interrupted; the same command goes on from the last checkpoint.")
        raise
    except Yt8mError as error:
        send("failed", "failure", str(error))
        raise
    except BaseException as error:
        send("failed", "failure", f"{type(error).__name__}: {error}")
        raise
    send("finished", "success", announcement.result)


def _usable_destinations() -> list[_Destination]:
    """Destinations that messages can go to, after a sentence about each that they cannot."""
    destinations = _destinations()
    if destinations and importlib.util.find_spec("apprise") is None:
        _say("no message will be sent, since apprise is not installed: pip install 'yt8m[notifications]'.")
        return []
    unknown = _unreached(destinations, None)
    for destination in unknown:
        _say(f"{destination.place}: no message will be sent there, since it is no URL that apprise knows.")
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
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        _say(f"{path}: no message will be sent, since this file cannot be read ({reason}).")
        return []
    if not is_private:
        _say(f"{path}: others may read this file, and it holds secrets: chmod 600 {path}")
    return [
        _Destination(line.strip(), f"{path}, line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip() and not line.lstrip().startswith("#")
    ]


def _unreached(destinations: Sequence[_Destination], message: dict[str, str] | None) -> list[_Destination]:
    """Send a message, or without one only see what apprise makes of the URLs; return where that did not work."""
    if not destinations:
        return []
    task = json.dumps({"urls": [destination.url for destination in destinations], "message": message})
    try:
        reached = subprocess.run(
            # -P: modules that lie in the working folder are not ours.
            [sys.executable, "-P", "-m", "yt8m.runtime.notifications"],
            input=task.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=TIMEOUT_SECONDS,
            check=False,
        ).stdout
    except subprocess.TimeoutExpired as expired:
        reached = expired.stdout or b""
    except OSError:
        reached = b""
    numbers = reached.split()
    return [destination for number, destination in enumerate(destinations) if str(number).encode() not in numbers]


def _deliver() -> None:
    """Do what `_unreached` asks for on standard input, and print the number of each URL with which it worked."""
    import apprise

    task = json.load(sys.stdin)
    asset = apprise.AppriseAsset(app_id="yt8m", app_desc="yt8m", storage_mode="memory")

    def works(url: str) -> bool:
        service = apprise.Apprise.instantiate(url, asset=asset)
        if service is None or task["message"] is None:
            return service is not None
        postman = apprise.Apprise(asset=asset)
        postman.add(service)
        return bool(postman.notify(**task["message"], body_format="text"))

    def report(number: int) -> None:
        if works(task["urls"][number]):
            print(f"{number}\n", end="", flush=True)  # noqa: T201

    with ThreadPoolExecutor(len(task["urls"])) as pool:
        list(pool.map(report, range(len(task["urls"]))))


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _say(sentence: str) -> None:
    print(f"yt8m: {sentence}", file=sys.stderr)  # noqa: T201 - plain, as the errors of commands


if __name__ == "__main__":
    _deliver()
