"""Classifiers as prediction uses them: nothing is computed twice, and nothing depends on what else is computed.

Shapes: N frames, S windows (segments with their margins, or contexts), W frames of a window, D=1152 features, P numbers
that describe a frame, C classes.

In eval mode a batch norm is an affine map, so each is folded into the linear layer beside it, as are two linear layers
with nothing between them. What a frame contributes (`describe`) does not depend on the window it is seen through, so it
is computed once however many windows overlap there: a segment of 5 frames is seen with 11. And all matrix products have
the same shapes whatever there is to predict, short ones filled up, so that a segment's probabilities are the same bits
in any company: libraries choose the order of their sums by the shapes.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from yt8m.errors import UsageError
from yt8m.models.classifier import Classifier, ContextAgnosticClassifier, ContextAwareClassifier, Kind
from yt8m.models.dbof import DBoFEncoder
from yt8m.models.layers import (
    RGB_SIZE,
    Encoder,
    MaskedBatchNorm,
    MixtureOfExperts,
    SqueezeExcite,
    averaged_logits,
    mixture_logits,
)
from yt8m.models.nextvlad import ModalityVLAD, NeXtVLADEncoder
from yt8m.models.saved import load_model, read_description


class Chunks(NamedTuple):
    """How much is computed at a time, always exactly so much.

    Args:
        frames: Frames described at a time.
        windows: Segments.
        gathered: Numbers gathered for windows: on a CPU, what stays in its cache until they are summed.
    """

    frames: int
    windows: int
    gathered: int


_ON_CPU = Chunks(frames=1024, windows=512, gathered=1 << 20)
_ON_DEVICE = Chunks(frames=4096, windows=2048, gathered=1 << 27)
_VIDEOS_PER_CHUNK = 64


def chunks_of(device: torch.device) -> Chunks:
    """What a device computes at a time."""
    return _ON_CPU if device.type == "cpu" else _ON_DEVICE


def digest_of(module: nn.Module) -> str:
    """Fingerprint of a network: its settings and its weights."""
    digest = hashlib.sha256(repr(getattr(module, "config", "")).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


_OUTPUTS = 32
"""Outputs of a product are filled up to a multiple of this. Libraries have one way for such products, whatever the row;
for a few odd outputs a row's bits may depend on where it stands, and for 4,005 the product takes a third longer."""


class FoldedLinear:
    """A linear layer with constants: `weight x + bias` in the type that its weight has.

    Args:
        weight: (out, in), float64.
        bias: (out,), float64.
        dtype: Type of the product.
        device: Where the weights belong.
    """

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype, device: torch.device) -> None:
        self._size = len(weight)
        filler = -len(weight) % _OUTPUTS
        self.weight = F.pad(weight, (0, 0, 0, filler)).to(dtype).to(device)
        self.bias = F.pad(bias, (0, filler)).to(dtype).to(device)

    def __call__(self, features: Tensor) -> Tensor:
        """Features (..., in) -> (..., out)."""
        return F.linear(features.to(self.weight.dtype), self.weight, self.bias)[..., : self._size]


def _affine(norm: MaskedBatchNorm) -> tuple[Tensor, Tensor]:
    """What a batch norm does in eval mode: `x * scale + shift`, float64 (copies * num_features,) each, on the CPU."""
    scale = torch.rsqrt(norm.running_var.double().cpu() + norm.eps)
    shift = -norm.running_mean.double().cpu() * scale
    if norm.weight is not None and norm.bias is not None:
        weight = norm.weight.detach().double().cpu()
        scale, shift = scale * weight, shift * weight + norm.bias.detach().double().cpu()
    return scale.repeat(norm.copies), shift.repeat(norm.copies)


def _constants(linear: nn.Linear) -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear layer, float64 on the CPU."""
    weight = linear.weight.detach().double().cpu()
    return weight, torch.zeros(
        len(weight), dtype=weight.dtype
    ) if linear.bias is None else linear.bias.detach().double().cpu()


def _after_norm(norm: MaskedBatchNorm, linear: nn.Linear) -> tuple[Tensor, Tensor]:
    """`linear(norm(x))` as one linear layer."""
    (scale, shift), (weight, bias) = _affine(norm), _constants(linear)
    return weight * scale, bias + weight @ shift


class FoldedGate:
    """An SE gate over channels: `x * sigmoid(W2 relu(W1 x))`."""

    def __init__(self, gate: SqueezeExcite, dtype: torch.dtype, device: torch.device) -> None:
        self._squeeze = FoldedLinear(*_after_norm(gate.squeeze_norm, gate.squeeze), dtype, device)
        self._excite = FoldedLinear(*_after_norm(gate.excite_norm, gate.excite), dtype, device)

    def __call__(self, features: Tensor, out: Tensor | None = None) -> Tensor:
        """Features (..., channels) -> the same, in `out` where that is given."""
        gate = self._excite(self._squeeze(features).relu_()).sigmoid_()
        return torch.mul(gate, features, out=gate if out is None else out)


def _folded_gate(gate: SqueezeExcite | None, dtype: torch.dtype, device: torch.device) -> FoldedGate | None:
    return None if gate is None else FoldedGate(gate, dtype, device)


def in_chunks(function: Callable[..., Tensor], size: int, *tensors: Tensor) -> Tensor:
    """Apply a function to `size` rows at a time, always so many: the last chunk is filled up with its first row.

    Args:
        function: Rows of each tensor -> as many rows.
        size: Rows of a chunk.
        tensors: As many rows each, at least one.
    """
    results = []
    for start in range(0, len(tensors[0]), size):
        parts = [tensor[start : start + size] for tensor in tensors]
        results.append(function(*(_filled(part, size) for part in parts))[: len(parts[0])])
    return results[0] if len(results) == 1 else torch.cat(results)


def _filled(rows: Tensor, size: int) -> Tensor:
    """Rows filled up to `size` with the first of them."""
    filler = size - len(rows)
    return torch.cat([rows, rows[:1].expand(filler, *rows.shape[1:])]) if filler else rows


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
            features, _ = self._frame_input(_filled(part, size).unsqueeze(0), length)
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
        self._hidden = FoldedLinear(*_constants(encoder.frame_projection), dtype, device)
        self._frame_gate = _folded_gate(encoder.frame_gate, dtype, device)
        self._projection = FoldedLinear(*_after_norm(encoder.pooled_norm, encoder.video_projection), dtype, device)
        self._video_gate = _folded_gate(encoder.video_gate, dtype, device)

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
        expansion, offset = _constants(modality.expansion)
        assignment, assigned = _constants(modality.assignment)
        if modality.assignment_norm is not None:
            scale, shift = _affine(modality.assignment_norm)
            assignment, assigned = assignment * scale.unsqueeze(1), assigned * scale + shift
        attention, attended = _constants(modality.attention)
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
        weight, bias = _constants(encoder.projection)
        norms = [_affine(modality.descriptor_norm) for modality in (encoder.rgb, encoder.audio)]
        scale, shift = (torch.cat(parts) for parts in zip(*norms, strict=True))
        self._projection = FoldedLinear(weight * scale, bias + weight @ shift, dtype, device)
        self._cut = encoder.config.cut_after_linear
        self._gate = _folded_gate(encoder.gate, dtype, device)

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


class FoldedMixture:
    """The mixture of experts, in float32: experts and gate are one matrix product."""

    def __init__(self, mixture: MixtureOfExperts, device: torch.device) -> None:
        experts, gate = (
            _after_norm(norm, linear)
            for norm, linear in ((mixture.expert_norm, mixture.experts), (mixture.gate_norm, mixture.gate))
        )
        weight, bias = (torch.cat(pair) for pair in zip(experts, gate, strict=True))
        self._linear = FoldedLinear(weight, bias, torch.float32, device)
        self._sizes = [len(experts[1]), len(gate[1])]
        self._experts, self._classes = mixture.num_experts, mixture.num_classes
        self._gate_classes = mixture.gate_classes
        self._mixed = averaged_logits if mixture.averages_logits else mixture_logits

    def __call__(self, features: Tensor) -> Tensor:
        """Encoded (S, in_features) -> logits, float32 (S, C)."""
        experts, gate = torch.split(self._linear(features.float()), self._sizes, 1)
        return self._mixed(
            experts.reshape(-1, self._experts, self._classes), gate.reshape(-1, self._experts + 1, self._gate_classes)
        )


class FoldedClassifier:
    """A classifier in eval mode, taken apart: encoders to share, and what makes logits of their vectors.

    Args:
        model: Any of the three classifiers.
        device: Where it computes.
        dtype: Type of the matrix products, those of the mixture apart, which are float32.
        encoders: Encoders folded before, by digest: an equal one is used again, and a new one is added.
    """

    def __init__(
        self,
        model: Classifier,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        encoders: dict[str, FoldedEncoder] | None = None,
    ) -> None:
        self.kind: Kind = model.config.kind
        self.num_classes = model.num_classes
        self.digest = digest_of(model)
        self.device = device
        known = {} if encoders is None else encoders

        def folded(encoder: Encoder) -> FoldedEncoder:
            digest = digest_of(encoder)
            if digest not in known:
                known[digest] = folded_encoder(encoder, dtype, device)
            return known[digest]

        self.margin_frames = 0
        self.max_frames = 0
        self.context_encoder: FoldedEncoder | None = None
        self.segment_encoder: FoldedEncoder | None = None
        self._gate: FoldedGate | None = None
        self._mixture = FoldedMixture(model.mixture, device)
        if isinstance(model, ContextAwareClassifier):
            self.margin_frames = model.config.margin_frames
            self.max_frames = model.config.context_encoder.max_frames
            self.context_encoder = folded(model.context_encoder)
            self.segment_encoder = folded_encoder(model.segment_encoder, dtype, device)
            weight, bias = _after_norm(model.fusion_norm, model.fusion)
            # What the context adds is the same for all segments of a video.
            split = self.context_encoder.output_size
            self._of_context = FoldedLinear(weight[:, :split], bias, dtype, device)
            self._of_segment = FoldedLinear(weight[:, split:], torch.zeros_like(bias), dtype, device)
            self._gate = _folded_gate(model.fusion_gate, dtype, device)
        elif isinstance(model, ContextAgnosticClassifier):
            self.margin_frames = model.config.margin_frames
            self.segment_encoder = folded_encoder(model.encoder, dtype, device)
        else:
            self.max_frames = model.config.encoder.max_frames
            self.context_encoder = folded(model.encoder)

    def of_videos(self, vectors: Tensor) -> Tensor:
        """What the context encoder's vectors of videos come to: a video classifier's logits, or a share of the fusion.

        Args:
            vectors: (V, d).

        Returns:
            Logits float32 (V, C), or (V, fusion's size) for `of_windows`.
        """
        function = self._mixture if self.kind == "video" else self._of_context
        return in_chunks(function, _VIDEOS_PER_CHUNK, vectors)

    def of_windows(self, described: Tensor, windows: Tensor, mask: Tensor, context: Tensor | None = None) -> Tensor:
        """Logits of segments.

        Args:
            described: What the segment encoder says of frames, (N, P).
            windows: Frames of each segment with its margins, rows of `described`, int64 (S, W).
            mask: bool (S, W), true where there is a frame.
            context: Of a context-aware classifier, for each segment the row of its video in `of_videos`, (S, size).

        Returns:
            float32 (S, C).
        """
        encoder = cast("FoldedEncoder", self.segment_encoder)
        chunk = chunks_of(self.device).windows
        if context is None:
            return in_chunks(self._mixture, chunk, encoder.pool(described, windows, mask, chunk))

        def joined(segments: Tensor, context: Tensor) -> Tensor:
            joint = self._of_segment(segments).add_(context).relu_()
            return self._mixture(joint if self._gate is None else self._gate(joint))

        return in_chunks(joined, chunk, encoder.pool(described, windows, mask, chunk), context)

    def encode_contexts(self, frames: Tensor, windows: Tensor, mask: Tensor) -> Tensor:
        """The context encoder's vectors of videos.

        Args:
            frames: Frames of all of them, uint8 (N, D).
            windows: Frames of each video's context, rows of `frames`, int64 (V, W).
            mask: bool (V, W).

        Returns:
            (V, d).
        """
        encoder = cast("FoldedEncoder", self.context_encoder)
        return encoder.pool(encoder.describe(frames), windows, mask, _VIDEOS_PER_CHUNK)


def fold_classifiers(
    models: Mapping[str, Classifier], device: torch.device, dtype: torch.dtype = torch.float32
) -> dict[str, FoldedClassifier]:
    """Fold several classifiers; those with equal context encoders share one."""
    encoders: dict[str, FoldedEncoder] = {}
    return {name: FoldedClassifier(model, device, dtype, encoders) for name, model in models.items()}


def load_folded(
    folders: Iterable[Path], vocabulary_digest: str, device: torch.device, dtype: torch.dtype = torch.float32
) -> dict[str, FoldedClassifier]:
    """Load model folders as prediction uses them; a model's name is what its folder says it was trained as.

    Args:
        folders: Model folders.
        vocabulary_digest: Digest of the vocabulary in use.
        device: Where they compute.
        dtype: Type of the matrix products.

    Raises:
        UsageError: A folder holds no classifier of these classes, or two have one name.
        Yt8mError: The weights cannot be read, or are not those of such a network.
    """
    models: dict[str, FoldedClassifier] = {}
    encoders: dict[str, FoldedEncoder] = {}
    for folder in folders:
        name = str(read_description(folder).provenance.get("name", folder.name))
        if name in models:
            raise UsageError(f"{folder}: a model named {name!r} is among the others already.")
        # Folded one by one, so that no second copy of all their weights is held.
        model = load_model(folder, vocabulary_digest=vocabulary_digest)
        models[name] = FoldedClassifier(model, device, dtype, encoders)
    return models
