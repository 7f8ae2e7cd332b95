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
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from yt8m.errors import UsageError
from yt8m.inference.encoders import FoldedEncoder, folded_encoder
from yt8m.inference.linear import (
    VIDEOS_PER_CHUNK,
    FoldedGate,
    FoldedLinear,
    FoldedMixture,
    chunks_of,
    fold_norm_into_linear,
    folded_gate,
    in_chunks,
)
from yt8m.models.classifier import Classifier, ContextAgnosticClassifier, ContextAwareClassifier, Kind
from yt8m.models.encoder import Encoder
from yt8m.models.saved import load_model, read_description


def digest_of(module: nn.Module) -> str:
    """Fingerprint of a network: its settings and its weights."""
    digest = hashlib.sha256(repr(getattr(module, "config", "")).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


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
            weight, bias = fold_norm_into_linear(model.fusion_norm, model.fusion)
            # What the context adds is the same for all segments of a video.
            split = self.context_encoder.output_size
            self._of_context = FoldedLinear(weight[:, :split], bias, dtype, device)
            self._of_segment = FoldedLinear(weight[:, split:], torch.zeros_like(bias), dtype, device)
            self._gate = folded_gate(model.fusion_gate, dtype, device)
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
        return in_chunks(function, VIDEOS_PER_CHUNK, vectors)

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
        return encoder.pool(encoder.describe(frames), windows, mask, VIDEOS_PER_CHUNK)


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
