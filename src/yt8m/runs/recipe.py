"""A recipe: one YAML file that names the models to train and how they are merged.

    base_models      video classifiers, pre-trained on video labels
    trained_models   video classifiers that are trained already
    segment_models   segment classifiers, context-agnostic or context-aware, fine-tuned from these on rated segments
    ensemble         the segment models that are merged into the submission

Everything is validated before anything runs: keys, types, values, and that every model named exists.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from yt8m.errors import UsageError
from yt8m.models.config import FusionConfig, MixtureConfig, VideoClassifierConfig
from yt8m.ranking import MAX_SEGMENTS
from yt8m.ranking.ensemble import MergeConfig, model_weights
from yt8m.runtime.machine import MachineConfig
from yt8m.settings import MAX_SEED, MAX_SIZE, Settings, did_you_mean, overridden, read_yaml, validated
from yt8m.training.config import LogConfig, SegmentLossConfig, TrainingConfig

RECIPE_FILE = "recipe.yaml"
"""The recipe in the folder of a run."""

ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
"""Names are also names of folders."""


class BaseModelConfig(Settings):
    """A video classifier to pre-train on `video/train` and evaluate on `video/valid`."""

    renamed: ClassVar[Mapping[str, str]] = {"clip_share": "clip_probability"}

    classifier: VideoClassifierConfig
    """The network."""
    frames_per_video: int | None = Field(default=None, ge=1, le=MAX_SIZE)
    """Frames sampled at each visit of a video in training; the encoder's `max_frames` by default."""
    clip_probability: float = Field(default=0.0, ge=0, le=1)
    """Probability that a visit sees consecutive frames instead of frames sampled from the whole video; 0 in the paper."""
    training: TrainingConfig
    """Optimization and evaluation."""
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED)
    """Seed of weights, order and sampling; the recipe's by default."""


class _SegmentModelConfig(Settings):
    """Settings of both kinds of segment model."""

    fold: int = Field(ge=0, le=MAX_SIZE)
    """The fold of `segment/train` that is held out to select the best checkpoint."""
    training: TrainingConfig
    """Optimization and evaluation."""
    loss: SegmentLossConfig = SegmentLossConfig()
    """Weights of the terms of the loss."""
    margin_frames: int = Field(default=3, ge=0, le=1000)
    """Frames of context on either side of a segment."""
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED)
    """Seed of weights, order and dropout; the recipe's by default."""


class AgnosticModelConfig(_SegmentModelConfig):
    """A context-agnostic segment classifier: a fine-tuned base model."""

    kind: Literal["agnostic"] = "agnostic"
    base: str
    """The base model."""

    @property
    def base_models(self) -> dict[str, str]:
        """Base models by their role."""
        return {"base": self.base}


class AwareModelConfig(_SegmentModelConfig):
    """A context-aware segment classifier: a frozen context encoder beside a segment encoder."""

    kind: Literal["aware"] = "aware"
    context: str
    """The base model whose encoder encodes the video."""
    segment: str
    """The base model whose encoder encodes the segment."""
    fusion: FusionConfig = FusionConfig()
    """The layers that join the two."""
    mixture: MixtureConfig = MixtureConfig()
    """The mixture of experts on top."""

    @property
    def base_models(self) -> dict[str, str]:
        """Base models by their role."""
        return {"context": self.context, "segment": self.segment}


SegmentModelConfig = Annotated[AgnosticModelConfig | AwareModelConfig, Field(discriminator="kind")]


class EnsembleConfig(MergeConfig):
    """The ensemble that makes the submission."""

    models: list[str] = Field(default_factory=list)
    """The segment models to merge; all of them where empty."""
    find_weights: bool = False
    """Fit the models' weights to each one's predictions of the fold that it held out."""
    shifts: list[Annotated[int, Field(ge=-5, le=5)]] = Field(default=[0], min_length=1)
    """Test-time shifts: seconds to move the frames seen of a segment by; the probabilities are averaged."""
    store: bool = False
    """Keep all probabilities in `predict/store`, 2 bytes per segment, class and model, to merge them differently later."""

    @model_validator(mode="after")
    def _settings_agree(self) -> Self:
        if self.find_weights and self.weights:
            raise ValueError("find_weights: weights are given as well; remove one of the two")
        if self.find_weights and self.method == "rank":
            raise ValueError("find_weights: ranks have no likelihood to maximize; use another method")
        if len(set(self.shifts)) != len(self.shifts):
            raise ValueError("shifts: a shift is named more than once")
        return self


class Recipe(Settings):
    """Models to train, and how they are merged into an ensemble."""

    description: str = ""
    """Purpose of the recipe."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Seed of every model without one of its own."""
    folds: int = Field(default=8, ge=2, le=MAX_SIZE)
    """Folds of the rated videos, by shard."""
    base_models: dict[ModelName, BaseModelConfig] = Field(default_factory=dict)
    """Video classifiers to pre-train."""
    trained_models: dict[ModelName, str] = Field(default_factory=dict)
    """Paths of the model folders of video classifiers that are trained already: base models like the others."""
    segment_models: dict[ModelName, SegmentModelConfig] = Field(min_length=1)
    """Segment classifiers to fine-tune."""
    ensemble: EnsembleConfig = EnsembleConfig()
    """The ensemble."""
    top_k: int = Field(default=MAX_SEGMENTS, ge=1, le=MAX_SEGMENTS)
    """Segments to list per class."""
    compare: bool = False
    """Also rank and score each model, each kind of model and a random order, where the test set has ground truth."""
    machine: MachineConfig = MachineConfig()
    """Devices and precision."""
    log: LogConfig = LogConfig()
    """Where to log training besides the run's folder."""

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        bases = [*self.base_models, *self.trained_models]
        if not bases:
            raise ValueError("base_models: expected at least one model, here or in trained_models")
        for name in self.trained_models:
            if name in self.base_models:
                raise ValueError(f"trained_models: {name!r} is also a base model to pre-train; remove one of the two")
        for name, model in self.segment_models.items():
            place = f"segment_models.{name}"
            for role, base in model.base_models.items():
                if base not in bases:
                    raise ValueError(f"{place}.{role}: there is no base model {base!r}{did_you_mean(base, bases)}")
            if model.fold >= self.folds:
                raise ValueError(f"{place}.fold: expected a fold below {self.folds}, found {model.fold}")
        return self

    @model_validator(mode="after")
    def _ensemble_exists(self) -> Self:
        bases = [*self.base_models, *self.trained_models]
        for name in [*self.ensemble.models, *self.ensemble.weights]:
            if name not in self.segment_models:
                raise ValueError(
                    f"ensemble: there is no segment model {name!r}{did_you_mean(name, self.segment_models)}"
                )
        for name in self.ensemble.models:
            if self.ensemble.models.count(name) > 1:
                raise ValueError(f"ensemble.models: {name!r} is named more than once; give it a weight instead")
        for name in self.ensemble.video_models:
            if name not in bases:
                raise ValueError(f"ensemble: there is no base model {name!r}{did_you_mean(name, bases)}")
            if name in self.segment_models:
                raise ValueError(
                    f"ensemble: {name!r} is a base model and a segment model; give one of them another name"
                )
        try:
            model_weights(self.ensemble, self.ensemble_models)
        except UsageError as error:
            raise ValueError(f"ensemble.weights: {str(error).removesuffix('.')}") from None
        return self

    @property
    def ensemble_models(self) -> list[str]:
        """Names of the merged models."""
        return self.ensemble.models or list(self.segment_models)

    def stage_of_model(self, name: str) -> Literal["pretrain", "finetune"]:
        """The kind of stage that trains a model.

        Raises:
            UsageError: The recipe has no such model to train, or two of that name.
        """
        is_base, is_segment = name in self.base_models, name in self.segment_models
        if not (is_base or is_segment):
            models = [*self.base_models, *self.segment_models]
            raise UsageError(f"The recipe has no model {name!r}{did_you_mean(name, models)}.")
        if is_base and is_segment:
            raise UsageError(
                f"The recipe has a base model and a segment model {name!r}; give one of them another name."
            )
        return "pretrain" if is_base else "finetune"

    def require_stage(self, only: str | None) -> None:
        """Require that the recipe has a stage, named by its kind or as `pretrain/NAME`; None names all.

        Raises:
            UsageError: It has none.
        """
        known = ["pretrain", "finetune", "predict"]
        known += [f"pretrain/{name}" for name in self.base_models]
        known += [f"finetune/{name}" for name in self.segment_models]
        if only is not None and only not in known:
            raise UsageError(f"The recipe has no stage {only!r}{did_you_mean(only, known)}.")


def shipped_recipes() -> dict[str, Path]:
    """Paths of the recipes that ship with the package, by name, sorted."""
    package = Path(__file__).parents[1]
    # An installed package contains its recipes; a source checkout keeps them at its root.
    folder = next((place for place in (package / "recipes", package.parents[1] / "recipes") if place.is_dir()), package)
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def shipped_recipe(name: str) -> Path:
    """Path of a recipe that ships with the package, by its name ("demo", "seventh-place", ...).

    Raises:
        UsageError: There is none of that name.
    """
    known = shipped_recipes()
    if name not in known:
        raise UsageError(f"There is no recipe {name!r}{did_you_mean(name, known)}.")
    return known[name]


def find_recipe(name_or_path: str) -> Path:
    """Path of a recipe, given as a file or as the name of one that ships with the package.

    Raises:
        UsageError: It is neither.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    if path.suffix or len(path.parts) != 1:
        ships = f"; `{path.stem}` alone is the one that ships with yt8m" if path.stem in shipped_recipes() else ""
        raise UsageError(f"{path}: there is no such recipe{ships}.")
    return shipped_recipe(name_or_path)


def read_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe.

    Args:
        path: The YAML file.
        overrides: `path=value` each, such as `base_models.dbof.training.steps=100`; values are YAML.

    Raises:
        UsageError: The file or an override is invalid; the message names the place.
    """
    values = read_yaml(path)
    if isinstance(values, dict):
        values = overridden(values, overrides or [])
    return validated(Recipe, values, str(path))
