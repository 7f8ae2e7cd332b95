"""Prediction and merging as steps of their own: model folders -> a submission, or stored probabilities -> a submission."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_fabric import Fabric

from yt8m.dataset.catalog import Catalog
from yt8m.dataset.frames import FrameReader
from yt8m.errors import UsageError
from yt8m.files import writing_error
from yt8m.inference.classifier import FoldedClassifier, load_folded
from yt8m.prediction.passes import Pass, Processes, store_predictions
from yt8m.prediction.predict import NO_SHIFT, segments_of
from yt8m.prediction.segments import Segments
from yt8m.prediction.store import Store, StoreIndex
from yt8m.ranking.ensemble import MergeConfig, Merger
from yt8m.ranking.rank import rank_stored
from yt8m.ranking.streaming import forget_ranking, rank_streaming
from yt8m.ranking.topk import Ranking
from yt8m.runtime.machine import MachineConfig, make_fabric
from yt8m.runtime.progress import no_progress, terminal_progress
from yt8m.runtime.stopping import StopRequest
from yt8m.submission.submission import write_submission
from yt8m.submission.table import write_table
from yt8m.vocabulary import Vocabulary


@dataclass(frozen=True)
class Wanted:
    """What prediction or merging is to make.

    Args:
        submission: The submission; None makes none.
        table: The same as a Parquet table.
        store: Folder for all probabilities.
        top_k: Segments to list for each class.
    """

    submission: Path | None
    table: Path | None = None
    store: Path | None = None
    top_k: int = 100_000


def shared_pass(
    fabric: Fabric,
    stop: StopRequest,
    reader: FrameReader,
    segments: Segments,
    models: Mapping[str, FoldedClassifier],
    shifts: Sequence[int],
) -> Pass:
    """A pass that Fabric's processes share and may be asked to stop; the first of them shows how far it is."""
    progress = terminal_progress if fabric.is_global_zero else no_progress
    processes = Processes(fabric.global_rank, fabric.world_size, fabric.barrier, stop.requested)
    return Pass(reader, segments, models, shifts, processes, progress)


def predict_folders(
    folders: Sequence[Path],
    catalog: Catalog,
    vocabulary: Path,
    settings: MergeConfig,
    wanted: Wanted,
    machine: MachineConfig,
    shifts: Sequence[int] = NO_SHIFT,
) -> list[str] | None:
    """Predict every segment of a catalog with the models of some folders, in one pass, and merge them.

    Several processes share the work. A prediction that was interrupted goes on when it is called for again.

    Args:
        folders: Model folders; those of video classifiers count as the settings say, or are only stored.
        catalog: The videos.
        vocabulary: `segment_vocabulary.csv`.
        settings: How models are merged.
        wanted: What to make.
        machine: Devices and precision.
        shifts: Test-time shifts, in seconds.

    Returns:
        Names of the models; None on all processes but the first.

    Raises:
        UsageError: A folder holds no classifier of this vocabulary, two have one name, or the settings name a model
            that is not there.
        Interrupted: The processes were asked to stop.
    """
    classes = Vocabulary.load(vocabulary)
    fabric = make_fabric(machine)
    models = load_folded(folders, classes.digest, fabric.device, machine.product_dtype)
    merger = None
    if wanted.submission is not None or wanted.table is not None:
        kinds = {name: model.kind for name, model in models.items()}
        merger = _merger(settings, kinds, idle_allowed=wanted.store is not None)
        if merger.needs_whole_classes and wanted.store is None:
            raise UsageError("The mean of ranks takes all probabilities at once; store them (--store) as well.")
    reader = FrameReader(catalog)
    segments = segments_of(reader)
    index = StoreIndex.of(models, segments, classes.digest, catalog.digest, shifts, machine.precision)

    ranking = folder = None
    with StopRequest(fabric) as stop:
        work = shared_pass(fabric, stop, reader, segments, models, shifts)
        if wanted.store is not None:
            store = store_predictions(work, wanted.store, index)
            if store is not None and merger is not None:
                stores = dict.fromkeys(models, store)
                ranking = rank_stored(stores, merger, segments, wanted.top_k, terminal_progress)
        elif merger is not None and (output := wanted.submission or wanted.table) is not None:
            folder = Path(f"{output}.unfinished")
            try:
                # What cannot be written is said before anything is predicted.
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise writing_error(error, output) from error
            rankers = rank_streaming(
                work,
                [lambda batch: merger(batch.codes)],
                len(classes),
                wanted.top_k,
                folder,
                _mark(index, settings, wanted),
            )
            ranking = None if rankers is None else rankers[0].result()
    if ranking is not None:
        _write(ranking, wanted, classes)
        if folder is not None:
            forget_ranking(folder)
    fabric.barrier()
    return list(models) if fabric.is_global_zero else None


def merge_stores(
    folders: Sequence[Path], catalog: Catalog, vocabulary: Path, settings: MergeConfig, wanted: Wanted
) -> list[str]:
    """Merge all models of some folders of predictions into a submission.

    Args:
        folders: Folders of predictions, of the same catalog and vocabulary.
        catalog: The videos that were predicted.
        vocabulary: `segment_vocabulary.csv`.
        settings: How models are merged.
        wanted: What to make.

    Returns:
        Names of the segment models merged.

    Raises:
        UsageError: A folder is of other videos or classes, two models have one name, or the settings name a model that
            is not there.
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
    segments = segments_of(FrameReader(catalog))
    for folder, store in {store.folder: store for store in stores.values()}.items():
        if (store.index.num_segments, store.index.num_classes) != (len(segments), len(classes)):
            raise UsageError(
                f"{folder}: holds {store.index.num_segments:,} segments of {store.index.num_classes:,} classes, expected "
                f"{len(segments):,} of {len(classes):,}."
            )
    merger = _merger(settings, {name: store.index.models[name].kind for name, store in stores.items()}, True)
    keys = rank_stored(stores, merger, segments, wanted.top_k, terminal_progress, "merge")
    _write(keys, wanted, classes)
    return merger.segment_models


def _merger(settings: MergeConfig, kinds: Mapping[str, str], idle_allowed: bool) -> Merger:
    """A merger of all segment models among some models, by kind.

    Raises:
        UsageError: There is none, the settings name a model that is not there or of the wrong kind, or a classifier of
            videos has no say where that is not allowed.
    """
    members = [name for name, kind in kinds.items() if kind != "video"]
    videos = [name for name, kind in kinds.items() if kind == "video"]
    if not members:
        raise UsageError(
            f"{', '.join(videos)}: classifies whole videos; `yt8m finetune` makes segment classifiers of such models."
        )
    for name in settings.video_models:
        if name not in videos:
            raise UsageError(f"The ensemble asks the video classifier {name!r}, which is not among the models given.")
    for name in videos:
        if name not in settings.video_models and not idle_allowed:
            raise UsageError(
                f"{name}: is a classifier of whole videos; `yt8m finetune` makes segment classifiers of them, and "
                "video_prior and candidates say where one may weigh in."
            )
    return Merger(settings, members)


def _mark(index: StoreIndex, settings: MergeConfig, wanted: Wanted) -> str:
    """Names everything that decides a ranking."""
    decided = [index.model_dump(mode="json"), settings.model_dump(mode="json"), wanted.top_k]
    return hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()


def _write(ranking: Ranking, wanted: Wanted, classes: Vocabulary) -> None:
    if wanted.submission is not None:
        write_submission(wanted.submission, ranking, classes)
    if wanted.table is not None:
        write_table(wanted.table, ranking, classes)
