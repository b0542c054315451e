"""The coordinate-wise median of hospitals' models (Yin et al. 2018, algorithm 1; arXiv 1803.01498)."""

from typing import Any

from numpy.typing import NDArray

from strategies.robust import CoordinateRule
from strategies.sorting_network import Rows, sorted_rows


class Median(CoordinateRule):
    """Each number is the median of the hospitals'; of an even number of them the mean of the middle two."""

    def combine_rows(self, rows: Rows) -> NDArray[Any]:
        """The median of each column."""
        last = len(rows) // 2
        middle = sorted_rows(rows, range(last if len(rows) % 2 else last - 1, last + 1))
        return middle[0] if len(middle) == 1 else middle[0] / 2 + middle[1] / 2
