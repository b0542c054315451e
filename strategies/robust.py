"""The base of strategies that bound what a few hostile or broken hospitals can do to the model.

They count hospitals, not examples: a weight that a hospital declares itself would be a way to be heard more.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Message
from numpy.typing import DTypeLike, NDArray

from fl_contract.messages import Arrays
from strategies.blocks import Blocks, Mean, Resident, flatten, places
from strategies.fedavg import FedAvg
from strategies.spool import Spool


class RobustStrategy(FedAvg):
    """FedAvg with another rule in place of the mean; quorum, checks and the server's rate are the same.

    The rule sees models of all hospitals together. They stay where they are if they are in memory anyway, and wait in a
    file if they stream in.
    """

    def _combine(self, replies: Iterable[Message], spool: Spool, totals: Arrays) -> Mean:
        del totals
        models: dict[str, Blocks] = {}
        keep = spool.put if not isinstance(replies, Sequence) else lambda arrays: Resident(flatten(arrays))
        self._fold_all(replies, lambda site, arrays: models.update({site: keep(arrays)}))
        return self.combine([models[site] for site in sorted(models)])

    @abstractmethod
    def combine(self, models: Sequence[Blocks]) -> Mean:
        """The model that the rule makes of the hospitals'; at least one."""


class CoordinateRule(RobustStrategy):
    """A rule for each number of the model by itself."""

    def combine(self, models: Sequence[Blocks]) -> Mean:
        """See `combine_rows`."""
        return CoordinateMean(models, self.combine_rows)

    @abstractmethod
    def combine_rows(self, rows: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """One number for each column of the hospitals' numbers, which must not be written to."""


@dataclass(frozen=True)
class CoordinateMean:
    """What a rule makes of each number.

    Attributes:
        models: Of all hospitals.
        rule: Of rows of their numbers.
    """

    models: Sequence[Blocks]
    rule: Callable[[Sequence[NDArray[Any]]], NDArray[Any]]

    def mean(self, name: str, place: slice, dtype: DTypeLike) -> NDArray[Any]:
        """See `strategies.blocks.Mean`."""
        return self.rule([model.block(name, place).astype(dtype, copy=False) for model in self.models])


class CoefficientRule(RobustStrategy):
    """A rule that adds up hospitals' updates with coefficients that follow from their inner products.

    Two passes over the models: one for the products, one for the sum. Products are over trained arrays alone: a counter
    of batches would outweigh them all.
    """

    def combine(self, models: Sequence[Blocks]) -> Mean:
        """The model plus the sum of coefficients times updates."""
        origin, trained = flatten(self._global), self._trained()
        products = np.zeros((len(models), len(models)))
        for name, start in origin.items():
            for place in places(start.size if name in trained else 0):
                updates = updates_of(models, name, place, start[place])
                products += updates @ updates.T
        return CoefficientMean(models, origin, self.coefficients(products))

    @abstractmethod
    def coefficients(self, products: NDArray[np.float64]) -> NDArray[np.float64]:
        """One for each hospital, by the inner products of their updates, [hospitals, hospitals]."""


@dataclass(frozen=True)
class CoefficientMean:
    """A model plus a weighted sum of updates.

    Attributes:
        models: Of all hospitals.
        origin: The model that was sent out, flat, by name.
        coefficients: Of each hospital's update.
    """

    models: Sequence[Blocks]
    origin: Arrays
    coefficients: NDArray[np.float64]

    def mean(self, name: str, place: slice, dtype: DTypeLike) -> NDArray[Any]:
        """See `strategies.blocks.Mean`; always float64."""
        del dtype
        start = self.origin[name][place]
        return start + self.coefficients @ updates_of(self.models, name, place, start)


def updates_of(models: Sequence[Blocks], name: str, place: slice, start: NDArray[Any]) -> NDArray[np.float64]:
    """Some numbers of the updates of all hospitals, [hospitals, numbers]."""
    updates = np.empty((len(models), start.size))
    for model, row in zip(models, updates, strict=True):
        np.subtract(model.block(name, place), start, out=row, dtype=np.float64)
    return updates


def squared_distances(products: NDArray[np.float64]) -> NDArray[np.float64]:
    """Between all updates, [hospitals, hospitals], by their inner products."""
    squares = np.diag(products)
    return np.maximum(squares[:, np.newaxis] + squares - 2 * products, 0.0)
