"""The plain models that training is compared with have the same outputs, gradients, and weights after some steps."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from tests.support.tiny_models import randomize
from yt8m.models.classifier import ContextAgnosticClassifier, ContextAwareClassifier, VideoClassifier
from yt8m.models.config import (
    ContextAgnosticClassifierConfig,
    ContextAwareClassifierConfig,
    DBoFConfig,
    FusionConfig,
    MixtureConfig,
    NeXtVLADConfig,
    VideoClassifierConfig,
)
from yt8m.models.layers import blocks
from yt8m.models.nextvlad import ModalityVLAD
from yt8m.training.config import OptimizationConfig
from yt8m.training.losses import segment_loss, video_loss
from yt8m.training.optimization import learning_rate, make_optimizer, set_learning_rates

CLASSES = 5
OUTPUT = 12
LENGTHS = torch.tensor([7, 3, 1, 5, 7, 2])
DBOF = DBoFConfig(hidden_size=24, output_size=OUTPUT, dropout=0)
NEXTVLAD = NeXtVLADConfig(num_clusters=4, num_groups=8, output_size=OUTPUT, cluster_dropout=0)
MIXTURE = MixtureConfig(num_experts=3, dropout=0)
ORDERS = [(False, False), (True, False), (True, True)]
"""Orders of the products in our NeXtVLAD: everything expanded, assignment folded, expanded last."""

Pair = tuple[nn.Module, nn.Module]


def benchmark(name: str) -> ModuleType:
    """A module of the folder benchmarks, which is not part of the package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        return importlib.import_module(name)


@pytest.fixture(scope="module")
def plain() -> ModuleType:
    return benchmark("plain_models")


@pytest.fixture(scope="module")
def training() -> ModuleType:
    return benchmark("training")


def same_weights(ours: nn.Module, plain: nn.Module) -> Pair:
    randomize(ours)
    plain.load_state_dict(ours.state_dict())
    return ours.double().train(), plain.double().train()


def plain_encoder(plain: ModuleType, config: DBoFConfig | NeXtVLADConfig, cut: bool = False) -> nn.Module:
    if isinstance(config, DBoFConfig):
        return plain.DBoF(config.hidden_size, OUTPUT, dropout=0)
    return plain.NeXtVLAD(config.num_clusters, config.num_groups, OUTPUT, dropout=0, cut=cut)


def video(plain: ModuleType, encoder: DBoFConfig | NeXtVLADConfig, agnostic: bool = False) -> Pair:
    ours: nn.Module
    if agnostic:
        ours = ContextAgnosticClassifier(ContextAgnosticClassifierConfig(encoder=encoder, mixture=MIXTURE), CLASSES)
    else:
        ours = VideoClassifier(VideoClassifierConfig(encoder=encoder, mixture=MIXTURE), CLASSES)
    mixture = plain.Mixture(OUTPUT, CLASSES, experts=3, dropout=0)
    return same_weights(ours, plain.VideoClassifier(plain_encoder(plain, encoder), mixture))


def aware(plain: ModuleType, context: DBoFConfig | NeXtVLADConfig, segment: DBoFConfig | NeXtVLADConfig) -> Pair:
    if isinstance(segment, NeXtVLADConfig):
        segment = segment.model_copy(update={"cut_after_linear": True})
    fusion = FusionConfig(output_size=OUTPUT, dropout=0)
    config = ContextAwareClassifierConfig(
        context_encoder=context, segment_encoder=segment, fusion=fusion, mixture=MIXTURE
    )
    mixture = plain.Mixture(OUTPUT, CLASSES, experts=3, dropout=0)
    encoders = plain_encoder(plain, context), plain_encoder(plain, segment, cut=True)
    return same_weights(
        ContextAwareClassifier(config, CLASSES), plain.AwareClassifier(*encoders, mixture, OUTPUT, dropout=0)
    )


def frames(num_frames: int = 7) -> Tensor:
    return torch.randint(0, 256, (len(LENGTHS), num_frames, 1152), dtype=torch.uint8)


class VideoBatch:
    """Frames with labels, and outputs and losses of both models."""

    def __init__(self) -> None:
        self.inputs = (frames(), LENGTHS)
        self.labels = torch.rand(len(LENGTHS), CLASSES) < 0.3

    def outputs(self, model: nn.Module) -> Tensor:
        return model(*self.inputs)

    def losses(self, plain: ModuleType) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        return lambda logits: double_loss(video_loss, logits, self.labels), lambda p: plain.video_loss(p, self.labels)


class SegmentBatch(VideoBatch):
    """Segments, each with a rating and at least one mined negative."""

    def __init__(self) -> None:
        super().__init__()
        negatives = torch.rand(len(LENGTHS), CLASSES) < 0.7
        negatives[:, 0] = True
        ratings = (torch.rand(len(LENGTHS)) < 0.5).double()
        self.ratings = (torch.randint(CLASSES, (len(LENGTHS),)), ratings, negatives)

    def losses(self, plain: ModuleType) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        return (
            lambda logits: double_loss(segment_loss, logits, *self.ratings),
            lambda p: plain.segment_loss(p, *self.ratings),
        )


class AwareBatch(SegmentBatch):
    """Rated segments, and frames of their videos."""

    def __init__(self) -> None:
        super().__init__()
        self.context = (frames(9), LENGTHS + 2)

    def outputs(self, model: Any) -> Tensor:
        return model(*self.inputs, model.encode_context(*self.context))


def double_loss(loss: Callable[..., Tensor], logits: Tensor, *arguments: Tensor) -> Tensor:
    """Our loss without its rounding to float32."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "float", Tensor.double)
        return loss(logits, *arguments)


CASES: dict[str, tuple[Callable[[ModuleType], Pair], type[VideoBatch]]] = {
    "dbof": (lambda plain: video(plain, DBOF), VideoBatch),
    "nextvlad": (lambda plain: video(plain, NEXTVLAD), VideoBatch),
    "agnostic dbof": (lambda plain: video(plain, DBOF, agnostic=True), SegmentBatch),
    "agnostic nextvlad": (lambda plain: video(plain, NEXTVLAD, agnostic=True), SegmentBatch),
    "aware dbof nextvlad": (lambda plain: aware(plain, DBOF, NEXTVLAD), AwareBatch),
    "aware nextvlad dbof": (lambda plain: aware(plain, NEXTVLAD, DBOF), AwareBatch),
}


def agree(ours: Tensor, plain: Tensor, relative: float, name: str) -> None:
    assert ours.dtype == plain.dtype == torch.float64, name
    scale = plain.abs().max().item()
    # The gradient of a bias before a batch norm consists of rounding errors.
    assert (ours - plain).abs().max().item() <= relative * scale + 1e-15, name


@pytest.mark.parametrize(
    ("case", "order", "matrix_product"),
    [
        (case, order, matrix_product)
        for case in CASES
        for order in (ORDERS if "nextvlad" in case else ORDERS[:1])
        for matrix_product in ([False, True] if "nextvlad" in case else [False])
    ],
    ids=str,
)
def test_outputs_losses_and_gradients_agree(
    case: str, order: tuple[bool, bool], matrix_product: bool, plain: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModalityVLAD, "_cheapest_order", lambda *_: order)
    torch.manual_seed(0)
    make, batch_type = CASES[case]
    ours, theirs = make(plain)
    plain.use_matrix_product(theirs, matrix_product)
    batch = batch_type()
    our_loss, their_loss = batch.losses(plain)
    logits, probabilities = batch.outputs(ours), batch.outputs(theirs)
    agree(torch.sigmoid(logits), probabilities, 1e-10, "probabilities")
    a, b = our_loss(logits), their_loss(probabilities)
    agree(a, b, 1e-10, "loss")
    a.backward()
    b.backward()
    for (name, p), (other, q) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert name == other
        assert (p.grad is None) == (q.grad is None) == name.startswith("context_encoder."), name
        if p.grad is not None:
            assert q.grad.abs().max() > 0, name
            agree(p.grad, q.grad, 1e-10, name)
    for name, p in ours.state_dict().items():
        if p.is_floating_point():
            agree(p, theirs.state_dict()[name], 1e-12, name)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
@pytest.mark.filterwarnings("ignore")  # warnings of the compiler itself
@pytest.mark.parametrize("case", ["dbof", "nextvlad", "aware dbof nextvlad"])
def test_compiled_models_agree_with_the_plain_models(case: str, plain: ModuleType) -> None:
    """Our models are compiled with torch.compile, in float64."""
    torch.manual_seed(0)
    make, batch_type = CASES[case]
    ours, theirs = make(plain)
    batch = batch_type()
    inputs = batch.inputs if not isinstance(batch, AwareBatch) else (*batch.inputs, ours.encode_context(*batch.context))
    our_loss, their_loss = batch.losses(plain)
    logits, probabilities = torch.compile(ours)(*inputs), batch.outputs(theirs)
    agree(torch.sigmoid(logits), probabilities, 1e-10, "probabilities")
    our_loss(logits).backward()
    their_loss(probabilities).backward()
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if p.grad is not None:
            agree(p.grad, q.grad, 1e-10, name)


@pytest.mark.parametrize("case", CASES)
def test_weights_agree_after_three_steps(case: str, plain: ModuleType) -> None:
    torch.manual_seed(0)
    make, batch_type = CASES[case]
    ours, theirs = make(plain)
    slow = list(ours.segment_encoder.parameters()) if "aware" in case else []
    config = OptimizationConfig(steps=8, peak_lr=1e-2, weight_decay=0.1)
    our_optimizer = make_optimizer(ours, config, slow)
    optimizer = plain.adamw(theirs, 1e-2, 0.1)
    schedule = plain.slanted(optimizer, 8)
    before = {name: parameter.clone() for name, parameter in ours.state_dict().items()}
    for step in range(3):
        batch = batch_type()
        our_loss, their_loss = batch.losses(plain)
        set_learning_rates(our_optimizer, learning_rate(step, config))
        our_loss(batch.outputs(ours)).backward()
        nn.utils.clip_grad_norm_(ours.parameters(), config.max_grad_norm)
        our_optimizer.step()
        our_optimizer.zero_grad(set_to_none=True)
        plain.train_step(theirs, optimizer, schedule, their_loss(batch.outputs(theirs)))
    for name, weights in theirs.state_dict().items():
        if weights.is_floating_point():
            agree(ours.state_dict()[name], weights, 1e-8, name)
        else:
            assert torch.equal(ours.state_dict()[name], weights), name
        if not name.startswith("context_encoder."):
            assert not torch.equal(weights, before[name]), name


def test_needed_flops_are_those_of_our_step(training: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without padding, the two numbers agree except for biases that are folded into others."""
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", 1 << 60)
    for case in training.CASES:
        with FakeTensorMode():
            model = training.our_model(case).train()
            frames = torch.zeros(case.batch, case.frames, 1152, dtype=torch.uint8)
            context = [torch.zeros(case.batch, 2048)] if case.kind == "aware" else []
            with FlopCounterMode(display=False) as counter:
                model(frames, torch.full((case.batch,), case.frames), *context).sum().backward()
        needed = training.needed_flops(case, case.batch * case.frames)
        assert needed == pytest.approx(counter.get_total_flops(), rel=0.02), case.name
