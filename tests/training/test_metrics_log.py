"""The log has every row once, whatever happened to the run."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
from lightning_fabric import Fabric
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from yt8m.training.metrics_log import MetricsLog, read_metrics


@pytest.fixture(scope="module")
def fabric() -> Fabric:
    return Fabric(accelerator="cpu")


def test_rows_come_back_to_the_last_digit(tmp_path: Path, fabric: Fabric) -> None:
    log = MetricsLog(tmp_path, fabric, 0)
    log.write("train", 20, {"loss": 0.1 + 0.2, "rate": 1e-300})
    log.write("valid", 20, {"auc": 2 / 3})
    log.close()
    assert (tmp_path / "metrics.csv").read_text().splitlines()[0] == "split,step,metric,value"
    assert read_metrics(tmp_path / "metrics.csv") == [
        ("train", 20, "loss", 0.1 + 0.2),
        ("train", 20, "rate", 1e-300),
        ("valid", 20, "auc", 2 / 3),
    ]
    assert log.values("train", 20) == {"loss": 0.1 + 0.2, "rate": 1e-300}
    assert log.values("valid", 20) == {"auc": 2 / 3}
    assert log.values("valid", 40) == {}


def test_a_resumed_run_drops_what_came_after_its_checkpoint(tmp_path: Path, fabric: Fabric) -> None:
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
def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path: Path, fabric: Fabric, cut: str) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(f"split,step,metric,value\ntrain,10,loss,0.5\n{cut}")
    assert read_metrics(path) == [("train", 10, "loss", 0.5)]
    MetricsLog(tmp_path, fabric, 20).close()
    assert path.read_text() == "split,step,metric,value\ntrain,10,loss,0.5\n"


def test_a_file_that_is_no_log_is_an_empty_one(tmp_path: Path) -> None:
    for text in ("", "split,step,metric,value\n", "a,b\n1,2,3,x\n\n"):
        (tmp_path / "metrics.csv").write_text(text)
        assert read_metrics(tmp_path / "metrics.csv") == []


def test_tensorboard_is_told_what_can_be_drawn(tmp_path: Path, fabric: Fabric) -> None:
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
