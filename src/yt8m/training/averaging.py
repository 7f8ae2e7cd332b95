"""Averages of the weights along a run: exponential (EMA) or plain over its last part (SWA).

The average is judged and saved in place of the weights themselves; training goes on with the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from yt8m.models.layers.batch_norm import MaskedBatchNorm
from yt8m.settings import Settings


class AveragingConfig(Settings):
    """Which average of the weights is judged and saved."""

    type: Literal["none", "ema", "swa"] = "none"
    """`none`: the weights themselves; `ema`: an exponential average; `swa`: the mean over the last part of the run
    (Izmailov et al. 2018)."""
    decay: float = Field(default=0.999, gt=0, lt=1)
    """EMA: share of the former average kept at each step; less at first, (1 + n) / (10 + n) after n steps."""
    start: float = Field(default=0.75, ge=0, lt=1)
    """SWA: share of the steps after which averaging begins; before, the weights themselves are judged."""
    every: int = Field(default=100, ge=1)
    """SWA: steps between the weights that enter the mean."""
    norm_batches: int = Field(default=50, ge=1)
    """SWA: training batches from which batch norm's statistics are taken anew for the mean before it is judged."""


class Average:
    """A running average of a model's weights and batch-norm statistics.

    Args:
        model: On its device; it is copied.
        config: Which average.
        steps: Steps of the run.
    """

    def __init__(self, model: nn.Module, config: AveragingConfig, steps: int) -> None:
        self.config = config
        self._first = int(config.start * steps) if config.type == "swa" else 0
        self.averaged = AveragedModel(model, multi_avg_fn=self._mix, use_buffers=True)

    def _mix(self, averages: Sequence[Tensor], newest: Sequence[Tensor], count: Tensor | int) -> None:
        if averages[0].is_floating_point():
            torch._foreach_lerp_(list(averages), list(newest), _share_of_newest(self.config, int(count)))
        else:  # numbers of batches seen
            for average, tensor in zip(averages, newest, strict=True):
                average.copy_(tensor)

    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after `step` steps."""
        interval = self.config.every if self.config.type == "swa" else 1
        if step > self._first and (step - self._first) % interval == 0:
            self.averaged.update_parameters(model)

    def judged(self, model: nn.Module, run: Callable[[nn.Module, int], object]) -> nn.Module:
        """The average, or the model itself while there is none.

        Args:
            model: The model in training.
            run: Sends a training batch, by its number, through a model.
        """
        if not int(self.averaged.n_averaged):
            return model
        average = self.averaged.module
        if self.config.type == "swa":
            refresh_statistics(average, self.config.norm_batches, run)
        return average


def averaging(model: nn.Module, config: AveragingConfig, steps: int) -> Average | None:
    """The average that is asked for, if any."""
    return None if config.type == "none" else Average(model, config, steps)


def _share_of_newest(config: AveragingConfig, count: int) -> float:
    """Share of the newest weights in an average, of which there were `count` before."""
    if config.type == "swa":
        return 1 / (count + 1)
    return 1 - min(config.decay, (1 + count) / (10 + count))


def refresh_statistics(model: nn.Module, num_batches: int, run: Callable[[nn.Module, int], object]) -> None:
    """Make batch norm's running statistics the plain mean of those of some batches.

    Args:
        model: Changed in place.
        num_batches: How many.
        run: Sends the batch of a number, from 0, through the model.
    """
    norms = [layer for layer in model.modules() if isinstance(layer, MaskedBatchNorm)]
    momenta = [norm.momentum for norm in norms]
    training = model.training
    model.train()
    with torch.no_grad():
        for number in range(num_batches):
            for norm in norms:
                norm.momentum = 1 / (number + 1)
            run(model, number)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.train(training)
