"""Seeds of micro-batches, and steps recorded as a CUDA graph (needs a GPU)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.tiny_tasks import CONFIG, video_case
from yt8m.dataset.batches import SINGLE_PROCESS
from yt8m.dataset.read_ahead import on_device
from yt8m.runtime.machine import MachineConfig, make_fabric
from yt8m.training.optimization import make_optimizer
from yt8m.training.step import make_step, step_seed


def test_each_step_part_and_seed_has_a_different_random_seed() -> None:
    seeds = [step_seed(seed, step, rank) for seed in range(3) for step in range(50) for rank in range(4)]
    assert len(set(seeds)) == len(seeds)
    assert step_seed(1, 2, 3) == seeds[4 * 50 + 2 * 4 + 3]
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
@pytest.mark.filterwarnings("ignore")  # warnings of the compiler itself
def test_recorded_steps_have_the_losses_of_eager_steps(tiny_dataset: Path) -> None:
    losses = []
    for recorded in (False, True):
        fabric = make_fabric(MachineConfig(accelerator="cuda"))
        model, task = video_case(tiny_dataset)
        optimizer = make_optimizer(model, CONFIG)
        batches = task.batches(SINGLE_PROCESS)
        wrapped, optimizer = fabric.setup(torch.compile(model), optimizer)
        machine = MachineConfig(accelerator="cuda", compile=recorded)
        step = make_step(fabric, wrapped.train(), optimizer, task.loss, CONFIG, 3, machine)
        moved = on_device((batches[number] for number in range(8)), fabric.device, batches.max_frames)
        losses.append([float(step(batch, number)[0]) for number, batch in enumerate(moved)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert len(set(losses[0])) == 8
