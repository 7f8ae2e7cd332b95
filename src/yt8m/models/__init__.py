"""The networks: plain torch modules, independent of shards, datasets and training.

`ENCODERS` maps the type of an encoder's config to its class. A new encoder is a file and an entry here.
"""

from typing import Annotated, Any

from pydantic import Field

from yt8m.models.dbof import DBoFConfig, DBoFEncoder
from yt8m.models.encoder import Encoder
from yt8m.models.nextvlad import NeXtVLADConfig, NeXtVLADEncoder

EncoderConfig = Annotated[DBoFConfig | NeXtVLADConfig, Field(discriminator="type")]
"""Settings of any encoder, which `type` selects in YAML."""

ENCODERS: dict[type[DBoFConfig | NeXtVLADConfig], Any] = {
    DBoFConfig: DBoFEncoder,
    NeXtVLADConfig: NeXtVLADEncoder,
}


def build_encoder(config: DBoFConfig | NeXtVLADConfig) -> Encoder:
    """Build an encoder from its config, initialized from torch's global random generator."""
    encoder: Encoder = ENCODERS[type(config)](config)
    return encoder
