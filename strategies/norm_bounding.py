"""Norm bounding: no update counts for more than a length (Sun et al. 2019, section 5.2; arXiv 1911.07963)."""

from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from strategies.fedavg import Common
from strategies.robust import CoefficientRule


class NormBounding(CoefficientRule):
    """The mean of updates, each scaled down to at most a given L2 norm over all arrays.

    Args:
        update_bound: That norm, in weight units; above 0.
        server_learning_rate: See `FedAvg`.
        common: See `FedAvg`.
    """

    def __init__(self, *, update_bound: float, server_learning_rate: float = 1.0, **common: Unpack[Common]) -> None:
        super().__init__(server_learning_rate=server_learning_rate, **common)
        self.update_bound = update_bound

    def coefficients(self, products: NDArray[np.float64]) -> NDArray[np.float64]:
        """1 / n, less for long updates."""
        norms = np.sqrt(np.diag(products))
        scales = self.update_bound / np.maximum(norms, self.update_bound)
        return scales / len(scales)
