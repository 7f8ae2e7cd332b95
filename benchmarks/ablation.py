"""Ablation: MAP on the test videos with each deviation of the 2019 implementation restored, several seeds each.

    python benchmarks/ablation.py                                       # on generated videos
    python benchmarks/ablation.py --data build/spliced --workers 2      # on a dataset made by `yt8m splice`
    python benchmarks/ablation.py --only dbof/bytes/0                   # one run
    python benchmarks/ablation.py --report                              # tables of the finished runs

A small DBoF and a small NeXtVLAD are pre-trained on complete videos (at most 150 frames sampled from each) and fine-tuned as
context-agnostic segment models by the code of `yt8m run`: unchanged, with each quirk of 2019 restored, and with all of them.
A quirk is a setting of the package if there is one; the others are the functions and the class named "of 2019" below, which
replace the package's own in the process of that run. Seeds are paired: with the same seed, all runs start from the same
weights and see the same videos in the same order. Each run is a process with one thread. Finished runs are skipped and
killed ones resume, so the command can be repeated.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from yt8m.dataset.batches import SINGLE_PROCESS, Allocate, FrameSampling, ProcessSlice, VideoBatch, VideoBatches
from yt8m.dataset.frames import FrameReader
from yt8m.files import written_atomically
from yt8m.models import dbof
from yt8m.models.layers.pooling import gated_max_mean_pool
from yt8m.ranking import MAX_SEGMENTS
from yt8m.runs.recipe import read_recipe
from yt8m.runs.records import read_record
from yt8m.runs.run import Run
from yt8m.scoring.scores import SCORES_FILE, read_scores
from yt8m.training import optimization, tasks
from yt8m.training.config import MINED_WEIGHT, POSITIVE_WEIGHT
from yt8m.training.losses import mined_loss, rating_loss
from yt8m.training.optimization import decaying_parameters
from yt8m.vocabulary import Vocabulary

RECIPE = """
seed: SEED
base_models:
  video:
    classifier:
      encoder: ENCODER
    training:
      steps: STEPS
      batch_size: 32
      peak_lr: 4e-3
      weight_decay: 1.5
      evaluate_every: 1000000
      checkpoint_every: 50
      monitor: map
segment_models:
  agnostic:
    kind: agnostic
    base: video
    fold: 0
    training:
      steps: FINETUNING
      batch_size: 128
      peak_lr: 5e-4
      weight_decay: 0.2
      evaluate_every: 1000000
      checkpoint_every: 50
      monitor: map
"""
"""The last checkpoint is compared, not the best, so that selection adds no noise. The sum over the steps of learning rate x
decay, which determines how far a weight shrinks, is about that of 2019: 1.2 here and 1.5 there (DBoF) in pre-training, 0.015
and 0.016 in fine-tuning. With the decay of 2019, so few steps would show no effect."""

ENCODERS = {
    "dbof": "{type: dbof, hidden_size: 256, output_size: 256, max_frames: 150}",
    "nextvlad": "{type: nextvlad, num_clusters: 8, num_groups: 8, expansion: 1, output_size: 256, max_frames: 150}",
}
PRETRAINED, PREDICTED = "pretrain/video", "predict"
RECIPE_FILE = "ablation.yaml"
FEWER_FRAMES_OF_2019 = 10
NEGATIVE_WEIGHT_OF_2019 = 0.5


# --------------------------------------------------------------------------------------------- deviations of 2019


def sampled_as_of_2019(batch: VideoBatch, max_frames: int, rng: np.random.Generator) -> VideoBatch:
    """Sample a padded batch as in 2019: positions of the padded time axis, the same for every video, with replacement.

    Positions beyond the end of a video are padding, so a short video has fewer frames in a batch of long ones.

    Args:
        batch: All frames of each video after the crop.
        max_frames: L_max; batches with at most so many frames are unchanged, others keep L_max - 10 positions.
        rng: Draws the positions.
    """
    num_frames = batch.rgb.shape[1]
    if num_frames <= max_frames:
        return batch
    # Sorted, so that valid frames precede padding; neither encoder depends on the order.
    places = torch.from_numpy(np.sort(rng.choice(num_frames, max_frames - FEWER_FRAMES_OF_2019)))
    lengths = (places < batch.lengths.unsqueeze(1)).sum(1).clamp(min=1)
    return VideoBatch(batch.rgb[:, places], batch.audio[:, places], lengths, batch.labels)


class VideoBatchesOf2019(VideoBatches):
    """Batches of videos that are sampled jointly."""

    def __init__(
        self,
        reader: FrameReader,
        vocabulary: Vocabulary,
        choice: FrameSampling,
        batch_size: int,
        seed: int,
        share: ProcessSlice = SINGLE_PROCESS,
    ) -> None:
        longest = int(reader.catalog.num_frames.max())
        super().__init__(reader, vocabulary, FrameSampling(longest), batch_size, seed, share)
        self.sampled_frames = choice.max_frames

    def batch(self, step: int, allocate: Allocate = np.empty) -> VideoBatch:
        """This process's part of the batch of a step."""
        return sampled_as_of_2019(
            super().batch(step, allocate), self.sampled_frames, np.random.default_rng([self.seed, step])
        )


def padded_mean_pool_of_2019(features: Tensor, gate_logits: Tensor | None, mask: Tensor) -> Tensor:
    """Divide the sum over a video's frames by the padded length of its batch instead of the video's own length."""
    maximum, mean = gated_max_mean_pool(features, gate_logits, mask).chunk(2, 1)
    return torch.cat([maximum, mean * mask.to(mean.dtype).mean(1, keepdim=True)], 1)


def segment_loss_of_2019(
    logits: Tensor,
    class_indices: Tensor,
    ratings: Tensor,
    negatives: Tensor,
    positive_weight: float = POSITIVE_WEIGHT,
    mined_weight: float = MINED_WEIGHT,
) -> Tensor:
    """Weight negative ratings by 0.5: `-(1.5 y log p + 0.5 (1 - y) log(1 - p))`; mined negatives are unchanged."""
    relative = positive_weight / NEGATIVE_WEIGHT_OF_2019
    rated = NEGATIVE_WEIGHT_OF_2019 * rating_loss(logits, class_indices, ratings, relative)
    return rated + mined_weight * mined_loss(logits, negatives)


def decaying_parameters_of_2019(module: nn.Module) -> dict[str, bool]:
    """Apply weight decay to every parameter, including norm weights, biases and centroids."""
    return dict.fromkeys(decaying_parameters(module), True)


@dataclass(frozen=True)
class Quirk:
    """A deviation of the 2019 implementation.

    Args:
        title: Its name in the table.
        settings: Settings of the recipe that restore it.
        patches: Functions or classes that restore it: the module that uses them, their name there, the replacement.
        encoders: Encoders that it applies to.
        in_pretraining: Whether it affects pre-training.
    """

    title: str
    settings: tuple[str, ...] = ()
    patches: tuple[tuple[ModuleType, str, object], ...] = ()
    encoders: tuple[str, ...] = tuple(ENCODERS)
    in_pretraining: bool = True


ENCODER = "base_models.video.classifier.encoder"
MIXTURE = "base_models.video.classifier.mixture"
QUIRKS = {
    "sampling": Quirk(
        "frames sampled with replacement, the same for the batch",
        patches=((tasks, "VideoBatches", VideoBatchesOf2019),),
    ),
    "padded-mean": Quirk(
        "mean divided by the padded length",
        patches=((dbof, "gated_max_mean_pool", padded_mean_pool_of_2019),),
        encoders=("dbof",),
    ),
    "bytes": Quirk("raw bytes as input", settings=(f"{ENCODER}.input=bytes",)),
    "negatives": Quirk(
        "weight 0.5 of negative ratings",
        patches=((tasks, "segment_loss", segment_loss_of_2019),),
        in_pretraining=False,
    ),
    "logits": Quirk("mixture of experts averages logits", settings=(f"{MIXTURE}.average=logits",)),
    "decay": Quirk(
        "weight decay of norm weights, biases and centroids",
        patches=((optimization, "decaying_parameters", decaying_parameters_of_2019),),
    ),
}
OURS, ALL = "ours", "all"


def quirks_of(encoder: str, variant: str) -> list[Quirk]:
    """Quirks that a variant restores."""
    chosen = QUIRKS.values() if variant == ALL else [QUIRKS[variant]] if variant != OURS else []
    return [quirk for quirk in chosen if encoder in quirk.encoders]


def variants_of(encoder: str) -> list[str]:
    """Variants of an encoder, ours first."""
    return [OURS, *(name for name, quirk in QUIRKS.items() if encoder in quirk.encoders), ALL]


def title_of(variant: str) -> str:
    """Name of a variant in the table."""
    return {OURS: "ours", ALL: "all of these"}.get(variant) or QUIRKS[variant].title


@contextmanager
def put_back(quirks: Sequence[Quirk]) -> Iterator[None]:
    """Apply the patches of some quirks until the block ends."""
    with ExitStack() as stack:
        for quirk in quirks:
            for module, name, replacement in quirk.patches:
                stack.enter_context(mock.patch.object(module, name, replacement))
        yield


# ------------------------------------------------------------------------------------------------------------ runs


@dataclass(frozen=True)
class Plan:
    """Data, output folder and number of training steps.

    Args:
        data: The dataset.
        out: Receives one folder per run.
        steps: Steps of pre-training.
        finetuning: Steps of fine-tuning.
    """

    data: Path
    out: Path
    steps: int
    finetuning: int

    def folder(self, encoder: str, variant: str, seed: int) -> Path:
        """Folder of a run."""
        return self.out / encoder / variant / str(seed)

    def recipe(self, encoder: str, seed: int) -> str:
        """The recipe of an encoder's runs, without the settings of quirks."""
        text = RECIPE.replace("SEED", str(seed)).replace("ENCODER", ENCODERS[encoder])
        text = text.replace("STEPS", str(self.steps)).replace("FINETUNING", str(self.finetuning))
        return f"# on {self.data.resolve()}{text}"


def train(plan: Plan, encoder: str, variant: str, seed: int) -> None:
    """Pre-train, fine-tune, predict and score, or resume an interrupted run."""
    torch.set_num_threads(1)
    quirks = quirks_of(encoder, variant)
    folder = plan.folder(encoder, variant, seed)
    if variant != OURS and not any(quirk.in_pretraining for quirk in quirks):
        _share_pretraining(plan.folder(encoder, OURS, seed), folder)
    recipe = folder / RECIPE_FILE
    with written_atomically(recipe) as temporary:
        temporary.write_text(plan.recipe(encoder, seed), encoding="utf-8")
    settings = [setting for quirk in quirks for setting in quirk.settings]
    with put_back(quirks):
        Run(read_recipe(recipe, settings), plan.data, folder).run()


def _share_pretraining(source: Path, folder: Path) -> None:
    """Copy the finished pre-training of another run, if there is one."""
    record = read_record(source / PRETRAINED)
    if record and record.status == "finished" and not (folder / PRETRAINED).exists():
        with written_atomically(folder / PRETRAINED) as temporary:
            shutil.copytree(source / PRETRAINED, temporary)


def in_own_process(plan: Plan, run: tuple[str, str, int]) -> str:
    """Execute a run in its own process, with one thread, unless it is finished.

    Returns:
        The error; empty on success.
    """
    if scores(plan, *run) is not None:
        return ""
    name = "/".join(map(str, run))
    print(f"{name}: started", file=sys.stderr, flush=True)
    where = ["--data", str(plan.data), "--out", str(plan.out)]
    steps = ["--steps", str(plan.steps), "--finetuning", str(plan.finetuning)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, *where, *steps, "--only", name],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        return f"{name}: exit status {done.returncode}\n{done.stderr[-2000:]}"
    print(f"{name}: {scores(plan, *run)}", file=sys.stderr, flush=True)
    return ""


# ---------------------------------------------------------------------------------------------------------- scores


@dataclass(frozen=True)
class Scores:
    """Final scores of a run, each from 0 to 1.

    Args:
        map_at_k: MAP@100,000 of the rated segments of the test videos.
        dense_map: MAP over all segments of the test videos.
        video_map: MAP over classes of the pre-trained model, on the held-out videos.
    """

    map_at_k: float
    dense_map: float
    video_map: float


METRICS = {
    "map_at_k": f"MAP@{MAX_SEGMENTS:,}",
    "dense_map": "dense MAP",
    "video_map": "video MAP before fine-tuning",
}


def scores(plan: Plan, encoder: str, variant: str, seed: int) -> Scores | None:
    """Scores of a run; None if it is not finished or belongs to another plan."""
    folder = plan.folder(encoder, variant, seed)
    recipe = folder / RECIPE_FILE
    if not recipe.is_file() or recipe.read_text(encoding="utf-8") != plan.recipe(encoder, seed):
        return None
    pretrained, predicted = read_record(folder / PRETRAINED), read_record(folder / PREDICTED)
    if pretrained is None or predicted is None or predicted.status != "finished":
        return None
    row = read_scores(folder / PREDICTED / SCORES_FILE)[-1]
    if row.map_at_k is None or row.dense_map is None:
        return None
    return Scores(row.map_at_k, row.dense_map, pretrained.metrics["map"])


def table(found: dict[str, dict[int, Scores]], metric: str) -> str:
    """One metric of one encoder's runs, as a Markdown table.

    A difference is the mean over seeds of (variant - ours), with the standard error of that mean.

    Args:
        found: Scores by variant and seed, ours among them.
        metric: A field of `Scores`.
    """
    lines = ["| variant | mean | each seed | difference |", "|---|---|---|---|"]
    ours = {seed: getattr(of_seed, metric) for seed, of_seed in found.get(OURS, {}).items()}
    for variant, of_seeds in found.items():
        values = {seed: getattr(of_seed, metric) for seed, of_seed in of_seeds.items()}
        if not values:
            continue
        differences = [value - ours[seed] for seed, value in values.items() if seed in ours]
        shown = "" if variant == OURS or not differences else difference(differences)
        each = ", ".join(f"{value:.4f}" for value in values.values())
        lines.append(f"| {title_of(variant)} | {statistics.mean(values.values()):.4f} | {each} | {shown} |")
    return "\n".join(lines)


def difference(differences: Sequence[float]) -> str:
    """Mean of paired differences with its standard error."""
    mean = statistics.mean(differences)
    if len(differences) < 2:
        return f"{mean:+.4f}"
    return f"{mean:+.4f} ± {statistics.stdev(differences) / math.sqrt(len(differences)):.4f}"


def report(plan: Plan, encoders: Sequence[str], seeds: int) -> str:
    """All tables of the finished runs, as Markdown."""
    parts = []
    for encoder in encoders:
        found: dict[str, dict[int, Scores]] = {}
        for variant in variants_of(encoder):
            of_seeds = {seed: scores(plan, encoder, variant, seed) for seed in range(seeds)}
            found[variant] = {seed: of_seed for seed, of_seed in of_seeds.items() if of_seed is not None}
        parts += [f"### {encoder}, {title}\n\n{table(found, metric)}" for metric, title in METRICS.items()]
    return "\n\n".join(parts)


# ------------------------------------------------------------------------------------------------------------ main


def run_named(name: str) -> tuple[str, str, int]:
    """Encoder, variant and seed of a run's name.

    Raises:
        ArgumentTypeError: There is no such run.
    """
    encoder, _, rest = name.partition("/")
    variant, _, seed = rest.partition("/")
    if encoder not in ENCODERS or variant not in variants_of(encoder) or not seed.isdecimal():
        raise argparse.ArgumentTypeError(
            f"{name!r}: expected ENCODER/VARIANT/SEED, such as dbof/{ALL}/0; variants are {', '.join([OURS, *QUIRKS, ALL])}"
        )
    return encoder, variant, int(seed)


def invented_data(folder: Path) -> Path:
    """Make a dataset of generated videos, unless it exists."""
    if not folder.exists():
        with written_atomically(folder) as temporary:
            subprocess.run([sys.executable, "-m", "yt8m", "splice", str(temporary)], check=True)
    return folder


def main() -> None:
    """Execute the missing runs and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a dataset folder; by default videos are generated")
    parser.add_argument("--out", type=Path, default=Path("build/ablation"), help="output folder of the runs")
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=list(ENCODERS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400, help="steps of pre-training")
    parser.add_argument("--finetuning", type=int, default=300, help="steps of fine-tuning")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time, on one core each")
    parser.add_argument(
        "--only", metavar="ENCODER/VARIANT/SEED", type=run_named, help="execute only this run, in this process"
    )
    parser.add_argument("--report", action="store_true", help="print the tables of the finished runs")
    options = parser.parse_args()
    data = options.data or (options.out / "data" if options.report else invented_data(options.out / "data"))
    plan = Plan(data, options.out, options.steps, options.finetuning)
    if options.only:
        train(plan, *options.only)
        return
    if not options.report:
        runs = [
            (encoder, variant, seed)
            for encoder in options.encoders
            for seed in range(options.seeds)
            for variant in variants_of(encoder)
        ]
        with ThreadPoolExecutor(options.workers) as pool:
            failures = [failure for failure in pool.map(lambda run: in_own_process(plan, run), runs) if failure]
        if failures:
            sys.exit("\n".join(failures))
    print(report(plan, options.encoders, options.seeds))


if __name__ == "__main__":
    main()
