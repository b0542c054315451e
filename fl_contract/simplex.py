"""The only place that makes possible counts of impossible ones: whole, not negative, with a given total."""

import numpy as np
from numpy.typing import NDArray


def apportion(values: NDArray[np.integer], total: int) -> NDArray[np.int64]:
    """Counts with a given total that are nearest to noised ones.

    First the nearest point, in Euclidean distance, of the simplex of non-negative numbers with that total (Duchi et al.
    2008, figure 1): a common number is taken off, or added, and what falls below zero becomes zero. Then whole numbers
    by largest remainder.

    Args:
        values: [C] counts, possibly negative.
        total: What the result adds up to; at least 0.

    >>> apportion(np.array([5, -2, 1]), 4)
    array([4, 0, 0])
    """
    ordered = np.sort(values)[::-1].astype(np.float64)
    thresholds = (np.cumsum(ordered) - total) / np.arange(1, len(ordered) + 1)
    threshold = thresholds[np.flatnonzero(ordered - thresholds >= 0)[-1]]
    nearest = np.maximum(values - threshold, 0.0)
    counts: NDArray[np.int64] = np.floor(nearest + 1e-9).astype(np.int64)
    missing = total - int(counts.sum())
    largest_first = np.argsort(-(nearest - counts), kind="stable")
    counts[largest_first[:missing]] += 1
    return counts
