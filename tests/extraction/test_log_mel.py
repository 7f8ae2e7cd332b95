"""Log-mel spectrograms against a plain loop in float64 and figures worked out by hand."""

from __future__ import annotations

import cmath
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from yt8m.extraction.log_mel import SAMPLE_RATE, log_mel


def plain_log_mel(samples: NDArray[np.float32], frames: list[int]) -> NDArray[np.float64]:
    """Rows of the spectrogram of one window: the transform as a sum, triangles one by one."""

    def mel(hertz: float) -> float:
        return 1127 * math.log(1 + hertz / 700)

    edges = [mel(125) + (mel(7500) - mel(125)) * band / 65 for band in range(66)]
    rows = []
    for frame in frames:
        part = [float(value) for value in samples[160 * frame : 160 * frame + 400]]
        windowed = [value * (0.5 - 0.5 * math.cos(2 * math.pi * n / 400)) for n, value in enumerate(part)]
        bins = np.arange(257)
        turns = np.exp(-2j * cmath.pi * np.outer(bins, np.arange(400)) / 512)
        magnitudes = np.abs(turns @ np.array(windowed))
        row = []
        for low, center, high in zip(edges, edges[1:], edges[2:], strict=False):
            total = 0.0
            for number in range(1, 257):
                place = mel(number * SAMPLE_RATE / 512)
                weight = min((place - low) / (center - low), (high - place) / (high - center))
                total += max(0.0, weight) * magnitudes[number]
            row.append(math.log(total + 0.01))
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("second", [0, 1])
def test_the_spectrogram_equals_a_plain_loop(second: int) -> None:
    waveform = np.random.default_rng(0).normal(0, 0.3, 2 * SAMPLE_RATE).astype(np.float32)
    found = log_mel(waveform, 2)
    assert (found.dtype, found.shape) == (np.float32, (2, 96, 64))
    frames = [0, 1, 47, 95]
    expected = plain_log_mel(waveform[second * SAMPLE_RATE :], frames)
    np.testing.assert_allclose(found[second, frames], expected, rtol=0, atol=2e-6)


def test_a_tone_is_in_its_band_in_its_second_only() -> None:
    seconds = 40
    waveform = np.zeros(seconds * SAMPLE_RATE, np.float32)
    times = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    waveform[33 * SAMPLE_RATE : 34 * SAMPLE_RATE] = np.sin(2 * np.pi * 1000 * times)
    found = log_mel(waveform, seconds)
    # 1,000 Hz is 1,000 mel; 125 Hz is 185.2, 7,500 Hz 2,773.4, and a center every 39.8: it lies between bands 19 and 20.
    assert set(found[33].argmax(axis=1)) <= {19, 20}
    silent = np.delete(found, 33, axis=0)
    np.testing.assert_allclose(silent, math.log(0.01), rtol=1e-6)


@pytest.mark.parametrize("num_samples", [0, 1, 399, 15_599, 16_000, 16_001, 40_123])
def test_samples_beyond_the_end_are_silence(num_samples: int) -> None:
    waveform = np.random.default_rng(1).normal(0, 0.3, num_samples).astype(np.float32)
    padded = np.concatenate([waveform, np.zeros(4 * SAMPLE_RATE, np.float32)])
    np.testing.assert_array_equal(log_mel(waveform, 3), log_mel(padded, 3))
    assert log_mel(waveform, 0).shape == (0, 96, 64)


def test_a_second_does_not_depend_on_its_place() -> None:
    waveform = np.random.default_rng(2).normal(0, 0.3, 37 * SAMPLE_RATE).astype(np.float32)
    complete = log_mel(waveform, 37)
    for second in (0, 15, 16, 36):
        alone = log_mel(waveform[second * SAMPLE_RATE : (second + 1) * SAMPLE_RATE], 1)
        np.testing.assert_array_equal(alone[0], complete[second])
