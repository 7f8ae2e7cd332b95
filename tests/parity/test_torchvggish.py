"""VGGish and its spectrograms equal torchvggish, with the same random weights."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from tests.support.extraction_weights import random_vggish
from yt8m.extraction.log_mel import SAMPLE_RATE, log_mel
from yt8m.extraction.vggish import VGGish


@pytest.fixture(scope="module")
def reference() -> Any:
    """The package, without what it reads and resamples audio files with."""
    with mock.patch.dict(sys.modules, {name: ModuleType(name) for name in ("resampy", "soundfile")}):
        return pytest.importorskip("torchvggish", reason="torchvggish is the reference of these tests")


def noise_and_tones(seconds: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    generator = np.random.default_rng(0)
    times = np.arange(seconds * SAMPLE_RATE) / SAMPLE_RATE
    swept = 0.4 * np.sin(2 * np.pi * (200 + 300 * times) * times)
    loudness = np.repeat(np.linspace(0, 0.5, seconds), SAMPLE_RATE)
    return (swept + loudness * generator.standard_normal(len(times))).astype(np.float32)


def test_the_spectrogram_of_each_second_equals_torchvggish(reference: Any) -> None:
    waveform = noise_and_tones(20)
    found = log_mel(waveform, 20)
    parameters = reference.vggish_params
    complete = reference.mel_features.log_mel_spectrogram(
        waveform.astype(np.float64),
        audio_sample_rate=parameters.SAMPLE_RATE,
        log_offset=parameters.LOG_OFFSET,
        window_length_secs=parameters.STFT_WINDOW_LENGTH_SECONDS,
        hop_length_secs=parameters.STFT_HOP_LENGTH_SECONDS,
        num_mel_bins=parameters.NUM_MEL_BINS,
        lower_edge_hertz=parameters.MEL_MIN_HZ,
        upper_edge_hertz=parameters.MEL_MAX_HZ,
    )
    # One window of 96 frames every 100 frames of 10 ms.
    expected = np.stack([complete[100 * second : 100 * second + 96] for second in range(20)])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_the_network_equals_torchvggish_before_its_last_relu(reference: Any) -> None:
    tensors = random_vggish()
    theirs = reference.torchvggish.VGG(reference.torchvggish.make_layers(), postprocess=False)
    theirs.load_state_dict(tensors)
    spectrograms = torch.from_numpy(log_mel(noise_and_tones(3), 3))
    with torch.inference_mode():
        found = VGGish.from_state_dict(tensors, "random weights")(spectrograms)
        expected = theirs(spectrograms.unsqueeze(1))
    assert found.shape == (3, 128)
    assert (found < 0).any(), "the last ReLU must be absent"
    torch.testing.assert_close(found.relu(), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    # Without the ReLU, the last layer of the reference gives the negative values too.
    theirs.embeddings = theirs.embeddings[:-1]
    with torch.inference_mode():
        expected = theirs(spectrograms.unsqueeze(1))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
