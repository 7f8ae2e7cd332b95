"""A tiny dataset, a recipe of tiny models, and the results of a run."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from tests.support.command import Outcome
from yt8m.synthetic.splice import Sizes

TINY_SIZES = Sizes(train=16, valid=4, rated=16, test=8)
TINY_CLASSES = 12
TINY_RECIPE = """\
folds: 4
compare: true
machine: {accelerator: cpu}
base_models:
  dbof:
    classifier:
      encoder: {type: dbof, hidden_size: 16, output_size: 8, max_frames: 20}
      mixture: {num_experts: 2}
    training: &training
      steps: 6
      batch_size: 8
      peak_lr: 2e-3
      weight_decay: 0.1
      evaluate_every: 3
      checkpoint_every: 2
      log_every: 2
  nextvlad:
    classifier:
      encoder: {type: nextvlad, num_clusters: 2, num_groups: 4, expansion: 1, output_size: 8, max_frames: 20}
      mixture: {num_experts: 2}
    training: *training
segment_models:
  bare:
    kind: agnostic
    base: dbof
    fold: 0
    training: *training
  aware:
    kind: aware
    context: dbof
    segment: nextvlad
    fold: 1
    fusion: {output_size: 8}
    mixture: {num_experts: 2}
    training: *training
"""

STAGES = ["pretrain/dbof", "pretrain/nextvlad", "finetune/bare", "finetune/aware", "predict"]
"""Stages of the tiny recipe."""
STAGE_TITLES = [stage.replace("/", " ") for stage in STAGES]
"""Names of the stages in messages."""
RANKINGS = ["random", "bare", "aware", "agnostic only", "aware only", "ensemble"]
"""Rankings that the tiny recipe compares."""


@dataclass(frozen=True)
class FinishedRun:
    """A run of the tiny recipe on the tiny dataset: its folder and what the command printed."""

    out: Path
    outcome: Outcome

    def model(self, stage: str) -> Path:
        """The model folder of a stage, such as `pretrain/dbof`."""
        return self.out / stage / "model"


def skipped_stages(err: str) -> list[str]:
    """Titles of the stages that a run skipped."""
    return [line.removesuffix(": finished before, skipped") for line in err.splitlines() if "skipped" in line]


def score_rows(out: Path) -> list[dict[str, str]]:
    """Rows of `scores.csv` of a run."""
    with (out / "predict" / "scores.csv").open(newline="") as file:
        return list(csv.DictReader(file))
