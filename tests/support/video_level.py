"""An encoder of video-level records, which the package only reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yt8m.shards.writer import message_class


def encode_video_level(
    video_id: str, mean_rgb: NDArray[np.float32], mean_audio: NDArray[np.float32], labels: Sequence[int] = ()
) -> bytes:
    """Serialize a video-level record.

    Args:
        video_id: The id.
        mean_rgb: float32 (1024,).
        mean_audio: float32 (128,).
        labels: Ids of the video's labels.

    Returns:
        A serialized `tf.train.Example`.
    """
    message: Any = message_class("Example")()
    features = message.features.feature
    features["id"].bytes_list.value.append(video_id.encode())
    features["labels"].int64_list.value.extend(labels)
    features["mean_rgb"].float_list.value.extend(mean_rgb.tolist())
    features["mean_audio"].float_list.value.extend(mean_audio.tolist())
    encoded: bytes = message.SerializeToString(deterministic=True)
    return encoded
