"""Krum and Multi-Krum: the models that most others are close to (Blanchard et al. 2017, section 4; 1703.02757)."""

from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from strategies.fedavg import Common
from strategies.robust import CoefficientRule, squared_distances


class Krum(CoefficientRule):
    """The mean of the models with the lowest scores: the sum of squared distances to the n - f - 2 nearest others.

    With n hospitals that replied. Where n - f - 2 is below 1, the nearest one counts.

    Args:
        num_hostile: f, hospitals that may send anything; the paper's promise needs n above 2 f + 2.
        num_chosen: Models that are averaged: 1 is Krum, more is Multi-Krum; at most all that replied.
        server_learning_rate: See `FedAvg`.
        common: See `FedAvg`.
    """

    def __init__(
        self,
        *,
        num_hostile: int,
        num_chosen: int = 1,
        server_learning_rate: float = 1.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(server_learning_rate=server_learning_rate, **common)
        self.num_hostile = num_hostile
        self.num_chosen = num_chosen

    def coefficients(self, products: NDArray[np.float64]) -> NDArray[np.float64]:
        """Equal for the chosen, 0 for the others; of equal scores the first by name."""
        count = len(products)
        distances = squared_distances(products)
        np.fill_diagonal(distances, np.inf)
        nearest = max(1, count - self.num_hostile - 2)
        scores = np.sort(distances, axis=1)[:, :nearest].sum(axis=1)
        chosen = np.argsort(scores, kind="stable")[: min(self.num_chosen, count)]
        return np.where(np.isin(np.arange(count), chosen), 1.0 / len(chosen), 0.0)
