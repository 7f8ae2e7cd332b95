"""The three classifiers: of whole videos, and of segments without and with the rest of their video.

Shapes: B videos or segments, T frames, D=1152 features, C classes.

A video classifier is an encoder and a mixture of experts. Fine-tuned on the frames of a segment and a few beside it,
the same network is the context-agnostic segment classifier. The context-aware one sets a second, frozen encoder of the
whole video beside the segment's: `encode_context` once a video, then the forward pass for each of its segments.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import Field
from torch import Tensor, nn

from yt8m.models import EncoderConfig, build_encoder
from yt8m.models.dbof import DBoFConfig
from yt8m.models.layers.batch_norm import MaskedBatchNorm
from yt8m.models.layers.dropout import Dropout
from yt8m.models.layers.gating import squeeze_excite
from yt8m.models.layers.mixture import MixtureConfig, MixtureOfExperts
from yt8m.models.nextvlad import NeXtVLADConfig
from yt8m.settings import Settings

Kind = Literal["video", "agnostic", "aware"]
"""What a classifier classifies, and from what."""


class VideoClassifierConfig(Settings):
    """A classifier of whole videos."""

    kind: ClassVar[Kind] = "video"

    encoder: EncoderConfig
    """How frames become one vector."""
    mixture: MixtureConfig = MixtureConfig()
    """How the vector becomes probabilities."""


class ContextAgnosticClassifierConfig(VideoClassifierConfig):
    """A classifier of segments that sees nothing of a video but the segment and its margins."""

    kind: ClassVar[Kind] = "agnostic"

    margin_frames: int = Field(3, ge=0, le=1000)
    """Frames seen before and after the segment (t)."""


class FusionConfig(Settings):
    """The layers of a context-aware classifier that join the two encoders."""

    output_size: int = Field(2048, ge=1)
    """Size of the joint vector."""
    se_reduction: int = Field(4, ge=0)
    """How many times narrower its gate is inside; 0 leaves the gate out."""
    dropout: float = Field(0.5, ge=0, lt=1)
    """Share of the two encoders' outputs dropped in training."""


class ContextAwareClassifierConfig(Settings):
    """A classifier of segments that also sees the whole video, through a frozen encoder."""

    kind: ClassVar[Kind] = "aware"

    context_encoder: EncoderConfig
    """Encoder of the whole video, frozen."""
    segment_encoder: EncoderConfig
    """Encoder of the segment and its margins."""
    fusion: FusionConfig = FusionConfig()
    """How the two are joined."""
    mixture: MixtureConfig = MixtureConfig()
    """How the joint vector becomes probabilities."""
    margin_frames: int = Field(3, ge=0, le=1000)
    """Frames seen before and after the segment (t)."""


ClassifierConfig = VideoClassifierConfig | ContextAgnosticClassifierConfig | ContextAwareClassifierConfig


class VideoClassifier(nn.Module):
    """Encoder and mixture of experts.

    Args:
        config: Settings.
        num_classes: C.
    """

    def __init__(self, config: VideoClassifierConfig, num_classes: int) -> None:
        super().__init__()
        self.config, self.num_classes = config, num_classes
        self.encoder = build_encoder(config.encoder)
        self.mixture = MixtureOfExperts(self.encoder.output_size, num_classes, config.mixture)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Classify videos, or segments with their margins.

        Args:
            frames: uint8 (B, T, D); what stands beyond a length has no influence.
            lengths: int64 (B,), from 1 to T.

        Returns:
            Logits, float32 (B, C); `torch.sigmoid` makes them probabilities.
        """
        logits: Tensor = self.mixture(self.encoder(frames, lengths))
        return logits

    def parameter_groups(self) -> dict[str, list[str]]:
        """Names of the parameters to train, by how they are trained: all alike, `{"new": [...]}`."""
        return {"new": [name for name, _ in self.named_parameters()]}


class ContextAgnosticClassifier(VideoClassifier):
    """The same network, its frames those of a segment and its margins."""

    config: ContextAgnosticClassifierConfig

    def __init__(self, config: ContextAgnosticClassifierConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)

    @classmethod
    def from_video_classifier(cls, video: VideoClassifier, margin_frames: int = 3) -> ContextAgnosticClassifier:
        """Start from a trained video classifier: a copy of all its weights and running statistics."""
        config = ContextAgnosticClassifierConfig(
            encoder=video.config.encoder, mixture=video.config.mixture, margin_frames=margin_frames
        )
        agnostic = cls(config, video.num_classes)
        agnostic.load_state_dict(video.state_dict())
        return agnostic


class ContextAwareClassifier(nn.Module):
    """Two encoders, joined, and a mixture of experts: concat -> BatchNorm -> Dropout -> Linear -> ReLU -> SE gate.

    The context encoder has no gradient and stays in eval mode whatever `train` is told, so a video's context is a
    constant: encode it once.

    Args:
        config: Settings.
        num_classes: C.
    """

    def __init__(self, config: ContextAwareClassifierConfig, num_classes: int) -> None:
        super().__init__()
        self.config, self.num_classes = config, num_classes
        self.context_encoder = build_encoder(config.context_encoder).requires_grad_(False)
        self.segment_encoder = build_encoder(config.segment_encoder)
        joint = self.context_encoder.output_size + self.segment_encoder.output_size
        self.fusion_norm = MaskedBatchNorm(joint)
        self.fusion_dropout = Dropout(config.fusion.dropout)
        self.fusion = nn.Linear(joint, config.fusion.output_size)
        self.fusion_gate = squeeze_excite(config.fusion.output_size, config.fusion.se_reduction)
        self.mixture = MixtureOfExperts(config.fusion.output_size, num_classes, config.mixture)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set training mode for all but the context encoder."""
        super().train(mode)
        self.context_encoder.eval()
        return self

    def encode_context(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Encode videos: uint8 (B, T', D) and int64 (B,) -> context vectors (B, d), without gradient."""
        with torch.no_grad():
            context: Tensor = self.context_encoder(frames, lengths)
        return context

    def forward(self, frames: Tensor, lengths: Tensor, context: Tensor) -> Tensor:
        """Classify segments with their margins, whose videos are encoded already.

        Args:
            frames: uint8 (B, T, D), the segments and their margins.
            lengths: int64 (B,), from 1 to T.
            context: (B, d), for each segment the vector of its video.

        Returns:
            Logits, float32 (B, C).
        """
        joint = torch.cat([context, self.segment_encoder(frames, lengths)], dim=1)
        joint = F.relu(self.fusion(self.fusion_dropout(self.fusion_norm(joint))))
        logits: Tensor = self.mixture(joint if self.fusion_gate is None else self.fusion_gate(joint))
        return logits

    def parameter_groups(self) -> dict[str, list[str]]:
        """Names of the parameters to train, by how they are trained.

        Returns:
            `segment_encoder`, which learns at a lower rate, and `new`; the frozen context encoder is in neither.
        """
        groups: dict[str, list[str]] = {"segment_encoder": [], "new": []}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                groups["segment_encoder" if name.startswith("segment_encoder.") else "new"].append(name)
        return groups

    @classmethod
    def from_video_classifiers(
        cls,
        context: VideoClassifier,
        segment: VideoClassifier,
        *,
        fusion: FusionConfig | None = None,
        mixture: MixtureConfig | None = None,
        margin_frames: int = 3,
    ) -> ContextAwareClassifier:
        """Start from two trained video classifiers (they may be the same): copies of their encoders, the rest new.

        A NeXtVLAD segment encoder is cut after its Linear, a DBoF one kept whole (SPEC: context-aware classifier).

        Args:
            context: Whose encoder reads the whole video, frozen.
            segment: Whose encoder reads the segment.
            fusion: The joining layers.
            mixture: The mixture of experts.
            margin_frames: Frames seen before and after the segment.
        """
        config = ContextAwareClassifierConfig(
            context_encoder=context.config.encoder,
            segment_encoder=_segment_side(segment.config.encoder),
            fusion=fusion or FusionConfig(),
            mixture=mixture or MixtureConfig(),
            margin_frames=margin_frames,
        )
        aware = cls(config, context.num_classes)
        aware.context_encoder.load_state_dict(context.encoder.state_dict())
        wanted = aware.segment_encoder.state_dict().keys()
        trained = segment.encoder.state_dict()
        aware.segment_encoder.load_state_dict({name: trained[name] for name in wanted})
        return aware


def _segment_side(config: DBoFConfig | NeXtVLADConfig) -> DBoFConfig | NeXtVLADConfig:
    if isinstance(config, NeXtVLADConfig):
        return config.model_copy(update={"cut_after_linear": True})
    return config


Classifier = VideoClassifier | ContextAgnosticClassifier | ContextAwareClassifier
