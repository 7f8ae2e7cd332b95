"""What the 2019 implementation does differently, put back one by one: MAP on the test videos, several seeds each.

    python benchmarks/ablation.py                                       # on invented videos
    python benchmarks/ablation.py --data build/spliced --workers 2      # on a dataset made by `yt8m splice`
    python benchmarks/ablation.py --only dbof/bytes/0                   # one run
    python benchmarks/ablation.py --report                              # the table of what is finished

A small DBoF and a small NeXtVLAD are pre-trained on whole videos (at most 150 frames from all over each) and fine-tuned
as agnostic segment models by `yt8m run`'s own code: once as it is, once with each quirk of 2019 put back, once with all of
them. A quirk is a setting of the package where there is one; the others are the functions and the class marked "of 2019"
below, which stand in for the package's own in the process of that run. Seeds are paired: with the same seed, all runs
start from the same weights and see the same videos in the same order. Each run is a process of one thread. A run that is
finished is not done again and one that was killed goes on, so the same command can be given as often as one likes.
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

from yt8m.dataset.batches import ALONE, Allocate, FrameChoice, Share, VideoBatch, VideoBatches
from yt8m.dataset.frames import FrameReader
from yt8m.files import written_atomically
from yt8m.models import dbof
from yt8m.models.layers.pooling import gated_max_mean_pool
from yt8m.ranking.topk import MAX_SEGMENTS
from yt8m.runs.recipe import read_recipe
from yt8m.runs.run import Run
from yt8m.runs.stages import read_record
from yt8m.scoring.report import SCORES_FILE, read_scores
from yt8m.training import optimization, tasks
from yt8m.training.losses import MINED_WEIGHT, POSITIVE_WEIGHT, mined_loss, rating_loss
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
"""The last model is taken, not the best: what is compared must not depend on luck in choosing. Decay is such that the sum
over all steps of rate x decay, which says how far a weight shrinks, is about that of 2019: 1.2 here and 1.5 there (DBoF)
in pre-training, 0.015 and 0.016 in fine-tuning. With decay as it was then, so few steps would not show what it does."""

ENCODERS = {
    "dbof": "{type: dbof, hidden_size: 256, output_size: 256, max_frames: 150}",
    "nextvlad": "{type: nextvlad, num_clusters: 8, num_groups: 8, expansion: 1, output_size: 256, max_frames: 150}",
}
PRETRAINED, PREDICTED = "pretrain/video", "predict"
RECIPE_FILE = "ablation.yaml"
FEWER_FRAMES_OF_2019 = 10
NEGATIVE_WEIGHT_OF_2019 = 0.5


# ------------------------------------------------------------------------------------------- what 2019 did instead


def sampled_as_of_2019(batch: VideoBatch, max_frames: int, rng: np.random.Generator) -> VideoBatch:
    """Sample a padded batch as 2019 did: places of the padded time axis, the same ones in every video, with replacement.

    Places beyond a video's end are padding, so a short video loses frames to the length of its neighbours.

    Args:
        batch: All frames of each video that the crop leaves.
        max_frames: L_max; batches that are no longer stay as they are, others keep L_max - 10 places.
        rng: Decides the places.
    """
    num_frames = batch.rgb.shape[1]
    if num_frames <= max_frames:
        return batch
    # Sorted, so that a video's own frames come first; neither encoder looks at the order.
    places = torch.from_numpy(np.sort(rng.choice(num_frames, max_frames - FEWER_FRAMES_OF_2019)))
    lengths = (places < batch.lengths.unsqueeze(1)).sum(1).clamp(min=1)
    return VideoBatch(batch.rgb[:, places], batch.audio[:, places], lengths, batch.labels)


class VideoBatchesOf2019(VideoBatches):
    """Batches of videos that are sampled together."""

    def __init__(
        self,
        reader: FrameReader,
        vocabulary: Vocabulary,
        choice: FrameChoice,
        batch_size: int,
        seed: int,
        share: Share = ALONE,
    ) -> None:
        longest = int(reader.catalog.num_frames.max())
        super().__init__(reader, vocabulary, FrameChoice(longest), batch_size, seed, share)
        self.sampled_frames = choice.max_frames

    def batch(self, step: int, allocate: Allocate = np.empty) -> VideoBatch:
        """This process's part of the batch of a step."""
        return sampled_as_of_2019(
            super().batch(step, allocate), self.sampled_frames, np.random.default_rng([self.seed, step])
        )


def padded_mean_pool_of_2019(features: Tensor, gate_logits: Tensor | None, mask: Tensor) -> Tensor:
    """Divide the sum over a video's frames by the padded length of its batch, where ours divides by the video's."""
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
    """Weigh negative ratings by 0.5: `-(1.5 y log p + 0.5 (1 - y) log(1 - p))`; the mined negatives as ever."""
    relative = positive_weight / NEGATIVE_WEIGHT_OF_2019
    rated = NEGATIVE_WEIGHT_OF_2019 * rating_loss(logits, class_indices, ratings, relative)
    return rated + mined_weight * mined_loss(logits, negatives)


def decaying_parameters_of_2019(module: nn.Module) -> dict[str, bool]:
    """Let every parameter decay, those of norm layers, biases and centroids too."""
    return dict.fromkeys(decaying_parameters(module), True)


@dataclass(frozen=True)
class Quirk:
    """Something that 2019 did differently.

    Args:
        title: What the table calls it.
        settings: Settings of the recipe that put it back.
        patches: Functions or classes that do: the module that uses them, their name in it, what stands in for them.
        encoders: Encoders that it means something to.
        in_pretraining: Whether pre-training is different too.
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
        "negative ratings weigh 0.5",
        patches=((tasks, "segment_loss", segment_loss_of_2019),),
        in_pretraining=False,
    ),
    "logits": Quirk("mixture of logits", settings=(f"{MIXTURE}.average=logits",)),
    "decay": Quirk(
        "decay of norm weights, biases and centroids",
        patches=((optimization, "decaying_parameters", decaying_parameters_of_2019),),
    ),
}
OURS, ALL = "ours", "all"


def quirks_of(encoder: str, variant: str) -> list[Quirk]:
    """Quirks that a variant puts back."""
    chosen = QUIRKS.values() if variant == ALL else [QUIRKS[variant]] if variant != OURS else []
    return [quirk for quirk in chosen if encoder in quirk.encoders]


def variants_of(encoder: str) -> list[str]:
    """Variants of an encoder, ours first."""
    return [OURS, *(name for name, quirk in QUIRKS.items() if encoder in quirk.encoders), ALL]


def title_of(variant: str) -> str:
    """What the table calls a variant."""
    return {OURS: "ours", ALL: "all of these"}.get(variant) or QUIRKS[variant].title


@contextmanager
def put_back(quirks: Sequence[Quirk]) -> Iterator[None]:
    """Have the package do as quirks say, as far as they are no settings, until the block ends."""
    with ExitStack() as stack:
        for quirk in quirks:
            for module, name, replacement in quirk.patches:
                stack.enter_context(mock.patch.object(module, name, replacement))
        yield


# ------------------------------------------------------------------------------------------------------------ runs


@dataclass(frozen=True)
class Plan:
    """Where data and runs are, and how long training is.

    Args:
        data: The dataset.
        out: Receives a folder a run.
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
        """The recipe of an encoder's runs, but for the settings of quirks."""
        text = RECIPE.replace("SEED", str(seed)).replace("ENCODER", ENCODERS[encoder])
        text = text.replace("STEPS", str(self.steps)).replace("FINETUNING", str(self.finetuning))
        return f"# on {self.data.resolve()}{text}"


def train(plan: Plan, encoder: str, variant: str, seed: int) -> None:
    """Pre-train, fine-tune, predict and score, or go on where that was stopped."""
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
    """Take over the finished pre-training of another run, if there is one."""
    record = read_record(source / PRETRAINED)
    if record and record.status == "finished" and not (folder / PRETRAINED).exists():
        with written_atomically(folder / PRETRAINED) as temporary:
            shutil.copytree(source / PRETRAINED, temporary)


def in_own_process(plan: Plan, run: tuple[str, str, int]) -> str:
    """Do a run in a process of its own, with one thread, unless it is finished.

    Returns:
        What went wrong; nothing where all went well.
    """
    if scores(plan, *run) is not None:
        return ""
    name = "/".join(map(str, run))
    print(f"{name}: begins", file=sys.stderr, flush=True)
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
    """What a run ended with, each from 0 to 1.

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
    """Scores of a run; None where it is not finished, or was another plan's."""
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
    """One metric of one encoder's runs, as Markdown.

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
    """All tables of what is finished, as Markdown."""
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
    """Make a dataset of invented videos, unless it is there."""
    if not folder.exists():
        with written_atomically(folder) as temporary:
            subprocess.run([sys.executable, "-m", "yt8m", "splice", str(temporary)], check=True)
    return folder


def main() -> None:
    """Train what is not trained yet, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a dataset folder; invented videos where left out")
    parser.add_argument("--out", type=Path, default=Path("build/ablation"), help="where runs leave their folders")
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=list(ENCODERS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400, help="of pre-training")
    parser.add_argument("--finetuning", type=int, default=300, help="steps of fine-tuning")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time, a core each")
    parser.add_argument(
        "--only", metavar="ENCODER/VARIANT/SEED", type=run_named, help="do this run alone, in this process"
    )
    parser.add_argument("--report", action="store_true", help="print the tables of what is finished")
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
