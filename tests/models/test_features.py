"""Networks for features of any width, and for one of two modalities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.tiny_models import trained
from yt8m.errors import UsageError
from yt8m.features import YOUTUBE8M, Features, Modality
from yt8m.inference.classifier import FoldedClassifier
from yt8m.models.classifier import ContextAgnosticClassifier, ContextAwareClassifier, VideoClassifier
from yt8m.models.config import (
    ContextAgnosticClassifierConfig,
    ContextAwareClassifierConfig,
    DBoFConfig,
    MixtureConfig,
    NeXtVLADConfig,
    VideoClassifierConfig,
)
from yt8m.models.encoders import build_encoder
from yt8m.models.layers.input import FrameInput
from yt8m.models.saved import load_model, save_model

WIDE = Features(name="wide", rgb=Modality(size=1280, scale=0.02, offset=-3.0), audio=Modality(size=64))
RGB_ONLY = Features(
    name="seen", rgb=Modality(size=32, scale=[0.1] * 32, offset=[float(-i) for i in range(32)]), audio=None
)
AUDIO_ONLY = Features(name="heard", rgb=None, audio=Modality(size=40))
HALVES = Features(name="halves", dtype="float16", rgb=Modality(size=24), audio=Modality(size=8))
ALL = pytest.mark.parametrize("features", [WIDE, RGB_ONLY, AUDIO_ONLY, HALVES], ids=lambda features: features.name)

MIXTURE = MixtureConfig(num_experts=2)
ENCODERS = {
    "dbof": DBoFConfig(hidden_size=16, output_size=8, max_frames=20),
    "nextvlad": NeXtVLADConfig(num_clusters=4, num_groups=4, expansion=1, output_size=8, max_frames=20),
}
BOTH = pytest.mark.parametrize("encoder", ENCODERS)


def random_frames(features: Features, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if features.dtype == "float16":
        return rng.normal(size=(*shape, features.size)).astype(np.float16).view(np.uint8)
    return rng.integers(0, 256, (*shape, features.frame_bytes), np.uint8)


def values_of(features: Features, frames: np.ndarray) -> np.ndarray:
    """The numbers of frames, number by number, from the description."""
    if features.dtype == "float16":
        return frames.view(np.float16).astype(np.float64)
    scales, offsets = [], []
    for modality in features.modalities.values():
        for i in range(modality.size):
            scales.append(modality.scale[i] if isinstance(modality.scale, list) else modality.scale)
            offsets.append(modality.offset[i] if isinstance(modality.offset, list) else modality.offset)
    return frames.astype(np.float64) * np.array(scales) + np.array(offsets)


@ALL
def test_bytes_become_the_values_of_the_description(features: Features) -> None:
    frames = random_frames(features, (2, 4))
    found, mask = FrameInput(features=features)(torch.from_numpy(frames), torch.tensor([4, 3]))
    expected = values_of(features, frames)
    expected[1, 3] = 0
    assert np.allclose(found.numpy(), expected, atol=1e-4)
    assert mask.tolist() == [[True] * 4, [True, True, True, False]]
    assert (frames == random_frames(features, (2, 4))).all()


def test_half_precision_padding_is_zero_whatever_it_contains() -> None:
    frames = random_frames(HALVES, (1, 3))
    frames[0, 2] = 0xFF  # NaN
    found, _ = FrameInput(features=HALVES)(torch.from_numpy(frames), torch.tensor([2]))
    assert found[0, 2].tolist() == [0.0] * 32


@pytest.mark.parametrize(("modality", "columns"), [("rgb", slice(0, 1024)), ("audio", slice(1024, 1152))])
def test_a_network_of_one_modality_sees_nothing_of_the_other(modality: str, columns: slice) -> None:
    frames = torch.from_numpy(random_frames(YOUTUBE8M, (2, 6)))
    lengths = torch.tensor([6, 4])
    alone = Features(**{"rgb": None, "audio": None, modality: getattr(YOUTUBE8M, modality)})
    for config in ENCODERS.values():
        torch.manual_seed(0)
        encoder = build_encoder(config.model_copy(update={"modalities": [modality]})).eval()
        torch.manual_seed(0)
        of_alone = build_encoder(config, alone).eval()
        with torch.no_grad():
            found = encoder(frames, lengths)
            assert torch.equal(found, of_alone(frames[..., columns].contiguous(), lengths))
            frames_changed = frames.clone()
            frames_changed[..., columns] = 5
            assert not torch.equal(encoder(frames_changed, lengths), found)
            frames_changed = torch.full_like(frames, 9)
            frames_changed[..., columns] = frames[..., columns]
            assert torch.equal(encoder(frames_changed, lengths), found)


@ALL
@BOTH
def test_a_folded_classifier_predicts_as_the_network(features: Features, encoder: str) -> None:
    config = ContextAwareClassifierConfig(
        context_encoder=ENCODERS[encoder], segment_encoder=ENCODERS["dbof"], mixture=MIXTURE
    )
    model = trained(ContextAwareClassifier(config, 3, features), 1)
    folded = FoldedClassifier(model, torch.device("cpu"))
    video = random_frames(features, (20,))
    windows, mask = torch.arange(11).unsqueeze(0), torch.ones(1, 11, dtype=torch.bool)
    with torch.no_grad():
        context = model.encode_context(video[None])
        expected = model(torch.from_numpy(video[None, :11]), torch.tensor([11]), context)
        frames = torch.from_numpy(video)
        whole = torch.arange(20).unsqueeze(0)
        vectors = folded.encode_contexts(frames, whole, torch.ones(1, 20, dtype=torch.bool))
        embedded = folded.segment_encoder.embed_frames(frames)
        found = folded.window_logits(embedded, windows, mask, folded.video_terms(vectors))
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert folded.features == features


@ALL
@BOTH
def test_a_model_folder_contains_its_features(features: Features, encoder: str, tmp_path: Path) -> None:
    config = ContextAgnosticClassifierConfig(encoder=ENCODERS[encoder], mixture=MIXTURE)
    model = trained(ContextAgnosticClassifier(config, 3, features), 2)
    save_model(tmp_path / "model", model, vocabulary_digest="abc")
    loaded = load_model(tmp_path / "model", features=features)
    assert loaded.features == features
    frames = random_frames(features, (2, 11))
    assert torch.allclose(loaded.probabilities(frames), model.probabilities(frames), atol=1e-6)
    with pytest.raises(UsageError, match=rf"model: the model was trained on features '{features.name}', and these are"):
        load_model(tmp_path / "model", features=YOUTUBE8M)
    with pytest.raises(ValueError, match=rf"expected frames \(B, T, {features.frame_bytes}\)"):
        loaded.probabilities(np.zeros((2, 11, 7), np.uint8))


def test_impossible_networks_are_refused() -> None:
    seen = ENCODERS["dbof"].model_copy(update={"modalities": ["rgb"]})
    with pytest.raises(
        UsageError, match="A network of rgb cannot be trained on features 'heard', which have audio alone"
    ):
        VideoClassifier(VideoClassifierConfig(encoder=seen), 3, AUDIO_ONLY)
    raw = ENCODERS["dbof"].model_copy(update={"input": "bytes"})
    with pytest.raises(UsageError, match="`input: bytes` needs features of bytes, and those of 'halves' are float16"):
        VideoClassifier(VideoClassifierConfig(encoder=raw), 3, HALVES)
    with pytest.raises(UsageError, match="num_groups 4 must divide the expanded audio features, 2"):
        build_encoder(ENCODERS["nextvlad"], Features(name="x", audio=Modality(size=2)))
