"""TensorFlow 1's bilinear resize, which Inception-v3 of 2015 was trained with.

Pixel i of the result lies at `i * old / new`: corners and centers are not aligned, and nothing is averaged, so a pixel
of the result depends on four pixels of the frame, however large that is.
"""

import numpy as np
from numpy.typing import NDArray

SIZE = 299
"""Height and width of the network's input."""


def _interpolation(old: int, new: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """The two pixels that each pixel of the result lies between, and the weight of the second."""
    places = np.arange(new, dtype=np.float32) * (np.float32(old) / np.float32(new))
    lower = places.astype(np.intp)
    return lower, np.minimum(lower + 1, old - 1), places - lower.astype(np.float32)


def resize_bilinear(frame: NDArray[np.uint8], size: int = SIZE) -> NDArray[np.float32]:
    """Resize a frame, bit for bit like TensorFlow's ResizeBilinear without aligned corners and half-pixel centers.

    Args:
        frame: uint8 (H, W, 3).
        size: New height and width.

    Returns:
        float32 (size, size, 3), 0 to 255.
    """
    top, bottom, y = _interpolation(frame.shape[0], size)
    left, right, x = _interpolation(frame.shape[1], size)
    across = x[:, np.newaxis]
    rows = []
    for row in (top, bottom):
        strip = frame[row]
        first = strip[:, left].astype(np.float32)
        second = strip[:, right].astype(np.float32)
        second -= first
        second *= across
        first += second
        rows.append(first)
    upper, lower = rows
    lower -= upper
    lower *= y[:, np.newaxis, np.newaxis]
    upper += lower
    return upper
