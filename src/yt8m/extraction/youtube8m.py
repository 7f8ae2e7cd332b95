"""The extractor of YouTube-8M: Inception-v3 of 2015 and VGGish, each with a PCA, and 8 bits per feature."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from yt8m.extraction.log_mel import SAMPLE_RATE, log_mel
from yt8m.extraction.resize import SIZE
from yt8m.extraction.weights import Networks, load_networks


@dataclass(frozen=True)
class YouTube8M:
    """Extracts the features of YouTube-8M; see `Extractor`.

    Args:
        networks: The networks.
        device: Their device.
    """

    networks: Networks
    device: torch.device

    frame_size = SIZE

    @classmethod
    def load(cls, device: torch.device, weights: Path | None = None) -> "YouTube8M":
        """Load the networks; see `load_networks`."""
        networks = load_networks(weights)
        networks.frames.to(device)
        networks.audio.to(device)
        return cls(networks, device)

    @property
    def name(self) -> str:
        """Name of the networks."""
        return self.networks.extractor.name

    @property
    def digest(self) -> str:
        """Digest of all weights."""
        return self.networks.extractor.digest

    def rgb(self, frames: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Features of frames float32 (n, 299, 299, 3), values 0 to 255: uint8 (n, 1024)."""
        return self.networks.rgb_features(torch.from_numpy(frames).to(self.device))

    def audio(self, windows: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Features of windows float32 (n, 15600), mono at 16 kHz: uint8 (n, 128)."""
        seconds = np.pad(windows, ((0, 0), (0, SAMPLE_RATE - windows.shape[1])))
        spectrograms = log_mel(seconds.ravel(), len(seconds))
        return self.networks.audio_features(torch.from_numpy(spectrograms).to(self.device))
