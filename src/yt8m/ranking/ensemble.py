"""Merge the probabilities of several models.

Every method maps the 16-bit codes of each model (see `prediction.quantization`) through a table of 65,536 numbers, so that
streamed and stored probabilities give bit-identical results. Sums are float32, in the order of the models' names.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from yt8m.errors import UsageError
from yt8m.prediction.quantization import NO_PROBABILITY, NUM_CODES, logits_of_codes, lookup, probabilities_of_codes
from yt8m.settings import Settings, did_you_mean


class VideoPriorConfig(Settings):
    """Prior of video classifiers: `video^a x segment^b` (3rd place of the 2019 challenge)."""

    models: list[str] = Field(min_length=1)
    """Video classifiers, whose probabilities are averaged."""
    video_exponent: float = Field(default=0.2, ge=0, allow_inf_nan=False)
    """a."""
    segment_exponent: float = Field(default=0.8, gt=0, allow_inf_nan=False)
    """b."""


class CandidatesConfig(Settings):
    """Selection of candidate segments by video classifiers (2nd place of the 2019 challenge)."""

    models: list[str] = Field(min_length=1)
    """Video classifiers, whose probabilities are averaged."""
    min_video_probability: float = Field(gt=0, le=1)
    """Segments of videos below this probability of a class rank last in it, with a probability of 0."""


class MergeConfig(Settings):
    """How to merge the models of an ensemble."""

    method: Literal["arithmetic", "geometric", "rank"] = "arithmetic"
    """Mean of the probabilities, geometric mean, or mean of a segment's ranks within the class (which needs all
    probabilities at once, so they are stored first)."""

    weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(default_factory=dict)
    """Weights by model name; 1 by default."""

    video_prior: VideoPriorConfig | None = None
    """Prior of video classifiers; none by default."""

    candidates: CandidatesConfig | None = None
    """Selection of candidate segments; all by default."""

    @property
    def video_models(self) -> list[str]:
        """Names of the video classifiers used, sorted."""
        parts = (self.video_prior, self.candidates)
        return sorted({name for part in parts if part is not None for name in part.models})


def model_weights(settings: MergeConfig, model_names: Sequence[str]) -> NDArray[np.float32]:
    """Weights of models, float32 (M,), not normalized.

    Args:
        settings: How to merge.
        model_names: Distinct names of the M models to merge.

    Raises:
        UsageError: A weight names another model, or the sum of the weights is 0 or too large.
    """
    for name in settings.weights:
        if name not in model_names:
            raise UsageError(
                f"The ensemble has a weight for {name!r}, which is not one of its models{did_you_mean(name, model_names)}."
            )
    with np.errstate(over="ignore", under="ignore"):
        weights = np.array([settings.weights.get(name, 1.0) for name in model_names], np.float32)
        total = weights.sum()
    if not (total > 0 and np.isfinite(total)):
        raise UsageError("The ensemble's weights must have a sum above 0 that fits in single precision.")
    return weights


class Merger:
    """Merges codes of segments to probabilities.

    Args:
        settings: How to merge.
        model_names: Distinct names of the segment models to merge.

    Raises:
        UsageError: A weight names another model, or the sum of the weights is 0 or too large.
    """

    def __init__(self, settings: MergeConfig, model_names: Iterable[str]) -> None:
        self.settings = settings
        self.segment_models = sorted(model_names)
        weights = model_weights(settings, self.segment_models)
        # Models with weight 0 are excluded: 0 x log 0 is NaN, and they need not be predicted.
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
    def shares(self) -> dict[str, float]:
        """Share of each segment model in the sum of the weights; models of weight 0 are left out."""
        return {name: float(weight / self._total) for name, weight in self._weights.items()}

    def part(self, model_names: Iterable[str]) -> "Merger":
        """A merger of some of the segment models, otherwise like this one."""
        names = list(model_names)
        weights = {name: float(self._weights[name]) for name in names}
        return Merger(self.settings.model_copy(update={"weights": weights}), names)

    @property
    def models(self) -> list[str]:
        """All models whose codes are merged."""
        return [*self._weights, *(name for name in self.settings.video_models if name not in self._weights)]

    @property
    def needs_all_segments(self) -> bool:
        """Whether all segments of a class must be merged at once."""
        return self.settings.method == "rank"

    def __call__(self, codes: Mapping[str, NDArray[np.uint16]]) -> NDArray[np.float32]:
        """Merge codes.

        Args:
            codes: Codes of each model in `models`, by name, uint16 of any shape; if `needs_all_segments`, of all segments
                for one class, (S,).

        Returns:
            float32, same shape, from 0 to 1; NaN where any model has no probability.
        """
        merged: NDArray[np.float32] | None = None
        for name, weight in self._weights.items():
            table = rank_scores(codes[name]) * weight if self.needs_all_segments else self._tables[name]  # (65536,)
            term = lookup(table, codes[name])  # the shape of the codes
            merged = term if merged is None else np.add(merged, term, out=merged)
        if merged is None:  # for mypy: some weight is positive
            raise ValueError("no model to merge")
        # The divisor is summed in the order and precision of the numerator. Rounding is monotonic, so no quotient exceeds 1.
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
        """Mean probabilities of video classifiers."""
        total = np.zeros_like(codes[names[0]], np.float32)
        for name in sorted(set(names)):
            total += lookup(self._probabilities, codes[name])
        total /= np.float32(len(set(names)))
        return total


def rank_scores(codes: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Scores of codes by their rank among all segments of a class, from near 0 (last) to near 1 (first).

    Args:
        codes: Codes of all segments for one class, uint16 (S,).

    Returns:
        Score of each code, float32 (65536,): 1 - r / (S + 1), where r is the segment's rank from 1, the mean rank for
        segments of equal code. NaN for code 0.
    """
    counts = np.bincount(codes, minlength=NUM_CODES)  # (65536,)
    ranks = len(codes) - np.cumsum(counts) + (counts + 1) / 2
    scores: NDArray[np.float32] = (1 - ranks / (len(codes) + 1)).astype(np.float32)
    scores[NO_PROBABILITY] = np.nan
    return scores
