"""The stages of a run: settings and inputs of each, and whether its result exists.

`Stage` is what the recipe alone decides (kind, name, settings, network); `RunStage` adds what a dataset and an output
folder decide (inputs, fingerprint, folder, record). A finished stage is reused while its fingerprint, a hash of settings
and inputs, stays the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

from yt8m.dataset.layout import PARTS
from yt8m.errors import UsageError
from yt8m.features import YOUTUBE8M, Features
from yt8m.files import file_checksum, shown_checksum, written_atomically
from yt8m.models.classifier import ContextAgnosticClassifier, ContextAwareClassifier, VideoClassifier
from yt8m.models.config import VideoClassifierConfig
from yt8m.models.description import CONFIG_NAME, read_description
from yt8m.ranking.calibration import Calibration
from yt8m.runs.context import RunContext
from yt8m.runs.recipe import AgnosticModelConfig, BaseModelConfig, Recipe, SegmentModelConfig
from yt8m.runs.records import STAGE_FILE, StageRecord, read_record
from yt8m.settings import did_you_mean, dump_yaml, fingerprint, validated
from yt8m.shards.ids import SEGMENT_SECONDS

StageKind = Literal["pretrain", "finetune", "predict"]

PARTS_NEEDED: dict[StageKind, tuple[str, ...]] = {"pretrain": PARTS[:2], "finetune": PARTS[:3], "predict": PARTS}
"""Parts of the dataset that each kind of stage needs, those that its base models were trained on included."""
CODE_VERSIONS: dict[StageKind, int] = {"pretrain": 3, "finetune": 3, "predict": 4}
"""Raised when a change of the code changes the result of a stage with the same settings."""
NOT_DECISIVE = frozenset(["log_every", "checkpoint_every"])
"""Training settings that do not change the result."""


@dataclass(frozen=True, eq=False)
class Stage:
    """A stage as the recipe describes it.

    Args:
        recipe: The recipe.
        kind: What the stage does.
        name: The model; empty for prediction.
    """

    recipe: Recipe
    kind: StageKind
    name: str

    @property
    def path(self) -> str:
        """The stage's folder below the run's: `pretrain/NAME`, `finetune/NAME` or `predict`."""
        return f"{self.kind}/{self.name}" if self.name else self.kind

    @property
    def title(self) -> str:
        """The stage in messages: `pretrain NAME`."""
        return self.path.replace("/", " ")

    @property
    def config(self) -> BaseModelConfig | SegmentModelConfig:
        """Settings of the model to train.

        Raises:
            UsageError: The recipe has no such model.
        """
        what, models = (
            ("base", self.recipe.base_models) if self.kind == "pretrain" else ("segment", self.recipe.segment_models)
        )
        if self.name not in models:
            raise UsageError(f"The recipe has no {what} model {self.name!r}{did_you_mean(self.name, models)}.")
        config: BaseModelConfig | SegmentModelConfig = models[self.name]
        return config

    @property
    def seed(self) -> int:
        """Seed of the model, or of the recipe where the model has none."""
        return self.recipe.seed if self.config.seed is None else self.config.seed

    @property
    def num_frames(self) -> int:
        """Most frames of a training example."""
        config = self.config
        if isinstance(config, BaseModelConfig):
            return config.frames_per_video or config.classifier.encoder.max_frames
        return SEGMENT_SECONDS + 2 * config.margin_frames

    @property
    def settings(self) -> dict[str, Any]:
        """All settings that decide the stage's result."""
        machine = self.recipe.machine
        precision = machine.model_dump(include={"precision", "float32_matmul_precision"})
        if self.kind == "predict":
            ensemble = self.recipe.ensemble.model_dump(mode="json", exclude={"models"})
            models = {"models": sorted(self.recipe.ensemble_models)}
            return ensemble | models | {"top_k": self.recipe.top_k, "seed": self.recipe.seed} | precision
        settings = self.config.model_dump(mode="json")
        training = {name: value for name, value in settings["training"].items() if name not in NOT_DECISIVE}
        folds = {} if self.kind == "pretrain" else {"folds": self.recipe.folds}
        return settings | {"training": training, "seed": self.seed} | precision | folds

    def network(
        self, num_classes: int, base: Callable[[str], VideoClassifier], features: Features = YOUTUBE8M
    ) -> VideoClassifier | ContextAgnosticClassifier | ContextAwareClassifier:
        """The network before its first step.

        Args:
            num_classes: C.
            base: Returns a base model by its name.
            features: What the frames are.
        """
        config = self.config
        if isinstance(config, BaseModelConfig):
            return VideoClassifier(config.classifier, num_classes, features)
        if isinstance(config, AgnosticModelConfig):
            return ContextAgnosticClassifier.from_video_classifier(base(config.base), config.margin_frames)
        return ContextAwareClassifier.from_video_classifiers(
            base(config.context),
            base(config.segment),
            fusion=config.fusion,
            mixture=config.mixture,
            margin_frames=config.margin_frames,
        )


def training_stages(recipe: Recipe) -> list[Stage]:
    """The training stages of a recipe, in order."""
    return [Stage(recipe, "pretrain", name) for name in recipe.base_models] + [
        Stage(recipe, "finetune", name) for name in recipe.segment_models
    ]


def fresh_base(recipe: Recipe, name: str, num_classes: int, features: Features = YOUTUBE8M) -> VideoClassifier:
    """A base model of a recipe with fresh weights, whether it is to be trained or trained already."""
    if name in recipe.base_models:
        return VideoClassifier(recipe.base_models[name].classifier, num_classes, features)
    folder = Path(recipe.trained_models[name])
    description = read_description(folder)
    config = validated(VideoClassifierConfig, description.config, f"{folder / CONFIG_NAME}, config")
    return VideoClassifier(config, num_classes, description.features)


@dataclass(frozen=True, eq=False)
class RunStage(Stage):
    """A stage of a run: with the dataset that goes in, and the folder that its result is in."""

    context: RunContext

    @classmethod
    def of(cls, context: RunContext, kind: StageKind, name: str = "") -> Self:
        """A stage of a run, by kind and name."""
        return cls(context.recipe, kind, name, context)

    @property
    def folder(self) -> Path:
        """The folder of the stage's result."""
        return self.context.out / self.path

    @cached_property
    def inputs(self) -> dict[str, str]:
        """Digests of what goes into the stage, by name: catalogs, the truth, and the stages whose models it uses."""
        context = self.context
        if self.kind == "predict":
            stages = {name: RunStage.of(context, "finetune", name).fingerprint for name in context.predicted_models}
            stages |= {name: base_fingerprint(context, name) for name in self.recipe.ensemble.video_models}
            return stages | {
                "segment/test": context.catalog("segment/test").digest,
                "truth": context.truth.digest,
                "compare": str(context.compares),
            }
        config = self.config
        if isinstance(config, BaseModelConfig):
            parts = {part: context.catalog(part).digest for part in PARTS_NEEDED["pretrain"]}
            return {"vocabulary": context.vocabulary.digest} | parts
        bases = {role: base_fingerprint(context, name) for role, name in config.base_models.items()}
        return bases | {"segment/train": context.catalog("segment/train").digest}

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that decides the stage's result."""
        return fingerprint([CODE_VERSIONS[self.kind], self.kind, self.settings, self.inputs])

    @property
    def record(self) -> StageRecord | None:
        """The record in the stage's folder."""
        return read_record(self.folder)

    @property
    def is_finished(self) -> bool:
        """Whether the stage was finished with these settings and inputs."""
        record = self.record
        return record is not None and (record.fingerprint, record.status) == (self.fingerprint, "finished")

    def begin(self, *other_results: Path) -> None:
        """Record that the stage has started; one process calls this.

        The result of other settings or inputs is moved to `NAME.before-N`, `other_results` outside the folder included.
        """
        record = self.record
        if record is not None and record.fingerprint == self.fingerprint:
            if record.status == "started":
                self.context.report(f"{self.title}: resumes where it was stopped")
        elif record is not None or (self.name and self.folder.is_dir() and any(self.folder.iterdir())):
            for path in other_results:
                if path.is_file():
                    path.replace(self.folder / path.name)
            kept = _move_aside(self.folder)
            self.context.report(
                f"{self.title}: the settings or the data changed; the previous result is kept in {kept}"
            )
        self._write(StageRecord(fingerprint=self.fingerprint, status="started"))

    def finish(
        self,
        seconds: float,
        metrics: dict[str, float] | None = None,
        num_segments: int | None = None,
        ensemble_weights: dict[str, float] | None = None,
        calibration: Calibration | None = None,
        models: dict[str, str] | None = None,
        results: Sequence[Path] = (),
    ) -> None:
        """Record that the stage is finished, its figures, and checksums of results; one process calls this.

        See `StageRecord`.
        """
        self._write(
            StageRecord(
                fingerprint=self.fingerprint,
                status="finished",
                seconds=round(seconds, 1),
                metrics={name: float(value) for name, value in (metrics or {}).items()},
                num_segments=num_segments,
                ensemble_weights=ensemble_weights or {},
                calibration=calibration,
                models=models or {},
                checksums={path.name: shown_checksum(file_checksum(path)) for path in results},
            )
        )

    def _write(self, record: StageRecord) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        places = {"data": str(self.context.data.resolve()), "time": now, "settings": self.settings}
        values = record.model_copy(update=places).model_dump(exclude_none=True)
        with written_atomically(self.folder / STAGE_FILE) as temporary:
            temporary.write_text(dump_yaml(values), encoding="utf-8")


def base_fingerprint(context: RunContext, name: str) -> str:
    """Fingerprint of a base model's stage, or the digest of a model that was trained elsewhere."""
    if name in context.recipe.trained_models:
        return context.trained_model_digest(name)
    return RunStage.of(context, "pretrain", name).fingerprint


def _move_aside(folder: Path) -> Path:
    """Rename a folder to the first free `NAME.before-N`."""
    number = 1
    while (kept := folder.with_name(f"{folder.name}.before-{number}")).exists():
        number += 1
    return folder.replace(kept)
