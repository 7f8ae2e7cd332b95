"""Two processes that share each global batch, against one process: loss curves and their differences.

    python benchmarks/processes.py --picture benchmarks/results/processes.png

A NeXtVLAD base model and, from it, a context-agnostic segment model with two micro-batches per step (`gradient_accumulation`)
are trained on spliced videos with dropout, by one process and by two (torchrun, gloo), one thread each. The losses of every step
and the held-out metrics are compared. The remaining differences are rounding (the order of sums), which training amplifies
from step to step.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from yt8m.training.metrics_log import METRICS_FILE, read_metrics

RECIPE = """
seed: 5
folds: 4
base_models:
  nextvlad:
    classifier:
      encoder: {type: nextvlad, num_clusters: 16, num_groups: 8, output_size: 256, max_frames: 30}
      mixture: {num_experts: 2}
    training: &training
      {steps: STEPS, batch_size: 32, peak_lr: 3e-4, weight_decay: 0.1, evaluate_every: 50, log_every: 1, monitor: auc}
segment_models:
  agnostic:
    kind: agnostic
    base: nextvlad
    fold: 1
    training: {<<: *training, gradient_accumulation: 2, peak_lr: 2e-4}
"""
STAGES = ("pretrain/nextvlad", "finetune/agnostic")


def run(recipe: Path, data: Path, out: Path, processes: int) -> None:
    """Train both stages with one or more processes."""
    launcher = [sys.executable, "-W", "ignore", "-m"]
    if processes > 1:
        launcher += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    for only in ("pretrain", "finetune"):
        command = ["yt8m", "run", str(recipe), "--data", str(data), "--out", str(out), "--only", only]
        subprocess.run(
            [*launcher, *command], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True
        )


def curve(folder: Path, split: str, metric: str) -> list[float]:
    """Values of a metric in the order of the steps."""
    return [row[3] for row in read_metrics(folder / METRICS_FILE) if (row[0], row[2]) == (split, metric)]


def differences(one: Path, two: Path, split: str, metric: str) -> list[float]:
    """Relative differences of a metric between two runs."""
    pairs = zip(curve(one, split, metric), curve(two, split, metric), strict=True)
    return [abs(a - b) / abs(a) for a, b in pairs]


def draw(folder: Path, path: Path) -> None:
    """Plot the losses of both runs, and below them their relative differences."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2, sharex="col")
    for column, stage in enumerate(STAGES):
        above, below = axes[0, column], axes[1, column]
        one, two = (curve(folder / str(n) / stage, "train", "loss") for n in (1, 2))
        steps = range(1, len(one) + 1)
        above.plot(steps, one, linewidth=4, color="0.75", label="one process")
        above.plot(steps, two, linewidth=1, color="tab:blue", label="two processes")
        above.set(title=stage, ylabel="training loss" if column == 0 else None)
        above.legend()
        found = differences(*(folder / str(n) / stage for n in (1, 2)), "train", "loss")
        # Equal losses have no place on a logarithmic axis.
        below.semilogy(steps, [max(value, 1e-8) for value in found], color="tab:blue")
        below.axhline(1e-5, color="0.5", linestyle="--", linewidth=1, label="1e-5")
        below.set(xlabel="step", ylabel="relative difference of the loss" if column == 0 else None)
        below.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Train, print a table and plot the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--picture", type=Path, default=Path("build/processes.png"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe, data = folder / "recipe.yaml", folder / "data"
        recipe.write_text(RECIPE.replace("STEPS", str(options.steps)), encoding="utf-8")
        sizes = ("--pretrain", "200", "--segments", "64", "--test", "8")
        splice = [sys.executable, "-m", "yt8m", "splice", str(data), *sizes]
        subprocess.run(splice, check=True, capture_output=True)
        for processes in (1, 2):
            run(recipe, data, folder / str(processes), processes)
        print("| stage | loss, first step | first 50 steps | all steps | held-out loss | held-out AUC |")
        print("|---|---|---|---|---|---|")
        for stage in STAGES:
            places = [folder / str(n) / stage for n in (1, 2)]
            losses = differences(*places, "train", "loss")
            held_out = [max(differences(*places, "valid", metric)) for metric in ("loss", "auc")]
            cells = [losses[0], max(losses[:50]), max(losses), *held_out]
            print(f"| {stage} | {' | '.join(f'{value:.1e}' for value in cells)} |")
        options.picture.parent.mkdir(parents=True, exist_ok=True)
        draw(folder, options.picture)
    print(f"\nlargest relative differences between one and two processes; plot: {options.picture}")


if __name__ == "__main__":
    main()
