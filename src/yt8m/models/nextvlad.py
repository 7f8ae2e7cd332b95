"""NeXtVLAD: groups of a frame's features are softly assigned to clusters, and residuals to the centroids summed.

Shapes: B videos or segments, T frames, D features (of YouTube-8M 1,024 rgb and 128 audio, apart), K clusters (half for audio),
G groups, J = expansion * D / G features of a group, C classes.

rgb and audio apart: x / |x| -> expansion Linear (D -> G J) -> per group a sigmoid attention and a softmax over the
clusters (batch-normalized per cluster) -> residuals to the centroids, summed over frames and groups (K, J) ->
intra-normalized -> BatchNorm -> cluster dropout; then both -> Linear -> ReLU -> SE gate (docs/method.md, "NeXtVLAD";
Lin, Xiao, Fan 2018). The sum of a_tgk (x_tg - c_k) is a matrix product minus a_k c_k, without a (B, T, K, G, J) tensor.
"""

import math
from typing import ClassVar, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from yt8m.errors import UsageError
from yt8m.features import YOUTUBE8M, Features
from yt8m.models.config import NeXtVLADConfig
from yt8m.models.encoder import Encoder
from yt8m.models.layers.batch_norm import MaskedBatchNorm
from yt8m.models.layers.dropout import Dropout
from yt8m.models.layers.gating import squeeze_excite


class ModalityVLAD(nn.Module):
    """The NeXtVLAD descriptor of one modality: (B, T, D) -> (B, K * J).

    Logits of the assignment are laid out (group, cluster): row `g * K + k` of `assignment`. Its batch norm has one weight,
    bias and pair of statistics per cluster, over all frames and groups. Centroids are initialized with the standard
    deviation of the expanded features, so that neither dominates the residuals; the rest has torch's initialization.

    Args:
        in_features: D of the modality.
        num_clusters: K.
        num_groups: G.
        expansion: Factor by which a frame is expanded.
        cluster_dropout: Dropout of complete clusters.
        assignment_batch_norm: Whether to normalize the logits of the assignment.
    """

    parameters_without_decay: ClassVar[tuple[str, ...]] = ("centroids",)

    def __init__(
        self,
        in_features: int,
        num_clusters: int,
        num_groups: int,
        expansion: int,
        cluster_dropout: float,
        assignment_batch_norm: bool = True,
    ) -> None:
        super().__init__()
        expanded = expansion * in_features
        self.num_clusters, self.num_groups, self.group_size = num_clusters, num_groups, expanded // num_groups
        self.cluster_dropout = Dropout(cluster_dropout, rows=True)
        self.expansion = nn.Linear(in_features, expanded)
        self.attention = nn.Linear(expanded, num_groups)
        self.assignment = nn.Linear(expanded, num_groups * num_clusters)
        self.assignment_norm = MaskedBatchNorm(num_clusters, copies=num_groups) if assignment_batch_norm else None
        self.centroids = nn.Parameter(torch.empty(num_clusters, self.group_size))
        self.descriptor_norm = MaskedBatchNorm(num_clusters * self.group_size)
        nn.init.normal_(self.centroids, std=math.sqrt(2 / (3 * in_features)))

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Encode features (B, T, D) of this modality as (B, K * J), laid out (cluster, feature), at least float32.

        The mask is bool (B, T), with at least one frame per video.
        """
        features = F.normalize(features, dim=-1)  # (B, T, D)
        folds_assignment, folds_expansion = self._cheapest_order(*mask.shape)
        expanded = features if folds_expansion else self.expansion(features)  # (B, T, G J)
        if folds_assignment:
            logits = F.linear(features, *self._after_expansion(self.assignment))
            attention = F.linear(features, *self._after_expansion(self.attention))
        else:
            logits, attention = self.assignment(expanded), self.attention(expanded)  # (B, T, G K), (B, T, G)
        weights = self._weights(logits, attention, mask)  # (B, T, G, K)
        sums = self._sums_expanded_last(features, weights) if folds_expansion else self._sums(expanded, weights)
        residuals = sums - weights.sum((1, 2)).unsqueeze(-1) * self.centroids  # (B, K, J)
        residuals = F.normalize(residuals.to(torch.promote_types(residuals.dtype, torch.float32)), dim=-1)
        descriptor = self.descriptor_norm(residuals.flatten(1)).view_as(residuals)
        dropped: Tensor = self.cluster_dropout(descriptor)
        return dropped.flatten(1)  # (B, K J)

    def _cheapest_order(self, batch: int, frames: int) -> tuple[bool, bool]:
        """Choose the order of the matrix products with the fewest multiplications in a training step.

        Only linear maps are between a frame and its logits, and between a frame and the sums. So logits can be computed
        from the frame, through `W_assignment W_expansion` (half the work for many frames), and frames can be summed before
        they are expanded, once per cluster and group instead of once per frame (most of the work for few clusters).
        Frames need no gradient: a product with them costs 2 in training, others 3.

        Returns:
            Whether to fold the expansion into the assignment, and whether to expand sums instead of frames.
        """
        rows, size = batch * frames, self.expansion.in_features
        expanded, assigned = self.expansion.out_features, self.assignment.out_features
        logits = 3 * rows * expanded * assigned
        folded_logits = 2 * rows * size * assigned + 3 * assigned * expanded * size
        sums = 2 * rows * size * expanded + 3 * rows * expanded * self.num_clusters
        folded_sums = 2 * rows * size * assigned + 3 * batch * self.num_clusters * size * expanded
        if folded_logits + folded_sums < min(logits, folded_logits) + sums:
            return True, True
        return folded_logits < logits, False

    def _after_expansion(self, linear: nn.Linear) -> tuple[Tensor, Tensor]:
        """Weight and bias of `linear(expansion(x))` as one linear layer."""
        return linear.weight @ self.expansion.weight, linear.weight @ self.expansion.bias + linear.bias

    def _weights(self, logits: Tensor, attention: Tensor, mask: Tensor) -> Tensor:
        """Assignment times attention, (B, T, G, K), zero at masked frames."""
        shape = (*mask.shape, self.num_groups, self.num_clusters)
        if self.assignment_norm is not None:
            logits = self.assignment_norm(logits, mask)
        assignment = torch.softmax(logits.view(shape), dim=-1)  # (B, T, G, K)
        attention = torch.sigmoid(attention) * mask.unsqueeze(-1)  # (B, T, G)
        return assignment * attention.unsqueeze(-1)

    def _sums(self, expanded: Tensor, weights: Tensor) -> Tensor:
        """Sums (B, K, J) of expanded frames (B, T, G * J) by their weights (B, T, G, K)."""
        groups = expanded.view(len(expanded), -1, self.group_size)  # (B, T G, J)
        return weights.flatten(1, 2).transpose(1, 2) @ groups  # (B, K, T G) @ (B, T G, J)

    def _sums_expanded_last(self, features: Tensor, weights: Tensor) -> Tensor:
        """The same sums, from frames (B, T, D) that are not expanded."""
        batch, _, groups, clusters = weights.shape
        by_group = weights.permute(0, 3, 2, 1).flatten(1, 2) @ features  # (B, K G, D)
        expansion = self.expansion.weight.view(groups, self.group_size, -1).transpose(1, 2).flatten(0, 1)  # (G D, J)
        sums = by_group.view(batch * clusters, -1) @ expansion  # (B K, G D) @ (G D, J)
        offsets = weights.sum(1).transpose(1, 2) @ self.expansion.bias.view(groups, -1)  # (B, K, G) @ (G, J)
        return sums.view(batch, clusters, -1) + offsets


class NeXtVLADEncoder(Encoder):
    """NeXtVLAD of rgb and audio, or of one of them: (B, T, D) -> (B, output_size).

    Raises:
        UsageError: The number of groups does not divide the expanded features of a modality; or see `FrameInput`.
    """

    def __init__(self, config: NeXtVLADConfig, features: Features = YOUTUBE8M) -> None:
        super().__init__(config, features)
        self.config = config
        shared = (config.num_groups, config.expansion, config.cluster_dropout, config.assignment_batch_norm)
        self.sizes = self.frame_input.sizes
        for name, size in self.sizes.items():
            if config.expansion * size % config.num_groups:
                raise UsageError(
                    f"num_groups {config.num_groups} must divide the expanded {name} features, {config.expansion * size}."
                )
            self.add_module(name, ModalityVLAD(size, config.num_clusters // (2 if name == "audio" else 1), *shared))
        described = sum(modality.descriptor_norm.num_features for modality in self.modalities)
        self.projection = nn.Linear(described, config.output_size)
        reduction = 0 if config.cut_after_linear else config.se_reduction
        self.gate = squeeze_excite(config.output_size, reduction)

    @property
    def modalities(self) -> list[ModalityVLAD]:
        """The modalities that the encoder uses, in the order of their features."""
        return [cast("ModalityVLAD", self.get_submodule(name)) for name in self.sizes]

    def encode(self, features: Tensor, mask: Tensor) -> Tensor:
        """Encode features (B, T, D) with their mask (B, T) as (B, output_size)."""
        parts = torch.split(features, list(self.sizes.values()), dim=-1)
        described = [modality(part, mask) for modality, part in zip(self.modalities, parts, strict=True)]
        encoded: Tensor = self.projection(torch.cat(described, dim=1))
        if self.config.cut_after_linear:
            return encoded
        encoded = F.relu(encoded)
        return encoded if self.gate is None else self.gate(encoded)
