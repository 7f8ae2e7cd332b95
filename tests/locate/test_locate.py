"""Probabilities of one video equal those of single segments, and are ranked as in the submission."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.tiny_run import FinishedRun
from tests.support.tiny_shards import random_videos, write_shards
from yt8m.dataset.frames import FrameReader
from yt8m.dataset.indexing import load_or_index
from yt8m.errors import UsageError
from yt8m.locate import locate
from yt8m.locate.locate import (
    find_video,
    load_ensemble,
    load_ensemble_of_run,
    read_shard,
    segment_probabilities,
    timelines,
)
from yt8m.models.classifier import ContextAwareClassifier
from yt8m.models.saved import load_model
from yt8m.submission.format import read_submission
from yt8m.vocabulary import Vocabulary


def of_one_segment(folder: Path, frames: np.ndarray, start: int) -> np.ndarray:
    """A saved model's probabilities for one segment of one video, computed without batches."""
    model = load_model(folder)
    window = torch.from_numpy(frames[max(0, start - 3) : start + 8])
    inputs = [window[None], torch.tensor([len(window)])]
    with torch.inference_mode():
        if isinstance(model, ContextAwareClassifier):
            # At most 20 frames: the middle frames of 20 equal parts, without the first 30 frames and the last 10.
            cropped = frames[30:-10] if len(frames) > 40 else frames
            middles = [int((k + 0.5) * len(cropped) / 20) for k in range(20)] if len(cropped) > 20 else slice(None)
            seen = torch.from_numpy(cropped[middles])
            inputs.append(model.encode_context(seen[None], torch.tensor([len(seen)])))
        return torch.sigmoid(model(*inputs))[0].numpy()


@pytest.mark.parametrize("num_frames", [1, 4, 12, 41, 58, 90])
def test_an_ensemble_is_the_mean_of_its_models_on_single_segments(
    finished_run: FinishedRun, tiny_vocabulary: Vocabulary, tmp_path: Path, num_frames: int
) -> None:
    (video,) = random_videos(1, num_frames=(num_frames, num_frames), seed=num_frames)
    (path,) = write_shards(tmp_path, [video], num_shards=1)
    folders = [finished_run.out / "finetune" / name / "model" for name in ("aware", "bare")]
    starts, found = segment_probabilities(read_shard(path), load_ensemble(folders, tiny_vocabulary, "cpu"), 0)
    assert starts.tolist() == list(range(0, num_frames, 5))
    expected = [[of_one_segment(folder, video.frames, start) for folder in folders] for start in starts.tolist()]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.mean(expected, axis=1), rtol=4e-4)
    if num_frames > 12:
        assert np.ptp(found, axis=0).min() > 1e-5


def test_a_video_is_ranked_as_in_the_submission(
    finished_run: FinishedRun, tiny_dataset: Path, tiny_vocabulary: Vocabulary
) -> None:
    reader = FrameReader(load_or_index(tiny_dataset / "segment/test"))
    row = 4
    video_id = reader.catalog.id_of(row)
    ensemble = load_ensemble_of_run(finished_run.out, tiny_vocabulary, "cpu")
    starts, found = segment_probabilities(reader, ensemble, row)
    listed = dict(read_submission(finished_run.out / "submission.csv"))
    for column, label_id in enumerate(tiny_vocabulary.label_ids.tolist()):
        ranked = [int(s.split(b":")[1]) for s in listed[label_id] if s.split(b":")[0] == video_id.encode()]
        assert sorted(ranked) == starts[6:-2].tolist()
        falling = found[np.array(ranked) // 5, column]
        assert (np.diff(falling) <= 1e-6).all()


def test_the_ensemble_of_a_run_has_the_weights_of_its_recipe(
    finished_run: FinishedRun, tiny_dataset: Path, tiny_vocabulary: Vocabulary, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run.out / "finetune", run / "finetune")
    recipe = (finished_run.out / "recipe.yaml").read_text()
    reader = FrameReader(load_or_index(tiny_dataset / "segment/test"))
    alone = {
        name: segment_probabilities(
            reader, load_ensemble([run / "finetune" / name / "model"], tiny_vocabulary, "cpu"), 0
        )[1]
        for name in ("aware", "bare")
    }
    for change, expected in (
        ("weights: {aware: 3}", (3 * alone["aware"] + alone["bare"]) / 4),
        ("weights: {aware: 0}", alone["bare"]),
    ):
        assert "weights: {}" in recipe
        (run / "recipe.yaml").write_text(recipe.replace("weights: {}", change))
        _, found = segment_probabilities(reader, load_ensemble_of_run(run, tiny_vocabulary, "cpu"), 0)
        np.testing.assert_allclose(found, expected, rtol=4e-4)
    (run / "recipe.yaml").write_text(recipe.replace("models: []", "models: [aware]"))
    _, found = segment_probabilities(reader, load_ensemble_of_run(run, tiny_vocabulary, "cpu"), 0)
    np.testing.assert_array_equal(found, alone["aware"])


def test_timelines_have_the_names_and_ids_of_their_classes(
    finished_run: FinishedRun, tiny_dataset: Path, tiny_vocabulary: Vocabulary
) -> None:
    reader = FrameReader(load_or_index(tiny_dataset / "segment/test"))
    nameless = Vocabulary(tiny_vocabulary.label_ids, ("", *tiny_vocabulary.names[1:]))
    ensemble = load_ensemble_of_run(finished_run.out, tiny_vocabulary, "cpu")
    first, second = timelines(reader, ensemble, [5, 2], nameless, top=12, threshold=0.3)
    assert (first.video_id, second.video_id) == (reader.catalog.id_of(5), reader.catalog.id_of(2))
    assert first.num_frames == reader.num_frames(5)
    assert first.threshold == 0.3
    expected = {str(tiny_vocabulary.label_ids[0]), *tiny_vocabulary.names[1:]}
    assert set(first.names) == expected
    _, probabilities = segment_probabilities(reader, ensemble, 5)
    for name, label_id, column in zip(first.names, first.label_ids, first.probabilities.T, strict=True):
        place = nameless.names.index(name if name in nameless.names else "")
        assert label_id == tiny_vocabulary.label_ids[place]
        np.testing.assert_array_equal(column, probabilities[:, place])
    json.dumps(first.as_dict())


def test_the_concepts_of_a_timeline_are_those_with_the_highest_peaks(
    finished_run: FinishedRun, tiny_dataset: Path, tiny_vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = FrameReader(load_or_index(tiny_dataset / "segment/test"))
    ensemble = load_ensemble_of_run(finished_run.out, tiny_vocabulary, "cpu")
    probabilities = np.array([[0.1, 0.9, 0.3, 0.5], [0.2, 0.0, 0.3, 0.9]], np.float32)
    starts = np.array([0, 5], np.int32)
    monkeypatch.setattr(locate, "segment_probabilities", lambda *_: (starts, probabilities))
    (found,) = timelines(reader, ensemble, [0], tiny_vocabulary, top=3)
    assert found.label_ids == tuple(tiny_vocabulary.label_ids[[1, 3, 2]].tolist())
    np.testing.assert_array_equal(found.probabilities, probabilities[:, [1, 3, 2]])
    (found,) = timelines(reader, ensemble, [0], tiny_vocabulary)
    assert found.label_ids == tuple(tiny_vocabulary.label_ids[[1, 3, 2, 0]].tolist())


def test_a_video_is_found_by_its_id(tmp_path: Path) -> None:
    write_shards(tmp_path, random_videos(30, num_frames=(5, 9)))
    catalog = load_or_index(tmp_path)
    assert [find_video(catalog, f"{row:04d}") for row in (0, 17, 29)] == [0, 17, 29]
    with pytest.raises(UsageError, match=r"there is no video '0017x' among its 30 \(did you mean '0017'\?\)\."):
        find_video(catalog, "0017x")
