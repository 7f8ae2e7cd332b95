"""The three classifiers: of videos, and of segments without and with the context of their video.

Shapes: B videos or segments, T frames, D features (1152 of YouTube-8M), C classes.

A video classifier is an encoder and a mixture of experts. The context-agnostic segment classifier is the same network,
fine-tuned on the frames of segments and their margins. The context-aware one adds a second, frozen encoder of the complete
video: `encode_context` once per video, then the forward pass for each of its segments.

Training calls the models: tensors -> logits. `probabilities` is the call for everyone else: arrays or tensors ->
probabilities, in eval mode and without gradient.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import ArrayLike
from torch import Tensor, nn

from yt8m.features import YOUTUBE8M, Features
from yt8m.models.config import (
    ContextAgnosticClassifierConfig,
    ContextAwareClassifierConfig,
    DBoFConfig,
    FusionConfig,
    MixtureConfig,
    NeXtVLADConfig,
    VideoClassifierConfig,
)
from yt8m.models.encoders import build_encoder
from yt8m.models.layers.batch_norm import MaskedBatchNorm
from yt8m.models.layers.dropout import Dropout
from yt8m.models.layers.gating import squeeze_excite
from yt8m.models.layers.input import Frames, as_batch
from yt8m.models.layers.mixture import MixtureOfExperts


class VideoClassifier(nn.Module):
    """Encoder and mixture of experts.

    Args:
        config: Settings.
        num_classes: C.
        features: What the frames are.
    """

    def __init__(self, config: VideoClassifierConfig, num_classes: int, features: Features = YOUTUBE8M) -> None:
        super().__init__()
        self.config, self.num_classes, self.features = config, num_classes, features
        self.encoder = build_encoder(config.encoder, features)
        self.mixture = MixtureOfExperts(self.encoder.output_size, num_classes, config.mixture)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Logits, float32 (B, C), of videos, or of segments with their margins.

        Args:
            frames: uint8 (B, T, bytes); padding has no influence.
            lengths: int64 (B,), from 1 to T.
        """
        logits: Tensor = self.mixture(self.encoder(frames, lengths))
        return logits

    def probabilities(self, frames: Frames, lengths: Tensor | ArrayLike | None = None) -> Tensor:
        """Probabilities, float32 (B, C), of videos, or of segments with their margins.

        Args:
            frames: Array or tensor, uint8 (B, T, bytes), rgb ++ audio as in the shards.
            lengths: Number of frames of each, (B,); None if all T frames exist.

        Raises:
            TypeError: The frames are not uint8.
            ValueError: The frames or the lengths have another shape or range.
        """
        with _evaluating(self):
            return torch.sigmoid(self(*as_batch(frames, lengths, _device_of(self), self.features)))


class ContextAgnosticClassifier(VideoClassifier):
    """The same network for the frames of a segment and its margins."""

    config: ContextAgnosticClassifierConfig

    @classmethod
    def from_video_classifier(cls, video: VideoClassifier, margin_frames: int = 3) -> Self:
        """Start with a copy of the weights and running statistics of a trained video classifier."""
        config = ContextAgnosticClassifierConfig(
            encoder=video.config.encoder, mixture=video.config.mixture, margin_frames=margin_frames
        )
        agnostic = cls(config, video.num_classes, video.features)
        agnostic.load_state_dict(video.state_dict())
        return agnostic


class ContextAwareClassifier(nn.Module):
    """Two encoders, joined, and a mixture of experts: concat -> BatchNorm -> Dropout -> Linear -> ReLU -> SE gate.

    The context encoder has no gradient and always stays in eval mode, so a video's context vector is constant: encode it
    once.

    Args:
        config: Settings.
        num_classes: C.
        features: What the frames are.
    """

    def __init__(self, config: ContextAwareClassifierConfig, num_classes: int, features: Features = YOUTUBE8M) -> None:
        super().__init__()
        self.config, self.num_classes, self.features = config, num_classes, features
        self.context_encoder = build_encoder(config.context_encoder, features).requires_grad_(False)
        self.segment_encoder = build_encoder(config.segment_encoder, features)
        joint = self.context_encoder.output_size + self.segment_encoder.output_size
        self.fusion_norm = MaskedBatchNorm(joint)
        self.fusion_dropout = Dropout(config.fusion.dropout)
        self.fusion = nn.Linear(joint, config.fusion.output_size)
        self.fusion_gate = squeeze_excite(config.fusion.output_size, config.fusion.se_reduction)
        self.mixture = MixtureOfExperts(config.fusion.output_size, num_classes, config.mixture)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set the training mode of everything but the context encoder."""
        super().train(mode)
        self.context_encoder.eval()
        return self

    def encode_context(self, frames: Frames, lengths: Tensor | ArrayLike | None = None) -> Tensor:
        """Encode videos as context vectors (B, d), without gradient.

        Args:
            frames: Array or tensor, uint8 (B, T', bytes), rgb ++ audio as in the shards.
            lengths: Number of frames of each, (B,); None if all T' frames exist.

        Raises:
            TypeError: The frames are not uint8.
            ValueError: The frames or the lengths have another shape or range.
        """
        with torch.no_grad():
            context: Tensor = self.context_encoder(*as_batch(frames, lengths, _device_of(self), self.features))
        return context

    def probabilities(self, frames: Frames, lengths: Tensor | ArrayLike | None = None, *, context: Tensor) -> Tensor:
        """Probabilities, float32 (B, C), of segments with their margins.

        Args:
            frames: Array or tensor, uint8 (B, T, bytes), rgb ++ audio as in the shards.
            lengths: Number of frames of each, (B,); None if all T frames exist.
            context: Context vector of each segment's video (`encode_context`), (B, d), or (1, d) if it is the same.

        Raises:
            TypeError: The frames are not uint8.
            ValueError: The frames or the lengths have another shape or range.
        """
        frames, lengths = as_batch(frames, lengths, _device_of(self), self.features)
        with _evaluating(self):
            return torch.sigmoid(self(frames, lengths, context.expand(len(frames), -1)))

    def forward(self, frames: Tensor, lengths: Tensor, context: Tensor) -> Tensor:
        """Logits, float32 (B, C), of segments with their margins.

        Args:
            frames: uint8 (B, T, bytes); padding has no influence.
            lengths: int64 (B,), from 1 to T.
            context: Context vector of each segment's video, (B, d).
        """
        joint = torch.cat([context, self.segment_encoder(frames, lengths)], dim=1)
        joint = F.relu(self.fusion(self.fusion_dropout(self.fusion_norm(joint))))
        logits: Tensor = self.mixture(joint if self.fusion_gate is None else self.fusion_gate(joint))
        return logits

    @classmethod
    def from_video_classifiers(
        cls,
        context: VideoClassifier,
        segment: VideoClassifier,
        *,
        fusion: FusionConfig | None = None,
        mixture: MixtureConfig | None = None,
        margin_frames: int = 3,
    ) -> Self:
        """Start with copies of the encoders of two trained video classifiers, which may be the same.

        Args:
            context: Its encoder encodes the video, frozen.
            segment: Its encoder encodes the segment.
            fusion: The joining layers.
            mixture: The mixture of experts.
            margin_frames: Frames before and after the segment.
        """
        config = ContextAwareClassifierConfig(
            context_encoder=context.config.encoder,
            segment_encoder=segment_encoder_config(segment.config.encoder),
            fusion=fusion or FusionConfig(),
            mixture=mixture or MixtureConfig(),
            margin_frames=margin_frames,
        )
        aware = cls(config, context.num_classes, context.features)
        aware.context_encoder.load_state_dict(context.encoder.state_dict())
        trained = segment.encoder.state_dict()
        aware.segment_encoder.load_state_dict({name: trained[name] for name in aware.segment_encoder.state_dict()})
        return aware


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradient, restored at the end."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def _device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def segment_encoder_config(config: DBoFConfig | NeXtVLADConfig) -> DBoFConfig | NeXtVLADConfig:
    """Config of the segment encoder from that of a video classifier's encoder: NeXtVLAD is cut after its Linear.

    A DBoF encoder is used completely (docs/method.md, "Context-aware segment classifier").
    """
    if isinstance(config, NeXtVLADConfig):
        return config.model_copy(update={"cut_after_linear": True})
    return config


Classifier = VideoClassifier | ContextAgnosticClassifier | ContextAwareClassifier
