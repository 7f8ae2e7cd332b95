"""Several models' probabilities become one.

Whatever the method, a merge is a function of the 16-bit codes of the same segments (`ranking.codes`), computed with
tables of 65,536 numbers, so that probabilities merged as they stream and probabilities merged from a store come out
equal to the last bit. Sums run in float32 in the order of the models' names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from yt8m.errors import UsageError
from yt8m.prediction.quantization import NOT_A_PROBABILITY, NUM_CODES, logits_of_codes, look_up, probabilities_of_codes
from yt8m.settings import Settings, did_you_mean


class VideoPriorConfig(Settings):
    """What classifiers of whole videos add: `video^a x segment^b` (SPEC: what others did; 3rd place, 2019)."""

    models: list[str] = Field(min_length=1)
    """Classifiers of videos; the mean of their probabilities counts."""
    video_exponent: float = Field(default=0.2, ge=0, allow_inf_nan=False)
    """a."""
    segment_exponent: float = Field(default=0.8, gt=0, allow_inf_nan=False)
    """b."""


class CandidatesConfig(Settings):
    """Which segments are candidates for a class: those of videos that a video classifier does not rule out (2nd place)."""

    models: list[str] = Field(min_length=1)
    """Classifiers of videos; the mean of their probabilities counts."""
    min_video_probability: float = Field(gt=0, le=1)
    """Below this, none of the video's segments is a candidate; they rank last, with a probability of 0."""


class MergeConfig(Settings):
    """How the models of an ensemble are merged."""

    method: Literal["arithmetic", "geometric", "rank"] = "arithmetic"
    """Which mean: of the probabilities, of their logarithms, or of the models' ranks of a segment within the class (which
    takes all probabilities at once, so they are stored first)."""

    weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(default_factory=dict)
    """Weight of a model by its name; 1 for those not named."""

    video_prior: VideoPriorConfig | None = None
    """Classifiers of whole videos that weigh in; none by default."""

    candidates: CandidatesConfig | None = None
    """Which segments are ranked for a class; all by default."""

    @property
    def video_models(self) -> list[str]:
        """Classifiers of whole videos that have a say, by name."""
        parts = (self.video_prior, self.candidates)
        return sorted({name for part in parts if part is not None for name in part.models})


def merging_order(model_names: Iterable[str]) -> list[str]:
    """The order in which models are summed: by name, so that the bits of a mean do not tell how they were listed."""
    return sorted(model_names)


def model_weights(settings: MergeConfig, model_names: Sequence[str]) -> NDArray[np.float32]:
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
                f"The ensemble gives a weight to {name!r}, which is not one of its models{did_you_mean(name, model_names)}."
            )
    with np.errstate(over="ignore", under="ignore"):
        weights = np.array([settings.weights.get(name, 1.0) for name in model_names], np.float32)
        total = weights.sum()
    if not (total > 0 and np.isfinite(total)):
        raise UsageError("The ensemble's weights must have a sum above 0 that single precision can hold.")
    return weights


class Merger:
    """Merges codes of some segments into probabilities.

    Args:
        settings: How.
        model_names: The segment models to merge, without repeats.

    Raises:
        UsageError: A weight names a model that is not merged, or no model has a weight.
    """

    def __init__(self, settings: MergeConfig, model_names: Iterable[str]) -> None:
        self.settings = settings
        self.segment_models = merging_order(model_names)
        weights = model_weights(settings, self.segment_models)
        # Models without weight must not weigh in through 0 x log 0, nor be looked at.
        self._weights = {name: weight for name, weight in zip(self.segment_models, weights, strict=True) if weight > 0}
        self._total = np.float32(0)
        for weight in self._weights.values():
            self._total += weight
        self._probabilities = probabilities_of_codes()
        table = self._probabilities
        if settings.method == "geometric":
            with np.errstate(invalid="ignore"):
                table = (-np.logaddexp(0, -logits_of_codes())).astype(np.float32)
        self._tables = {name: table * weight for name, weight in self._weights.items()}

    @property
    def models(self) -> list[str]:
        """All models whose codes a merge looks at."""
        return [*self._weights, *(name for name in self.settings.video_models if name not in self._weights)]

    @property
    def needs_whole_classes(self) -> bool:
        """Whether a merge has to be given all segments of a class at once."""
        return self.settings.method == "rank"

    def __call__(self, codes: Mapping[str, NDArray[np.uint16]]) -> NDArray[np.float32]:
        """Merge.

        Args:
            codes: Of each model in `models`, by name, uint16, all of one shape: any segments of any classes; where
                `needs_whole_classes`, all segments of one class, (S,).

        Returns:
            float32 of that shape, from 0 to 1, not a number where any code says nothing.
        """
        merged: NDArray[np.float32] | None = None
        for name, weight in self._weights.items():
            table = rank_scores(codes[name]) * weight if self.needs_whole_classes else self._tables[name]
            term = look_up(table, codes[name])
            merged = term if merged is None else np.add(merged, term, out=merged)
        if merged is None:  # never: some weight is above 0
            raise ValueError("no model to merge")
        # The divisor is summed in the same order and precision as the numerator: rounding is monotonic, so no
        # quotient can exceed 1.
        merged /= self._total
        if self.settings.method == "geometric":
            np.minimum(np.exp(merged, out=merged), np.float32(1), out=merged)
        prior, candidates = self.settings.video_prior, self.settings.candidates
        if prior is not None:
            of_video = self._video_mean(codes, prior.models)
            np.power(merged, np.float32(prior.segment_exponent), out=merged)
            merged *= np.power(of_video, np.float32(prior.video_exponent), out=of_video)
        if candidates is not None:
            of_video = self._video_mean(codes, candidates.models)
            merged[of_video < np.float32(candidates.min_video_probability)] = 0
            merged[np.isnan(of_video)] = np.nan
        return merged

    def _video_mean(self, codes: Mapping[str, NDArray[np.uint16]], names: Sequence[str]) -> NDArray[np.float32]:
        """Mean of what some classifiers of videos say."""
        total = np.zeros_like(codes[names[0]], np.float32)
        for name in merging_order(set(names)):
            total += look_up(self._probabilities, codes[name])
        total /= np.float32(len(set(names)))
        return total


def rank_scores(codes: NDArray[np.uint16]) -> NDArray[np.float32]:
    """What a code comes to among all segments of a class: from near 0 for the last to near 1 for the best.

    Args:
        codes: A class's codes, uint16 (S,).

    Returns:
        float32 (65536,), a score a code: 1 - r / (S + 1), r being the place of the segment, from 1, and the mean of
        their places for segments of one code. That of code 0 is not a number.
    """
    counts = np.bincount(codes, minlength=NUM_CODES)
    places = len(codes) - np.cumsum(counts) + (counts + 1) / 2
    scores: NDArray[np.float32] = (1 - places / (len(codes) + 1)).astype(np.float32)
    scores[NOT_A_PROBABILITY] = np.nan
    return scores
