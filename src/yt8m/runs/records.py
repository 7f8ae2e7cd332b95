"""The record of a finished or started stage, `stage.yaml`, and the names in a stage's folder. Reads without torch."""

from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field

from yt8m.errors import UsageError
from yt8m.ranking.calibration import Calibration
from yt8m.settings import Settings, read_yaml, validated

STAGE_FILE = "stage.yaml"
STORE_FOLDER = "store"
"""All probabilities, in the folder of a prediction."""


class StageRecord(Settings):
    """The record of a stage in its folder, `stage.yaml`."""

    model_config = ConfigDict(allow_inf_nan=True)

    fingerprint: str
    """Of settings and inputs."""
    status: Literal["started", "finished"]
    """Started: resumes from its checkpoint. Finished: is skipped."""
    seconds: float = 0.0
    """Duration."""
    metrics: dict[str, float] = Field(default_factory=dict)
    """Metrics of the best checkpoint on held-out data."""
    num_segments: int | None = None
    """Segments predicted."""
    ensemble_weights: dict[str, float] = Field(default_factory=dict)
    """Weights found for the models of the ensemble, by name."""
    calibration: Calibration | None = None
    """Of the ensemble's scores."""
    data: str = ""
    """Dataset folder, as an absolute path."""
    models: dict[str, str] = Field(default_factory=dict)
    """Folders of the models that prediction used, by name: relative to the run's folder, or absolute."""
    checksums: dict[str, str] = Field(default_factory=dict)
    """CRC32C of results outside of the folder, by name."""
    time: str = ""
    """When this was written, ISO 8601, UTC."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings that decide the result."""


def read_record(folder: Path) -> StageRecord | None:
    """Read the record of a stage's folder; None where there is none, or another file of that name."""
    try:
        return validated(StageRecord, read_yaml(folder / STAGE_FILE), str(folder / STAGE_FILE))
    except UsageError:
        return None
