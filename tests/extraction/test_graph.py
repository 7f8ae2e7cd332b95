"""Frozen graphs and MediaPipe's matrices: what is read, and what damaged and hostile files cause."""

from __future__ import annotations

import struct
from contextlib import suppress

import numpy as np
import pytest

from tests.support.extraction_weights import matrix_data
from tests.support.inception_graph import (
    DT_FLOAT,
    DT_INT32,
    DT_STRING,
    a_bool,
    a_float,
    a_type,
    constant,
    field,
    node,
    tensor,
    varint,
)
from tests.support.mutations import mutations
from yt8m.errors import Yt8mError
from yt8m.extraction import graph as graphs
from yt8m.extraction.graph import BatchNorm, read_frozen_graph, read_matrix

WEIGHTS = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


def float_node(name: str, shape: tuple[int, ...], *values: float) -> bytes:
    content = field(5, struct.pack(f"<{len(values)}f", *values))
    return node(name, "Const", dtype=a_type(DT_FLOAT), value=tensor(DT_FLOAT, shape, content))


SMALL = b"".join(
    [
        constant("weights", WEIGHTS),
        constant("size", np.array([299, 299], np.int32)),
        float_node("all_equal", (2, 5), 0.5),
        float_node("listed", (3,), 1.0, 2.0, 3.0),
        float_node("scalar", (), 128.0),
        node("words", "Const", dtype=a_type(DT_STRING), value=tensor(DT_STRING, (), field(8, b"text"))),
        node(
            "norm",
            "BatchNormWithGlobalNormalization",
            ["a", "b"],
            variance_epsilon=a_float(0.25),
            scale_after_normalization=a_bool(False),
        ),
        node("relu", "Relu", ["norm"], T=a_type(DT_FLOAT)),
        field(4, varint(1, 8)),
    ]
)


def reading_error(content: bytes) -> str:
    with pytest.raises(Yt8mError) as caught:
        read_frozen_graph(content, "graph.pb")
    message = str(caught.value)
    assert message.startswith("graph.pb")
    assert message.endswith(".")
    assert "\n" not in message
    return message


def test_constants_and_attributes_are_read() -> None:
    graph = read_frozen_graph(SMALL, "graph.pb")
    assert graph.constants.keys() == {"weights", "size", "all_equal", "listed", "scalar"}
    np.testing.assert_array_equal(graph.constants["weights"], WEIGHTS)
    assert graph.constants["size"].tolist() == [299, 299]
    np.testing.assert_array_equal(graph.constants["all_equal"], np.full((2, 5), 0.5, np.float32))
    assert graph.constants["listed"].tolist() == [1, 2, 3]
    assert graph.constants["scalar"].tolist() == 128
    assert graph.batch_norms == {"norm": BatchNorm(0.25, False)}


def test_the_last_of_fewer_values_is_repeated() -> None:
    graph = read_frozen_graph(float_node("a", (2, 2), 1.0, 7.0), "graph.pb")
    assert graph.constants["a"].tolist() == [[1, 7], [7, 7]]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "it has no constants"),
        (b"<!DOCTYPE html><html>Not found</html>", "is no frozen TensorFlow graph"),
        (SMALL[:-40], "beyond the end"),
        (float_node("a", (2**20, 2**20), 1.0), "have more than 268,435,456 bytes"),
        (float_node("a", (2**62, 8), 1.0), "have more than"),
        (float_node("a", (2**25,), 1.0) * 3, "two constants 'a'"),
        (b"".join(float_node(f"a{number}", (2**25,), 1.0) for number in range(3)), "have more than 268,435,456 bytes"),
        (float_node("a", (-1 % 2**64,), 1.0), "its shape is impossible"),
        (float_node("a", (1,) * 9, 1.0), "its shape is impossible"),
        (float_node("a", (2,), 1.0, 2.0, 3.0), "needs 2 values, and it has 3"),
        (float_node("a", (2,)), "needs 2 values, and it has 0"),
        (
            node("a", "Const", value=tensor(DT_FLOAT, (3,), field(4, bytes(11)))),
            "needs 12 bytes, and it has 11",
        ),
        (constant("a", WEIGHTS) * 2, "two constants 'a'"),
        (field(1, b"") * (graphs.MAX_NODES + 1), "more than 20,000 nodes"),
    ],
)
def test_other_files_are_refused(content: bytes, expected: str) -> None:
    assert expected in reading_error(content)


def test_damaged_graphs_are_refused_or_read() -> None:
    refused = 0
    for content in mutations(SMALL, 500):
        try:
            read_frozen_graph(content, "graph.pb")
        except Yt8mError:
            refused += 1
            reading_error(content)
    assert refused > 100


def test_a_matrix_is_in_columns_unless_it_says_rows() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    for row_major in (False, True):
        found = read_matrix(matrix_data(values, row_major), "matrix.pb", (2, 3))
        np.testing.assert_array_equal(found, values)
    # MediaPipe's own order, by hand: rows 2, columns 3, the values of the first column first.
    packed = struct.pack("<6f", 0, 3, 1, 4, 2, 5)
    by_hand = b"\x08\x02\x10\x03\x1a\x18" + packed
    np.testing.assert_array_equal(read_matrix(by_hand, "matrix.pb", (2, 3)), values)
    np.testing.assert_array_equal(read_matrix(matrix_data(values[:1]), "mean.pb", (3, 1)), values[:1].T)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html></html>",
        matrix_data(np.zeros((3, 2), np.float32)),
        matrix_data(np.full((2, 3), np.nan, np.float32)),
        matrix_data(np.zeros((2, 3), np.float32))[:-1],
        matrix_data(np.zeros((2, 3), np.float32)).replace(b"\x08\x02", b"\x08\x04"),
    ],
)
def test_other_matrices_are_refused(content: bytes) -> None:
    with pytest.raises(Yt8mError, match=r"^matrix\.pb: is damaged.*\.$"):
        read_matrix(content, "matrix.pb", (2, 3))


def test_damaged_matrices_are_refused_or_read() -> None:
    content = matrix_data(np.arange(600, dtype=np.float32).reshape(20, 30))
    for damaged in mutations(content, 300):
        with suppress(Yt8mError):
            assert read_matrix(damaged, "matrix.pb", (20, 30)).shape == (20, 30)


def test_integer_constants_may_be_listed() -> None:
    content = node("a", "Const", value=tensor(DT_INT32, (2,), field(7, b"\x05\x07")))
    assert read_frozen_graph(content, "graph.pb").constants["a"].tolist() == [5, 7]
