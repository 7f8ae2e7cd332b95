"""Weight files of the feature extractor with random values, in the official formats and sizes."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tests.support.inception_graph import random_graph
from tests.support.wire import delimited, varint

GRAPH, GRAPH_ARCHIVE = "classify_image_graph_def.pb", "inception-2015-12-05.tgz"
PCA_ARCHIVE, VGGISH = "yt8m_pca.tgz", "vggish.pth"
VGGISH_MATRICES = ("vggish_mean_matrix_data.pb", "vggish_projection_matrix_data.pb")
INCEPTION_MATRICES = ("inception3_mean_matrix_data.pb", "inception3_projection_matrix_data.pb")


def matrix_data(values: NDArray[np.float32], row_major: bool = False) -> bytes:
    """A serialized MatrixData of MediaPipe; without a layout, it is in columns."""
    packed = values.astype("<f4").tobytes("C" if row_major else "F")
    rows, columns = values.shape
    header = varint(1 << 3) + varint(rows) + varint(2 << 3) + varint(columns)
    return header + delimited(3, packed) + (varint(4 << 3) + varint(1) if row_major else b"")


def npy(values: NDArray[np.generic]) -> bytes:
    file = io.BytesIO()
    np.save(file, values, allow_pickle=False)
    return file.getvalue()


def write_tgz(path: Path, files: Mapping[str, bytes], level: int = 0) -> None:
    """An archive of files, in gzip's format even where it is not compressed."""
    with tarfile.open(path, "w:gz", compresslevel=level) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def random_pca(seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """The arrays of `yt8m_pca.tgz` by file name."""
    generator = np.random.default_rng(seed)
    vectors = generator.standard_normal((2048, 2048), np.float32) / np.float32(45)
    return {
        "mean.npy": generator.uniform(0, 0.8, (2048, 1)).astype(np.float32),
        "eigenvals.npy": np.sort(generator.exponential(0.2, (2048, 1)), axis=0)[::-1].astype(np.float32),
        "eigenvecs.npy": vectors,
    }


def random_vggish(seed: int = 0) -> dict[str, torch.Tensor]:
    """A state dict with the names and shapes of torchvggish."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    convolutions = ((0, 1, 64), (3, 64, 128), (6, 128, 256), (8, 256, 256), (11, 256, 512), (13, 512, 512))
    dense = ((0, 512 * 4 * 6, 4096), (2, 4096, 4096), (4, 4096, 128))
    shapes = {f"features.{number}": (num_out, num_in, 3, 3) for number, num_in, num_out in convolutions}
    shapes |= {f"embeddings.{number}": (num_out, num_in) for number, num_in, num_out in dense}
    for name, shape in shapes.items():
        deviation = (2 / np.prod(shape[1:])) ** 0.5
        tensors[f"{name}.weight"] = torch.randn(shape, generator=generator) * deviation
        tensors[f"{name}.bias"] = torch.randn(shape[0], generator=generator) * 0.1
    return tensors


def random_matrices(names: tuple[str, str], size: int, components: int, seed: int = 0) -> dict[str, bytes]:
    """MediaPipe's mean and projection."""
    generator = np.random.default_rng(seed)
    mean = generator.normal(0, 0.5, (size, 1)).astype(np.float32)
    projection = generator.standard_normal((components, size), np.float32) / np.float32(size**0.5)
    return {names[0]: matrix_data(mean), names[1]: matrix_data(projection)}


def write_random_weights(folder: Path, seed: int = 0) -> Path:
    """A folder of weights with random values, 400 MB; features made with them mean nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tgz(folder / GRAPH_ARCHIVE, {"LICENSE": b"Apache", GRAPH: random_graph(seed)})
    write_tgz(folder / PCA_ARCHIVE, {name: npy(values) for name, values in random_pca(seed).items()})
    torch.save(random_vggish(seed), folder / VGGISH)
    for name, content in random_matrices(VGGISH_MATRICES, 128, 128, seed).items():
        (folder / name).write_bytes(content)
    return folder
