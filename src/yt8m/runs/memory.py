"""Memory that a training stage needs at least: what cannot fit is refused before it is allocated.

A process that takes more memory than there is may be killed without a message, so the tensors that every step has are
counted first. Activations come on top; `yt8m estimate` counts them as well.
"""

import os
from pathlib import Path

import torch

from yt8m.dataset.read_ahead import BATCHES_AHEAD
from yt8m.errors import UsageError, counted
from yt8m.features import MODALITIES, YOUTUBE8M, Features
from yt8m.runs.stages import Stage, fresh_base
from yt8m.runtime.machine import MachineConfig
from yt8m.shards.records import row_bytes

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def memory_of(device: torch.device) -> int | None:
    """Bytes of memory of a device, free or not, at most those that its container may use; None where unknown."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
    for path in map(Path, _CGROUP_LIMITS):
        try:
            available = min(available, int(path.read_text()))
        except (OSError, ValueError):
            continue
    return available


def read_ahead_bytes(machine: MachineConfig, examples: int, num_frames: int, features: Features = YOUTUBE8M) -> int:
    """Bytes of the batches that one process holds in memory, each of some examples with as many frames."""
    slots = machine.num_workers * BATCHES_AHEAD + 2 if machine.num_workers else 1
    return slots * examples * num_frames * sum(row_bytes(features.bytes_of(name)) for name in MODALITIES)


def require_memory(
    stage: Stage, num_classes: int, device: torch.device, num_processes: int, features: Features = YOUTUBE8M
) -> None:
    """Refuse a training stage whose network or batch is larger than the memory.

    Args:
        stage: The stage.
        num_classes: C.
        device: Where it is trained.
        num_processes: Processes that share each batch.
        features: What the frames are.

    Raises:
        UsageError: It cannot fit; the message names the setting.
    """
    require_memory_of_network(stage, num_classes, device, features)
    training = stage.config.training
    examples = max(1, training.batch_size // num_processes)
    needed = read_ahead_bytes(stage.recipe.machine, examples, stage.num_frames, features)
    if device.type == "cpu":
        # The features of a micro-batch, as float32.
        needed += 4 * max(1, examples // training.gradient_accumulation) * stage.num_frames * features.size
    available = memory_of(torch.device("cpu"))
    if available is not None and needed > available:
        raise UsageError(
            f"{stage.path}: a training.batch_size of {training.batch_size:,} needs at least {_gb(needed)} (each example has "
            f"up to {counted(stage.num_frames, 'frame')}), and this machine has {_gb(available)}; set it to "
            f"{max(1, training.batch_size * available // (2 * needed)):,} or less."
        )


def require_memory_of_network(
    stage: Stage, num_classes: int, device: torch.device, features: Features = YOUTUBE8M
) -> None:
    """Refuse a training stage whose network alone is larger than the memory.

    Args and errors: as `require_memory`.
    """
    with torch.device("meta"):
        network = stage.network(
            num_classes, lambda name: fresh_base(stage.recipe, name, num_classes, features), features
        )
    # AdamW has a gradient and two moments of each trained parameter.
    needed = sum(parameter.numel() * (16 if parameter.requires_grad else 4) for parameter in network.parameters())
    available = memory_of(device)
    if available is not None and needed > available:
        raise UsageError(
            f"{stage.path}: a network of {sum(parameter.numel() for parameter in network.parameters()):,} parameters needs "
            f"at least {_gb(needed)} in training, and this machine has {_gb(available)}; make its layers smaller."
        )


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.1f} GB"
