"""Properties of every encoder: output is independent of other videos and of padding."""

from __future__ import annotations

import pytest
import torch

from tests.support.tiny_models import DBOF, NEXTVLAD, random_frames, randomize
from yt8m.models.classifier import VideoClassifier
from yt8m.models.config import DBoFConfig, NeXtVLADConfig, VideoClassifierConfig
from yt8m.models.dbof import DBoFEncoder
from yt8m.models.encoder import Encoder
from yt8m.models.encoders import ENCODERS, build_encoder
from yt8m.models.nextvlad import NeXtVLADEncoder

ENCODER_CONFIGS = {
    "dbof": DBOF,
    "dbof variant": DBOF.model_copy(update={"frame_se_reduction": 0, "input_batch_norm": True}),
    "nextvlad": NEXTVLAD,
    "nextvlad variant": NEXTVLAD.model_copy(update={"cut_after_linear": True, "input_batch_norm": True}),
    "dbof of bytes": DBOF.model_copy(update={"input": "bytes"}),
    "nextvlad of bytes": NEXTVLAD.model_copy(update={"input": "bytes", "assignment_batch_norm": False}),
}


@pytest.fixture(params=ENCODER_CONFIGS)
def encoder(request: pytest.FixtureRequest) -> Encoder:
    torch.manual_seed(0)
    built = build_encoder(ENCODER_CONFIGS[request.param])
    randomize(built)
    return built


def test_encoders_are_built_by_the_type_of_the_config() -> None:
    assert {DBoFConfig: DBoFEncoder, NeXtVLADConfig: NeXtVLADEncoder} == ENCODERS
    for config in ENCODER_CONFIGS.values():
        built = build_encoder(config)
        assert type(built) is ENCODERS[type(config)]
        assert built.output_size == 8


@pytest.mark.parametrize("num_frames", [1, 2, 11, 300])
def test_videos_of_any_number_of_frames_are_encoded(encoder: Encoder, num_frames: int) -> None:
    frames, lengths = random_frames(2, num_frames), torch.tensor([num_frames, 1])
    for training in (True, False):
        encoded = encoder.train(training)(frames, lengths)
        assert encoded.shape == (2, 8)
        assert encoded.isfinite().all()


def test_gradients_for_one_frame_of_one_video_are_finite(encoder: Encoder) -> None:
    encoder.train()(random_frames(1, 1), torch.tensor([1])).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


def test_encoders_are_batch_invariant(encoder: Encoder) -> None:
    encoder.eval()
    lengths = torch.tensor([1, 7, 150, 300, 40])
    frames = random_frames(5, 300)
    with torch.no_grad():
        together = encoder(frames, lengths)
        for i, length in enumerate(lengths.tolist()):
            alone = encoder(frames[i : i + 1, :length], lengths[i : i + 1])
            assert (together[i] - alone[0]).abs().max() < 1e-6 * max(1, alone.abs().max())


@pytest.mark.parametrize("training", [True, False])
def test_padding_has_no_influence(encoder: Encoder, training: bool) -> None:
    lengths = torch.tensor([3, 6, 1])
    frames = random_frames(3, 6)
    outputs, gradients = [], []
    for padding in (0, 255):
        filled = frames.clone()
        for i, length in enumerate(lengths.tolist()):
            filled[i, length:] = padding
        torch.manual_seed(1)
        outputs.append(encoder.train(training)(filled, lengths))
        gradients.append(torch.autograd.grad(outputs[-1].square().sum(), list(encoder.parameters())))
    assert torch.equal(outputs[0], outputs[1])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_bfloat16_autocast_is_close_to_float32(encoder: Encoder) -> None:
    torch.manual_seed(0)
    model = VideoClassifier(VideoClassifierConfig(encoder=encoder.config), 5)
    frames, lengths = random_frames(16, 20), torch.arange(5, 21)
    model.eval()
    with torch.no_grad():
        plain = model(frames, lengths)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(frames, lengths)
    assert rounded.dtype == torch.float32
    assert (torch.sigmoid(plain) - torch.sigmoid(rounded)).abs().max() < 0.02
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.train()(frames, lengths).square().sum()
    loss.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())
    assert all(b.dtype != torch.bfloat16 for b in model.buffers())
