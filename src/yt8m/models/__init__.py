"""The networks: torch modules that know nothing of shards, datasets or training.

One explicit dict says which class a config's type stands for. A new encoder is a file and a line here.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from yt8m.models.dbof import DBoFConfig, DBoFEncoder
from yt8m.models.encoder import Encoder
from yt8m.models.nextvlad import NeXtVLADConfig, NeXtVLADEncoder

EncoderConfig = Annotated[DBoFConfig | NeXtVLADConfig, Field(discriminator="type")]
"""Settings of any encoder; in YAML, `type` says of which."""

ENCODERS: dict[type[DBoFConfig | NeXtVLADConfig], Any] = {
    DBoFConfig: DBoFEncoder,
    NeXtVLADConfig: NeXtVLADEncoder,
}


def build_encoder(config: DBoFConfig | NeXtVLADConfig) -> Encoder:
    """Build the encoder that a config describes, with fresh weights from torch's global generator."""
    encoder: Encoder = ENCODERS[type(config)](config)
    return encoder
