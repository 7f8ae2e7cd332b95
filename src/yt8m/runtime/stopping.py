"""Graceful stop: SIGTERM (preemption) and Ctrl-C end a run after the current step, with a checkpoint.

A signal to any process stops all of them at the same step: at every step the processes sum their flags with an
asynchronous all-reduce, whose result the next step reads, so that no step waits for it.
"""

import signal
import threading
from types import FrameType
from typing import Any, Self

import torch
from lightning_fabric import Fabric

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequested(Exception):  # noqa: N818 - control flow, no error
    """All processes stop here."""


class StopRequest:
    """Handles SIGTERM and Ctrl-C while it is entered; a second Ctrl-C raises KeyboardInterrupt at once.

    All processes must call `requested` and `check` equally often and in the same order.

    Args:
        fabric: Launched; its processes stop together.
    """

    def __init__(self, fabric: Fabric) -> None:
        self._received = False
        self._previous_handlers: dict[signal.Signals, Any] = {}
        self._sum = torch.zeros(1)
        self._work: torch.distributed.Work | None = None
        # A group of its own: the default group of GPUs cannot reduce tensors in CPU memory.
        self._group = torch.distributed.new_group(backend="gloo") if fabric.world_size > 1 else None

    def __enter__(self) -> Self:
        # Python allows signal handlers in the main thread only; other threads run without.
        if threading.current_thread() is threading.main_thread():
            self._previous_handlers = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        if self._group is not None and kind is None:
            self._reduced()
            torch.distributed.destroy_process_group(self._group)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = True

    def _reduced(self) -> bool:
        """Whether any process had received a signal when the last all-reduce started."""
        if self._work is None:
            return False
        self._work.wait()
        self._work = None
        return bool(self._sum.item())

    def requested(self) -> bool:
        """Whether to stop now; the same on every process."""
        if self._group is None:
            return self._received
        if self._reduced():
            return True
        self._sum.fill_(self._received)
        self._work = torch.distributed.all_reduce(self._sum, group=self._group, async_op=True)
        return False

    def check(self) -> None:
        """Raise if `requested`.

        Raises:
            StopRequested: A process received a signal.
        """
        if self.requested():
            raise StopRequested
