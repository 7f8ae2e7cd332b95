"""The encoders by the type of their config. A new encoder is a file, its settings in `config.py`, and an entry here."""

from typing import Any

from yt8m.features import YOUTUBE8M, Features
from yt8m.models.config import DBoFConfig, NeXtVLADConfig
from yt8m.models.dbof import DBoFEncoder
from yt8m.models.encoder import Encoder
from yt8m.models.nextvlad import NeXtVLADEncoder

ENCODERS: dict[type[DBoFConfig | NeXtVLADConfig], Any] = {
    DBoFConfig: DBoFEncoder,
    NeXtVLADConfig: NeXtVLADEncoder,
}


def build_encoder(config: DBoFConfig | NeXtVLADConfig, features: Features = YOUTUBE8M) -> Encoder:
    """Build an encoder from its config for some features, initialized from torch's global random generator.

    Raises:
        UsageError: The encoder cannot be built for these features.
    """
    encoder: Encoder = ENCODERS[type(config)](config, features)
    return encoder
