"""The only place that says how small pixels can be held; worker processes import it: no settings, no torch."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

WHOLE = (np.uint8, np.uint16, np.int16)
"""Types of whole numbers in the order in which they are tried; float32 holds all others as training takes them."""


def shrink(pixels: NDArray[Any]) -> NDArray[Any]:
    """The same pixels in the smallest of `WHOLE` that holds each exactly, otherwise rounded to float32.

    >>> shrink(np.array([0.0, 255.0])).dtype, shrink(np.array([-1024, 3071])).dtype, shrink(np.array([0.5])).dtype
    (dtype('uint8'), dtype('int16'), dtype('float32'))
    """
    for dtype in WHOLE:
        limits = np.iinfo(dtype)
        if pixels.dtype == dtype:
            return pixels
        if ((pixels >= limits.min) & (pixels <= limits.max)).all():
            held = pixels.astype(dtype)
            if np.array_equal(held, pixels):
                return held
    return pixels.astype(np.float32)


class PixelStack:
    """Images of one shape in one array, which becomes wider only when an image needs it.

    Args:
        count: Number of images.
        shape: Of each.
    """

    def __init__(self, count: int, shape: tuple[int, ...]) -> None:
        self.array: NDArray[Any] = np.zeros((count, *shape), np.uint8)

    def put(self, row: int, pixels: NDArray[Any]) -> None:
        """Set one image."""
        held = shrink(pixels)
        if held.dtype != self.array.dtype:
            common = np.promote_types(held.dtype, self.array.dtype)
            self.array = self.array.astype(common if common in WHOLE else np.float32, copy=False)
        self.array[row] = held
