"""Settings of the 2019 implementation: its `config.yaml`, and the equivalent configs of this package."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from yt8m.models.config import DBoFConfig, MixtureConfig, NeXtVLADConfig
from yt8m.settings import Settings

_NO_LIMIT = 1 << 20
"""`max_frames` for a `max_len` that sets no limit: more frames than any video has."""

_Size = Annotated[int, Field(ge=1, le=1 << 20)]
_Reduction = Annotated[int, Field(ge=0, le=1 << 20)]
_Probability = Annotated[float, Field(ge=0, lt=1)]


class _Network(Settings):
    """Settings common to all networks. The number of experts has three spellings."""

    fcn_dim: _Size
    """Size of the encoded video, or of the joint vector."""
    n_mixtures: Annotated[int, Field(ge=1, le=1024)]
    """Experts per class, without the zero expert."""
    p_drop: _Probability = 0.5
    """Dropout; half of it for NeXtVLAD's clusters."""
    max_len: Annotated[int, Field(ge=-1, le=_NO_LIMIT)] = -1
    """Frames sampled from a longer video; 0 or -1 for no limit."""
    per_class: bool = False
    """Whether each class has its own gate."""

    @model_validator(mode="before")
    @classmethod
    def _one_spelling(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        found = [key for key in ("n_mixtures", "n_mixture", "num_mixtures") if key in values]
        if len(found) > 1:
            raise ValueError(f"the number of experts is given more than once, as {' and '.join(found)}")
        return {("n_mixtures" if key in found else key): value for key, value in values.items()}

    @property
    def max_frames(self) -> int:
        return self.max_len if self.max_len > 0 else _NO_LIMIT

    @property
    def mixture(self) -> MixtureConfig:
        return MixtureConfig(
            num_experts=self.n_mixtures, dropout=self.p_drop, per_class=self.per_class, average="logits"
        )


class DBoFConfig2019(_Network):
    """Settings of a DBoF encoder."""

    type: Literal["dbof"]
    hidden_dim: _Size
    frame_se_reduction: _Reduction = 0
    video_se_reduction: _Reduction = 0

    @property
    def encoder(self) -> DBoFConfig:
        """Config of the equivalent encoder."""
        return DBoFConfig(
            hidden_size=self.hidden_dim,
            output_size=self.fcn_dim,
            frame_se_reduction=self.frame_se_reduction,
            video_se_reduction=self.video_se_reduction,
            dropout=self.p_drop,
            max_frames=self.max_frames,
            input="bytes",
        )


class NeXtVLADConfig2019(_Network):
    """Settings of a NeXtVLAD encoder."""

    type: Literal["nextvlad"]
    n_clusters: Annotated[int, Field(ge=2, le=1 << 16)]
    groups: Literal[1, 2, 4, 8, 16, 32, 64, 128]
    se_reduction: _Reduction = 0
    add_batchnorm: bool = False

    @property
    def encoder(self) -> NeXtVLADConfig:
        """Config of the equivalent encoder."""
        return NeXtVLADConfig(
            num_clusters=self.n_clusters,
            num_groups=self.groups,
            expansion=2,
            output_size=self.fcn_dim,
            se_reduction=self.se_reduction,
            cluster_dropout=self.p_drop / 2,
            max_frames=self.max_frames,
            input="bytes",
            assignment_batch_norm=False,
        )


class _Fusion(_Network):
    se_reduction: _Reduction = 0
    finetune_context: bool = False
    """Whether the context encoder was trained as well; it has no effect on predictions."""


class _Section(Settings):
    """A section of the file; its settings of training are ignored."""

    model_config = ConfigDict(extra="ignore")


class _VideoSection(_Section):
    model: Annotated[DBoFConfig2019 | NeXtVLADConfig2019, Field(discriminator="type")]


class _Training(_Section):
    offset: Annotated[int, Field(ge=0, le=1000)] = 3
    """Frames before and after a segment."""


class _AgnosticSection(_Section):
    training: _Training = _Training()


class _AwareSection(_AgnosticSection):
    model: _Fusion


class VideoFile2019(_Section):
    """`config.yaml` of a video classifier, or of a context-agnostic segment classifier, which also has `pure_segment`."""

    video: _VideoSection
    pure_segment: _AgnosticSection = _AgnosticSection()


class AwareFile2019(_Section):
    """`config.yaml` of a context-aware segment classifier."""

    context_base: _VideoSection
    segment_base: _VideoSection
    segment_w_context: _AwareSection
