"""Reference implementation of the 2019 networks in eval mode, and random models in their format.

Outputs are computed by plain formulas from the named tensors, independently of the package.
Shapes: B videos, T frames, D features, K clusters, G groups, J = 2 D / G, C classes, N experts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

Tensors = dict[str, Tensor]


# --- Formulas ---------------------------------------------------------------------------------------------------------


def linear(t: Tensors, name: str, x: Tensor) -> Tensor:
    weight = t[f"{name}.weight"]
    # A convolution of width 1 is a Linear with a third dimension of 1 in its weight.
    y = x @ weight.reshape(weight.shape[0], -1).T
    return y + t[f"{name}.bias"] if f"{name}.bias" in t else y


def batch_norm(t: Tensors, name: str, x: Tensor) -> Tensor:
    mean, variance = t[f"{name}.running_mean"], t[f"{name}.running_var"]
    return (x - mean) / torch.sqrt(variance + 1e-5) * t[f"{name}.weight"] + t[f"{name}.bias"]


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def softmax(x: Tensor, dim: int) -> Tensor:
    odds = torch.exp(x - x.amax(dim, keepdim=True))
    return odds / odds.sum(dim, keepdim=True)


def gate(t: Tensors, name: str, x: Tensor) -> Tensor:
    hidden = linear(t, f"{name}.fc1", batch_norm(t, f"{name}.bn1", x)).clamp(min=0)
    return x * sigmoid(linear(t, f"{name}.fc2", batch_norm(t, f"{name}.bn2", hidden)))


def dbof(t: Tensors, prefix: str, network: dict[str, Any], x: Tensor) -> Tensor:
    hidden = linear(t, f"{prefix}encoder.0", x).clamp(min=0)
    if network["frame_se_reduction"] > 0:
        hidden = gate(t, f"{prefix}encoder.3", hidden)
    pooled = torch.cat([hidden.amax(1), hidden.sum(1) / hidden.shape[1]], 1)
    encoded = linear(t, f"{prefix}intermediate_fc.2", batch_norm(t, f"{prefix}intermediate_fc.0", pooled)).clamp(min=0)
    return gate(t, f"{prefix}intermediate_fc.4", encoded) if network["video_se_reduction"] > 0 else encoded


def vlad(t: Tensors, name: str, clusters: int, network: dict[str, Any], x: Tensor) -> Tensor:
    batch, frames, _ = x.shape
    groups = network["groups"]
    x = x / torch.sqrt((x**2).sum(2, keepdim=True)).clamp(min=1e-12)
    x = linear(t, f"{name}.expansion_mapper", x)
    if network["add_batchnorm"]:
        rows = linear(t, f"{name}.soft_assignment_mapper.0", x)
        norm = {part: t[f"{name}.soft_assignment_mapper.1.bn.{part}"] for part in BATCH_NORM_PARTS}
        normed = []
        for row in range(clusters * groups):
            channel = row % clusters
            scale = norm["weight"][channel] / torch.sqrt(norm["running_var"][channel] + 1e-5)
            normed.append((rows[..., row] - norm["running_mean"][channel]) * scale + norm["bias"][channel])
        rows = torch.stack(normed, -1)
    else:
        rows = linear(t, f"{name}.soft_assignment_mapper", x)
    assignment = softmax(rows.view(batch, frames, clusters, groups), 2)
    attention = sigmoid(linear(t, f"{name}.attention_mapper", x))
    parts = x.view(batch, frames, groups, -1)
    descriptors = []
    for k in range(clusters):
        residuals = parts - t[f"{name}.centroids"][k]
        weights = assignment[:, :, k] * attention
        total = (residuals * weights.unsqueeze(-1)).sum((1, 2))
        descriptors.append(total / torch.sqrt((total**2).sum(1, keepdim=True)).clamp(min=1e-12))
    return batch_norm(t, f"{name}.final_bn", torch.cat(descriptors, 1))


def nextvlad(t: Tensors, prefix: str, network: dict[str, Any], x: Tensor, is_cut: bool) -> Tensor:
    clusters = network["n_clusters"]
    parts = [
        vlad(t, f"{prefix}video_encoder", clusters, network, x[..., :1024]),
        vlad(t, f"{prefix}audio_encoder", clusters // 2, network, x[..., 1024:]),
    ]
    encoded = linear(t, f"{prefix}intermediate_fc.0", torch.cat(parts, 1))
    if is_cut:
        return encoded
    encoded = encoded.clamp(min=0)
    return gate(t, f"{prefix}se_gating", encoded) if network["se_reduction"] > 0 else encoded


def encoded(
    t: Tensors, prefix: str, network: dict[str, Any], frames: Tensor, is_segment_encoder: bool = False
) -> Tensor:
    if network["type"] == "dbof":
        return dbof(t, prefix, network, frames)
    return nextvlad(t, prefix, network, frames, is_segment_encoder)


def mixed(t: Tensors, prefix: str, num_experts: int, x: Tensor) -> Tensor:
    experts = linear(t, f"{prefix}expert_fc.2", batch_norm(t, f"{prefix}expert_fc.0", x))
    gates = linear(t, f"{prefix}gating_fc.2", batch_norm(t, f"{prefix}gating_fc.0", x))
    experts = experts.view(len(x), -1, num_experts)
    weights = softmax(gates.view(len(x), -1, num_experts + 1), 2)
    return sigmoid((experts * weights[..., :num_experts]).sum(2))


def num_experts(network: dict[str, Any]) -> int:
    return next(network[key] for key in ("n_mixtures", "n_mixture", "num_mixtures") if key in network)


def probabilities(
    config: dict[str, Any], tensors: Tensors, video: Tensor, segment: Tensor, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Probabilities (B, C) of a 2019 model for complete videos and segments, uint8 (B, T, D)."""
    t = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    context, frames = video[:, 30:-10].to(dtype), segment.to(dtype)
    if "segment_w_context" in config:
        head = config["segment_w_context"]["model"]
        sides = [
            encoded(t, "context_model.", config["context_base"]["model"], context),
            encoded(t, "segment_model.", config["segment_base"]["model"], frames, is_segment_encoder=True),
        ]
        joint = batch_norm(t, "intermediate_fc.0", torch.cat(sides, 1))
        joint = linear(t, "intermediate_fc.2", joint).clamp(min=0)
        if head["se_reduction"] > 0:
            joint = gate(t, "intermediate_fc.4", joint)
        return mixed(t, "", num_experts(head), joint)
    network = config["video"]["model"]
    prefix, frames = ("_model.", frames) if "pure_segment" in config else ("model.", context)
    return mixed(t, prefix, num_experts(network), encoded(t, prefix, network, frames))


# --- Random models ----------------------------------------------------------------------------------------------------

BATCH_NORM_PARTS = ("weight", "bias", "running_mean", "running_var")


class Layout:
    """Random tensors with the names and shapes of a 2019 network."""

    def __init__(self, seed: int) -> None:
        self.tensors: Tensors = {}
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def linear(
        self, name: str, inputs: int, outputs: int, *, bias: bool = True, scale: float = 1, width: int = 0
    ) -> None:
        weight = self.normal(outputs, inputs) * (scale / inputs**0.5)
        self.tensors[f"{name}.weight"] = weight.unsqueeze(-1) if width else weight
        if bias:
            self.tensors[f"{name}.bias"] = 0.3 * self.normal(outputs)

    def batch_norm(self, name: str, channels: int, deviation: float = 1) -> None:
        self.tensors[f"{name}.weight"] = 1 + 0.3 * self.normal(channels)
        self.tensors[f"{name}.bias"] = 0.3 * self.normal(channels)
        self.tensors[f"{name}.running_mean"] = 0.3 * deviation * self.normal(channels)
        self.tensors[f"{name}.running_var"] = deviation**2 * (torch.rand(channels, generator=self.generator) + 0.5)
        self.tensors[f"{name}.num_batches_tracked"] = torch.tensor(17)

    def gate(self, name: str, channels: int, reduction: int, width: int = 0) -> None:
        self.batch_norm(f"{name}.bn1", channels)
        self.linear(f"{name}.fc1", channels, channels // reduction, width=width)
        self.batch_norm(f"{name}.bn2", channels // reduction)
        self.linear(f"{name}.fc2", channels // reduction, channels, width=width)

    def dbof(self, prefix: str, network: dict[str, Any]) -> None:
        hidden, size = network["hidden_dim"], network["fcn_dim"]
        self.linear(f"{prefix}encoder.0", 1152, hidden, scale=0.01)
        if network["frame_se_reduction"] > 0:
            self.gate(f"{prefix}encoder.3", hidden, network["frame_se_reduction"], width=1)
        self.batch_norm(f"{prefix}intermediate_fc.0", 2 * hidden)
        self.linear(f"{prefix}intermediate_fc.2", 2 * hidden, size, bias=False)
        if network["video_se_reduction"] > 0:
            self.gate(f"{prefix}intermediate_fc.4", size, network["video_se_reduction"])

    def nextvlad(self, prefix: str, network: dict[str, Any], is_cut: bool) -> None:
        descriptor_size = 0
        for modality, size, clusters in (
            ("video", 1024, network["n_clusters"]),
            ("audio", 128, network["n_clusters"] // 2),
        ):
            name, groups = f"{prefix}{modality}_encoder", network["groups"]
            self.tensors[f"{name}.centroids"] = torch.rand(clusters, 2 * size // groups, generator=self.generator) / 10
            self.linear(f"{name}.expansion_mapper", size, 2 * size, scale=2)
            if network["add_batchnorm"]:
                self.linear(f"{name}.soft_assignment_mapper.0", 2 * size, clusters * groups, bias=False, scale=40)
                self.batch_norm(f"{name}.soft_assignment_mapper.1.bn", clusters)
            else:
                self.linear(f"{name}.soft_assignment_mapper", 2 * size, clusters * groups, scale=40)
            self.linear(f"{name}.attention_mapper", 2 * size, groups, scale=20)
            group_size = 2 * size // groups
            self.batch_norm(f"{name}.final_bn", clusters * group_size, deviation=group_size**-0.5)
            descriptor_size += clusters * group_size
        self.linear(f"{prefix}intermediate_fc.0", descriptor_size, network["fcn_dim"])
        if network["se_reduction"] > 0 and not is_cut:
            self.gate(f"{prefix}se_gating", network["fcn_dim"], network["se_reduction"])

    def encoder(self, prefix: str, network: dict[str, Any], is_segment_encoder: bool = False) -> None:
        if network["type"] == "dbof":
            self.dbof(prefix, network)
        else:
            self.nextvlad(prefix, network, is_segment_encoder)

    def mixture(self, prefix: str, size: int, network: dict[str, Any], classes: int) -> None:
        count = num_experts(network)
        self.batch_norm(f"{prefix}expert_fc.0", size)
        self.linear(f"{prefix}expert_fc.2", size, classes * count, scale=3)
        self.batch_norm(f"{prefix}gating_fc.0", size)
        self.linear(f"{prefix}gating_fc.2", size, (count + 1) * (classes if network.get("per_class") else 1))


def random_tensors(config: dict[str, Any], num_classes: int, seed: int = 0) -> Tensors:
    """A random state dict for a `config.yaml`."""
    layout = Layout(seed)
    if "segment_w_context" in config:
        context, segment, head = (
            config[name]["model"] for name in ("context_base", "segment_base", "segment_w_context")
        )
        layout.encoder("context_model.", context)
        layout.encoder("segment_model.", segment, is_segment_encoder=True)
        joint = context["fcn_dim"] + segment["fcn_dim"]
        layout.batch_norm("intermediate_fc.0", joint)
        layout.linear("intermediate_fc.2", joint, head["fcn_dim"])
        if head["se_reduction"] > 0:
            layout.gate("intermediate_fc.4", head["fcn_dim"], head["se_reduction"])
        layout.mixture("", head["fcn_dim"], head, num_classes)
        return layout.tensors
    network = config["video"]["model"]
    prefix = "_model." if "pure_segment" in config else "model."
    layout.encoder(prefix, network)
    layout.mixture(prefix, network["fcn_dim"], network, num_classes)
    return layout.tensors


def write_folder(folder: Path, config: dict[str, Any], tensors: Any) -> Path:
    """Write a model folder in the 2019 format."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    torch.save(tensors, folder / "model.pth")
    return folder


def random_input(seed: int = 0, batch: int = 3, frames: int = 47, segment_frames: int = 11) -> tuple[Tensor, Tensor]:
    """Videos and segments, uint8; frames vary more between videos than within one."""
    generator = torch.Generator().manual_seed(seed)
    videos = 128 + 60 * torch.randn(batch, 1, 1152, generator=generator)
    values = [videos + 30 * torch.randn(batch, count, 1152, generator=generator) for count in (frames, segment_frames)]
    video, segment = (v.round().clamp(0, 255).to(torch.uint8) for v in values)
    return video, segment


def write_example(path: Path, video: Tensor, segment: Tensor, expected: Tensor) -> Path:
    """Write an example: videos, segments and the expected probabilities."""
    np.savez(path, video=video.numpy(), segment=segment.numpy(), probabilities=expected.float().numpy())
    return path


TRAINING = {"batch_size": 32, "ckpt_interval": 5, "eps": "1e-7", "lr": "2e-4", "steps": 10, "weight_decay": 0.02}


def dbof_settings(**changes: Any) -> dict[str, Any]:
    """Settings of a tiny DBoF."""
    return {
        "type": "dbof",
        "fcn_dim": 12,
        "hidden_dim": 16,
        "frame_se_reduction": 4,
        "video_se_reduction": 3,
        "max_len": 150,
        "n_mixtures": 3,
        "p_drop": 0.5,
        "per_class": False,
        **changes,
    }


def nextvlad_settings(**changes: Any) -> dict[str, Any]:
    """Settings of a tiny NeXtVLAD."""
    return {
        "type": "nextvlad",
        "add_batchnorm": True,
        "fcn_dim": 10,
        "groups": 8,
        "n_clusters": 4,
        "se_reduction": 2,
        "max_len": 150,
        "n_mixtures": 2,
        "p_drop": 0.5,
        "per_class": False,
        **changes,
    }


def head_settings(**changes: Any) -> dict[str, Any]:
    """Settings of the layers on top of two tiny encoders."""
    return {
        "fcn_dim": 9,
        "finetune_context": False,
        "max_len": 150,
        "n_mixture": 4,
        "p_drop": 0.5,
        "se_reduction": 3,
        **changes,
    }


def video_config(network: dict[str, Any]) -> dict[str, Any]:
    """`config.yaml` of a video classifier."""
    return {"video": {"model": network, "training": TRAINING}}


def agnostic_config(network: dict[str, Any], offset: int = 3) -> dict[str, Any]:
    """`config.yaml` of a context-agnostic segment classifier."""
    return {"pure_segment": {"training": {**TRAINING, "offset": offset}}, **video_config(network)}


def aware_config(
    context: dict[str, Any], segment: dict[str, Any], head: dict[str, Any], offset: int = 3
) -> dict[str, Any]:
    """`config.yaml` of a context-aware segment classifier."""
    return {
        "context_base": {"model": context, "training": TRAINING},
        "segment_base": {"model": segment, "training": TRAINING},
        "segment_w_context": {"model": head, "training": {**TRAINING, "offset": offset}},
    }
