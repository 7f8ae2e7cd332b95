"""The encoders by the type of their config. A new encoder is a file, its settings in `config.py`, and an entry here."""

from typing import Any

from yt8m.models.config import DBoFConfig, NeXtVLADConfig
from yt8m.models.dbof import DBoFEncoder
from yt8m.models.encoder import Encoder
from yt8m.models.nextvlad import NeXtVLADEncoder

ENCODERS: dict[type[DBoFConfig | NeXtVLADConfig], Any] = {
    DBoFConfig: DBoFEncoder,
    NeXtVLADConfig: NeXtVLADEncoder,
}


def build_encoder(config: DBoFConfig | NeXtVLADConfig) -> Encoder:
    """Build an encoder from its config, initialized from torch's global random generator."""
    encoder: Encoder = ENCODERS[type(config)](config)
    return encoder
