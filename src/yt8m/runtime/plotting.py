"""The style of plots."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from yt8m.files import written_atomically

GRAY, DARK_GRAY, BLUE, ORANGE = "#b8b8b8", "#7a7a7a", "#1f6fb4", "#d97706"


def hide_frame(axes: Axes) -> None:
    """Keep only the left and the bottom edge of the frame."""
    axes.spines[["top", "right"]].set_visible(False)


def save_figure(path: Path, figure: Figure) -> None:
    """Write a figure as a PNG file."""
    with written_atomically(path) as temporary:
        figure.savefig(temporary, dpi=130)
