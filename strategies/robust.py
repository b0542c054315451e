"""The base of strategies that bound what a few hostile or broken hospitals can do to the model.

They count hospitals, not examples: a weight that a hospital declares itself would be a way to be heard more.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Message
from numpy.typing import DTypeLike, NDArray

from fl_contract.array_record import Arrays
from strategies.blocks import Blocks, Mean, Resident, block_of, flatten, is_finite, places
from strategies.fedavg import FedAvg
from strategies.sorting_network import Rows, gather
from strategies.spool import Spool


class RobustStrategy(FedAvg):
    """FedAvg with another rule in place of the mean; quorum, checks and the server's rate are the same.

    The rule sees models of all hospitals together. They stay where they are if they are in memory anyway, and wait in a
    file if they stream in.
    """

    def _combine(self, replies: Iterable[Message], spool: Spool, totals: Arrays) -> Mean:
        del totals
        models: dict[str, Blocks] = {}
        keep = Resident if isinstance(replies, Sequence) else spool.put
        self._fold_all(replies, lambda site, arrays: models.update({site: keep(arrays)}))
        return self.combine([models[site] for site in sorted(models)])

    @abstractmethod
    def combine(self, models: Sequence[Blocks]) -> Mean:
        """The model that the rule makes of the hospitals'; at least one."""


class CoordinateRule(RobustStrategy):
    """A rule for each number of the model by itself."""

    def _combine(self, replies: Iterable[Message], spool: Spool, totals: Arrays) -> Mean:
        if isinstance(replies, Sequence):
            return self._lazy_mean(self._keep_resident(replies), totals)
        return super()._combine(replies, spool, totals)

    def _lazy_mean(self, models: dict[str, Blocks], totals: Arrays) -> Mean:
        del totals
        return CoordinateMean([models[site] for site in sorted(models)], self.combine_rows, models)

    def combine(self, models: Sequence[Blocks]) -> Mean:
        """See `combine_rows`."""
        return CoordinateMean(models, self.combine_rows)

    @abstractmethod
    def combine_rows(self, rows: Rows) -> NDArray[Any]:
        """One number for each column of the hospitals' numbers, which must not be written to."""


@dataclass(frozen=True)
class CoordinateMean:
    """What a rule makes of each number.

    Attributes:
        models: Of all hospitals.
        rule: Of rows of their numbers.
        unchecked: See `strategies.blocks.Mean`.
    """

    models: Sequence[Blocks]
    rule: Callable[[Rows], NDArray[Any]]
    unchecked: dict[str, Blocks] = field(default_factory=dict)

    @property
    def block(self) -> int:
        """See `strategies.blocks.Mean`."""
        return block_of(len(self.models))

    def mean(self, name: str, place: slice, dtype: DTypeLike) -> NDArray[Any]:
        """See `strategies.blocks.Mean`."""
        rows = gather([model.block(name, place) for model in self.models], dtype)
        if self.unchecked and not all(map(is_finite, [rows] if isinstance(rows, np.ndarray) else rows)):
            return np.full(place.stop - place.start, np.nan)
        return self.rule(rows)


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
            for place in places(start.size if name in trained else 0, block_of(len(models))):
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
        unchecked: None; what there is was checked.
    """

    models: Sequence[Blocks]
    origin: Arrays
    coefficients: NDArray[np.float64]
    unchecked: dict[str, Blocks] = field(default_factory=dict)

    @property
    def block(self) -> int:
        """See `strategies.blocks.Mean`."""
        return block_of(len(self.models))

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
