"""Stores of random codes for a few tiny videos."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tests.support.tiny_models import agnostic, fold_classifiers
from tests.support.tiny_shards import random_videos, write_shards
from yt8m.dataset.catalog import Catalog
from yt8m.dataset.frames import FrameReader
from yt8m.dataset.indexing import index_folder
from yt8m.prediction.passes import PredictionPass, ProcessGroup, store_predictions
from yt8m.prediction.predict import Predictions, segments_of
from yt8m.prediction.quantization import NUM_CODES
from yt8m.prediction.segments import Segments
from yt8m.prediction.store import Store, StoredModel, StoreIndex
from yt8m.prediction.store_writer import StoreWriter
from yt8m.vocabulary import Vocabulary

LABEL_IDS = [7, 3, 11, 5]
NUM_CLASSES = len(LABEL_IDS)
BLOCK = 4
FILES_OF_ONE = ["one.crc.npy", "one.npy", "predictions.yaml"]


def write_vocabulary(path: Path, label_ids: Sequence[int]) -> Path:
    path.write_text("Index,Name\n" + "".join(f"{label_id},class {label_id}\n" for label_id in label_ids))
    return path


class StoreCase(NamedTuple):
    """Videos, their vocabulary, and codes of two models for their segments, (S, C) each."""

    catalog: Catalog
    vocabulary: Path
    segments: Segments
    codes: dict[str, NDArray[np.uint16]]

    def index(self, names: Iterable[str], **changes: Any) -> StoreIndex:
        index = StoreIndex(
            models={name: StoredModel(kind="agnostic", digest=f"of {name}") for name in names},
            vocabulary=Vocabulary.load(self.vocabulary).digest,
            catalog=self.catalog.digest,
            num_segments=len(self.segments),
            num_classes=NUM_CLASSES,
            segments_per_block=BLOCK,
        )
        return index.model_copy(update=changes)


def make_store_case(folder: Path) -> StoreCase:
    """Four videos in a folder, and random codes of the models "one" and "two"."""
    write_shards(folder, random_videos(4, seed=7, num_frames=(70, 99)))
    catalog = index_folder(folder)
    segments = segments_of(FrameReader(catalog))
    # The last block is incomplete.
    assert len(segments) % BLOCK != 0
    rng = np.random.default_rng(5)
    shape = (len(segments), NUM_CLASSES)
    codes = {name: rng.integers(1, NUM_CODES, shape, np.uint16) for name in ("one", "two")}
    return StoreCase(catalog, write_vocabulary(folder / "classes.csv", LABEL_IDS), segments, codes)


def batches(case: StoreCase, names: Iterable[str], block: slice, size: int = 3) -> Iterator[Predictions]:
    """The codes of a block in small batches, as prediction yields them."""
    for start in range(block.start, block.stop, size):
        positions = slice(start, min(start + size, block.stop))
        yield Predictions(start, {name: case.codes[name][positions] for name in names})


def write_blocks(case: StoreCase, writer: StoreWriter, blocks: Iterable[slice]) -> None:
    for block in blocks:
        for predictions in batches(case, writer.index.models, block):
            writer.write(predictions)


def write_store(case: StoreCase, folder: Path, names: Sequence[str], **changes: Any) -> Store:
    """Write a complete store."""
    writer = StoreWriter(folder, case.index(names, **changes))
    writer.prepare()
    write_blocks(case, writer, writer.pending())
    writer.close()
    return writer.finish()


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def stored_codes(store: Store, name: str) -> NDArray[np.uint16]:
    """All codes of a model, (S, C)."""
    return np.stack([store.codes(name, class_index) for class_index in range(store.index.num_classes)], axis=1)


def predict_slowly(shards: Path, folder: Path, pause: float) -> None:
    """Predict shards and store the result, with a pause in seconds after three blocks."""
    batches_started = iter(range(1000))

    def pause_after_three() -> bool:
        if next(batches_started) == 3:
            time.sleep(pause)
        return False

    models = fold_classifiers({"model": agnostic(seed=1)})
    catalog = index_folder(shards)
    reader = FrameReader(catalog)
    segments = segments_of(reader)
    index = StoreIndex.of(models, segments, "vocabulary", catalog.digest, (0,), "32-true")
    work = PredictionPass(reader, segments, models, processes=ProcessGroup(stop_requested=pause_after_three))
    store_predictions(work, folder, index.model_copy(update={"segments_per_block": BLOCK}))
