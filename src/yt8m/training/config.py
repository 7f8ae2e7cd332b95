"""Settings of training, which load without torch."""

import importlib.util
from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from yt8m.errors import UsageError
from yt8m.settings import MAX_SIZE, MAX_STEPS, Settings

MODEL_FOLDER = "model"
"""The trained model, in the folder of its stage."""

POSITIVE_WEIGHT = 1.5
"""Weight of a positive rating (docs/method.md, "Fine-tuning loss")."""

MINED_WEIGHT = 0.5
"""Weight of the mined negatives relative to the rating."""


class OptimizationConfig(Settings):
    """Optimizer and learning-rate schedule."""

    renamed: ClassVar[Mapping[str, str]] = {
        "accumulate": "gradient_accumulation",
        "peak_rate": "peak_lr",
        "slow_rate_factor": "encoder_lr_factor",
    }

    steps: int = Field(gt=0, le=MAX_STEPS)
    """Number of optimizer steps."""
    batch_size: int = Field(default=128, gt=0, le=MAX_SIZE)
    """Videos or segments per step, over all processes."""
    gradient_accumulation: int = Field(default=1, gt=0, le=MAX_SIZE)
    """Micro-batches that a process splits its slice of a batch into, to need less memory; their gradients are summed.
    Batch norm computes its statistics per micro-batch."""
    peak_lr: float = Field(gt=0)
    """Highest learning rate of the schedule."""
    weight_decay: float = Field(ge=0)
    """Weight decay of weight matrices; biases and the weights of norm layers have none."""
    warmup: float = Field(default=0.25, ge=0, le=1)
    """Fraction of the steps during which the learning rate rises."""
    max_grad_norm: float = Field(default=10.0, gt=0)
    """Gradients are clipped to this norm."""
    encoder_lr_factor: float = Field(default=0.5, ge=0)
    """Learning rate of a context-aware model's segment encoder, relative to that of its new layers."""


class AveragingConfig(Settings):
    """Weight averaging of the model that is evaluated and saved."""

    type: Literal["none", "ema", "swa"] = "none"
    """`none`: no averaging; `ema`: exponential moving average; `swa`: mean over the last part of the run (Izmailov et
    al. 2018)."""
    decay: float = Field(default=0.999, gt=0, lt=1)
    """EMA: weight of the previous average at each step; less at the start, (1 + n) / (10 + n) after n steps."""
    start: float = Field(default=0.75, ge=0, lt=1)
    """SWA: fraction of the steps after which averaging starts; until then the trained weights are evaluated."""
    every: int = Field(default=100, ge=1, le=MAX_STEPS)
    """SWA: steps between the weights that enter the mean."""
    norm_batches: int = Field(default=50, ge=1, le=MAX_STEPS)
    """SWA: training batches to recompute batch-norm statistics from before each evaluation."""


class TrainingConfig(OptimizationConfig):
    """One training run: optimization, averaging, evaluation, checkpoints."""

    renamed: ClassVar[Mapping[str, str]] = {**OptimizationConfig.renamed, "choose_by": "monitor"}

    averaging: AveragingConfig = AveragingConfig()
    """Weight averaging (EMA, SWA) of the model that is evaluated and saved."""
    evaluate_every: int = Field(default=1000, gt=0, le=MAX_STEPS)
    """Steps between evaluations on the held-out data; the last step is always evaluated."""
    checkpoint_every: int = Field(default=500, gt=0, le=MAX_STEPS)
    """Steps between checkpoints."""
    log_every: int = Field(default=20, gt=0, le=MAX_STEPS)
    """Steps between lines of the training log."""
    monitor: Literal["loss", "auc", "map"] = "auc"
    """Metric on the held-out data that selects the best model."""
    patience: int | None = Field(default=None, gt=0, le=MAX_STEPS)
    """Early stopping: the run ends after this many evaluations without improvement. Default: no early stopping."""


class SegmentLossConfig(Settings):
    """Weights of the fine-tuning loss."""

    positive_weight: float = Field(default=POSITIVE_WEIGHT, gt=0)
    """Weight of a positive rating."""
    mined_weight: float = Field(default=MINED_WEIGHT, ge=0)
    """Weight of the mined negatives relative to the rating."""


class LogConfig(Settings):
    """Logging to Weights & Biases. API keys do not belong in a recipe."""

    wandb_project: str | None = None
    """Project in Weights & Biases; needs `pip install 'yt8m[wandb]'`, and WANDB_API_KEY or `wandb login`."""
    wandb_entity: str | None = None
    """User or team that owns the project. Default: the user who is logged in."""

    @model_validator(mode="after")
    def _entity_has_a_project(self) -> Self:
        if self.wandb_entity is not None and self.wandb_project is None:
            raise ValueError("wandb_entity is the owner of wandb_project, which is missing")
        return self

    def check(self) -> None:
        """Check that the required package is installed.

        Raises:
            UsageError: It is not.
        """
        if self.wandb_project is not None and importlib.util.find_spec("wandb") is None:
            raise UsageError(
                f"wandb_project {self.wandb_project!r}: wandb is not installed; pip install 'yt8m[wandb]'."
            )
