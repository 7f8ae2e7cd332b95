"""Folded classifiers against the classifiers that they are made of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.prediction.test_predict import trained
from yt8m.inference.classifier import FoldedClassifier, digest_of, fold_classifiers
from yt8m.inference.encoders import folded_encoder
from yt8m.inference.linear import FoldedLinear, in_chunks
from yt8m.models import EncoderConfig
from yt8m.models.classifier import (
    Classifier,
    ContextAgnosticClassifier,
    ContextAgnosticClassifierConfig,
    ContextAwareClassifier,
    ContextAwareClassifierConfig,
    FusionConfig,
    VideoClassifier,
    VideoClassifierConfig,
)
from yt8m.models.dbof import DBoFConfig
from yt8m.models.encoder import Encoder
from yt8m.models.layers.input import FrameInput
from yt8m.models.layers.mixture import MixtureConfig
from yt8m.models.nextvlad import NeXtVLADConfig

CPU = torch.device("cpu")
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
    "nextvlad, assignment as it is": NEXTVLAD.model_copy(update={"assignment_batch_norm": False}),
    "nextvlad, cut": NEXTVLAD.model_copy(update={"cut_after_linear": True}),
    "nextvlad, one group": NEXTVLAD.model_copy(update={"num_groups": 1, "expansion": 1}),
}
MIXTURES = {
    "shared gate": MixtureConfig(num_experts=3, initial_probability=0.3),
    "a gate a class": MixtureConfig(num_experts=2, per_class=True, initial_probability=0.3),
    "mean of logits": MixtureConfig(num_experts=3, average="logits", initial_probability=0.3),
    "mean of logits, a gate a class": MixtureConfig(
        num_experts=2, average="logits", per_class=True, initial_probability=0.3
    ),
    "one expert": MixtureConfig(num_experts=1, initial_probability=0.3),
}


def ready(model: Any, seed: int) -> Any:
    """Weights and statistics as training leaves them, also where networks see the numbers 0 to 255."""
    model = trained(model, seed)
    # Far apart, so that what is left out would show.
    model.mixture.experts.weight.data.mul_(4)
    for module in model.modules():
        if isinstance(module, FrameInput) and module.values == "bytes" and module.norm is not None:
            module.norm.running_mean.add_(127)
            module.norm.running_var.mul_(5000)
    for encoder in model.modules():
        if isinstance(encoder, Encoder) and encoder.frame_input.values == "bytes" and encoder.frame_input.norm is None:
            # Otherwise all would be lost in saturation.
            layer = getattr(encoder, "frame_projection", None)
            if layer is not None:
                layer.weight.data.div_(100)
    return model


def video(encoder: EncoderConfig = DBOF, mixture: str = "shared gate", seed: int = 0) -> VideoClassifier:
    torch.manual_seed(seed)
    config = VideoClassifierConfig(encoder=encoder, mixture=MIXTURES[mixture])
    model: VideoClassifier = ready(VideoClassifier(config, NUM_CLASSES), seed)
    return model


def agnostic(encoder: EncoderConfig = DBOF, mixture: str = "shared gate", seed: int = 0) -> ContextAgnosticClassifier:
    torch.manual_seed(seed)
    config = ContextAgnosticClassifierConfig(encoder=encoder, mixture=MIXTURES[mixture])
    model: ContextAgnosticClassifier = ready(ContextAgnosticClassifier(config, NUM_CLASSES), seed)
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
    model: ContextAwareClassifier = ready(ContextAwareClassifier(config, NUM_CLASSES), seed)
    return model


class Windows:
    """Frames, and windows of 1 to 11 of them in any order, so that some see the same frames."""

    def __init__(self, seed: int, count: int = 24) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.frames = torch.randint(0, 256, (31, 1152), generator=generator, dtype=torch.uint8)
        self.frames[3] = 0
        self.frames[4] = 255
        # Quiet frames beside loud ones: maxima and means differ.
        self.frames[5:9] //= 4
        self.windows = torch.randint(0, 31, (count, WIDTH), generator=generator)
        self.lengths = torch.arange(count) % WIDTH + 1
        self.mask = torch.arange(WIDTH) < self.lengths.unsqueeze(1)

    def call(self, model: Any, *context: Tensor) -> Tensor:
        """The classifier's own logits: a window is a video of its own, with other bytes beyond its length."""
        with torch.no_grad():
            logits: Tensor = model(self.frames[self.windows], self.lengths, *context)
        return logits


def folded_logits(model: FoldedClassifier, seen: Windows, contexts: Windows, of_video: Tensor) -> Tensor:
    with torch.inference_mode():
        shared = None
        if model.context_encoder is not None:
            shared = model.of_videos(model.encode_contexts(contexts.frames, contexts.windows, contexts.mask))
        if model.segment_encoder is None:
            assert shared is not None
            return shared[of_video]
        described = model.segment_encoder.describe(seen.frames)
        context = None if shared is None else shared[of_video]
        return model.of_windows(described, seen.windows, seen.mask, context)


def own_logits(model: Classifier, seen: Windows, contexts: Windows, of_video: Tensor) -> Tensor:
    if isinstance(model, ContextAwareClassifier):
        vectors = model.encode_context(contexts.frames[contexts.windows], contexts.lengths)
        return seen.call(model, vectors[of_video])
    return seen.call(model) if isinstance(model, ContextAgnosticClassifier) else contexts.call(model)[of_video]


def check(model: Classifier, seed: int = 1) -> None:
    seen, contexts = Windows(seed), Windows(seed + 1, count=5)
    of_video = torch.arange(24) // 3 % 5
    expected = own_logits(model, seen, contexts, of_video)
    found = folded_logits(FoldedClassifier(model, CPU), seen, contexts, of_video)
    assert found.dtype == torch.float32
    assert found.shape == (24, NUM_CLASSES)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    # Logits that are all alike, or that saturate, would agree whatever is computed.
    assert expected.std(0).min() > 4e-3
    assert expected.abs().median() < 10


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("kind", ["video", "agnostic"])
def test_every_encoder(name: str, kind: str) -> None:
    make = video if kind == "video" else agnostic
    check(make(ENCODERS[name], seed=3))


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_in_a_context_aware_classifier(name: str) -> None:
    check(aware(ENCODERS[name], NEXTVLAD.model_copy(update={"cut_after_linear": True}), seed=4))
    check(aware(DBOF, ENCODERS[name], seed=5))


@pytest.mark.parametrize("mixture", MIXTURES)
def test_every_mixture(mixture: str) -> None:
    check(agnostic(mixture=mixture, seed=6))
    check(aware(mixture=mixture, seed=7))


@pytest.mark.parametrize("reduction", [0, 1, 4])
def test_fusion_with_and_without_a_gate(reduction: int) -> None:
    check(aware(reduction=reduction, seed=8))


def test_a_mixture_that_says_nothing_is_likely_is_folded_too() -> None:
    """Logits far below zero, where a ranking's end is."""
    model = agnostic(seed=9)
    with torch.no_grad():
        model.mixture.experts.bias -= 12
    seen = Windows(1)
    expected = seen.call(model)
    assert expected.median() < -10
    found = folded_logits(FoldedClassifier(model, CPU), seen, seen, torch.arange(24))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_half_the_digits_stay_close() -> None:
    model = aware(seed=10)
    seen, contexts, of_video = Windows(1), Windows(2, 5), torch.arange(24) % 5
    expected = own_logits(model, seen, contexts, of_video)
    found = folded_logits(FoldedClassifier(model, CPU, torch.bfloat16), seen, contexts, of_video)
    assert found.dtype == torch.float32
    difference = (found - expected).abs()
    assert 0 < difference.max() < 0.2 * expected.std()


def test_a_model_that_is_folded_is_left_as_it_is() -> None:
    model = aware(seed=11)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folded_logits(FoldedClassifier(model, CPU), Windows(1), Windows(2, 5), torch.arange(24) % 5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_a_classifier_sees_is_kept() -> None:
    folded = fold_classifiers({"a": agnostic(), "b": aware(), "v": video()}, CPU)
    assert [model.kind for model in folded.values()] == ["agnostic", "aware", "video"]
    assert [model.margin_frames for model in folded.values()] == [3, 3, 0]
    assert [model.max_frames for model in folded.values()] == [0, WIDTH, WIDTH]
    assert {model.num_classes for model in folded.values()} == {NUM_CLASSES}


# -------------------------------------------------------------------------------------------------------------- chunks


@pytest.mark.parametrize("rows", [1, 2, 5, 6])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 6, 7, 100])
def test_chunks_always_have_their_size(rows: int, size: int) -> None:
    shapes: list[tuple[int, ...]] = []

    def sums(first: Tensor, second: Tensor) -> Tensor:
        shapes.extend([tuple(first.shape), tuple(second.shape)])
        assert torch.equal(first[:, 0], second), "rows stay together"
        return 2 * first

    values = torch.arange(rows * 3).view(rows, 3)
    found = in_chunks(sums, size, values, values[:, 0])
    assert torch.equal(found, 2 * values)
    assert shapes == [(size, 3), (size,)] * -(-rows // size)


def test_chunks_are_filled_up_with_rows_that_are_there() -> None:
    """Zeros would be no window: one without a frame divides by nothing."""
    seen: list[Tensor] = []

    def noted(rows: Tensor) -> Tensor:
        seen.append(rows)
        return rows

    in_chunks(noted, 4, torch.tensor([1, 2, 3, 4, 5, 6]))
    assert [rows.tolist() for rows in seen] == [[1, 2, 3, 4], [5, 6, 5, 5]]


@pytest.mark.parametrize("rows", [64, 512, 1024])
@pytest.mark.parametrize(
    ("num_inputs", "num_outputs"), [(1152, 40), (40, 5), (24, 10), (10, 2), (150, 9), (2047, 11), (512, 65)]
)
def test_a_row_comes_to_the_same_bits_wherever_it_stands(rows: int, num_inputs: int, num_outputs: int) -> None:
    generator = torch.Generator().manual_seed(num_inputs)
    weight, bias = torch.randn(num_outputs, num_inputs + 1, generator=generator, dtype=torch.float64).split(
        [num_inputs, 1], dim=1
    )
    linear = FoldedLinear(weight, bias.squeeze(1), torch.float32, CPU)
    features = torch.randn(rows, num_inputs, generator=generator)
    order = torch.randperm(rows, generator=generator)
    assert torch.equal(linear(features[order]), linear(features)[order])


def test_a_window_alone_is_the_window_in_company() -> None:
    folded = FoldedClassifier(aware(seed=12), CPU)
    assert folded.segment_encoder is not None
    seen, contexts, of_video = Windows(1), Windows(2, 5), torch.arange(24) % 5
    together = folded_logits(folded, seen, contexts, of_video)
    with torch.inference_mode():
        context = folded.of_videos(folded.encode_contexts(contexts.frames, contexts.windows, contexts.mask))
        described = folded.segment_encoder.describe(seen.frames)
        for row in range(24):
            one = slice(row, row + 1)
            alone = folded.of_windows(described, seen.windows[one], seen.mask[one], context[of_video[one]])
            assert torch.equal(alone, together[one])


# ------------------------------------------------------------------------------------------------------------- sharing


def test_equal_context_encoders_are_folded_once() -> None:
    first, second, other = aware(seed=1), aware(seed=2), aware(seed=3)
    second.context_encoder.load_state_dict(first.context_encoder.state_dict())
    teacher = video(NEXTVLAD, seed=4)
    teacher.encoder.load_state_dict(first.context_encoder.state_dict())
    folded = fold_classifiers({"first": first, "second": second, "other": other, "teacher": teacher}, CPU)
    assert folded["second"].context_encoder is folded["first"].context_encoder
    assert folded["teacher"].context_encoder is folded["first"].context_encoder
    assert folded["other"].context_encoder is not folded["first"].context_encoder
    assert folded["second"].segment_encoder is not folded["first"].segment_encoder


def nudged(model: nn.Module, name: str) -> nn.Module:
    with torch.no_grad():
        model.state_dict()[name].view(-1)[-1] += 1e-3
    return model


@pytest.mark.parametrize("name", ["rgb.centroids", "rgb.descriptor_norm.running_var", "projection.bias"])
def test_encoders_that_differ_in_any_number_are_not_taken_for_the_same(name: str) -> None:
    first, second = aware(seed=1), aware(seed=1)
    assert digest_of(first) == digest_of(second)
    nudged(second.context_encoder, name)
    assert digest_of(first.context_encoder) != digest_of(second.context_encoder)
    assert digest_of(first) != digest_of(second)
    folded = fold_classifiers({"first": first, "second": second}, CPU)
    assert folded["first"].context_encoder is not folded["second"].context_encoder
    assert folded["first"].digest != folded["second"].digest


def test_equal_weights_under_other_settings_are_not_the_same() -> None:
    fewer = NEXTVLAD.model_copy(update={"max_frames": 3})
    first, second = aware(seed=1), aware(fewer, seed=1)
    second.load_state_dict(first.state_dict())
    folded = fold_classifiers({"first": first, "second": second}, CPU)
    assert folded["first"].context_encoder is not folded["second"].context_encoder
    wider = ContextAgnosticClassifier(agnostic().config.model_copy(update={"margin_frames": 9}), NUM_CLASSES)
    wider.load_state_dict(agnostic().state_dict())
    assert digest_of(wider) != digest_of(agnostic())


def test_an_encoder_without_a_folded_form_is_named() -> None:
    class Mean(Encoder):
        def encode(self, features: Tensor, mask: Tensor) -> Tensor:
            return features.mean(1)

    with pytest.raises(TypeError, match="no folded form of Mean"):
        folded_encoder(Mean(1152, False), torch.float32, CPU)
