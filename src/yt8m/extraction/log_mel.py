"""Log-mel spectrograms of audio, one window per second, as VGGish takes them (AudioSet's `mel_features`)."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 16_000
WINDOW_SAMPLES = 15_600
"""Samples of a window: 96 frames of 25 ms, one every 10 ms."""

NUM_FRAMES, NUM_BANDS = 96, 64

_FRAME_SAMPLES, _HOP_SAMPLES, _FFT_SIZE = 400, 160, 512
_LOWEST_HERTZ, _HIGHEST_HERTZ = 125.0, 7500.0
_LOG_OFFSET = 0.01
_BLOCK_WINDOWS = 16


def _mel(hertz: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """Frequencies on the mel scale of HTK."""
    return np.asarray(1127.0 * np.log1p(np.asarray(hertz) / 700.0))


@cache
def _tables() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Periodic Hann window (400,), and mel filters (257, 64): triangles on the mel scale, none on the constant part."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi / _FRAME_SAMPLES * np.arange(_FRAME_SAMPLES))
    bins = _mel(np.linspace(0.0, SAMPLE_RATE / 2, _FFT_SIZE // 2 + 1))[:, np.newaxis]
    edges = np.linspace(_mel(_LOWEST_HERTZ), _mel(_HIGHEST_HERTZ), NUM_BANDS + 2)
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    filters = np.maximum(0.0, np.minimum(rising, falling))
    filters[0] = 0.0
    return hann, filters


def log_mel(waveform: NDArray[np.float32], num_seconds: int) -> NDArray[np.float32]:
    """Log-mel spectrogram of the first 0.975 seconds of each second.

    Args:
        waveform: float32 (samples,), mono, 16 kHz, -1 to 1.
        num_seconds: Seconds to compute; samples beyond the end are 0.

    Returns:
        float32 (num_seconds, 96, 64). Window k begins at sample 16,000 k.
    """
    hann, filters = _tables()
    spectrograms = np.empty((num_seconds, NUM_FRAMES, NUM_BANDS), np.float32)
    for begin in range(0, num_seconds, _BLOCK_WINDOWS):
        count = min(_BLOCK_WINDOWS, num_seconds - begin)
        samples = np.zeros(count * SAMPLE_RATE, np.float64)
        part = waveform[begin * SAMPLE_RATE : (begin + count) * SAMPLE_RATE]
        samples[: len(part)] = part
        windows = samples.reshape(count, SAMPLE_RATE)[:, :WINDOW_SAMPLES]
        frames = np.lib.stride_tricks.sliding_window_view(windows, _FRAME_SAMPLES, axis=1)[:, ::_HOP_SAMPLES]
        magnitudes = np.abs(np.fft.rfft(frames * hann, _FFT_SIZE))
        spectrograms[begin : begin + count] = np.log(magnitudes @ filters + _LOG_OFFSET)
    return spectrograms
