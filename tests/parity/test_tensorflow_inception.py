"""Inception-v3 and the bilinear resize equal TensorFlow, which runs a frozen graph with the original's nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.support.inception_graph import random_graph
from tests.support.tensorflow import tf
from yt8m.extraction.graph import read_frozen_graph
from yt8m.extraction.inception import InceptionV3
from yt8m.extraction.resize import resize_bilinear

Frame = NDArray[np.uint8]
SIZES = [(240, 320), (101, 77), (723, 1281)]


def random_frame(height: int, width: int, seed: int = 0) -> Frame:
    """A frame with smooth areas and noise."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3))
    smooth = coarse.repeat(16, 0).repeat(16, 1)[:height, :width]
    return np.clip(smooth + generator.integers(-20, 21, (height, width, 3)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def content() -> bytes:
    return random_graph()


@pytest.fixture(scope="module")
def run(content: bytes) -> Iterator[Callable[[str, Frame], NDArray[np.float32]]]:
    """Runs the graph: the value of a tensor for a frame."""
    definition = tf.compat.v1.GraphDef.FromString(content)
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(definition, name="")
        options: Any = tf.compat.v1.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=1)
        with tf.compat.v1.Session(graph=graph, config=options) as session:
            yield lambda name, frame: session.run(name, {"DecodeJpeg:0": frame})


@pytest.fixture(scope="module")
def network(content: bytes) -> InceptionV3:
    return InceptionV3.from_graph(read_frozen_graph(content, "the graph"))


@pytest.mark.parametrize("size", SIZES)
def test_activations_equal_those_of_tensorflow(
    run: Callable[[str, Frame], NDArray[np.float32]], network: InceptionV3, size: tuple[int, int]
) -> None:
    frame = random_frame(*size)
    expected = run("pool_3/_reshape:0", frame)[0]
    assert expected.shape == (2048,)
    assert 0.1 < expected.std() / expected.mean() < 10, "the activations must differ"
    with torch.inference_mode():
        found = network(torch.from_numpy(resize_bilinear(frame))[None])[0].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * expected.mean())
    assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("size", [*SIZES, (1, 1), (2, 3), (299, 299), (598, 300), (1, 4000), (1080, 1920), (4320, 7)])
def test_the_resized_frame_is_bit_for_bit_that_of_tensorflow(
    run: Callable[[str, Frame], NDArray[np.float32]], size: tuple[int, int]
) -> None:
    frame = random_frame(*size)
    expected = run("ResizeBilinear:0", frame)[0]
    np.testing.assert_array_equal(resize_bilinear(frame), expected)
    # A view of other memory, as decoders have them.
    wider = np.zeros((frame.shape[0], frame.shape[1] + 5, 3), np.uint8)
    wider[:, :-5] = frame
    np.testing.assert_array_equal(resize_bilinear(wider[:, :-5]), expected)
