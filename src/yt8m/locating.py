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

from yt8m.dataset.catalog import Catalog, index_shard
from yt8m.dataset.frames import NUM_FEATURES, FrameReader
from yt8m.dataset.sampling import crop, even_frames, segment_window
from yt8m.errors import UsageError
from yt8m.models.classifier import ContextAgnosticClassifier, ContextAwareClassifier
from yt8m.models.saved import load_model, read_description
from yt8m.ranking.ensemble import EnsembleSettings, merging_order, model_weights, weighted_mean
from yt8m.recipe import read_recipe
from yt8m.settings import validated
from yt8m.shards.example import SEGMENT_SECONDS
from yt8m.timeline import THRESHOLD, Timeline, strongest
from yt8m.training.machine import MachineConfig, make_fabric
from yt8m.vocabulary import Vocabulary

SegmentClassifier = ContextAgnosticClassifier | ContextAwareClassifier


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Segment classifiers to ask together, in the order in which their probabilities are summed.

    Args:
        models: In eval mode, on `device`.
        weights: A weight each, float32.
        device: Where they compute.
    """

    models: tuple[SegmentClassifier, ...]
    weights: NDArray[np.float32]
    device: torch.device


def load_ensemble(
    folders: Sequence[Path],
    vocabulary: Vocabulary,
    accelerator: str = "auto",
    settings: EnsembleSettings | None = None,
) -> Ensemble:
    """Load model folders as an ensemble.

    Args:
        folders: Model folders of segment classifiers.
        vocabulary: Their classes.
        accelerator: "auto", "cpu", "cuda" or "mps".
        settings: Weights of the models; all equal by default.

    Raises:
        UsageError: A folder holds no segment classifier of this vocabulary, two have one name, or there is no such
            accelerator.
        Yt8mError: The weights of one cannot be read.
    """
    device = make_fabric(validated(MachineConfig, {"accelerator": accelerator}, "--accelerator")).device
    models = _load_models(folders, vocabulary, device)
    names = merging_order(models)
    weights = model_weights(settings or EnsembleSettings(), names)
    return Ensemble(tuple(models[name] for name in names), weights, device)


def load_ensemble_of_run(run: Path, vocabulary: Vocabulary, accelerator: str = "auto") -> Ensemble:
    """Load the ensemble of a run's folder, with the weights of its recipe.

    Args and errors: as `load_ensemble`.

    Raises:
        UsageError: It is not the folder of a run, or a model of the ensemble is not trained.
    """
    recipe_file = run / "recipe.yaml"
    if not recipe_file.is_file():
        raise UsageError(f"{run}: is not the folder of a run (it has no recipe.yaml); `yt8m run` makes one.")
    recipe = read_recipe(recipe_file)
    folders = [run / "finetune" / name / "model" for name in recipe.ensemble_models]
    return load_ensemble(folders, vocabulary, accelerator, recipe.ensemble)


def _load_models(folders: Sequence[Path], vocabulary: Vocabulary, device: torch.device) -> dict[str, SegmentClassifier]:
    models: dict[str, SegmentClassifier] = {}
    for folder in folders:
        model = load_model(folder, vocabulary_digest=vocabulary.digest, device=device)
        if not isinstance(model, ContextAgnosticClassifier | ContextAwareClassifier):
            raise UsageError(
                f"{folder}: is a classifier of whole videos; `yt8m finetune` makes segment classifiers of them."
            )
        name = str(read_description(folder).provenance.get("name", folder.name))
        if name in models:
            raise UsageError(f"{folder}: a model named {name!r} is among the others already.")
        models[name] = model
    return models


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
    video = reader.read(row)
    starts = np.arange(0, len(video), SEGMENT_SECONDS, dtype=np.int32)
    frames = torch.from_numpy(video).to(ensemble.device)
    with torch.inference_mode():
        merged = weighted_mean([_of_model(model, frames, starts) for model in ensemble.models], ensemble.weights)
    return starts, merged


def _of_model(model: SegmentClassifier, frames: torch.Tensor, starts: NDArray[np.int32]) -> NDArray[np.float32]:
    """Probabilities of one model for the segments of a video, uint8 (T, D): float32 (n, C)."""
    margin = model.config.margin_frames
    spans = [segment_window(start, len(frames), margin) for start in starts.tolist()]
    windows = frames.new_zeros((len(spans), SEGMENT_SECONDS + 2 * margin, NUM_FEATURES))
    for window, (first, stop) in zip(windows, spans, strict=True):
        window[: stop - first] = frames[first:stop]
    lengths = torch.tensor([stop - first for first, stop in spans], device=frames.device)
    if isinstance(model, ContextAwareClassifier):
        chosen = torch.from_numpy(even_frames(*crop(len(frames)), model.config.context_encoder.max_frames))
        context = model.encode_context(frames[chosen][None], torch.tensor([len(chosen)], device=frames.device))
        logits = model(windows, lengths, context.expand(len(spans), -1))
    else:
        logits = model(windows, lengths)
    probabilities: NDArray[np.float32] = torch.sigmoid(logits.float()).cpu().numpy()
    return probabilities


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
