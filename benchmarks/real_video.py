"""What a small model that is trained on a few spliced videos finds in a real video, with three seeds.

SOURCES are real video-level shards (`yt8m download data 2/video/validate --shard 1/64`), VOCABULARY the
segment_vocabulary.csv of the dataset, and SHARD a frame-level shard with real videos that are not among the sources. For
each seed, videos are spliced, one base model and one context-agnostic segment model are trained, and the concepts of the
first video of SHARD are ranked by their highest probability in any segment. `--concepts` are shown at any rank.

    python benchmarks/real_video.py SOURCES VOCABULARY SHARD --concepts Food Cooking
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from yt8m.locate.timeline import clock

RECIPE = """\
seed: {seed}
base_models:
  dbof:
    classifier:
      encoder: {{type: dbof, hidden_size: 1024, output_size: 512, input_batch_norm: true}}
    frames_per_video: 11
    clip_probability: 1.0
    training: &training
      steps: 600
      batch_size: 64
      peak_lr: 2e-3
      weight_decay: 0.1
      evaluate_every: 300
      monitor: map
segment_models:
  agnostic:
    kind: agnostic
    base: dbof
    fold: 0
    training: {{<<: *training, steps: 100, batch_size: 128, peak_lr: 5e-4, weight_decay: 0.02, evaluate_every: 50, monitor: auc}}
"""
SIZES = ["--pretrain", "300", "--segments", "120", "--test", "40"]
TOP = 8


def yt8m(*arguments: object) -> str:
    """Run a command; its standard output."""
    command = [sys.executable, "-m", "yt8m", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def found_by(seed: int, folder: Path, arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], float]:
    """Concepts of the video, the most probable first, and seconds of training."""
    data, run = folder / "data", folder / "run"
    sources = ["--sources", arguments.sources, "--vocabulary", arguments.vocabulary]
    yt8m("splice", data, *sources, *SIZES, "--seed", seed)
    (folder / "recipe.yaml").write_text(RECIPE.format(seed=seed))
    started = time.perf_counter()
    yt8m("run", folder / "recipe.yaml", "--data", data, "--out", run)
    seconds = time.perf_counter() - started
    [timeline] = json.loads(yt8m("locate", arguments.shard, "--run", run, "--top", 1000, "--limit", 1, "--json"))
    concepts: list[dict[str, Any]] = timeline["concepts"]
    return concepts, seconds


def main() -> None:
    """Train with each seed, and print what is found in the video."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("sources", "vocabulary", "shard"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--concepts", nargs="*", default=[])
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} CPUs, Python {platform.python_version()}, torch {torch.__version__}")
    for seed in range(arguments.seeds):
        with tempfile.TemporaryDirectory() as folder:
            concepts, seconds = found_by(seed, Path(folder), arguments)
        for rank, concept in enumerate(concepts, start=1):
            if rank <= TOP or concept["name"] in arguments.concepts:
                spans = ", ".join(f"{clock(start)} to {clock(end)}" for start, end in concept["spans"])
                print(f"| {seed} | {rank} | {concept['name']} | {concept['peak']:.2f} | {spans or '-'} |")
        print(f"seed {seed}: {seconds:.0f} s for training and prediction, {len(concepts):,} concepts")


if __name__ == "__main__":
    main()
