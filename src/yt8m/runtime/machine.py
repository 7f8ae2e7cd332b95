"""Devices, precision and processes of a run, through Lightning Fabric.

The settings load without torch and Fabric.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from yt8m.errors import UsageError
from yt8m.runtime.processes import adopt_srun_tasks, end_with_launcher, launch, launched_world_size
from yt8m.settings import Settings

if TYPE_CHECKING:
    import torch
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment


class MachineConfig(Settings):
    """Resources of a run.

    `precision` and `float32_matmul_precision` change results, `sync_batch_norm` may; the others change only rounding.
    """

    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Kind of device; `auto` uses a GPU if there is one."""
    devices: int = Field(default=1, ge=1, le=1024)
    """Devices per node."""
    num_nodes: int = Field(default=1, ge=1, le=2**16)
    """Number of nodes."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Data type of matrix products. Weights and losses are always float32. With `32-true`, GPUs may still multiply in
    TF32: see `float32_matmul_precision`."""
    float32_matmul_precision: Literal["highest", "high", "medium"] = "high"
    """Precision of float32 matrix products on a GPU, as in `torch.set_float32_matmul_precision`: `high` computes them in
    TF32 on NVIDIA GPUs since Ampere, `highest` in float32. CPUs always compute in float32."""
    num_workers: int = Field(default=0, ge=0, le=1024)
    """Worker processes that read batches ahead; 0 reads them between the steps. Batches do not depend on it."""
    compile: bool | None = None
    """Whether to compile the network with torch.compile (this takes a minute and a C++ compiler) and, on one GPU, to
    record the training step as a CUDA graph. Default: only on GPUs, if there is a C compiler."""
    sync_batch_norm: bool = True
    """Whether batch norm uses the statistics of the global batch, which gives the result of one process, or those of
    each process's slice, which saves two small all-reduces per layer. Has no effect on one process."""

    def compiles(self, device: torch.device) -> bool:
        """Whether to compile the network on this device.

        Raises:
            UsageError: `compile` is set, but there is no compiler.
        """
        wanted = compiles_by_default(device) if self.compile is None else self.compile
        missing = missing_compiler(device) if wanted else None
        if missing and self.compile:
            raise UsageError(
                f"machine.compile: true needs a {missing}, and this machine has none; install one, or remove the setting."
            )
        return wanted and not missing

    def uncompiled_note(self, device: torch.device) -> str | None:
        """What to tell the user where the default is to compile, but there is no compiler.

        Raises:
            UsageError: See `compiles`.
        """
        if self.compiles(device) or self.compile is not None or not compiles_by_default(device):
            return None
        return (
            f"This machine has no {missing_compiler(device)}, so training steps are not compiled and take several times as "
            "long (on an H100 15 to 36 ms instead of 1.4 to 3.8 ms); install one, or set machine.compile=false."
        )

    @property
    def matmul_dtype(self) -> torch.dtype:
        """Data type of matrix products in prediction, which runs without autocast."""
        import torch

        return {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(self.precision, torch.float32)

    def uses_cuda_graph(self, fabric: Fabric) -> bool:
        """Whether to record compiled steps as a CUDA graph: on one GPU, without gradient scaling."""
        on_one_gpu = fabric.device.type == "cuda" and fabric.world_size == 1
        return on_one_gpu and self.compiles(fabric.device) and self.precision != "16-mixed"

    def require_one_process(self, command: str) -> None:
        """Refuse a run of several processes, before any of them is started.

        Raises:
            UsageError: Several processes run already or are configured.
        """
        if launched_world_size() > 1 or self.devices * self.num_nodes > 1:
            raise UsageError(
                f"{command} runs as one process; start it alone, with --set machine.devices=1 and --set machine.num_nodes=1."
            )


def compiles_by_default(device: torch.device) -> bool:
    """Whether networks are compiled on this device unless `machine.compile` says otherwise."""
    return device.type == "cuda"


def missing_compiler(device: torch.device) -> str | None:
    """What torch.compile needs on a device and this machine lacks, as a noun; None if nothing is missing.

    Triton, which compiles for GPUs, needs a C compiler; for CPUs, PyTorch needs a C++ compiler. Both compile modules that
    include Python's headers.
    """
    if device.type == "cuda":
        noun, variable, names = "C compiler", "CC", ["gcc", "clang"]
    elif device.type == "cpu":
        noun, variable, names = "C++ compiler", "CXX", ["clang++" if sys.platform == "darwin" else "g++"]
    else:
        return None
    names = [named] if (named := os.environ.get(variable)) else names
    if not any(shutil.which(name) for name in names):
        return f"{noun} ({' or '.join(names)})"
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return f"{noun} with Python's headers (Python.h)"
    return None


def make_fabric(config: MachineConfig) -> Fabric:
    """Launch Fabric on the configured devices.

    Where processes were launched already, by `torchrun`, by `srun` or by hand (RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR
    and MASTER_PORT are set), each of them gets one device, and `devices` has no effect. Other variables of SLURM have no
    effect: a script of `sbatch` that does not use `srun` runs as configured.

    Raises:
        UsageError: The machine has no such devices, or `srun` started more processes on some nodes than on others.
    """
    import torch
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy

    end_with_launcher()
    adopt_srun_tasks()
    world_size = launched_world_size()
    launched = world_size > 1
    devices = config.devices
    if launched:
        devices = int(os.environ.get("LOCAL_WORLD_SIZE", world_size // config.num_nodes))
    distributed = launched or devices * config.num_nodes > 1
    try:
        fabric = Fabric(
            accelerator=config.accelerator,
            devices=devices,
            num_nodes=world_size // devices if launched else config.num_nodes,
            # Batch norm synchronizes its statistics itself: no buffers to broadcast.
            strategy=DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True) if distributed else "auto",
            precision=config.precision,
            plugins=_environment(),
        )
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"machine: {' '.join(str(error).split())}") from None
    if distributed:
        launch(fabric, devices, config.num_nodes)
    else:
        fabric.launch()
    if fabric.device.type == "cuda":
        torch.set_float32_matmul_precision(config.float32_matmul_precision)
    return fabric


def _environment() -> ClusterEnvironment | None:
    """What Fabric would take for tasks of `srun` are plain processes here; None lets it choose."""
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    in_slurm = any(name.startswith("SLURM_") for name in os.environ)
    return LightningEnvironment() if in_slurm and not TorchElasticEnvironment.detect() else None
