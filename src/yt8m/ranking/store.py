"""Probabilities on disk: what `predict` leaves for `submit`, so that models can be merged anew without predicting again.

A folder of predictions holds `predictions.yaml` (what was predicted, from which videos and with which vocabulary) and
one float32 `.npy` file (S, C) a model. It is written beside its final name and renamed when it is whole, so an
interrupted prediction can never be taken for a finished one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from yt8m.errors import UsageError, Yt8mError
from yt8m.files import written_atomically
from yt8m.ranking.predict import Predictions
from yt8m.ranking.topk import Segments
from yt8m.settings import Settings, read_yaml, to_yaml, validated

FORMAT_VERSION = 1
_INDEX = "predictions.yaml"


class StoreIndex(Settings):
    """What a folder of predictions says of itself."""

    format_version: int
    """Version of this layout."""
    models: list[str]
    """Names of the models; `<name>.npy` holds each one's probabilities."""
    vocabulary: str
    """Digest of the vocabulary."""
    catalog: str
    """Digest of the catalog whose segments were predicted."""
    num_segments: int
    """S."""
    num_classes: int
    """C."""


@dataclass(frozen=True, eq=False)
class Store:
    """Predictions of some models for the same segments."""

    folder: Path
    index: StoreIndex

    @classmethod
    def open(cls, folder: Path) -> Store:
        """Open a folder of predictions.

        Raises:
            UsageError: It is not one, or of another version.
        """
        if not folder.is_dir():
            raise UsageError(f"{folder}: there is no such folder of predictions; `yt8m predict` makes one.")
        if not (folder / _INDEX).is_file():
            raise UsageError(
                f"{folder}: is not a folder of predictions (it has no {_INDEX}); `yt8m predict` makes one."
            )
        index = validated(StoreIndex, read_yaml(folder / _INDEX), str(folder / _INDEX))
        if index.format_version != FORMAT_VERSION:
            raise UsageError(
                f"{folder}: predictions of version {index.format_version}, expected {FORMAT_VERSION}; predict again."
            )
        return cls(folder, index)

    def probabilities(self, model: str) -> NDArray[np.float32]:
        """A model's probabilities, float32 (S, C), as a read-only memory map.

        Raises:
            Yt8mError: The file is missing or not of this shape.
        """
        path = self.folder / f"{model}.npy"
        expected = (self.index.num_segments, self.index.num_classes)
        try:
            array: NDArray[np.float32] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise Yt8mError(f"{path}: cannot be read ({error}).") from None
        if array.shape != expected or array.dtype != np.float32:
            raise Yt8mError(f"{path}: expected float32 {expected}, found {array.dtype} {array.shape}.")
        return array


def write_store(
    folder: Path,
    predictions: Iterable[Predictions],
    models: Sequence[str],
    segments: Segments,
    num_classes: int,
    vocabulary_digest: str,
    catalog_digest: str,
) -> Store:
    """Write predictions as they come.

    Args:
        folder: The folder to make; replaced when it holds former predictions, refused when it holds something else.
        predictions: Of all segments, each once.
        models: Names of the models.
        segments: What is predicted.
        num_classes: C.
        vocabulary_digest: Names the columns.
        catalog_digest: Names the rows.

    Raises:
        UsageError: The folder holds something else.
        Yt8mError: There is not enough space on the disk, or a segment was not predicted.
    """
    if folder.exists() and not (folder / _INDEX).is_file():
        raise UsageError(f"{folder}: exists and is not a folder of predictions; give a new folder.")
    needed = 4 * len(segments) * num_classes * len(models)
    existing = next(parent for parent in [folder, *folder.absolute().parents] if parent.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise Yt8mError(
            f"{folder}: the predictions need {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free. "
            "Free some space, predict fewer models at a time, or let `yt8m run` rank them without storing."
        )
    index = StoreIndex(
        format_version=FORMAT_VERSION,
        models=list(models),
        vocabulary=vocabulary_digest,
        catalog=catalog_digest,
        num_segments=len(segments),
        num_classes=num_classes,
    )
    with written_atomically(folder) as temporary:
        temporary.mkdir()
        arrays = {name: _allocated(temporary / f"{name}.npy", (len(segments), num_classes)) for name in models}
        seen = 0
        for batch in predictions:
            for name, array in arrays.items():
                array[batch.positions] = batch.probabilities[name]
            seen += len(batch.positions)
        if seen != len(segments):
            raise Yt8mError(f"{folder}: {seen} of {len(segments)} segments were predicted; nothing was kept.")
        for array in arrays.values():
            array.flush()
        (temporary / _INDEX).write_text(to_yaml(index), encoding="utf-8")
    return Store(folder, index)


def _allocated(path: Path, shape: tuple[int, int]) -> np.memmap[Any, np.dtype[np.float32]]:
    """A float32 `.npy` file to fill, whose space on the disk is its own: a write to a map that finds none is fatal."""
    array = open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def stored_predictions(stores: Mapping[str, Store], rows_per_batch: int = 8192) -> Iterator[Predictions]:
    """Read stored probabilities as if they were being predicted.

    Args:
        stores: For each model, by name, the store that holds it; all of the same catalog.
        rows_per_batch: Segments read at a time.
    """
    arrays = {name: store.probabilities(name) for name, store in stores.items()}
    num_segments = len(next(iter(arrays.values())))
    for start in range(0, num_segments, rows_per_batch):
        stop = min(start + rows_per_batch, num_segments)
        yield Predictions(
            np.arange(start, stop), {name: np.asarray(array[start:stop]) for name, array in arrays.items()}
        )
