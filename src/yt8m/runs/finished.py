"""What finished work records: the ensemble of a run, and the dataset and the classes of runs, models and stores.

Every stage records what it was made with in its `stage.yaml`, the dataset folder included, and a model folder lists its
classes. So where a run or a model is given, the vocabulary and the test shards need not be. Nothing here needs torch.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from yt8m.dataset.layout import PARTS
from yt8m.errors import UsageError
from yt8m.models.description import read_description
from yt8m.prediction.store import Store
from yt8m.ranking.calibration import Calibration
from yt8m.runs.recipe import RECIPE_FILE, EnsembleConfig, read_recipe
from yt8m.runs.records import STAGE_FILE, STORE_FOLDER, read_record
from yt8m.settings import validated
from yt8m.training.config import MODEL_FOLDER
from yt8m.vocabulary import FILE_NAME as VOCABULARY_FILE
from yt8m.vocabulary import Vocabulary


@dataclass(frozen=True)
class RunEnsemble:
    """The ensemble of a run.

    Args:
        settings: How its models are merged, with the weights that were found, if the recipe has them fitted.
        members: Names of the merged segment models.
        folders: Model folders of these and of the video classifiers that the ensemble uses, by name.
        calibration: Of its scores; None where the prediction is not finished, or has none.
    """

    settings: EnsembleConfig
    members: list[str]
    folders: dict[str, Path]
    calibration: Calibration | None = None


def ensemble_of_run(run: Path) -> RunEnsemble:
    """The ensemble that a run's prediction was made with; before it is finished, that of the run's recipe.

    Raises:
        UsageError: It is not the folder of a run.
    """
    record = read_record(run / "predict")
    calibration = None
    if record is not None and record.status == "finished" and record.models:
        values = {name: value for name, value in record.settings.items() if name in EnsembleConfig.model_fields}
        settings = validated(EnsembleConfig, values, str(run / "predict" / STAGE_FILE))
        folders = {name: run / folder for name, folder in record.models.items()}
        members, calibration = settings.models, record.calibration
    else:
        if not (run / RECIPE_FILE).is_file():
            raise UsageError(f"{run}: is not the folder of a run (it has no {RECIPE_FILE}); `yt8m run` makes one.")
        recipe = read_recipe(run / RECIPE_FILE)
        settings, members = recipe.ensemble, recipe.ensemble_models
        folders = {name: run / "finetune" / name / MODEL_FOLDER for name in members} | {
            name: Path(recipe.trained_models.get(name, run / "pretrain" / name / MODEL_FOLDER))
            for name in settings.video_models
        }
    if settings.find_weights:
        weights = {} if record is None else record.ensemble_weights
        settings = settings.model_copy(update={"find_weights": False, "weights": weights})
    used = {name: folders[name] for name in [*members, *settings.video_models]}
    return RunEnsemble(settings, members, used, calibration)


@dataclass(frozen=True)
class Origin:
    """Where the classes and the shards of a run, of models or of stored predictions are, as far as it is recorded.

    Args:
        source: The run, model or store, for messages.
        listings: Folders that may contain the list of classes.
        recorded_shards: Finds the folder of the shards to predict, or that were predicted; None if it is not recorded.
    """

    source: Path
    listings: list[Path]
    recorded_shards: Callable[[], Path | None]

    def find_classes(self, vocabulary: Path | None) -> Vocabulary:
        """Classes of a file (`--vocabulary`), or else those that are recorded.

        Raises:
            UsageError: The file is invalid, or none is recorded.
        """
        if vocabulary is not None:
            return Vocabulary.load(vocabulary)
        for folder in self.listings:
            if (folder / VOCABULARY_FILE).is_file():
                return Vocabulary.load(folder)
        raise UsageError(
            f"{self.source}: does not list its classes; give --vocabulary FILE, the {VOCABULARY_FILE} of the dataset."
        )

    def find_shards(self, shards: Path | None) -> Path:
        """A folder of shards (`--shards`), or else the one that is recorded.

        Raises:
            UsageError: None is recorded, it is no longer there, or the source is not what it should be.
        """
        if shards is not None:
            return shards
        recorded = self.recorded_shards()
        if recorded is None:
            raise UsageError(
                f"{self.source}: its dataset is not recorded; give --shards DIR, the folder of the shards."
            )
        if not recorded.is_dir():
            raise UsageError(
                f"{self.source}: its shards were in {recorded}, where there is no such folder now; give --shards "
                "DIR, the folder that they are in."
            )
        return recorded


def origin_of(models: Iterable[Path], run: Path | None = None) -> Origin:
    """The origin of a run, or of model folders: the test shards of the dataset that they were made with.

    Raises:
        UsageError: A model folder is not one.
    """
    models = list(models)
    for model in models:
        read_description(model)
    stages = [model.resolve().parent for model in models]
    if run is not None:
        stages = [run / "predict", *sorted(run.glob("finetune/*")), *sorted(run.glob("pretrain/*"))]
    records = map(read_record, stages)
    data = next((Path(record.data) for record in records if record is not None and record.data), None)
    if data is None:
        return Origin(run or models[0], models, lambda: None)
    return Origin(run or models[0], [*models, data], lambda: data / PARTS[-1])


def origin_of_stores(folders: Sequence[Path]) -> Origin:
    """The origin of stored predictions; the stores are opened only where their shards are not given."""

    def recorded_shards() -> Path | None:
        shards = [Store.open(folder).index.shards for folder in folders]
        return next((Path(folder) for folder in shards if folder), None)

    return Origin(folders[0], list(folders), recorded_shards)


def store_of_run(run: Path) -> Path:
    """The probabilities that a run stored.

    Raises:
        UsageError: It has not stored them.
    """
    folder = run / "predict" / STORE_FOLDER
    if not folder.is_dir():
        raise UsageError(
            f"{run}: has no stored probabilities; run its recipe with --set ensemble.store=true, or use yt8m predict "
            "--run, which predicts them."
        )
    return folder
