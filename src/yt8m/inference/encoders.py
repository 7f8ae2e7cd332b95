"""Encoders folded for prediction: embeddings of frames, and their pooling over windows.

Shapes: N frames, S windows, W frames of a window, D features (1152 of YouTube-8M), P size of a frame's embedding, H hidden channels,
K clusters, G groups, J features of a group.
"""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from yt8m.inference.chunks import apply_in_chunks, chunk_sizes, pad_rows
from yt8m.inference.layers import FoldedLinear, fold_gate, fold_norm_into_linear, linear_parameters, norm_as_affine
from yt8m.models.dbof import DBoFEncoder
from yt8m.models.encoder import Encoder
from yt8m.models.nextvlad import ModalityVLAD, NeXtVLADEncoder


class FoldedEncoder(ABC):
    """An encoder in eval mode: frames are embedded one by one, windows are sums and maxima of embeddings.

    Args:
        encoder: The encoder.
        device: Device.
        embedding_size: P.
        dtype: Type of the matrix products and of embeddings.
    """

    def __init__(self, encoder: Encoder, device: torch.device, embedding_size: int, dtype: torch.dtype) -> None:
        self.output_size = encoder.output_size
        self._frame_input = encoder.frame_input
        self._chunks = chunk_sizes(device)
        self._embedding_size, self._dtype = embedding_size, dtype

    def embed_frames(self, frames: Tensor) -> Tensor:
        """Embed frames, uint8 (N, bytes) with N at least 1, as (N, P)."""
        size = self._chunks.frames
        length = torch.tensor([size], device=frames.device)
        # Allocated once: concatenating chunks would take a tenth of the time.
        embedded = torch.empty((len(frames), self._embedding_size), dtype=self._dtype, device=frames.device)
        for start in range(0, len(frames), size):
            part, out = frames[start : start + size], embedded[start : start + size]
            is_full = len(part) == size
            target = out if is_full else out.new_empty((size, self._embedding_size))
            features, _ = self._frame_input(pad_rows(part, size).unsqueeze(0), length)
            self._embed(features.squeeze(0), target)
            if not is_full:
                out.copy_(target[: len(part)])
        return embedded

    def encode_windows(self, embedded: Tensor, windows: Tensor, mask: Tensor, chunk: int) -> Tensor:
        """Encode windows of embedded frames, as (S, output_size).

        Args:
            embedded: (N, P).
            windows: Rows of `embedded`, int64 (S, W); any row where there is no frame.
            mask: bool (S, W), true where there is a frame; at least one per window.
            chunk: Windows at a time.
        """

        def encode(windows: Tensor, mask: Tensor) -> Tensor:
            step = max(1, self._chunks.gathered // (windows.shape[1] * embedded.shape[1]))
            blocks = [slice(start, start + step) for start in range(0, len(windows), step)]
            # A block of embedded windows is (b, W, P).
            pooled = [self._pool(embedded[windows[block]], _partial(mask[block])) for block in blocks]
            return self._project(torch.cat(pooled))

        return apply_in_chunks(encode, chunk, windows, mask)

    @abstractmethod
    def _embed(self, features: Tensor, out: Tensor) -> None:
        """Embed features (N, D) in `out` (N, P)."""

    @abstractmethod
    def _pool(self, embedded: Tensor, mask: Tensor | None) -> Tensor:
        """Pool embeddings (S, W, P) with mask bool (S, W), None if all are valid, to sums and maxima (S, pooled size)."""

    @abstractmethod
    def _project(self, pooled: Tensor) -> Tensor:
        """Project sums and maxima (S, pooled size) to (S, output_size)."""


def _partial(mask: Tensor) -> Tensor | None:
    """The mask, or None if it masks nothing; on a GPU the test would wait for the device, so the mask is always used."""
    return None if mask.device.type == "cpu" and bool(mask.all()) else mask


class FoldedDBoF(FoldedEncoder):
    """Gated DBoF; the embedding of a frame is its gated channels (P = H)."""

    def __init__(self, encoder: DBoFEncoder, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(encoder, device, encoder.config.hidden_size, dtype)
        self._hidden = FoldedLinear(*linear_parameters(encoder.frame_projection), dtype, device)
        self._frame_gate = fold_gate(encoder.frame_gate, dtype, device)
        self._projection = FoldedLinear(
            *fold_norm_into_linear(encoder.pooled_norm, encoder.video_projection), dtype, device
        )
        self._video_gate = fold_gate(encoder.video_gate, dtype, device)

    def _embed(self, features: Tensor, out: Tensor) -> None:
        hidden = self._hidden(features).relu_()
        if self._frame_gate is None:
            out.copy_(hidden)
        else:
            self._frame_gate(hidden, out)

    def _pool(self, embedded: Tensor, mask: Tensor | None) -> Tensor:
        embedded = embedded.float()
        if mask is None:
            return torch.cat([embedded.amax(1), embedded.sum(1) / embedded.shape[1]], dim=1)  # (S, 2H)
        valid = mask.unsqueeze(-1)  # (S, W, 1)
        maximum = embedded.masked_fill(~valid, -torch.inf).amax(1)  # (S, H)
        mean = (embedded * valid).sum(1) / mask.sum(1, keepdim=True)  # (S, H)
        return torch.cat([maximum, mean], dim=1)

    def _project(self, pooled: Tensor) -> Tensor:
        encoded = self._projection(pooled).relu_()
        return encoded if self._video_gate is None else self._video_gate(encoded)


class _FoldedModality:
    """One modality of NeXtVLAD; the embedding of a frame is its expanded features (G J) and its assignment (G K)."""

    def __init__(self, modality: ModalityVLAD, dtype: torch.dtype, device: torch.device) -> None:
        self._groups, self._clusters, self._size = modality.num_groups, modality.num_clusters, modality.group_size
        expansion, expansion_bias = linear_parameters(modality.expansion)
        assignment, assignment_bias = linear_parameters(modality.assignment)
        if modality.assignment_norm is not None:
            scale, shift = norm_as_affine(modality.assignment_norm)
            assignment, assignment_bias = assignment * scale.unsqueeze(1), assignment_bias * scale + shift
        attention, attention_bias = linear_parameters(modality.attention)
        # Only linear maps are between a frame and the logits, so these are computed from the frame.
        weight = torch.cat([expansion, assignment @ expansion, attention @ expansion])
        bias = torch.cat(
            [expansion_bias, assignment @ expansion_bias + assignment_bias, attention @ expansion_bias + attention_bias]
        )
        self._linear = FoldedLinear(weight, bias, dtype, device)
        self._sizes = [len(expansion), len(assignment), len(attention)]
        self.embedding_size = len(expansion) + len(assignment)
        self._centroids = modality.centroids.detach().float().to(device)

    def embed(self, features: Tensor, out: Tensor) -> None:
        """Embed features (N, D) of this modality in `out` (N, P)."""
        combined = self._linear(F.normalize(features, dim=-1))
        expanded, logits, attention = torch.split(combined, self._sizes, 1)  # (N, G J), (N, G K), (N, G)
        assignment = torch.softmax(logits.float().view(-1, self._groups, self._clusters), -1)  # (N, G, K)
        expanded_out, weights_out = torch.split(out, self._sizes[:2], 1)  # (N, G J), (N, G K)
        expanded_out.copy_(expanded)
        attention = torch.sigmoid(attention.float()).unsqueeze(-1)  # (N, G, 1)
        torch.mul(assignment, attention, out=weights_out.view(assignment.shape))

    def pool(self, embedded: Tensor, mask: Tensor | None) -> Tensor:
        """Normalized residuals (S, K * J), float32, of embeddings (S, W, P)."""
        expanded, weights = torch.split(embedded, self._sizes[:2], -1)  # (S, W, G J), (S, W, G K)
        if mask is not None:
            weights = weights * mask.unsqueeze(-1)
        weights = weights.reshape(len(embedded), -1, self._clusters)  # (S, W G, K)
        sums = weights.transpose(1, 2) @ expanded.reshape(len(embedded), -1, self._size)  # (S, K, J)
        totals = weights.sum(1, dtype=torch.float32).unsqueeze(-1)  # (S, K, 1)
        return F.normalize(sums.float() - totals * self._centroids, dim=-1).flatten(1)


class FoldedNeXtVLAD(FoldedEncoder):
    """NeXtVLAD; the embedding of a frame is its expanded features and its assignment, of each modality."""

    def __init__(self, encoder: NeXtVLADEncoder, dtype: torch.dtype, device: torch.device) -> None:
        self._modalities = [_FoldedModality(modality, dtype, device) for modality in encoder.modalities]
        self._feature_sizes = list(encoder.sizes.values())
        self._embedding_sizes = [modality.embedding_size for modality in self._modalities]
        super().__init__(encoder, device, sum(self._embedding_sizes), dtype)
        weight, bias = linear_parameters(encoder.projection)
        norms = [norm_as_affine(modality.descriptor_norm) for modality in encoder.modalities]
        scale, shift = (torch.cat(parts) for parts in zip(*norms, strict=True))
        self._projection = FoldedLinear(weight * scale, bias + weight @ shift, dtype, device)
        self._cut = encoder.config.cut_after_linear
        self._gate = fold_gate(encoder.gate, dtype, device)

    def _embed(self, features: Tensor, out: Tensor) -> None:
        parts = torch.split(features, self._feature_sizes, 1)
        for modality, part, target in zip(
            self._modalities, parts, torch.split(out, self._embedding_sizes, 1), strict=True
        ):
            modality.embed(part, target)

    def _pool(self, embedded: Tensor, mask: Tensor | None) -> Tensor:
        parts = torch.split(embedded, self._embedding_sizes, -1)
        return torch.cat([m.pool(part, mask) for m, part in zip(self._modalities, parts, strict=True)], dim=1)

    def _project(self, pooled: Tensor) -> Tensor:
        encoded = self._projection(pooled)
        if self._cut:
            return encoded
        encoded = encoded.relu_()
        return encoded if self._gate is None else self._gate(encoded)


def fold_encoder(encoder: Encoder, dtype: torch.dtype, device: torch.device) -> FoldedEncoder:
    """Fold an encoder; raise TypeError for an unknown kind."""
    if isinstance(encoder, DBoFEncoder):
        return FoldedDBoF(encoder, dtype, device)
    if isinstance(encoder, NeXtVLADEncoder):
        return FoldedNeXtVLAD(encoder, dtype, device)
    raise TypeError(f"no folded form of {type(encoder).__name__}")
