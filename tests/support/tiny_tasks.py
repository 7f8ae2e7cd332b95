"""Tasks for tests of training: a fast linear task, and the real tasks on a tiny dataset.

Run as a module, it trains in a separate process: `killed FOLDER WHEN` kills itself halfway, and
`distributed DATA FOLDER DEVICES` is one of several processes.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import Dataset

from yt8m.dataset.batches import FrameSampling, ProcessSlice
from yt8m.dataset.frames import FrameReader
from yt8m.dataset.indexing import index_folder
from yt8m.errors import Interrupted
from yt8m.files import written_atomically
from yt8m.models.classifier import ContextAgnosticClassifier, ContextAwareClassifier, VideoClassifier
from yt8m.models.config import DBoFConfig, FusionConfig, MixtureConfig, NeXtVLADConfig, VideoClassifierConfig
from yt8m.runtime.machine import MachineConfig, make_fabric
from yt8m.training import checkpoint
from yt8m.training.config import SegmentLossConfig, TrainingConfig
from yt8m.training.loop import FitResult, StepMetrics, Trainer
from yt8m.training.tasks import SegmentTask, VideoTask
from yt8m.vocabulary import Vocabulary

CONFIG = TrainingConfig(
    steps=10,
    batch_size=8,
    peak_lr=0.05,
    weight_decay=0.1,
    evaluate_every=3,
    checkpoint_every=2,
    log_every=2,
    monitor="loss",
)


class Numbers(NamedTuple):
    """Inputs (B, 4) and targets (B,)."""

    inputs: Tensor
    targets: Tensor


class NumberBatches(Dataset[Numbers]):
    """Batches of a linear problem, indexed by step."""

    local_batch_size, max_frames = 8, 1

    def __getitem__(self, step: int) -> Numbers:
        inputs = torch.from_numpy(np.random.default_rng([7, step]).standard_normal((8, 4), dtype=np.float32))
        return Numbers(inputs, inputs @ torch.tensor([1.0, -2.0, 0.5, 3.0]))


class LinearTask:
    """Least squares; every evaluation improves on the previous one.

    Args:
        before_loss: Called with the number of the batch's step, counted from 1.
        metrics: Results of the first evaluations; later ones evaluate the model.
    """

    def __init__(
        self, before_loss: Callable[[int], None] = lambda _: None, metrics: list[dict[str, float]] | None = None
    ) -> None:
        self.before_loss, self.metrics = before_loss, list(metrics or [])
        self.saved: list[int] = []

    def batches(self, share: ProcessSlice) -> NumberBatches:
        return NumberBatches()

    def loss(self, model: nn.Module, batch: Numbers) -> Tensor:
        step = next(s for s in range(1000) if torch.equal(batch.inputs, NumberBatches()[s].inputs))
        self.before_loss(step + 1)
        return (model(batch.inputs).squeeze(1) - batch.targets).square().mean()

    def evaluate(self, fabric: Fabric, model: nn.Module, check: Callable[[], None]) -> dict[str, float]:
        check()
        if self.metrics:
            return self.metrics.pop(0)
        batch = NumberBatches()[100]
        loss = (model(batch.inputs).squeeze(1) - batch.targets).square().mean().item()
        return {"loss": loss, "auc": 1 / (1 + loss), "map": next(model.parameters()).sum().item()}

    def encoder_parameters(self, model: nn.Module) -> list[nn.Parameter]:
        return []

    def save(self, folder: Path, model: nn.Module, step: int, metrics: dict[str, float]) -> None:
        self.saved.append(step)
        with written_atomically(folder) as unfinished:
            unfinished.mkdir()
            (unfinished / "weights.txt").write_text(f"{step} {metrics} {digest(model)}")


def linear_model() -> nn.Module:
    """Two linear layers with dropout."""
    torch.manual_seed(5)
    return nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 1))


def digest(model: nn.Module) -> str:
    """Hash of all bits of a model's weights and statistics."""
    content = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        content.update(name.encode())
        content.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return content.hexdigest()


def fit_linear(
    folder: Path,
    task: LinearTask | None = None,
    config: TrainingConfig = CONFIG,
    callback: Callable[[StepMetrics], None] = lambda metrics: None,
    seed: int = 3,
) -> tuple[FitResult, nn.Module]:
    """Train the linear model in a folder, or resume a run that was stopped there."""
    model = linear_model()
    fabric = Fabric(accelerator="cpu", devices=1)
    return Trainer(fabric, model, task or LinearTask(), config, folder, seed, callback=callback).fit(), model


class StoppedError(Exception):
    """Raised by a test to stop a run."""


def raise_stopped() -> None:
    raise StoppedError


def stop_at(step: int) -> Callable[..., None]:
    """A callback that stops the run at a step, its first argument."""

    def stop(done: int, *_: object) -> None:
        if done == step:
            raise_stopped()

    return stop


def at_call(number: int, loss: Callable[..., Tensor], action: Callable[[], None]) -> Callable[..., Tensor]:
    """A loss that runs an action before each of its calls from this number on."""
    earlier_calls = iter(range(1, number))

    def loss_with_action(*arguments: object) -> Tensor:
        if next(earlier_calls, None) is None:
            action()
        return loss(*arguments)

    return loss_with_action


# --- Real tasks ------------------------------------------------------------------------------------------------------

DBOF = DBoFConfig(hidden_size=16, output_size=8, max_frames=12)
NEXTVLAD = NeXtVLADConfig(num_clusters=4, num_groups=4, expansion=1, output_size=8, max_frames=12)


def video_classifier(encoder: DBoFConfig | NeXtVLADConfig, vocabulary: Vocabulary, dropout: float) -> VideoClassifier:
    """A tiny video classifier with the same initial weights at every call."""
    torch.manual_seed(5)
    if isinstance(encoder, DBoFConfig):
        encoder = encoder.model_copy(update={"dropout": dropout})
    else:
        encoder = encoder.model_copy(update={"cluster_dropout": dropout})
    mixture = MixtureConfig(num_experts=2, dropout=dropout)
    return VideoClassifier(VideoClassifierConfig(encoder=encoder, mixture=mixture), len(vocabulary))


def video_case(data: Path, dropout: float = 0.5) -> tuple[VideoClassifier, VideoTask]:
    """A video classifier and its task."""
    vocabulary = Vocabulary.load(data)
    readers = [FrameReader(index_folder(data / "video" / part)) for part in ("train", "valid")]
    task = VideoTask(*readers, vocabulary, DBOF.max_frames, FrameSampling(6), 8, 3, {"name": "tiny"})
    return video_classifier(DBOF, vocabulary, dropout), task


def segment_case(
    data: Path, kind: str, fabric: Fabric | None = None, dropout: float = 0.5
) -> tuple[ContextAgnosticClassifier | ContextAwareClassifier, SegmentTask]:
    """A segment classifier ("agnostic" or "aware") and its task; fold 1 of 4 is held out."""
    vocabulary = Vocabulary.load(data)
    dbof, nextvlad = (video_classifier(encoder, vocabulary, dropout) for encoder in (DBOF, NEXTVLAD))
    model: ContextAgnosticClassifier | ContextAwareClassifier
    if kind == "agnostic":
        model = ContextAgnosticClassifier.from_video_classifier(dbof)
    else:
        model = ContextAwareClassifier.from_video_classifiers(
            dbof,
            nextvlad,
            fusion=FusionConfig(output_size=8, dropout=dropout),
            mixture=MixtureConfig(num_experts=2, dropout=dropout),
        )
    reader = FrameReader(index_folder(data / "segment" / "train"))
    fabric = fabric or Fabric(accelerator="cpu", devices=1)
    task = SegmentTask(fabric, model, reader, vocabulary, 1, 4, SegmentLossConfig(), 8, 3, {"name": kind})
    return model, task


# --- Subprocesses ----------------------------------------------------------------------------------------------------


def killed(folder: Path, when: str) -> None:
    """Train the linear model; kill this process at step 5, or halfway through writing the checkpoint of step 4."""

    def kill_self() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def kill_at_five(step: int) -> None:
        if step == 5:
            kill_self()

    def write_half(state: Any, file: Any) -> None:
        save(state, file)
        if state["progress"]["step"] == 4:
            file.flush()
            os.truncate(file.name, Path(file.name).stat().st_size // 2)
            kill_self()

    save = torch.save
    if when == "writing":
        checkpoint.torch.save = write_half
    fit_linear(folder, LinearTask(kill_at_five))


DISTRIBUTED = {
    name: CONFIG.model_copy(update={"peak_lr": 3e-4, "log_every": 1, "steps": 12, "gradient_accumulation": accumulate})
    for name, accumulate in (("video", 1), ("nextvlad", 1), ("agnostic", 2), ("aware", 1))
}
"""Names of the cases that several processes train, and their settings."""


def distributed_case(name: str, data: Path, fabric: Fabric) -> tuple[Any, Any]:
    """The model and the task of a case in `DISTRIBUTED`."""
    if name == "video":
        return video_case(data)
    if name == "nextvlad":
        _, task = video_case(data)
        return video_classifier(NEXTVLAD, task.vocabulary, 0.25), task
    return segment_case(data, name, fabric)


def distributed(data: Path, folder: Path, devices: str) -> None:
    """Train models as one of several processes, and save the final state of each process.

    The process of rank STOP_RANK, if set, sends itself SIGTERM at the third batch of each unfinished model.
    """
    fabric = make_fabric(MachineConfig(accelerator="cpu", devices=int(devices)))
    for name, config in DISTRIBUTED.items():
        model, task = distributed_case(name, data, fabric)
        if os.environ.get("STOP_RANK") == str(fabric.global_rank):
            task.loss = at_call(3, task.loss, lambda: os.kill(os.getpid(), signal.SIGTERM))
        try:
            result = Trainer(fabric, model, task, config, folder / name, 3).fit()
        except Interrupted as stopped:
            fabric.barrier()
            print(stopped)
            if name == list(DISTRIBUTED)[-1]:
                sys.exit(stopped.exit_code)
            continue
        torch.save(
            {"state": model.state_dict(), "metrics": result.metrics, "world_size": fabric.world_size},
            folder / f"{name}-{fabric.global_rank}.pt",
        )


if __name__ == "__main__":
    {"killed": killed, "distributed": distributed}[sys.argv[1]](*map(Path, sys.argv[2:-1]), sys.argv[-1])
