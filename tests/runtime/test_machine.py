"""Devices and processes: settings, and distributed training with the same results as one process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric

from tests.support.tiny_tasks import DISTRIBUTED, distributed_case
from yt8m.errors import Interrupted, UsageError
from yt8m.models.saved import load_model
from yt8m.runtime.machine import MachineConfig, make_fabric
from yt8m.settings import validated
from yt8m.training.loop import Trainer
from yt8m.training.metrics_log import read_metrics


def test_the_default_on_the_cpu_is_one_process() -> None:
    fabric = make_fabric(MachineConfig(accelerator="cpu"))
    assert (fabric.world_size, fabric.global_rank, fabric.device.type) == (1, 0, "cpu")
    with fabric.autocast():
        assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.float32


def test_the_cpu_keeps_the_precision_of_float32() -> None:
    before = torch.get_float32_matmul_precision()
    make_fabric(MachineConfig(accelerator="cpu", float32_matmul_precision="medium"))
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
@pytest.mark.parametrize("precision", ["highest", "high"])
def test_a_gpu_multiplies_float32_with_the_configured_precision(precision: Any) -> None:
    make_fabric(MachineConfig(accelerator="cuda", float32_matmul_precision=precision))
    assert torch.get_float32_matmul_precision() == precision


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_missing_devices_are_refused() -> None:
    with pytest.raises(UsageError, match=r"^machine: .*CUDA") as raised:
        make_fabric(MachineConfig(accelerator="cuda"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "values",
    [
        {"accelerator": "tpu"},
        {"devices": 0},
        {"num_workers": -1},
        {"precision": "16-true"},
        {"float32_matmul_precision": "low"},
        {"device": 1},
    ],
)
def test_invalid_machine_settings_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=rf"^machine: .*'{next(iter(values))}'"):
        validated(MachineConfig, values, "machine")


# --- Compilers -------------------------------------------------------------------------------------------------------

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder of programs: there is no compiler in it."""
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def add_program(folder: Path, name: str) -> None:
    (folder / name).write_text("#!/bin/sh\n")
    (folder / name).chmod(0o755)


def test_an_empty_variable_names_no_compiler(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "")
    note = MachineConfig().uncompiled_note(CUDA)
    assert note is not None
    assert "no C compiler (gcc or clang)" in note


def test_gpus_compile_by_default_if_there_is_a_c_compiler(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = MachineConfig()
    assert not machine.compiles(CUDA)
    note = machine.uncompiled_note(CUDA)
    assert note is not None
    assert note.startswith(
        "This machine has no C compiler (gcc or clang), so training steps are not compiled and take "
    )
    add_program(tools, "g++")  # is of no use to Triton
    assert not machine.compiles(CUDA)
    add_program(tools, "clang")
    assert (machine.compiles(CUDA), machine.uncompiled_note(CUDA)) == (True, None)
    monkeypatch.setenv("CC", "absent")
    assert "no C compiler (absent)" in str(machine.uncompiled_note(CUDA))
    monkeypatch.setenv("CC", str(tools / "clang"))
    assert machine.compiles(CUDA)
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tools / "no"))
    assert "no C compiler with Python's headers (Python.h)" in str(machine.uncompiled_note(CUDA))


def test_what_is_not_compiled_needs_no_compiler(tools: Path) -> None:
    assert (MachineConfig().compiles(CPU), MachineConfig().uncompiled_note(CPU)) == (False, None)
    machine = MachineConfig(compile=False)
    assert (machine.compiles(CUDA), machine.uncompiled_note(CUDA)) == (False, None)
    assert MachineConfig(compile=True).compiles(torch.device("mps"))


@pytest.mark.parametrize(("device", "needed"), [(CUDA, "C compiler (gcc or clang)"), (CPU, "C++ compiler (g++)")])
def test_compiling_that_is_asked_for_needs_a_compiler(
    tools: Path, monkeypatch: pytest.MonkeyPatch, device: torch.device, needed: str
) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    machine = MachineConfig(compile=True)
    for question in (machine.compiles, machine.uncompiled_note):
        with pytest.raises(UsageError) as raised:
            question(device)
        assert str(raised.value) == (
            f"machine.compile: true needs a {needed}, and this machine has none; install one, or remove the setting."
        )
    add_program(tools, "gcc")
    add_program(tools, "g++")
    assert machine.compiles(device)


# --- Several processes -----------------------------------------------------------------------------------------------


def run_distributed(launcher: str, data: Path, folder: Path, stop: int | None = None) -> None:
    """Run `tiny_tasks.distributed` as two processes.

    With `stop`, the process of that rank receives SIGTERM during training, and both must exit as interrupted.
    """
    folder.mkdir(exist_ok=True)
    module = ["-m", "tests.support.tiny_tasks", "distributed", str(data), str(folder)]
    environment = {
        name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    }
    environment["OMP_NUM_THREADS"] = "1"
    if launcher == "torchrun":
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *module, "1"]
        processes = [(command, environment)]
    elif launcher == "fabric":
        processes = [([*module, "2"], environment)]
    else:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
        if stop is not None:
            place["STOP_RANK"] = str(stop)
        ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
        processes = [([*module, "1"], {**environment, **place, **rank}) for rank in ranks]
    started = [
        subprocess.Popen([sys.executable, *command], env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for command, variables in processes
    ]
    try:
        outputs = [process.communicate(timeout=300)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    for process, output in zip(started, outputs, strict=True):
        assert process.returncode == (0 if stop is None else Interrupted.exit_code), output.decode()[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "fabric", "by hand"])
def test_two_processes_have_the_same_results_as_one(launcher: str, tiny_dataset: Path, tmp_path: Path) -> None:
    """Losses agree to 1e-5, with dropout; every held-out example is counted once."""
    run_distributed(launcher, tiny_dataset, tmp_path)
    fabric = Fabric(accelerator="cpu", devices=1)
    for name, config in DISTRIBUTED.items():
        first, second = (torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True) for rank in range(2))
        assert first["world_size"] == second["world_size"] == 2
        assert first["metrics"] == second["metrics"]
        assert first["state"].keys() == second["state"].keys()
        for key in first["state"]:
            assert torch.equal(first["state"][key], second["state"][key]), key

        # The metrics are those of the saved model over every held-out example once.
        model, task = distributed_case(name, tiny_dataset, fabric)
        saved = load_model(tmp_path / name / "model")
        assert task.evaluate(fabric, saved) == pytest.approx(first["metrics"], rel=1e-6)

        Trainer(fabric, model, task, config, tmp_path / f"{name}-alone", 3).fit()
        ours, theirs = (read_metrics(tmp_path / folder / "metrics.csv") for folder in (name, f"{name}-alone"))
        assert [row[:3] for row in ours] == [row[:3] for row in theirs]
        losses = [
            (ours_[3], theirs_[3])
            for ours_, theirs_ in zip(ours, theirs, strict=True)
            if ours_[:3:2] == ("train", "loss")
        ]
        assert len(losses) == config.steps
        for distributed, single in losses:
            assert distributed == pytest.approx(single, rel=1e-5)


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_stops_both_and_they_resume_to_the_same_result(
    tiny_dataset: Path, tmp_path: Path
) -> None:
    uninterrupted, stopped = tmp_path / "uninterrupted", tmp_path / "stopped"
    run_distributed("by hand", tiny_dataset, uninterrupted)
    for rank in (0, 1):
        run_distributed("by hand", tiny_dataset, stopped, stop=rank)
    run_distributed("by hand", tiny_dataset, stopped)
    for name in DISTRIBUTED:
        for rank in range(2):
            one, other = (
                torch.load(folder / f"{name}-{rank}.pt", weights_only=True) for folder in (uninterrupted, stopped)
            )
            assert one["metrics"] == other["metrics"]
            for key in one["state"]:
                assert torch.equal(one["state"][key], other["state"][key]), key
        assert (uninterrupted / name / "metrics.csv").read_bytes() == (stopped / name / "metrics.csv").read_bytes()
