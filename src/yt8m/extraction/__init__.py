"""Features of own videos: video files in, shards out."""

import importlib.util

from yt8m.errors import UsageError


def require_video_extra() -> None:
    """Require PyAV, which decodes videos.

    Raises:
        UsageError: It is not installed.
    """
    if importlib.util.find_spec("av") is None:
        raise UsageError("Reading video files needs PyAV; install it with: pip install 'yt8m[video]'.")
