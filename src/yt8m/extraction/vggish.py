"""VGGish up to its last dense layer, before that layer's ReLU.

Dimensions: B windows of 0.96 s, 96 frames, 64 mel bands.
"""

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn

from yt8m.errors import Yt8mError
from yt8m.extraction.log_mel import NUM_BANDS, NUM_FRAMES

NUM_ACTIVATIONS = 128
"""Size of the last dense layer."""

_CHANNELS = ((64,), (128,), (256, 256), (512, 512))
"""Output channels of the convolutions; a max pool follows each group."""

_DENSE = 4096


class VGGish(nn.Module):
    """The network; its modules have the names of `torchvggish`, whose state dict it loads."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        num_in = 1
        for group in _CHANNELS:
            for num_out in group:
                layers += [nn.Conv2d(num_in, num_out, 3, padding=1), nn.ReLU(inplace=True)]
                num_in = num_out
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        num_pooled = num_in * (NUM_FRAMES // 16) * (NUM_BANDS // 16)
        self.embeddings = nn.Sequential(
            nn.Linear(num_pooled, _DENSE),
            nn.ReLU(inplace=True),
            nn.Linear(_DENSE, _DENSE),
            nn.ReLU(inplace=True),
            nn.Linear(_DENSE, NUM_ACTIVATIONS),
        )

    @classmethod
    def from_state_dict(cls, tensors: Mapping[str, Tensor], source: str) -> Self:
        """The network in eval mode, with the weights of a state dict of `torchvggish`.

        Args:
            tensors: float32 tensors by name; they are not copied.
            source: The file, for messages.

        Raises:
            Yt8mError: Tensors are missing, unknown, misshapen or not finite.
        """
        with torch.device("meta"):
            network = cls()
        expected = network.state_dict()
        for name in sorted(expected.keys() | tensors.keys()):
            if name not in tensors or name not in expected:
                problem = "unknown" if name in tensors else "missing"
                raise Yt8mError(f"{source}: is no state dict of VGGish: {name[:60]} is {problem}.")
            found, wanted = tensors[name], expected[name]
            if found.shape != wanted.shape or found.dtype != wanted.dtype:
                raise Yt8mError(
                    f"{source}: is no state dict of VGGish: {name} is {found.dtype} {tuple(found.shape)}, expected "
                    f"{wanted.dtype} {tuple(wanted.shape)}."
                )
            if not found.isfinite().all():
                raise Yt8mError(f"{source}: is damaged: there are values that are not finite in {name}.")
        network.load_state_dict(tensors, assign=True)
        return network.requires_grad_(False).eval()

    def forward(self, spectrograms: Tensor) -> Tensor:
        """Activations of the last dense layer.

        Args:
            spectrograms: (B, 96, 64), log-mel.

        Returns:
            (B, 128), without the ReLU.
        """
        maps = self.features(spectrograms.unsqueeze(1))
        # TensorFlow's order: the channels last.
        activations: Tensor = self.embeddings(maps.permute(0, 2, 3, 1).flatten(1))
        return activations
