"""Weight averaging: exponential (EMA) or over the last part of a run (SWA).

The averaged model is evaluated and saved instead of the trained one; training continues with the trained weights.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from yt8m.models.layers.batch_norm import MaskedBatchNorm
from yt8m.training.config import AveragingConfig


class WeightAverage:
    """A running average of a model's weights and batch-norm statistics.

    Args:
        model: On its device; it is copied.
        config: Type of average.
        steps: Number of steps of the run.
    """

    def __init__(self, model: nn.Module, config: AveragingConfig, steps: int) -> None:
        self.config = config
        self._start = int(config.start * steps) if config.type == "swa" else 0
        self.averaged = AveragedModel(model, multi_avg_fn=self._average, use_buffers=True)

    def _average(self, averages: Sequence[Tensor], newest: Sequence[Tensor], count: Tensor | int) -> None:
        n = int(count)  # updates before this one
        weight = 1 / (n + 1) if self.config.type == "swa" else 1 - min(self.config.decay, (1 + n) / (10 + n))
        if averages[0].is_floating_point():
            torch._foreach_lerp_(list(averages), list(newest), weight)
        else:  # batch norm's counts of batches
            for average, tensor in zip(averages, newest, strict=True):
                average.copy_(tensor)

    def update(self, model: nn.Module, step: int) -> None:
        """Add the weights after `step` steps to the average, if that step is averaged."""
        interval = self.config.every if self.config.type == "swa" else 1
        if step > self._start and (step - self._start) % interval == 0:
            self.averaged.update_parameters(model)

    def model_to_evaluate(self, model: nn.Module, forward: Callable[[nn.Module, int], object]) -> nn.Module:
        """Return the averaged model, or `model` itself before averaging has started.

        Args:
            model: The trained model.
            forward: Runs a model on the training batch of a number, from 0.
        """
        if not int(self.averaged.n_averaged):
            return model
        average = self.averaged.module
        if self.config.type == "swa":
            recompute_batch_norm(average, self.config.norm_batches, forward)
        return average


def recompute_batch_norm(model: nn.Module, num_batches: int, forward: Callable[[nn.Module, int], object]) -> None:
    """Set batch norm's running statistics to the mean of those of some batches.

    Args:
        model: Changed in place.
        num_batches: Number of batches.
        forward: Runs a model on the batch of a number, from 0.
    """
    norms = [layer for layer in model.modules() if isinstance(layer, MaskedBatchNorm)]
    momenta = [norm.momentum for norm in norms]
    training = model.training
    model.train()
    with torch.no_grad():
        for number in range(num_batches):
            for norm in norms:
                norm.momentum = 1 / (number + 1)
            forward(model, number)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.train(training)
