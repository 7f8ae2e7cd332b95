"""Quantized logits against formulas in double precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.support.codes import MAX_LOGIT_ERROR, codes_of, sigmoid
from yt8m.prediction.quantization import (
    NUM_CODES,
    encode,
    logits_of_codes,
    lookup,
    mean_logits,
    probabilities_of_codes,
)

SWEEP = np.linspace(-24, 16, 1_000_003).astype(np.float32)


def test_the_error_of_a_decoded_logit_is_at_most_half_a_step() -> None:
    decoded = logits_of_codes()[codes_of(SWEEP)]
    error = np.abs(decoded - SWEEP.astype(np.float64))
    # Rounding is done in single precision, so a logit halfway between two codes may be rounded to the farther one.
    assert error.max() <= 1.02 * MAX_LOGIT_ERROR
    assert error.max() <= 3.1e-4, "the documented bound"
    assert error.max() > 0.99 * MAX_LOGIT_ERROR, "the bound is tight"
    np.testing.assert_allclose(np.diff(logits_of_codes()[1:]) / 2, MAX_LOGIT_ERROR, rtol=1e-9)


def test_errors_of_probabilities_are_within_the_documented_bounds() -> None:
    logits, decoded = SWEEP.astype(np.float64), logits_of_codes()[codes_of(SWEEP)]
    for sign in (1, -1):  # p, and 1 - p
        exact, found = sigmoid(sign * logits), sigmoid(sign * decoded)
        assert (np.abs(found / exact - 1)).max() <= 3.1e-4
    absolute = np.abs(sigmoid(decoded) - sigmoid(logits))
    assert absolute.max() <= 7.7e-5
    assert abs(logits[absolute.argmax()]) < 0.1, "largest at a half"


def test_codes_increase_with_the_logit_and_all_are_used() -> None:
    codes = codes_of(SWEEP)
    assert codes.dtype == np.uint16
    assert (np.diff(codes.astype(np.int64)) >= 0).all()
    assert np.array_equal(np.unique(codes), np.arange(1, NUM_CODES))
    assert np.array_equal(codes_of(logits_of_codes()[1:]), np.arange(1, NUM_CODES))
    assert (np.diff(logits_of_codes()[1:]) > 0).all()
    # Near 1, single precision has fewer numbers than there are codes.
    assert (np.diff(probabilities_of_codes()[1:]) >= 0).all()


def test_logits_are_clamped_to_the_grid() -> None:
    assert codes_of([-24.0, -24.001, -25, -1e4, -1e38, -np.inf]).tolist() == [1] * 6
    assert codes_of([16.0, 16.001, 17, 1e4, 1e38, np.inf]).tolist() == [NUM_CODES - 1] * 6
    assert logits_of_codes()[[1, -1]].tolist() == pytest.approx([-24, 16], abs=1e-9)


def test_nan_has_the_code_of_a_missing_probability() -> None:
    codes = codes_of([[np.nan, 0.0], [-np.nan, -50.0]])
    assert codes[:, 0].tolist() == [0, 0]
    assert (codes[:, 1] > 0).all()
    for table in (logits_of_codes(), probabilities_of_codes()):
        assert np.flatnonzero(np.isnan(table)).tolist() == [0]


def test_the_table_of_probabilities_is_rounded_from_double_precision() -> None:
    expected = sigmoid(-24 + 40 * np.arange(NUM_CODES - 1) / (NUM_CODES - 2))
    table = probabilities_of_codes()
    assert table.dtype == np.float32
    np.testing.assert_allclose(table[1:], expected, rtol=2**-23, atol=0)
    assert table[1:].min() > 0
    assert table[1:].max() < 1


def test_encoding_does_not_change_its_input() -> None:
    logits = torch.tensor([[1.0, -3.0]])
    encode(logits)
    assert logits.tolist() == [[1.0, -3.0]]
    assert encode(torch.empty(0, 5)).shape == (0, 5)


def test_lookup_equals_indexing() -> None:
    generator = np.random.default_rng(0)
    table = generator.random(NUM_CODES, np.float32)
    codes = generator.integers(0, NUM_CODES, (40, 6), np.uint16)
    codes[0, :2] = 0, NUM_CODES - 1
    for part in (codes, codes[::3, 1], codes.T, codes[:0]):
        found = lookup(table, part)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, table[part.astype(np.int64)])


def slow_mean(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """The logit of the mean probability in double precision, accurate near 0 and 1."""
    wide = logits.astype(np.float64)
    with np.errstate(over="ignore", divide="ignore"):
        mean: NDArray[np.float64] = np.log(sigmoid(wide).mean(0)) - np.log(sigmoid(-wide).mean(0))
    return mean


@pytest.mark.parametrize("count", [2, 3, 7])
def test_the_mean_of_probabilities_is_accurate_near_0_and_1(count: int) -> None:
    generator = np.random.default_rng(count)
    logits = (generator.normal(size=(count, 5000)) * generator.choice([0.1, 1, 8], 5000)).astype(np.float32)
    logits = np.concatenate([logits, logits - 18, logits + 14], axis=1)
    found = mean_logits(list(torch.from_numpy(logits))).numpy()
    expected = slow_mean(logits)
    assert expected.min() < -24
    assert expected.max() > 16
    inside = np.abs(expected) < 40
    np.testing.assert_allclose(found[inside], expected[inside], rtol=2e-6, atol=5e-6)
    # The mean of the logits is a different quantity.
    assert np.abs(logits.mean(0) - expected).max() > 1


def test_means_of_probabilities_that_round_to_0_or_1() -> None:
    infinity = float("inf")
    first = [100.0, 200, -200, -200, infinity, infinity, -infinity, -104, 0]
    second = [-100.0, 200, -200, -20, infinity, -infinity, -infinity, 200, -300]
    found = mean_logits([torch.tensor(first), torch.tensor(second)])
    assert found[0].item() == 0
    assert found[5].item() == 0
    assert found[3].item() == pytest.approx(-20 - np.log(2), abs=1e-5)
    assert found[7].item() == pytest.approx(0, abs=1e-5)
    assert found[8].item() == pytest.approx(np.log(0.25 / 0.75), abs=1e-6)
    top = NUM_CODES - 1
    assert encode(found).tolist()[1:3] == [top, 1]
    assert encode(found).tolist()[4] == top
    assert encode(found).tolist()[6] == 1


def test_a_mean_with_nan_is_nan() -> None:
    mean = mean_logits([torch.tensor([torch.nan, 3.0]), torch.tensor([1.0, 3.0])])
    assert encode(mean)[0].item() == 0
    assert mean[1].item() == pytest.approx(3, abs=1e-5)


def test_the_mean_of_one_model_is_bit_identical_to_its_logits() -> None:
    logits = torch.from_numpy(SWEEP)
    assert torch.equal(mean_logits([logits]), logits)
