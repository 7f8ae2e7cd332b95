"""Each variant of the ablation restores its behaviour of 2019 and nothing else."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support.tiny_models import randomize
from yt8m.dataset.batches import FrameSampling, VideoBatch, VideoBatches, join_features
from yt8m.dataset.frames import FrameReader
from yt8m.dataset.indexing import load_or_index
from yt8m.dataset.sampling import crop
from yt8m.models.classifier import VideoClassifier
from yt8m.models.config import DBoFConfig, NeXtVLADConfig
from yt8m.models.encoders import build_encoder
from yt8m.models.layers.batch_norm import MaskedBatchNorm
from yt8m.models.layers.pooling import gated_max_mean_pool
from yt8m.runs.recipe import AgnosticModelConfig, Recipe, read_recipe
from yt8m.training import tasks
from yt8m.training.config import OptimizationConfig
from yt8m.training.optimization import make_optimizer
from yt8m.vocabulary import Vocabulary

LENGTHS = torch.tensor([9, 4, 1])


@pytest.fixture(scope="module")
def ablation() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        return importlib.import_module("ablation")


def numbered_batch(lengths: list[int]) -> VideoBatch:
    """Videos in which all values of a frame are its number, counted from 1; padding is zero."""
    numbers = torch.arange(1, max(lengths) + 1, dtype=torch.uint8).repeat(len(lengths), 1)
    numbers[numbers > torch.tensor(lengths).unsqueeze(1)] = 0
    rows = numbers.unsqueeze(-1)
    return VideoBatch(rows.expand(-1, -1, 1034), rows.expand(-1, -1, 137), torch.tensor(lengths), torch.ones(1))


def test_sampling_repeats_frames_and_uses_the_same_positions_in_all_videos(ablation: ModuleType) -> None:
    batch = numbered_batch([200, 90, 200])
    sampled = ablation.sampled_as_of_2019(batch, 150, np.random.default_rng(0))
    numbers = join_features(sampled)[..., 0].int()
    assert numbers.shape == (3, 140)
    assert (numbers[0].diff() >= 0).all()
    assert (numbers[0].diff() == 0).sum() > 20  # 140 draws with replacement from 200
    assert torch.equal(numbers[0], numbers[2])
    inside = numbers[0][numbers[0] <= 90]
    assert sampled.lengths.tolist() == [140, len(inside), 140]
    assert torch.equal(numbers[1, : len(inside)], inside)
    assert not numbers[1, len(inside) :].any()


def test_sampling_does_not_change_batches_without_surplus_frames(ablation: ModuleType) -> None:
    batch = numbered_batch([150, 90])
    assert ablation.sampled_as_of_2019(batch, 150, np.random.default_rng(0)) is batch


def test_sampling_uses_the_same_videos_and_their_cropped_frames(
    ablation: ModuleType, tiny_dataset: Path, tiny_vocabulary: Vocabulary
) -> None:
    reader = FrameReader(load_or_index(tiny_dataset / "video/train"))
    ours = VideoBatches(reader, tiny_vocabulary, FrameSampling(40), 8, seed=3)
    theirs = ablation.VideoBatchesOf2019(reader, tiny_vocabulary, FrameSampling(40), 8, seed=3)
    assert torch.equal(theirs[5].labels, ours[5].labels)
    assert torch.equal(join_features(theirs[5]), join_features(theirs[5]))
    assert not torch.equal(join_features(theirs[5]), join_features(theirs[6]))
    batch = theirs[5]
    assert join_features(batch).shape[1] == 30
    rows = ours.rows[ours._items(ours._positions(5))]
    for row, frames, length in zip(rows.tolist(), join_features(batch).numpy(), batch.lengths.tolist(), strict=True):
        cropped = reader.read(row, *crop(reader.num_frames(row)))
        assert {frame.tobytes() for frame in frames[:length]} <= {frame.tobytes() for frame in cropped}


def test_padded_mean_is_the_sum_over_the_padded_length(ablation: ModuleType) -> None:
    torch.manual_seed(0)
    features, gates = torch.randn(3, 9, 5), torch.randn(3, 9, 5)
    mask = torch.arange(9) < LENGTHS.unsqueeze(1)
    pooled = ablation.padded_mean_pool_of_2019(features, gates, mask)
    gated = features * torch.sigmoid(gates) * mask.unsqueeze(-1)
    torch.testing.assert_close(pooled[:, 5:], gated.sum(1) / 9)
    assert torch.equal(pooled[:, :5], gated_max_mean_pool(features, gates, mask)[:, :5])


def test_with_the_padded_mean_a_video_depends_on_its_batch(ablation: ModuleType) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(DBoFConfig(hidden_size=16, output_size=8)).eval()
    randomize(encoder)
    frames = torch.randint(0, 256, (3, 9, 1152), dtype=torch.uint8)

    def alone_and_together() -> tuple[Tensor, Tensor]:
        return encoder(frames[1:2, :4], LENGTHS[1:2]), encoder(frames, LENGTHS)[1:2]

    torch.testing.assert_close(*alone_and_together())
    with ablation.put_back([ablation.QUIRKS["padded-mean"]]):
        alone, together = alone_and_together()
    assert (alone - together).abs().max() > 1e-3
    torch.testing.assert_close(*alone_and_together())


def test_negative_ratings_have_a_weight_of_one_half(ablation: ModuleType) -> None:
    torch.manual_seed(0)
    logits, negatives = torch.randn(4, 6), torch.rand(4, 6) < 0.5
    classes, ratings = torch.tensor([0, 3, 5, 1]), torch.tensor([1.0, 0.0, 0.0, 1.0])
    loss = ablation.segment_loss_of_2019(logits, classes, ratings, negatives, 1.5, 0.5)
    rated = logits[torch.arange(4), classes]
    weights = ratings + 0.5
    each = nn.functional.binary_cross_entropy_with_logits(rated, ratings, weight=weights)
    mined = nn.functional.softplus(logits) * negatives
    expected = each + 0.5 * (mined.sum(1) / negatives.sum(1).clamp(min=1)).mean()
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("encoder", [DBoFConfig(hidden_size=16, output_size=8), NeXtVLADConfig(output_size=8)])
def test_weight_decay_of_2019_applies_to_every_parameter(
    ablation: ModuleType, encoder: DBoFConfig | NeXtVLADConfig
) -> None:
    model = build_encoder(encoder)
    config = OptimizationConfig(steps=1, peak_lr=1e-3, weight_decay=0.3)
    norm = next(
        module for module in model.modules() if isinstance(module, MaskedBatchNorm) and module.weight is not None
    )
    ours = make_optimizer(model, config)
    with ablation.put_back([ablation.QUIRKS["decay"]]):
        theirs = make_optimizer(model, config)
    assert {group["weight_decay"] for group in ours.param_groups} == {0.0, 0.3}
    assert {group["weight_decay"] for group in theirs.param_groups} == {0.3}
    decaying = {id(parameter) for group in theirs.param_groups for parameter in group["params"]}
    assert decaying == {id(parameter) for parameter in model.parameters()}
    assert id(norm.weight) in decaying


def recipe_of(ablation: ModuleType, tmp_path: Path, encoder: str, variant: str) -> Recipe:
    plan = ablation.Plan(tmp_path, tmp_path, 2, 2)
    path = tmp_path / "recipe.yaml"
    path.write_text(plan.recipe(encoder, 7))
    settings = [setting for quirk in ablation.quirks_of(encoder, variant) for setting in quirk.settings]
    return read_recipe(path, settings)


@pytest.mark.parametrize("encoder", ["dbof", "nextvlad"])
@pytest.mark.parametrize(
    ("variant", "values", "average"),
    [
        ("ours", "dequantized", "probabilities"),
        ("bytes", "bytes", "probabilities"),
        ("logits", "dequantized", "logits"),
        ("all", "bytes", "logits"),
    ],
)
def test_quirks_that_are_settings_change_the_recipe(
    ablation: ModuleType, tmp_path: Path, encoder: str, variant: str, values: str, average: str
) -> None:
    recipe = recipe_of(ablation, tmp_path, encoder, variant)
    classifier = recipe.base_models["video"].classifier
    assert (classifier.encoder.type, classifier.encoder.input, classifier.mixture.average) == (encoder, values, average)
    assert recipe.seed == 7
    assert isinstance(recipe.segment_models["agnostic"], AgnosticModelConfig)


def test_decay_shrinks_weights_about_as_much_as_in_2019(ablation: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(ablation.Plan(tmp_path, tmp_path, 400, 300).recipe("dbof", 0))
    recipe = read_recipe(path)
    pretraining, finetuning = recipe.base_models["video"].training, recipe.segment_models["agnostic"].training
    for training, of_2019 in (
        (pretraining, 3e-4 * 0.1 * 100_000 / 2),
        (finetuning, 2e-4 * 0.02 * 8_000 / 2),
    ):
        shrinking = training.peak_lr * training.weight_decay * training.steps / 2
        assert shrinking == pytest.approx(of_2019, rel=0.25)


def test_initial_weights_do_not_depend_on_the_variant(ablation: ModuleType, tmp_path: Path) -> None:
    def weights(variant: str) -> dict[str, Tensor]:
        torch.manual_seed(7)
        config = recipe_of(ablation, tmp_path, "dbof", variant).base_models["video"].classifier
        return VideoClassifier(config, 5).state_dict()

    ours = weights("ours")
    assert all(torch.equal(tensor, ours[name]) for name, tensor in weights("all").items())


def test_the_package_is_unchanged_after_a_variant(ablation: ModuleType) -> None:
    before = tasks.VideoBatches, tasks.segment_loss
    with ablation.put_back(ablation.quirks_of("dbof", "all")):
        assert tasks.VideoBatches is ablation.VideoBatchesOf2019
        assert tasks.segment_loss is ablation.segment_loss_of_2019
    assert (tasks.VideoBatches, tasks.segment_loss) == before


def test_the_variant_all_contains_every_quirk_of_the_encoder(ablation: ModuleType) -> None:
    assert ablation.quirks_of("dbof", "all") == list(ablation.QUIRKS.values())
    assert ablation.variants_of("nextvlad") == ["ours", "sampling", "bytes", "negatives", "logits", "decay", "all"]


def test_unknown_runs_are_refused(ablation: ModuleType) -> None:
    assert ablation.run_named("dbof/padded-mean/2") == ("dbof", "padded-mean", 2)
    for name in ("dbof", "dbof/ours", "dbof/ours/x", "nextvlad/padded-mean/0", "gru/ours/0"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected ENCODER/VARIANT/SEED"):
            ablation.run_named(name)


def test_differences_are_paired_by_seed(ablation: ModuleType) -> None:
    assert ablation.difference([0.01, 0.03, 0.02]) == "+0.0200 ± 0.0058"
    found = {
        "ours": {0: ablation.Scores(0.5, 0.1, 0.2), 1: ablation.Scores(0.7, 0.3, 0.2)},
        "bytes": {0: ablation.Scores(0.4, 0.1, 0.2), 1: ablation.Scores(0.5, 0.3, 0.2)},
        "logits": {1: ablation.Scores(0.6, 0.3, 0.2)},
        "decay": {},
    }
    assert ablation.table(found, "map_at_k").splitlines()[2:] == [
        "| ours | 0.6000 | 0.5000, 0.7000 |  |",
        "| raw bytes as input | 0.4500 | 0.4000, 0.5000 | -0.1500 ± 0.0500 |",
        "| mixture of experts averages logits | 0.6000 | 0.6000 | -0.1000 |",
    ]


@pytest.mark.slow
def test_runs_share_equal_pretraining_and_are_not_repeated(
    ablation: ModuleType, tiny_dataset: Path, tmp_path: Path
) -> None:
    plan = ablation.Plan(tiny_dataset, tmp_path, 2, 2)
    for variant in ("ours", "negatives", "all"):
        assert ablation.scores(plan, "dbof", variant, 0) is None
        ablation.train(plan, "dbof", variant, 0)
    ours, negatives, everything = (ablation.scores(plan, "dbof", name, 0) for name in ("ours", "negatives", "all"))
    assert negatives.video_map == ours.video_map
    assert everything.video_map != ours.video_map
    assert ablation.in_own_process(plan, ("dbof", "ours", 0)) == ""
    assert ablation.scores(ablation.Plan(tiny_dataset, tmp_path, 3, 2), "dbof", "ours", 0) is None
    report = ablation.report(plan, ["dbof"], 1)
    assert report.count("| ours |") == 3
