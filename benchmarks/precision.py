"""Training in bfloat16, compiled, against float32: held-out metrics, several seeds each.

    python benchmarks/precision.py                                   # on generated videos
    python benchmarks/precision.py --data build/spliced --seeds 3    # on a dataset made by `yt8m splice`

A small DBoF and a small NeXtVLAD are pre-trained on clips of eleven frames and fine-tuned as context-agnostic segment models;
weights, order and dropout differ between seeds. The table shows the mean over the seeds and the largest distance of a seed
from it: the difference of the means should not exceed the spread of the seeds. One thread; a CPU without bfloat16
instructions is five times slower in bfloat16.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from yt8m.runs.records import read_record

RECIPE = """
folds: 4
base_models:
  dbof:
    classifier:
      encoder: {type: dbof, hidden_size: 256, output_size: 128, input_batch_norm: true}
      mixture: &mixture {num_experts: 2}
    frames_per_video: 11
    clip_probability: 1.0
    training: &training
      {steps: STEPS, batch_size: 32, peak_lr: 2e-3, weight_decay: 0.1, evaluate_every: 1000, monitor: loss}
  nextvlad:
    classifier:
      encoder: {type: nextvlad, num_clusters: 8, num_groups: 8, expansion: 1, output_size: 128, input_batch_norm: true}
      mixture: *mixture
    frames_per_video: 11
    clip_probability: 1.0
    training: *training
segment_models:
  agnostic-dbof:
    kind: agnostic
    base: dbof
    fold: 0
    training: &finetuning {<<: *training, peak_lr: 5e-4, weight_decay: 0.02}
  agnostic-nextvlad: {kind: agnostic, base: nextvlad, fold: 0, training: *finetuning}
"""
STAGES = ("pretrain/dbof", "pretrain/nextvlad", "finetune/agnostic-dbof", "finetune/agnostic-nextvlad")
METRICS = ("map", "auc", "loss")
WAYS = {
    "float32": ("machine.precision=32-true", "machine.compile=false"),
    "bfloat16, compiled": ("machine.precision=bf16-mixed", "machine.compile=true"),
}


def train(recipe: Path, data: Path, out: Path, seed: int, settings: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Train the stages and return the metrics of each."""
    overrides = [word for option in (f"seed={seed}", *settings) for word in ("--set", option)]
    for kind in ("pretrain", "finetune"):
        command = [sys.executable, "-W", "ignore", "-m", "yt8m", "run", str(recipe), "--data", str(data)]
        subprocess.run(
            [*command, "--out", str(out), "--only", kind, *overrides],
            check=True,
            capture_output=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    records = {stage: read_record(out / stage) for stage in STAGES}
    return {stage: record.metrics for stage, record in records.items() if record is not None}


def main() -> None:
    """Train and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a dataset folder")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200, help="steps of each stage")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = options.data or folder / "data"
        recipe = folder / "recipe.yaml"
        recipe.write_text(RECIPE.replace("STEPS", str(options.steps)), encoding="utf-8")
        if options.data is None:
            subprocess.run([sys.executable, "-m", "yt8m", "splice", str(data)], check=True, capture_output=True)
        found: dict[str, list[dict[str, dict[str, float]]]] = {way: [] for way in WAYS}
        for seed in range(options.seeds):
            for number, (way, settings) in enumerate(WAYS.items()):
                found[way].append(train(recipe, data, folder / f"{number}-{seed}", seed, settings))
                print(f"seed {seed}, {way}: {found[way][-1]}", file=sys.stderr, flush=True)
    print(f"| stage | metric | {' | '.join(WAYS)} | difference |\n|---|---|---|---|---|")
    for stage in STAGES:
        for metric in METRICS:
            means, cells = [], []
            for runs in found.values():
                values = [run[stage][metric] for run in runs]
                means.append(statistics.mean(values))
                cells.append(f"{means[-1]:.4f} ± {max(abs(value - means[-1]) for value in values):.4f}")
            print(f"| {stage} | {metric} | {' | '.join(cells)} | {means[1] - means[0]:+.4f} |")


if __name__ == "__main__":
    main()
