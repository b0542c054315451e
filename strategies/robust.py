"""The base of strategies that bound what a few hostile or broken hospitals can do to the model.

They count hospitals, not examples: a weight that a hospital declares itself would be a way to be heard more.
"""

from abc import abstractmethod
from collections.abc import Iterable

import numpy as np
from flwr.app import Message
from numpy.typing import NDArray

from fl_contract.messages import Arrays
from strategies.fedavg import FedAvg
from strategies.spool import Spool


class RobustStrategy(FedAvg):
    """FedAvg with another rule in place of the mean; quorum, checks and the server's rate are the same.

    The rule sees models of all hospitals together, so replies are kept in a file until the last has come.
    """

    def _collect(self, replies: Iterable[Message]) -> Arrays:
        with Spool(self._global) as spool, np.errstate(over="ignore", invalid="ignore"):
            self._fold_all(replies, lambda site, arrays, _: spool.add(site, arrays))
            return self.combine(spool)

    @abstractmethod
    def combine(self, spool: Spool) -> Arrays:
        """The model that the rule makes of the rows; at least one."""


class CoordinateRule(RobustStrategy):
    """A rule for each number of the model by itself."""

    def combine(self, spool: Spool) -> Arrays:
        """See `combine_block`."""
        flat = {}
        for kind in spool.kinds:
            flat[kind] = np.empty_like(spool.flatten(self._global, kind))
            for place, block in spool.blocks(kind):
                flat[kind][place] = self.combine_block(block)
        return spool.restore(flat)

    @abstractmethod
    def combine_block(self, block: NDArray[np.floating]) -> NDArray[np.floating]:
        """One number for each column of [hospitals, coordinates]."""


class CoefficientRule(RobustStrategy):
    """A rule that adds up hospitals' updates with coefficients that follow from their inner products.

    Two passes over the rows: one for the products, one for the sum. Products are over trained arrays alone: a counter
    of batches would outweigh them all.
    """

    def combine(self, spool: Spool) -> Arrays:
        """The model plus the sum of coefficients times updates."""
        products = np.zeros((len(spool), len(spool)))
        start = {kind: spool.flatten(self._global, kind).astype(np.float64) for kind in spool.kinds}
        names = self._trained()
        marks = {name: np.full(array.shape, name in names) for name, array in self._global.items()}
        for kind in spool.kinds:
            is_trained = spool.flatten(marks, kind) > 0
            for place, block in spool.blocks(kind):
                updates = (block - start[kind][place]) * is_trained[place]
                products += updates @ updates.T
        chosen = self.coefficients(products)
        flat = {}
        for kind in spool.kinds:
            flat[kind] = start[kind].copy()
            for place, block in spool.blocks(kind):
                flat[kind][place] += chosen @ (block - start[kind][place])
        return spool.restore(flat)

    @abstractmethod
    def coefficients(self, products: NDArray[np.float64]) -> NDArray[np.float64]:
        """One for each hospital, by the inner products of their updates, [hospitals, hospitals]."""


def squared_distances(products: NDArray[np.float64]) -> NDArray[np.float64]:
    """Between all updates, [hospitals, hospitals], by their inner products."""
    squares = np.diag(products)
    return np.maximum(squares[:, np.newaxis] + squares - 2 * products, 0.0)
