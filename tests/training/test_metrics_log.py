"""Metrics log: one row per value, also after interruptions; TensorBoard; Weights & Biases."""

from __future__ import annotations

import json
import math
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from lightning_fabric import Fabric
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from yt8m.errors import Interrupted, UsageError, Yt8mError
from yt8m.settings import validated
from yt8m.training.config import LogConfig
from yt8m.training.metrics_log import MetricsLog, WandbRun, read_metrics


@pytest.fixture(scope="module")
def fabric() -> Fabric:
    return Fabric(accelerator="cpu")


def test_rows_keep_all_digits(tmp_path: Path, fabric: Fabric) -> None:
    log = MetricsLog(tmp_path, fabric, 0)
    log.write("train", 20, {"loss": 0.1 + 0.2, "lr": 1e-300})
    log.write("valid", 20, {"auc": 2 / 3})
    log.close()
    assert (tmp_path / "metrics.csv").read_text().splitlines()[0] == "split,step,metric,value"
    assert read_metrics(tmp_path / "metrics.csv") == [
        ("train", 20, "loss", 0.1 + 0.2),
        ("train", 20, "lr", 1e-300),
        ("valid", 20, "auc", 2 / 3),
    ]
    assert log.values("train", 20) == {"loss": 0.1 + 0.2, "lr": 1e-300}
    assert log.values("valid", 20) == {"auc": 2 / 3}
    assert log.values("valid", 40) == {}


def test_a_resumed_run_drops_rows_after_its_checkpoint(tmp_path: Path, fabric: Fabric) -> None:
    log = MetricsLog(tmp_path, fabric, 0)
    for step in (10, 20, 30):
        log.write("train", step, {"loss": float(step)})
    log.close()
    resumed = MetricsLog(tmp_path, fabric, 20)
    assert read_metrics(tmp_path / "metrics.csv") == [("train", 10, "loss", 10.0), ("train", 20, "loss", 20.0)]
    resumed.write("train", 30, {"loss": 31.0})
    resumed.close()
    assert [row[3] for row in read_metrics(tmp_path / "metrics.csv")] == [10.0, 20.0, 31.0]
    assert resumed.values("train", 10) == {"loss": 10.0}


@pytest.mark.parametrize("cut", ["train,20", "train,20,loss", "train,20,loss,", "train,20,loss,0.1", ""])
def test_a_truncated_last_line_is_skipped(tmp_path: Path, fabric: Fabric, cut: str) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(f"split,step,metric,value\ntrain,10,loss,0.5\n{cut}")
    assert read_metrics(path) == [("train", 10, "loss", 0.5)]
    MetricsLog(tmp_path, fabric, 20).close()
    assert path.read_text() == "split,step,metric,value\ntrain,10,loss,0.5\n"


def test_a_file_without_rows_is_an_empty_log(tmp_path: Path) -> None:
    for text in ("", "split,step,metric,value\n", "a,b\n1,2,3,x\n\n"):
        (tmp_path / "metrics.csv").write_text(text)
        assert read_metrics(tmp_path / "metrics.csv") == []


def test_tensorboard_receives_finite_values(tmp_path: Path, fabric: Fabric) -> None:
    log = MetricsLog(tmp_path, fabric, 0)
    log.write("train", 5, {"loss": 0.25, "grad_norm": math.nan})
    log.write("valid", 5, {"auc": 0.75})
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["train/loss", "valid/auc"]
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(5, 0.25)]
    assert math.isnan(log.values("train", 5)["grad_norm"])


@pytest.mark.slow
def test_logging_does_not_import_tensorflow(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from lightning_fabric import Fabric
from yt8m.training.metrics_log import MetricsLog
log = MetricsLog(Path({str(tmp_path)!r}), Fabric(accelerator="cpu"), 0)
log.write("train", 1, {{"loss": 1.0}})
log.close()
sys.exit("tensorflow" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# --- Weights & Biases ------------------------------------------------------------------------------------------------


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The real package in offline mode, without a login: the home folder is empty."""
    import wandb

    home = tmp_path_factory.mktemp("home")
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(home))
    for name in ("NETRC", "WANDB_API_KEY", "WANDB_PROJECT", "WANDB_ENTITY", "WANDB_RUN_ID", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_MODE", "offline")
    yield wandb
    # The package caches the environment, which differs in the next test.
    wandb.teardown()


def wandb_run(run_id: str = "dbof-0123abcd", **config: str) -> WandbRun:
    return WandbRun(
        LogConfig(wandb_project="moments", **config), "pretrain dbof", run_id, {"training": {"steps": 30}, "seed": 1}
    )


@dataclass
class RecordedRun:
    """Records of a run that Weights & Biases wrote for its server."""

    run: Any = None
    metric: Any = None
    history: list[dict[str, float]] = field(default_factory=list)
    is_preempted: bool = False
    exit_code: int | None = None


def recorded_runs(folder: Path) -> list[RecordedRun]:
    """Read the runs in a folder; files have LevelDB's log format, with 7 bytes before the first and in each record."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    # The process of the package may still be writing.
    wandb.teardown()
    runs = []
    for path in sorted(folder.glob("wandb/*run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime_ns):
        content, recorded, place = path.read_bytes(), RecordedRun(), 7
        assert content.startswith(b":W&B")
        while place < len(content):
            size, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
            assert kind == 1, "a record that is not split"
            record = Record.FromString(content[place + 7 : place + 7 + size])
            place += 7 + size
            match record.WhichOneof("record_type"):
                case "run":
                    recorded.run = record.run
                case "metric":
                    recorded.metric = record.metric
                case "history":
                    row = {item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                    recorded.history.append({name: value for name, value in row.items() if not name.startswith("_")})
                case "preempting":
                    recorded.is_preempted = True
                case "exit":
                    recorded.exit_code = record.exit.exit_code
        runs.append(recorded)
    return runs


@pytest.mark.usefixtures("wandb")
def test_weights_and_biases_receives_finite_values(tmp_path: Path, fabric: Fabric) -> None:
    with MetricsLog(tmp_path, fabric, 0, wandb_run=wandb_run(wandb_entity="us")) as log:
        log.write("train", 10, {"loss": 0.1 + 0.2, "grad_norm": math.nan})
        log.write("valid", 10, {"auc": 0.75})
        log.write("train", 20, {"loss": 0.25})
        log.write_speed(20, {"examples_per_second": 500.0})
    (recorded,) = recorded_runs(tmp_path)
    assert (recorded.run.project, recorded.run.entity) == ("moments", "us")
    assert (recorded.run.display_name, recorded.run.run_id) == ("pretrain dbof", "dbof-0123abcd")
    settings = {update.key: json.loads(update.value_json) for update in recorded.run.config.update}
    assert settings.items() >= {"training": {"steps": 30}, "seed": 1}.items()
    assert (recorded.metric.glob_name, recorded.metric.step_metric) == ("*", "step")
    assert recorded.history == [
        {"step": 10, "train/loss": 0.1 + 0.2},
        {"step": 10, "valid/auc": 0.75},
        {"step": 20, "train/loss": 0.25},
        {"step": 20, "speed/examples_per_second": 500.0},
    ]
    assert (recorded.exit_code, recorded.is_preempted) == (0, False)


@pytest.mark.usefixtures("wandb")
def test_a_resumed_run_keeps_its_id_in_weights_and_biases(
    tmp_path: Path, fabric: Fabric, capfd: pytest.CaptureFixture[str]
) -> None:
    log = MetricsLog(tmp_path, fabric, 0, wandb_run=wandb_run())
    for step in (10, 20, 30):
        log.write("train", step, {"loss": 1 / step})
    log.close(Interrupted("Stopped."))
    with MetricsLog(tmp_path, fabric, 20, wandb_run=wandb_run()) as resumed:
        for step in (30, 40):
            resumed.write("train", step, {"loss": 1 / step})
    first, second = recorded_runs(tmp_path)
    assert first.run.run_id == second.run.run_id
    assert [row["step"] for row in first.history] == [10, 20, 30]
    assert second.history == [{"step": 30, "train/loss": 1 / 30}, {"step": 40, "train/loss": 1 / 40}]
    assert "WARNING" not in capfd.readouterr().err


@pytest.mark.usefixtures("wandb")
@pytest.mark.parametrize(
    ("error", "exit_code", "is_preempted"),
    [
        (Interrupted("Stopped."), Interrupted.exit_code, True),
        (KeyboardInterrupt(), 1, True),
        (UsageError("Wrong."), 2, False),
        (Yt8mError("Broken."), 1, False),
        (ZeroDivisionError(), 1, False),
    ],
)
def test_weights_and_biases_receives_the_exit_status(
    tmp_path: Path, fabric: Fabric, error: BaseException, exit_code: int, is_preempted: bool
) -> None:
    with pytest.raises(type(error)), MetricsLog(tmp_path, fabric, 0, wandb_run=wandb_run()):
        raise error
    (recorded,) = recorded_runs(tmp_path)
    assert (recorded.exit_code, recorded.is_preempted) == (exit_code, is_preempted)


def test_a_missing_package_is_reported_at_the_start(
    tmp_path: Path, fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    LogConfig().check()
    with pytest.raises(UsageError, match=r"pip install 'yt8m\[wandb\]'"):
        wandb_run().config.check()
    with pytest.raises(UsageError, match=r"pip install 'yt8m\[wandb\]'"):
        MetricsLog(tmp_path, fabric, 0, wandb_run=wandb_run())


def test_a_missing_login_is_reported_at_the_start(
    tmp_path: Path, fabric: Fabric, wandb: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(UsageError, match=r"^Weights & Biases: .*`wandb login`, or .*WANDB_MODE=offline\.$"):
        MetricsLog(tmp_path, fabric, 0, wandb_run=wandb_run())
    assert wandb.run is None


@pytest.mark.usefixtures("wandb")
def test_an_unreachable_server_does_not_stop_training(
    tmp_path: Path, fabric: Fabric, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "1234567890" * 4)
        monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")
        monkeypatch.setenv("WANDB_MODE", "online")
        with MetricsLog(tmp_path, fabric, 0, wandb_run=wandb_run()) as log:
            log.write("train", 10, {"loss": 0.5})
    assert recorded_runs(tmp_path)[-1].history == [{"step": 10, "train/loss": 0.5}]
    printed = capfd.readouterr().err
    assert "logging to this machine only, `wandb sync` uploads it later." in printed
    assert "1234567890" not in printed


def test_training_continues_when_weights_and_biases_fails(
    tmp_path: Path, fabric: Fabric, wandb: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    with (
        mock.patch.object(wandb.Run, "log", side_effect=ConnectionResetError("Connection lost")),
        MetricsLog(tmp_path, fabric, 0, wandb_run=wandb_run()) as log,
    ):
        for step in (10, 20):
            log.write("train", step, {"loss": 0.5})
    assert [row[1] for row in read_metrics(tmp_path / "metrics.csv")] == [10, 20]
    assert capfd.readouterr().err.count("Connection lost") == 1


@pytest.mark.usefixtures("wandb")
def test_weights_and_biases_is_optional_and_used_only_by_the_first_process(tmp_path: Path, fabric: Fabric) -> None:
    second = mock.Mock(is_global_zero=False)
    with MetricsLog(tmp_path, second, 0, wandb_run=wandb_run()) as log:
        log.write("train", 10, {"loss": 0.5})
    with MetricsLog(tmp_path, fabric, 0, wandb_run=WandbRun(LogConfig(), "a", "b", {})) as log:
        log.write("train", 10, {"loss": 0.5})
    assert not (tmp_path / "wandb").exists()


def test_an_entity_without_a_project_is_refused() -> None:
    with pytest.raises(UsageError, match="owner of wandb_project, which is missing"):
        validated(LogConfig, {"wandb_entity": "us"}, "a.yaml")
