"""Train the models of a run: build a stage's network and task, train it, load the result."""

from dataclasses import dataclass
from pathlib import Path

import torch

from yt8m.dataset.batches import FrameSampling, require_divisible
from yt8m.dataset.labels import labeled_videos, split_ratings
from yt8m.errors import UsageError, Yt8mError
from yt8m.models.classifier import Classifier, ContextAgnosticClassifier, ContextAwareClassifier, VideoClassifier
from yt8m.models.saved import load_model
from yt8m.runs.context import RunContext
from yt8m.runs.memory import require_memory
from yt8m.runs.recipe import BaseModelConfig
from yt8m.runs.stages import PARTS_NEEDED, RunStage, StageKind
from yt8m.training.config import MODEL_FOLDER
from yt8m.training.loop import CHECKPOINT_FILE, Task, Trainer
from yt8m.training.lr_finder import (
    LR_PICTURE_FILE,
    LR_TABLE_FILE,
    LRSweepConfig,
    Suggestion,
    lr_sweep,
    plot_lr_curve,
    write_lr_curve,
)
from yt8m.training.metrics_log import WandbRun
from yt8m.training.tasks import SegmentTask, VideoTask

LR_FOLDER = "find-lr"


def require_trainable(stage: RunStage) -> None:
    """Check that a stage can train its model on this data and machine, before an earlier stage takes hours.

    Raises:
        UsageError: The data cannot train the model, the machine lacks the memory, or the processes cannot share a batch.
    """
    context, config = stage.context, stage.config
    require_divisible(config.training.batch_size, context.fabric.world_size)
    if isinstance(config, BaseModelConfig):
        for part in PARTS_NEEDED["pretrain"]:
            labeled_videos(context.catalog(part), context.vocabulary)
    else:
        split_ratings(context.catalog("segment/train"), context.vocabulary, config.fold, context.recipe.folds)
    fabric = context.fabric
    require_memory(stage, len(context.vocabulary), fabric.device, fabric.world_size, context.features)


def build(stage: RunStage) -> tuple[Classifier, Task]:
    """Build a stage's network, as it is before its first step, and its task.

    Raises:
        UsageError: A base model is not trained with the recipe's settings; or see `require_trainable`.
    """
    context, config = stage.context, stage.config
    require_trainable(stage)
    torch.manual_seed(stage.seed)
    fold = {} if isinstance(config, BaseModelConfig) else {"fold": config.fold}
    provenance = {"name": stage.name, "seed": stage.seed} | fold | {"stage": stage.fingerprint}
    if isinstance(config, BaseModelConfig):
        max_frames = config.classifier.encoder.max_frames
        task: Task = VideoTask(
            context.reader("video/train"),
            context.reader("video/valid"),
            context.vocabulary,
            max_frames,
            FrameSampling(stage.num_frames, config.clip_probability),
            config.training.batch_size,
            stage.seed,
            provenance,
        )
        return _network(stage), task
    model = _network(stage).to(context.fabric.device)
    if isinstance(model, VideoClassifier) and not isinstance(model, ContextAgnosticClassifier):
        raise TypeError("not a segment classifier")
    task = SegmentTask(
        context.fabric,
        model,
        context.reader("segment/train"),
        context.vocabulary,
        config.fold,
        context.recipe.folds,
        config.loss,
        config.training.batch_size,
        stage.seed,
        provenance,
    )
    return model, task


def _network(stage: RunStage) -> Classifier:
    context = stage.context
    return stage.network(len(context.vocabulary), lambda name: load_base(context, name), context.features)


def train(stage: RunStage) -> None:
    """Train a stage's model into its folder, or resume where a previous run was stopped; all processes call this.

    Raises:
        UsageError: See `build`; or `machine.compile` is set, but there is no compiler.
        Interrupted: The processes received a signal to stop; a checkpoint was written.
    """
    context, training = stage.context, stage.config.training
    if note := context.recipe.machine.uncompiled_note(context.fabric.device):
        context.report_once(note)
    model, task = build(stage)
    if context.fabric.is_global_zero:
        stage.begin()
    context.fabric.barrier()
    with context.progress(stage.title, training.steps) as report:
        result = Trainer(
            context.fabric,
            model,
            task,
            training,
            stage.folder,
            stage.seed,
            context.recipe.machine,
            lambda metrics: report(metrics.step, note=metrics.note),
            WandbRun(context.recipe.log, stage.title, stage.fingerprint, stage.settings),
        ).fit()
    if context.fabric.is_global_zero:
        stage.finish(result.seconds, result.metrics)
        (stage.folder / CHECKPOINT_FILE).unlink(missing_ok=True)
        metrics = ", ".join(f"{metric} {value:.4f}" for metric, value in result.metrics.items())
        context.report(
            f"{stage.title}: {metrics} at step {result.best_step} of {result.last_step}, {result.seconds:.0f} s"
        )


def load_base(context: RunContext, name: str) -> VideoClassifier:
    """Load a base model of the recipe that is trained.

    Raises:
        UsageError: It is not trained with the recipe's settings, or its folder contains another kind of model.
    """
    if name in context.recipe.trained_models:
        folder = Path(context.recipe.trained_models[name])
        model = _load(context, folder)
    else:
        folder, model = _load_trained(context, "pretrain", name)
    if not isinstance(model, VideoClassifier):
        raise UsageError(f"{folder}: expected a video classifier, found a segment classifier.")
    return model


def load_segment_model(context: RunContext, name: str) -> ContextAgnosticClassifier | ContextAwareClassifier:
    """Load a segment model of the recipe that is trained.

    Raises:
        UsageError: It is not trained with the recipe's settings, or its folder contains another kind of model.
    """
    folder, model = _load_trained(context, "finetune", name)
    if not isinstance(model, ContextAgnosticClassifier | ContextAwareClassifier):
        raise UsageError(f"{folder}: expected a segment classifier, found a video classifier.")
    return model


def _load_trained(context: RunContext, kind: StageKind, name: str) -> tuple[Path, Classifier]:
    stage = RunStage.of(context, kind, name)
    record = stage.record
    if record is None or record.status != "finished":
        raise UsageError(f"{stage.folder}: {kind} of {name!r} is not finished; run that stage first.")
    if record.fingerprint != stage.fingerprint:
        raise UsageError(
            f"{stage.folder}: was trained with other settings or data than the recipe's; run that stage again."
        )
    folder = stage.folder / MODEL_FOLDER
    model = _load(context, folder)
    return folder, model


def _load(context: RunContext, folder: Path) -> Classifier:
    digest, device = context.vocabulary.digest, context.fabric.device
    return load_model(folder, vocabulary_digest=digest, features=context.features, device=device)


@dataclass(frozen=True)
class FoundLR:
    """The result of a learning-rate sweep.

    Args:
        suggestion: The learning rate suggested.
        peak_lr: The recipe's own.
        picture: The loss at each learning rate.
    """

    suggestion: Suggestion
    peak_lr: float
    picture: Path


def find_lr(context: RunContext, name: str, sweep: LRSweepConfig) -> FoundLR:
    """Sweep learning rates for a model of the recipe; a table and a picture go to `find-lr/NAME`.

    One process trains a copy of the model as its stage begins; the stage's own folder does not change.

    Raises:
        UsageError: The recipe has no such model, or two of that name, or a base model that it needs is not trained.
        Yt8mError: The loss falls at no learning rate; the files are written.
    """
    recipe = context.recipe
    stage = RunStage.of(context, recipe.stage_of_model(name), name)
    training = stage.config.training
    model, task = build(stage)
    curve = lr_sweep(context.fabric, model, task, training, sweep, stage.seed, recipe.machine, context.progress)
    folder = context.out / LR_FOLDER / name
    write_lr_curve(folder / LR_TABLE_FILE, curve)
    plot_lr_curve(folder / LR_PICTURE_FILE, curve, name, training.peak_lr)
    suggestion = curve.suggestion
    if suggestion is None:
        raise Yt8mError(
            f"{name}: the loss falls at no learning rate from {sweep.lowest:g} to {sweep.highest:g} "
            f"({folder / LR_PICTURE_FILE} shows it); try other learning rates or more steps."
        )
    return FoundLR(suggestion, training.peak_lr, folder / LR_PICTURE_FILE)
