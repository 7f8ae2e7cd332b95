"""Prediction and merging outside of a run: model folders or stores to a submission, a table or a store."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from lightning_fabric import Fabric

from yt8m.dataset.catalog import Catalog
from yt8m.dataset.frames import FrameReader
from yt8m.errors import UsageError
from yt8m.files import clear_leftovers, is_stream, writing_error
from yt8m.inference.classifier import FoldedClassifier, load_folded
from yt8m.prediction.passes import PredictionPass, ProcessGroup, store_predictions
from yt8m.prediction.predict import NO_SHIFT, segments_of
from yt8m.prediction.segments import Segments
from yt8m.prediction.store import INDEX_FILE, Store, StoreIndex, unfinished_folder
from yt8m.prediction.store_writer import read_unfinished_index
from yt8m.ranking import MAX_SEGMENTS
from yt8m.ranking.calibration import Calibration, read_calibration, write_calibration
from yt8m.ranking.ensemble import MergeConfig, Merger
from yt8m.ranking.rank import RankingSpec, rank_segments, rank_stored
from yt8m.ranking.streaming import remove_partial_rankings
from yt8m.ranking.topk import Ranking
from yt8m.runtime.locks import locked
from yt8m.runtime.machine import MachineConfig, make_fabric
from yt8m.runtime.processes import lost_processes_named
from yt8m.runtime.progress import no_progress, terminal_progress
from yt8m.runtime.stopping import StopRequest
from yt8m.settings import fingerprint
from yt8m.submission.table import write_table
from yt8m.submission.writing import write_submission
from yt8m.vocabulary import Vocabulary


@dataclass(frozen=True)
class PredictionOutputs:
    """The files to write.

    Args:
        submission: The submission; None for none.
        table: The ranking as a Parquet table.
        store: Folder for all probabilities.
        top_k: Segments to list per class.
        overwrite: Whether to replace a store of other predictions, finished or not.
    """

    submission: Path | None
    table: Path | None = None
    store: Path | None = None
    top_k: int = MAX_SEGMENTS
    overwrite: bool = False

    @property
    def paths(self) -> list[Path]:
        """The files and the folder."""
        return [path for path in (self.submission, self.table, self.store) if path is not None]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the locks of all outputs, without what killed processes left of them."""
        with locked(*self.paths):
            clear_leftovers(*self.paths)
            yield

    def write(self, ranking: Ranking, vocabulary: Vocabulary, calibration: Calibration | None) -> None:
        """Write the submission, and the table with calibrated probabilities where that is possible."""
        if self.submission is not None:
            write_submission(self.submission, ranking, vocabulary)
        if self.table is not None:
            write_table(self.table, ranking, vocabulary, calibration=calibration)


def shared_pass(
    fabric: Fabric,
    stop: StopRequest,
    reader: FrameReader,
    segments: Segments,
    models: Mapping[str, FoldedClassifier],
    shifts: Sequence[int],
) -> PredictionPass:
    """A pass that Fabric's processes share and that a signal stops; the first process reports progress."""
    progress = terminal_progress if fabric.is_global_zero else no_progress
    processes = ProcessGroup(fabric.global_rank, fabric.world_size, fabric.barrier, stop.requested, stop.close)
    return PredictionPass(reader, segments, models, shifts, processes, progress)


def predict_folders(
    folders: Sequence[Path] | Mapping[str, Path],
    catalog: Catalog,
    classes: Vocabulary,
    config: MergeConfig,
    outputs: PredictionOutputs,
    machine: MachineConfig,
    shifts: Sequence[int] = NO_SHIFT,
    calibration: Calibration | None = None,
) -> list[str] | None:
    """Predict every segment of a catalog with the models of some folders, in one pass, and merge them.

    Several processes share the work. An interrupted prediction resumes with the same call.

    Args:
        folders: Model folders, by name or not (see `load_folded`); video classifiers are merged only if the config uses them.
        catalog: The videos.
        classes: Classes of the models.
        config: How to merge the models.
        outputs: The files to write.
        machine: Devices and precision.
        shifts: Test-time shifts, in seconds.
        calibration: Of an ensemble, used if it is this one, and kept with the store.

    Returns:
        Names of the models; None on all processes but the first.

    Raises:
        UsageError: A folder contains no classifier of this vocabulary and these features, two have the same name, or the config names a
            missing model.
        Interrupted: The processes received a signal to stop.
    """
    fabric = make_fabric(machine)
    models = load_folded(folders, classes.digest, fabric.device, machine.matmul_dtype, catalog.features)
    output = outputs.submission or outputs.table
    merger = None
    if output is not None:
        kinds = {name: model.kind for name, model in models.items()}
        merger = _make_merger(config, kinds, allow_unused=outputs.store is not None)
        if merger.needs_all_segments and outputs.store is None:
            raise UsageError("The mean of ranks needs all probabilities at once; store them (--store) as well.")
    reader = FrameReader(catalog)
    segments = segments_of(reader)
    index = StoreIndex.of(models, segments, classes.digest, catalog.digest, shifts, machine.precision, catalog.folder)
    if outputs.store is not None and not outputs.overwrite:
        _refuse_to_replace(outputs.store, index)
    # One process holds the locks for all.
    with (
        lost_processes_named(fabric),
        outputs.locked() if fabric.is_global_zero else nullcontext(),
        StopRequest(fabric) as stop,
    ):
        work = shared_pass(fabric, stop, reader, segments, models, shifts)
        if merger is not None and output is not None:
            try:
                # No folder can be made beside some devices.
                folder = Path(f"{output.name if is_stream(output) else output}.unfinished")
                if outputs.store is None:
                    # An output that cannot be written is an error before anything is predicted.
                    folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise writing_error(error, output, is_of_path=True) from error
            rankings = rank_segments(
                work,
                [RankingSpec("ensemble", "ensemble", merger)],
                outputs.top_k,
                folder,
                fingerprint(
                    [index.model_dump(mode="json", exclude={"shards"}), config.model_dump(mode="json"), outputs.top_k]
                ),
                store=None if outputs.store is None else (outputs.store, index),
            )
            if rankings is not None:
                digests = {name: model.digest for name, model in models.items()}
                of_merger = None if calibration is None else calibration.of(merger, digests, shifts)
                outputs.write(rankings[0], classes, of_merger)
                remove_partial_rankings(folder)
        elif outputs.store is not None:
            store_predictions(work, outputs.store, index)
        if outputs.store is not None and fabric.is_global_zero:
            classes.save(outputs.store)
            if calibration is not None:
                write_calibration(outputs.store, calibration)
        fabric.barrier()
    return list(models) if fabric.is_global_zero else None


def _refuse_to_replace(folder: Path, index: StoreIndex) -> None:
    """Refuse to replace stored predictions by other ones, finished or not; UsageError."""
    unfinished = unfinished_folder(folder)
    if (stored := read_unfinished_index(folder)) is not None and not stored.same_predictions(index):
        raise UsageError(
            f"{unfinished}: contains an unfinished prediction of {', '.join(stored.models)}, with other models or settings; "
            "finish it with the same command as before, give another folder, or --overwrite to discard it."
        )
    if not (folder / INDEX_FILE).is_file():
        return
    stored = Store.open(folder).index
    if not stored.same_predictions(index):
        raise UsageError(
            f"{folder}: contains predictions already, of {', '.join(stored.models)}; give another folder (`yt8m merge` "
            "merges several), or --overwrite to replace them."
        )


def merge_stores(
    folders: Sequence[Path],
    catalog: Catalog,
    classes: Vocabulary,
    config: MergeConfig,
    outputs: PredictionOutputs,
    members: Sequence[str] | None = None,
) -> list[str]:
    """Merge all models of some stores into a submission.

    Args:
        folders: Stores, of the same catalog and vocabulary.
        catalog: The videos predicted.
        classes: Classes of the models.
        config: How to merge the models.
        outputs: The files to write.
        members: Segment models to merge; all of them by default.

    Returns:
        Names of the segment models merged.

    Raises:
        UsageError: A store is of other videos or classes, two models have the same name, or the config names a missing
            model.
    """
    segments, stores = open_stores(folders, catalog, classes)
    merger = merger_of_stores(stores, config, members)
    with outputs.locked():
        ranking = rank_stored(stores, merger, segments, outputs.top_k, terminal_progress, "merge")
        outputs.write(ranking, classes, calibration_of_stores(stores, merger))
    return merger.segment_models


def open_stores(folders: Sequence[Path], catalog: Catalog, classes: Vocabulary) -> tuple[Segments, dict[str, Store]]:
    """Open stores of the same videos and classes: their segments, and the store of each model by name.

    Raises:
        UsageError: A store is of other videos or classes, or two models have the same name.
    """
    segments = segments_of(FrameReader(catalog))
    stores: dict[str, Store] = {}
    for folder in folders:
        store = Store.open(folder)
        index = store.index
        if index.vocabulary != classes.digest:
            raise UsageError(f"{folder}: was predicted with another vocabulary than the one in use.")
        if index.catalog != catalog.digest:
            raise UsageError(f"{folder}: was predicted from other videos than those of {catalog.folder}.")
        if (index.num_segments, index.num_classes) != (len(segments), len(classes)):
            raise UsageError(
                f"{folder}: contains {index.num_segments:,} segments of {index.num_classes:,} classes, expected "
                f"{len(segments):,} of {len(classes):,}."
            )
        for name in index.models:
            if name in stores:
                raise UsageError(f"{folder}: a model named {name!r} is in {stores[name].folder} already.")
            stores[name] = store
    return segments, stores


def merger_of_stores(stores: Mapping[str, Store], config: MergeConfig, members: Sequence[str] | None = None) -> Merger:
    """A merger of stored models; see `merge_stores`."""
    kinds = {name: store.index.models[name].kind for name, store in stores.items()}
    if members is not None:
        kinds = {name: kind for name, kind in kinds.items() if kind == "video" or name in members}
    return _make_merger(config, kinds, allow_unused=True)


def calibration_of_stores(stores: Mapping[str, Store], merger: Merger) -> Calibration | None:
    """The calibration of merged stores, if one of them has that of this ensemble."""
    used = {name: stores[name].index for name in merger.models}
    digests = {name: index.models[name].digest for name, index in used.items()}
    shifts, *others = {tuple(index.shifts) for index in used.values()}
    if others:
        return None
    for folder in dict.fromkeys(store.folder for store in stores.values()):
        calibration = read_calibration(folder)
        if calibration is not None and calibration.of(merger, digests, shifts):
            return calibration
    return None


def _make_merger(config: MergeConfig, kinds: Mapping[str, str], allow_unused: bool) -> Merger:
    """A merger of all segment models among models of these kinds, by name; UsageError if config and models do not match."""
    members = [name for name, kind in kinds.items() if kind != "video"]
    videos = [name for name, kind in kinds.items() if kind == "video"]
    if not members:
        raise UsageError(
            f"{', '.join(videos)}: is a video classifier; `yt8m finetune` makes segment classifiers of such models."
        )
    for name in config.video_models:
        if name not in videos:
            raise UsageError(f"The ensemble uses the video classifier {name!r}, which is not among the models given.")
    for name in videos:
        if name not in config.video_models and not allow_unused:
            raise UsageError(
                f"{name}: is a video classifier; `yt8m finetune` makes segment classifiers of such models, and "
                "video_prior and candidates use them in an ensemble."
            )
    return Merger(config, members)
