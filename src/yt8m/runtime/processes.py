"""The processes (ranks) of a run: which were launched, starting more, and what happens when one of them dies.

A rank that dies leaves the others waiting in collective operations, which end minutes later or with errors of gloo or NCCL.
So each rank watches those of its node.
"""

from __future__ import annotations

import atexit
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from yt8m.errors import Stopped, UsageError, Yt8mError
from yt8m.runtime.signals import handled

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment

SECONDS_TO_END = 2.0
"""How long a process may take to end after another one was killed, or after the run; then it is killed."""
SECONDS_TO_FINISH = 25.0
"""The same where the other one may have ended by itself, and this one may be writing; `torchrun` allows 30 seconds."""

_LAUNCHER = "YT8M_LAUNCHER"
"""Environment variable: id of the process that started this one with `launch`."""


class _Process(NamedTuple):
    """Where a process runs: host and namespace of process ids, and its id there."""

    host: str
    namespace: str
    pid: int


def launched_world_size() -> int:
    """Number of processes that `torchrun`, `srun` or the user launched together."""
    if "LOCAL_RANK" in os.environ:
        return int(os.environ.get("WORLD_SIZE", "1"))
    return _srun_tasks()


def _srun_tasks() -> int:
    """Number of tasks that `srun` started; a script of `sbatch` has the variables of the job, but not those of a step."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) if "SLURM_STEP_ID" in os.environ else 1


def adopt_srun_tasks() -> None:
    """Make the tasks that `srun` started the processes of the run: set the variables that `torchrun` would set.

    Raises:
        UsageError: Some nodes have more tasks than others.
    """
    num_tasks = _srun_tasks()
    if num_tasks == 1 or "LOCAL_RANK" in os.environ:
        return
    given = os.environ
    num_nodes = int(given.get("SLURM_STEP_NUM_NODES", given.get("SLURM_NNODES", "1")))
    if num_tasks % num_nodes or "," in given.get("SLURM_STEP_TASKS_PER_NODE", ""):
        raise UsageError(
            f"srun started {num_tasks} tasks on {num_nodes} nodes; start the same number on each (--ntasks-per-node)."
        )
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

    nodes = given.get("SLURM_STEP_NODELIST", given.get("SLURM_NODELIST", "127.0.0.1"))
    # Jobs that share a node have different ids, and so have the steps of a job.
    port = 15000 + (int(given.get("SLURM_JOB_ID", "0")) * 7 + int(given["SLURM_STEP_ID"])) % 15000
    variables = {
        "MASTER_ADDR": SLURMEnvironment.resolve_root_node_address(nodes),
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(num_tasks),
        "LOCAL_WORLD_SIZE": str(num_tasks // num_nodes),
        "NODE_RANK": given.get("SLURM_NODEID", "0"),
        "LOCAL_RANK": given.get("SLURM_LOCALID", "0"),
    }
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def launch(fabric: Fabric, num_devices: int, num_nodes: int) -> None:
    """Connect the processes of a run, and start those of this node first if that is left to Fabric.

    Fabric would start them in the same way, but kill all of them without a word when one fails.
    """
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment

    environment = getattr(fabric.strategy, "cluster_environment", None)
    if isinstance(environment, LightningEnvironment) and not environment.creates_processes_externally:
        with _watched_until_connected(_start_processes(environment, num_devices, num_nodes)):
            fabric.launch()
    else:
        fabric.launch()


def _start_processes(
    environment: LightningEnvironment, num_devices: int, num_nodes: int
) -> list[subprocess.Popen[bytes]]:
    """Start this command once more for each further device of this node; they end with this process."""
    os.environ |= {
        "MASTER_ADDR": environment.main_address,
        "MASTER_PORT": str(environment.main_port),
        "NODE_RANK": str(environment.node_rank()),
        "WORLD_SIZE": str(num_devices * num_nodes),
        "LOCAL_RANK": "0",
    }
    main = sys.modules["__main__"].__spec__
    command = [sys.executable, *(["-m", main.name] if main else [str(Path(sys.argv[0]).absolute())]), *sys.argv[1:]]
    launcher = {_LAUNCHER: str(os.getpid())}
    processes = [
        subprocess.Popen(command, env={**os.environ, **launcher, "LOCAL_RANK": str(rank)})
        for rank in range(1, num_devices)
    ]
    atexit.register(_end, processes)
    return processes


@contextmanager
def _watched_until_connected(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """End this process when one of those that it waits for inside the block has failed."""
    connected = threading.Event()

    def watch() -> None:
        while not connected.wait(0.1):
            for rank, process in enumerate(processes, start=1):
                if status := process.poll():
                    if status < 0:
                        name = signal.Signals(-status).name
                        _print(
                            f"Process {rank} of this node was killed ({name}) at its start; the same command resumes."
                        )
                    _end(processes)
                    os._exit(max(status, 1))

    thread = threading.Thread(target=watch, name="watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        connected.set()
        thread.join()


def _print(sentence: str) -> None:
    print(f"yt8m: {sentence}", file=sys.stderr, flush=True)  # noqa: T201 - like the errors of commands


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait for processes that should have ended, and kill those that have not."""
    deadline = time.monotonic() + SECONDS_TO_END
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
    for process in processes:
        process.kill()
        process.wait()


def end_with_launcher() -> None:
    """End this process soon after the one that started it with `launch`, whatever it waits for then."""

    def wait(launcher: int) -> None:
        select.select([launcher], [], [])
        time.sleep(2 * SECONDS_TO_END)
        os._exit(1)

    if os.environ.get(_LAUNCHER) == str(os.getppid()) and hasattr(os, "pidfd_open"):
        threading.Thread(target=wait, args=(os.pidfd_open(os.getppid()),), daemon=True).start()


@contextmanager
def lost_processes_named(fabric: Fabric) -> Iterator[None]:
    """Inside the block, the death of a process ends the others of its node within seconds, with one message.

    A signal to stop that ends this process is passed on to those of this node, and the death of `torchrun` is such a
    signal. Processes of other nodes are noticed by their lost connections only. Needs Linux.

    Raises:
        Yt8mError: A process died; on all other processes but the first, SystemExit.
    """
    if fabric.world_size == 1:
        yield
        return
    import torch

    here = _Process(socket.gethostname(), _process_namespace(), os.getpid())
    everywhere: list[_Process] = [here] * fabric.world_size
    torch.distributed.all_gather_object(everywhere, here)
    others = {
        rank: process
        for rank, process in enumerate(everywhere)
        if process[:2] == here[:2] and rank != fabric.global_rank
    }
    with _Watch(fabric.global_rank, fabric.world_size, others) as watch, _signals_passed_on(others):
        try:
            yield
        except (Exception, Stopped) as error:
            if isinstance(error, Yt8mError):
                raise
            # A lost connection may be noticed first.
            if watch.noticed.wait(SECONDS_TO_END / 2 if _is_lost_connection(error) else 0):
                if watch.sentence:
                    raise Yt8mError(watch.sentence) from error
                sys.exit(watch.status)
            if isinstance(error, Exception) and _is_lost_connection(error):
                raise Yt8mError(
                    f"Process {fabric.global_rank} of {fabric.world_size} lost its connection to another one, which has "
                    "ended or is out of reach; the same command resumes."
                ) from error
            raise


def _process_namespace() -> str:
    """Distinguishes containers that share a host name."""
    try:
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - no path
    except OSError:
        return ""


def _is_lost_connection(error: BaseException) -> bool:
    """Whether an exception is of gloo or NCCL."""
    import torch

    return isinstance(error, RuntimeError) and (
        isinstance(error, torch.distributed.DistError) or "gloo" in str(error) or "Connection" in str(error)
    )


class _Watch:
    """A thread that waits for the end of the other processes of this node, and ends this one if it hangs then.

    After `noticed` is set, `sentence` says which one has ended, in the first process that is left (elsewhere, or where
    that one printed its own error, it is empty), and `status` is the status to exit with.

    Args:
        rank: Rank of this process.
        world_size: Number of processes.
        others: The other ones of this node, by rank.
    """

    def __init__(self, rank: int, world_size: int, others: Mapping[int, _Process]) -> None:
        self.noticed = threading.Event()
        self.sentence, self.status = "", 1
        self._rank, self._world_size, self._others = rank, world_size, others
        self._seconds = SECONDS_TO_FINISH
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._files: dict[int, int | None] = {}

    def __enter__(self) -> _Watch:
        if hasattr(os, "pidfd_open"):
            watched: list[tuple[int | None, int]] = [(rank, process.pid) for rank, process in self._others.items()]
            if "TORCHELASTIC_RUN_ID" in os.environ:
                watched.append((None, os.getppid()))
            for rank, pid in watched:
                with suppress(OSError):
                    self._files[os.pidfd_open(pid)] = rank
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        if self._files:
            self._thread.join()
        for file in self._files:
            os.close(file)

    def _run(self) -> None:
        waiting = select.poll()
        for file in self._files:
            waiting.register(file, select.POLLIN)
        while not (ended := waiting.poll(100)):
            if self._left.is_set():
                return
        lost = {self._files[file] for file, _ in ended}
        ranks = sorted(rank for rank in lost if rank is not None)
        if not ranks:
            # The launcher has ended: stop as at its signal.
            os.kill(os.getpid(), signal.SIGTERM)
            return
        if self._rank < min((rank for rank in self._others if rank not in ranks), default=self._world_size):
            self._explain(ranks[0], self._others[ranks[0]])
        self.noticed.set()
        # After the end of a run its processes end one after the other.
        if not self._left.wait(self._seconds):
            if self.sentence:
                _print(self.sentence)
            os._exit(self.status)

    def _explain(self, rank: int, process: _Process) -> None:
        cause = "if it printed no error, it was killed, probably because the memory ran out"
        # The process that started it knows how it ended.
        with suppress(ChildProcessError):
            ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is not None and ended.si_code == os.CLD_EXITED and ended.si_status:
                self.status = ended.si_status
                return
            if ended is not None and ended.si_status == signal.SIGKILL:
                self._seconds = SECONDS_TO_END
                cause = "it was killed (SIGKILL), probably because the memory ran out"
        self.sentence = (
            f"Process {rank} of {self._world_size} (pid {process.pid} on {process.host}) has ended, so the others were "
            f"stopped: {cause}; the same command resumes."
        )


@contextmanager
def _signals_passed_on(others: Mapping[int, _Process]) -> Iterator[None]:
    """Pass signals to stop on to other processes, then to the handlers before."""

    def pass_on(number: signal.Signals) -> None:
        for process in others.values():
            with suppress(OSError):
                os.kill(process.pid, signal.SIGTERM)
        signal.signal(number, previous[number])
        signal.raise_signal(number)

    with handled(pass_on) as previous:
        yield
