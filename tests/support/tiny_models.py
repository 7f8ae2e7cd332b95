"""Tiny classifiers with random weights and running statistics, and videos for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tests.support.tiny_shards import TinyVideo
from yt8m.inference.classifier import FoldedClassifier
from yt8m.inference.encoders import FoldedEncoder
from yt8m.models.classifier import Classifier, ContextAgnosticClassifier, ContextAwareClassifier, VideoClassifier
from yt8m.models.config import (
    ContextAgnosticClassifierConfig,
    ContextAwareClassifierConfig,
    DBoFConfig,
    EncoderConfig,
    FusionConfig,
    MixtureConfig,
    NeXtVLADConfig,
    VideoClassifierConfig,
)
from yt8m.models.layers.batch_norm import MaskedBatchNorm

CPU = torch.device("cpu")
NUM_CLASSES = 5
DBOF = DBoFConfig(hidden_size=16, output_size=8, max_frames=20)
NEXTVLAD = NeXtVLADConfig(num_clusters=4, num_groups=8, output_size=8, max_frames=17)
MIXTURE = MixtureConfig(num_experts=2, initial_probability=0.4)
M = TypeVar("M", bound=nn.Module)
SegmentClassifier = ContextAgnosticClassifier | ContextAwareClassifier


def trained(model: M, seed: int) -> M:
    """Give a model weights and running statistics as after training, none of them 0 or 1, and set it to eval mode."""
    generator = torch.Generator().manual_seed(seed)
    state = model.state_dict()
    for name, tensor in state.items():
        if tensor.is_floating_point():
            noise = 0.2 * torch.randn(tensor.shape, generator=generator)
            # Keep variances and scales positive.
            state[name] = tensor * noise.exp() if bool((tensor > 0).all()) else tensor + noise
    model.load_state_dict(state)
    return model.eval()


def randomize(module: nn.Module) -> None:
    """Give batch norms random weights, biases and statistics, with torch's global generator."""
    for child in module.modules():
        if isinstance(child, MaskedBatchNorm):
            child.running_mean.normal_()
            child.running_var.uniform_(0.5, 2)
            if child.weight is not None:
                nn.init.normal_(child.weight)
                nn.init.normal_(child.bias)


def video_classifier(encoder: EncoderConfig, **mixture: object) -> VideoClassifier:
    """A video classifier with settings of its mixture; the same weights at every call."""
    torch.manual_seed(0)
    config = VideoClassifierConfig(encoder=encoder, mixture=MixtureConfig.model_validate(mixture))
    model = VideoClassifier(config, NUM_CLASSES)
    randomize(model)
    return model


def aware_classifier() -> ContextAwareClassifier:
    """A context-aware classifier from two video classifiers, DBoF for the context and NeXtVLAD for segments."""
    fusion, mixture = FusionConfig(output_size=8), MixtureConfig(num_experts=2)
    model = ContextAwareClassifier.from_video_classifiers(
        video_classifier(DBOF), video_classifier(NEXTVLAD), fusion=fusion, mixture=mixture
    )
    randomize(model.fusion_norm)
    return model


def agnostic(encoder: EncoderConfig = DBOF, margin: int = 3, seed: int = 0) -> ContextAgnosticClassifier:
    """A context-agnostic classifier, trained."""
    config = ContextAgnosticClassifierConfig(encoder=encoder, mixture=MIXTURE, margin_frames=margin)
    torch.manual_seed(seed)
    return trained(ContextAgnosticClassifier(config, NUM_CLASSES), seed)


def aware(
    context: EncoderConfig = NEXTVLAD, segment: EncoderConfig = DBOF, margin: int = 3, seed: int = 0
) -> ContextAwareClassifier:
    """A context-aware classifier, trained."""
    config = ContextAwareClassifierConfig(
        context_encoder=context,
        segment_encoder=segment,
        fusion=FusionConfig(output_size=8),
        mixture=MIXTURE,
        margin_frames=margin,
    )
    torch.manual_seed(seed)
    return trained(ContextAwareClassifier(config, NUM_CLASSES), seed)


def fold_classifiers(models: Mapping[str, Classifier]) -> dict[str, FoldedClassifier]:
    """Fold models on the CPU; equal context encoders are shared."""
    encoders: dict[str, FoldedEncoder] = {}
    return {name: FoldedClassifier(model, CPU, encoders=encoders) for name, model in models.items()}


def random_frames(batch: int, num_frames: int) -> Tensor:
    """Random frames, uint8 (batch, num_frames, 1152), with torch's global generator."""
    return torch.randint(0, 256, (batch, num_frames, 1152), dtype=torch.uint8)


def videos_of(lengths: Sequence[int]) -> list[TinyVideo]:
    """Videos with the given numbers of frames, which change every few seconds, so that windows differ."""
    videos = []
    for number, length in enumerate(lengths):
        rng = np.random.default_rng(number)
        scenes = rng.integers(0, 256, (length // 4 + 1, 1152), np.uint8)
        videos.append(TinyVideo(f"video{number}", np.repeat(scenes, 4, axis=0)[:length]))
    return videos


def batch_of_one(frames: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    """Frames (T, D) and their number as a batch."""
    return torch.from_numpy(frames.copy())[None], torch.tensor([len(frames)])


def context_frames(frames: NDArray[np.uint8], max_frames: int) -> NDArray[np.uint8]:
    """Frames of a video that its context is encoded from: the crop, evenly subsampled."""
    inside = frames[30:-10] if len(frames) > 40 else frames
    if len(inside) > max_frames:
        # The frames in the middle of equal intervals.
        inside = inside[[int((i + 0.5) * len(inside) / max_frames) for i in range(max_frames)]]
    return inside


def slow_logits(model: SegmentClassifier, frames: NDArray[np.uint8], start: int, shift: int = 0) -> Tensor:
    """Logits (C,) of one segment by a call of the complete model, its context included.

    Args:
        model: The classifier.
        frames: Frames of the video, uint8 (T, D).
        start: Start of the segment in seconds.
        shift: Test-time shift.
    """
    margin = model.config.margin_frames
    window = frames[max(0, start + shift - margin) : start + shift + 5 + margin]
    with torch.no_grad():
        if isinstance(model, ContextAwareClassifier):
            inside = context_frames(frames, model.config.context_encoder.max_frames)
            logits: Tensor = model(*batch_of_one(window), model.encode_context(*batch_of_one(inside)))
        else:
            logits = model(*batch_of_one(window))
    return logits[0]
