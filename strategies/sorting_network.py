"""Sorting long rows against each other: a few by elementwise minima and maxima, many column by column.

Source: Batcher's odd-even merge sort (Knuth, The Art of Computer Programming 3, section 5.3.4, algorithm 5.2.2M).
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

FEW = 32
"""Rows; beyond it the minima and maxima, about half of count * log2(count)**2, cost more than sorting."""

PIECE = 1 << 11
"""Columns that are sorted at a time, so that they stay in the cache."""


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


def sorted_rows(rows: Sequence[NDArray[Any]], wanted: range) -> Sequence[NDArray[Any]]:
    """Rows so that each column of them would be in rising order; only the wanted ones, the given ones not changed."""
    return _by_network(rows, wanted) if len(rows) <= FEW else _by_column(rows, wanted)


def _by_network(rows: Sequence[NDArray[Any]], wanted: range) -> list[NDArray[Any]]:
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


def _by_column(rows: Sequence[NDArray[Any]], wanted: range) -> list[NDArray[Any]]:
    size, dtype = rows[0].size, rows[0].dtype
    ordered = np.empty((len(wanted), size), dtype)
    for start in range(0, size, PIECE):
        end = min(start + PIECE, size)
        piece = np.empty((len(rows), end - start), dtype)
        for place, row in enumerate(rows):
            piece[place] = row[start:end]
        columns = np.ascontiguousarray(piece.T)
        columns.sort(axis=1)
        ordered[:, start:end] = columns[:, wanted.start : wanted.stop].T
    return list(ordered)
