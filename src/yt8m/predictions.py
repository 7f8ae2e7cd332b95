"""Prediction and merging as steps of their own: model folders -> stored probabilities -> a submission."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from yt8m.dataset.catalog import Catalog
from yt8m.dataset.frames import FrameReader
from yt8m.display import tracked
from yt8m.errors import UsageError
from yt8m.models.classifier import ContextAgnosticClassifier, ContextAwareClassifier
from yt8m.models.saved import load_model, read_description
from yt8m.ranking.ensemble import EnsembleSettings, merging_order, model_weights, weighted_mean
from yt8m.ranking.predict import SegmentClassifier, predict, segments_of
from yt8m.ranking.store import Store, stored_predictions, write_store
from yt8m.ranking.submission import write_submission
from yt8m.ranking.topk import TopK
from yt8m.settings import validated
from yt8m.training.machine import MachineConfig, make_fabric
from yt8m.vocabulary import Vocabulary


def predict_folders(folders: Sequence[Path], catalog: Catalog, vocabulary: Path, out: Path, accelerator: str) -> Store:
    """Predict every segment of a catalog with the models of some folders, in one pass, into a folder of predictions.

    Args:
        folders: Model folders of segment classifiers; a model's name is what its folder says it was trained as.
        catalog: The videos.
        vocabulary: `segment_vocabulary.csv`.
        out: The folder of predictions to make.
        accelerator: "auto", "cpu", "cuda" or "mps".

    Raises:
        UsageError: A folder holds no segment classifier of this vocabulary, or two have one name.
    """
    classes = Vocabulary.load(vocabulary)
    device = make_fabric(validated(MachineConfig, {"accelerator": accelerator}, "--accelerator")).device
    models: dict[str, SegmentClassifier] = {}
    for folder in folders:
        model = load_model(folder, vocabulary_digest=classes.digest, device=device)
        if not isinstance(model, ContextAgnosticClassifier | ContextAwareClassifier):
            raise UsageError(
                f"{folder}: is a classifier of whole videos; `yt8m finetune` makes segment classifiers of them."
            )
        name = str(read_description(folder).provenance.get("name", folder.name))
        if name in models:
            raise UsageError(f"{folder}: a model named {name!r} is among the others already.")
        models[name] = model
    reader = FrameReader(catalog)
    segments = segments_of(reader)
    batches = predict(reader, models, device, progress=lambda items: tracked(items, "predict"))
    return write_store(out, batches, list(models), segments, len(classes), classes.digest, catalog.digest)


def merge_stores(
    folders: Sequence[Path], catalog: Catalog, vocabulary: Path, out: Path, weights: dict[str, float], top_k: int
) -> list[str]:
    """Merge all models of some folders of predictions into a submission.

    Args:
        folders: Folders of predictions, of the same catalog and vocabulary.
        catalog: The videos that were predicted.
        vocabulary: `segment_vocabulary.csv`.
        out: The submission.
        weights: Weight of a model by name; 1 for those not named.
        top_k: Segments to list for each class.

    Returns:
        Names of the models.

    Raises:
        UsageError: A folder is of other videos or classes, two models have one name, or a weight names none.
    """
    classes = Vocabulary.load(vocabulary)
    stores: dict[str, Store] = {}
    for folder in folders:
        store = Store.open(folder)
        if store.index.vocabulary != classes.digest:
            raise UsageError(f"{folder}: was predicted with another vocabulary than {vocabulary}.")
        if store.index.catalog != catalog.digest:
            raise UsageError(f"{folder}: was predicted from other videos than those of {catalog.folder}.")
        for name in store.index.models:
            if name in stores:
                raise UsageError(f"{folder}: a model named {name!r} is in {stores[name].folder} already.")
            stores[name] = store
    names = merging_order(stores)
    factors = model_weights(EnsembleSettings(weights=weights), names)
    ranker = TopK(len(classes), top_k, segments_of(FrameReader(catalog)))
    for batch in tracked(stored_predictions(stores), "merge"):
        ranker.update(batch.positions, weighted_mean([batch.probabilities[name] for name in names], factors))
    write_submission(out, ranker.result(), classes)
    return names
