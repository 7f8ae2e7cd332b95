"""An object whose pickle executes code when it is loaded."""

from __future__ import annotations

import os


class HostilePickle:
    """Creates the folder `ran` in the working directory when its pickle is loaded."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("ran",)
