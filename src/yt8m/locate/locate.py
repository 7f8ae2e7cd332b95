"""Find a video, load an ensemble, and predict the probabilities of all segments of the video.

All segments are predicted, including the first six and the last two, which a submission excludes; the probabilities of
the others are those of `yt8m predict`.

Finding a video needs no torch, which is imported where models are loaded.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from yt8m.dataset.catalog import Catalog
from yt8m.dataset.frames import FrameReader
from yt8m.dataset.indexing import index_shard
from yt8m.errors import UsageError, Yt8mError
from yt8m.locate.timeline import THRESHOLD, Timeline
from yt8m.prediction.segments import Segments
from yt8m.ranking.calibration import Calibration
from yt8m.ranking.ensemble import MergeConfig, Merger
from yt8m.runs.finished import ensemble_of_run
from yt8m.runtime.machine import MachineConfig, make_fabric
from yt8m.settings import validated
from yt8m.shards.ids import SEGMENT_SECONDS
from yt8m.vocabulary import Vocabulary

if TYPE_CHECKING:
    import torch

    from yt8m.inference.classifier import FoldedClassifier


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Classifiers and how to merge their probabilities.

    Args:
        models: By name.
        merger: Merges the probabilities.
        shifts: Seconds to shift the window of a segment by (test-time augmentation).
        calibration: Makes probabilities of the merged scores; None where there is none.
    """

    models: dict[str, FoldedClassifier]
    merger: Merger
    shifts: Sequence[int] = (0,)
    calibration: Calibration | None = None


def load_ensemble(folders: Sequence[Path], vocabulary: Vocabulary, accelerator: str = "auto") -> Ensemble:
    """Load model folders as an ensemble of equal weights.

    Args:
        folders: Model folders of segment classifiers.
        vocabulary: Their classes.
        accelerator: "auto", "cpu", "cuda" or "mps".

    Raises:
        UsageError: A folder has no segment classifier of this vocabulary, two have the same name, or there is no such
            accelerator.
        Yt8mError: The weights of one cannot be read.
    """
    from yt8m.inference.classifier import load_folded

    models = load_folded(folders, vocabulary.digest, _device(accelerator))
    for name, model in models.items():
        if model.kind == "video":
            raise UsageError(f"{name}: is a video classifier; `yt8m finetune` makes segment classifiers of it.")
    return Ensemble(models, Merger(MergeConfig(), models))


def load_ensemble_of_run(run: Path, vocabulary: Vocabulary, accelerator: str = "auto") -> Ensemble:
    """Load the ensemble of a run's folder, merged as its prediction was, or will be by its recipe.

    The mean of ranks is replaced by the arithmetic mean, because ranks are defined only among all segments of a test set.

    Args and errors: as `load_ensemble`.

    Raises:
        UsageError: It is not the folder of a run, or a model of the ensemble is not trained.
    """
    from yt8m.inference.classifier import load_folded

    found = ensemble_of_run(run)
    settings = found.settings
    if settings.method == "rank":
        settings = settings.model_copy(update={"method": "arithmetic"})
    models = load_folded(found.folders, vocabulary.digest, _device(accelerator))
    merger = Merger(settings, found.members)
    digests = {name: model.digest for name, model in models.items()}
    calibration = found.calibration and found.calibration.of(merger, digests, settings.shifts)
    return Ensemble(models, merger, settings.shifts, calibration)


def _device(accelerator: str) -> torch.device:
    return make_fabric(validated(MachineConfig, {"accelerator": accelerator}, "--accelerator")).device


def find_video(catalog: Catalog, video_id: str) -> int:
    """Row of a video in a catalog.

    Raises:
        UsageError: There is no such video.
    """
    rows = np.flatnonzero(catalog.ids == video_id.encode())
    if len(rows):
        return int(rows[0])
    close = difflib.get_close_matches(video_id, catalog.video_ids, n=1, cutoff=0.5)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise UsageError(f"{catalog.folder}: there is no video {video_id!r} among its {len(catalog):,}{hint}.")


def read_shard(path: Path) -> FrameReader:
    """Read a single shard without the catalog of its folder.

    Raises:
        UsageError: There is no such file.
        ShardError: It is of another dataset, or none of its records can be used.
    """
    if not path.is_file():
        raise UsageError(f"{path}: there is no such shard.")
    return FrameReader(index_shard(path))


def segment_probabilities(
    reader: FrameReader, ensemble: Ensemble, row: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Probabilities of all segments of a video.

    Args:
        reader: Reads its frames.
        ensemble: The models.
        row: Row of the video in the catalog.

    Returns:
        Start of each segment in seconds, int32 (S,), and probabilities (scores, where the ensemble is not calibrated),
        float32 (S, C).

    Raises:
        ShardError: The shard is missing or has changed.
        Yt8mError: A model predicts NaN.
    """
    from yt8m.prediction.predict import predict

    starts = np.arange(0, reader.num_frames(row), SEGMENT_SECONDS, dtype=np.int32)
    segments = Segments(reader.catalog.video_ids, np.full(len(starts), row, np.int32), starts)
    one_batch = [slice(0, len(starts))]
    [predictions] = predict(reader, segments, ensemble.models, one_batch, ensemble.shifts)
    for name, codes in predictions.codes.items():
        if not codes.all():  # a code of 0 stands for no probability
            raise Yt8mError(
                f"{reader.catalog.id_of(row)}: the model {name!r} predicts values that are no numbers (NaN); its weights are "
                "damaged, so train or import it again."
            )
    scores = ensemble.merger(predictions.codes)
    return starts, scores if ensemble.calibration is None else ensemble.calibration(scores)


def timelines(
    reader: FrameReader,
    ensemble: Ensemble,
    rows: Sequence[int],
    vocabulary: Vocabulary,
    top: int = 10,
    threshold: float = THRESHOLD,
) -> list[Timeline]:
    """Timelines of the most probable concepts of videos: those with the highest probability in any segment, best first.

    Args:
        reader: Reads the videos' frames.
        ensemble: The models.
        rows: Rows of the videos in the catalog.
        vocabulary: The models' classes; one without a name is shown by its id.
        top: Maximum number of concepts per video.
        threshold: Probability from which a concept is on screen.
    """
    label_ids: list[int] = vocabulary.label_ids.tolist()
    found = []
    for row in rows:
        starts, probabilities = segment_probabilities(reader, ensemble, row)  # (S,), (S, C)
        top_classes = np.argsort(-probabilities.max(axis=0, initial=0), kind="stable")[:top].tolist()
        found.append(
            Timeline(
                reader.catalog.id_of(row),
                reader.num_frames(row),
                tuple(label_ids[column] for column in top_classes),
                tuple(vocabulary.names[column] or f"{label_ids[column]}" for column in top_classes),
                starts,
                probabilities[:, top_classes],
                threshold,
                ensemble.calibration is not None,
            )
        )
    return found
