"""Losses equal their formulas on float64 probabilities, and values computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from yt8m.training.losses import mined_loss, rating_loss, segment_loss, video_loss


def probabilities(logits: Tensor) -> np.ndarray:
    return 1 / (1 + np.exp(-logits.double().numpy()))


def random_batch(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(6, 5, generator=generator)
    classes = torch.randint(0, 5, (6,), generator=generator)
    ratings = torch.randint(0, 2, (6,), generator=generator).float()
    negatives = torch.rand(6, 5, generator=generator) < 0.6
    negatives[2] = False
    return logits, classes, ratings, negatives


@pytest.mark.parametrize("seed", range(3))
def test_video_loss_is_the_mean_cross_entropy(seed: int) -> None:
    logits, _, _, labels = random_batch(seed)
    p, y = probabilities(logits), labels.numpy()
    expected = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean()
    assert video_loss(logits, labels).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("positive_weight", "mined_weight"), [(1.5, 0.5), (1.0, 0.0), (2.0, 3.0)])
def test_segment_loss_equals_a_loop(seed: int, positive_weight: float, mined_weight: float) -> None:
    logits, classes, ratings, negatives = random_batch(seed)
    p, terms = probabilities(logits), []
    for i in range(6):
        y, rated = ratings[i].item(), p[i, classes[i]]
        loss = -(positive_weight * y * math.log(rated) + (1 - y) * math.log(1 - rated))
        mined = [-math.log(1 - p[i, c]) for c in range(5) if negatives[i, c]]
        terms.append(loss + mined_weight * (sum(mined) / len(mined) if mined else 0))
    weights = (positive_weight, mined_weight)
    ours = segment_loss(logits, classes, ratings, negatives, *weights)
    assert ours.item() == pytest.approx(sum(terms) / 6, rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_the_mean_of_the_rating_losses_of_segments_is_the_loss(seed: int) -> None:
    logits, classes, ratings, _ = random_batch(seed)
    losses = rating_loss(logits, classes, ratings, 2.0, reduction="none")
    assert losses.shape == (6,)
    assert torch.equal(losses.mean(), rating_loss(logits, classes, ratings, 2.0))


def test_the_default_weights_are_those_of_the_paper() -> None:
    # Probabilities 1/2, 3/4, 1/4 of three classes; the logit of 3/4 is log 3.
    logits = torch.tensor([[0.0, math.log(3), -math.log(3)]]).repeat(2, 1)
    classes, ratings = torch.tensor([1, 1]), torch.tensor([1.0, 0.0])
    negatives = torch.tensor([[True, False, True], [False, False, False]])
    positive = 1.5 * math.log(4 / 3)
    negative = math.log(4)
    mined = (math.log(2) + math.log(4 / 3)) / 2
    assert rating_loss(logits, classes, ratings).item() == pytest.approx((positive + negative) / 2, rel=1e-6)
    assert mined_loss(logits, negatives).item() == pytest.approx(mined / 2, rel=1e-6)
    expected = (positive + 0.5 * mined + negative) / 2
    assert segment_loss(logits, classes, ratings, negatives).item() == pytest.approx(expected, rel=1e-6)


def test_classes_neither_rated_nor_mined_have_no_gradient() -> None:
    logits, classes, ratings, negatives = random_batch(0)
    logits.requires_grad_()
    segment_loss(logits, classes, ratings, negatives).backward()
    counted = negatives.clone()
    counted[torch.arange(6), classes] = True
    assert torch.equal(logits.grad != 0, counted)


@pytest.mark.parametrize("size", [80.0, 1e4, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_and_gradient_are_correct_at_extreme_logits(size: float, dtype: torch.dtype) -> None:
    logits = torch.tensor([[size, -size, size, -size]] * 2, dtype=dtype).requires_grad_()
    ratings = torch.tensor([1.0, 0.0])
    for classes in (torch.tensor([0, 1]), torch.tensor([1, 0])):
        negatives = torch.tensor([[False, False, True, True]] * 2)
        loss = segment_loss(logits, classes, ratings, negatives)
        is_wrong = classes[0] == 1
        mined = 0.5 * logits[0, 0].item() / 2
        expected = mined + (2.5 * logits[0, 0].item() / 2 if is_wrong else 0)
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected, rel=1e-5)
        logits.grad = None
        loss.backward()
        # d/dz of -w log sigmoid(z) at z -> -inf is -w, of softplus at z -> inf is 1; all over 2 segments.
        gradient = torch.zeros(2, 4)
        gradient[:, 2] = 0.5 / 2 / 2
        if is_wrong:
            gradient[0, 1], gradient[1, 0] = -1.5 / 2, 1 / 2
        torch.testing.assert_close(logits.grad.float(), gradient)
    labels = torch.tensor([[True, True, False, False]] * 2)
    loss = video_loss(logits, labels)
    assert loss.item() == pytest.approx(logits[0, 0].item() / 2, rel=1e-5)
    logits.grad = None
    loss.backward()
    assert logits.grad.isfinite().all()
