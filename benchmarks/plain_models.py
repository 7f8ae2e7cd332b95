"""The opponent of `training.py`: the paper's networks, losses and optimizer as one would write them from the formulas.

Plain torch, eager, float32, one line a formula, ordinary idioms: `nn.BatchNorm1d` (of frames: of those that exist),
`masked_fill` before the maximum, probabilities and binary cross-entropy on them, the fused AdamW. NeXtVLAD is equations
3 to 6 of Lin, Xiao, Fan 2018: every residual of every frame, group and cluster, a tensor (B, T, G, K, J);
`matrix_product` has the same sums as a matrix product instead, as the TensorFlow code in circulation has them.

Parameters and buffers are named as ours, so that `plain.load_state_dict(ours.state_dict())` starts both from the same
weights; tests/benchmarks holds the two to the same outputs, gradients and weights after some steps.

Shapes: B videos or segments, T frames, D=1152 features, H hidden channels, K clusters, G groups, J features of a group,
C classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows it by
from torch import Tensor, nn

RGB, AUDIO = 1024, 128


def features_and_mask(frames: Tensor, lengths: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Bytes (B, T, D) -> the values they stand for, and which frames exist, bool (B, T)."""
    mask = torch.arange(frames.shape[1], device=frames.device) < lengths.unsqueeze(1)
    return frames.to(dtype) * (4 / 255) + (4 / 512 - 2), mask


class FrameBatchNorm(nn.BatchNorm1d):
    """Batch norm of (B, T, ..., channels) over the frames that exist: taken out as a list, normalized, put back.

    On a CPU this takes a third of the time of masked means and variances written out.
    """

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Normalize; mask is bool (B, T), and what is returned at padding is 0."""
        valid = x[mask]
        normalized = torch.zeros_like(x)
        normalized[mask] = super().forward(valid.flatten(0, -2)).view_as(valid)
        return normalized


class FrameGate(nn.Module):
    """SE gating of frames: x * sigmoid(W2 BN(ReLU(W1 BN(x))))."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.squeeze_norm = FrameBatchNorm(channels)
        self.squeeze = nn.Linear(channels, channels // reduction)
        self.excite_norm = FrameBatchNorm(channels // reduction)
        self.excite = nn.Linear(channels // reduction, channels)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, T, channels) -> the same."""
        hidden = F.relu(self.squeeze(self.squeeze_norm(x, mask)))
        return x * torch.sigmoid(self.excite(self.excite_norm(hidden, mask)))


class Gate(nn.Module):
    """SE gating of vectors, (B, channels) -> the same."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.squeeze_norm = nn.BatchNorm1d(channels)
        self.squeeze = nn.Linear(channels, channels // reduction)
        self.excite_norm = nn.BatchNorm1d(channels // reduction)
        self.excite = nn.Linear(channels // reduction, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Gate."""
        hidden = F.relu(self.squeeze(self.squeeze_norm(x)))
        return x * torch.sigmoid(self.excite(self.excite_norm(hidden)))


class DBoF(nn.Module):
    """Context-gated DBoF: (B, T, D) bytes -> (B, output_size)."""

    def __init__(
        self,
        hidden_size: int = 4096,
        output_size: int = 2048,
        frame_reduction: int = 8,
        video_reduction: int = 4,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.output_size = output_size
        self.frame_projection = nn.Linear(RGB + AUDIO, hidden_size)
        self.frame_gate = FrameGate(hidden_size, frame_reduction)
        self.pooled_norm = nn.BatchNorm1d(2 * hidden_size)
        self.pooled_dropout = nn.Dropout(dropout)
        self.video_projection = nn.Linear(2 * hidden_size, output_size, bias=False)
        self.video_gate = Gate(output_size, video_reduction)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Encode."""
        x, mask = features_and_mask(frames, lengths, self.frame_projection.weight.dtype)
        x = self.frame_gate(F.relu(self.frame_projection(x)), mask)
        largest = x.masked_fill(~mask.unsqueeze(-1), -torch.inf).max(dim=1).values
        mean = (x * mask.unsqueeze(-1)).sum(1) / lengths.unsqueeze(1)
        pooled = self.pooled_dropout(self.pooled_norm(torch.cat([largest, mean], dim=1)))
        return self.video_gate(F.relu(self.video_projection(pooled)))


class VLAD(nn.Module):
    """NeXtVLAD of one modality: (B, T, features) -> (B, K * J)."""

    def __init__(self, in_features: int, clusters: int, groups: int, expansion: int, dropout: float) -> None:
        super().__init__()
        expanded = expansion * in_features
        self.clusters, self.groups, self.size = clusters, groups, expanded // groups
        self.expansion = nn.Linear(in_features, expanded)
        self.attention = nn.Linear(expanded, groups)
        self.assignment = nn.Linear(expanded, groups * clusters)
        self.assignment_norm = FrameBatchNorm(clusters)
        self.centroids = nn.Parameter(torch.randn(clusters, self.size) * 0.02)
        self.descriptor_norm = nn.BatchNorm1d(clusters * self.size)
        self.cluster_dropout = nn.Dropout1d(dropout)
        self.matrix_product = False

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Describe."""
        x = self.expansion(F.normalize(x, dim=-1))
        attention = torch.sigmoid(self.attention(x)) * mask.unsqueeze(-1)  # (B, T, G)
        logits = self.assignment(x).unflatten(-1, (self.groups, self.clusters))
        assignment = torch.softmax(self.assignment_norm(logits, mask), dim=-1)
        weights = assignment * attention.unsqueeze(-1)  # (B, T, G, K)
        x = x.unflatten(-1, (self.groups, self.size))  # (B, T, G, J)
        if self.matrix_product:
            sums = weights.flatten(1, 2).transpose(1, 2) @ x.flatten(1, 2)
            vlad = sums - weights.sum((1, 2)).unsqueeze(-1) * self.centroids
        else:
            vlad = (weights.unsqueeze(-1) * (x.unsqueeze(-2) - self.centroids)).sum((1, 2))
        vlad = self.descriptor_norm(F.normalize(vlad, dim=-1).flatten(1))
        return self.cluster_dropout(vlad.unflatten(1, (self.clusters, self.size))).flatten(1)


def use_matrix_product(model: nn.Module, yes: bool) -> None:
    """Sum the residuals of every `VLAD` of a model as a matrix product, or not."""
    for module in model.modules():
        if isinstance(module, VLAD):
            module.matrix_product = yes


class NeXtVLAD(nn.Module):
    """NeXtVLAD of rgb and audio: (B, T, D) bytes -> (B, output_size); cut: the segment side of the aware classifier."""

    def __init__(
        self,
        clusters: int = 64,
        groups: int = 16,
        output_size: int = 2048,
        reduction: int = 4,
        dropout: float = 0.25,
        expansion: int = 2,
        cut: bool = False,
    ) -> None:
        super().__init__()
        self.output_size = output_size
        self.rgb = VLAD(RGB, clusters, groups, expansion, dropout)
        self.audio = VLAD(AUDIO, clusters // 2, groups, expansion, dropout)
        described = self.rgb.descriptor_norm.num_features + self.audio.descriptor_norm.num_features
        self.projection = nn.Linear(described, output_size)
        self.gate = None if cut else Gate(output_size, reduction)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Encode."""
        x, mask = features_and_mask(frames, lengths, self.projection.weight.dtype)
        rgb, audio = x.split([RGB, AUDIO], dim=-1)
        x = self.projection(torch.cat([self.rgb(rgb, mask), self.audio(audio, mask)], dim=1))
        return x if self.gate is None else self.gate(F.relu(x))


class Mixture(nn.Module):
    """Mixture of experts, one more of which always says 0: (B, in_features) -> probabilities (B, C)."""

    def __init__(self, in_features: int, classes: int, experts: int = 4, dropout: float = 0.5) -> None:
        super().__init__()
        self.shape = (experts, classes)
        self.expert_norm = nn.BatchNorm1d(in_features)
        self.expert_dropout = nn.Dropout(dropout)
        self.experts = nn.Linear(in_features, experts * classes)
        self.gate_norm = nn.BatchNorm1d(in_features)
        self.gate_dropout = nn.Dropout(dropout)
        self.gate = nn.Linear(in_features, experts + 1)

    def forward(self, x: Tensor) -> Tensor:
        """Mix."""
        experts = torch.sigmoid(self.experts(self.expert_dropout(self.expert_norm(x)))).unflatten(1, self.shape)
        gate = torch.softmax(self.gate(self.gate_dropout(self.gate_norm(x))), dim=1)
        return (gate[:, :-1].unsqueeze(-1) * experts).sum(1)


class VideoClassifier(nn.Module):
    """Encoder and mixture; on the frames of segments it is the context-agnostic classifier."""

    def __init__(self, encoder: DBoF | NeXtVLAD, mixture: Mixture) -> None:
        super().__init__()
        self.encoder, self.mixture = encoder, mixture

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Frames and lengths -> probabilities (B, C)."""
        return self.mixture(self.encoder(frames, lengths))


class AwareClassifier(nn.Module):
    """Frozen encoder of the video beside an encoder of the segment, joined."""

    def __init__(
        self,
        context_encoder: DBoF | NeXtVLAD,
        segment_encoder: DBoF | NeXtVLAD,
        mixture: Mixture,
        output_size: int = 2048,
        reduction: int = 4,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.context_encoder = context_encoder.requires_grad_(False)
        self.segment_encoder = segment_encoder
        joint = context_encoder.output_size + segment_encoder.output_size
        self.fusion_norm = nn.BatchNorm1d(joint)
        self.fusion_dropout = nn.Dropout(dropout)
        self.fusion = nn.Linear(joint, output_size)
        self.fusion_gate = Gate(output_size, reduction)
        self.mixture = mixture

    def encode_context(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Encode whole videos, without gradient and with running statistics."""
        self.context_encoder.eval()
        with torch.no_grad():
            return self.context_encoder(frames, lengths)

    def forward(self, frames: Tensor, lengths: Tensor, context: Tensor) -> Tensor:
        """Segments, and the vectors of their videos -> probabilities (B, C)."""
        joint = torch.cat([context, self.segment_encoder(frames, lengths)], dim=1)
        joint = F.relu(self.fusion(self.fusion_dropout(self.fusion_norm(joint))))
        return self.mixture(self.fusion_gate(joint))


# ------------------------------------------------------------------------------------------------ losses, optimizer

SMALLEST = 1e-7
"""Probabilities are kept this far from 0 and 1 under the logarithm."""


def video_loss(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy over videos and classes; labels bool (B, C)."""
    return F.binary_cross_entropy(probabilities.clamp(SMALLEST, 1 - SMALLEST), labels.to(probabilities.dtype))


def segment_loss(probabilities: Tensor, class_indices: Tensor, ratings: Tensor, negatives: Tensor) -> Tensor:
    """-(1.5 y log p_j + (1 - y) log(1 - p_j)) + 0.5 x mean over the mined negatives of -log(1 - p_c)."""
    p = probabilities.clamp(SMALLEST, 1 - SMALLEST)
    rated = p.gather(1, class_indices.unsqueeze(1)).squeeze(1)
    rating = -(1.5 * ratings * torch.log(rated) + (1 - ratings) * torch.log(1 - rated))
    mined = -(torch.log(1 - p) * negatives).sum(1) / negatives.sum(1)
    return (rating + 0.5 * mined).mean()


def adamw(model: nn.Module, rate: float, decay: float, slow_factor: float = 0.5) -> torch.optim.AdamW:
    """AdamW: decay on weight matrices only, the segment encoder of an aware classifier at half the rate."""
    groups = []
    for slow in (False, True):
        for decays in (False, True):
            chosen = [
                parameter
                for name, parameter in model.named_parameters()
                if parameter.requires_grad
                and name.startswith("segment_encoder.") == slow
                and (parameter.dim() > 1 and not name.endswith("centroids")) == decays
            ]
            groups.append(
                {"params": chosen, "lr": rate * (slow_factor if slow else 1), "weight_decay": decay if decays else 0}
            )
    return torch.optim.AdamW([group for group in groups if group["params"]], fused=True)


def slanted(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Rate up over the first quarter of the steps, then down to zero."""
    peak = steps / 4
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: (step + 1) / (peak + 1) if step < peak else (steps - step) / (steps - peak)
    )


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
    loss: Tensor,
) -> None:
    """Backward, clip, step."""
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 10)
    optimizer.step()
    optimizer.zero_grad()
    schedule.step()
