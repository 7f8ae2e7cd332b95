"""Text for the terminal."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.processes import environment
from yt8m.runtime.console import err, format_duration, out, wide


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.4, "0 s"),
        (59.6, "1 min 0 s"),
        (754, "12 min 34 s"),
        (8000, "2 h 13 min"),
        (90_000, "25 h 0 min"),
        (172_800, "2 d 0 h"),
        (273_700, "3 d 4 h"),
    ],
)
def test_durations_are_formatted_with_two_units(seconds: float, expected: str) -> None:
    assert format_duration(seconds) == expected


def test_a_wide_table_is_not_wrapped_on_a_narrow_terminal() -> None:
    assert wide(1000).width == 1000


def test_control_characters_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    out.print("a\x1b[31mb\x9b2J\nc")
    err.print("shard\x1b]0;title\x07.tfrecord: damaged")
    shown = capsys.readouterr()
    assert shown.out == "a\ufffd[31mb\ufffd2J\nc\n"
    assert shown.err == "shard\ufffd]0;title\ufffd.tfrecord: damaged\n"


@pytest.mark.parametrize(
    ("encoding", "expected"), [("utf-8", b"\xff \xe6\x97\xa5"), ("cp1252", b"? ?"), ("ascii", b"? ?")]
)
def test_characters_that_cannot_be_encoded_are_replaced(encoding: str, expected: bytes) -> None:
    code = "from yt8m.runtime.console import *; replace_unprintable(); out.print('\\udcff \u65e5'); print('\\udcff \u65e5')"
    variables = environment(PYTHONIOENCODING=encoding)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=variables)
    assert ended.stdout.splitlines() == [expected] * 2
