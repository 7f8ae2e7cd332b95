"""Layers against plain formulas: `nn.BatchNorm1d` on the valid rows, loops over frames, sums written out."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yt8m.models.layers import blocks as blocks_module
from yt8m.models.layers.batch_norm import MaskedBatchNorm, normalized_linear
from yt8m.models.layers.dropout import Dropout, split_over_processes
from yt8m.models.layers.gating import SqueezeExcite, squeeze_excite
from yt8m.models.layers.input import FRAME_SIZE, FrameInput, dequantize, frame_mask
from yt8m.models.layers.mixture import MixtureConfig, MixtureOfExperts, averaged_logits, mixture_logits
from yt8m.models.layers.pooling import gated_max_mean_pool, masked_max_pool, masked_mean_pool
from yt8m.training.optimization import decaying_parameters

LENGTHS = torch.tensor([5, 1, 3, 4])


@pytest.fixture(params=[blocks_module.BLOCK_ELEMENTS, 7], ids=["one block", "many blocks"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test with everything in one block, and again with blocks of a row or two."""
    monkeypatch.setattr(blocks_module, "BLOCK_ELEMENTS", request.param)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def randomize(module: nn.Module) -> None:
    """Give norms weights, biases and statistics that a wrong formula cannot survive."""
    for child in module.modules():
        if isinstance(child, MaskedBatchNorm):
            child.running_mean.normal_()
            child.running_var.uniform_(0.5, 2)
            if child.weight is not None:
                nn.init.normal_(child.weight)
                nn.init.normal_(child.bias)


# ---------------------------------------------------------------------------------------------------------- frames


def test_dequantize_gives_the_values_of_the_format() -> None:
    every_byte = torch.arange(256, dtype=torch.uint8)
    values = dequantize(every_byte)
    assert values.dtype == torch.float32
    assert values[0].item() == -1.9921875
    assert values[255].item() == pytest.approx(2.0078125, abs=2e-7)
    expected = np.arange(256, dtype=np.float64) * 4 / 255 + 4 / 512 - 2
    np.testing.assert_allclose(values.numpy(), expected, atol=3e-7)
    np.testing.assert_allclose(dequantize(every_byte, torch.float64).numpy(), expected, atol=1e-15)


def test_values_are_not_taken_for_bytes() -> None:
    with pytest.raises(TypeError, match="expected frames as bytes"):
        dequantize(torch.zeros(2, 3))
    with pytest.raises(TypeError, match="expected frames as bytes"):
        FrameInput(values="bytes")(torch.zeros(2, 3, FRAME_SIZE), torch.tensor([3, 3]))


def test_frame_mask() -> None:
    assert frame_mask(torch.tensor([2, 0, 3]), 3).tolist() == [[True, True, False], [False] * 3, [True] * 3]


def test_input_is_zero_at_padding_whatever_stands_there() -> None:
    frames = torch.randint(0, 256, (2, 4, FRAME_SIZE), dtype=torch.uint8)
    features, mask = FrameInput()(frames, torch.tensor([4, 2]))
    assert mask.tolist() == [[True] * 4, [True, True, False, False]]
    assert features[1, 2:].abs().max() == 0
    torch.testing.assert_close(features[1, :2], frames[1, :2].float() * 4 / 255 + 4 / 512 - 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_bytes_may_be_numbers_exactly_and_padding_is_zero_all_the_same(dtype: torch.dtype) -> None:
    frames = torch.arange(2 * 4 * FRAME_SIZE).remainder(256).to(torch.uint8).view(2, 4, FRAME_SIZE)
    kept = frames.clone()
    features, mask = FrameInput(values="bytes")(frames, torch.tensor([4, 2]), dtype)
    assert mask.tolist() == [[True] * 4, [True, True, False, False]]
    assert features.dtype == dtype
    assert features[mask].long().tolist() == kept[mask].tolist()
    assert features.max() == 255
    assert features[1, 2:].abs().max() == 0
    assert torch.equal(frames, kept)


@pytest.mark.parametrize("values", ["dequantized", "bytes"])
def test_input_batch_norm_is_that_of_the_valid_frames(values: Literal["dequantized", "bytes"]) -> None:
    module, plain = FrameInput(batch_norm=True, values=values), nn.BatchNorm1d(FRAME_SIZE, affine=False)
    frames = torch.randint(0, 256, (4, 5, FRAME_SIZE), dtype=torch.uint8)
    for training in (True, False):
        module.train(training)
        plain.train(training)
        features, mask = module(frames, LENGTHS)
        plain_values = frames.float() if values == "bytes" else dequantize(frames)
        torch.testing.assert_close(features[mask], plain(plain_values[mask]), atol=1e-5, rtol=1e-5)
        assert features[~mask].abs().max() == 0
    assert not list(module.parameters())


# ------------------------------------------------------------------------------------------------------ batch norm


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("shape", [(6, 3), (4, 5, 3)])
@pytest.mark.parametrize("affine", [True, False])
def test_masked_batch_norm_is_batch_norm_where_all_is_valid(shape: tuple[int, ...], affine: bool) -> None:
    ours, plain = MaskedBatchNorm(3, affine=affine).double(), nn.BatchNorm1d(3, affine=affine).double()
    if affine:
        randomize(ours)
    assert ours.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(ours.state_dict())
    for mask in (None, torch.ones(shape[:-1], dtype=torch.bool)):
        for training in (True, True, False):
            ours.train(training)
            plain.train(training)
            a = (torch.randn(shape, dtype=torch.float64) * 3 + 1).requires_grad_()
            b = a.detach().clone().requires_grad_()
            upstream = torch.randn(shape, dtype=torch.float64)
            out_a, out_b = ours(a, mask), plain(b.reshape(-1, 3)).view(shape)
            out_a.backward(upstream)
            out_b.backward(upstream)
            torch.testing.assert_close(out_a, out_b, atol=1e-12, rtol=1e-12)
            torch.testing.assert_close(a.grad, b.grad, atol=1e-12, rtol=1e-12)
    for name, expected in plain.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], expected, atol=1e-12, rtol=1e-12)
    for (name, p), (_, q) in zip(ours.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-11, rtol=1e-11, msg=name)


@pytest.mark.usefixtures("blocks")
def test_masked_batch_norm_sees_the_valid_frames_only() -> None:
    ours, plain = MaskedBatchNorm(3).double(), nn.BatchNorm1d(3).double()
    mask = frame_mask(LENGTHS, 5)
    a = torch.randn(4, 5, 3, dtype=torch.float64)
    a[~mask] = 1e6
    a.requires_grad_()
    b = a.detach()[mask].requires_grad_()
    upstream = torch.randn(4, 5, 3, dtype=torch.float64)
    out = ours(a, mask)
    (out * upstream * mask.unsqueeze(-1)).sum().backward()
    expected = plain(b)
    (expected * upstream[mask]).sum().backward()
    torch.testing.assert_close(out[mask], expected)
    torch.testing.assert_close(a.grad[mask], b.grad)
    assert a.grad[~mask].abs().max() == 0
    torch.testing.assert_close(ours.running_mean, plain.running_mean)
    torch.testing.assert_close(ours.running_var, plain.running_var)


def test_copies_of_a_channel_share_statistics_weight_and_bias() -> None:
    ours, plain = MaskedBatchNorm(3, copies=4).double(), nn.BatchNorm1d(3).double()
    randomize(ours)
    plain.load_state_dict(ours.state_dict())
    mask = frame_mask(LENGTHS, 5)
    x = torch.randn(4, 5, 4, 3, dtype=torch.float64) + torch.arange(4).view(4, 1)
    for training in (True, False):
        ours.train(training)
        plain.train(training)
        out = ours(x.flatten(2), mask).view_as(x)
        torch.testing.assert_close(out[mask].view(-1, 3), plain(x[mask].view(-1, 3)))
    torch.testing.assert_close(ours.running_var, plain.running_var)


def test_one_valid_frame_in_training_becomes_the_bias() -> None:
    norm = MaskedBatchNorm(3)
    nn.init.normal_(norm.bias)
    x = torch.randn(1, 4, 3, requires_grad=True)
    mask = frame_mask(torch.tensor([1]), 4)
    out = norm(x, mask)
    torch.testing.assert_close(out[0, 0], norm.bias)
    out[mask].sum().backward()
    assert x.grad.isfinite().all()
    assert norm.running_var.isfinite().all()
    torch.testing.assert_close(norm.running_var, torch.full((3,), 0.9))


@pytest.mark.usefixtures("blocks")
def test_variance_survives_a_mean_ten_thousand_times_larger() -> None:
    x = torch.randn(400, 2, dtype=torch.float64) + 1e4
    out = MaskedBatchNorm(2)(x.float())
    expected = (x.float().double() - x.float().double().mean(0)) / x.float().double().std(0, correction=0)
    torch.testing.assert_close(out.double(), expected, atol=2e-3, rtol=0)


@pytest.mark.usefixtures("blocks")
def test_gradient_of_masked_batch_norm() -> None:
    norm = MaskedBatchNorm(2).double()
    randomize(norm)
    mask = frame_mask(LENGTHS, 5)
    x = torch.randn(4, 5, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: norm(y, mask)[mask], x)


@pytest.mark.parametrize("hidden", [2, 50], ids=["folded into the weight", "applied to the features"])
@pytest.mark.parametrize("training", [True, False])
def test_normalized_linear_is_norm_then_linear(hidden: int, training: bool) -> None:
    norm, linear = MaskedBatchNorm(3).double(), nn.Linear(3, hidden).double()
    randomize(norm)
    norm.train(training)
    mask = frame_mask(LENGTHS, 5)
    x = torch.randn(4, 5, 3, dtype=torch.float64)
    results = []
    for apply in (lambda y: normalized_linear(norm, linear, y, mask), lambda y: linear(norm(y, mask))):
        y = x.clone().requires_grad_()
        out = apply(y)[mask]
        parameters = [*norm.parameters(), *linear.parameters()]
        results.append([out, *torch.autograd.grad(out.square().sum(), [y, *parameters])])
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-11, rtol=1e-11)


def test_normalized_linear_in_bfloat16_still_cancels_a_large_mean() -> None:
    norm, linear = MaskedBatchNorm(64), nn.Linear(64, 8)
    x = (torch.randn(500, 64) + 8 * torch.randn(64)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        out = normalized_linear(norm, linear, x, None)
    expected = linear(norm(x.float()))
    assert out.dtype == torch.bfloat16
    assert (out.float() - expected).abs().max() < 0.05


def twice(tensor: Tensor) -> None:
    """A sum over two processes that have the same."""
    tensor.mul_(2)


@pytest.mark.parametrize("copies", [1, 2])
def test_synchronized_batch_norm_is_that_of_all_processes(copies: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two processes with the same batch, each normalizes as one does with the batch twice; gradients too."""
    monkeypatch.setattr(torch.distributed, "all_reduce", twice)
    alone, shared = (MaskedBatchNorm(6 // copies, copies=copies).double() for _ in range(2))
    split_over_processes(shared, 1, 2)
    features = (10 + torch.randn(3, 4, 6, dtype=torch.double)).requires_grad_()
    mask = frame_mask(torch.tensor([4, 1, 2]), 4)
    weights = torch.randn(3, 4, 6, dtype=torch.double) * mask.unsqueeze(-1)
    ours = shared(features, mask)
    theirs = alone(torch.cat([features, features]), mask.repeat(2, 1))
    torch.testing.assert_close(ours[mask], theirs[:3][mask], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(shared.running_var, alone.running_var, rtol=1e-12, atol=0)
    (ours * weights).sum().backward()
    found, features.grad = features.grad, None
    (theirs * weights.repeat(2, 1, 1)).sum().backward()
    # Through the features of both processes; each has a half of it.
    torch.testing.assert_close(2 * found, features.grad, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(2 * shared.weight.grad, alone.weight.grad, rtol=1e-10, atol=1e-12)


def test_batch_norm_is_synchronized_where_it_is_asked_for_and_there_is_anybody() -> None:
    norm = MaskedBatchNorm(2)
    for arguments, expected in (((0, 2), True), ((0, 2, False), False), ((0, 1), False)):
        split_over_processes(nn.Sequential(norm), *arguments)
        assert norm.synchronized is expected


# ------------------------------------------------------------------------------------------------------------- dropout


def test_dropout_of_one_process_is_torch_s() -> None:
    features = torch.randn(8, 6, 5)
    for ours, theirs in ((Dropout(0.3), nn.Dropout(0.3)), (Dropout(0.3, whole=True), nn.Dropout1d(0.3))):
        torch.manual_seed(1)
        found = ours(features)
        torch.manual_seed(1)
        assert torch.equal(found, theirs(features))
        assert ours.eval()(features) is features
        assert Dropout(0.0)(features) is features


@pytest.mark.parametrize("whole", [False, True])
def test_processes_drop_together_what_one_drops(whole: bool) -> None:
    features = torch.randn(12, 6, 5)
    dropout = Dropout(0.4, whole)
    torch.manual_seed(2)
    expected = dropout(features)
    parts = []
    for rank in range(3):
        split_over_processes(dropout, rank, 3)
        torch.manual_seed(2)
        parts.append(dropout(features[4 * rank : 4 * rank + 4]))
    torch.testing.assert_close(torch.cat(parts), expected)
    assert (expected == 0).any()


# ---------------------------------------------------------------------------------------------- gating and pooling


def plain_gate(gate: SqueezeExcite, rows: Tensor) -> Tensor:
    """x * sigmoid(W2 BN(ReLU(W1 BN(x)))) of (N, channels), statistics taken as `gate` is told to."""

    def norm(layer: MaskedBatchNorm, values: Tensor) -> Tensor:
        mean, var = layer.running_mean, layer.running_var
        if gate.training:
            mean, var = values.mean(0), ((values - values.mean(0)) ** 2).mean(0)
        return (values - mean) / torch.sqrt(var + 1e-5) * layer.weight + layer.bias

    hidden = (norm(gate.squeeze_norm, rows) @ gate.squeeze.weight.T + gate.squeeze.bias).clamp(min=0)
    logits = norm(gate.excite_norm, hidden) @ gate.excite.weight.T + gate.excite.bias
    return rows / (1 + torch.exp(-logits))


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("channels", [6, 64])
def test_squeeze_excite_is_its_formula(training: bool, channels: int) -> None:
    gate = SqueezeExcite(channels, 3).double()
    randomize(gate)
    gate.train(training)
    rows = torch.randn(9, channels, dtype=torch.float64)
    torch.testing.assert_close(gate(rows), plain_gate(gate, rows), atol=1e-11, rtol=1e-11)
    mask = frame_mask(LENGTHS, 5)
    frames = torch.randn(4, 5, channels, dtype=torch.float64)
    frames[~mask] = 100
    torch.testing.assert_close(gate(frames, mask)[mask], plain_gate(gate, frames[mask]), atol=1e-11, rtol=1e-11)


def test_reduction_sets_the_hidden_size_and_zero_switches_the_gate_off() -> None:
    assert SqueezeExcite(64, 8).squeeze.weight.shape == (8, 64)
    assert SqueezeExcite(4, 8).squeeze.weight.shape == (1, 4)
    assert squeeze_excite(64, 0) is None
    assert squeeze_excite(64, None) is None
    assert isinstance(squeeze_excite(64, 2), SqueezeExcite)


def test_pools_are_those_of_each_video_alone() -> None:
    x = torch.randn(4, 5, 3) - 5
    mask = frame_mask(LENGTHS, 5)
    x[~mask] = 1e4
    for i, length in enumerate(LENGTHS.tolist()):
        valid = x[i, :length]
        torch.testing.assert_close(masked_max_pool(x, mask)[i], valid.max(0).values)
        torch.testing.assert_close(masked_mean_pool(x, mask)[i], valid.sum(0) / length)


@pytest.mark.usefixtures("blocks")
def test_gated_pool_is_gate_then_pools_and_so_is_its_gradient() -> None:
    mask = frame_mask(LENGTHS, 5)
    x = torch.randn(4, 5, 3, dtype=torch.float64)
    x[0, 1] = x[0, 3]  # a tie of the maximum, where the gates are equal too
    logits = torch.randn(4, 5, 3, dtype=torch.float64)
    logits[0, 1] = logits[0, 3]
    upstream = torch.randn(4, 6, dtype=torch.float64)

    def plain(x: Tensor, logits: Tensor) -> Tensor:
        gated = x * torch.sigmoid(logits)
        return torch.cat([masked_max_pool(gated, mask), masked_mean_pool(gated, mask)], 1)

    results = []
    for pool in (lambda x, g: gated_max_mean_pool(x, g, mask), plain):
        a, b = x.clone().requires_grad_(), logits.clone().requires_grad_()
        out = pool(a, b)
        results.append([out, *torch.autograd.grad(out, [a, b], upstream)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-13, rtol=1e-13)
    assert results[0][1][~mask].abs().max() == 0


def test_gated_pool_ignores_what_stands_at_padding() -> None:
    mask = frame_mask(LENGTHS, 5)
    x, logits = torch.randn(4, 5, 3), torch.randn(4, 5, 3)
    before = gated_max_mean_pool(x, logits, mask), gated_max_mean_pool(x, None, mask)
    x[~mask], logits[~mask] = 1e9, 50
    after = gated_max_mean_pool(x, logits, mask), gated_max_mean_pool(x, None, mask)
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])


# ---------------------------------------------------------------------------------------------- mixture of experts


def plain_probabilities(experts: Tensor, gates: Tensor) -> Tensor:
    """sum_k softmax(gates)_k sigmoid(experts_k), the last gate adding nothing; (B, N, C) and (B, N+1, C or 1)."""
    weights = torch.exp(gates) / torch.exp(gates).sum(1, keepdim=True)
    total = torch.zeros_like(experts[:, 0])
    for k in range(experts.shape[1]):
        total = total + weights[:, k] / (1 + torch.exp(-experts[:, k]))
    return total


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("gate_classes", [1, 5])
def test_mixture_is_one_of_probabilities(gate_classes: int) -> None:
    experts = torch.randn(6, 3, 5, dtype=torch.float64, requires_grad=True)
    gates = torch.randn(6, 4, gate_classes, dtype=torch.float64, requires_grad=True)
    expected = plain_probabilities(experts, gates)
    torch.testing.assert_close(torch.sigmoid(mixture_logits(experts, gates)), expected, atol=1e-14, rtol=1e-12)
    assert torch.autograd.gradcheck(mixture_logits, (experts, gates))


def test_mixture_logit_is_accurate_in_both_tails() -> None:
    gates = torch.tensor([0.3, -0.2, 0.1, -1.0])
    weights = [math.exp(g) / sum(math.exp(float(h)) for h in gates) for g in gates]
    for z in (-30.0, -12.0, 0.0, 12.0, 30.0):
        experts = [z, z - 1, z + 2]
        yes = sum(w / (1 + math.exp(-e)) for w, e in zip(weights, experts, strict=False))
        no = weights[3] + sum(w / (1 + math.exp(e)) for w, e in zip(weights, experts, strict=False))
        ours = mixture_logits(torch.tensor(experts).view(1, 3, 1), gates.view(1, 4, 1))
        assert ours.item() == pytest.approx(math.log(yes) - math.log(no), rel=2e-6, abs=2e-6)


def test_mixture_without_silence_can_be_certain() -> None:
    gates = torch.tensor([0.0, 0.0, -1e4]).view(1, 3, 1)
    for z in (-25.0, 25.0):
        assert mixture_logits(torch.full((1, 2, 1), z), gates).item() == pytest.approx(z, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mixture_is_finite_at_extreme_logits_and_can_come_back(dtype: torch.dtype) -> None:
    values = torch.tensor([-3e38, -1e4, -100.0, 0.0, 100.0, 1e4, 3e38], dtype=dtype)
    experts = torch.cartesian_prod(values, values).unsqueeze(-1).requires_grad_()
    for gate in torch.cartesian_prod(*[torch.tensor([-1e4, -100.0, 0.0, 1e4], dtype=dtype)] * 3):
        gates = gate.view(1, 3, 1).repeat(len(experts), 1, 1).requires_grad_()
        logits = mixture_logits(experts, gates)
        assert logits.isfinite().all()
        for wanted in (0.0, 1.0):
            loss = F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, wanted), reduction="sum")
            grads = torch.autograd.grad(loss, [experts, gates], retain_graph=True)
            assert all(grad.isfinite().all() for grad in grads)
    lost = torch.full((1, 2, 1), -1e4, dtype=dtype, requires_grad=True)
    mixture_logits(lost, torch.zeros(1, 3, 1, dtype=dtype)).sum().backward()
    torch.testing.assert_close(lost.grad, torch.full_like(lost, 0.5))


def plain_average_of_logits(experts: Tensor, gates: Tensor) -> Tensor:
    """Probabilities of sum_k softmax(gates)_k experts_k, the silent expert's being 0; shapes as above."""
    weights = torch.exp(gates) / torch.exp(gates).sum(1, keepdim=True)
    total = 0 * weights[:, -1] + torch.zeros_like(experts[:, 0])
    for k in range(experts.shape[1]):
        total = total + weights[:, k] * experts[:, k]
    return 1 / (1 + torch.exp(-total))


def test_average_of_logits_by_hand() -> None:
    experts = torch.tensor([[[2.0, -4.0], [6.0, 8.0]]])
    shared = torch.log(torch.tensor([[[1.0], [2.0], [5.0]]]))
    torch.testing.assert_close(averaged_logits(experts, shared), torch.tensor([[14 / 8, 12 / 8]]))
    gates = torch.log(torch.tensor([[[1.0, 3.0], [1.0, 0.5], [2.0, 0.5]]]))
    torch.testing.assert_close(averaged_logits(experts, gates), torch.tensor([[8 / 4, -8 / 4]]))
    silence = torch.tensor([0.0, 0.0, 1e4]).view(1, 3, 1)
    assert torch.sigmoid(averaged_logits(experts, silence)).tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize("gate_classes", [1, 5])
def test_gradient_of_the_average_of_logits(gate_classes: int) -> None:
    experts = torch.randn(6, 3, 5, dtype=torch.float64, requires_grad=True)
    gates = torch.randn(6, 4, gate_classes, dtype=torch.float64, requires_grad=True)
    expected = plain_average_of_logits(experts, gates)
    torch.testing.assert_close(torch.sigmoid(averaged_logits(experts, gates)), expected, atol=1e-14, rtol=1e-12)
    assert torch.autograd.gradcheck(averaged_logits, (experts, gates))


@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("average", ["probabilities", "logits"])
@pytest.mark.parametrize("training", [False, True])
def test_mixture_of_experts_module_and_its_gradients(per_class: bool, average: str, training: bool) -> None:
    settings = {"num_experts": 3, "per_class": per_class, "average": average, "dropout": 0.0}
    moe = MixtureOfExperts(6, 5, MixtureConfig.model_validate(settings)).double().train(training)
    randomize(moe)
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)

    def normed(norm: MaskedBatchNorm) -> Tensor:
        mean, var = norm.running_mean, norm.running_var
        if training:
            mean, var = x.mean(0), x.var(0, correction=0)
        return (x - mean) / torch.sqrt(var + 1e-5) * norm.weight + norm.bias

    experts = normed(moe.expert_norm) @ moe.experts.weight.T + moe.experts.bias
    gates = normed(moe.gate_norm) @ moe.gate.weight.T + moe.gate.bias
    plain = plain_average_of_logits if average == "logits" else plain_probabilities
    expected = plain(experts.view(4, 3, 5), gates.view(4, 4, -1))
    ours = torch.sigmoid(moe(x))
    torch.testing.assert_close(ours, expected, atol=1e-12, rtol=1e-12)
    upstream = torch.randn(4, 5, dtype=torch.float64)
    leaves = [x, *moe.parameters()]
    for found, plain_grad in zip(
        torch.autograd.grad(ours, leaves, upstream), torch.autograd.grad(expected, leaves, upstream), strict=True
    ):
        torch.testing.assert_close(found, plain_grad, atol=1e-11, rtol=1e-11)
    assert moe.gate.weight.shape == ((20, 6) if per_class else (4, 6))


def test_mixture_drops_features_in_training_only_apart_for_experts_and_gate() -> None:
    moe = MixtureOfExperts(64, 3, MixtureConfig(dropout=0.5))
    seen: dict[str, Tensor] = {}
    for name in ("experts", "gate"):
        getattr(moe, name).register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0]}))
    x = torch.randn(32, 64)
    moe.train()(x)
    assert 0.4 < (seen["experts"] == 0).float().mean() < 0.6
    assert 0.4 < (seen["gate"] == 0).float().mean() < 0.6
    assert not torch.equal(seen["experts"] == 0, seen["gate"] == 0)
    moe.eval()(x)
    assert (seen["experts"] == 0).sum() == 0


def test_untrained_experts_say_the_initial_probability() -> None:
    moe = MixtureOfExperts(6, 5, MixtureConfig(initial_probability=0.02)).eval()
    with torch.no_grad():
        moe.gate.weight.zero_()
        moe.gate.bias.zero_()
        probabilities = torch.sigmoid(moe(torch.zeros(1, 6)))
    torch.testing.assert_close(probabilities, torch.full((1, 5), 0.02 * 4 / 5))


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_mixture_runs_in_float32_under_autocast(average: Literal["probabilities", "logits"]) -> None:
    moe = MixtureOfExperts(16, 5, MixtureConfig(average=average)).eval()
    x = torch.randn(4, 16)
    with torch.autocast("cpu", torch.bfloat16):
        logits = moe(x)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, moe(x))


# --------------------------------------------------------------------------------------------------- weight decay


def test_biases_and_norms_do_not_decay() -> None:
    gate = SqueezeExcite(8, 2)
    assert decaying_parameters(nn.Sequential(gate, nn.BatchNorm1d(8), nn.LayerNorm(8))) == {
        "0.squeeze_norm.weight": False,
        "0.squeeze_norm.bias": False,
        "0.squeeze.weight": True,
        "0.squeeze.bias": False,
        "0.excite_norm.weight": False,
        "0.excite_norm.bias": False,
        "0.excite.weight": True,
        "0.excite.bias": False,
        "1.weight": False,
        "1.bias": False,
        "2.weight": False,
        "2.bias": False,
    }
