"""The frozen graph of Inception-v3 of 2015-12-05 with random weights: serialized without TensorFlow, which can run it.

Written from the description of the original's nodes, apart from the network in `yt8m.extraction`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from yt8m.shards.wire import delimited_header, encode_varint

DT_FLOAT, DT_UINT8, DT_INT32, DT_STRING = 1, 4, 3, 7
EPSILON = 0.001


def field(number: int, content: bytes) -> bytes:
    """A length-delimited field."""
    return delimited_header(number, len(content)) + content


def varint(number: int, value: int) -> bytes:
    """A field with a number."""
    return encode_varint(number << 3) + encode_varint(value)


def a_type(value: int) -> bytes:
    return varint(6, value)


def a_bool(value: bool) -> bytes:
    return varint(5, int(value))


def an_int(value: int) -> bytes:
    return varint(3, value)


def a_float(value: float) -> bytes:
    return encode_varint(4 << 3 | 5) + struct.pack("<f", value)


def a_string(value: bytes) -> bytes:
    return field(2, value)


def ints(*values: int) -> bytes:
    return field(1, field(3, b"".join(map(encode_varint, values))))


def node(name: str, op: str, inputs: Iterable[str] = (), **attributes: bytes) -> bytes:
    """A node of a GraphDef, as its serialized field."""
    entries = [field(5, field(1, key.encode()) + field(2, value)) for key, value in attributes.items()]
    parts = [field(1, name.encode()), field(2, op.encode()), *(field(3, text.encode()) for text in inputs), *entries]
    return field(1, b"".join(parts))


def tensor(dtype: int, shape: tuple[int, ...], values: bytes) -> bytes:
    """A TensorProto in an attribute; `values` are fields of it."""
    dims = b"".join(field(2, varint(1, size)) for size in shape)
    return field(8, varint(1, dtype) + field(2, dims) + values)


def constant(name: str, values: NDArray[np.float32] | NDArray[np.int32]) -> bytes:
    """A Const node."""
    dtype = DT_FLOAT if values.dtype == np.float32 else DT_INT32
    value = tensor(dtype, values.shape, field(4, values.tobytes()))
    return node(name, "Const", dtype=a_type(dtype), value=value)


class GraphOfInception:
    """Builds the nodes; `content` is the serialized GraphDef."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._nodes: list[bytes] = []
        self._channels: dict[str, int] = {}
        last = self._input()
        for name, kernel, stride, padding in (
            ("conv", (3, 3, 32), 2, "VALID"),
            ("conv_1", (3, 3, 32), 1, "VALID"),
            ("conv_2", (3, 3, 64), 1, "SAME"),
        ):
            last = self.convolution(name, last, kernel, stride, padding)
        last = self.pool("pool", "MaxPool", last, 3, 2, "VALID")
        last = self.convolution("conv_3", last, (1, 1, 80))
        last = self.convolution("conv_4", last, (3, 3, 192), padding="VALID")
        last = self.pool("pool_1", "MaxPool", last, 3, 2, "VALID")
        for scope, width in (("mixed", 32), ("mixed_1", 64), ("mixed_2", 64)):
            first = self.convolution(f"{scope}/conv", last, (1, 1, 64))
            tower = self.tower(f"{scope}/tower", last, (1, 1, 48), (5, 5, 64))
            tower_1 = self.tower(f"{scope}/tower_1", last, (1, 1, 64), (3, 3, 96), (3, 3, 96))
            last = self.join(scope, first, tower, tower_1, self.pool_tower(scope, "AvgPool", last, width))
        first = self.convolution("mixed_3/conv", last, (3, 3, 384), 2, "VALID")
        tower = self.tower("mixed_3/tower", last, (1, 1, 64), (3, 3, 96), (3, 3, 96), stride=2)
        last = self.join("mixed_3", first, tower, self.pool("mixed_3/pool", "MaxPool", last, 3, 2, "VALID"))
        for scope, size in (("mixed_4", 128), ("mixed_5", 160), ("mixed_6", 160), ("mixed_7", 192)):
            first = self.convolution(f"{scope}/conv", last, (1, 1, 192))
            tower = self.tower(f"{scope}/tower", last, (1, 1, size), (1, 7, size), (7, 1, 192))
            kernels = (1, 1, size), (7, 1, size), (1, 7, size), (7, 1, size), (1, 7, 192)
            tower_1 = self.tower(f"{scope}/tower_1", last, *kernels)
            last = self.join(scope, first, tower, tower_1, self.pool_tower(scope, "AvgPool", last, 192))
        tower = self.tower("mixed_8/tower", last, (1, 1, 192), (3, 3, 320), stride=2)
        tower_1 = self.tower("mixed_8/tower_1", last, (1, 1, 192), (1, 7, 192), (7, 1, 192), (3, 3, 192), stride=2)
        last = self.join("mixed_8", tower, tower_1, self.pool("mixed_8/pool", "MaxPool", last, 3, 2, "VALID"))
        for scope, kind in (("mixed_9", "AvgPool"), ("mixed_10", "MaxPool")):
            first = self.convolution(f"{scope}/conv", last, (1, 1, 320))
            tower = self.fork(f"{scope}/tower", last, (1, 1, 384))
            tower_1 = self.fork(f"{scope}/tower_1", last, (1, 1, 448), (3, 3, 384))
            last = self.join(scope, first, tower, tower_1, self.pool_tower(scope, kind, last, 192))
        last = self.pool("pool_3", "AvgPool", last, 8, 1, "VALID")
        self._nodes.append(constant("pool_3/_reshape/shape", np.array([-1, 2048], np.int32)))
        self._add(
            "pool_3/_reshape", "Reshape", [last, "pool_3/_reshape/shape"], T=a_type(DT_FLOAT), Tshape=a_type(DT_INT32)
        )
        # The producer's version 8: batch norm of this kind was removed in 9.
        self.content = b"".join([*self._nodes, field(4, varint(1, 8))])

    def _add(self, name: str, op: str, inputs: Iterable[str], **attributes: bytes) -> str:
        self._nodes.append(node(name, op, inputs, **attributes))
        return name

    def _input(self) -> str:
        picture = tensor(DT_STRING, (), field(8, b""))
        float_type = a_type(DT_FLOAT)
        self._add("DecodeJpeg/contents", "Const", [], dtype=a_type(DT_STRING), value=picture)
        self._add("DecodeJpeg", "DecodeJpeg", ["DecodeJpeg/contents"], channels=an_int(3))
        self._add("Cast", "Cast", ["DecodeJpeg"], SrcT=a_type(DT_UINT8), DstT=float_type)
        self._nodes.append(constant("ExpandDims/dim", np.array(0, np.int32)))
        self._add("ExpandDims", "ExpandDims", ["Cast", "ExpandDims/dim"], T=float_type)
        self._nodes.append(constant("ResizeBilinear/size", np.array([299, 299], np.int32)))
        self._add("ResizeBilinear", "ResizeBilinear", ["ExpandDims", "ResizeBilinear/size"], T=float_type)
        for name, before, number in (("Sub", "ResizeBilinear", 128.0), ("Mul", "Sub", 1 / 128)):
            # Not all constants are raw bytes.
            value = tensor(DT_FLOAT, (), field(5, struct.pack("<f", number)))
            self._add(f"{name}/y", "Const", [], dtype=float_type, value=value)
            self._add(name, name, [before, f"{name}/y"], T=float_type)
        self._channels["Mul"] = 3
        return "Mul"

    def convolution(
        self, name: str, before: str, kernel: tuple[int, int, int], stride: int = 1, padding: str = "SAME"
    ) -> str:
        height, width, num_out = kernel
        num_in = self._channels[before]
        draw = self._random
        deviation = np.sqrt(2 / (height * width * num_in))
        weights = draw.standard_normal((height, width, num_in, num_out), np.float32) * np.float32(deviation)
        self._nodes.append(constant(f"{name}/conv2d_params", weights))
        convolved = self._add(
            f"{name}/Conv2D",
            "Conv2D",
            [before, f"{name}/conv2d_params"],
            T=a_type(DT_FLOAT),
            strides=ints(1, stride, stride, 1),
            padding=a_string(padding.encode()),
        )
        norm = f"{name}/batchnorm"
        for part, values in (
            ("beta", draw.normal(0, 0.2, num_out)),
            ("gamma", draw.uniform(0.6, 1.4, num_out)),
            ("moving_mean", draw.normal(0, 0.2, num_out)),
            # Small ones too, where the epsilon matters.
            ("moving_variance", draw.uniform(0.3, 1.5, num_out) * np.where(draw.random(num_out) < 0.02, 0.003, 1)),
        ):
            self._nodes.append(constant(f"{norm}/{part}", values.astype(np.float32)))
        self._add(
            norm,
            "BatchNormWithGlobalNormalization",
            [convolved, *(f"{norm}/{part}" for part in ("moving_mean", "moving_variance", "beta", "gamma"))],
            T=a_type(DT_FLOAT),
            variance_epsilon=a_float(EPSILON),
            # The attribute decides whether gamma is used.
            scale_after_normalization=a_bool(len(self._nodes) % 3 > 0),
        )
        self._channels[name] = num_out
        return self._add(name, "Relu", [norm], T=a_type(DT_FLOAT))

    def tower(self, scope: str, before: str, *kernels: tuple[int, int, int], stride: int = 1) -> str:
        for number, kernel in enumerate(kernels):
            name = f"{scope}/conv" + (f"_{number}" if number else "")
            is_last = number == len(kernels) - 1
            if is_last and stride == 2:
                before = self.convolution(name, before, kernel, 2, "VALID")
            else:
                before = self.convolution(name, before, kernel)
        return before

    def fork(self, scope: str, before: str, *kernels: tuple[int, int, int]) -> str:
        before = self.tower(scope, before, *kernels)
        wide = self.convolution(f"{scope}/mixed/conv", before, (1, 3, 384))
        tall = self.convolution(f"{scope}/mixed/conv_1", before, (3, 1, 384))
        return self.join(f"{scope}/mixed", wide, tall)

    def pool(self, name: str, op: str, before: str, size: int, stride: int, padding: str) -> str:
        self._channels[name] = self._channels[before]
        return self._add(
            name,
            op,
            [before],
            T=a_type(DT_FLOAT),
            ksize=ints(1, size, size, 1),
            strides=ints(1, stride, stride, 1),
            padding=a_string(padding.encode()),
        )

    def pool_tower(self, scope: str, op: str, before: str, width: int) -> str:
        pooled = self.pool(f"{scope}/tower_2/pool", op, before, 3, 1, "SAME")
        return self.convolution(f"{scope}/tower_2/conv", pooled, (1, 1, width))

    def join(self, scope: str, *parts: str) -> str:
        name = f"{scope}/join"
        self._channels[name] = sum(self._channels[part] for part in parts)
        self._nodes.append(constant(f"{name}/concat_dim", np.array(3, np.int32)))
        return self._add(name, "Concat", [f"{name}/concat_dim", *parts], T=a_type(DT_FLOAT), N=an_int(len(parts)))


def random_graph(seed: int = 0) -> bytes:
    """The serialized graph, about 87 MB."""
    return GraphOfInception(seed).content
