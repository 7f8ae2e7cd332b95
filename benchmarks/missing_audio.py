"""What stands for missing audio: how much each candidate changes the predictions of models that were trained with audio.

    python benchmarks/missing_audio.py --data build/spliced      # a dataset made by `yt8m splice`

A small DBoF and a small NeXtVLAD, context-agnostic segment models, are trained on videos with audio, three seeds each. Then
they predict the rated segments of the test videos, once as they are, and once per candidate with all audio bytes replaced.
The candidates are single bytes, and the mean byte of each dimension over the training videos. For scale, the audio of another
video is among them. The figures are the mean distance of the logits of all classes from those with the right audio, and the
mean average precision of the rated segments, per class over the rated segments of the class. Candidates of one seed have the
same models and segments, so their differences are smaller than the spread of the seeds; a second table has them.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from yt8m.dataset.catalog import Catalog
from yt8m.dataset.frames import FrameReader
from yt8m.dataset.indexing import load_or_index
from yt8m.features import YOUTUBE8M
from yt8m.models.saved import load_model
from yt8m.vocabulary import Vocabulary

RECIPE = """
folds: 4
machine: {accelerator: cpu}
base_models:
  dbof:
    classifier:
      encoder: {type: dbof, hidden_size: 512, output_size: 256, input_batch_norm: true}
      mixture: &mixture {num_experts: 2}
    frames_per_video: 11
    clip_probability: 1.0
    training: &training
      {steps: STEPS, batch_size: 32, peak_lr: 2e-3, weight_decay: 0.1, evaluate_every: 100000, monitor: loss}
  nextvlad:
    classifier:
      encoder: {type: nextvlad, num_clusters: 8, num_groups: 8, expansion: 1, output_size: 256}
      mixture: *mixture
    frames_per_video: 11
    clip_probability: 1.0
    training: *training
segment_models:
  agnostic-dbof:
    kind: agnostic
    base: dbof
    fold: 0
    training: &finetuning {<<: *training, steps: FINETUNING, peak_lr: 5e-4, weight_decay: 0.02}
  agnostic-nextvlad: {kind: agnostic, base: nextvlad, fold: 0, training: *finetuning}
"""
MODELS = ("agnostic-dbof", "agnostic-nextvlad")
MARGIN, WINDOW = 3, 11
MAX_WINDOWS = 3000
RGB = YOUTUBE8M.bytes_of("rgb")
BYTES = (0, 64, 112, 120, 126, 127, 128, 129, 136, 144, 192, 255)
CHOSEN = "127"
MEAN, OTHER, RIGHT = "mean of each dimension", "audio of another video", "the right audio"


def train(recipe: Path, data: Path, out: Path, seed: int) -> None:
    """Train the models of a seed."""
    for kind in ("pretrain", "finetune"):
        command = [sys.executable, "-W", "ignore", "-m", "yt8m", "run", recipe, "--data", data, "--out", out, "--only"]
        subprocess.run(
            [*command, kind, "--set", f"seed={seed}", "--quiet"], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )


def mean_bytes(catalog: Catalog, num_videos: int = 500) -> NDArray[np.uint8]:
    """The mean byte of each dimension of audio over the first videos, uint8 (128,)."""
    reader = FrameReader(catalog)
    total, count = np.zeros(128), 0
    for row in range(min(num_videos, len(catalog))):
        frames = reader.read(row, 0, int(catalog.num_frames[row]))
        total += frames[:, RGB:].sum(axis=0, dtype=np.int64)
        count += len(frames)
    return np.rint(total / count).astype(np.uint8)


def rated_windows(
    data: Path, catalog: Catalog, classes: Vocabulary
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.bool_]]:
    """Windows of rated test segments uint8 (n, 11, 1152), the class of each rating and its value, from the file of truth."""
    rows = {video_id: row for row, video_id in enumerate(catalog.video_ids)}
    reader = FrameReader(catalog)
    windows, columns, values = [], [], []
    with (data / "segment/test_ratings.csv").open(newline="", encoding="utf-8") as file:
        ratings = list(csv.DictReader(file))
    for number in np.random.default_rng(0).permutation(len(ratings))[:MAX_WINDOWS]:
        rating = ratings[number]
        row, start = rows[rating["video"]], int(rating["start"]) - MARGIN
        if start >= 0 and start + WINDOW <= catalog.num_frames[row]:
            windows.append(reader.read(row, start, start + WINDOW))
            columns.append(int(classes.class_indices(int(rating["label"]))))
            values.append(float(rating["score"]) > 0)
    return np.stack(windows), np.array(columns, np.int64), np.array(values)


def logits(model: torch.nn.Module, windows: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Logits of windows, float32 (n, C)."""
    parts = [model.probabilities(windows[start : start + 256]) for start in range(0, len(windows), 256)]  # type: ignore[operator]
    found: NDArray[np.float32] = torch.logit(torch.cat(parts), eps=1e-6).numpy()
    return found


def mean_average_precision(scores: NDArray[np.float32], columns: NDArray[np.int64], values: NDArray[np.bool_]) -> float:
    """Mean over the classes of the average precision of their rated segments; classes without both kinds are left out."""
    precisions = []
    for column in np.unique(columns):
        rated = columns == column
        right = values[rated][np.argsort(-scores[rated, column], kind="stable")]
        if right.any() and not right.all():
            hits = np.flatnonzero(right)
            precisions.append(float(np.mean(np.arange(1, len(hits) + 1) / (hits + 1))))
    return statistics.mean(precisions)


def replaced(windows: NDArray[np.uint8], candidate: str, means: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The windows with other audio."""
    changed = windows.copy()
    if candidate == OTHER:
        changed[..., RGB:] = np.roll(windows[..., RGB:], len(windows) // 2, axis=0)
    elif candidate != RIGHT:
        changed[..., RGB:] = means if candidate == MEAN else int(candidate)
    return changed


def main() -> None:
    """Train, predict, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a dataset folder made by `yt8m splice`")
    parser.add_argument("--out", type=Path, default=Path("build/missing-audio"), help="folder of the models")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600, help="steps of pre-training; half as many of fine-tuning")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    recipe = options.out / "recipe.yaml"
    steps = RECIPE.replace("STEPS", str(options.steps)).replace("FINETUNING", str(options.steps // 2))
    recipe.write_text(steps, encoding="utf-8")
    means = mean_bytes(load_or_index(options.data / "video/train"))
    classes = Vocabulary.load(options.data)
    windows, columns, values = rated_windows(options.data, load_or_index(options.data / "segment/test"), classes)
    candidates = [RIGHT, *map(str, BYTES), MEAN, OTHER]
    distances: dict[tuple[str, str], list[float]] = {}
    precisions: dict[tuple[str, str], list[float]] = {}
    for seed in range(options.seeds):
        train(recipe, options.data, options.out / f"seed-{seed}", seed)
        for name in MODELS:
            model = load_model(options.out / f"seed-{seed}/finetune/{name}/model")
            right = logits(model, windows)
            for candidate in candidates:
                found = logits(model, replaced(windows, candidate, means))
                distances.setdefault((name, candidate), []).append(float(np.abs(found - right).mean()))
                precision = mean_average_precision(found, columns, values)
                precisions.setdefault((name, candidate), []).append(precision)
        print(f"seed {seed} done", file=sys.stderr, flush=True)
    print(f"{len(windows):,} windows; mean bytes {means.min()} to {means.max()}, {means.mean():.1f} on average\n")
    print(f"| audio | {' | '.join(f'{name}: logits | MAP' for name in MODELS)} |\n|---|{'---|---|' * len(MODELS)}")
    for candidate in candidates:
        cells = []
        for name in MODELS:
            for figures in (distances, precisions):
                found_values = figures[name, candidate]
                mean = statistics.mean(found_values)
                cells.append(f"{mean:.4f} ± {max(abs(value - mean) for value in found_values):.4f}")
        print(f"| {candidate} | {' | '.join(cells)} |")
    print(f"\nDifference from byte {CHOSEN} of the same seed, mean (lowest to highest):\n")
    print(f"| audio | {' | '.join(f'{name}: logits | MAP' for name in MODELS)} |\n|---|{'---|---|' * len(MODELS)}")
    for candidate in candidates:
        cells = []
        for name in MODELS:
            for figures in (distances, precisions):
                paired = [a - b for a, b in zip(figures[name, candidate], figures[name, CHOSEN], strict=True)]
                cells.append(f"{statistics.mean(paired):+.4f} ({min(paired):+.4f} to {max(paired):+.4f})")
        print(f"| {candidate} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
