"""NeXtVLAD, compared with the formula of the paper, which computes the (B, T, K, G, J) tensor of residuals."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.support.plain_layers import plain_batch_norm, plain_gate
from tests.support.tiny_models import random_frames, randomize
from yt8m.errors import UsageError
from yt8m.models.config import NeXtVLADConfig
from yt8m.models.nextvlad import ModalityVLAD, NeXtVLADEncoder
from yt8m.settings import validated
from yt8m.training.optimization import decaying_parameters

LENGTHS = torch.tensor([6, 1, 4])
ORDERS = [(False, False), (True, False), (True, True)]


def plain_vlad(vlad: ModalityVLAD, features: Tensor, mask: Tensor) -> Tensor:
    """Lin, Xiao, Fan 2018, equations 3 to 6, with the residual of every frame, group and cluster."""
    batch, frames, _ = features.shape
    groups, clusters, size = vlad.num_groups, vlad.num_clusters, vlad.group_size
    x = features / features.norm(dim=-1, keepdim=True)
    expanded = x @ vlad.expansion.weight.T + vlad.expansion.bias
    attention = 1 / (1 + torch.exp(-(expanded @ vlad.attention.weight.T + vlad.attention.bias)))
    logits = (expanded @ vlad.assignment.weight.T + vlad.assignment.bias).view(batch, frames, groups, clusters)
    filled = torch.zeros_like(logits)
    filled[mask] = logits[mask]
    if vlad.assignment_norm is not None:
        filled[mask] = plain_batch_norm(vlad.assignment_norm, logits[mask].reshape(-1, clusters)).view(
            -1, groups, clusters
        )
    assignment = torch.exp(filled) / torch.exp(filled).sum(-1, keepdim=True)
    x = expanded.view(batch, frames, 1, groups, size)
    residuals = x - vlad.centroids.view(1, 1, clusters, 1, size)
    weights = assignment.transpose(2, 3) * attention.unsqueeze(2) * mask.view(batch, frames, 1, 1)
    descriptor = (residuals * weights.unsqueeze(-1)).sum((1, 3))
    descriptor = descriptor / descriptor.norm(dim=-1, keepdim=True)
    return plain_batch_norm(vlad.descriptor_norm, descriptor.reshape(batch, -1))


def plain_nextvlad(encoder: NeXtVLADEncoder, frames: Tensor, lengths: Tensor) -> Tensor:
    mask = torch.arange(frames.shape[1]) < lengths.unsqueeze(1)
    features = frames.double()
    if encoder.config.input == "dequantized":
        features = features * 4 / 255 + 4 / 512 - 2
    if encoder.config.input_batch_norm:
        normalized = features.clone()
        normalized[mask] = plain_batch_norm(encoder.frame_input.norm, features[mask])
        features = normalized
    parts = [plain_vlad(encoder.rgb, features[..., :1024], mask), plain_vlad(encoder.audio, features[..., 1024:], mask)]
    encoded = torch.cat(parts, 1) @ encoder.projection.weight.T + encoder.projection.bias
    if encoder.config.cut_after_linear:
        return encoded
    encoded = encoded.clamp(min=0)
    return encoded if encoder.gate is None else plain_gate(encoder.gate, encoded)


def tiny(**settings: object) -> NeXtVLADEncoder:
    torch.manual_seed(0)
    sizes = {"num_clusters": 4, "num_groups": 8, "output_size": 6, "se_reduction": 2, "cluster_dropout": 0.0}
    encoder = NeXtVLADEncoder(NeXtVLADConfig.model_validate({**sizes, **settings})).double()
    randomize(encoder)
    return encoder


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"expansion": 1, "num_groups": 1},
        {"se_reduction": 0},
        {"cut_after_linear": True},
        {"input_batch_norm": True},
        {"input": "bytes"},
        {"input": "bytes", "input_batch_norm": True},
        {"assignment_batch_norm": False},
        {"assignment_batch_norm": False, "num_clusters": 5},
    ],
    ids=str,
)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("order", ORDERS, ids=["expanded", "assignment folded", "expanded last"])
def test_nextvlad_and_its_gradients_equal_the_formula(
    settings: dict[str, object], training: bool, order: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = tiny(**settings).train(training)
    monkeypatch.setattr(ModalityVLAD, "_cheapest_order", lambda *_: order)
    frames = random_frames(3, 6)
    upstream = torch.randn(3, 6, dtype=torch.float64)
    results = []
    for run in (plain_nextvlad, lambda e, f, n: e(f, n)):
        out = run(encoder, frames, LENGTHS)
        results.append([out, *torch.autograd.grad(out, list(encoder.parameters()), upstream)])
    names = ["output", *(name for name, _ in encoder.named_parameters())]
    for name, plain, ours in zip(names, *results, strict=True):
        assert (plain - ours).abs().max() < 1e-10 * max(1, plain.abs().max()), name


def test_the_order_of_products_depends_on_the_sizes() -> None:
    with torch.device("meta"):
        paper, small = ModalityVLAD(1024, 64, 16, 2, 0.25), ModalityVLAD(1024, 16, 16, 2, 0.25)
    assert paper._cheapest_order(48, 150) == (True, False)
    assert paper._cheapest_order(128, 11) == (False, False)
    assert small._cheapest_order(64, 150) == (True, True)
    assert small._cheapest_order(1, 1) == (False, False)


def test_complete_clusters_are_dropped_and_the_others_scaled() -> None:
    torch.manual_seed(0)
    vlad = ModalityVLAD(128, 8, 4, 2, 0.25)
    features, mask = torch.randn(50, 3, 128), torch.ones(50, 3, dtype=torch.bool)
    dropped = vlad.train()(features, mask).view(50, 8, 64)
    vlad.cluster_dropout.p = 0.0
    complete = vlad(features, mask).view(50, 8, 64)
    is_dropped = dropped.abs().amax(2) == 0
    assert 0.15 < is_dropped.float().mean() < 0.35
    torch.testing.assert_close(dropped[~is_dropped], complete[~is_dropped] / 0.75)
    vlad.cluster_dropout.p = 0.25
    assert (vlad.eval()(features, mask).view(50, 8, 64).abs().amax(2) > 0).all()


def test_audio_has_half_the_clusters() -> None:
    assert tiny(num_clusters=7).audio.centroids.shape == (3, 32)
    with torch.device("meta"):
        encoder = NeXtVLADEncoder(NeXtVLADConfig())
    assert encoder.rgb.centroids.shape == (64, 128)
    assert encoder.audio.centroids.shape == (32, 16)
    assert encoder.rgb.assignment_norm.weight.shape == (64,)
    assert encoder.projection.weight.shape == (2048, 64 * 128 + 32 * 16)
    assert encoder.gate.squeeze.weight.shape == (512, 2048)
    assert (encoder.config.cluster_dropout, encoder.config.max_frames) == (0.25, 150)
    assert encoder.config.input == "dequantized"
    assert encoder.config.assignment_batch_norm


def test_cut_encoder_ends_before_relu_and_gate() -> None:
    complete, cut = tiny().eval(), tiny(cut_after_linear=True).eval()
    assert cut.gate is None
    cut.load_state_dict({name: complete.state_dict()[name] for name in cut.state_dict()})
    frames = random_frames(3, 6)
    features = cut(frames, LENGTHS)
    assert features.min() < 0
    torch.testing.assert_close(complete.gate(features.clamp(min=0)), complete(frames, LENGTHS))


def test_centroids_are_initialized_at_the_scale_of_the_expanded_features() -> None:
    torch.manual_seed(0)
    vlad = ModalityVLAD(1024, 64, 16, 2, 0.25)
    unit = torch.nn.functional.normalize(torch.randn(500, 1024), dim=-1)
    assert vlad.centroids.std().item() == pytest.approx(vlad.expansion(unit).std().item(), rel=0.05)


def test_centroids_do_not_decay() -> None:
    decays = decaying_parameters(tiny())
    assert not decays["rgb.centroids"]
    assert decays["rgb.assignment.weight"]
    assert decays["rgb.expansion.weight"]
    assert not decays["audio.assignment_norm.weight"]
    assert sorted(name for name, decay in decays.items() if decay) == sorted(
        [f"{side}.{layer}.weight" for side in ("rgb", "audio") for layer in ("expansion", "attention", "assignment")]
        + ["projection.weight", "gate.squeeze.weight", "gate.excite.weight"]
    )


def test_invalid_settings_are_rejected() -> None:
    with pytest.raises(UsageError, match="num_groups 48 must divide the expanded rgb features, 2048"):
        NeXtVLADEncoder(NeXtVLADConfig(num_groups=48))
    with pytest.raises(UsageError, match="num_groups 512 must divide the expanded audio features, 256"):
        NeXtVLADEncoder(NeXtVLADConfig(num_groups=512))
    with pytest.raises(UsageError, match="'num_clusters'"):
        validated(NeXtVLADConfig, {"num_clusters": 1}, "recipe")
    with pytest.raises(UsageError, match=r"did you mean 'num_clusters'\?"):
        validated(NeXtVLADConfig, {"n_clusters": 8}, "recipe")
