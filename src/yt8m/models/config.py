"""Settings of the networks, which load without torch."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from yt8m.settings import MAX_SIZE, Settings

Modalities = list[Literal["rgb", "audio"]]
"""Names of modalities."""
InputValues = Literal["dequantized", "bytes"]
"""Input of a network: dequantized values, or the bytes 0 to 255 themselves."""

Kind = Literal["video", "agnostic", "aware"]
"""Kind of a classifier: of videos, or of segments, context-agnostic or context-aware."""


class DBoFConfig(Settings):
    """Gated DBoF; the defaults are the paper's `dbof-3`."""

    type: Literal["dbof"] = "dbof"
    hidden_size: int = Field(4096, ge=1, le=MAX_SIZE)
    """H, channels of a frame before pooling."""
    output_size: int = Field(2048, ge=1, le=MAX_SIZE)
    """Size of the encoded video."""
    frame_se_reduction: int = Field(8, ge=0, le=MAX_SIZE)
    """Reduction of the SE gate over a frame's channels; 0 for no gate."""
    video_se_reduction: int = Field(4, ge=0, le=MAX_SIZE)
    """Reduction of the SE gate over the encoded video; 0 for no gate."""
    dropout: float = Field(0.5, ge=0, lt=1)
    """Dropout of the pooled channels."""
    max_frames: int = Field(150, ge=1, le=MAX_SIZE)
    """Frames sampled from a longer video (L_max)."""
    input_batch_norm: bool = False
    """Whether to normalize each input feature over the batch's frames, which the paper does not."""
    input: InputValues = "dequantized"
    """Input of the network: dequantized values, or the bytes 0 to 255 themselves, as in the 2019 implementation."""
    modalities: Modalities = Field(["rgb", "audio"], min_length=1, max_length=2, repr=False)
    """The modalities that the network sees, where the dataset has them: one of the two for a network of that one alone."""


class NeXtVLADConfig(Settings):
    """NeXtVLAD; the defaults are the paper's `nextvlad-2`."""

    type: Literal["nextvlad"] = "nextvlad"
    num_clusters: int = Field(64, ge=2, le=2**16)
    """K, clusters of rgb features; audio has K / 2, rounded down."""
    num_groups: int = Field(16, ge=1, le=2**12)
    """G, groups that a frame's expanded features are split into."""
    expansion: int = Field(2, ge=1, le=2**8)
    """Factor by which the Linear before the groups expands a frame."""
    output_size: int = Field(2048, ge=1, le=MAX_SIZE)
    """Size of the encoded video."""
    se_reduction: int = Field(4, ge=0, le=MAX_SIZE)
    """Reduction of the SE gate over the encoded video; 0 for no gate."""
    cluster_dropout: float = Field(0.25, ge=0, lt=1)
    """Dropout of complete clusters."""
    max_frames: int = Field(150, ge=1, le=MAX_SIZE)
    """Frames sampled from a longer video (L_max)."""
    input_batch_norm: bool = False
    """Whether to normalize each input feature over the batch's frames, which the paper does not."""
    input: InputValues = "dequantized"
    """Input of the network: dequantized values, or the bytes 0 to 255 themselves, as in the 2019 implementation."""
    modalities: Modalities = Field(["rgb", "audio"], min_length=1, max_length=2, repr=False)
    """The modalities that the network sees, where the dataset has them: one of the two for a network of that one alone."""
    assignment_batch_norm: bool = True
    """Whether to normalize the logits of the assignment, per cluster over all frames and groups."""
    cut_after_linear: bool = False
    """Whether to end with the Linear, without ReLU and gate: the segment encoder of a context-aware classifier."""


EncoderConfig = Annotated[DBoFConfig | NeXtVLADConfig, Field(discriminator="type")]
"""Settings of any encoder, which `type` selects in YAML."""


class MixtureConfig(Settings):
    """The mixture of experts at the end of every classifier."""

    num_experts: int = Field(4, ge=1, le=2**10)
    """Experts per class, without the one that always predicts zero."""
    dropout: float = Field(0.5, ge=0, lt=1)
    """Dropout before the experts, and another one before the gate."""
    per_class: bool = False
    """Whether each class has its own gate."""
    average: Literal["probabilities", "logits"] = "probabilities"
    """Average over the experts: of probabilities, as in the paper, or of logits, as in the 2019 implementation, where the
    zero expert has a logit of 0, a probability of one half."""
    initial_probability: float = Field(0.005, gt=0, lt=1)
    """Probability of every class that untrained experts predict: near the frequency of a class, instead of one half."""


class VideoClassifierConfig(Settings):
    """A video classifier."""

    kind: ClassVar[Kind] = "video"

    encoder: EncoderConfig
    """Encodes frames as one vector."""
    mixture: MixtureConfig = MixtureConfig()
    """Predicts probabilities from the vector."""


class ContextAgnosticClassifierConfig(VideoClassifierConfig):
    """A context-agnostic segment classifier: from the frames of a segment and its margins."""

    kind: ClassVar[Kind] = "agnostic"

    margin_frames: int = Field(3, ge=0, le=1000)
    """Frames before and after the segment (t)."""


class FusionConfig(Settings):
    """The layers of a context-aware classifier that join the two encoders."""

    output_size: int = Field(2048, ge=1, le=MAX_SIZE)
    """Size of the joint vector."""
    se_reduction: int = Field(4, ge=0, le=MAX_SIZE)
    """Reduction of its SE gate; 0 for no gate."""
    dropout: float = Field(0.5, ge=0, lt=1)
    """Dropout of the two encoders' outputs."""


class ContextAwareClassifierConfig(Settings):
    """A context-aware segment classifier, which adds the context of the video through a frozen encoder."""

    kind: ClassVar[Kind] = "aware"

    context_encoder: EncoderConfig
    """Encoder of the video, frozen."""
    segment_encoder: EncoderConfig
    """Encoder of the segment and its margins."""
    fusion: FusionConfig = FusionConfig()
    """Layers that join the two."""
    mixture: MixtureConfig = MixtureConfig()
    """Predicts probabilities from the joint vector."""
    margin_frames: int = Field(3, ge=0, le=1000)
    """Frames before and after the segment (t)."""


ClassifierConfig = VideoClassifierConfig | ContextAgnosticClassifierConfig | ContextAwareClassifierConfig
