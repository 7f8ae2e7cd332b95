"""What one video shows, and when: a video looked up, seen by models, their mean over all of its segments.

For people who look at single videos. All segments are there, also the first six and last two, which are not predicted for
a submission; what models say of the others is what `yt8m predict` has.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from yt8m.dataset.catalog import Catalog
from yt8m.dataset.frames import FrameReader
from yt8m.dataset.indexing import index_shard
from yt8m.errors import UsageError
from yt8m.inference.classifier import FoldedClassifier, load_folded
from yt8m.locate.timeline import THRESHOLD, Timeline, strongest
from yt8m.prediction.predict import NO_SHIFT, predict
from yt8m.prediction.segments import Segments
from yt8m.ranking.ensemble import MergeConfig, Merger
from yt8m.runs.recipe import read_recipe
from yt8m.runs.stages import read_record
from yt8m.runtime.machine import MachineConfig, make_fabric
from yt8m.settings import validated
from yt8m.shards.records import SEGMENT_SECONDS
from yt8m.vocabulary import Vocabulary


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Classifiers to ask together.

    Args:
        models: By name.
        merger: How they are merged.
        shifts: Seconds by which what is seen of a segment is moved.
    """

    models: dict[str, FoldedClassifier]
    merger: Merger
    shifts: Sequence[int] = NO_SHIFT


def load_ensemble(folders: Sequence[Path], vocabulary: Vocabulary, accelerator: str = "auto") -> Ensemble:
    """Load model folders as an ensemble of equal weights.

    Args:
        folders: Model folders of segment classifiers.
        vocabulary: Their classes.
        accelerator: "auto", "cpu", "cuda" or "mps".

    Raises:
        UsageError: A folder holds no segment classifier of this vocabulary, two have one name, or there is no such
            accelerator.
        Yt8mError: The weights of one cannot be read.
    """
    models = load_folded(folders, vocabulary.digest, _device(accelerator))
    for name, model in models.items():
        if model.kind == "video":
            raise UsageError(
                f"{name}: is a classifier of whole videos; `yt8m finetune` makes segment classifiers of them."
            )
    return Ensemble(models, Merger(MergeConfig(), models))


def load_ensemble_of_run(run: Path, vocabulary: Vocabulary, accelerator: str = "auto") -> Ensemble:
    """Load the ensemble of a run's folder, merged as its recipe says.

    Ranks among all segments of a test set mean nothing for one video; an ensemble of them is merged by the arithmetic
    mean.

    Args and errors: as `load_ensemble`.

    Raises:
        UsageError: It is not the folder of a run, or a model of the ensemble is not trained.
    """
    recipe_file = run / "recipe.yaml"
    if not recipe_file.is_file():
        raise UsageError(f"{run}: is not the folder of a run (it has no recipe.yaml); `yt8m run` makes one.")
    recipe = read_recipe(recipe_file)
    settings, members = recipe.ensemble, recipe.ensemble_models
    if settings.find_weights:
        record = read_record(run / "predict")
        settings = settings.model_copy(update={"weights": {} if record is None else record.ensemble_weights})
    if settings.method == "rank":
        settings = settings.model_copy(update={"method": "arithmetic"})
    folders = [run / "finetune" / name / "model" for name in members]
    folders += [
        Path(recipe.trained_models.get(name, run / "pretrain" / name / "model")) for name in settings.video_models
    ]
    models = load_folded(folders, vocabulary.digest, _device(accelerator))
    return Ensemble(models, Merger(settings, members), settings.shifts)


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
    near = difflib.get_close_matches(video_id, catalog.video_ids, n=1, cutoff=0.5)
    meant = f" (did you mean {near[0]!r}?)" if near else ""
    raise UsageError(f"{catalog.folder}: there is no video {video_id!r} among its {len(catalog):,}{meant}.")


def read_shard(path: Path) -> FrameReader:
    """Read a single shard without its folder's catalog.

    Raises:
        UsageError: There is no such file.
        ShardError: It is of another dataset, or no record can be used.
    """
    if not path.is_file():
        raise UsageError(f"{path}: there is no such shard.")
    return FrameReader(index_shard(path))


def segment_probabilities(
    reader: FrameReader, ensemble: Ensemble, row: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """What an ensemble says of all segments of a video.

    Args:
        reader: Where its frames are.
        ensemble: The models.
        row: The video.

    Returns:
        First second of each segment, int32 (n,), from 0 on, and probabilities, float32 (n, C).

    Raises:
        ShardError: The shard is gone or has changed.
    """
    starts = np.arange(0, reader.num_frames(row), SEGMENT_SECONDS, dtype=np.int32)
    segments = Segments(reader.catalog.video_ids, np.full(len(starts), row, np.int32), starts)
    whole = [slice(0, len(starts))]
    [predictions] = predict(reader, segments, ensemble.models, whole, ensemble.shifts)
    return starts, ensemble.merger(predictions.codes)


def timelines(
    reader: FrameReader,
    ensemble: Ensemble,
    rows: Sequence[int],
    vocabulary: Vocabulary,
    top: int = 10,
    threshold: float = THRESHOLD,
) -> list[Timeline]:
    """The strongest concepts of some videos over their time; a class without a name is called by its id.

    Args:
        reader: Where the videos' frames are.
        ensemble: The models.
        rows: The videos.
        vocabulary: The models' classes.
        top: Concepts to show of each.
        threshold: Probability from which a concept is on screen.
    """
    names = [name or f"{label}" for name, label in zip(vocabulary.names, vocabulary.label_ids.tolist(), strict=True)]
    shown = []
    for row in rows:
        starts, probabilities = segment_probabilities(reader, ensemble, row)
        video_id, num_frames = reader.catalog.id_of(row), reader.num_frames(row)
        shown.append(strongest(video_id, num_frames, names, starts, probabilities, top, threshold))
    return shown
