"""The three classifiers: their layers in order, initialization from trained models, and parameter counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.plain_layers import plain_batch_norm
from tests.support.tiny_models import DBOF, NEXTVLAD, aware_classifier, random_frames, video_classifier
from yt8m.models.classifier import ContextAgnosticClassifier, ContextAwareClassifier, VideoClassifier
from yt8m.models.config import (
    ContextAgnosticClassifierConfig,
    DBoFConfig,
    FusionConfig,
    NeXtVLADConfig,
    VideoClassifierConfig,
)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # raised by torch during tracing
@pytest.mark.parametrize(
    "config",
    [DBOF.model_copy(update={"dropout": 0.0}), NEXTVLAD.model_copy(update={"cluster_dropout": 0.0})],
    ids=["dbof", "nextvlad"],
)
def test_a_compiled_classifier_has_the_same_loss_and_gradients(config: DBoFConfig | NeXtVLADConfig) -> None:
    model = video_classifier(config, dropout=0.0)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    frames, lengths = random_frames(3, 6), torch.tensor([6, 1, 4])
    results = []
    for run in (model, compiled):
        loss = run(frames, lengths).square().sum()
        results.append([loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))])
    for plain, ours in zip(*results, strict=True):
        torch.testing.assert_close(plain, ours, atol=1e-4 * max(1, float(plain.abs().max())), rtol=1e-4)


def test_a_video_classifier_is_an_encoder_and_a_mixture() -> None:
    model = video_classifier(DBOF, per_class=True).eval()
    frames, lengths = random_frames(3, 6), torch.tensor([6, 1, 4])
    assert torch.equal(model(frames, lengths), model.mixture(model.encoder(frames, lengths)))
    assert model(frames, lengths).shape == (3, 5)


def test_a_context_agnostic_classifier_is_initialized_from_a_video_classifier() -> None:
    video = video_classifier(NEXTVLAD)
    agnostic = ContextAgnosticClassifier.from_video_classifier(video, margin_frames=2)
    assert agnostic.config == ContextAgnosticClassifierConfig(
        encoder=NEXTVLAD, mixture=video.config.mixture, margin_frames=2
    )
    assert ContextAgnosticClassifierConfig(encoder=NEXTVLAD).margin_frames == 3
    frames, lengths = random_frames(3, 9), torch.tensor([9, 5, 7])
    assert torch.equal(agnostic.eval()(frames, lengths), video.eval()(frames, lengths))
    with torch.no_grad():
        agnostic.mixture.gate.bias.add_(1)
    assert not torch.equal(agnostic.mixture.gate.bias, video.mixture.gate.bias)


def test_a_context_aware_classifier_copies_both_encoders() -> None:
    context, segment = video_classifier(DBOF), video_classifier(NEXTVLAD)
    aware = ContextAwareClassifier.from_video_classifiers(context, segment, fusion=FusionConfig(output_size=8))
    assert aware.config.segment_encoder == NEXTVLAD.model_copy(update={"cut_after_linear": True})
    assert aware.config.context_encoder == DBOF
    for ours, theirs in ((aware.context_encoder, context.encoder), (aware.segment_encoder, segment.encoder)):
        for name, tensor in ours.state_dict().items():
            assert torch.equal(tensor, theirs.state_dict()[name]), name
    complete = ContextAwareClassifier.from_video_classifiers(segment, context)
    assert complete.segment_encoder.video_gate is not None
    assert complete.context_encoder.gate is not None
    assert complete.mixture.experts.in_features == 2048


def test_a_context_aware_classifier_equals_its_layers_in_order() -> None:
    model = aware_classifier().double().eval()
    frames, lengths = random_frames(3, 11), torch.tensor([11, 8, 11])
    videos, video_lengths = random_frames(3, 20), torch.tensor([20, 13, 9])
    context = model.encode_context(videos, video_lengths)
    assert torch.equal(context, model.context_encoder(videos, video_lengths))
    logits = model(frames, lengths, context)
    joint = torch.cat([context, model.segment_encoder(frames, lengths)], 1)
    joint = (plain_batch_norm(model.fusion_norm, joint) @ model.fusion.weight.T + model.fusion.bias).clamp(min=0)
    torch.testing.assert_close(logits, model.mixture(model.fusion_gate(joint)), atol=1e-12, rtol=1e-12)


def test_the_context_encoder_is_frozen_and_always_in_eval_mode() -> None:
    model = aware_classifier().train()
    assert not any(module.training for module in model.context_encoder.modules())
    assert model.segment_encoder.training
    assert model.mixture.expert_norm.training
    before = {name: tensor.clone() for name, tensor in model.context_encoder.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    before_step = model.segment_encoder.projection.weight.clone()
    context = model.encode_context(random_frames(3, 20), torch.tensor([20, 9, 3]))
    model(random_frames(3, 11), torch.tensor([11, 8, 9]), context).sum().backward()
    optimizer.step()
    for name, tensor in model.context_encoder.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(p.grad is None for p in model.context_encoder.parameters())
    assert not torch.equal(model.segment_encoder.projection.weight, before_step)
    assert not model.eval().training


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_parameter_counts_at_paper_sizes() -> None:
    """Published: dbof-3 36M, nextvlad-2 33M, aware 59M to 67M; the exact numbers follow from the sizes of the layers."""
    with torch.device("meta"):
        dbof = VideoClassifier(VideoClassifierConfig(encoder=DBoFConfig()), 1000)
        nextvlad = VideoClassifier(VideoClassifierConfig(encoder=NeXtVLADConfig()), 1000)
        aware_nextvlad = ContextAwareClassifier.from_video_classifiers(nextvlad, nextvlad)
        aware_dbof = ContextAwareClassifier.from_video_classifiers(dbof, nextvlad)

    def gate(size: int, hidden: int) -> int:
        return 2 * size + (size + 1) * hidden + 2 * hidden + (hidden + 1) * size

    def vlad(size: int, clusters: int) -> int:
        expanded, descriptor = 2 * size, clusters * size // 8
        linear = (size + 1) * expanded + (expanded + 1) * (16 + 16 * clusters)
        return linear + 2 * clusters + descriptor + 2 * descriptor

    mixture = 2 * 2 * 2048 + 2049 * 4000 + 2049 * 5
    dbof_encoder = 1153 * 4096 + gate(4096, 512) + 2 * 8192 + 8192 * 2048 + gate(2048, 512)
    cut = vlad(1024, 64) + vlad(128, 32) + (64 * 128 + 32 * 16 + 1) * 2048
    fusion = 2 * 4096 + 4097 * 2048 + gate(2048, 512)
    assert count(dbof) == dbof_encoder + mixture == 36_043_685
    assert count(nextvlad) == cut + gate(2048, 512) + mixture == 32_572_293
    assert count(aware_nextvlad) == 2 * cut + gate(2048, 512) + fusion + mixture == 65_328_997
    assert count(aware_dbof) == dbof_encoder + cut + fusion + mixture == 68_800_389


# --- Probabilities from arrays ----------------------------------------------------------------------------------------


def test_probabilities_are_those_of_the_logits_for_arrays_and_tensors() -> None:
    frames, lengths = random_frames(3, 11), torch.tensor([11, 4, 9])
    for model in (video_classifier(DBOF), ContextAgnosticClassifier.from_video_classifier(video_classifier(NEXTVLAD))):
        model.eval()
        expected = torch.sigmoid(model(frames, lengths)).detach()
        model.train()
        for given in (frames, frames.numpy()):
            for counts in (lengths, lengths.numpy(), [11, 4, 9]):
                found = model.probabilities(given, counts)
                assert torch.equal(found, expected)
                assert not found.requires_grad
        assert model.training
        assert torch.equal(model.probabilities(frames.numpy()), model.probabilities(frames, torch.tensor([11] * 3)))


def test_probabilities_with_the_context_of_a_video() -> None:
    model = aware_classifier().train()
    video = random_frames(1, 18).numpy()
    video.flags.writeable = False
    segments = np.concatenate([video[:, start : start + 11] for start in (0, 5)])
    found = model.probabilities(segments, context=model.encode_context(video))
    assert model.training
    assert not model.context_encoder.training
    model.eval()
    context = model.encode_context(torch.tensor(video), torch.tensor([18]))
    expected = torch.sigmoid(model(torch.from_numpy(segments), torch.tensor([11, 11]), torch.cat([context, context])))
    assert torch.equal(found, expected.detach())


@pytest.mark.parametrize(
    ("frames", "lengths", "error", "message"),
    [
        (np.zeros((1, 5, 1152), np.float32), None, TypeError, "expected frames as bytes (uint8), found torch.float32"),
        (np.zeros((5, 1152), np.uint8), None, ValueError, "expected frames (B, T, 1152), found (5, 1152)"),
        (np.zeros((1, 5, 1024), np.uint8), None, ValueError, "expected frames (B, T, 1152), found (1, 5, 1024)"),
        (np.zeros((2, 5, 1152), np.uint8), [5], ValueError, "expected 2 lengths from 1 to 5, found [5]"),
        (np.zeros((2, 5, 1152), np.uint8), [5, 6], ValueError, "expected 2 lengths from 1 to 5, found [5, 6]"),
        (np.zeros((2, 5, 1152), np.uint8), [0, 5], ValueError, "expected 2 lengths from 1 to 5, found [0, 5]"),
    ],
)
def test_frames_and_lengths_of_another_type_or_shape_are_refused(
    frames: np.ndarray, lengths: list[int] | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        video_classifier(DBOF).probabilities(frames, lengths)
    assert str(caught.value) == message
