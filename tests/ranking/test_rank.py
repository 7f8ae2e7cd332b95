"""A pass ranked while it streams and the same pass ranked from a store give the same rankings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.passes import VOCABULARY, PassCase, RecordedPass, make_case, run_processes, small_chunks
from tests.support.rankings import slow_ranking
from tests.support.tiny_models import NUM_CLASSES, fold_classifiers
from tests.support.tiny_shards import TinyVideo, write_shards
from yt8m.dataset.frames import FrameReader
from yt8m.dataset.indexing import index_folder
from yt8m.models.classifier import ContextAgnosticClassifier
from yt8m.models.config import ContextAgnosticClassifierConfig, DBoFConfig, MixtureConfig
from yt8m.prediction.passes import PredictionPass
from yt8m.prediction.predict import segments_of
from yt8m.prediction.store import StoreIndex
from yt8m.ranking.ensemble import MergeConfig, Merger
from yt8m.ranking.rank import RankingSpec, random_probabilities, rank_segments
from yt8m.ranking.topk import Ranking
from yt8m.scoring.map_at_k import average_precision

SPECS = [
    RankingSpec("random", "random", None),
    RankingSpec("bare", "agnostic", Merger(MergeConfig(), ["bare"])),
    RankingSpec("ensemble", "ensemble", Merger(MergeConfig(weights={"aware": 0.7}), ["bare", "aware"])),
]


@pytest.fixture(scope="module", autouse=True)
def _small_chunks() -> Iterator[None]:
    with small_chunks():
        yield


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> PassCase:
    return make_case(tmp_path_factory.mktemp("shards"))


def index_of(work: RecordedPass) -> StoreIndex:
    catalog = work.reader.catalog.digest
    return StoreIndex.of(work.models, work.segments, VOCABULARY.digest, catalog, (0,), "32-true")


def keys(rankings: list[Ranking] | None) -> list[list[list[int]]]:
    assert rankings is not None
    return [[of_class.tolist() for of_class in ranking.keys] for ranking in rankings]


@pytest.mark.parametrize("k", [1, 5, 10_000])
def test_streamed_and_stored_probabilities_give_the_same_rankings(case: PassCase, tmp_path: Path, k: int) -> None:
    work = case.work()
    streamed = keys(rank_segments(work, SPECS, k, tmp_path / "partial", "fingerprint", seed=3))
    store = (tmp_path / "store", index_of(work))
    assert keys(rank_segments(case.work(), SPECS, k, tmp_path / "other", "fingerprint", 3, store)) == streamed
    assert not (tmp_path / "other").exists()
    for ranking in streamed:
        assert [len(of_class) for of_class in ranking] == [min(k, len(work.segments))] * NUM_CLASSES


@pytest.mark.parametrize("is_stored", [False, True])
def test_the_first_process_returns_the_rankings(case: PassCase, tmp_path: Path, is_stored: bool) -> None:
    work = case.work()
    expected = keys(rank_segments(work, SPECS, 9, tmp_path / "one", "fingerprint"))
    store = (tmp_path / "store", index_of(work)) if is_stored else None
    found = run_processes(
        2,
        lambda processes: rank_segments(case.work(processes), SPECS, 9, tmp_path / "two", "fingerprint", store=store),
    )
    assert keys(found[0]) == expected
    assert found[1] is None


def test_the_random_ranking_depends_only_on_the_seed(case: PassCase, tmp_path: Path) -> None:
    work = case.work()
    found = []
    for seed in (0, 1):
        rankings = rank_segments(work, SPECS[:1], 9, tmp_path / str(seed), "fingerprint", seed)
        assert rankings is not None
        probabilities = random_probabilities(np.arange(len(work.segments)), NUM_CLASSES, seed)
        expected = slow_ranking(work.segments, probabilities, 9)
        assert [rankings[0].positions(c).tolist() for c in range(NUM_CLASSES)] == expected
        found.append(expected)
    assert found[0] != found[1]


# --- Test-time shifts ------------------------------------------------------------------------------------------------


def linear_model() -> ContextAgnosticClassifier:
    """A model whose logit is linear in the mean of one feature over the frames of a window."""
    config = ContextAgnosticClassifierConfig(
        encoder=DBoFConfig(hidden_size=1, output_size=1, frame_se_reduction=0, video_se_reduction=0),
        mixture=MixtureConfig(num_experts=1),
        margin_frames=0,
    )
    model = ContextAgnosticClassifier(config, 1)
    state = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    for name in state:
        if name.endswith(("running_var", "norm.weight")):
            state[name] += 1
    state["encoder.frame_projection.weight"][0, 0] = 1
    state["encoder.frame_projection.bias"] += 3  # so that ReLU is linear
    state["encoder.video_projection.weight"][0, 1] = 1  # the mean, not the maximum
    state["mixture.experts.weight"] += 8
    state["mixture.experts.bias"] -= 24
    state["mixture.gate.bias"][0] = 20
    model.load_state_dict(state)
    return model.eval()


def test_shifts_improve_the_ranking_if_frames_are_noisy_and_scenes_long(tmp_path: Path) -> None:
    """Three windows contain three times as many frames of a scene of one minute as one window."""
    generator = np.random.default_rng(0)
    videos, truth = [], []
    for number in range(40):
        is_present = np.repeat(generator.random(4) < 0.3, 60)
        frames = np.zeros((240, 1152), np.uint8)
        frames[:, 0] = np.clip(128 + 20 * is_present + 50 * generator.normal(size=240), 0, 255).astype(np.uint8)
        videos.append(TinyVideo(f"v{number:03d}", frames))
        truth.append(is_present)
    write_shards(tmp_path, videos)
    reader = FrameReader(index_folder(tmp_path))
    segments = segments_of(reader)
    positives = np.array(
        [truth[row][start] for row, start in zip(segments.rows, segments.start_seconds, strict=True)], np.bool_
    )
    models = fold_classifiers({"linear": linear_model()})
    specs = [RankingSpec("linear", "agnostic", Merger(MergeConfig(), ["linear"]))]

    def score(shifts: tuple[int, ...], folder: str) -> float:
        work = PredictionPass(reader, segments, models, shifts)
        rankings = rank_segments(work, specs, len(segments), tmp_path / folder, "fingerprint")
        assert rankings is not None
        return average_precision(positives[rankings[0].positions(0)], int(positives.sum()))

    without = score((0,), "without")
    assert without > 1.5 * positives.mean()
    assert score((-5, 0, 5), "with") > without + 0.1
