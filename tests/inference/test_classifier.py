"""Folded classifiers, compared with the original classifiers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.tiny_models import CPU, fold_classifiers, trained
from yt8m.inference.classifier import FoldedClassifier, digest_of
from yt8m.models.classifier import Classifier, ContextAgnosticClassifier, ContextAwareClassifier, VideoClassifier
from yt8m.models.config import (
    ContextAgnosticClassifierConfig,
    ContextAwareClassifierConfig,
    DBoFConfig,
    EncoderConfig,
    FusionConfig,
    MixtureConfig,
    NeXtVLADConfig,
    VideoClassifierConfig,
)
from yt8m.models.encoder import Encoder
from yt8m.models.layers.input import FrameInput

NUM_CLASSES = 7
WIDTH = 11

DBOF = DBoFConfig(hidden_size=14, output_size=9, max_frames=WIDTH)
NEXTVLAD = NeXtVLADConfig(num_clusters=5, num_groups=4, output_size=9, max_frames=WIDTH)

ENCODERS: dict[str, EncoderConfig] = {
    "dbof": DBOF,
    "dbof, no frame gate": DBOF.model_copy(update={"frame_se_reduction": 0}),
    "dbof, no video gate": DBOF.model_copy(update={"video_se_reduction": 0}),
    "dbof, no gates": DBOF.model_copy(update={"frame_se_reduction": 0, "video_se_reduction": 0}),
    "dbof, normalized": DBOF.model_copy(update={"input_batch_norm": True}),
    "dbof, bytes": DBOF.model_copy(update={"input": "bytes"}),
    "dbof, bytes normalized": DBOF.model_copy(update={"input": "bytes", "input_batch_norm": True}),
    "nextvlad": NEXTVLAD,
    "nextvlad, no gate": NEXTVLAD.model_copy(update={"se_reduction": 0}),
    "nextvlad, normalized": NEXTVLAD.model_copy(update={"input_batch_norm": True}),
    "nextvlad, bytes": NEXTVLAD.model_copy(update={"input": "bytes"}),
    "nextvlad, bytes normalized": NEXTVLAD.model_copy(update={"input": "bytes", "input_batch_norm": True}),
    "nextvlad, assignment not normalized": NEXTVLAD.model_copy(update={"assignment_batch_norm": False}),
    "nextvlad, cut": NEXTVLAD.model_copy(update={"cut_after_linear": True}),
    "nextvlad, one group": NEXTVLAD.model_copy(update={"num_groups": 1, "expansion": 1}),
}
MIXTURES = {
    "shared gate": MixtureConfig(num_experts=3, initial_probability=0.3),
    "gate per class": MixtureConfig(num_experts=2, per_class=True, initial_probability=0.3),
    "mean of logits": MixtureConfig(num_experts=3, average="logits", initial_probability=0.3),
    "mean of logits, gate per class": MixtureConfig(
        num_experts=2, average="logits", per_class=True, initial_probability=0.3
    ),
    "one expert": MixtureConfig(num_experts=1, initial_probability=0.3),
}


def as_trained(model: Any, seed: int) -> Any:
    """Set weights and statistics as after training, also for byte inputs."""
    model = trained(model, seed)
    # Large differences between classes, so that an omitted term is detected.
    model.mixture.experts.weight.data.mul_(4)
    for module in model.modules():
        if isinstance(module, FrameInput) and module.values == "bytes" and module.norm is not None:
            module.norm.running_mean.add_(127)
            module.norm.running_var.mul_(5000)
    for encoder in model.modules():
        if isinstance(encoder, Encoder) and encoder.frame_input.values == "bytes" and encoder.frame_input.norm is None:
            # Otherwise activations saturate.
            layer = getattr(encoder, "frame_projection", None)
            if layer is not None:
                layer.weight.data.div_(100)
    return model


def video(encoder: EncoderConfig = DBOF, mixture: str = "shared gate", seed: int = 0) -> VideoClassifier:
    torch.manual_seed(seed)
    config = VideoClassifierConfig(encoder=encoder, mixture=MIXTURES[mixture])
    model: VideoClassifier = as_trained(VideoClassifier(config, NUM_CLASSES), seed)
    return model


def agnostic(encoder: EncoderConfig = DBOF, mixture: str = "shared gate", seed: int = 0) -> ContextAgnosticClassifier:
    torch.manual_seed(seed)
    config = ContextAgnosticClassifierConfig(encoder=encoder, mixture=MIXTURES[mixture])
    model: ContextAgnosticClassifier = as_trained(ContextAgnosticClassifier(config, NUM_CLASSES), seed)
    return model


def aware(
    context: EncoderConfig = NEXTVLAD,
    segment: EncoderConfig = DBOF,
    mixture: str = "shared gate",
    reduction: int = 4,
    seed: int = 0,
) -> ContextAwareClassifier:
    torch.manual_seed(seed)
    config = ContextAwareClassifierConfig(
        context_encoder=context,
        segment_encoder=segment,
        fusion=FusionConfig(output_size=10, se_reduction=reduction),
        mixture=MIXTURES[mixture],
    )
    model: ContextAwareClassifier = as_trained(ContextAwareClassifier(config, NUM_CLASSES), seed)
    return model


class Windows:
    """Frames, and windows of 1 to 11 of them in any order, some with common frames."""

    def __init__(self, seed: int, count: int = 24) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.frames = torch.randint(0, 256, (31, 1152), generator=generator, dtype=torch.uint8)
        self.frames[3] = 0
        self.frames[4] = 255
        # Frames with small values, so that maxima and means differ.
        self.frames[5:9] //= 4
        self.windows = torch.randint(0, 31, (count, WIDTH), generator=generator)
        self.lengths = torch.arange(count) % WIDTH + 1
        self.mask = torch.arange(WIDTH) < self.lengths.unsqueeze(1)

    def call(self, model: Any, *context: Tensor) -> Tensor:
        """Logits of the original classifier, with each window as a video; padding has nonzero bytes."""
        with torch.no_grad():
            logits: Tensor = model(self.frames[self.windows], self.lengths, *context)
        return logits


def folded_logits(model: FoldedClassifier, segments: Windows, contexts: Windows, of_video: Tensor) -> Tensor:
    with torch.inference_mode():
        shared = None
        if model.context_encoder is not None:
            shared = model.video_terms(model.encode_contexts(contexts.frames, contexts.windows, contexts.mask))
        if model.segment_encoder is None:
            assert shared is not None
            return shared[of_video]
        embedded = model.segment_encoder.embed_frames(segments.frames)
        context = None if shared is None else shared[of_video]
        return model.window_logits(embedded, segments.windows, segments.mask, context)


def unfolded_logits(model: Classifier, segments: Windows, contexts: Windows, of_video: Tensor) -> Tensor:
    if isinstance(model, ContextAwareClassifier):
        vectors = model.encode_context(contexts.frames[contexts.windows], contexts.lengths)
        return segments.call(model, vectors[of_video])
    return segments.call(model) if isinstance(model, ContextAgnosticClassifier) else contexts.call(model)[of_video]


def check(model: Classifier, seed: int = 1) -> None:
    segments, contexts = Windows(seed), Windows(seed + 1, count=5)
    of_video = torch.arange(24) // 3 % 5
    expected = unfolded_logits(model, segments, contexts, of_video)
    found = folded_logits(FoldedClassifier(model, CPU), segments, contexts, of_video)
    assert found.dtype == torch.float32
    assert found.shape == (24, NUM_CLASSES)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    # The comparison would be meaningless with equal or saturated logits.
    assert expected.std(0).min() > 4e-3
    assert expected.abs().median() < 10


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("kind", ["video", "agnostic"])
def test_folding_keeps_the_logits_of_every_encoder(name: str, kind: str) -> None:
    make = video if kind == "video" else agnostic
    check(make(ENCODERS[name], seed=3))


@pytest.mark.parametrize("name", ENCODERS)
def test_folding_keeps_the_logits_of_every_encoder_in_a_context_aware_classifier(name: str) -> None:
    check(aware(ENCODERS[name], NEXTVLAD.model_copy(update={"cut_after_linear": True}), seed=4))
    check(aware(DBOF, ENCODERS[name], seed=5))


@pytest.mark.parametrize("mixture", MIXTURES)
def test_folding_keeps_the_logits_of_every_mixture(mixture: str) -> None:
    check(agnostic(mixture=mixture, seed=6))
    check(aware(mixture=mixture, seed=7))


@pytest.mark.parametrize("reduction", [0, 1, 4])
def test_folding_keeps_the_logits_with_and_without_a_fusion_gate(reduction: int) -> None:
    check(aware(reduction=reduction, seed=8))


def test_logits_far_below_zero_are_accurate() -> None:
    """Segments at the end of a ranking have such logits."""
    model = agnostic(seed=9)
    with torch.no_grad():
        model.mixture.experts.bias -= 12
    segments = Windows(1)
    expected = segments.call(model)
    assert expected.median() < -10
    found = folded_logits(FoldedClassifier(model, CPU), segments, segments, torch.arange(24))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_bfloat16_is_close_to_float32() -> None:
    model = aware(seed=10)
    segments, contexts, of_video = Windows(1), Windows(2, 5), torch.arange(24) % 5
    expected = unfolded_logits(model, segments, contexts, of_video)
    found = folded_logits(FoldedClassifier(model, CPU, torch.bfloat16), segments, contexts, of_video)
    assert found.dtype == torch.float32
    difference = (found - expected).abs()
    assert 0 < difference.max() < 0.2 * expected.std()


def test_folding_does_not_change_the_model() -> None:
    model = aware(seed=11)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folded_logits(FoldedClassifier(model, CPU), Windows(1), Windows(2, 5), torch.arange(24) % 5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_properties_of_folded_classifiers() -> None:
    folded = fold_classifiers({"a": agnostic(), "b": aware(), "v": video()})
    assert [model.kind for model in folded.values()] == ["agnostic", "aware", "video"]
    assert [model.margin_frames for model in folded.values()] == [3, 3, 0]
    assert [model.max_frames for model in folded.values()] == [0, WIDTH, WIDTH]
    assert {model.num_classes for model in folded.values()} == {NUM_CLASSES}


def test_windows_are_batch_invariant() -> None:
    folded = FoldedClassifier(aware(seed=12), CPU)
    assert folded.segment_encoder is not None
    segments, contexts, of_video = Windows(1), Windows(2, 5), torch.arange(24) % 5
    together = folded_logits(folded, segments, contexts, of_video)
    with torch.inference_mode():
        context = folded.video_terms(folded.encode_contexts(contexts.frames, contexts.windows, contexts.mask))
        embedded = folded.segment_encoder.embed_frames(segments.frames)
        for row in range(24):
            one = slice(row, row + 1)
            alone = folded.window_logits(embedded, segments.windows[one], segments.mask[one], context[of_video[one]])
            assert torch.equal(alone, together[one])


def test_equal_context_encoders_are_shared() -> None:
    first, second, other = aware(seed=1), aware(seed=2), aware(seed=3)
    second.context_encoder.load_state_dict(first.context_encoder.state_dict())
    teacher = video(NEXTVLAD, seed=4)
    teacher.encoder.load_state_dict(first.context_encoder.state_dict())
    folded = fold_classifiers({"first": first, "second": second, "other": other, "teacher": teacher})
    assert folded["second"].context_encoder is folded["first"].context_encoder
    assert folded["teacher"].context_encoder is folded["first"].context_encoder
    assert folded["other"].context_encoder is not folded["first"].context_encoder
    assert folded["second"].segment_encoder is not folded["first"].segment_encoder


def with_one_change(model: nn.Module, name: str) -> nn.Module:
    with torch.no_grad():
        model.state_dict()[name].view(-1)[-1] += 1e-3
    return model


@pytest.mark.parametrize("name", ["rgb.centroids", "rgb.descriptor_norm.running_var", "projection.bias"])
def test_encoders_that_differ_in_one_parameter_are_not_shared(name: str) -> None:
    first, second = aware(seed=1), aware(seed=1)
    assert digest_of(first) == digest_of(second)
    with_one_change(second.context_encoder, name)
    assert digest_of(first.context_encoder) != digest_of(second.context_encoder)
    assert digest_of(first) != digest_of(second)
    folded = fold_classifiers({"first": first, "second": second})
    assert folded["first"].context_encoder is not folded["second"].context_encoder
    assert folded["first"].digest != folded["second"].digest


def test_encoders_that_differ_in_a_setting_are_not_shared() -> None:
    fewer_frames = NEXTVLAD.model_copy(update={"max_frames": 3})
    first, second = aware(seed=1), aware(fewer_frames, seed=1)
    second.load_state_dict(first.state_dict())
    folded = fold_classifiers({"first": first, "second": second})
    assert folded["first"].context_encoder is not folded["second"].context_encoder
    wider_margin = ContextAgnosticClassifier(agnostic().config.model_copy(update={"margin_frames": 9}), NUM_CLASSES)
    wider_margin.load_state_dict(agnostic().state_dict())
    assert digest_of(wider_margin) != digest_of(agnostic())
