"""Training loop: a stopped run resumes to the same weights; the best model is saved; invalid input is refused."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from tests.support.tiny_tasks import (
    CONFIG,
    LinearTask,
    StoppedError,
    at_call,
    digest,
    fit_linear,
    linear_model,
    raise_stopped,
    segment_case,
    stop_at,
    video_case,
)
from yt8m.errors import Yt8mError
from yt8m.models.description import read_description
from yt8m.models.saved import load_model
from yt8m.runtime.machine import MachineConfig
from yt8m.settings import validated
from yt8m.training import checkpoint
from yt8m.training.config import TrainingConfig
from yt8m.training.loop import CHECKPOINT_FILE, Trainer
from yt8m.training.metrics_log import read_metrics
from yt8m.training.tasks import SegmentTask, VideoTask


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder and digest of the final weights of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    task = LinearTask()
    _, model = fit_linear(folder, task)
    assert task.saved == [3, 6, 9, 10]
    return folder, digest(model)


def assert_same_result(folder: Path, model: nn.Module, uninterrupted: tuple[Path, str]) -> None:
    other, weights = uninterrupted
    assert digest(model) == weights
    assert (folder / "metrics.csv").read_bytes() == (other / "metrics.csv").read_bytes()
    assert (folder / "model" / "weights.txt").read_text() == (other / "model" / "weights.txt").read_text()
    names = {path.name for path in folder.iterdir()}
    assert names == {"metrics.csv", "model", "tensorboard", CHECKPOINT_FILE}


# --- Resuming --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", range(1, 11))
def test_a_run_stopped_before_any_step_resumes_to_the_same_result(
    step: int, tmp_path: Path, uninterrupted: tuple[Path, str]
) -> None:
    with pytest.raises(StoppedError):
        fit_linear(tmp_path, LinearTask(stop_at(step)))
    torch.manual_seed(step)
    result, model = fit_linear(tmp_path)
    assert_same_result(tmp_path, model, uninterrupted)
    assert result.seconds > 0


@pytest.mark.parametrize("step", [2, 6, 10])
def test_a_run_stopped_between_log_and_checkpoint_resumes_to_the_same_result(
    step: int, tmp_path: Path, uninterrupted: tuple[Path, str]
) -> None:
    with pytest.raises(StoppedError):
        fit_linear(tmp_path, callback=lambda metrics: stop_at(step)(metrics.step))
    _, model = fit_linear(tmp_path)
    assert_same_result(tmp_path, model, uninterrupted)


@pytest.mark.parametrize("evaluation", [1, 2, 3, 4])
@pytest.mark.parametrize("place", ["before evaluating", "before saving", "after saving"])
def test_a_run_stopped_at_an_evaluation_resumes_to_the_same_result(
    evaluation: int, place: str, tmp_path: Path, uninterrupted: tuple[Path, str]
) -> None:
    steps = [3, 6, 9, 10]

    class Stopped(LinearTask):
        number = 0

        def evaluate(self, fabric: Fabric, model: nn.Module, check: Callable[[], None]) -> dict[str, float]:
            self.number += 1
            if place == "before evaluating" and self.number == evaluation:
                raise StoppedError
            return super().evaluate(fabric, model, check)

        def save(self, folder: Path, model: nn.Module, step: int, metrics: dict[str, float]) -> None:
            if place == "before saving" and step == steps[evaluation - 1]:
                raise StoppedError
            super().save(folder, model, step, metrics)
            if step == steps[evaluation - 1]:
                raise StoppedError

    with pytest.raises(StoppedError):
        fit_linear(tmp_path, Stopped())
    _, model = fit_linear(tmp_path)
    assert_same_result(tmp_path, model, uninterrupted)


def test_a_run_stopped_several_times_resumes_to_the_same_result(
    tmp_path: Path, uninterrupted: tuple[Path, str]
) -> None:
    for step in (3, 3, 4, 7, 9, 10):
        with pytest.raises(StoppedError):
            fit_linear(tmp_path, LinearTask(stop_at(step)))
    _, model = fit_linear(tmp_path)
    assert_same_result(tmp_path, model, uninterrupted)


def test_a_run_resumes_from_its_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        fit_linear(tmp_path, LinearTask(stop_at(8)))
    steps: list[int] = []
    fit_linear(tmp_path, LinearTask(steps.append))
    assert steps == [7, 8, 9, 10]
    again: list[int] = []
    result, model = fit_linear(tmp_path, LinearTask(again.append))
    assert again == []
    assert result.metrics == {
        name: value for split, step, name, value in read_metrics(tmp_path / "metrics.csv")
        if (split, step) == ("valid", result.best_step)
    }  # fmt: skip
    assert digest(model) != digest(linear_model())


@pytest.mark.slow
@pytest.mark.parametrize("when", ["stepping", "writing"])
def test_a_killed_process_resumes_to_the_same_result(
    when: str, tmp_path: Path, uninterrupted: tuple[Path, str]
) -> None:
    command = [sys.executable, "-m", "tests.support.tiny_tasks", "killed", str(tmp_path), when]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    state = torch.load(tmp_path / CHECKPOINT_FILE, weights_only=True)
    # A thread writes the checkpoint of step 4 during step 5, so a kill leaves this checkpoint or the previous one.
    assert state["progress"]["step"] in ((2, 4) if when == "stepping" else (2,))
    _, model = fit_linear(tmp_path)
    assert_same_result(tmp_path, model, uninterrupted)


def real_case(data: Path, kind: str) -> tuple[nn.Module, VideoTask | SegmentTask]:
    return video_case(data) if kind == "video" else segment_case(data, kind)


@pytest.mark.parametrize("kind", ["video", "aware"])
def test_real_models_resume_to_the_same_result_with_any_number_of_workers(
    kind: str, tiny_dataset: Path, tmp_path: Path
) -> None:
    config = CONFIG.model_copy(update={"steps": 5, "evaluate_every": 2, "peak_lr": 1e-3})
    fabric = Fabric(accelerator="cpu", devices=1)
    ends = []
    for name, stops, num_workers in (("uninterrupted", [], 0), ("stopped", [4], 0), ("workers", [3], 2)):
        for stop in stops:
            model, task = real_case(tiny_dataset, kind)
            task.loss = at_call(stop, task.loss, raise_stopped)  # type: ignore[method-assign]
            with pytest.raises(StoppedError):
                Trainer(fabric, model, task, config, tmp_path / name, 3).fit()
        model, task = real_case(tiny_dataset, kind)
        result = Trainer(fabric, model, task, config, tmp_path / name, 3, MachineConfig(num_workers=num_workers)).fit()
        folder = tmp_path / name
        files = [folder / "metrics.csv", folder / "model" / "config.yaml", folder / "model" / "model.safetensors"]
        ends.append((digest(model), result.best_step, result.metrics, [file.read_bytes() for file in files]))
    assert ends[0] == ends[1] == ends[2]


# --- The best model --------------------------------------------------------------------------------------------------


def metrics(**values: list[float]) -> list[dict[str, float]]:
    rows = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
    return [{"loss": 1.0, "auc": 0.5, "map": 0.5, **row} for row in rows]


@pytest.mark.parametrize(
    ("monitor", "values", "saved"),
    [
        ("loss", [3.0, 1.0, 2.0, 1.0], [3, 6]),
        ("auc", [0.5, 0.4, 0.9, 0.8], [3, 9]),
        ("auc", [0.5, 0.6, 0.7, 0.8], [3, 6, 9, 10]),
        ("map", [0.5, 0.5, 0.5, 0.5], [3]),
        ("map", [math.nan, 0.1, math.nan, 0.2], [3, 6, 10]),
        ("auc", [math.nan] * 4, [3]),
    ],
)
def test_the_monitored_metric_selects_the_best_model(
    monitor: str, values: list[float], saved: list[int], tmp_path: Path
) -> None:
    task = LinearTask(metrics=metrics(**{monitor: values}))
    result, _ = fit_linear(tmp_path, task, CONFIG.model_copy(update={"monitor": monitor}))
    assert task.saved == saved
    assert result.best_step == saved[-1]
    best = [3, 6, 9, 10].index(saved[-1])
    assert result.metrics == pytest.approx(metrics(**{monitor: values})[best], nan_ok=True)
    assert (tmp_path / "model" / "weights.txt").read_text().split()[0] == str(saved[-1])


def test_a_resumed_run_keeps_the_best_model_so_far(tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        fit_linear(tmp_path, LinearTask(stop_at(8), metrics(loss=[1.0, 2.0])))
    task = LinearTask(metrics=metrics(loss=[1.5, 1.2]))
    result, _ = fit_linear(tmp_path, task)
    assert task.saved == []
    assert result.best_step == 3
    assert result.metrics == {"loss": 1.0, "auc": 0.5, "map": 0.5}


@pytest.mark.parametrize("kind", ["video", "agnostic", "aware"])
def test_the_saved_model_is_the_best_evaluated_one(kind: str, tiny_dataset: Path, tmp_path: Path) -> None:
    model, task = real_case(tiny_dataset, kind)
    fabric = Fabric(accelerator="cpu", devices=1)
    config = CONFIG.model_copy(update={"steps": 4, "evaluate_every": 2, "peak_lr": 1e-2})
    result = Trainer(fabric, model, task, config, tmp_path, 3).fit()
    loaded = load_model(tmp_path / "model", vocabulary_digest=task.vocabulary.digest)
    assert type(loaded) is type(model)
    assert task.evaluate(fabric, loaded) == result.metrics
    provenance = read_description(tmp_path / "model").provenance
    name = "tiny" if kind == "video" else kind
    assert provenance == {"name": name, "step": result.best_step, "metrics": result.metrics}


# --- Logging and gradients -------------------------------------------------------------------------------------------


def test_the_log_contains_mean_losses_learning_rates_and_every_evaluation(tmp_path: Path) -> None:
    reported: list[tuple[int, float]] = []
    losses: list[float] = []

    class Recording(LinearTask):
        def loss(self, model, batch):  # type: ignore[no-untyped-def]
            loss = super().loss(model, batch)
            losses.append(loss.item())
            return loss

    config = CONFIG.model_copy(update={"steps": 9, "log_every": 2, "evaluate_every": 4})
    fit_linear(tmp_path, Recording(), config, callback=lambda metrics: reported.append((metrics.step, metrics.loss)))
    rows = read_metrics(tmp_path / "metrics.csv")
    logged = {(step, name): value for split, step, name, value in rows if split == "train"}
    assert [step for step, _ in reported] == [2, 4, 6, 8, 9]
    for first, (step, average) in zip((0, 2, 4, 6, 8), reported, strict=True):
        assert average == logged[step, "loss"] == pytest.approx(sum(losses[first:step]) / (step - first), rel=1e-6)
    # The logged learning rate is that of the next step; the peak of 9 steps is at 2.25.
    peaks = {2: 3 / 3.25, 4: 5 / 6.75, 6: 3 / 6.75, 8: 1 / 6.75, 9: 0}
    assert {step: logged[step, "lr"] for step in peaks} == pytest.approx({s: 0.05 * v for s, v in peaks.items()})
    assert all(logged[step, "grad_norm"] > 0 for step in peaks)
    assert [step for split, step, name, _ in rows if (split, name) == ("valid", "auc")] == [4, 8, 9]


def test_gradients_are_clipped_to_the_maximum_norm(tmp_path: Path) -> None:
    """The optimizer receives clipped gradients; the log contains the norm before clipping."""
    config = CONFIG.model_copy(update={"steps": 1, "max_grad_norm": 0.01, "warmup": 0.0})
    norms: list[torch.Tensor] = []
    original = torch.optim.AdamW.step

    def watched(self, *arguments, **named):  # type: ignore[no-untyped-def]
        gradients = [p.grad.flatten() for group in self.param_groups for p in group["params"]]
        norms.append(torch.cat(gradients).norm())
        return original(self, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", watched)
        fit_linear(tmp_path, config=config)
    assert norms[0].item() == pytest.approx(0.01, rel=1e-4)
    logged = {name: value for split, _, name, value in read_metrics(tmp_path / "metrics.csv") if split == "train"}
    assert logged["grad_norm"] > 1


def test_dropout_depends_on_the_seed(tmp_path: Path) -> None:
    weights = {digest(fit_linear(tmp_path / str(seed), seed=seed)[1]) for seed in (3, 4, 3)}
    assert len(weights) == 3 - 1


# --- Errors and recovery ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_run(value: float, tmp_path: Path) -> None:
    class Broken(LinearTask):
        def loss(self, model, batch):  # type: ignore[no-untyped-def]
            loss = super().loss(model, batch)
            return loss * value if self.broken else loss

        broken = False

    task = Broken(lambda step: setattr(task, "broken", step == 5))
    with pytest.raises(Yt8mError) as raised:
        fit_linear(tmp_path, task)
    assert str(raised.value).startswith(f"{tmp_path}: the loss is ")
    assert str(raised.value).endswith("at step 6; peak_lr 0.05 is too high, or the data is corrupt.")
    # The last checkpoint precedes the invalid loss.
    state = torch.load(tmp_path / CHECKPOINT_FILE, weights_only=True)
    assert state["progress"]["step"] == 4
    assert all(tensor.isfinite().all() for tensor in state["model"].values())


def test_a_held_out_loss_that_is_not_finite_ends_the_run_before_anything_is_saved(tmp_path: Path) -> None:
    with pytest.raises(Yt8mError, match=r": the held-out loss is nan at step 3; peak_lr 0\.05 is too high"):
        fit_linear(tmp_path, LinearTask(metrics=metrics(loss=[math.nan])))
    assert not (tmp_path / "model").exists()


def other_model() -> nn.Module:
    return nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 7), nn.Dropout(0.5), nn.Linear(7, 1))


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        fit_linear(tmp_path, LinearTask(stop_at(5)))
    for model in (other_model(), nn.Linear(4, 1)):
        with pytest.raises(
            Yt8mError, match=r"checkpoint\.pt: is not a checkpoint of this run \(.*\); delete it and run again"
        ):
            Trainer(Fabric(accelerator="cpu", devices=1), model, LinearTask(), CONFIG, tmp_path, 3).fit()


@pytest.mark.parametrize(
    "content", [b"", b"no checkpoint", b"PK\x03\x04 half a zip", [1, 2], {"model": 3}, {"model": {}}, "words"]
)
def test_files_other_than_checkpoints_are_refused(content: object, tmp_path: Path) -> None:
    path = tmp_path / CHECKPOINT_FILE
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(Yt8mError, match=r"checkpoint\.pt: is not a checkpoint of this run ") as raised:
        fit_linear(tmp_path)
    assert "\n" not in str(raised.value)


def test_a_truncated_checkpoint_is_refused(tmp_path: Path) -> None:
    fit_linear(tmp_path)
    path = tmp_path / CHECKPOINT_FILE
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(Yt8mError, match="is not a checkpoint of this run"):
        fit_linear(tmp_path)


def test_loading_a_checkpoint_executes_no_code(tmp_path: Path) -> None:
    class TouchOnLoad:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "touched",)

    torch.save({"model": TouchOnLoad()}, tmp_path / CHECKPOINT_FILE)
    with pytest.raises(Yt8mError, match="is not a checkpoint of this run"):
        fit_linear(tmp_path)
    assert not (tmp_path / "touched").exists()


def test_a_failed_write_keeps_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: tuple[Path, str]
) -> None:
    save = torch.save

    def full(state, file):  # type: ignore[no-untyped-def]
        if state["progress"]["step"] == 6:
            raise OSError(28, "No space left on device")
        save(state, file)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.torch, "save", full)
        with pytest.raises(Yt8mError, match=r"checkpoint\.pt: no space left on the disk"):
            fit_linear(tmp_path)
    assert torch.load(tmp_path / CHECKPOINT_FILE, weights_only=True)["progress"]["step"] == 4
    _, model = fit_linear(tmp_path)
    assert_same_result(tmp_path, model, uninterrupted)


def test_a_write_error_halfway_keeps_the_previous_checkpoint(tmp_path: Path, uninterrupted: tuple[Path, str]) -> None:
    """A limit on the file size makes a real write fail."""
    resource = pytest.importorskip("resource")
    with pytest.raises(StoppedError):
        fit_linear(tmp_path, LinearTask(stop_at(5)))
    size = (tmp_path / CHECKPOINT_FILE).stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, before[1]))
        with pytest.raises(Yt8mError, match=r"checkpoint\.pt: cannot be written \(File too large\)"):
            fit_linear(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert torch.load(tmp_path / CHECKPOINT_FILE, weights_only=True)["progress"]["step"] == 4
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    _, model = fit_linear(tmp_path)
    assert_same_result(tmp_path, model, uninterrupted)


def test_early_stopping_ends_the_run_after_evaluations_without_improvement(tmp_path: Path) -> None:
    losses = [3.0, 2.0, 2.5, 2.1, 2.2, 1.0]
    config = CONFIG.model_copy(update={"steps": 30, "evaluate_every": 2, "patience": 3})
    task = LinearTask(metrics=metrics(loss=losses))
    result, _ = fit_linear(tmp_path, task, config)
    assert (result.best_step, result.last_step) == (4, 10)
    assert task.saved == [2, 4]
    again: list[int] = []
    assert fit_linear(tmp_path, LinearTask(again.append), config)[0] == result
    assert again == []
    result, _ = fit_linear(
        tmp_path / "patient", LinearTask(metrics=metrics(loss=losses)), config.model_copy(update={"patience": 4})
    )
    assert result.last_step > 10


def test_gradient_accumulation_gives_the_weights_of_the_undivided_batch(tmp_path: Path) -> None:
    """Without dropout and batch norm, the number of micro-batches does not change the weights."""
    ends = []
    for parts in (1, 2, 4):
        torch.manual_seed(5)
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)).double()

        class Doubled(LinearTask):
            def loss(self, model, batch):  # type: ignore[no-untyped-def]
                return (model(batch.inputs.double()).squeeze(1) - batch.targets).square().mean()

            def evaluate(self, fabric, model, check):  # type: ignore[no-untyped-def]
                return {"loss": 1.0, "auc": 0.5, "map": 0.5}

        config = CONFIG.model_copy(update={"gradient_accumulation": parts})
        Trainer(Fabric(accelerator="cpu", devices=1), model, Doubled(), config, tmp_path / str(parts), 3).fit()
        ends.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    for other in ends[1:]:
        torch.testing.assert_close(other, ends[0], rtol=1e-9, atol=1e-12)


def test_micro_batches_of_unequal_size_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        Yt8mError, match=r"^gradient_accumulation 3 does not divide the 8 examples per batch and process\.$"
    ):
        fit_linear(tmp_path, config=CONFIG.model_copy(update={"gradient_accumulation": 3}))


def test_resuming_removes_leftovers_of_kills_and_restores_the_model(tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        fit_linear(tmp_path, LinearTask(stop_at(5)))
    kept = (tmp_path / "model" / "weights.txt").read_text()
    # Leftovers of a kill between the two renames of a folder, and of kills during writes.
    (tmp_path / "model").rename(tmp_path / ".model.0123abcd.old")
    (tmp_path / ".model.0123abcd").mkdir()
    (tmp_path / ".checkpoint.4567cdef.pt").write_bytes(b"half")
    (tmp_path / ".metrics.89abcdef.csv").write_text("half")
    with pytest.raises(StoppedError):
        fit_linear(tmp_path, LinearTask(stop_at(6)))
    assert (tmp_path / "model" / "weights.txt").read_text() == kept
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_steps_and_intervals_of_zero_are_refused() -> None:
    values = {"steps": 3, "peak_lr": 1.0, "weight_decay": 0.0}
    for key in ("steps", "batch_size", "evaluate_every", "checkpoint_every", "log_every"):
        with pytest.raises(Yt8mError, match=rf"^a: '{key}': expected greater than 0, found 0"):
            validated(TrainingConfig, {**values, key: 0}, "a")
