"""Calibration: the probability that a segment shows a class, from the score that an ensemble gives to it.

The map is that of beta calibration (Kull, Silva Filho, Flach: "Beta calibration", 2017), a monotonic function of one score
for all classes, so rankings do not change. Its parameters solve moment equations (docs/method.md, "Calibration"). Nothing
here needs torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from yt8m.errors import UsageError
from yt8m.files import written_atomically
from yt8m.ranking.ensemble import Merger
from yt8m.settings import MAX_STEPS, Settings, fingerprint, read_yaml, to_yaml, validated

CALIBRATION_FILE = "calibration.yaml"

LOWEST_LOGIT, HIGHEST_LOGIT = -24.0, 17.0
NUM_BINS = 4101
"""Scores are counted in bins of their logit, a hundredth wide."""

_PENALTY = 1e-5
"""Of the squared distances of the slopes from 1, per segment: without evidence, they stay 1."""
_LARGEST = 1e3
"""Parameters beyond this size mean that the data do not determine them."""
_STEPS = 100
_TOLERANCE = 1e-10


class Calibration(Settings):
    """A map from scores to probabilities: logit(p) = `low` log(s) - `high` log(1 - s) + `offset`."""

    low: float = Field(ge=0, le=_LARGEST)
    """Slope near a score of 0."""
    high: float = Field(ge=0, le=_LARGEST)
    """Slope near a score of 1."""
    offset: float = Field(ge=-_LARGEST, le=_LARGEST)
    """Log odds that do not depend on the score."""
    ensemble: str
    """`ensemble_digest` of the models whose scores it is for."""
    num_ratings: int = Field(ge=0, le=MAX_STEPS)
    """Held-out ratings that it was fitted to."""

    def __call__(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probabilities of scores, float32, same shape; monotonic, so equal scores have equal probabilities."""
        inside = np.clip(scores.astype(np.float64), *_SCORE_RANGE)
        log_odds = self.low * np.log(inside) - self.high * np.log1p(-inside) + self.offset
        probabilities: NDArray[np.float32] = np.exp(-np.logaddexp(0, -log_odds)).astype(np.float32)
        return probabilities

    def of(self, merger: Merger, digests: Mapping[str, str], shifts: Sequence[int]) -> Self | None:
        """This calibration, if it is for these models merged in this way; see `ensemble_digest`."""
        return self if self.ensemble == ensemble_digest(merger, digests, shifts) else None


_SCORE_RANGE = tuple(1 / (1 + np.exp(-logit)) for logit in (LOWEST_LOGIT, HIGHEST_LOGIT))


def read_calibration(folder: Path) -> Calibration | None:
    """The calibration in the folder of a store; None where there is none, or another file of that name."""
    try:
        return validated(Calibration, read_yaml(folder / CALIBRATION_FILE), str(folder / CALIBRATION_FILE))
    except UsageError:
        return None


def write_calibration(folder: Path, calibration: Calibration) -> None:
    """Write a calibration into the folder of a store, for `read_calibration`."""
    with written_atomically(folder / CALIBRATION_FILE) as temporary:
        temporary.write_text(to_yaml(calibration), encoding="utf-8")


def ensemble_digest(merger: Merger, digests: Mapping[str, str], shifts: Sequence[int]) -> str:
    """Hash of all that decides the scores of an ensemble but the precision: models, weights and how they are merged.

    Args:
        merger: Merges the models.
        digests: Digest of each model's settings and weights, by name.
        shifts: Test-time shifts.
    """
    settings = merger.settings.model_dump(mode="json", include={"method", "video_prior", "candidates"})
    for part in (settings["video_prior"], settings["candidates"]):
        if part is not None:
            part["models"] = sorted(digests[name] for name in part["models"])
    members = sorted((digests[name], weight) for name, weight in merger.shares.items())
    return fingerprint([settings, members, sorted(shifts)])


@dataclass(frozen=True, eq=False)
class RatedCounts:
    """Held-out segments and classes with known truth, counted by the score of the models that held them out.

    Args:
        num_ratings: The ratings among them.
        positives: Weight of the positive ones in each bin, float64 (bins,).
        totals: Weight of all, float64 (bins,).
    """

    num_ratings: int
    positives: NDArray[np.float64]
    totals: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class JointCounts:
    """Segments and classes without truth, counted by the scores of an ensemble and of its parts.

    Args:
        counts: Number in each bin of a part's score, float64 (parts, bins).
        sums: Sum of the features of a part's score in each bin of the ensemble's score, float64 (parts, bins, 3).
    """

    counts: NDArray[np.float64]
    sums: NDArray[np.float64]

    @classmethod
    def empty(cls, num_parts: int) -> Self:
        """Counts of nothing."""
        return cls(np.zeros((num_parts, NUM_BINS)), np.zeros((num_parts, NUM_BINS, 3)))

    def add(self, of_parts: Sequence[NDArray[np.float32]], of_ensemble: NDArray[np.float32]) -> None:
        """Count the scores that each part and the ensemble give to the same segments and classes, (n, C) each."""
        bins = bins_of(of_ensemble).ravel()
        for part, scores in enumerate(of_parts):
            bins_of_part = bins_of(scores).ravel()
            self.counts[part] += np.bincount(bins_of_part, minlength=NUM_BINS)
            for column in range(3):
                values = _FEATURES[bins_of_part, column]
                self.sums[part, :, column] += np.bincount(bins, values, NUM_BINS)


def bins_of(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """Bin of each score, int64, same shape; NaN counts as 0."""
    inside = np.clip(np.nan_to_num(scores.astype(np.float64)), *_SCORE_RANGE)
    steps = (np.log(inside) - np.log1p(-inside) - LOWEST_LOGIT) * ((NUM_BINS - 1) / (HIGHEST_LOGIT - LOWEST_LOGIT))
    bins: NDArray[np.int64] = np.rint(steps).astype(np.int64)
    return bins


def _features() -> NDArray[np.float64]:
    """log(s), -log(1 - s) and 1 of the score s of each bin, float64 (bins, 3)."""
    logits = np.linspace(LOWEST_LOGIT, HIGHEST_LOGIT, NUM_BINS)
    return np.stack([-np.logaddexp(0, -logits), np.logaddexp(0, logits), np.ones(NUM_BINS)], axis=1)


_FEATURES = _features()


def fit_parameters(rated: Sequence[RatedCounts], joint: JointCounts) -> tuple[float, float, float] | None:
    """Fit a calibration of an ensemble whose models hold out different ratings.

    Args:
        rated: Ratings that each part of the ensemble held out, with that part's scores; those of a part that are all
            positive or all negative are not used.
        joint: Scores of the parts and of the ensemble for other segments, that no model was trained on.

    Returns:
        `low`, `high` and `offset` of `Calibration`; None where the ratings do not determine them.
    """
    total, sums, target = 0, np.zeros((NUM_BINS, 3)), np.zeros(3)
    for number, counts in enumerate(rated):
        if not 0 < counts.positives.sum() < counts.totals.sum():
            continue
        # Maximum likelihood: the probabilities of the part, weighted by its features, have the sums of the positives.
        of_part = _solved(counts.totals[:, None] * _FEATURES, counts.positives @ _FEATURES)
        if of_part is None:
            return None
        # The ensemble's probabilities must have the sums of the part's probabilities, feature by feature.
        share, num_segments = counts.num_ratings, joint.counts[number].sum()
        sums += share * joint.sums[number] / num_segments
        target += share * (joint.counts[number] * _probabilities(of_part)) @ _FEATURES / num_segments
        total += share
    found = _solved(sums / total, target / total) if total else None
    return None if found is None else (float(found[0]), float(found[1]), float(found[2]))


def _probabilities(parameters: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probability of the score of each bin, float64 (bins,)."""
    probabilities: NDArray[np.float64] = np.exp(-np.logaddexp(0, -(_FEATURES @ parameters)))
    return probabilities


def _solved(sums: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Parameters whose probabilities p solve `p @ sums == target` but for the penalty, by Newton's method.

    No slope is negative: one that would be is 0, and its equation is left out.

    Args:
        sums: (bins, 3).
        target: (3,).

    Returns:
        float64 (3,); None if the method does not converge.
    """
    num_segments = sums[:, 2].sum()
    if not num_segments > 0:
        return None
    sums, target = sums / num_segments, target / num_segments
    free = [0, 1, 2]
    while True:
        parameters = np.array([1.0 if index in free and index < 2 else 0.0 for index in range(3)])
        if not _newton(sums, target, free, parameters):
            return None
        lowest = min(free, key=lambda index: np.inf if index == 2 else parameters[index])
        if lowest == 2 or parameters[lowest] >= 0:
            return parameters
        free.remove(lowest)


def _newton(
    sums: NDArray[np.float64], target: NDArray[np.float64], free: list[int], parameters: NDArray[np.float64]
) -> bool:
    """Change the free parameters to solve their equations; whether the method converges."""
    penalty = np.array([_PENALTY, _PENALTY, 0.0])

    def residuals(values: NDArray[np.float64]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = (_probabilities(values) @ sums - target + penalty * (values - 1))[free]
        return found

    error = residuals(parameters)
    for _ in range(_STEPS):
        if np.abs(error).max() < _TOLERANCE:
            return True
        probabilities = _probabilities(parameters)
        slopes = (probabilities * (1 - probabilities))[:, None] * _FEATURES[:, free]  # (bins, free)
        matrix = sums[:, free].T @ slopes + np.diag(penalty[free])
        step = np.linalg.lstsq(matrix, -error, rcond=None)[0]
        length = 1.0
        while True:
            tried = parameters.copy()
            tried[free] += length * step
            if np.abs(tried).max() <= _LARGEST and np.linalg.norm(residuals(tried)) < np.linalg.norm(error):
                break
            length /= 2
            if length < 1e-6:
                # The residuals are as small as rounding lets them be, or there is no solution.
                return bool(np.abs(error).max() < 1e-6)
        parameters[:] = tried
        error = residuals(parameters)
    return False
