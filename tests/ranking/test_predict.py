"""One pass over all videos against a slow loop that predicts each segment on its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.tiny_shards import TinyVideo, write_shards
from yt8m.dataset.catalog import index_folder
from yt8m.dataset.frames import FrameReader
from yt8m.errors import UsageError
from yt8m.models.classifier import (
    ContextAgnosticClassifier,
    ContextAgnosticClassifierConfig,
    ContextAwareClassifier,
    ContextAwareClassifierConfig,
    FusionConfig,
)
from yt8m.models.dbof import DBoFConfig
from yt8m.models.layers import MixtureConfig
from yt8m.models.nextvlad import NeXtVLADConfig
from yt8m.ranking.predict import SegmentClassifier, predict, segments_of, video_batches

NUM_CLASSES = 5
DBOF = DBoFConfig(hidden_size=12, output_size=8, max_frames=20)
NEXTVLAD = NeXtVLADConfig(num_clusters=2, num_groups=4, output_size=8, max_frames=17)
MIXTURE = MixtureConfig(num_experts=2, initial_probability=0.4)
LENGTHS = (41, 3, 40, 95, 44, 1, 45, 46, 39, 70, 127)
"""Frames of the videos: those up to 40 have no segment to predict, 41 to 45 have one, 46 has two."""


def trained(model: SegmentClassifier, seed: int) -> SegmentClassifier:
    """The model with weights and running statistics such as training leaves, so that nothing is 0 or 1 by chance."""
    generator = torch.Generator().manual_seed(seed)
    state = model.state_dict()
    for name, tensor in state.items():
        if tensor.is_floating_point():
            noise = 0.2 * torch.randn(tensor.shape, generator=generator)
            # Variances and scales stay positive.
            state[name] = tensor * noise.exp() if bool((tensor > 0).all()) else tensor + noise
    model.load_state_dict(state)
    return model.eval()


def agnostic(encoder: DBoFConfig | NeXtVLADConfig = DBOF, margin: int = 3, seed: int = 0) -> SegmentClassifier:
    config = ContextAgnosticClassifierConfig(encoder=encoder, mixture=MIXTURE, margin_frames=margin)
    torch.manual_seed(seed)
    return trained(ContextAgnosticClassifier(config, NUM_CLASSES), seed)


def aware(
    context: DBoFConfig | NeXtVLADConfig = NEXTVLAD,
    segment: DBoFConfig | NeXtVLADConfig = DBOF,
    margin: int = 3,
    seed: int = 0,
) -> ContextAwareClassifier:
    config = ContextAwareClassifierConfig(
        context_encoder=context,
        segment_encoder=segment,
        fusion=FusionConfig(output_size=8),
        mixture=MIXTURE,
        margin_frames=margin,
    )
    torch.manual_seed(seed)
    model = trained(ContextAwareClassifier(config, NUM_CLASSES), seed)
    assert isinstance(model, ContextAwareClassifier)
    return model


def videos_of(lengths: Sequence[int]) -> list[TinyVideo]:
    """Videos whose frames change every few seconds, so that windows differ."""
    videos = []
    for number, length in enumerate(lengths):
        rng = np.random.default_rng(number)
        scenes = rng.integers(0, 256, (length // 4 + 1, 1152), np.uint8)
        videos.append(TinyVideo(f"video{number}", np.repeat(scenes, 4, axis=0)[:length]))
    return videos


@pytest.fixture(scope="module")
def videos() -> list[TinyVideo]:
    return videos_of(LENGTHS)


@pytest.fixture(scope="module")
def reader(videos: list[TinyVideo], tmp_path_factory: pytest.TempPathFactory) -> FrameReader:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, videos, num_shards=3)
    return FrameReader(index_folder(folder))


def one(frames: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(frames.copy())[None], torch.tensor([len(frames)])


def slow_predictions(
    videos: Sequence[TinyVideo], model: SegmentClassifier
) -> dict[tuple[str, int], NDArray[np.float32]]:
    """Each segment's probabilities by (video id, start): a call of the whole model a segment, its context encoded anew."""
    found = {}
    for video in videos:
        num_frames = len(video.frames)
        # A partial last segment counts; the first six and the last two are left out.
        num_segments = num_frames // 5 + (num_frames % 5 > 0)
        for segment in range(6, num_segments - 2):
            margin = model.config.margin_frames
            window = video.frames[max(0, 5 * segment - margin) : 5 * segment + 5 + margin]
            with torch.no_grad():
                if isinstance(model, ContextAwareClassifier):
                    inside = video.frames[30 : num_frames - 10] if num_frames > 40 else video.frames
                    wanted = model.config.context_encoder.max_frames
                    if len(inside) > wanted:
                        # The frames in the middles of equal intervals.
                        inside = inside[[int((i + 0.5) * len(inside) / wanted) for i in range(wanted)]]
                    logits = model(*one(window), model.encode_context(*one(inside)))
                else:
                    logits = model(*one(window))
            found[video.id, 5 * segment] = torch.sigmoid(logits)[0].numpy()
    return found


def quick_predictions(
    reader: FrameReader, models: dict[str, SegmentClassifier], segments_per_batch: int = 512
) -> dict[str, dict[tuple[str, int], NDArray[np.float32]]]:
    segments = segments_of(reader)
    found: dict[str, dict[tuple[str, int], NDArray[np.float32]]] = {name: {} for name in models}
    for batch in predict(reader, models, torch.device("cpu"), segments_per_batch):
        for name, probabilities in batch.probabilities.items():
            assert probabilities.dtype == np.float32
            for position, row in zip(batch.positions.tolist(), probabilities, strict=True):
                key = (segments.video_ids[segments.rows[position]], int(segments.start_seconds[position]))
                assert key not in found[name]
                found[name][key] = row
    return found


def assert_alike(
    found: dict[tuple[str, int], NDArray[np.float32]], expected: dict[tuple[str, int], NDArray[np.float32]]
) -> None:
    assert list(found) == list(expected)
    np.testing.assert_allclose(np.stack(list(found.values())), np.stack(list(expected.values())), rtol=0, atol=1e-5)


MODELS = {
    "agnostic-dbof": agnostic(DBOF),
    "agnostic-nextvlad": agnostic(NEXTVLAD, seed=1),
    "aware-nextvlad-dbof": aware(NEXTVLAD, DBOF, seed=2),
    "aware-dbof-nextvlad": aware(DBOF, NEXTVLAD.model_copy(update={"cut_after_linear": True}), seed=3),
    # Windows that reach over both ends of a video, and models in one pass with other windows.
    "bare": agnostic(DBOF, margin=0, seed=4),
    "wide": agnostic(NEXTVLAD, margin=40, seed=5),
    "wide-aware": aware(DBOF, DBOF, margin=33, seed=6),
}


@pytest.fixture(scope="module")
def slow(videos: list[TinyVideo]) -> dict[str, dict[tuple[str, int], NDArray[np.float32]]]:
    return {name: slow_predictions(videos, model) for name, model in MODELS.items()}


def test_the_models_of_these_tests_tell_segments_apart(
    slow: dict[str, dict[tuple[str, int], NDArray[np.float32]]],
) -> None:
    for name, of_segments in slow.items():
        probabilities = np.stack(list(of_segments.values()))
        assert probabilities.std(axis=0).min() > 1e-4, name
        assert 0 < probabilities.min() < probabilities.max() < 1


@pytest.mark.parametrize("segments_per_batch", [1, 12, 512])
def test_one_pass_equals_a_slow_loop(
    reader: FrameReader, slow: dict[str, dict[tuple[str, int], NDArray[np.float32]]], segments_per_batch: int
) -> None:
    found = quick_predictions(reader, MODELS, segments_per_batch)
    for name in MODELS:
        assert_alike(found[name], slow[name])


def test_windows_at_both_ends_are_short(videos: list[TinyVideo]) -> None:
    """What the slow loop was compared on has windows cut at the start, at the end and at both."""
    cut = {
        (start < margin, start + 5 + margin > length)
        for margin in (0, 3, 33, 40)
        for length in LENGTHS
        for start in range(30, 5 * (-(-length // 5) - 2), 5)
    }
    assert cut == {(False, False), (True, False), (False, True), (True, True)}


def test_a_video_says_the_same_whatever_it_is_predicted_with(
    videos: list[TinyVideo], reader: FrameReader, tmp_path: Path
) -> None:
    write_shards(tmp_path, [videos[9], videos[3]], num_shards=1)
    alone = quick_predictions(FrameReader(index_folder(tmp_path)), MODELS)
    together = quick_predictions(reader, MODELS)
    for name, of_segments in alone.items():
        # Video 9 has six segments, video 3 eleven.
        assert len(of_segments) == 6 + 11
        assert_alike(of_segments, {key: together[name][key] for key in of_segments})


def test_videos_with_fewer_than_nine_segments_yield_none(reader: FrameReader) -> None:
    segments = segments_of(reader)
    assert {LENGTHS[row] for row in segments.rows.tolist()} == {41, 44, 45, 46, 70, 95, 127}
    of_row = {length: segments.start_seconds[segments.rows == row].tolist() for row, length in enumerate(LENGTHS)}
    assert (of_row[41], of_row[45], of_row[46]) == ([30], [30], [30, 35])


def test_only_short_videos_are_refused(tmp_path: Path) -> None:
    write_shards(tmp_path, videos_of([40, 12]), num_shards=1)
    with pytest.raises(UsageError, match="none of its 2 videos is longer than 40 seconds"):
        segments_of(FrameReader(index_folder(tmp_path)))


def test_the_same_context_encoder_encodes_a_video_once(reader: FrameReader, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_encoder_of(other: ContextAwareClassifier, seed: int) -> ContextAwareClassifier:
        model = aware(seed=seed)
        model.context_encoder.load_state_dict(other.context_encoder.state_dict())
        return model

    first = aware(seed=1)
    models: dict[str, SegmentClassifier] = {
        "first": first,
        "second": with_encoder_of(first, seed=2),
        "third": with_encoder_of(first, seed=3),
        "other": aware(seed=4),
        "agnostic": agnostic(),
    }
    encoded: list[int] = []
    encode = ContextAwareClassifier.encode_context

    def counted(model: ContextAwareClassifier, frames: Tensor, lengths: Tensor) -> Tensor:
        encoded.append(len(frames))
        return encode(model, frames, lengths)

    monkeypatch.setattr(ContextAwareClassifier, "encode_context", counted)
    found = quick_predictions(reader, models)
    # Seven videos have segments, and there are two different context encoders; all fits into one batch.
    assert encoded == [7, 7]
    monkeypatch.undo()
    for name, model in models.items():
        assert_alike(found[name], quick_predictions(reader, {name: model})[name])


def test_encoders_of_other_weights_or_frames_are_not_taken_for_the_same(
    reader: FrameReader, videos: list[TinyVideo]
) -> None:
    first = aware(seed=1)
    fewer = aware(NEXTVLAD.model_copy(update={"max_frames": 5}), seed=1)
    fewer.load_state_dict(first.state_dict())
    nudged = aware(seed=1)
    with torch.no_grad():
        next(nudged.context_encoder.parameters()).view(-1)[0] += 0.5
    found = quick_predictions(reader, {"first": first, "fewer": fewer, "nudged": nudged})
    assert_alike(found["fewer"], slow_predictions(videos, fewer))
    assert_alike(found["nudged"], slow_predictions(videos, nudged))
    for name in ("fewer", "nudged"):
        differences = [abs(found[name][key] - found["first"][key]).max() for key in found["first"]]
        assert max(differences) > 1e-5, name


def test_progress_sees_every_batch(reader: FrameReader) -> None:
    seen: list[slice] = []

    def watched(batches):  # type: ignore[no-untyped-def]
        for batch in batches:
            seen.append(batch)
            yield batch

    found = list(predict(reader, {"bare": MODELS["bare"]}, torch.device("cpu"), 10, watched))
    assert len(seen) == len(found) > 1
    np.testing.assert_array_equal(
        np.concatenate([batch.positions for batch in found]), np.arange(len(segments_of(reader)))
    )


@pytest.mark.parametrize(
    ("counts", "size", "expected"),
    [
        ([3, 3, 3], 6, [(0, 2), (2, 3)]),
        ([3, 3, 3], 100, [(0, 3)]),
        ([7, 1, 0, 0], 4, [(0, 1), (1, 4)]),
        ([0, 0, 5, 0], 5, [(0, 3)]),
        ([0, 0], 5, []),
        ([2, 2, 2], 1, [(0, 1), (1, 2), (2, 3)]),
    ],
)
def test_video_batches(counts: list[int], size: int, expected: list[tuple[int, int]]) -> None:
    found = video_batches(np.array(counts), size)
    assert [(batch.start, batch.stop) for batch in found] == expected
