"""Doing what a recipe says: its stages in order, each into a folder of its own, finished ones skipped.

A stage is known by its fingerprint: a digest of its settings and of what goes into it (catalogs by content, base
models by their own stage's fingerprint). `stage.yaml` in its folder holds it. The same fingerprint and `finished`
means skip; the same and `started` means go on from the checkpoint; another one means that the settings changed, and
the former result is moved aside, never overwritten.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning_fabric import Fabric
from torch import nn

from yt8m.dataset.batches import FrameChoice
from yt8m.dataset.catalog import Catalog
from yt8m.dataset.frames import FrameReader
from yt8m.dataset.indexing import REPORT_NAME, current_catalog, damaged_places, index_and_save
from yt8m.dataset.labels import fold_of_videos
from yt8m.dataset.layout import PARTS
from yt8m.errors import UsageError, Yt8mError
from yt8m.files import written_atomically
from yt8m.inference.classifier import FoldedClassifier
from yt8m.inference.encoders import FoldedEncoder
from yt8m.models.classifier import Classifier, ContextAgnosticClassifier, ContextAwareClassifier, VideoClassifier
from yt8m.models.saved import CONFIG_NAME, WEIGHTS_NAME, load_model, read_description
from yt8m.prediction.predict import SegmentClassifier, segments_of
from yt8m.ranking.ensemble import merging_order
from yt8m.ranking.weights import find_weights, out_of_fold
from yt8m.runs.comparison import Comparison, Outputs, Truths, predict_and_score, rankings_wanted
from yt8m.runs.predicting import shared_pass
from yt8m.runs.recipe import AgnosticModelConfig, BaseModelConfig, Recipe, SegmentModelConfig
from yt8m.runtime.console import err
from yt8m.runtime.machine import make_fabric
from yt8m.runtime.progress import no_progress, terminal_progress, track
from yt8m.runtime.stopping import StopRequest
from yt8m.scoring.report import SCORES_FILE, read_scores
from yt8m.settings import nearest, read_yaml, to_yaml
from yt8m.training.loop import CHECKPOINT_FILE, Task, fit
from yt8m.training.lr_finder import (
    PICTURE_FILE,
    RATES_FILE,
    LRSweepConfig,
    Suggestion,
    plot_rates,
    sweep_rates,
    write_rates,
)
from yt8m.training.metrics_log import WandbRun
from yt8m.training.tasks import SegmentTask, VideoTask
from yt8m.vocabulary import Vocabulary

STAGE_FILE = "stage.yaml"
SUBMISSION_FILE = "submission.csv"
TABLE_FILE = "segments.parquet"
STORE_FOLDER = "store"
RATES_FOLDER = "find-rate"
PARTS_NEEDED = {"pretrain": PARTS[:2], "finetune": PARTS[:3], "predict": PARTS}
"""Parts of the dataset that each kind of stage needs; a model is known by what its base models were trained on, too."""
CODE_VERSION = 3
"""Raised when a change of the code changes what a stage gives for the same settings."""

_WEIGHT_OF = "weight of "
_NOT_RESULTS = ("log_every", "checkpoint_every")
"""Settings of a training run that change nothing but how it is watched."""


@dataclass(frozen=True)
class StageRecord:
    """What `stage.yaml` says: which stage this is, and once it is finished, what came of it."""

    fingerprint: str
    status: str
    seconds: float
    metrics: dict[str, float]


def read_stage(folder: Path) -> StageRecord | None:
    """Read the record of a stage's folder; None where there is none."""
    if not (folder / STAGE_FILE).is_file():
        return None
    values = read_yaml(folder / STAGE_FILE)
    try:
        return StageRecord(
            values["fingerprint"], values["status"], values.get("seconds", 0.0), values.get("metrics", {})
        )
    except (TypeError, KeyError, AttributeError):
        return None


def _write_stage(folder: Path, record: StageRecord, settings: Mapping[str, Any]) -> None:
    values = {
        "fingerprint": record.fingerprint,
        "status": record.status,
        "seconds": round(record.seconds, 1),
        "metrics": {name: float(value) for name, value in record.metrics.items()},
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": dict(settings),
    }
    with written_atomically(folder / STAGE_FILE) as temporary:
        temporary.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")


@dataclass(frozen=True)
class FoundRate:
    """What came of looking for a learning rate.

    Args:
        suggestion: The rate suggested.
        peak_lr: The recipe's own.
        picture: What the loss did at each rate.
    """

    suggestion: Suggestion
    peak_lr: float
    picture: Path


def fingerprint(kind: str, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Digest of what decides a stage's result."""
    text = json.dumps([CODE_VERSION, kind, settings, inputs], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Run:
    """A recipe, a dataset folder and an output folder; each method does one stage unless it is done already.

    Args:
        recipe: What to train and merge.
        data: The dataset folder, in the classic layout.
        out: Where stages leave their folders.

    Raises:
        UsageError: There is no such dataset folder, it has no vocabulary, the machine lacks the devices, or what the
            recipe wants to log to is not installed.
    """

    def __init__(self, recipe: Recipe, data: Path, out: Path) -> None:
        if not data.is_dir():
            raise UsageError(f"{data}: there is no such dataset folder.")
        recipe.log.check()
        self.recipe, self.data, self.out = recipe, data, out
        self.vocabulary = Vocabulary.load(data)
        self.fabric: Fabric = make_fabric(recipe.machine)
        self._catalogs: dict[str, Catalog] = {}
        self._trained_marks: dict[str, str] = {}

    # ------------------------------------------------------------------------------------------------- inputs

    def catalog(self, part: str) -> Catalog:
        """Catalog of a part of the dataset ("video/train", ...), indexed now where it has not been.

        Raises:
            UsageError: The dataset lacks this part.
            Yt8mError: Indexing found damage. The catalog of what is intact is kept, so the next run goes on with it.
        """
        if part not in self._catalogs:
            if not self.fabric.is_global_zero:
                self.fabric.barrier()
            self._catalogs[part] = current_catalog(self.data / part) or _indexed(self.data / part)
            if self.fabric.is_global_zero:
                self.fabric.barrier()
        return self._catalogs[part]

    def _seed(self, seed: int | None) -> int:
        return self.recipe.seed if seed is None else seed

    # ------------------------------------------------------------------------------------------------- stages

    def pretrain(self, name: str) -> None:
        """Pre-train a base model of the recipe.

        Raises:
            UsageError: The recipe has no such model, or the data cannot train it.
        """
        stage, mark = self._base(name), self._pretrain_mark(name)
        self._train("pretrain", name, mark, stage, self._build_base)

    def finetune(self, name: str) -> None:
        """Fine-tune a segment model of the recipe from base models that are trained already.

        Raises:
            UsageError: The recipe has no such model, a base model is not trained with these settings, or the data
                cannot train it.
        """
        stage, mark = self._segment(name), self._finetune_mark(name)
        self._train("finetune", name, mark, stage, self._build_segment)

    def find_rate(self, name: str, sweep: LRSweepConfig) -> FoundRate:
        """Try learning rates on a model of the recipe, and leave `rates.csv` and `rates.png` in `find-rate/NAME`.

        A copy of the model is trained as its stage begins, by one process; the stage's own folder stays as it is.

        Raises:
            UsageError: The recipe has no such model, or two of that name, or a base model that a segment model is made of
                is not trained.
            Yt8mError: No rate makes the loss fall; the files are written.
        """
        models: dict[str, BaseModelConfig | SegmentModelConfig] = {
            **self.recipe.base_models,
            **self.recipe.segment_models,
        }
        if name not in models:
            raise UsageError(f"The recipe has no model {name!r}{nearest(name, models)}.")
        if name in self.recipe.base_models and name in self.recipe.segment_models:
            raise UsageError(
                f"The recipe has a base model and a segment model {name!r}; give one of them another name."
            )
        stage = models[name]
        seed = self._seed(stage.seed)
        model, task = (self._build_base if name in self.recipe.base_models else self._build_segment)(name, seed)
        curve = sweep_rates(
            self.fabric, model, task, stage.training, sweep, seed, self.recipe.machine, terminal_progress
        )
        folder = self.out / RATES_FOLDER / name
        write_rates(folder / RATES_FILE, curve)
        plot_rates(folder / PICTURE_FILE, curve, name, stage.training.peak_lr)
        suggestion = curve.suggestion
        if suggestion is None:
            raise Yt8mError(
                f"{name}: the loss falls at no rate from {sweep.lowest:g} to {sweep.highest:g}, as {folder / PICTURE_FILE} "
                "shows, so there is none to suggest; try other rates or more steps."
            )
        return FoundRate(suggestion, stage.training.peak_lr, folder / PICTURE_FILE)

    def predict(self) -> Comparison | None:
        """Predict every test segment with the ensemble's models, write `submission.csv`, score it where there is truth.

        All processes share the work.

        Returns:
            What was found; None on all processes but the first.

        Raises:
            UsageError: A model is not trained with these settings.
            Interrupted: The processes were asked to stop; the next try goes on from there.
        """
        ensemble, fabric = self.recipe.ensemble, self.fabric
        reader = FrameReader(self.catalog("segment/test"))
        truths = Truths.find(self.data / "segment", reader, self.vocabulary)
        compare = self.recipe.compare and (truths.ratings is not None or truths.positives is not None)
        names = list(self.recipe.segment_models) if compare else self.recipe.ensemble_models
        settings = ensemble.model_dump(mode="json", exclude={"models"}) | {
            "models": merging_order(self.recipe.ensemble_models),
            "top_k": self.recipe.top_k,
            "compare": compare,
            "seed": self.recipe.seed,
            "precision": self.recipe.machine.precision,
        }
        inputs = {name: self._finetune_mark(name) for name in names}
        inputs |= {name: self._pretrain_mark(name) for name in ensemble.video_models}
        inputs |= {"segment/test": reader.catalog.digest, "truth": truths.digest}
        mark = fingerprint("predict", settings, inputs)
        folder = self.out / "predict"
        outputs = Outputs(
            self.out / SUBMISSION_FILE, self.out / TABLE_FILE, folder, folder / STORE_FOLDER, ensemble.store
        )
        record = read_stage(folder)
        fabric.barrier()
        made = [outputs.submission, outputs.table, folder / SCORES_FILE, *([outputs.store] if ensemble.store else [])]
        if record and (record.fingerprint, record.status) == (mark, "finished") and all(map(Path.exists, made)):
            self._say("predict: finished before, skipped")
            return Comparison(read_scores(folder / SCORES_FILE), int(record.metrics["segments"]))
        encoders: dict[str, FoldedEncoder] = {}
        dtype = self.recipe.machine.product_dtype
        models = {
            name: FoldedClassifier(load(name), fabric.device, dtype, encoders)
            for load, chosen in ((self._segment_classifier, names), (self._trained_base, ensemble.video_models))
            for name in chosen
        }
        started = time.monotonic()
        if fabric.is_global_zero:
            if record and record.fingerprint != mark:
                for path in (outputs.submission, outputs.table):
                    if path.is_file():
                        path.replace(folder / path.name)
                self._keep_former("predict", folder)
            elif record and record.status == "started":
                self._say("predict: goes on where it was stopped")
            _write_stage(folder, StageRecord(mark, "started", 0.0, {}), settings)
        fabric.barrier()
        found = self._found_weights(models) if ensemble.find_weights else None
        if found is not None:
            ensemble = ensemble.model_copy(update={"weights": found})
        kinds = {name: self._segment(name).kind for name in names}
        with StopRequest(fabric) as stop:
            comparison = predict_and_score(
                shared_pass(fabric, stop, reader, segments_of(reader), models, ensemble.shifts),
                rankings_wanted(kinds, ensemble, self.recipe.ensemble_models, compare),
                self.recipe.top_k,
                self.vocabulary,
                truths,
                outputs,
                self.recipe.machine.precision,
                mark,
                self.recipe.seed,
            )
        if comparison is not None:
            seconds = time.monotonic() - started
            metrics = {"segments": float(comparison.num_segments), "models": float(len(models))}
            metrics |= {f"{_WEIGHT_OF}{name}": weight for name, weight in (found or {}).items()}
            _write_stage(folder, StageRecord(mark, "finished", seconds, metrics), settings)
            self._say(f"predict: {comparison.num_segments:,} segments with {len(models)} models, {seconds:.0f} s")
        return comparison

    def _found_weights(self, models: Mapping[str, FoldedClassifier]) -> dict[str, float]:
        """Weights of the ensemble's models, found on what each says of the fold that it held out."""
        members = merging_order(self.recipe.ensemble_models)
        reader = FrameReader(self.catalog("segment/train"))
        held_out = {name: self._segment(name).fold for name in members}
        folds = [
            out_of_fold(
                reader,
                self.vocabulary,
                {name: models[name] for name in members if held_out[name] == fold},
                fold_of_videos(reader.catalog, self.recipe.folds) == fold,
                self.recipe.ensemble.shifts,
            )
            for fold in track(sorted(set(held_out.values())), "weights")
        ]
        families = {name: self._family(name) for name in members}
        method = self.recipe.ensemble.method
        found = find_weights(folds, families, "geometric" if method == "geometric" else "arithmetic")
        if not found.num_ratings:
            self._say("predict: no fold was held out by models of two kinds, so all weights stay 1")
        else:
            listed = ", ".join(f"{name} {weight:g}" for name, weight in found.weights.items())
            self._say(
                f"predict: weights found on {found.num_ratings:,} held-out ratings: {listed} (cross-entropy "
                f"{found.loss:.4f}, with equal weights {found.equal_loss:.4f})"
            )
        return found.weights

    def _family(self, name: str) -> str:
        """What makes two segment models alike: all their settings but fold and seed."""
        return json.dumps(self._segment(name).model_dump(mode="json", exclude={"fold", "seed"}), sort_keys=True)

    def _segment_classifier(self, name: str) -> SegmentClassifier:
        model = self._trained("finetune", name, self._finetune_mark(name))
        if not isinstance(model, ContextAgnosticClassifier | ContextAwareClassifier):
            raise UsageError(f"{self.out / 'finetune' / name}: holds a model of another kind.")
        return model

    def stage_seconds(self) -> dict[str, float]:
        """Seconds that each finished stage took, by its name, in order."""
        records = {stage: read_stage(self.out / stage) for stage in self.stages()}
        return {stage: record.seconds for stage, record in records.items() if record and record.status == "finished"}

    def run(self, only: str | None = None) -> Comparison | None:
        """Run all stages, or only those asked for.

        Args:
            only: A kind of stage ("pretrain", "finetune", "predict") or one stage ("pretrain/dbof").

        Returns:
            What prediction ended with, if it was among the stages.

        Raises:
            UsageError: There is no such stage, one that it needs is not finished, or the dataset lacks a part.
        """
        stages = self.stages()
        chosen = [stage for stage in stages if only is None or only in (stage, stage.split("/")[0])]
        if not chosen:
            raise UsageError(f"The recipe has no stage {only!r}{nearest(str(only), [*PARTS_NEEDED, *stages])}.")
        if self.fabric.is_global_zero:
            self._keep_recipe()
        self._check_data(chosen[-1].split("/")[0])
        comparison = None
        for stage in chosen:
            kind, _, name = stage.partition("/")
            if kind == "pretrain":
                self.pretrain(name)
            elif kind == "finetune":
                self.finetune(name)
            else:
                comparison = self.predict()
        self.fabric.barrier()
        return comparison

    def stages(self) -> list[str]:
        """Names of all stages, in order."""
        return [
            *(f"pretrain/{name}" for name in self.recipe.base_models),
            *(f"finetune/{name}" for name in self.recipe.segment_models),
            "predict",
        ]

    def _check_data(self, kind: str) -> None:
        """Look at all data that the stages up to one of this kind need: what is amiss is said before hours of training."""
        for part in PARTS_NEEDED[kind]:
            if self.recipe.base_models or part not in PARTS_NEEDED["pretrain"]:
                self.catalog(part)
        for name in self.recipe.trained_models:
            self._trained_model_mark(name)
        if kind != "pretrain":
            fold_of_videos(self.catalog("segment/train"), self.recipe.folds)
        if kind == "predict":
            Truths.find(self.data / "segment", FrameReader(self.catalog("segment/test")), self.vocabulary)

    # --------------------------------------------------------------------------------------- what a stage is

    def _base(self, name: str) -> BaseModelConfig:
        if name not in self.recipe.base_models:
            raise UsageError(f"The recipe has no base model {name!r}{nearest(name, self.recipe.base_models)}.")
        return self.recipe.base_models[name]

    def _segment(self, name: str) -> SegmentModelConfig:
        if name not in self.recipe.segment_models:
            raise UsageError(f"The recipe has no segment model {name!r}{nearest(name, self.recipe.segment_models)}.")
        return self.recipe.segment_models[name]

    def _settings(self, stage: BaseModelConfig | SegmentModelConfig) -> dict[str, Any]:
        """All settings that decide a training stage's result."""
        settings = stage.model_dump(mode="json")
        training = {name: value for name, value in settings["training"].items() if name not in _NOT_RESULTS}
        decided = {"training": training, "seed": self._seed(stage.seed), "precision": self.recipe.machine.precision}
        if not isinstance(stage, BaseModelConfig):
            decided["folds"] = self.recipe.folds
        return settings | decided

    def _pretrain_mark(self, name: str) -> str:
        if name in self.recipe.trained_models:
            return self._trained_model_mark(name)
        inputs = {"vocabulary": self.vocabulary.digest} | {
            part: self.catalog(part).digest for part in ("video/train", "video/valid")
        }
        return fingerprint("pretrain", self._settings(self._base(name)), inputs)

    def _trained_model_mark(self, name: str) -> str:
        """Digest of a model that the recipe has from elsewhere.

        Raises:
            UsageError: Its folder holds no classifier of whole videos, or one of other classes.
        """
        if name not in self._trained_marks:
            folder = Path(self.recipe.trained_models[name])
            description = read_description(folder)
            if description.kind != "video":
                raise UsageError(f"{folder}: expected a classifier of whole videos, found a segment classifier.")
            if description.vocabulary != self.vocabulary.digest:
                raise UsageError(f"{folder}: its classes are those of another vocabulary than {self.data} has.")
            digest = hashlib.sha256((folder / CONFIG_NAME).read_bytes())
            with (folder / WEIGHTS_NAME).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
            self._trained_marks[name] = digest.hexdigest()
        return self._trained_marks[name]

    def _finetune_mark(self, name: str) -> str:
        stage = self._segment(name)
        bases = (
            {"base": stage.base}
            if isinstance(stage, AgnosticModelConfig)
            else {"context": stage.context, "segment": stage.segment}
        )
        inputs = {role: self._pretrain_mark(base) for role, base in bases.items()}
        inputs["segment/train"] = self.catalog("segment/train").digest
        return fingerprint("finetune", self._settings(stage), inputs)

    def _start(self, stage: SegmentModelConfig) -> SegmentClassifier:
        """A segment model before its first step, made of trained base models."""
        if isinstance(stage, AgnosticModelConfig):
            return ContextAgnosticClassifier.from_video_classifier(self._trained_base(stage.base), stage.margin_frames)
        return ContextAwareClassifier.from_video_classifiers(
            self._trained_base(stage.context),
            self._trained_base(stage.segment),
            fusion=stage.fusion,
            mixture=stage.mixture,
            margin_frames=stage.margin_frames,
        )

    def _trained_base(self, name: str) -> VideoClassifier:
        if name in self.recipe.trained_models:
            folder = Path(self.recipe.trained_models[name])
            model = load_model(folder, vocabulary_digest=self.vocabulary.digest, device=self.fabric.device)
        else:
            model = self._trained("pretrain", name, self._pretrain_mark(name))
        if not isinstance(model, VideoClassifier):
            raise UsageError(f"{self.out / 'pretrain' / name}: holds a model of another kind.")
        return model

    def _trained(self, kind: str, name: str, mark: str) -> Classifier:
        """Load what a stage left.

        Raises:
            UsageError: It is not finished, or was run with other settings or data.
        """
        folder = self.out / kind / name
        record = read_stage(folder)
        if record is None or record.status != "finished":
            raise UsageError(f"{folder}: {kind} of {name!r} is not finished; run that stage first.")
        if record.fingerprint != mark:
            raise UsageError(
                f"{folder}: was trained with other settings or data than the recipe's; run that stage again."
            )
        return load_model(folder / "model", vocabulary_digest=self.vocabulary.digest, device=self.fabric.device)

    # ----------------------------------------------------------------------------------------------- training

    def _build_base(self, name: str, seed: int) -> tuple[nn.Module, Task]:
        """A base model before its first step, and what it is trained on."""
        stage = self._base(name)
        torch.manual_seed(seed)
        task = VideoTask(
            FrameReader(self.catalog("video/train")),
            FrameReader(self.catalog("video/valid")),
            self.vocabulary,
            stage.classifier.encoder.max_frames,
            FrameChoice(stage.frames_per_video or stage.classifier.encoder.max_frames, stage.clip_probability),
            stage.training.batch_size,
            seed,
            {"name": name, "seed": seed, "stage": self._pretrain_mark(name)},
        )
        return VideoClassifier(stage.classifier, len(self.vocabulary)), task

    def _build_segment(self, name: str, seed: int) -> tuple[nn.Module, Task]:
        """A segment model before its first step, and what it is trained on."""
        stage = self._segment(name)
        torch.manual_seed(seed)
        model = self._start(stage).to(self.fabric.device)
        task = SegmentTask(
            self.fabric,
            model,
            FrameReader(self.catalog("segment/train")),
            self.vocabulary,
            stage.fold,
            self.recipe.folds,
            stage.loss,
            stage.training.batch_size,
            seed,
            {"name": name, "seed": seed, "fold": stage.fold, "stage": self._finetune_mark(name)},
        )
        return model, task

    def _train(
        self,
        kind: str,
        name: str,
        mark: str,
        stage: BaseModelConfig | SegmentModelConfig,
        build: Callable[[str, int], tuple[nn.Module, Task]],
    ) -> None:
        """Train one model into its folder, unless that is done; go on where a former run was stopped."""
        folder = self.out / kind / name
        record = read_stage(folder)
        title = f"{kind} {name}"
        self.fabric.barrier()
        if record and record.fingerprint == mark and record.status == "finished":
            self._say(f"{title}: finished before, skipped")
            return
        seed = self._seed(stage.seed)
        model, task = build(name, seed)
        if self.fabric.is_global_zero:
            if folder.exists() and (record is None or record.fingerprint != mark):
                self._keep_former(title, folder)
            elif record:
                self._say(f"{title}: goes on where it was stopped")
            _write_stage(folder, StageRecord(mark, "started", 0.0, {}), self._settings(stage))
        self.fabric.barrier()
        progress = terminal_progress if self.fabric.is_global_zero else no_progress
        with progress(title, stage.training.steps) as report:
            fitted = fit(
                self.fabric,
                model,
                task,
                stage.training,
                folder,
                seed,
                self.recipe.machine,
                lambda pace: report(pace.step, note=pace.note),
                WandbRun(self.recipe.log, title, mark, self._settings(stage)),
            )
        if self.fabric.is_global_zero:
            _write_stage(folder, StageRecord(mark, "finished", fitted.seconds, fitted.metrics), self._settings(stage))
            (folder / CHECKPOINT_FILE).unlink(missing_ok=True)
            metrics = ", ".join(f"{metric} {value:.4f}" for metric, value in fitted.metrics.items())
            self._say(f"{title}: {metrics} at step {fitted.best_step} of {fitted.last_step}, {fitted.seconds:.0f} s")
        self.fabric.barrier()

    def _say(self, sentence: str) -> None:
        if self.fabric.is_global_zero:
            err.print(sentence, markup=False)

    def _keep_former(self, title: str, folder: Path) -> None:
        """Move a result of other settings or data aside."""
        kept = _moved_aside(folder)
        self._say(f"{title}: the settings or the data changed; the former result is kept in {kept}")

    def _keep_recipe(self) -> None:
        """Leave the recipe, with every value spelled out, beside what it makes."""
        with written_atomically(self.out / "recipe.yaml") as temporary:
            temporary.write_text(to_yaml(self.recipe), encoding="utf-8")


def _indexed(folder: Path) -> Catalog:
    """Index a folder of shards and save its catalog; damage stops the run once, so that nobody trains on less unawares."""
    catalog = index_and_save(folder, progress=terminal_progress)
    if catalog.num_problems:
        raise Yt8mError(
            f"{folder}: {damaged_places(catalog.num_problems)} found while indexing, the first: {catalog.problems[0].removesuffix('.')}. "
            f"{folder / REPORT_NAME} lists all; run again to go on without them."
        )
    return catalog


def found_weights(out: Path) -> dict[str, float]:
    """Weights that prediction found for the models of a run's ensemble, by name; none where it has not.

    Args:
        out: The run's folder.
    """
    record = read_stage(out / "predict")
    metrics = {} if record is None else record.metrics
    return {name.removeprefix(_WEIGHT_OF): value for name, value in metrics.items() if name.startswith(_WEIGHT_OF)}


def _moved_aside(folder: Path) -> Path:
    """Rename a folder to the first free `NAME.before-N`."""
    number = 1
    while (kept := folder.with_name(f"{folder.name}.before-{number}")).exists():
        number += 1
    return folder.replace(kept)
