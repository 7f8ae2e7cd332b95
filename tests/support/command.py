"""Run the `yt8m` command in this process."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from unittest import mock

from yt8m.cli.main import main


@dataclass(frozen=True)
class Outcome:
    """The exit status of a command and its output."""

    status: int
    out: str
    err: str


def yt8m(*arguments: object) -> Outcome:
    """Run the command with these arguments; exceptions that `main` does not handle are bugs and propagate."""
    out, err = io.StringIO(), io.StringIO()
    status: object = 0
    argv = ["yt8m", *map(str, arguments)]
    with mock.patch.object(sys, "argv", argv), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as left:
            status = left.code or 0
    if not isinstance(status, int):
        raise TypeError(f"exit status {status!r}")
    return Outcome(status, out.getvalue(), err.getvalue())


def succeeds(*arguments: object) -> Outcome:
    """Run a command that must succeed."""
    outcome = yt8m(*arguments)
    assert outcome.status == 0, outcome.err
    return outcome


def refused(status: int, *arguments: object) -> str:
    """Run a command that must fail with this status and one sentence on standard error; return the sentence."""
    outcome = yt8m(*arguments)
    assert outcome.status == status, (outcome.status, outcome.out, outcome.err)
    *before, sentence = outcome.err.splitlines()
    assert not before, outcome.err
    assert sentence.startswith("yt8m: ")
    assert sentence.endswith(".")
    assert "Traceback" not in outcome.out + outcome.err
    return sentence.removeprefix("yt8m: ")
