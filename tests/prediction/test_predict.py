"""One pass over all videos equals a slow loop that predicts each segment separately."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.support.codes import MAX_LOGIT_ERROR
from tests.support.tiny_models import (
    DBOF,
    MIXTURE,
    NEXTVLAD,
    NUM_CLASSES,
    SegmentClassifier,
    agnostic,
    aware,
    batch_of_one,
    context_frames,
    fold_classifiers,
    slow_logits,
    trained,
    videos_of,
)
from tests.support.tiny_shards import TinyVideo, write_shards
from yt8m.dataset.frames import FrameReader
from yt8m.dataset.indexing import index_folder
from yt8m.errors import UsageError
from yt8m.inference.classifier import FoldedClassifier
from yt8m.models.classifier import Classifier, ContextAwareClassifier, VideoClassifier
from yt8m.models.config import DBoFConfig, NeXtVLADConfig, VideoClassifierConfig
from yt8m.prediction.predict import batches_of, context_width, predict, segments_of
from yt8m.prediction.quantization import probabilities_of_codes

Codes = dict[tuple[str, int], NDArray[np.uint16]]
Probabilities = dict[tuple[str, int], NDArray[np.float32]]
"""Probabilities of all classes (C,), by video id and start in seconds."""

LENGTHS = (41, 3, 40, 95, 44, 1, 45, 46, 39, 70, 127)
"""Numbers of frames: up to 40, videos have no segment to predict; 41 to 45, one; 46, two."""


@pytest.fixture(scope="module")
def videos() -> list[TinyVideo]:
    return videos_of(LENGTHS)


@pytest.fixture(scope="module")
def reader(videos: list[TinyVideo], tmp_path_factory: pytest.TempPathFactory) -> FrameReader:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, videos, num_shards=3)
    return FrameReader(index_folder(folder))


def slow_predictions(videos: Sequence[TinyVideo], model: SegmentClassifier, shift: int = 0) -> Probabilities:
    """Probabilities of each segment, by one call of the complete model per segment."""
    found = {}
    for video in videos:
        num_frames = len(video.frames)
        # A partial last segment is a segment; the first six and the last two are excluded.
        num_segments = num_frames // 5 + (num_frames % 5 > 0)
        for segment in range(6, num_segments - 2):
            logits = slow_logits(model, video.frames, 5 * segment, shift)
            found[video.id, 5 * segment] = torch.sigmoid(logits).numpy()
    return found


def quick_predictions(
    reader: FrameReader,
    models: dict[str, Classifier],
    segments_per_batch: int = 2048,
    shifts: Sequence[int] = (0,),
) -> dict[str, Codes]:
    """Codes of each segment by (video id, start)."""
    segments = segments_of(reader)
    found: dict[str, Codes] = {name: {} for name in models}
    batches = batches_of([slice(0, len(segments))], segments_per_batch)
    for batch in predict(reader, segments, fold_classifiers(models), batches, shifts):
        for name, codes in batch.codes.items():
            assert codes.dtype == np.uint16
            for position, row in zip(batch.positions.tolist(), codes, strict=True):
                key = (segments.video_ids[segments.rows[position]], int(segments.start_seconds[position]))
                assert key not in found[name]
                found[name][key] = row
    return found


def assert_close(found: Codes, expected: Probabilities) -> None:
    """Equal up to single precision and half a step of the codes."""
    assert list(found) == list(expected)
    exact = np.stack(list(expected.values()))
    differences = np.abs(probabilities_of_codes()[np.stack(list(found.values()))] - exact)
    assert (differences <= 1e-5 + 1.01 * MAX_LOGIT_ERROR * exact * (1 - exact)).all()


def assert_same(found: Codes, expected: Codes) -> None:
    """Bit-identical."""
    assert list(found) == list(expected)
    np.testing.assert_array_equal(np.stack(list(found.values())), np.stack(list(expected.values())))


MODELS = {
    "agnostic-dbof": agnostic(DBOF),
    "agnostic-nextvlad": agnostic(NEXTVLAD, seed=1),
    "aware-nextvlad-dbof": aware(NEXTVLAD, DBOF, seed=2),
    "aware-dbof-nextvlad": aware(DBOF, NEXTVLAD.model_copy(update={"cut_after_linear": True}), seed=3),
    # Windows that extend beyond both ends of a video, and different windows in one pass.
    "bare": agnostic(DBOF, margin=0, seed=4),
    "wide": agnostic(NEXTVLAD, margin=40, seed=5),
    "wide-aware": aware(DBOF, DBOF, margin=33, seed=6),
}


@pytest.fixture(scope="module")
def slow(videos: list[TinyVideo]) -> dict[str, Probabilities]:
    return {name: slow_predictions(videos, model) for name, model in MODELS.items()}


def test_predictions_of_the_test_models_differ_between_segments(slow: dict[str, Probabilities]) -> None:
    for name, of_segments in slow.items():
        probabilities = np.stack(list(of_segments.values()))
        assert probabilities.std(axis=0).min() > 1e-4, name
        assert 0 < probabilities.min() < probabilities.max() < 1


@pytest.mark.parametrize("segments_per_batch", [7, 12, 2048])
def test_one_pass_equals_a_slow_loop(
    reader: FrameReader, slow: dict[str, Probabilities], segments_per_batch: int
) -> None:
    found = quick_predictions(reader, MODELS, segments_per_batch)
    for name in MODELS:
        assert_close(found[name], slow[name])


def test_the_test_videos_have_windows_truncated_at_either_end_and_at_both(videos: list[TinyVideo]) -> None:
    """Otherwise the comparisons with the slow loop would not cover truncated windows."""
    cut = {
        (start < margin, start + 5 + margin > length)
        for margin in (0, 3, 33, 40)
        for length in LENGTHS
        for start in range(30, 5 * (-(-length // 5) - 2), 5)
    }
    assert cut == {(False, False), (True, False), (False, True), (True, True)}


def test_predictions_are_batch_invariant(videos: list[TinyVideo], reader: FrameReader, tmp_path: Path) -> None:
    together = quick_predictions(reader, MODELS)
    write_shards(tmp_path / "two", [videos[9], videos[3]], num_shards=1)
    alone = quick_predictions(FrameReader(index_folder(tmp_path / "two")), MODELS)
    write_shards(tmp_path / "reversed", videos[::-1], num_shards=2)
    backwards = quick_predictions(FrameReader(index_folder(tmp_path / "reversed")), MODELS, 5)
    for name, of_segments in alone.items():
        # Video 9 has six segments, video 3 eleven.
        assert len(of_segments) == 6 + 11
        assert_same(of_segments, {key: together[name][key] for key in of_segments})
        assert_same({key: backwards[name][key] for key in together[name]}, together[name])


@pytest.mark.parametrize("threads", [1, 2])
def test_large_products_are_batch_invariant(tmp_path: Path, threads: int) -> None:
    """Libraries use different kernels for large matrices than for those of the tiny networks above."""
    videos = videos_of([300, 180, 91, 222])
    dbof = DBoFConfig(hidden_size=1024, output_size=512, max_frames=150)
    nextvlad = NeXtVLADConfig(num_clusters=32, output_size=512, max_frames=120)
    models: dict[str, Classifier] = {
        "agnostic": agnostic(dbof, seed=7),
        "aware": aware(dbof, nextvlad.model_copy(update={"cut_after_linear": True}), seed=8),
        "other": aware(nextvlad, dbof, seed=9),
    }
    write_shards(tmp_path / "all", videos)
    write_shards(tmp_path / "reversed", videos[::-1])
    write_shards(tmp_path / "one", videos[2:3], num_shards=1)
    num_threads = torch.get_num_threads()
    together = quick_predictions(FrameReader(index_folder(tmp_path / "all")), models)
    try:
        torch.set_num_threads(threads)
        backwards = quick_predictions(FrameReader(index_folder(tmp_path / "reversed")), models, 17)
        alone = quick_predictions(FrameReader(index_folder(tmp_path / "one")), models)
    finally:
        torch.set_num_threads(num_threads)
    for name in models:
        assert_same({key: backwards[name][key] for key in together[name]}, together[name])
        assert_same(alone[name], {key: together[name][key] for key in alone[name]})


def test_videos_with_fewer_than_nine_segments_have_none_to_predict(reader: FrameReader) -> None:
    segments = segments_of(reader)
    assert {LENGTHS[row] for row in segments.rows.tolist()} == {41, 44, 45, 46, 70, 95, 127}
    of_row = {length: segments.start_seconds[segments.rows == row].tolist() for row, length in enumerate(LENGTHS)}
    assert (of_row[41], of_row[45], of_row[46]) == ([30], [30], [30, 35])


def test_a_catalog_of_short_videos_is_refused(tmp_path: Path) -> None:
    write_shards(tmp_path, videos_of([40, 12]), num_shards=1)
    with pytest.raises(UsageError, match="none of its 2 videos is longer than 40 seconds"):
        segments_of(FrameReader(index_folder(tmp_path)))


def test_models_with_equal_context_encoders_share_the_context(
    reader: FrameReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_encoder_of(other: ContextAwareClassifier, seed: int) -> ContextAwareClassifier:
        model = aware(seed=seed)
        model.context_encoder.load_state_dict(other.context_encoder.state_dict())
        return model

    first = aware(seed=1)
    models: dict[str, Classifier] = {
        "first": first,
        "second": with_encoder_of(first, seed=2),
        "third": with_encoder_of(first, seed=3),
        "other": aware(seed=4),
        "agnostic": agnostic(),
    }
    encoded: list[int] = []
    encode = FoldedClassifier.encode_contexts

    def counted(model: FoldedClassifier, frames: Tensor, windows: Tensor, mask: Tensor) -> Tensor:
        encoded.append(len(windows))
        return encode(model, frames, windows, mask)

    monkeypatch.setattr(FoldedClassifier, "encode_contexts", counted)
    found = quick_predictions(reader, models)
    # Seven videos have segments, there are two distinct context encoders, and one batch.
    assert encoded == [7, 7]
    monkeypatch.undo()
    for name, model in models.items():
        assert_same(found[name], quick_predictions(reader, {name: model})[name])


def test_context_encoders_of_other_weights_or_frames_are_not_shared(
    reader: FrameReader, videos: list[TinyVideo]
) -> None:
    first = aware(seed=1)
    fewer = aware(NEXTVLAD.model_copy(update={"max_frames": 5}), seed=1)
    fewer.load_state_dict(first.state_dict())
    nudged = aware(seed=1)
    with torch.no_grad():
        next(nudged.context_encoder.parameters()).view(-1)[0] += 0.5
    found = quick_predictions(reader, {"first": first, "fewer": fewer, "nudged": nudged})
    assert_close(found["fewer"], slow_predictions(videos, fewer))
    assert_close(found["nudged"], slow_predictions(videos, nudged))
    for name in ("fewer", "nudged"):
        differs = [(found[name][key] != found["first"][key]).any() for key in found["first"]]
        assert any(differs), name


def test_only_the_given_batches_are_predicted(reader: FrameReader) -> None:
    segments = segments_of(reader)
    models = fold_classifiers({"bare": MODELS["bare"]})
    everything = np.concatenate([batch.codes["bare"] for batch in predict(reader, segments, models)])
    assert len(everything) == len(segments)
    batches = batches_of([slice(20, 27), slice(3, 9)], 4)
    assert [(batch.start, batch.stop) for batch in batches] == [(20, 24), (24, 27), (3, 7), (7, 9)]
    found = list(predict(reader, segments, models, batches))
    assert [(batch.start, len(batch)) for batch in found] == [(20, 4), (24, 3), (3, 4), (7, 2)]
    for batch in found:
        np.testing.assert_array_equal(batch.codes["bare"], everything[batch.positions])


def test_a_video_classifier_predicts_the_same_for_all_segments_of_a_video(
    reader: FrameReader, videos: list[TinyVideo]
) -> None:
    torch.manual_seed(3)
    video = trained(VideoClassifier(VideoClassifierConfig(encoder=NEXTVLAD, mixture=MIXTURE), NUM_CLASSES), 3)
    context = aware(seed=1)
    context.context_encoder.load_state_dict(video.encoder.state_dict())
    found = quick_predictions(reader, {"video": video, "context": context})["video"]
    expected = {}
    for video_id, start in found:
        frames = next(other.frames for other in videos if other.id == video_id)
        with torch.no_grad():
            logits = video(*batch_of_one(context_frames(frames, NEXTVLAD.max_frames)))
        expected[video_id, start] = torch.sigmoid(logits)[0].numpy()
    assert_close(found, expected)


def test_shifts_average_the_probabilities_of_shifted_windows(reader: FrameReader, videos: list[TinyVideo]) -> None:
    shifts = (-2, 0, 3)
    found = quick_predictions(reader, MODELS, shifts=shifts)
    for name, model in MODELS.items():
        shifted = [slow_predictions(videos, model, shift) for shift in shifts]
        expected = {key: np.mean([of_shift[key] for of_shift in shifted], axis=0) for key in shifted[0]}
        assert_close(found[name], expected)
        assert max(np.abs(expected[key] - shifted[1][key]).max() for key in expected) > 5e-4


def test_nan_is_encoded_as_a_missing_probability(reader: FrameReader) -> None:
    broken = agnostic(seed=1)
    with torch.no_grad():
        broken.mixture.experts.bias[2] = torch.nan
    codes = np.stack(list(quick_predictions(reader, {"broken": broken})["broken"].values()))
    assert (codes[:, 2] == 0).all()
    assert (np.delete(codes, 2, axis=1) > 0).all()


@pytest.mark.parametrize(
    ("num_frames", "max_frames", "expected"),
    [(1, 150, 150), (150, 150, 150), (20, 600, 512), (512, 600, 512), (513, 600, 600), (513, 5000, 1024), (3, 4, 4)],
)
def test_context_widths(num_frames: int, max_frames: int, expected: int) -> None:
    assert context_width(num_frames, max_frames) == expected


def test_contexts_of_any_number_of_frames(tmp_path: Path) -> None:
    """An encoder may be configured to use all frames of any video, as in 2019."""
    videos = videos_of([60, 700, 90, 1100])
    write_shards(tmp_path / "all", videos)
    write_shards(tmp_path / "one", videos[1:2], num_shards=1)
    models: dict[str, Classifier] = {
        "dbof": aware(DBOF.model_copy(update={"max_frames": 1 << 20}), seed=1),
        "nextvlad": aware(NEXTVLAD.model_copy(update={"max_frames": 1 << 20}), seed=2),
    }
    found = quick_predictions(FrameReader(index_folder(tmp_path / "all")), models)
    alone = quick_predictions(FrameReader(index_folder(tmp_path / "one")), models)
    for name, model in models.items():
        assert isinstance(model, ContextAwareClassifier)
        assert_close(found[name], slow_predictions(videos, model))
        assert_same(alone[name], {key: found[name][key] for key in alone[name]})
