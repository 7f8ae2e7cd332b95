"""Weights in protobuf: the constants of a frozen TensorFlow graph, and MediaPipe's matrices. Nothing is executed."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from yt8m.errors import Yt8mError
from yt8m.extraction.messages import message_class
from yt8m.shards.wire import LENGTH_DELIMITED, MalformedRecordError, iter_fields

MAX_NODES = 20_000
"""Most nodes of a graph. That of Inception-v3 has about 1,000."""

MAX_CONSTANT_BYTES = 2**28
"""Most bytes of all constants of a graph. That of Inception-v3 has 96 MB."""

_MAX_DIMENSIONS = 8
_NODE = 1
_DTYPES = {1: np.dtype("<f4"), 3: np.dtype("<i4")}
"""TensorFlow's DT_FLOAT and DT_INT32; constants of other types are ignored."""

_ROW_MAJOR = 1


@dataclass(frozen=True)
class BatchNorm:
    """Attributes of a BatchNormWithGlobalNormalization.

    Args:
        epsilon: Added to the variance.
        is_scaled: Whether gamma is used.
    """

    epsilon: float
    is_scaled: bool


@dataclass(frozen=True)
class FrozenGraph:
    """What a frozen graph contains, by node name.

    Args:
        source: The file, for messages.
        constants: Constants, float32 and int32.
        batch_norms: Attributes of the batch norms.
    """

    source: str
    constants: Mapping[str, NDArray[Any]]
    batch_norms: Mapping[str, BatchNorm]


def read_frozen_graph(content: bytes, source: str) -> FrozenGraph:
    """Read a serialized GraphDef.

    Args:
        content: Its bytes.
        source: The file, for messages.

    Raises:
        Yt8mError: It is damaged, or is something else.
    """
    constants: dict[str, NDArray[Any]] = {}
    batch_norms: dict[str, BatchNorm] = {}
    num_nodes = num_bytes = 0
    try:
        for number, wire_type, begin, end in iter_fields(content, 0, len(content)):
            if number != _NODE or wire_type != LENGTH_DELIMITED:
                continue
            num_nodes += 1
            if num_nodes > MAX_NODES:
                raise _wrong(source, f"it has more than {MAX_NODES:,} nodes")
            node: Any = message_class("NodeDef")()
            node.ParseFromString(content[begin:end])
            name = node.name.decode(errors="replace")
            if node.op == b"Const":
                constant = _constant(node, f"{source}, {name[:100]}", MAX_CONSTANT_BYTES - num_bytes)
                if name in constants:
                    raise _wrong(source, f"it has two constants {name[:100]!r}")
                if constant is not None:
                    constants[name] = constant
                    num_bytes += constant.nbytes
            elif node.op == b"BatchNormWithGlobalNormalization":
                attributes = {attribute.key: attribute.value for attribute in node.attr}
                if {b"variance_epsilon", b"scale_after_normalization"} <= attributes.keys():
                    epsilon = attributes[b"variance_epsilon"].f
                    batch_norms[name] = BatchNorm(epsilon, attributes[b"scale_after_normalization"].b)
    except (MalformedRecordError, DecodeError) as error:
        reason = error.message.rstrip(".") if isinstance(error, MalformedRecordError) else "a node of it is damaged"
        raise _wrong(source, reason) from None
    if not constants:
        raise _wrong(source, "it has no constants")
    return FrozenGraph(source, constants, batch_norms)


def _wrong(source: str, reason: str) -> Yt8mError:
    return Yt8mError(f"{source}: is damaged, or is no frozen TensorFlow graph ({reason}).")


def _constant(node: Any, source: str, max_bytes: int) -> NDArray[Any] | None:
    """The value of a Const node; None where its type is not one of `_DTYPES`.

    TensorFlow leaves out a run of equal values at the end, so a few bytes can stand for any number of values.
    """
    tensors = [attribute.value.tensor for attribute in node.attr if attribute.key == b"value"]
    tensor = tensors[-1] if tensors else None
    dtype = None if tensor is None else _DTYPES.get(tensor.dtype)
    if tensor is None or dtype is None:
        return None
    shape = tuple(dim.size for dim in tensor.shape.dim[: _MAX_DIMENSIONS + 1])
    if len(shape) > _MAX_DIMENSIONS or any(size < 0 for size in shape):
        raise _wrong(source, "its shape is impossible")
    num_values = math.prod(shape)
    if num_values * dtype.itemsize > max_bytes:
        raise _wrong(source, f"the constants have more than {MAX_CONSTANT_BYTES:,} bytes")
    if tensor.content:
        if len(tensor.content) != num_values * dtype.itemsize:
            expected = num_values * dtype.itemsize
            raise _wrong(source, f"its shape {shape} needs {expected:,} bytes, and it has {len(tensor.content):,}")
        return np.frombuffer(tensor.content, dtype).reshape(shape)
    values = np.array(tensor.floats if dtype.kind == "f" else tensor.integers, dtype)
    if not min(1, num_values) <= len(values) <= num_values:
        raise _wrong(source, f"its shape {shape} needs {num_values:,} values, and it has {len(values):,}")
    return np.pad(values, (0, num_values - len(values)), mode="edge" if num_values else "constant").reshape(shape)


def read_matrix(content: bytes, source: str, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Read a serialized MatrixData of MediaPipe.

    Args:
        content: Its bytes.
        source: The file, for messages.
        shape: Expected rows and columns; with one column, a row is as good.

    Returns:
        float32 (rows, columns).

    Raises:
        Yt8mError: It is damaged, is something else, or has another shape.
    """
    message: Any = message_class("MatrixData")()
    try:
        message.ParseFromString(content)
    except DecodeError:
        raise Yt8mError(f"{source}: is damaged, or is no matrix of MediaPipe (it is no MatrixData).") from None
    found = (message.rows, message.cols)
    if shape[1] == 1 and found == shape[::-1]:
        found = shape
    if found != shape or len(message.values) != shape[0] * shape[1]:
        raise Yt8mError(
            f"{source}: is damaged, or is another matrix (it has {found[0]:,} rows, {found[1]:,} columns and "
            f"{len(message.values):,} values, expected {shape[0]:,} rows and {shape[1]:,} columns)."
        )
    values = np.array(message.values, np.float32)
    check_finite(values, source)
    return values.reshape(shape, order="C" if message.layout == _ROW_MAJOR else "F")


def check_finite(values: NDArray[Any], source: str) -> None:
    """Raise Yt8mError where a value is not finite."""
    if not np.isfinite(values).all():
        raise Yt8mError(f"{source}: is damaged: there are values that are not finite in it.")
