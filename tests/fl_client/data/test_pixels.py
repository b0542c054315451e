"""Pixels take the fewest bytes that hold them exactly, whatever order they come in."""

from typing import Any

import numpy as np
import pytest

from fl_client.data.pixels import PixelStack, shrink


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([0, 255], np.uint8),
        ([0, 256], np.uint16),
        ([-1, 255], np.int16),
        ([0, 65_535], np.uint16),
        ([-1, 40_000], np.float32),
        ([0, 0.5], np.float32),
        ([0, np.nan], np.float32),
        ([0, np.inf], np.float32),
        ([], np.uint8),
    ],
)
@pytest.mark.parametrize("held", [np.float64, np.float32])
def test_the_smallest_type_that_holds_all_values_is_taken(values: list[float], dtype: Any, held: Any) -> None:
    given = np.array(values, held)

    found = shrink(given)

    assert found.dtype == dtype
    assert np.array_equal(found, given, equal_nan=True)


@pytest.mark.parametrize(
    ("images", "dtype"),
    [
        ([[1, 2], [3, 4]], np.uint8),
        ([[1, 2], [300, 4], [5, 6]], np.uint16),
        ([[300, 2], [1, 4]], np.uint16),
        ([[1, 2], [-3, 4]], np.int16),
        ([[40_000, 2], [-3, 4]], np.float32),
        ([[1, 2], [0.5, 4], [-3, 4]], np.float32),
    ],
)
def test_images_of_different_ranges_share_one_type_that_holds_all(images: list[list[float]], dtype: Any) -> None:
    stack = PixelStack(len(images), (2,))

    for row, image in enumerate(images):
        stack.put(row, np.array(image))

    assert stack.array.dtype == dtype
    assert stack.array.tolist() == images
