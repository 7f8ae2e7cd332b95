"""A run that is killed repeatedly, against an undisturbed one: same weights, same log.

    python benchmarks/killing.py --kills 20

`yt8m run` trains a DBoF and a NeXtVLAD base model and a context-aware segment model on spliced videos, predicts and ranks.
A second, identical run is killed with SIGKILL at random steps, every fourth time during the write of a checkpoint, and
restarted. One thread per process, on the CPU. Weights, logs and submission are compared byte by byte.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from yt8m.training.loop import CHECKPOINT_FILE
from yt8m.training.metrics_log import METRICS_FILE, read_metrics

RECIPE = """
seed: 11
folds: 4
top_k: 1000
base_models:
  dbof:
    classifier: {encoder: {type: dbof, hidden_size: 768, output_size: 256, max_frames: 30}, mixture: {num_experts: 2}}
    training: &training
      {steps: STEPS, batch_size: 8, peak_lr: 1e-3, weight_decay: 0.1, evaluate_every: 29, checkpoint_every: 7,
       log_every: 1, monitor: auc}
  nextvlad:
    classifier:
      encoder: {type: nextvlad, num_clusters: 8, num_groups: 8, output_size: 256, max_frames: 30}
      mixture: {num_experts: 2}
    training: {<<: *training, averaging: {type: ema}}
segment_models:
  aware:
    kind: aware
    context: dbof
    segment: nextvlad
    fusion: {output_size: 256}
    mixture: {num_experts: 2}
    fold: 1
    training: {<<: *training, gradient_accumulation: 2}
"""
STAGES = ("pretrain/dbof", "pretrain/nextvlad", "finetune/aware")
SIZES = ("--pretrain", "96", "--segments", "48", "--test", "12")


@dataclass(frozen=True)
class Kill:
    """State of the run when it was killed.

    Args:
        stage: The stage in training.
        step: Last step in its log.
        writing: Whether a checkpoint was being written.
        resumed_from: Step of the checkpoint that it resumed from.
    """

    stage: str
    step: int
    writing: bool
    resumed_from: int


def command(*arguments: str) -> list[str]:
    """A yt8m command line."""
    return [sys.executable, "-m", "yt8m", *arguments]


def environment() -> dict[str, str]:
    """Environment with one thread, so that sums have a fixed order."""
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def last_step(folder: Path) -> int:
    """Last step in the log of a stage's folder."""
    log = folder / METRICS_FILE
    return max((row[1] for row in read_metrics(log)), default=0) if log.is_file() else 0


def place(out: Path) -> tuple[str, int]:
    """The stage in training, and its last step."""
    begun = [stage for stage in STAGES if (out / stage).is_dir()]
    return (begun[-1], last_step(out / begun[-1])) if begun else (STAGES[0], 0)


def is_writing(folder: Path) -> bool:
    """Whether a checkpoint is being written."""
    return any(path.name != CHECKPOINT_FILE and path.suffix == ".pt" for path in folder.glob(".*.pt"))


def killed_run(run: list[str], out: Path, targets: list[tuple[int, bool]], steps: int) -> list[Kill]:
    """Run to the end, with a kill at each target: a step counted over all stages, and whether to wait for a checkpoint."""
    kills: list[Kill] = []
    for target, in_checkpoint in [*targets, (steps * len(STAGES) + 1, False)]:
        process = subprocess.Popen(run, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while process.poll() is None:
            stage, step = place(out)
            is_there = STAGES.index(stage) * steps + step >= target
            writing = is_writing(out / stage)
            if is_there and (writing or not in_checkpoint):
                process.send_signal(signal.SIGKILL)
                process.wait()
                stage, step = place(out)
                checkpoint = checkpoint_step(out / stage / CHECKPOINT_FILE)
                kills.append(Kill(stage, step, is_writing(out / stage), checkpoint))
                break
            time.sleep(0.0005)
        error = process.stderr.read().decode() if process.stderr else ""
        if process.returncode not in (0, -signal.SIGKILL):
            raise SystemExit(error)
    return kills


def checkpoint_step(path: Path) -> int:
    """Step of a checkpoint; 0 if there is none yet."""
    import torch

    return int(torch.load(path, weights_only=True)["progress"]["step"]) if path.is_file() else 0


def digests(out: Path) -> dict[str, str]:
    """Digests of the files that must not differ."""
    names = [f"{stage}/{name}" for stage in STAGES for name in ("model/model.safetensors", METRICS_FILE)]
    return {name: hashlib.sha256((out / name).read_bytes()).hexdigest()[:16] for name in [*names, "submission.csv"]}


def leftovers(out: Path) -> list[str]:
    """Temporary files of killed processes that no later process removed."""
    return sorted(str(path.relative_to(out)) for path in out.rglob(".*"))


def compare(folder: Path, num_kills: int, steps: int, seed: int) -> tuple[list[Kill], dict[str, tuple[str, str]]]:
    """Execute both runs in a folder; return the kills, and each digest of the undisturbed run with that of the killed one."""
    data, recipe = folder / "data", folder / "recipe.yaml"
    recipe.write_text(RECIPE.replace("STEPS", str(steps)), encoding="utf-8")
    subprocess.run(command("splice", str(data), *SIZES), check=True, env=environment(), stdout=subprocess.DEVNULL)
    runs = {
        name: command("run", str(recipe), "--data", str(data), "--out", str(folder / name))
        for name in ("undisturbed", "killed")
    }
    subprocess.run(runs["undisturbed"], check=True, env=environment(), capture_output=True)
    steps_of_kills = sorted(random.Random(seed).sample(range(1, steps * len(STAGES)), num_kills))
    targets = [(step, number % 4 == 3) for number, step in enumerate(steps_of_kills)]
    kills = killed_run(runs["killed"], folder / "killed", targets, steps)
    whole, again = digests(folder / "undisturbed"), digests(folder / "killed")
    if found := leftovers(folder / "killed"):
        raise SystemExit(f"temporary files remained: {', '.join(found)}")
    return kills, {name: (whole[name], again[name]) for name in whole}


def main() -> None:
    """Print the kills and the comparison as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=120, help="steps of each of the three stages")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kills, compared = compare(Path(folder), options.kills, options.steps, options.seed)
    print("| kill | stage | last step logged | during a checkpoint write | resumed from step |")
    print("|---|---|---|---|---|")
    for number, kill in enumerate(kills, start=1):
        print(f"| {number} | {kill.stage} | {kill.step} | {'yes' if kill.writing else ''} | {kill.resumed_from} |")
    print("\n| file | undisturbed | killed | |\n|---|---|---|---|")
    for name, (one, other) in compared.items():
        print(f"| {name} | {one} | {other} | {'equal' if one == other else 'DIFFERENT'} |")
    if any(one != other for one, other in compared.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
