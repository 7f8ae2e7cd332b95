"""Asked to stop: SIGTERM (preemption) and Ctrl-C end a run after its step, with everything saved.

A signal to any one of several processes stops all of them at the same step: each adds its flag to a sum over all
processes. That sum is asked for at one step and looked at in the next, so nobody waits for it.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

import torch
from lightning_fabric import Fabric

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequestedError(Exception):
    """All processes have agreed to stop here; the loop saves and leaves."""


class StopRequest:
    """Takes over SIGTERM and Ctrl-C while it is entered; a second Ctrl-C interrupts at once, as ever.

    All processes call `requested` and `check` equally often and in the same order.

    Args:
        fabric: Launched; its processes stop together.
    """

    def __init__(self, fabric: Fabric) -> None:
        self._asked = False
        self._former: dict[signal.Signals, Any] = {}
        self._sum = torch.zeros(1)
        self._work: torch.distributed.Work | None = None
        # A group of its own: on a GPU the processes' other group knows no sums in the memory of the CPU.
        self._group = torch.distributed.new_group(backend="gloo") if fabric.world_size > 1 else None

    def __enter__(self) -> Self:
        # Python hands signals to the main thread only; whoever trains in another keeps what there is.
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._ask) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, former in self._former.items():
            signal.signal(number, former)
        if self._group is not None and kind is None:
            self._agreed()
            torch.distributed.destroy_process_group(self._group)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True

    def _agreed(self) -> bool:
        """Whether any process had been asked when the last sum was begun."""
        if self._work is None:
            return False
        self._work.wait()
        self._work = None
        return bool(self._sum.item())

    def requested(self) -> bool:
        """Whether to stop now, the same answer on every process."""
        if self._group is None:
            return self._asked
        if self._agreed():
            return True
        self._sum.fill_(self._asked)
        self._work = torch.distributed.all_reduce(self._sum, group=self._group, async_op=True)
        return False

    def check(self) -> None:
        """Raise where `requested` would say yes.

        Raises:
            StopRequestedError: Some process was asked to stop.
        """
        if self.requested():
            raise StopRequestedError
