"""The coordinate-wise median of hospitals' models (Yin et al. 2018, algorithm 1; arXiv 1803.01498)."""

import numpy as np
from numpy.typing import NDArray

from strategies.robust import CoordinateRule
from strategies.sorting_network import sort_rows


class Median(CoordinateRule):
    """Each number is the median of the hospitals'; of an even number of them the mean of the middle two."""

    def combine_block(self, block: NDArray[np.floating]) -> NDArray[np.floating]:
        """The median of each column."""
        rows = sort_rows(block)
        middle = len(rows) // 2
        if len(rows) % 2:
            return rows[middle]
        half: NDArray[np.floating] = rows[middle - 1] / 2 + rows[middle] / 2
        return half
