"""Several processes train one model: the same weights everywhere, and every held-out example counted once."""

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

from tests.training.tiny_tasks import CONFIG, segment_case, video_case
from yt8m.dataset.loading import Share
from yt8m.errors import UsageError
from yt8m.models.saved import load_model
from yt8m.settings import validated
from yt8m.training.loop import fit
from yt8m.training.machine import MachineConfig, make_fabric
from yt8m.training.metrics_log import read_metrics


def test_one_process_on_the_cpu() -> None:
    fabric = make_fabric(MachineConfig(accelerator="cpu"))
    assert (fabric.world_size, fabric.global_rank, fabric.device.type) == (1, 0, "cpu")
    with fabric.autocast():
        assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.float32


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_devices_that_are_not_there_are_refused() -> None:
    with pytest.raises(UsageError, match=r"^machine: .*CUDA") as raised:
        make_fabric(MachineConfig(accelerator="cuda"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "values", [{"accelerator": "tpu"}, {"devices": 0}, {"num_workers": -1}, {"precision": "16-true"}, {"device": 1}]
)
def test_impossible_machines_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=rf"^machine: .*'{next(iter(values))}'"):
        validated(MachineConfig, values, "machine")


class OfTwo(torch.utils.data.Dataset[list[Any]]):
    """The batches of both of two processes."""

    def __init__(self, task: Any) -> None:
        self.shares = [task.batches(Share(rank, 2)) for rank in range(2)]

    def __getitem__(self, step: int) -> list[Any]:
        return [share[step] for share in self.shares]


class TwoInOne:
    """A task that does in one process what two do: the mean of two losses, each with batch statistics of its own."""

    def __init__(self, task: Any) -> None:
        self.task = task
        self.evaluate, self.slow_parameters, self.save = task.evaluate, task.slow_parameters, task.save

    def batches(self, share: Share) -> OfTwo:
        return OfTwo(self.task)

    def loss(self, model: torch.nn.Module, batches: list[Any]) -> torch.Tensor:
        return torch.stack([self.task.loss(model, batch) for batch in batches]).mean()


def start_together(launcher: str, data: Path, folder: Path) -> None:
    """Run `tiny_tasks.together` as two processes, started in one of the ways there are."""
    module = ["-m", "tests.training.tiny_tasks", "together", str(data), str(folder)]
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
        assert process.returncode == 0, output.decode()[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "fabric", "by hand"])
def test_two_processes_do_what_one_does_in_two_halves(launcher: str, tiny_dataset: Path, tmp_path: Path) -> None:
    start_together(launcher, tiny_dataset, tmp_path)
    fabric = Fabric(accelerator="cpu", devices=1)
    config = CONFIG.model_copy(update={"peak_rate": 1e-3, "choose_by": "loss"})
    for name in ("video", "aware"):
        first, second = (torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True) for rank in range(2))
        assert first["world_size"] == second["world_size"] == 2
        assert first["metrics"] == second["metrics"]
        assert first["state"].keys() == second["state"].keys()
        for key in first["state"]:
            assert torch.equal(first["state"][key], second["state"][key]), key

        # Judged was the model that was saved, on every held-out example once.
        model, task = (
            video_case(tiny_dataset, 0.0) if name == "video" else segment_case(tiny_dataset, "aware", None, 0.0)
        )
        saved = load_model(tmp_path / name / "model")
        assert task.evaluate(fabric, saved) == pytest.approx(first["metrics"], rel=1e-6)

        fit(fabric, model, TwoInOne(task), config, tmp_path / f"{name}-alone", 3)
        for key, parameter in model.named_parameters():
            # A bias in front of a batch norm has no gradient but rounding, of which AdamW makes steps as large as any.
            if parameter.dim() > 1:
                torch.testing.assert_close(first["state"][key], parameter.detach(), rtol=1e-2, atol=1e-4, msg=key)
        ours, theirs = (read_metrics(tmp_path / folder / "metrics.csv") for folder in (name, f"{name}-alone"))
        for our_row, their_row in zip(ours, theirs, strict=True):
            assert our_row[:3] == their_row[:3]
            if our_row[0] == "train":
                assert our_row[3] == pytest.approx(their_row[3], rel=1e-3)
