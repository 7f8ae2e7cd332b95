"""Weights of the feature extractor: which files, where they are, and the networks made from them.

There are no official digests of these files. The SHA-256 of each is recorded when it is first fetched or checked, in a
file beside them in the format of `sha256sum`, and compared whenever the file is loaded.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from yt8m.errors import UsageError, Yt8mError
from yt8m.extraction.arrays import parse_npy, read_bounded, read_tgz
from yt8m.extraction.graph import check_finite, read_frozen_graph, read_matrix
from yt8m.extraction.inception import NUM_ACTIVATIONS as NUM_FRAME_ACTIVATIONS
from yt8m.extraction.inception import InceptionV3
from yt8m.extraction.pca import PCA, quantize
from yt8m.extraction.vggish import NUM_ACTIVATIONS as NUM_AUDIO_ACTIVATIONS
from yt8m.extraction.vggish import VGGish
from yt8m.features import MODALITIES, YOUTUBE8M
from yt8m.files import cache_folder
from yt8m.runtime.console import format_bytes
from yt8m.torch_files import read_state_dict

VARIABLE = "YT8M_WEIGHTS"
"""Environment variable that names the folder of the weights."""

DIGESTS_NAME = "SHA256SUMS"
"""File with the recorded SHA-256 of each weight file."""

CPU_CHUNK, DEVICE_CHUNK = 8, 64
"""Frames, or seconds of audio, that a network processes at a time, on a CPU and on other devices."""

NUM_RGB, NUM_AUDIO = (YOUTUBE8M.bytes_of(name) for name in MODALITIES)
"""Numbers that the PCAs keep."""

_GOOGLE = "https://storage.googleapis.com"
_GRAPH_NAME = "classify_image_graph_def.pb"
_PCA_NAMES = ("mean.npy", "eigenvals.npy", "eigenvecs.npy")


@dataclass(frozen=True)
class WeightFile:
    """A file of weights.

    Args:
        name: Its name in the folder.
        description: What it contains.
        num_bytes: Its size, about.
        max_bytes: Largest size to accept.
        read: Reads and checks it; its result is an argument of `Alternative.build`.
        url: Where it is; None for a file that is part of another one.
    """

    name: str
    description: str
    num_bytes: int
    max_bytes: int
    read: Callable[[Path], Any]
    url: str | None = None

    @property
    def digest_prefix(self) -> str:
        """First digits of the file's SHA-256, where its name contains them, as names of torch.hub do."""
        match = re.search(r"-([0-9a-f]{8})\.pth$", self.name)
        return match[1] if match else ""


@dataclass(frozen=True)
class Alternative:
    """Files that are enough for a part of the extractor.

    Args:
        files: The files.
        build: Makes the part from what `WeightFile.read` returns for each.
    """

    files: tuple[WeightFile, ...]
    build: Callable[..., Any] = lambda part: part


def _read_graph(path: Path) -> InceptionV3:
    return InceptionV3.from_graph(read_frozen_graph(read_bounded(path, 2**28), str(path)))


def _read_graph_archive(path: Path) -> InceptionV3:
    content = read_tgz(path, 2**28, (_GRAPH_NAME,))[_GRAPH_NAME]
    return InceptionV3.from_graph(read_frozen_graph(content, f"{path}, {_GRAPH_NAME}"))


def _pca_array(content: bytes, source: str) -> NDArray[Any]:
    """A file of `yt8m_pca.tgz`; its name decides the shape."""
    values = parse_npy(content, source)
    columns = NUM_FRAME_ACTIVATIONS if source.endswith(_PCA_NAMES[2]) else 1
    # Only the first 1,024 components are used.
    fewest = NUM_FRAME_ACTIVATIONS if source.endswith(_PCA_NAMES[0]) else NUM_RGB
    if values.ndim != 2 or values.shape[1] != columns or not fewest <= len(values) <= NUM_FRAME_ACTIVATIONS:
        raise Yt8mError(
            f"{source}: is {values.dtype} {values.shape}, expected ({NUM_FRAME_ACTIVATIONS}, {columns}), as in "
            "yt8m_pca.tgz."
        )
    check_finite(values, source)
    if source.endswith(_PCA_NAMES[1]) and (values < 0).any():
        raise Yt8mError(f"{source}: is damaged: there are eigenvalues below zero in it.")
    return values


def _read_pca_file(path: Path) -> NDArray[Any]:
    return _pca_array(read_bounded(path, 2**27), str(path))


def _read_pca_archive(path: Path) -> PCA:
    found = read_tgz(path, 2**28, _PCA_NAMES)
    return _pca_of_arrays(*(_pca_array(found[name], f"{path}, {name}") for name in _PCA_NAMES))


def _pca_of_arrays(mean: NDArray[Any], eigenvalues: NDArray[Any], eigenvectors: NDArray[Any]) -> PCA:
    return PCA.from_eigenvectors(mean, eigenvalues, eigenvectors, NUM_RGB)


def _matrix(name: str, description: str, rows: int, columns: int) -> WeightFile:
    def read(path: Path) -> NDArray[Any]:
        return read_matrix(read_bounded(path, 2**26), str(path), (rows, columns))

    url = f"{_GOOGLE}/data.yt8m.org/pca_matrix_data/{name}"
    return WeightFile(name, description, 4 * rows * columns, 2**26, read, url)


def _read_vggish(path: Path) -> VGGish:
    return VGGish.from_state_dict(read_state_dict(path), str(path))


_VGGISH_BYTES, _MAX_VGGISH_BYTES = 288_600_000, 2**29

PARTS: dict[str, tuple[Alternative, ...]] = {
    "frames": (
        Alternative(
            (
                WeightFile(
                    "inception-2015-12-05.tgz",
                    "Inception-v3, a frozen TensorFlow graph (Google)",
                    88_931_400,
                    2**28,
                    _read_graph_archive,
                    f"{_GOOGLE}/download.tensorflow.org/models/image/imagenet/inception-2015-12-05.tgz",
                ),
            )
        ),
        Alternative(
            (WeightFile(_GRAPH_NAME, "the graph in inception-2015-12-05.tgz", 95_700_000, 2**28, _read_graph),)
        ),
    ),
    "frames_pca": (
        Alternative(
            (
                WeightFile(
                    "yt8m_pca.tgz",
                    "PCA of Inception-v3 (Google)",
                    15_000_000,
                    2**28,
                    _read_pca_archive,
                    f"{_GOOGLE}/data.yt8m.org/yt8m_pca.tgz",
                ),
            )
        ),
        Alternative(
            tuple(
                WeightFile(name, "a file of yt8m_pca.tgz", num_bytes, 2**27, _read_pca_file)
                for name, num_bytes in zip(_PCA_NAMES, (8_000, 8_000, 16_000_000), strict=True)
            ),
            _pca_of_arrays,
        ),
        Alternative(
            (
                _matrix(
                    "inception3_mean_matrix_data.pb", "PCA of Inception-v3: mean (MediaPipe)", NUM_FRAME_ACTIVATIONS, 1
                ),
                _matrix(
                    "inception3_projection_matrix_data.pb",
                    "PCA of Inception-v3 (MediaPipe)",
                    NUM_RGB,
                    NUM_FRAME_ACTIVATIONS,
                ),
            ),
            PCA.from_matrices,
        ),
    ),
    "audio": (
        Alternative(
            (
                WeightFile(
                    "vggish-10086976.pth",
                    "VGGish (torchvggish's port)",
                    _VGGISH_BYTES,
                    _MAX_VGGISH_BYTES,
                    _read_vggish,
                    "https://github.com/harritaylor/torchvggish/releases/download/v0.1/vggish-10086976.pth",
                ),
            )
        ),
        Alternative(
            (WeightFile("vggish.pth", "a state dict of torchvggish", _VGGISH_BYTES, _MAX_VGGISH_BYTES, _read_vggish),)
        ),
    ),
    "audio_pca": (
        Alternative(
            (
                _matrix("vggish_mean_matrix_data.pb", "PCA of VGGish: mean (MediaPipe)", NUM_AUDIO_ACTIVATIONS, 1),
                _matrix(
                    "vggish_projection_matrix_data.pb", "PCA of VGGish (MediaPipe)", NUM_AUDIO, NUM_AUDIO_ACTIVATIONS
                ),
            ),
            PCA.from_matrices,
        ),
    ),
}
"""The parts of the extractor: what each can be made from, and first what is fetched."""

FETCHED = tuple(file for alternatives in PARTS.values() for file in alternatives[0].files)
"""The files that are fetched."""


@dataclass(frozen=True)
class Extractor:
    """What features were extracted with.

    Args:
        name: Name of the networks.
        digest: Digest of all their weight files.
    """

    name: str
    digest: str


@dataclass(frozen=True)
class Networks:
    """The networks of the extractor, in eval mode.

    Args:
        frames: Inception-v3.
        frames_pca: Its PCA.
        audio: VGGish.
        audio_pca: Its PCA.
        extractor: What they are, for the record.
    """

    frames: InceptionV3
    frames_pca: PCA
    audio: VGGish
    audio_pca: PCA
    extractor: Extractor

    def rgb_features(self, images: Tensor) -> NDArray[Any]:
        """Features of frames.

        Args:
            images: float32 or uint8 (B, 299, 299, 3), as `resize_bilinear` makes them, on the device of `frames`.

        Returns:
            uint8 (B, 1024). A frame's features do not depend on its batch.
        """
        return self._features(self.frames, self.frames_pca, images)

    def audio_features(self, spectrograms: Tensor) -> NDArray[Any]:
        """Features of seconds of audio.

        Args:
            spectrograms: float32 (B, 96, 64), as `log_mel` makes them, on the device of `audio`.

        Returns:
            uint8 (B, 128). A second's features do not depend on its batch.
        """
        return self._features(self.audio, self.audio_pca, spectrograms)

    @torch.inference_mode()
    def _features(self, network: torch.nn.Module, pca: PCA, batch: Tensor) -> NDArray[Any]:
        """Features of a batch, in chunks of one size: the rounding of a sum depends on the size of its batch."""
        size = CPU_CHUNK if batch.device.type == "cpu" else DEVICE_CHUNK
        features = []
        for begin in range(0, len(batch), size):
            rows = batch[begin : begin + size]
            padded = torch.cat([rows, rows[:1].expand(size - len(rows), *rows.shape[1:])])
            features.append(quantize(pca(network(padded).float().cpu().numpy()))[: len(rows)])
        return np.concatenate(features)


def weights_folder() -> Path:
    """The folder of the weights: `YT8M_WEIGHTS`, or `yt8m/weights` in the user's cache.

    Raises:
        UsageError: There is no home folder to have a cache in.
    """
    return cache_folder("weights", VARIABLE)


def present(folder: Path) -> dict[str, Alternative]:
    """The first complete alternative of each part that has one."""
    complete = {}
    for part, alternatives in PARTS.items():
        for alternative in alternatives:
            if all((folder / file.name).is_file() for file in alternative.files):
                complete[part] = alternative
                break
    return complete


def load_networks(folder: Path | None = None) -> Networks:
    """Load the networks.

    Args:
        folder: Folder of the weights; `weights_folder()` by default.

    Raises:
        UsageError: Files are missing.
        Yt8mError: A file is damaged, is another one, or has changed since its SHA-256 was recorded.
    """
    folder = weights_folder() if folder is None else folder
    found = present(folder)
    missing = missing_files(folder)
    if missing:
        size = format_bytes(sum(file.num_bytes for file in missing))
        raise UsageError(
            f"{folder}: {', '.join(file.name for file in missing)} {'is' if len(missing) == 1 else 'are'} missing; "
            f"`yt8m weights` fetches what is missing (about {size}), or set {VARIABLE} to the folder that contains the "
            "weights."
        )
    recorded = read_digests(folder)
    digests: list[tuple[str, str]] = []
    parts = {}
    for part, alternative in found.items():
        contents = []
        for file in alternative.files:
            digests.append((file.name, check_digest(folder / file.name, file, recorded)))
            contents.append(file.read(folder / file.name))
        parts[part] = alternative.build(*contents)
    return Networks(**parts, extractor=Extractor("inception-vggish", _digest_of(digests)))


def _digest_of(digests: Iterable[tuple[str, str]]) -> str:
    lines = "".join(f"{digest}  {name}\n" for name, digest in digests)
    return hashlib.sha256(lines.encode()).hexdigest()


def read_digests(folder: Path) -> dict[str, str]:
    """The recorded SHA-256 of each file, by name; the last counts where there are several. Other lines are ignored."""
    path = folder / DIGESTS_NAME
    if not path.exists():
        return {}
    lines = read_bounded(path, 2**20).decode(errors="replace").splitlines()
    matches = (re.fullmatch(r"([0-9a-f]{64}) [ *](\S+)", line) for line in lines)
    return {match[2]: match[1] for match in matches if match}


def sha256(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        UsageError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}).") from None


def check_digest(path: Path, file: WeightFile, recorded: dict[str, str]) -> str:
    """Compare the SHA-256 of a file with the digits in its name and with the recorded one; return it.

    Raises:
        UsageError: The file cannot be read.
        Yt8mError: They differ, or the file is too large to be this one.
    """
    if path.stat().st_size > file.max_bytes:
        raise Yt8mError(
            f"{path}: has more than {format_bytes(file.max_bytes)}, expected about {format_bytes(file.num_bytes)}."
        )
    found = sha256(path)
    if not found.startswith(file.digest_prefix):
        raise Yt8mError(
            f"{path}: is damaged: its SHA-256 begins with {found[:8]} instead of {file.digest_prefix}, as in its name; "
            "delete it and run `yt8m weights`."
        )
    known = recorded.get(file.name, found)
    if found != known:
        raise Yt8mError(
            f"{path}: its SHA-256 was {known[:16]}... when it was first checked, and is {found[:16]}... now; delete the file "
            f"and run `yt8m weights`, or delete its line in {DIGESTS_NAME} to accept the change."
        )
    return found


def missing_files(folder: Path) -> Sequence[WeightFile]:
    """The files to fetch: those missing of the first alternative of each part that has no complete one."""
    complete = present(folder)
    wanted = [file for part, choices in PARTS.items() if part not in complete for file in choices[0].files]
    return [file for file in wanted if not (folder / file.name).is_file()]
