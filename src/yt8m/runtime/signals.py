"""Signals that ask a command to stop: SIGTERM, Ctrl-C, SIGHUP and SIGUSR1, which SLURM can send before a time limit.

A command that is `stopped_by_signals` ends at once: its files are complete or absent, and the same command continues.
Loops that have a state to save handle the signals themselves (`yt8m.runtime.stopping`).
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from yt8m.errors import Stopped

STOP_SIGNALS = tuple(
    signal.Signals[name] for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1") if name in signal.Signals.__members__
)


@contextmanager
def handled(handle: Callable[[signal.Signals], None]) -> Iterator[dict[signal.Signals, Any]]:
    """Handle the signals to stop inside the block; SIGHUP stays ignored where it is (`nohup`).

    Python allows signal handlers in the main thread only; in another thread nothing changes.

    Yields:
        The previous handlers.
    """
    previous: dict[signal.Signals, Any] = {}

    def handler(number: int, _frame: FrameType | None) -> None:
        handle(signal.Signals(number))

    if threading.current_thread() is threading.main_thread():
        for number in STOP_SIGNALS:
            if number.name != "SIGHUP" or signal.getsignal(number) != signal.SIG_IGN:
                previous[number] = signal.signal(number, handler)
    try:
        yield previous
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """End the block at the first signal, wherever it is; a later Ctrl-C raises KeyboardInterrupt.

    Raises:
        Stopped: The process received a signal.
    """
    received = False

    def stop(number: signal.Signals) -> None:
        nonlocal received
        if not received:
            received = True
            raise Stopped(f"Stopped by {number.name}; the same command continues with what is not finished.")
        if number == signal.SIGINT:
            raise KeyboardInterrupt

    with handled(stop):
        yield


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Deliver signals to stop only after the block, in this thread and in the processes that it forks."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_signals() -> None:
    """Ignore signals to stop, which reach all processes of a terminal or a job: another process handles them."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
