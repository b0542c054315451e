"""The coordinate-wise trimmed mean of hospitals' models (Yin et al. 2018, algorithm 1; arXiv 1803.01498)."""

from typing import Any, Unpack

import numpy as np
import torch
from numpy.typing import NDArray

from strategies.fedavg import Common
from strategies.robust import CoordinateRule
from strategies.sorting_network import Rows, sorted_rows


class TrimmedMean(CoordinateRule):
    """Each number is the mean of the hospitals' without the largest and the smallest ones.

    Args:
        trim_fraction: Share of the hospitals that is left out at either end, rounded down, below 1/2.
        server_learning_rate: See `FedAvg`.
        common: See `FedAvg`.
    """

    def __init__(self, *, trim_fraction: float, server_learning_rate: float = 1.0, **common: Unpack[Common]) -> None:
        super().__init__(server_learning_rate=server_learning_rate, **common)
        self.trim_fraction = trim_fraction

    def combine_rows(self, rows: Rows) -> NDArray[Any]:
        """The trimmed mean of each column."""
        trimmed = int(round(self.trim_fraction * len(rows), 9))
        kept = sorted_rows(rows, range(trimmed, len(rows) - trimmed))
        return _total(kept) / len(kept)


def _total(rows: Rows) -> NDArray[np.float64]:
    """The sum of each column, in float64."""
    if isinstance(rows, np.ndarray):  # PyTorch adds up columns that lie together in half of NumPy's time
        return torch.from_numpy(rows).sum(0, dtype=torch.float64).numpy()
    total = np.zeros(rows[0].size)
    for row in rows:
        total += row
    return total
