"""What the stages of a run share: the recipe, the dataset, the output folder and the devices."""

import hashlib
from functools import cached_property
from pathlib import Path

from lightning_fabric import Fabric

from yt8m.dataset.catalog import Catalog
from yt8m.dataset.frames import FrameReader
from yt8m.dataset.indexing import current_catalog, damaged_places, index_and_save
from yt8m.dataset.layout import part_folder, writable_catalog_folder
from yt8m.dataset.problems import REPORT_NAME
from yt8m.errors import UsageError, Yt8mError
from yt8m.features import Features
from yt8m.models.description import CONFIG_NAME, WEIGHTS_NAME, read_description
from yt8m.runs.recipe import Recipe
from yt8m.runtime.console import err
from yt8m.runtime.machine import make_fabric
from yt8m.runtime.progress import ProgressFactory, no_progress, terminal_progress
from yt8m.scoring.truth import GroundTruth
from yt8m.vocabulary import Vocabulary


class RunContext:
    """A recipe with a dataset folder and an output folder.

    Args:
        recipe: What to train and merge.
        data: The dataset folder, in the classic layout.
        out: Receives a folder per stage.

    Raises:
        UsageError: The dataset folder or its vocabulary is missing, the machine lacks the devices, or a package that the
            recipe logs with is not installed.
    """

    def __init__(self, recipe: Recipe, data: Path, out: Path) -> None:
        if not data.is_dir():
            raise UsageError(f"{data}: there is no such dataset folder.")
        recipe.log.check()
        self.recipe, self.data, self.out = recipe, data, out
        self.vocabulary = Vocabulary.load(data)
        self.fabric: Fabric = make_fabric(recipe.machine)
        self._reported: set[str] = set()
        self._catalogs: dict[str, Catalog] = {}
        self._trained_model_digests: dict[str, str] = {}

    @property
    def progress(self) -> ProgressFactory:
        """Where to report progress: the terminal in the first process, nowhere in the others."""
        return terminal_progress if self.fabric.is_global_zero else no_progress

    def report(self, message: str) -> None:
        """Print a message on standard error, once for all processes."""
        if self.fabric.is_global_zero:
            err.print(message)

    def report_once(self, message: str) -> None:
        """Print a message as `report` does, unless it was printed before."""
        if message not in self._reported:
            self._reported.add(message)
            self.report(message)

    def catalog(self, part: str) -> Catalog:
        """Catalog of a part of the dataset ("video/train", ...), indexed first where that has not been done.

        Raises:
            UsageError: The dataset lacks this part, or its features are not those of the others.
            Yt8mError: Indexing found damage. The catalog of the intact records is kept, and the next run uses it.
        """
        if part not in self._catalogs:
            if not self.fabric.is_global_zero:
                self.fabric.barrier()
            folder = part_folder(self.data, part)
            self._catalogs[part] = current_catalog(folder) or _index(folder)
            if self.fabric.is_global_zero:
                self.fabric.barrier()
            self.features.require_same(self._catalogs[part].features, f"{self.data}: a part of the dataset has")
        return self._catalogs[part]

    @property
    def features(self) -> Features:
        """Features of the dataset, of which a catalog is loaded already."""
        return next(iter(self._catalogs.values())).features

    def reader(self, part: str) -> FrameReader:
        """Frames of a part of the dataset."""
        return FrameReader(self.catalog(part))

    @cached_property
    def truth(self) -> GroundTruth:
        """Known ratings and positives of the test set.

        Raises:
            Yt8mError: A file cannot be read, or nothing can be scored against it.
        """
        return GroundTruth.find(self.data / "segment", self.catalog("segment/test"), self.vocabulary)

    @property
    def compares(self) -> bool:
        """Whether each model is ranked and scored too: if the recipe sets `compare` and there is truth to score against."""
        return self.recipe.compare and self.truth.is_known

    @property
    def predicted_models(self) -> list[str]:
        """Segment models that the prediction stage predicts with."""
        return list(self.recipe.segment_models) if self.compares else self.recipe.ensemble_models

    def trained_model_digest(self, name: str) -> str:
        """Digest of a model that was trained elsewhere.

        Raises:
            UsageError: Its folder contains no video classifier, or one of other classes.
        """
        if name not in self._trained_model_digests:
            folder = Path(self.recipe.trained_models[name])
            description = read_description(folder)
            if description.kind != "video":
                raise UsageError(f"{folder}: expected a video classifier, found a segment classifier.")
            if description.vocabulary != self.vocabulary.digest:
                raise UsageError(f"{folder}: it has another vocabulary than {self.data}.")
            digest = hashlib.sha256((folder / CONFIG_NAME).read_bytes())
            with (folder / WEIGHTS_NAME).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
            self._trained_model_digests[name] = digest.hexdigest()
        return self._trained_model_digests[name]


def _index(folder: Path) -> Catalog:
    """Index a folder of shards. Damage ends the run once, so that no data is lost unnoticed."""
    catalog = index_and_save(folder, progress=terminal_progress)
    if catalog.num_problems:
        raise Yt8mError(
            f"{folder}: {damaged_places(catalog.num_problems)} found while indexing, the first: "
            f"{catalog.problems[0].removesuffix('.')}. {writable_catalog_folder(folder) / REPORT_NAME} lists all; run again "
            "to continue without them."
        )
    return catalog
