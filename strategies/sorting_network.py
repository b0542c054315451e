"""Sorting long rows against each other: a few by elementwise minima and maxima, many column by column.

Source: Batcher's odd-even merge sort (Knuth, The Art of Computer Programming 3, section 5.3.4, algorithm 5.2.2M).
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

FEW = 32
"""Rows; beyond it the minima and maxima, about half of count * log2(count)**2, cost more than sorting."""

Rows = list[NDArray[Any]] | NDArray[Any]
"""A few arrays of one length, or many as one array, [rows, numbers]."""


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


@lru_cache(maxsize=64)
def comparators_for(count: int, wanted: range) -> tuple[tuple[int, int, bool, bool], ...]:
    """The pairs on which the wanted places of the order depend, and whether the smaller and the larger are needed."""
    needed, kept = set(wanted), []
    for low, high in reversed(comparators(count)):
        if low in needed or high in needed:
            kept.append((low, high, low in needed, high in needed))
            needed |= {low, high}
    return tuple(reversed(kept))


def gather(rows: Sequence[NDArray[Any]], dtype: DTypeLike) -> Rows:
    """Rows of one length in one type, to be sorted."""
    if len(rows) <= FEW:
        return [row.astype(dtype, copy=False) for row in rows]
    return np.concatenate(rows, dtype=dtype).reshape(len(rows), -1)


def sorted_rows(rows: Rows, wanted: range) -> Rows:
    """Rows so that each column of them would be in rising order; only the wanted ones, the given ones not changed.

    Many come back with their columns together in memory.
    """
    return _by_column(rows, wanted) if isinstance(rows, np.ndarray) else _by_network(rows, wanted)


def _by_network(rows: list[NDArray[Any]], wanted: range) -> list[NDArray[Any]]:
    current, owned = list(rows), [False] * len(rows)
    spare: list[NDArray[Any]] = []
    for low, high, needs_low, needs_high in comparators_for(len(rows), wanted):
        first, second = current[low], current[high]
        if needs_low:
            current[low] = np.minimum(first, second, out=spare.pop() if spare else None)
        if needs_high:
            current[high] = np.maximum(first, second, out=second if owned[high] else (spare.pop() if spare else None))
        if owned[low]:
            spare.append(first)
        if owned[high] and not needs_high:
            spare.append(second)
        owned[low], owned[high] = needs_low, needs_high
    return [current[place] for place in wanted]


def _by_column(rows: NDArray[Any], wanted: range) -> NDArray[Any]:
    columns = torch.from_numpy(rows).t().contiguous().numpy()  # PyTorch's transposition takes a fifth of NumPy's time
    columns.sort(axis=1)
    return columns[:, wanted.start : wanted.stop].T
