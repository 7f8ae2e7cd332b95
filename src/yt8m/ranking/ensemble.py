"""Several models' probabilities become one: their weighted arithmetic mean (SPEC: inference).

Sums run in float32 in the order the models are given, so the same models give the same bits however the
segments are batched; and a mean of numbers from 0 to 1 never leaves that range by rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from yt8m.errors import UsageError
from yt8m.settings import Settings, nearest


class EnsembleSettings(Settings):
    """How the models of an ensemble are merged."""

    method: Literal["arithmetic"] = "arithmetic"
    """Which mean of the models' probabilities."""

    weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(default_factory=dict)
    """Weight of a model by its name; 1 for those not named."""


def merging_order(model_names: Iterable[str]) -> list[str]:
    """The order in which models are summed: by name, so that the bits of a mean do not tell how they were listed."""
    return sorted(model_names)


def model_weights(settings: EnsembleSettings, model_names: Sequence[str]) -> NDArray[np.float32]:
    """Weights of models in the given order.

    Args:
        settings: The ensemble's settings.
        model_names: The models that are merged, without repeats.

    Returns:
        float32 (M,), not normalized.

    Raises:
        UsageError: A weight names a model that is not merged, or no model has a weight.
    """
    for name in settings.weights:
        if name not in model_names:
            raise UsageError(
                f"The ensemble gives a weight to {name!r}, which is not one of its models{nearest(name, model_names)}."
            )
    with np.errstate(over="ignore", under="ignore"):
        weights = np.array([settings.weights.get(name, 1.0) for name in model_names], np.float32)
        total = weights.sum()
    if not (total > 0 and np.isfinite(total)):
        raise UsageError("The ensemble's weights must have a sum above 0 that single precision can hold.")
    return weights


def weighted_mean(probabilities: Sequence[NDArray[np.float32]], weights: ArrayLike) -> NDArray[np.float32]:
    """Arithmetic mean over models: sum of weight x probability, divided by the sum of weights.

    Args:
        probabilities: From 0 to 1, one float32 array a model, all of one shape.
        weights: A weight a model, (M,), not negative and not all zero; they need not add up to 1.

    Returns:
        float32 of that shape, from 0 to 1.

    Raises:
        ValueError: Numbers of models, shapes or types do not fit.
    """
    factors = np.asarray(weights, np.float32)
    if len(probabilities) == 0 or factors.shape != (len(probabilities),):
        raise ValueError(f"expected a weight a model, found {factors.shape} weights and {len(probabilities)} models.")
    if any(array.shape != probabilities[0].shape or array.dtype != np.float32 for array in probabilities):
        found = [(array.shape, str(array.dtype)) for array in probabilities]
        raise ValueError(f"expected float32 arrays of one shape, found {found}.")
    merged = np.zeros_like(probabilities[0])
    # The divisor is summed in the same order and precision as the numerator: rounding is monotonic, so no
    # quotient can exceed 1, and models that agree on 1 give exactly 1.
    total = np.float32(0)
    for array, factor in zip(probabilities, factors, strict=True):
        merged += array * factor
        total += factor
    merged /= total
    return merged
