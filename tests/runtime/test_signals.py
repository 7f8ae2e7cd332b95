"""Signals end a command at once, wherever it is."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from yt8m.errors import Stopped, Yt8mError
from yt8m.runtime.signals import STOP_SIGNALS, stopped_by_signals


@pytest.fixture(autouse=True)
def _handlers_are_restored() -> Iterator[None]:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    yield
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def test_all_signals_of_terminals_and_job_schedulers_are_handled() -> None:
    assert {number.name for number in STOP_SIGNALS} == {"SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"}


def stopped(*numbers: signal.Signals) -> None:
    """Send the first signal in a block that it ends, and the others while that ends."""
    with stopped_by_signals():
        try:
            try:
                send(numbers[0])
            except Yt8mError:
                pytest.fail("taken for an error")
        finally:
            for number in numbers[1:]:
                send(number)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_ends_the_block_past_handlers_of_errors(number: signal.Signals) -> None:
    with pytest.raises(Stopped) as raised:
        stopped(number)
    assert str(raised.value) == f"Stopped by {number.name}; the same command continues with what is not finished."
    assert raised.value.exit_code == 75


def test_later_signals_do_not_disturb_the_end_but_a_second_ctrl_c_does() -> None:
    with pytest.raises(Stopped, match="SIGINT"):
        stopped(signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
    with pytest.raises(KeyboardInterrupt):
        stopped(signal.SIGTERM, signal.SIGINT)


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopped_by_signals():
            send(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_threads_run_without_handlers() -> None:
    found = []

    def run() -> None:
        with stopped_by_signals():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGTERM)]
