"""Weights of an ensemble, found on out-of-fold predictions: what each model says of ratings that it was not trained on.

A model has held out one fold, so on a fold's ratings only those models can be compared that held it out. Models of one
family (alike but for fold and seed) share a weight, which carries over to folds where their rivals differ. The weights
minimize the rated cross-entropy of each fold's ensemble; for the arithmetic mean this is the linear opinion pool, whose
likelihood has one maximum where all models share a fold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from yt8m.dataset.frames import FrameReader
from yt8m.dataset.labels import rated_segments
from yt8m.inference.classifier import FoldedClassifier
from yt8m.prediction.predict import NO_SHIFT, predict
from yt8m.prediction.quantization import look_up, probabilities_of_codes
from yt8m.prediction.segments import Segments
from yt8m.vocabulary import Vocabulary

PENALTY = 1e-3
"""Of the squared logarithms of the weights, in nats a rating: what nothing speaks for stays 1."""

_SMALLEST = 1e-7


@dataclass(frozen=True, eq=False)
class FoldPredictions:
    """What the models that held out a fold say of its ratings.

    Args:
        models: Names of the models, M.
        probabilities: Of the rated class, (M, R).
        values: Whether it is there, bool (R,).
    """

    models: Sequence[str]
    probabilities: NDArray[np.float32]
    values: NDArray[np.bool_]


@dataclass(frozen=True)
class FoundWeights:
    """Weights, and the rated cross-entropy (nats a rating) that they and equal weights come to.

    Args:
        weights: Of each model, their mean 1.
        equal_loss: With equal weights.
        loss: With the weights found.
        num_ratings: Ratings of folds that several families held out: those that could tell.
    """

    weights: dict[str, float]
    equal_loss: float
    loss: float
    num_ratings: int


def out_of_fold(
    reader: FrameReader,
    vocabulary: Vocabulary,
    models: Mapping[str, FoldedClassifier],
    videos: NDArray[np.bool_],
    shifts: Sequence[int] = NO_SHIFT,
) -> FoldPredictions:
    """Ask models about the rated segments of the videos that they held out.

    Args:
        reader: Frames and ratings.
        vocabulary: The segment classes.
        models: The models by name.
        videos: The held-out videos, bool (N,).
        shifts: Test-time shifts, as prediction will have them.
    """
    ratings = rated_segments(reader.catalog, vocabulary, videos)
    seconds = int(ratings.start_seconds.max(initial=0)) + 1
    unique, of_rating = np.unique(ratings.rows * seconds + ratings.start_seconds, return_inverse=True)
    rows, starts = np.divmod(unique, seconds)
    segments = Segments(reader.catalog.video_ids, rows.astype(np.int32), starts.astype(np.int32))
    probabilities = np.zeros((len(models), len(ratings)), np.float32)
    table = probabilities_of_codes()
    for batch in predict(reader, segments, models, shifts=shifts):
        inside = np.flatnonzero((of_rating >= batch.start) & (of_rating < batch.start + len(batch)))
        places = of_rating[inside] - batch.start
        for number, codes in enumerate(batch.codes.values()):
            probabilities[number, inside] = look_up(table, codes[places, ratings.class_indices[inside]])
    return FoldPredictions(list(models), probabilities, ratings.values)


def find_weights(
    folds: Sequence[FoldPredictions], families: Mapping[str, str], method: Literal["arithmetic", "geometric"]
) -> FoundWeights:
    """Find the weights of an ensemble's models.

    Args:
        folds: Predictions of each fold that some model held out.
        families: The family of each model.
        method: How models are merged.

    Returns:
        Weights of all models in `families`; equal ones where no fold was held out by two families.
    """
    names = sorted(set(families.values()))
    telling = [fold for fold in folds if len({families[name] for name in fold.models}) > 1]
    num_ratings = sum(len(fold.values) for fold in telling)
    logarithms = torch.zeros(len(names), dtype=torch.float64, requires_grad=True)
    prepared = [
        (
            torch.tensor([names.index(families[name]) for name in fold.models]),
            torch.from_numpy(fold.probabilities.astype(np.float64)).clamp(_SMALLEST, 1 - _SMALLEST),
            torch.from_numpy(fold.values),
        )
        for fold in telling
    ]

    def loss(logarithms: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for members, probabilities, values in prepared:
            shares = torch.softmax(logarithms[members], 0)
            merged = shares @ probabilities if method == "arithmetic" else (shares @ probabilities.log()).exp()
            total = total - torch.where(values, merged.log(), torch.log1p(-merged)).sum()
        return total / max(1, num_ratings)

    equal = float(loss(logarithms).detach())
    if telling:
        optimizer = torch.optim.LBFGS([logarithms], max_iter=200, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            value = loss(logarithms) + PENALTY * logarithms.square().sum()
            value.backward()  # type: ignore[no-untyped-call]
            return value

        optimizer.step(closure)  # type: ignore[no-untyped-call]
    of_family = dict(zip(names, logarithms.detach().exp().tolist(), strict=True))
    mean = float(np.mean([of_family[family] for family in families.values()]))
    weights = {name: round(of_family[family] / mean, 4) for name, family in families.items()}
    return FoundWeights(weights, equal, float(loss(logarithms).detach()), num_ratings)
