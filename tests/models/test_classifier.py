"""What holds for every network: videos do not influence each other, and the three classifiers share their parts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.models.test_layers import randomize
from yt8m.models import ENCODERS, build_encoder
from yt8m.models.classifier import (
    ContextAgnosticClassifier,
    ContextAgnosticClassifierConfig,
    ContextAwareClassifier,
    FusionConfig,
    VideoClassifier,
    VideoClassifierConfig,
)
from yt8m.models.dbof import DBoFConfig, DBoFEncoder
from yt8m.models.encoder import Encoder
from yt8m.models.layers.mixture import MixtureConfig
from yt8m.models.nextvlad import NeXtVLADConfig, NeXtVLADEncoder
from yt8m.training.optimization import decaying_parameters

DBOF = DBoFConfig(hidden_size=16, output_size=8)
NEXTVLAD = NeXtVLADConfig(num_clusters=4, num_groups=8, output_size=8)
ENCODER_CONFIGS = [
    DBOF,
    DBOF.model_copy(update={"frame_se_reduction": 0, "input_batch_norm": True}),
    NEXTVLAD,
    NEXTVLAD.model_copy(update={"cut_after_linear": True, "input_batch_norm": True}),
    DBOF.model_copy(update={"input": "bytes"}),
    NEXTVLAD.model_copy(update={"input": "bytes", "assignment_batch_norm": False}),
]


def random_frames(batch: int, frames: int) -> Tensor:
    return torch.randint(0, 256, (batch, frames, 1152), dtype=torch.uint8)


def video_classifier(encoder: DBoFConfig | NeXtVLADConfig, **mixture: object) -> VideoClassifier:
    torch.manual_seed(0)
    config = VideoClassifierConfig(encoder=encoder, mixture=MixtureConfig.model_validate(mixture))
    model = VideoClassifier(config, 5)
    randomize(model)
    return model


def aware_classifier() -> ContextAwareClassifier:
    fusion = FusionConfig(output_size=8)
    model = ContextAwareClassifier.from_video_classifiers(
        video_classifier(DBOF), video_classifier(NEXTVLAD), fusion=fusion, mixture=MixtureConfig(num_experts=2)
    )
    randomize(model.fusion_norm)
    return model


@pytest.fixture(
    params=ENCODER_CONFIGS,
    ids=["dbof", "dbof variant", "nextvlad", "nextvlad variant", "dbof of bytes", "nextvlad of bytes"],
)
def encoder(request: pytest.FixtureRequest) -> Encoder:
    torch.manual_seed(0)
    built = build_encoder(request.param)
    randomize(built)
    return built


def test_a_config_s_type_says_which_class_it_builds() -> None:
    assert {DBoFConfig: DBoFEncoder, NeXtVLADConfig: NeXtVLADEncoder} == ENCODERS
    for config in ENCODER_CONFIGS:
        built = build_encoder(config)
        assert type(built) is ENCODERS[type(config)]
        assert built.output_size == 8


@pytest.mark.parametrize("num_frames", [1, 2, 11, 300])
def test_any_number_of_frames(encoder: Encoder, num_frames: int) -> None:
    frames, lengths = random_frames(2, num_frames), torch.tensor([num_frames, 1])
    for training in (True, False):
        encoded = encoder.train(training)(frames, lengths)
        assert encoded.shape == (2, 8)
        assert encoded.isfinite().all()


def test_one_frame_of_one_video_can_be_trained_on(encoder: Encoder) -> None:
    encoder.train()(random_frames(1, 1), torch.tensor([1])).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


def test_a_video_s_numbers_do_not_depend_on_its_batch(encoder: Encoder) -> None:
    encoder.eval()
    lengths = torch.tensor([1, 7, 150, 300, 40])
    frames = random_frames(5, 300)
    with torch.no_grad():
        together = encoder(frames, lengths)
        for i, length in enumerate(lengths.tolist()):
            alone = encoder(frames[i : i + 1, :length], lengths[i : i + 1])
            assert (together[i] - alone[0]).abs().max() < 1e-6 * max(1, alone.abs().max())


@pytest.mark.parametrize("training", [True, False])
def test_what_stands_at_padding_does_not_matter(encoder: Encoder, training: bool) -> None:
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


def test_bfloat16_autocast_stays_near_float32(encoder: Encoder) -> None:
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


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own, while tracing
@pytest.mark.parametrize(
    "config",
    [DBOF.model_copy(update={"dropout": 0.0}), NEXTVLAD.model_copy(update={"cluster_dropout": 0.0})],
    ids=["dbof", "nextvlad"],
)
def test_compiles_whole_into_one_graph_with_the_same_numbers(config: DBoFConfig | NeXtVLADConfig) -> None:
    model = video_classifier(config, dropout=0.0)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    frames, lengths = random_frames(3, 6), torch.tensor([6, 1, 4])
    results = []
    for run in (model, compiled):
        loss = run(frames, lengths).square().sum()
        results.append([loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))])
    for plain, ours in zip(*results, strict=True):
        torch.testing.assert_close(plain, ours, atol=1e-4 * max(1, float(plain.abs().max())), rtol=1e-4)


# ------------------------------------------------------------------------------------------------ the classifiers


def test_video_classifier_is_encoder_then_mixture() -> None:
    model = video_classifier(DBOF, per_class=True).eval()
    frames, lengths = random_frames(3, 6), torch.tensor([6, 1, 4])
    assert torch.equal(model(frames, lengths), model.mixture(model.encoder(frames, lengths)))
    assert model(frames, lengths).shape == (3, 5)
    assert model.parameter_groups() == {"new": [name for name, _ in model.named_parameters()]}


def test_agnostic_classifier_starts_as_the_video_classifier() -> None:
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


def test_aware_classifier_copies_both_encoders() -> None:
    context, segment = video_classifier(DBOF), video_classifier(NEXTVLAD)
    aware = ContextAwareClassifier.from_video_classifiers(context, segment, fusion=FusionConfig(output_size=8))
    assert aware.config.segment_encoder == NEXTVLAD.model_copy(update={"cut_after_linear": True})
    assert aware.config.context_encoder == DBOF
    for ours, theirs in ((aware.context_encoder, context.encoder), (aware.segment_encoder, segment.encoder)):
        for name, tensor in ours.state_dict().items():
            assert torch.equal(tensor, theirs.state_dict()[name]), name
    whole = ContextAwareClassifier.from_video_classifiers(segment, context)
    assert whole.segment_encoder.video_gate is not None
    assert whole.context_encoder.gate is not None
    assert whole.mixture.experts.in_features == 2048


def test_aware_classifier_is_its_parts_in_order() -> None:
    model = aware_classifier().double().eval()
    frames, lengths = random_frames(3, 11), torch.tensor([11, 8, 11])
    videos, video_lengths = random_frames(3, 20), torch.tensor([20, 13, 9])
    context = model.encode_context(videos, video_lengths)
    assert torch.equal(context, model.context_encoder(videos, video_lengths))
    logits = model(frames, lengths, context)
    joint = torch.cat([context, model.segment_encoder(frames, lengths)], 1)
    norm = model.fusion_norm
    joint = (joint - norm.running_mean) / torch.sqrt(norm.running_var + 1e-5) * norm.weight + norm.bias
    joint = (joint @ model.fusion.weight.T + model.fusion.bias).clamp(min=0)
    torch.testing.assert_close(logits, model.mixture(model.fusion_gate(joint)), atol=1e-12, rtol=1e-12)


def test_context_encoder_is_frozen_and_stays_in_eval_mode() -> None:
    model = aware_classifier().train()
    assert not any(module.training for module in model.context_encoder.modules())
    assert model.segment_encoder.training
    assert model.mixture.expert_norm.training
    before = {name: tensor.clone() for name, tensor in model.context_encoder.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    moving = model.segment_encoder.projection.weight.clone()
    context = model.encode_context(random_frames(3, 20), torch.tensor([20, 9, 3]))
    model(random_frames(3, 11), torch.tensor([11, 8, 9]), context).sum().backward()
    optimizer.step()
    for name, tensor in model.context_encoder.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(p.grad is None for p in model.context_encoder.parameters())
    assert not torch.equal(model.segment_encoder.projection.weight, moving)
    assert not model.eval().training


def test_aware_parameter_groups_leave_the_frozen_encoder_out() -> None:
    model = aware_classifier()
    groups = model.parameter_groups()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert set(groups["segment_encoder"]) | set(groups["new"]) == trained
    assert groups["segment_encoder"] == [f"segment_encoder.{n}" for n, _ in model.segment_encoder.named_parameters()]
    assert "fusion.weight" in groups["new"]
    assert "mixture.gate.bias" in groups["new"]
    assert decaying_parameters(model)["segment_encoder.rgb.centroids"] is False


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_parameter_counts_at_paper_sizes() -> None:
    """SPEC: dbof-3 36M, nextvlad-2 33M, aware 59M to 67M; the layers' sizes written out here give the exact numbers."""
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
