"""Verify the checksums of what runs leave: models, checkpoints, stored predictions, submissions and tables."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from yt8m.errors import UsageError, Yt8mError
from yt8m.files import file_checksum, shown_checksum
from yt8m.models.description import CONFIG_NAME, WEIGHTS_NAME, read_description
from yt8m.models.saved import load_model
from yt8m.prediction.store import INDEX_FILE, UNFINISHED_INDEX_FILE, Store
from yt8m.runs.predict_stage import SUBMISSION_FILE
from yt8m.runs.records import STAGE_FILE, read_record
from yt8m.runtime.progress import ProgressFactory, no_progress, track
from yt8m.submission.table import TABLE_FILE
from yt8m.training.checkpoint import read_checkpoint
from yt8m.training.config import MODEL_FOLDER
from yt8m.training.loop import CHECKPOINT_FILE

Kind = Literal["model", "checkpoint", "store", "submission", "table"]


@dataclass(frozen=True)
class CheckedPart:
    """A file or folder that was verified.

    Args:
        path: The file, or the folder of a model or a store.
        kind: What it is.
        num_bytes: Size.
        status: Whether its checksums are right; earlier versions wrote none for some files.
        problem: What is wrong, a sentence; empty where nothing is.
    """

    path: Path
    kind: Kind
    num_bytes: int
    status: Literal["intact", "no checksum", "damaged"]
    problem: str = ""


def check_folder(folder: Path, progress: ProgressFactory = no_progress) -> list[CheckedPart]:
    """Verify every checksum below a folder: of a run, a stage, a model, a store, or several of them.

    Args:
        folder: The folder.
        progress: Reports parts verified.

    Raises:
        UsageError: There is nothing to verify.
    """
    if not folder.name or ".." in folder.parts:
        folder = folder.resolve()
    if (folder / UNFINISHED_INDEX_FILE).is_file():
        Store.open(folder)  # explains what to do
    # By path, since a model folder can be found in several ways.
    parts = {path: (kind, verify) for path, kind, verify in _parts(folder) if not _is_hidden(path, folder)}
    if not parts:
        raise UsageError(
            f"{folder}: contains no run, model or stored predictions, so there are no checksums to verify; for a submission, "
            "name its file."
        )
    return [_checked(path, *parts[path]) for path in track(sorted(parts), "check", progress)]


def _is_hidden(path: Path, folder: Path) -> bool:
    """Whether a path is in a hidden file or folder, as unfinished writes are."""
    return any(part.startswith(".") for part in path.relative_to(folder.parent).parts[1:])


def _checked(path: Path, kind: Kind, verify: Callable[[], bool]) -> CheckedPart:
    try:
        has_checksum, problem = verify(), ""
    except Yt8mError as error:
        has_checksum, problem = True, str(error)
    files = [path, *path.rglob("*")] if path.is_dir() else [path]
    num_bytes = sum(file.stat().st_size for file in files if file.is_file())
    return CheckedPart(
        path, kind, num_bytes, "damaged" if problem else "intact" if has_checksum else "no checksum", problem
    )


def _parts(folder: Path) -> Iterator[tuple[Path, Kind, Callable[[], bool]]]:
    """Find what can be verified; each with a function that returns whether it has a checksum, or raises."""
    for path in folder.rglob(WEIGHTS_NAME):
        yield path.parent, "model", partial(_verify_model, path.parent)
    for path in folder.rglob(f"{MODEL_FOLDER}/{CONFIG_NAME}"):
        yield path.parent, "model", partial(_verify_model, path.parent)
    for path in folder.rglob(CHECKPOINT_FILE):
        yield path, "checkpoint", partial(_verify_checkpoint, path)
    for path in folder.rglob(INDEX_FILE):
        yield path.parent, "store", partial(_verify_store, path.parent)
    for path in folder.rglob(STAGE_FILE):
        yield from _results(path.parent)


def _results(stage: Path) -> Iterator[tuple[Path, Kind, Callable[[], bool]]]:
    """The results that the record of a finished stage promises."""
    record = read_record(stage)
    if record is None or record.status != "finished":
        return
    if record.num_segments is None:
        yield stage / MODEL_FOLDER, "model", partial(_verify_model, stage / MODEL_FOLDER)
        return
    # A prediction that was moved aside (`predict.before-1`) has its results, if any, in its own folder.
    is_current = stage.name == "predict"
    folder = stage.parent if is_current else stage
    results: tuple[tuple[str, Kind], ...] = ((SUBMISSION_FILE, "submission"), (TABLE_FILE, "table"))
    for name, kind in results:
        if is_current or (folder / name).exists():
            yield folder / name, kind, partial(_verify_result, folder / name, record.checksums.get(name))


def _verify_model(folder: Path) -> bool:
    load_model(folder)
    return read_description(folder).weights_checksum is not None


def _verify_checkpoint(path: Path) -> bool:
    return read_checkpoint(path)[1]


def _verify_store(folder: Path) -> bool:
    store = Store.open(folder)
    for name in store.index.models:
        for class_index in range(store.index.num_classes):
            store.codes(name, class_index)
    return True


def _verify_result(path: Path, expected: str | None) -> bool:
    if not path.is_file():
        raise Yt8mError(f"{path}: is missing; the same `yt8m run` makes it again.")
    if expected is not None and shown_checksum(file_checksum(path)) != expected:
        raise Yt8mError(
            f"{path}: has changed since it was written (its checksum is wrong); delete it and run the same `yt8m run` again."
        )
    return expected is not None
