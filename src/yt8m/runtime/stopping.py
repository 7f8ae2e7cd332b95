"""Graceful stop of a loop that has a state to save: a signal ends it after the current step, with a checkpoint.

A signal to any process stops all of them at the same step: at every step the processes sum their flags with an
asynchronous all-reduce, whose result the next step reads, so that no step waits for it.
"""

import signal
from contextlib import ExitStack
from typing import Self

import torch
from lightning_fabric import Fabric

from yt8m.runtime.signals import handled


class StopRequested(Exception):  # noqa: N818 - control flow, no error
    """All processes stop here."""


class StopRequest:
    """Handles signals to stop (see `signals`) while it is entered; a second Ctrl-C raises KeyboardInterrupt at once.

    A signal that arrives too late to be seen by `requested` is raised again at the end, for the handler before.
    All processes must call `requested` and `check` equally often and in the same order.

    Args:
        fabric: Launched; its processes stop together.
    """

    def __init__(self, fabric: Fabric) -> None:
        self._received: signal.Signals | None = None
        self._handlers = ExitStack()
        self._sum = torch.zeros(1)
        self._work: torch.distributed.Work | None = None
        # A group of its own: the default group of GPUs cannot reduce tensors in CPU memory.
        self._group = torch.distributed.new_group(backend="gloo") if fabric.world_size > 1 else None

    def __enter__(self) -> Self:
        self._handlers.enter_context(handled(self._handle))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        self._handlers.close()

    def close(self) -> None:
        """End the handling before the block does, on all processes: there is nothing left to save."""
        with self._handlers:
            if self._group is not None:
                if self._reduced():
                    self._received = self._received or signal.SIGTERM
                torch.distributed.destroy_process_group(self._group)
                self._group = None
        if self._received is not None:
            number, self._received = self._received, None
            signal.raise_signal(number)

    def _handle(self, number: signal.Signals) -> None:
        if self._received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = number

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
            return self._received is not None
        if self._reduced():
            return True
        self._sum.fill_(self._received is not None)
        self._work = torch.distributed.all_reduce(self._sum, group=self._group, async_op=True)
        return False

    def check(self) -> None:
        """Raise if `requested`.

        Raises:
            StopRequested: A process received a signal.
        """
        if self.requested():
            raise StopRequested
