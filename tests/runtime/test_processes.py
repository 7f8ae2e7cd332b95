"""Processes of a run: those of SLURM, and the death of one of several."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command import refused, succeeds
from tests.support.processes import children, environment, run_python, wait_for_the_end, wait_until
from tests.support.tiny_run import FinishedRun
from yt8m.errors import UsageError
from yt8m.runtime.environment import is_first_process
from yt8m.runtime.processes import adopt_srun_tasks, launched_world_size

RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
JOB = {
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NAME": "train",
    "SLURM_NTASKS": "2",
    "SLURM_NNODES": "1",
    "SLURM_NODELIST": "localhost",
    "SLURM_NODEID": "0",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}
"""What SLURM sets in a script of `sbatch --ntasks=2`."""
STEP = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1"}
STEP |= {"SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_TASKS_PER_NODE": "2"}
"""What `srun` adds in its tasks."""


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The variables of a job."""
    for name in RANKS:
        monkeypatch.setenv(name, "")  # so that monkeypatch restores the variable
        monkeypatch.delenv(name)
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_a_batch_script_without_srun_is_one_process(slurm: pytest.MonkeyPatch) -> None:
    adopt_srun_tasks()
    assert (launched_world_size(), is_first_process()) == (1, True)
    assert "LOCAL_RANK" not in os.environ


def test_tasks_of_srun_are_the_processes(slurm: pytest.MonkeyPatch) -> None:
    more = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "gpu[07-08]"}
    more |= {"SLURM_STEP_TASKS_PER_NODE": "4(x2)", "SLURM_NODEID": "1", "SLURM_LOCALID": "3", "SLURM_PROCID": "7"}
    for name, value in (STEP | more).items():
        slurm.setenv(name, value)
    assert launched_world_size() == 8
    adopt_srun_tasks()
    assert (launched_world_size(), is_first_process()) == (8, False)
    found = {name: os.environ.get(name) for name in RANKS if name != "MASTER_PORT"}
    assert found == {
        "RANK": None,
        "LOCAL_RANK": "3",
        "NODE_RANK": "1",
        "WORLD_SIZE": "8",
        "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "gpu07",
    }


def test_torchrun_inside_srun_keeps_its_own_processes(slurm: pytest.MonkeyPatch) -> None:
    for name, value in (STEP | {"LOCAL_RANK": "5", "WORLD_SIZE": "16", "SLURM_STEP_NUM_TASKS": "2"}).items():
        slurm.setenv(name, value)
    adopt_srun_tasks()
    assert (launched_world_size(), os.environ["LOCAL_RANK"]) == (16, "5")


def test_nodes_with_different_numbers_of_tasks_are_refused(slurm: pytest.MonkeyPatch) -> None:
    for name, value in (STEP | {"SLURM_STEP_NUM_TASKS": "3", "SLURM_STEP_NUM_NODES": "2"}).items():
        slurm.setenv(name, value)
    with pytest.raises(UsageError, match=r"^srun started 3 tasks on 2 nodes; start the same number on each"):
        adopt_srun_tasks()


def test_a_run_in_a_batch_script(
    slurm: pytest.MonkeyPatch, finished_run: FinishedRun, tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    succeeds("run", tiny_recipe, "--data", tiny_dataset, "--out", out, "--only", "pretrain/dbof")
    name = "pretrain/dbof/model/model.safetensors"
    assert (out / name).read_bytes() == (finished_run.out / name).read_bytes()
    for variable, value in STEP.items():
        slurm.setenv(variable, value)
    sentence = refused(2, "find-lr", tiny_recipe, "dbof", "--data", tiny_dataset, "--out", out)
    assert sentence.startswith("find-lr runs as one process")


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-W", "ignore", "-m", "yt8m", *map(str, arguments)]


def started(arguments: list[str], log: Path, **variables: str) -> subprocess.Popen[bytes]:
    """Start a command whose output goes to a file."""
    with log.open("ab") as file:
        return subprocess.Popen(arguments, stdout=file, stderr=file, env=environment(**variables))


@pytest.mark.slow
def test_two_tasks_of_srun_train_one_model(
    tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path, finished_run: FinishedRun
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    run = command("run", tiny_recipe, "--data", tiny_dataset, "--out", out, "--only", "pretrain/dbof")
    ranks = [{"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(2)]
    processes = [started(run, log, **JOB | STEP | rank) for rank in ranks]
    assert [process.wait(300) for process in processes] == [0, 0], log.read_text()
    shown = log.read_text()
    assert shown.count("pretrain dbof: loss") == 1
    assert "MEMBER: 2/2" in shown


class Training:
    """A run of two processes that trains for ever, and has done some steps.

    Args:
        launcher: "fabric" starts the second process from the first, "torchrun" both.
        more: Further settings.
    """

    def __init__(self, launcher: str, dataset: Path, recipe: Path, folder: Path, *more: str) -> None:
        self.log, out = folder / "log", folder / "out"
        settings = ["base_models.dbof.training.steps=100000", *more]
        if launcher == "fabric":
            settings.append("machine.devices=2")
        options = [word for setting in settings for word in ("--set", setting)]
        run = command("run", recipe, "--data", dataset, "--out", out, *options)
        if launcher == "torchrun":
            run[3:4] = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
        self.main = started(run, self.log)
        metrics = out / "pretrain/dbof/metrics.csv"

        def is_training() -> bool:
            assert self.main.poll() is None, self.log.read_text()
            return metrics.is_file() and len(metrics.read_text().splitlines()) > 3

        wait_until(is_training, "training", 240)
        # The workers of the first process are younger than the second process.
        self.others = sorted(children(self.main.pid))
        grandchildren = [grandchild for child in self.others for grandchild in children(child)]
        self.all = [self.main.pid, *self.others, *grandchildren]

    def ended(self) -> tuple[int, list[str]]:
        """The exit status, and the messages, when all processes have ended."""
        status = self.main.wait(60)
        wait_for_the_end(self.all)
        lines = self.log.read_text().splitlines()
        return status, [line for line in lines if line.startswith("yt8m: ") or "Error" in line or "gloo/" in line]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("more", ["machine.num_workers=0", "machine.num_workers=1"])
def test_a_killed_process_is_named_and_the_other_one_ends(
    rank: int, more: str, tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    training = Training("fabric", tiny_dataset, tiny_recipe, tmp_path, more)
    killed = [training.main.pid, training.others[0]][rank]
    os.kill(killed, signal.SIGKILL)
    status, (message,) = training.ended()
    assert status == (1 if rank else -signal.SIGKILL)
    assert message.startswith(f"yt8m: Process {rank} of 2 (pid {killed} on ")
    assert message.endswith("probably because the memory ran out; the same command resumes.")
    assert ("it was killed (SIGKILL)" in message) == bool(rank)


@pytest.mark.slow
def test_a_killed_process_of_torchrun_is_named(tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    training = Training("torchrun", tiny_dataset, tiny_recipe, tmp_path)
    os.kill(training.others[1], signal.SIGKILL)
    status, messages = training.ended()
    assert status == 1
    assert [message[:20] for message in messages if message.startswith("yt8m: ")] == ["yt8m: Process 1 of 2"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["fabric", "torchrun"])
def test_a_signal_or_the_death_of_the_launcher_stops_all(
    launcher: str, tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    training = Training(launcher, tiny_dataset, tiny_recipe, tmp_path)
    training.main.send_signal(signal.SIGUSR1 if launcher == "fabric" else signal.SIGKILL)
    status, (message,) = training.ended()
    assert status == (75 if launcher == "fabric" else -signal.SIGKILL)
    assert "pretrain/dbof: stopped after step " in message


@pytest.mark.slow
def test_the_error_of_one_process_is_the_only_message(tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    """Only the first process of a run looks for damage while the other one waits."""
    data = tmp_path / "data"
    data.mkdir()
    for part in tiny_dataset.iterdir():
        (data / part.name).symlink_to(part)
    (data / "video").unlink()
    for part in ("train", "valid"):
        (data / "video" / part).mkdir(parents=True)
        for shard in (tiny_dataset / "video" / part).glob("*.tfrecord"):
            content = bytearray(shard.read_bytes())
            content[5000] ^= 1
            (data / "video" / part / shard.name).write_bytes(content)
    ended = run_python(
        "-m", "yt8m", "run", tiny_recipe, "--data", data, "--out", tmp_path / "out", "--set", "machine.devices=2"
    )
    messages = [line for line in ended.err.splitlines() if line.startswith("yt8m: ")]
    assert (ended.status, len(messages)) == (1, 1), ended.err
    assert "checksum" in messages[0]
    assert "Traceback" not in ended.err


@pytest.mark.slow
def test_a_process_that_fails_at_its_start_ends_the_first_one(
    tiny_dataset: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    script = tmp_path / "failing.py"
    script.write_text(
        """
import os, signal, sys
from yt8m.cli.main import main
if "LOCAL_RANK" in os.environ:
    if sys.argv[-1] == "machine.devices=2":
        sys.exit(7)
    os.kill(os.getpid(), signal.SIGKILL)
main()
"""
    )
    options = ["run", tiny_recipe, "--data", tiny_dataset, "--out", tmp_path / "out", "--set"]
    ended = run_python(script, *options, "machine.devices=2")
    assert (ended.status, [line for line in ended.err.splitlines() if line.startswith("yt8m")]) == (7, [])
    ended = run_python(script, *options, "machine.devices=3")
    assert ended.status == 1
    assert re.match(r"yt8m: Process [12] of this node was killed \(SIGKILL\) at its start", ended.err.splitlines()[-1])
