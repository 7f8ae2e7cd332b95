"""Where the arithmetic runs: devices, precision and processes, all of them Lightning Fabric's."""

from __future__ import annotations

import os
from typing import Literal

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from pydantic import Field

from yt8m.errors import UsageError
from yt8m.settings import Settings


class MachineConfig(Settings):
    """What a run may use. `precision` changes results and `sync_batch_norm` may; the rest changes nothing but rounding."""

    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Kind of device; `auto` takes a GPU where there is one."""
    devices: int = Field(default=1, ge=1)
    """Devices of each node."""
    num_nodes: int = Field(default=1, ge=1)
    """Nodes of the run."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Numbers of the matrix products; weights and losses are float32."""
    num_workers: int = Field(default=0, ge=0)
    """Processes that read ahead; 0 reads between the steps. Batches are the same with any number."""
    compile: bool | None = None
    """Whether the network is compiled (torch.compile), which takes a minute and a C++ compiler, and on one GPU a whole
    step recorded as a CUDA graph; where left out, on GPUs."""
    sync_batch_norm: bool = True
    """With several processes, whether batch norm takes the statistics of the whole batch, so that the result is that of
    one process, or those of each process's own part, which saves two small sums over the processes a layer."""

    def compiles(self, device: torch.device) -> bool:
        """Whether the network is compiled on this device."""
        return device.type == "cuda" if self.compile is None else self.compile

    @property
    def product_dtype(self) -> torch.dtype:
        """Type of the matrix products of prediction, which has no autocast."""
        return {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(self.precision, torch.float32)

    def captures(self, fabric: Fabric) -> bool:
        """Whether compiled steps are recorded as a CUDA graph: on one GPU, where no gradient scale is looked at."""
        on_one_gpu = fabric.device.type == "cuda" and fabric.world_size == 1
        return on_one_gpu and self.compiles(fabric.device) and self.precision != "16-mixed"

    def require_one_process(self, what: str) -> None:
        """Ask, before any is started, whether there will be one process only.

        Args:
            what: What cannot be done by several.

        Raises:
            UsageError: There are several, or will be.
        """
        if _num_started() > 1 or self.devices * self.num_nodes > 1:
            raise UsageError(
                f"{what} runs as one process; start it alone, with --set machine.devices=1 and --set machine.num_nodes=1."
            )


def _num_started() -> int:
    """How many processes were started together, by `torchrun` or by hand."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def _processes() -> DDPStrategy:
    """Every parameter gets a gradient at every step, and statistics need no broadcast at each."""
    return DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)


def make_fabric(config: MachineConfig) -> Fabric:
    """Start Fabric on the devices asked for.

    Where processes were started already, by `torchrun` or by hand (RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and
    MASTER_PORT are set), they are the ones, a device each, whatever `devices` says.

    Raises:
        UsageError: This machine has no such devices.
    """
    world_size = _num_started()
    launched = world_size > 1
    devices = config.devices
    if launched:
        devices = int(os.environ.get("LOCAL_WORLD_SIZE", world_size // config.num_nodes))
    try:
        fabric = Fabric(
            accelerator=config.accelerator,
            devices=devices,
            num_nodes=world_size // devices if launched else config.num_nodes,
            strategy=_processes() if launched or devices * config.num_nodes > 1 else "auto",
            precision=config.precision,
        )
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"machine: {' '.join(str(error).split())}") from None
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
    fabric.launch()
    return fabric
