"""Encoders folded for prediction."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from yt8m.inference.linear import (
    FoldedLinear,
    affine_of_norm,
    chunks_of,
    fold_norm_into_linear,
    folded_gate,
    in_chunks,
    pad_rows,
    weight_and_bias,
)
from yt8m.models.dbof import DBoFEncoder
from yt8m.models.encoder import Encoder
from yt8m.models.layers.input import RGB_SIZE
from yt8m.models.nextvlad import ModalityVLAD, NeXtVLADEncoder


class FoldedEncoder(ABC):
    """An encoder in eval mode: frames are described one by one, windows are sums and maxima of descriptions.

    Args:
        encoder: The encoder.
        device: Where it computes.
        described_size: P.
        dtype: Type of the matrix products and of descriptions.
    """

    def __init__(self, encoder: Encoder, device: torch.device, described_size: int, dtype: torch.dtype) -> None:
        self.output_size = encoder.output_size
        self._frame_input = encoder.frame_input
        self._chunks = chunks_of(device)
        self._described_size, self._dtype = described_size, dtype

    def describe(self, frames: Tensor) -> Tensor:
        """Describe frames.

        Args:
            frames: uint8 (N, D), N at least 1.

        Returns:
            (N, P), what `pool` takes.
        """
        size = self._chunks.frames
        length = torch.tensor([size], device=frames.device)
        # Made once: copies of what frames are described by would take a tenth of the time.
        described = torch.empty((len(frames), self._described_size), dtype=self._dtype, device=frames.device)
        for start in range(0, len(frames), size):
            part, out = frames[start : start + size], described[start : start + size]
            is_whole = len(part) == size
            target = out if is_whole else out.new_empty((size, self._described_size))
            features, _ = self._frame_input(pad_rows(part, size).unsqueeze(0), length)
            self._of_frames(features.squeeze(0), target)
            if not is_whole:
                out.copy_(target[: len(part)])
        return described

    def pool(self, described: Tensor, windows: Tensor, mask: Tensor, chunk: int) -> Tensor:
        """Encode windows of described frames.

        Args:
            described: (N, P).
            windows: Rows of `described`, int64 (S, W); whatever row stands where there is no frame.
            mask: bool (S, W), true where there is a frame; at least one a window.
            chunk: Windows at a time.

        Returns:
            (S, output_size).
        """

        def pooled(windows: Tensor, mask: Tensor) -> Tensor:
            step = max(1, self._chunks.gathered // (windows.shape[1] * described.shape[1]))
            blocks = [slice(start, start + step) for start in range(0, len(windows), step)]
            parts = [self._of_window(described[windows[block]], _partial(mask[block])) for block in blocks]
            return self._project(torch.cat(parts))

        return in_chunks(pooled, chunk, windows, mask)

    @abstractmethod
    def _of_frames(self, features: Tensor, out: Tensor) -> None:
        """Describe features (N, D) in `out` (N, P)."""

    @abstractmethod
    def _of_window(self, described: Tensor, mask: Tensor | None) -> Tensor:
        """Descriptions (S, W, P) and bool (S, W), or None where all are there -> sums and maxima, (S, numbers)."""

    @abstractmethod
    def _project(self, pooled: Tensor) -> Tensor:
        """Sums and maxima (S, numbers) -> (S, output_size)."""


def _partial(mask: Tensor) -> Tensor | None:
    """A mask, or None where it masks nothing; a device is not asked, for that would wait for it."""
    return None if mask.device.type == "cpu" and bool(mask.all()) else mask


class FoldedDBoF(FoldedEncoder):
    """Gated DBoF; a frame is described by its gated channels (P = H)."""

    def __init__(self, encoder: DBoFEncoder, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(encoder, device, encoder.config.hidden_size, dtype)
        self._hidden = FoldedLinear(*weight_and_bias(encoder.frame_projection), dtype, device)
        self._frame_gate = folded_gate(encoder.frame_gate, dtype, device)
        self._projection = FoldedLinear(
            *fold_norm_into_linear(encoder.pooled_norm, encoder.video_projection), dtype, device
        )
        self._video_gate = folded_gate(encoder.video_gate, dtype, device)

    def _of_frames(self, features: Tensor, out: Tensor) -> None:
        hidden = self._hidden(features).relu_()
        if self._frame_gate is None:
            out.copy_(hidden)
        else:
            self._frame_gate(hidden, out)

    def _of_window(self, described: Tensor, mask: Tensor | None) -> Tensor:
        described = described.float()
        if mask is None:
            return torch.cat([described.amax(1), described.sum(1) / described.shape[1]], dim=1)
        there = mask.unsqueeze(-1)
        maximum = described.masked_fill(~there, -torch.inf).amax(1)
        mean = (described * there).sum(1) / mask.sum(1, keepdim=True)
        return torch.cat([maximum, mean], dim=1)

    def _project(self, pooled: Tensor) -> Tensor:
        encoded = self._projection(pooled).relu_()
        return encoded if self._video_gate is None else self._video_gate(encoded)


class _FoldedModality:
    """One modality of NeXtVLAD; a frame is described by its expanded features (G J) and its assignment (G K)."""

    def __init__(self, modality: ModalityVLAD, features: slice, dtype: torch.dtype, device: torch.device) -> None:
        self._features = features
        self._groups, self._clusters, self._size = modality.num_groups, modality.num_clusters, modality.group_size
        expansion, offset = weight_and_bias(modality.expansion)
        assignment, assigned = weight_and_bias(modality.assignment)
        if modality.assignment_norm is not None:
            scale, shift = affine_of_norm(modality.assignment_norm)
            assignment, assigned = assignment * scale.unsqueeze(1), assigned * scale + shift
        attention, attended = weight_and_bias(modality.attention)
        # The logits come straight from the frame: only linear maps lie between.
        weight = torch.cat([expansion, assignment @ expansion, attention @ expansion])
        bias = torch.cat([offset, assignment @ offset + assigned, attention @ offset + attended])
        self._linear = FoldedLinear(weight, bias, dtype, device)
        self._sizes = [len(expansion), len(assignment), len(attention)]
        self._centroids = modality.centroids.detach().float().to(device)

    @property
    def described_size(self) -> int:
        """Numbers that describe a frame."""
        return self._sizes[0] + self._sizes[1]

    def of_frames(self, features: Tensor, out: Tensor) -> None:
        """Describe features (N, D) of both modalities in `out` (N, P)."""
        combined = self._linear(F.normalize(features[:, self._features], dim=-1))
        expanded, logits, attention = torch.split(combined, self._sizes, 1)
        assignment = torch.softmax(logits.float().view(-1, self._groups, self._clusters), -1)
        placed, weights = torch.split(out, self._sizes[:2], 1)
        placed.copy_(expanded)
        shares = torch.sigmoid(attention.float()).unsqueeze(-1)
        torch.mul(assignment, shares, out=weights.view(assignment.shape))

    def of_window(self, described: Tensor, mask: Tensor | None) -> Tensor:
        """Descriptions (S, W, P) -> normalized residuals (S, K * J), float32."""
        expanded, weights = torch.split(described, self._sizes[:2], -1)
        if mask is not None:
            weights = weights * mask.unsqueeze(-1)
        weights = weights.reshape(len(described), -1, self._clusters)
        sums = weights.transpose(1, 2) @ expanded.reshape(len(described), -1, self._size)
        totals = weights.sum(1, dtype=torch.float32).unsqueeze(-1)
        return F.normalize(sums.float() - totals * self._centroids, dim=-1).flatten(1)


class FoldedNeXtVLAD(FoldedEncoder):
    """NeXtVLAD; a frame is described by its expanded features and its assignment, of rgb and of audio."""

    def __init__(self, encoder: NeXtVLADEncoder, dtype: torch.dtype, device: torch.device) -> None:
        self._rgb = _FoldedModality(encoder.rgb, slice(None, RGB_SIZE), dtype, device)
        self._audio = _FoldedModality(encoder.audio, slice(RGB_SIZE, None), dtype, device)
        self._described_sizes = [self._rgb.described_size, self._audio.described_size]
        super().__init__(encoder, device, sum(self._described_sizes), dtype)
        weight, bias = weight_and_bias(encoder.projection)
        norms = [affine_of_norm(modality.descriptor_norm) for modality in (encoder.rgb, encoder.audio)]
        scale, shift = (torch.cat(parts) for parts in zip(*norms, strict=True))
        self._projection = FoldedLinear(weight * scale, bias + weight @ shift, dtype, device)
        self._cut = encoder.config.cut_after_linear
        self._gate = folded_gate(encoder.gate, dtype, device)

    def _of_frames(self, features: Tensor, out: Tensor) -> None:
        rgb, audio = torch.split(out, self._described_sizes, 1)
        self._rgb.of_frames(features, rgb)
        self._audio.of_frames(features, audio)

    def _of_window(self, described: Tensor, mask: Tensor | None) -> Tensor:
        rgb, audio = torch.split(described, self._described_sizes, -1)
        return torch.cat([self._rgb.of_window(rgb, mask), self._audio.of_window(audio, mask)], dim=1)

    def _project(self, pooled: Tensor) -> Tensor:
        encoded = self._projection(pooled)
        if self._cut:
            return encoded
        encoded = encoded.relu_()
        return encoded if self._gate is None else self._gate(encoded)


def folded_encoder(encoder: Encoder, dtype: torch.dtype, device: torch.device) -> FoldedEncoder:
    """Fold an encoder.

    Raises:
        TypeError: It is of no known kind.
    """
    if isinstance(encoder, DBoFEncoder):
        return FoldedDBoF(encoder, dtype, device)
    if isinstance(encoder, NeXtVLADEncoder):
        return FoldedNeXtVLAD(encoder, dtype, device)
    raise TypeError(f"no folded form of {type(encoder).__name__}")
