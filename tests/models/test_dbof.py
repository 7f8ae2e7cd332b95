"""Gated DBoF, compared with the formula of the paper."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.support.plain_layers import plain_batch_norm, plain_gate
from tests.support.tiny_models import random_frames, randomize
from yt8m.models.config import DBoFConfig
from yt8m.models.dbof import DBoFEncoder

LENGTHS = torch.tensor([6, 1, 4])


def plain_dbof(encoder: DBoFEncoder, frames: Tensor, lengths: Tensor) -> Tensor:
    """The formula of the paper on the valid frames of each video, without dropout."""
    values = [f[:n].double() for f, n in zip(frames, lengths.tolist(), strict=True)]
    if encoder.config.input == "dequantized":
        values = [v * 4 / 255 + 4 / 512 - 2 for v in values]
    if encoder.config.input_batch_norm:
        values = plain_batch_norm(encoder.frame_input.norm, torch.cat(values)).split(lengths.tolist())
    hidden = (torch.cat(values) @ encoder.frame_projection.weight.T + encoder.frame_projection.bias).clamp(min=0)
    if encoder.frame_gate is not None:
        hidden = plain_gate(encoder.frame_gate, hidden)
    videos = hidden.split(lengths.tolist())
    pooled = torch.stack([torch.cat([v.max(0).values, v.mean(0)]) for v in videos])
    encoded = (plain_batch_norm(encoder.pooled_norm, pooled) @ encoder.video_projection.weight.T).clamp(min=0)
    return encoded if encoder.video_gate is None else plain_gate(encoder.video_gate, encoded)


def tiny(**settings: object) -> DBoFEncoder:
    torch.manual_seed(0)
    values = {"hidden_size": 12, "output_size": 8, "dropout": 0.0, **settings}
    encoder = DBoFEncoder(DBoFConfig.model_validate(values)).double()
    randomize(encoder)
    return encoder


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"frame_se_reduction": 0},
        {"video_se_reduction": 0},
        {"frame_se_reduction": 0, "video_se_reduction": 0},
        {"input_batch_norm": True},
        {"input": "bytes"},
        {"input": "bytes", "input_batch_norm": True, "frame_se_reduction": 0},
    ],
    ids=str,
)
@pytest.mark.parametrize("training", [True, False])
def test_dbof_and_its_gradients_equal_the_formula(settings: dict[str, object], training: bool) -> None:
    encoder = tiny(**settings).train(training)
    frames = random_frames(3, 6)
    upstream = torch.randn(3, 8, dtype=torch.float64)
    results = []
    for run in (plain_dbof, lambda e, f, n: e(f, n)):
        out = run(encoder, frames, LENGTHS)
        results.append([out, *torch.autograd.grad(out, list(encoder.parameters()), upstream)])
    names = ["output", *(name for name, _ in encoder.named_parameters())]
    for name, plain, ours in zip(names, *results, strict=True):
        assert (plain - ours).abs().max() < 1e-10 * max(1, plain.abs().max()), name


def test_defaults_are_dbof_3_and_the_last_linear_has_no_bias() -> None:
    config = DBoFConfig()
    assert (config.hidden_size, config.output_size, config.max_frames, config.dropout) == (4096, 2048, 150, 0.5)
    assert (config.frame_se_reduction, config.video_se_reduction, config.input_batch_norm) == (8, 4, False)
    assert config.input == "dequantized"
    with torch.device("meta"):
        encoder = DBoFEncoder(config)
    assert encoder.frame_gate.squeeze.weight.shape == (512, 4096)
    assert encoder.video_gate.squeeze.weight.shape == (512, 2048)
    assert encoder.video_projection.bias is None


def test_pooled_channels_are_dropped_in_training() -> None:
    encoder = tiny(dropout=0.5)
    inputs: list[Tensor] = []
    encoder.video_projection.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    frames = random_frames(8, 6)
    encoder.train()(frames, torch.full((8,), 6))
    encoder.eval()(frames, torch.full((8,), 6))
    assert 0.3 < (inputs[0] == 0).double().mean() < 0.7
    assert (inputs[1] == 0).sum() == 0


def test_running_statistics_exclude_padding() -> None:
    encoders = [tiny().train() for _ in range(2)]
    frames = random_frames(3, 6)
    padded = torch.nn.functional.pad(frames, (0, 0, 0, 5), value=255)
    encoders[0](frames, LENGTHS)
    encoders[1](padded, LENGTHS)
    for (name, a), (_, b) in zip(encoders[0].named_buffers(), encoders[1].named_buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
    assert isinstance(encoders[0].frame_projection, nn.Linear)
