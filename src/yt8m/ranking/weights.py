"""Find the weights of an ensemble on out-of-fold predictions: each model's predictions of the ratings it held out.

Each model holds out one fold, so the ratings of a fold compare only the models that held it out. Models of one family
(equal but for fold and seed) share a weight, which makes weights comparable across folds. The weights minimize the
cross-entropy of the ratings. For the arithmetic mean this is the linear opinion pool, whose likelihood has one maximum if
all models share a fold.
"""

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
from yt8m.prediction.quantization import lookup, probabilities_of_codes
from yt8m.ranking.out_of_fold import segments_of_ratings
from yt8m.vocabulary import Vocabulary

PENALTY = 1e-3
"""Penalty of the squared logarithms of the weights, in nats per rating: without evidence, a weight stays 1."""

_MIN_PROBABILITY = 1e-7


@dataclass(frozen=True, eq=False)
class FoldPredictions:
    """Predictions of a fold's ratings by the models that held out the fold.

    Args:
        models: Names of the M models.
        probabilities: Probabilities of the rated classes, (M, R).
        values: Ratings, bool (R,).
    """

    models: Sequence[str]
    probabilities: NDArray[np.float32]
    values: NDArray[np.bool_]


@dataclass(frozen=True)
class FoundWeights:
    """Weights, and their cross-entropy.

    Args:
        weights: Weight of each model; their mean is 1.
        equal_loss: Cross-entropy with equal weights, in nats per rating.
        loss: Cross-entropy with these weights.
        num_ratings: Ratings in folds that several families held out.
    """

    weights: dict[str, float]
    equal_loss: float
    loss: float
    num_ratings: int


def predict_out_of_fold(
    reader: FrameReader,
    vocabulary: Vocabulary,
    models: Mapping[str, FoldedClassifier],
    videos: NDArray[np.bool_],
    shifts: Sequence[int] = NO_SHIFT,
) -> FoldPredictions:
    """Predict the rated segments of the videos that some models held out.

    Args:
        reader: Frames and ratings.
        vocabulary: The segment classes.
        models: The M models by name.
        videos: The held-out videos, bool (N,).
        shifts: Test-time shifts.
    """
    ratings = rated_segments(reader.catalog, vocabulary, videos)
    segments, segment_of_rating = segments_of_ratings(reader, ratings)  # (S,), (R,)
    probabilities = np.zeros((len(models), len(ratings)), np.float32)
    table = probabilities_of_codes()
    for batch in predict(reader, segments, models, shifts=shifts):
        inside = np.flatnonzero((segment_of_rating >= batch.start) & (segment_of_rating < batch.start + len(batch)))
        batch_rows = segment_of_rating[inside] - batch.start
        for number, codes in enumerate(batch.codes.values()):
            probabilities[number, inside] = lookup(table, codes[batch_rows, ratings.class_indices[inside]])
    return FoldPredictions(list(models), probabilities, ratings.values)


def find_weights(
    folds: Sequence[FoldPredictions], families: Mapping[str, str], method: Literal["arithmetic", "geometric"]
) -> FoundWeights:
    """Find the weights of an ensemble's models by maximum likelihood.

    Args:
        folds: Predictions of each fold that some model held out.
        families: Family of each model, by name.
        method: How models are merged.

    Returns:
        Weights of all models in `families`; all 1 if no fold was held out by two families.
    """
    names = sorted(set(families.values()))
    informative = [fold for fold in folds if len({families[name] for name in fold.models}) > 1]
    num_ratings = sum(len(fold.values) for fold in informative)
    logarithms = torch.zeros(len(names), dtype=torch.float64, requires_grad=True)  # (families,)
    prepared = [
        (
            torch.tensor([names.index(families[name]) for name in fold.models]),
            torch.from_numpy(fold.probabilities.astype(np.float64)).clamp(_MIN_PROBABILITY, 1 - _MIN_PROBABILITY),
            torch.from_numpy(fold.values),
        )
        for fold in informative
    ]

    def loss(logarithms: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for members, probabilities, values in prepared:
            weights = torch.softmax(logarithms[members], 0)  # (M,), with sum 1; the merged probabilities are (R,)
            merged = weights @ probabilities if method == "arithmetic" else (weights @ probabilities.log()).exp()
            total = total - torch.where(values, merged.log(), torch.log1p(-merged)).sum()
        return total / max(1, num_ratings)

    equal_loss = float(loss(logarithms).detach())
    if informative:
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
    return FoundWeights(weights, equal_loss, float(loss(logarithms).detach()), num_ratings)
