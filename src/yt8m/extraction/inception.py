"""Inception-v3 of 2015-12-05, as far as its 2,048 activations before the classifier.

It is not torchvision's network: average pools leave the padding out, the pool branch of the last block takes the maximum,
and batch norm has an epsilon of 0.001. Batch norm is folded into the convolutions.

Dimensions: B frames, 299 x 299 pixels.
"""

import math
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import relu

from yt8m.errors import Yt8mError
from yt8m.extraction.graph import BatchNorm, FrozenGraph, check_finite
from yt8m.extraction.resize import SIZE

NUM_ACTIVATIONS = 2048
"""Size of the output."""

_INPUT = {"ResizeBilinear/size": [SIZE, SIZE], "Sub/y": [128.0], "Mul/y": [1 / 128]}
"""Constants of the graph's input, which are part of the code here."""


class Convolution(nn.Conv2d):
    """A convolution with folded batch norm, and ReLU.

    Args:
        name: Name of its scope in the graph.
        num_in: Input channels.
        num_out: Output channels.
        kernel: Height and width of the kernel.
        stride: Step in both directions; with more than 1, or without `padded`, there is no padding.
        padded: Whether the output is as large as the input.
    """

    def __init__(
        self, name: str, num_in: int, num_out: int, kernel: tuple[int, int], *, stride: int = 1, padded: bool = True
    ) -> None:
        padding = (kernel[0] // 2, kernel[1] // 2) if padded and stride == 1 else 0
        super().__init__(num_in, num_out, kernel, stride, padding)
        self.name = name

    def load(self, graph: FrozenGraph) -> None:
        """Take weights and batch norm from a graph.

        Raises:
            Yt8mError: They are not in it, or not of this shape.
        """
        shape = (*self.kernel_size, self.in_channels, self.out_channels)
        kernel = _constant(graph, f"{self.name}/conv2d_params", shape)
        beta, gamma, mean, variance = (
            _constant(graph, f"{self.name}/batchnorm/{part}", shape[-1:])
            for part in ("beta", "gamma", "moving_mean", "moving_variance")
        )
        norm = graph.batch_norms.get(f"{self.name}/batchnorm", BatchNorm(0.001, True))
        if not ((variance >= 0).all() and 0 < norm.epsilon < math.inf):
            raise Yt8mError(f"{graph.source}: is damaged: the batch norm of {self.name} has a negative variance.")
        scale = (gamma if norm.is_scaled else 1.0) / np.sqrt(variance + norm.epsilon)
        folded = (kernel * scale).transpose(3, 2, 0, 1)
        self.weight = nn.Parameter(_tensor(folded), requires_grad=False)
        self.bias = nn.Parameter(_tensor(beta - mean * scale), requires_grad=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Convolve (B, channels, H, W)."""
        return relu(super().forward(maps), inplace=True)


def _tensor(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))


def _constant(graph: FrozenGraph, name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    found = graph.constants.get(name)
    if found is None or found.shape != shape or found.dtype.kind != "f":
        what = "is missing" if found is None else f"is {found.dtype} {found.shape}"
        raise Yt8mError(
            f"{graph.source}: is not the graph of Inception-v3 of 2015-12-05: {name} {what}, expected float32 {shape}."
        )
    check_finite(found, f"{graph.source}, {name}")
    return found.astype(np.float64)


class _Joined(nn.Module):
    """Branches whose outputs are concatenated."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, maps: Tensor) -> Tensor:
        return torch.cat([branch(maps) for branch in self.branches], dim=1)


_Kernel = tuple[int, int, int]
"""Height and width of a kernel, and output channels."""


def _tower(scope: str, num_in: int, *kernels: _Kernel, last_stride: int = 1) -> nn.Sequential:
    """Convolutions in sequence: `scope/conv`, `scope/conv_1`, ..."""
    layers = []
    for number, (height, width, num_out) in enumerate(kernels):
        name = f"{scope}/conv_{number}" if number else f"{scope}/conv"
        stride = last_stride if number == len(kernels) - 1 else 1
        layers.append(Convolution(name, num_in, num_out, (height, width), stride=stride))
        num_in = num_out
    return nn.Sequential(*layers)


def _pooled(scope: str, num_in: int, num_out: int, takes_maximum: bool = False) -> nn.Sequential:
    """The pool branch of a block that keeps the size."""
    pool = nn.MaxPool2d(3, 1, 1) if takes_maximum else nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    return nn.Sequential(pool, *_tower(f"{scope}/tower_2", num_in, (1, 1, num_out)))


def _block_35(scope: str, num_in: int, num_pooled: int) -> _Joined:
    return _Joined(
        _tower(scope, num_in, (1, 1, 64)),
        _tower(f"{scope}/tower", num_in, (1, 1, 48), (5, 5, 64)),
        _tower(f"{scope}/tower_1", num_in, (1, 1, 64), (3, 3, 96), (3, 3, 96)),
        _pooled(scope, num_in, num_pooled),
    )


def _block_17(scope: str, size: int) -> _Joined:
    tall, wide = (7, 1, size), (1, 7, size)
    return _Joined(
        _tower(scope, 768, (1, 1, 192)),
        _tower(f"{scope}/tower", 768, (1, 1, size), wide, (7, 1, 192)),
        _tower(f"{scope}/tower_1", 768, (1, 1, size), tall, wide, tall, (1, 7, 192)),
        _pooled(scope, 768, 192),
    )


def _forked(scope: str, num_in: int, *kernels: _Kernel) -> nn.Sequential:
    """A tower that ends in two convolutions side by side, 1 x 3 and 3 x 1."""
    tower = _tower(scope, num_in, *kernels)
    wide = Convolution(f"{scope}/mixed/conv", kernels[-1][2], 384, (1, 3))
    tall = Convolution(f"{scope}/mixed/conv_1", kernels[-1][2], 384, (3, 1))
    return nn.Sequential(*tower, _Joined(wide, tall))


def _block_8(scope: str, num_in: int, takes_maximum: bool) -> _Joined:
    return _Joined(
        _tower(scope, num_in, (1, 1, 320)),
        _forked(f"{scope}/tower", num_in, (1, 1, 384)),
        _forked(f"{scope}/tower_1", num_in, (1, 1, 448), (3, 3, 384)),
        _pooled(scope, num_in, 192, takes_maximum),
    )


def _layers() -> nn.Sequential:
    return nn.Sequential(
        Convolution("conv", 3, 32, (3, 3), stride=2),
        Convolution("conv_1", 32, 32, (3, 3), padded=False),
        Convolution("conv_2", 32, 64, (3, 3)),
        nn.MaxPool2d(3, 2),
        Convolution("conv_3", 64, 80, (1, 1)),
        Convolution("conv_4", 80, 192, (3, 3), padded=False),
        nn.MaxPool2d(3, 2),
        _block_35("mixed", 192, 32),
        _block_35("mixed_1", 256, 64),
        _block_35("mixed_2", 288, 64),
        _Joined(
            _tower("mixed_3", 288, (3, 3, 384), last_stride=2),
            _tower("mixed_3/tower", 288, (1, 1, 64), (3, 3, 96), (3, 3, 96), last_stride=2),
            nn.MaxPool2d(3, 2),
        ),
        _block_17("mixed_4", 128),
        _block_17("mixed_5", 160),
        _block_17("mixed_6", 160),
        _block_17("mixed_7", 192),
        _Joined(
            _tower("mixed_8/tower", 768, (1, 1, 192), (3, 3, 320), last_stride=2),
            _tower("mixed_8/tower_1", 768, (1, 1, 192), (1, 7, 192), (7, 1, 192), (3, 3, 192), last_stride=2),
            nn.MaxPool2d(3, 2),
        ),
        _block_8("mixed_9", 1280, takes_maximum=False),
        _block_8("mixed_10", 2048, takes_maximum=True),
    )


class InceptionV3(nn.Module):
    """The network; `from_graph` is the way to make it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = _layers()

    @classmethod
    def from_graph(cls, graph: FrozenGraph) -> Self:
        """The network in eval mode, with the constants of the frozen graph.

        Raises:
            Yt8mError: The graph is another one, or damaged.
        """
        for name, expected in _INPUT.items():
            found = graph.constants.get(name)
            if found is None or not found.ravel().tolist() == expected:
                raise Yt8mError(
                    f"{graph.source}: is not the graph of Inception-v3 of 2015-12-05: {name} is "
                    f"{'missing' if found is None else found.ravel()[:4].tolist()}, expected {expected}."
                )
        with torch.device("meta"):
            network = cls()
        for module in network.modules():
            if isinstance(module, Convolution):
                module.load(graph)
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
        return network.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Activations after the last average pool.

        Args:
            images: (B, 299, 299, 3), RGB from 0 to 255, resized by `resize_bilinear`.

        Returns:
            (B, 2048), of the type of the weights.
        """
        maps = (images.float() - 128) * (1 / 128)
        # Channels-last memory, as the images have it already.
        activations: Tensor = self.layers(maps.permute(0, 3, 1, 2).to(next(self.parameters()).dtype))
        return activations.mean((2, 3))
