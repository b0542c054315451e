"""Sorting a few long rows against each other by elementwise minima and maxima, which is faster than sorting columns.

Source: Batcher's odd-even merge sort (Knuth, The Art of Computer Programming 3, section 5.3.4, algorithm 5.2.2M).
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


@lru_cache(maxsize=64)
def comparators(count: int) -> tuple[tuple[int, int], ...]:
    """Pairs of rows to put in order, one after another, after which ``count`` rows are sorted."""
    pairs = []
    rounded = 1 << max(count - 1, 0).bit_length()
    p = rounded // 2
    while p > 0:
        q, r, d = rounded // 2, 0, p
        while d > 0:
            pairs += [(i, i + d) for i in range(count - d) if i & p == r]
            d, q, r = q - p, q // 2, p
        p //= 2
    return tuple(pairs)


def sort_rows(block: NDArray[np.floating]) -> list[NDArray[np.floating]]:
    """Rows of [rows, columns] so that each column is in rising order; the block is changed."""
    rows = list(block)
    spare = np.empty_like(rows[0])
    for low, high in comparators(len(rows)):
        np.minimum(rows[low], rows[high], out=spare)
        np.maximum(rows[low], rows[high], out=rows[high])
        rows[low], spare = spare, rows[low]
    return rows
