"""Classifiers folded for prediction: nothing is computed twice, and results are batch-invariant.

Shapes: N frames, S windows (segments with their margins, or contexts), W frames of a window, D features (1152 of YouTube-8M), P size of a
frame's embedding, C classes.

In eval mode a batch norm is an affine map, so each is folded into the linear layer next to it, as are consecutive linear
layers. A frame's embedding (`embed_frames`) does not depend on the window, so it is computed once for all windows that
contain it.

Batch-invariant results: libraries choose the order of the sums in a matrix product by its shape, so all products have
fixed shapes, with padding in the last chunk. On Intel CPUs, the order in MKL depends on the number of threads as well,
unless MKL_CBWR=AUTO,STRICT, which `yt8m.runtime.environment` sets before torch is imported.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from yt8m.errors import UsageError
from yt8m.features import Features
from yt8m.inference.chunks import VIDEOS_PER_CHUNK, apply_in_chunks, chunk_sizes
from yt8m.inference.encoders import FoldedEncoder, fold_encoder
from yt8m.inference.layers import FoldedGate, FoldedLinear, FoldedMixture, fold_gate, fold_norm_into_linear
from yt8m.models.classifier import Classifier, ContextAgnosticClassifier, ContextAwareClassifier
from yt8m.models.config import Kind
from yt8m.models.description import read_description
from yt8m.models.encoder import Encoder
from yt8m.models.saved import load_model


def digest_of(module: nn.Module) -> str:
    """Hash of a network's settings and weights."""
    digest = hashlib.sha256(repr(getattr(module, "config", "")).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class FoldedClassifier:
    """A classifier in eval mode, split into encoders, which can be shared, and the layers after them.

    Args:
        model: Any of the three classifiers.
        device: Device.
        dtype: Type of the matrix products, except the mixture's, which are float32.
        encoders: Folded encoders by digest: equal ones are reused, new ones added.
    """

    def __init__(
        self,
        model: Classifier,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        encoders: dict[str, FoldedEncoder] | None = None,
    ) -> None:
        self.kind: Kind = model.config.kind
        self.num_classes, self.features = model.num_classes, model.features
        self.digest = digest_of(model)
        self.device = device
        known = {} if encoders is None else encoders

        def folded(encoder: Encoder) -> FoldedEncoder:
            digest = digest_of(encoder)
            if digest not in known:
                known[digest] = fold_encoder(encoder, dtype, device)
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
            self.segment_encoder = fold_encoder(model.segment_encoder, dtype, device)
            weight, bias = fold_norm_into_linear(model.fusion_norm, model.fusion)
            # The context's term of the fusion is the same for all segments of a video.
            split = self.context_encoder.output_size
            self._context_linear = FoldedLinear(weight[:, :split], bias, dtype, device)
            self._segment_linear = FoldedLinear(weight[:, split:], torch.zeros_like(bias), dtype, device)
            self._gate = fold_gate(model.fusion_gate, dtype, device)
        elif isinstance(model, ContextAgnosticClassifier):
            self.margin_frames = model.config.margin_frames
            self.segment_encoder = fold_encoder(model.encoder, dtype, device)
        else:
            self.max_frames = model.config.encoder.max_frames
            self.context_encoder = folded(model.encoder)

    def video_terms(self, vectors: Tensor) -> Tensor:
        """A video classifier's logits, float32 (V, C), or the context's term of the fusion, (V, size).

        Args:
            vectors: Context vectors of videos, (V, d).
        """
        layer = self._mixture if self.kind == "video" else self._context_linear
        return apply_in_chunks(layer, VIDEOS_PER_CHUNK, vectors)

    def window_logits(self, embedded: Tensor, windows: Tensor, mask: Tensor, context: Tensor | None = None) -> Tensor:
        """Logits of segments, float32 (S, C).

        Args:
            embedded: Embeddings of frames, (N, P).
            windows: Frames of each segment with its margins, rows of `embedded`, int64 (S, W).
            mask: bool (S, W), true where there is a frame.
            context: For context-aware classifiers, the row of `video_terms` of each segment's video, (S, size).
        """
        chunk = chunk_sizes(self.device).windows
        encoded = cast("FoldedEncoder", self.segment_encoder).encode_windows(embedded, windows, mask, chunk)
        if context is None:
            return apply_in_chunks(self._mixture, chunk, encoded)

        def fuse(segments: Tensor, context: Tensor) -> Tensor:
            joint = self._segment_linear(segments).add_(context).relu_()
            return self._mixture(joint if self._gate is None else self._gate(joint))

        return apply_in_chunks(fuse, chunk, encoded, context)

    def encode_contexts(self, frames: Tensor, windows: Tensor, mask: Tensor) -> Tensor:
        """Context vectors of videos, (V, d).

        Args:
            frames: Frames of all of them, uint8 (N, bytes).
            windows: Frames of each video's context, rows of `frames`, int64 (V, W).
            mask: bool (V, W), true where there is a frame.
        """
        encoder = cast("FoldedEncoder", self.context_encoder)
        return encoder.encode_windows(encoder.embed_frames(frames), windows, mask, VIDEOS_PER_CHUNK)


def load_folded(
    folders: Sequence[Path] | Mapping[str, Path],
    vocabulary_digest: str,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    features: Features | None = None,
) -> dict[str, FoldedClassifier]:
    """Load and fold model folders.

    Args:
        folders: Model folders by name, or without names: then those in their provenance are used.
        vocabulary_digest: Digest of the vocabulary in use.
        device: Device.
        dtype: Type of the matrix products.
        features: Features of the videos; None to accept any.

    Raises:
        UsageError: A folder contains no classifier of these classes and features, or two have the same name.
        Yt8mError: The weights cannot be read, or do not fit the network.
    """
    models: dict[str, FoldedClassifier] = {}
    encoders: dict[str, FoldedEncoder] = {}
    if not isinstance(folders, Mapping):
        named: dict[str, Path] = {}
        for folder in folders:
            name = str(read_description(folder).provenance.get("name", folder.name))
            if name in named:
                raise UsageError(f"{folder}: a model named {name!r} is already among the others.")
            named[name] = folder
        folders = named
    for name, folder in folders.items():
        # Folded one by one, so that their weights are not in memory twice.
        model = load_model(folder, vocabulary_digest=vocabulary_digest, features=features)
        models[name] = FoldedClassifier(model, device, dtype, encoders)
    return models
