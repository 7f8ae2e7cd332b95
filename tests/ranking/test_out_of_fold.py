"""Counts of held-out ratings against a slow loop, and the calibration of a small ensemble."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.tiny_models import NEXTVLAD, NUM_CLASSES, agnostic, fold_classifiers, slow_logits
from tests.support.tiny_shards import TinyVideo, random_videos, write_shards
from yt8m.dataset.frames import FrameReader
from yt8m.dataset.indexing import index_folder
from yt8m.prediction.predict import segments_of
from yt8m.ranking.calibration import NUM_BINS, bins_of, ensemble_digest
from yt8m.ranking.ensemble import MergeConfig, Merger
from yt8m.ranking.out_of_fold import calibrate, rated_counts, some_videos
from yt8m.vocabulary import Vocabulary

LABEL_IDS = [7, 3, 11, 5, 19]
VOCABULARY = Vocabulary(np.array(LABEL_IDS, np.int64), tuple(map(str, LABEL_IDS)))
MODELS = {"a": agnostic(seed=1), "b": agnostic(NEXTVLAD, seed=2)}


def videos() -> list[TinyVideo]:
    rated = random_videos(8, num_frames=(60, 95), label_ids=[*LABEL_IDS, 2], ratings_per_video=7, seed=4)
    unrated = random_videos(2, num_frames=(60, 95), label_ids=LABEL_IDS, seed=5, id_prefix="n")
    [short] = random_videos(1, num_frames=(20, 20), label_ids=[7], seed=6, id_prefix="s")
    return [*rated, *unrated, TinyVideo(short.id, short.frames, (7,), ((7, 5, 1.0), (3, 5, 0.0)))]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> FrameReader:
    folder = tmp_path_factory.mktemp("rated")
    write_shards(folder, videos(), num_shards=4)
    return FrameReader(index_folder(folder))


def test_ratings_and_mined_negatives_stand_for_all_segments_of_a_video(reader: FrameReader) -> None:
    held_out = np.array([True, True, False, True, True, False, True, True, True, False, True])
    merger = Merger(MergeConfig(weights={"a": 3}), MODELS)
    found = rated_counts(reader, VOCABULARY, fold_classifiers(MODELS), merger, held_out)
    positives, totals = np.zeros(NUM_BINS), np.zeros(NUM_BINS)
    num_ratings = 0
    for video, is_held_out in zip(videos(), held_out.tolist(), strict=True):
        known = [rating for rating in video.ratings if rating[0] in LABEL_IDS]
        if not (is_held_out and known):
            continue
        num_ratings += len(known)
        possible = {*video.labels, *(label for label, *_ in known)} & {*LABEL_IDS}
        evaluated = max(len(range(30, len(video.frames) - 10, 5)), 1)
        starts = {start for _, start, _ in known}
        for start in starts:
            p = [torch.sigmoid(slow_logits(m, video.frames, start, 0).double()).numpy() for m in MODELS.values()]
            bins = bins_of(((3 * p[0] + p[1]) / 4).astype(np.float32))
            for column, label in enumerate(LABEL_IDS):
                if label not in possible:
                    totals[bins[column]] += evaluated / len(starts)
                for rated_label, rated_start, value in known:
                    if (rated_label, rated_start) == (label, start):
                        totals[bins[column]] += evaluated * len(possible) / len(known)
                        positives[bins[column]] += value * evaluated * len(possible) / len(known)
    assert found.num_ratings == num_ratings > 20
    assert found.positives.sum() == pytest.approx(positives.sum())
    assert found.totals.sum() == pytest.approx(totals.sum())
    # Codes round scores, so a few are in the bin beside.
    assert np.abs(np.cumsum(found.totals - totals)).max() < 0.1 * totals.sum()
    assert (found.totals > 0).sum() > 30


def test_an_ensemble_is_calibrated_with_its_digest(reader: FrameReader, tmp_path: Path) -> None:
    write_shards(tmp_path, random_videos(5, num_frames=(60, 95), seed=9), num_shards=1)
    others = FrameReader(index_folder(tmp_path))
    models = fold_classifiers(MODELS)
    folds = np.arange(len(reader.catalog)) % 3
    merger = Merger(MergeConfig(), MODELS)

    def calibrated(merger: Merger, **held_out: int) -> object:
        return calibrate(models, merger, held_out, reader, folds, others, segments_of(others), VOCABULARY)

    found = calibrated(merger, a=0, b=1)
    assert found is not None
    assert found == calibrated(merger, a=0, b=1)
    digests = {name: model.digest for name, model in models.items()}
    assert found.of(merger, digests, (0,)) is found
    assert found.ensemble == ensemble_digest(merger, digests, (0,))
    known = [sum(label in LABEL_IDS for label, *_ in video.ratings) for video in videos()]
    assert found.num_ratings == sum(number for place, number in enumerate(known) if place % 3 != 2)
    # A model of weight 0 is not part of the ensemble.
    alone = calibrated(Merger(MergeConfig(weights={"b": 0}), MODELS), a=0, b=1)
    assert alone == calibrated(Merger(MergeConfig(), ["a"]), a=0)
    assert alone.num_ratings < found.num_ratings
    # Ranks are no probabilities.
    assert calibrated(Merger(MergeConfig(method="rank"), MODELS), a=0, b=1) is None


def test_some_videos_are_complete_and_evenly_spaced(reader: FrameReader) -> None:
    segments = segments_of(reader)
    assert len(some_videos(segments, 10**6)) == len(segments)
    some = some_videos(segments, len(segments) // 3)
    rows = np.unique(segments.rows)
    assert np.unique(some.rows).tolist() == rows[::3].tolist()
    assert len(some) == np.isin(segments.rows, rows[::3]).sum()
    assert len(LABEL_IDS) == NUM_CLASSES
