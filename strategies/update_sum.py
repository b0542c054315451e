"""The only place where hospitals' updates are added up."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fl_contract.messages import Arrays
from strategies.blocks import BLOCK, Blocks, is_finite, places


class UpdateSum:
    """A sum of updates, x - g of a model x from the one sent out g, each times its hospital's weight.

    Each number is summed as t = t + w * (x - g), with three roundings a term, one model after another in the order of
    the calls. So for one order of models the sum is the same to the last bit, whichever of them came in one call and
    wherever they are read from.

    Roundings are those of the sums' type, and relative to the updates, not to the weights: in float32 the mean update
    of n models is off by at most (n + 4) * 2**-24 of the mean size of their updates; then the new weight is rounded.

    Guarantees:
        - Memory: one number for each of the model, and a block.
        - The mean of one model is that model, to the last bit.

    Args:
        origin: g, flat, by name.
        totals: Where the sums are kept, flat, by name; their types are those of the sums.
    """

    def __init__(self, origin: Arrays, totals: Mapping[str, NDArray[Any]]) -> None:
        self._origin = origin
        self._totals = totals
        self._unit = 1.0  # a power of two, so that sums are about as large as updates
        self._weights: list[float] = []
        self._spare = {dtype: np.empty(BLOCK, dtype) for dtype in {total.dtype for total in totals.values()}}

    def __len__(self) -> int:
        """Models added so far."""
        return len(self._weights)

    def add(self, models: Sequence[Blocks], weights: Sequence[float], *, watch: bool = False) -> bool:
        """Add models whose names, shapes and types were checked before.

        Args:
            models: One after another.
            weights: Of each; above 0.
            watch: Whether to look at the sums.

        Returns:
            False if a sum is not finite; then a number of these models may not be.
        """
        if not self._weights:
            self._unit = 2.0 ** math.frexp(weights[0])[1]
        shares = [weight / self._unit for weight in weights]
        finite = True
        with np.errstate(over="ignore", invalid="ignore"):  # seen by who watches
            for name, origin in self._origin.items():
                for place in places(origin.size):
                    total = self._totals[name][place]
                    self._add_block(total, origin[place], [model.block(name, place) for model in models], shares)
                    finite = finite and (not watch or is_finite(total))
        self._weights += shares
        return finite

    def mean(self, name: str, place: slice, dtype: DTypeLike) -> NDArray[Any]:
        """The mean of the models added; a single one's own numbers.

        Raises:
            ValueError: Nothing was added.
        """
        if not self._weights:
            raise ValueError("the mean of no models is not defined; add at least one")
        total = self._totals[name][place].astype(dtype, copy=False)
        if len(self) == 1:
            return total
        update = total / total.dtype.type(math.fsum(self._weights))
        return np.add(update, self._origin[name][place], out=update, dtype=update.dtype)

    def _add_block(
        self, total: NDArray[Any], origin: NDArray[Any], rows: Sequence[NDArray[Any]], weights: Sequence[float]
    ) -> None:
        """Add to one block; the first model of all is kept as it is until the second comes."""
        if not self._weights and len(rows) == 1:
            total[...] = rows[0]
            return
        terms = list(zip(rows, weights, strict=True))
        if not self._weights:
            _weigh(*terms.pop(0), origin, total)
        elif len(self) == 1:
            _weigh(total, self._weights[0], origin, total)
        spare = self._spare[total.dtype][: total.size]
        for row, weight in terms:
            _weigh(row, weight, origin, spare)
            np.add(total, spare, out=total)


def _weigh(row: NDArray[Any], weight: float, origin: NDArray[Any], out: NDArray[Any]) -> None:
    np.subtract(row, origin, out=out, dtype=out.dtype)
    np.multiply(out, weight, out=out)


class ModelMean:
    """The weighted mean of hospitals' models, in two sums.

    Trained arrays are sums of updates. Buffers and whole numbers are summed as they are, in float64: no rounding may
    make a variance negative. An algorithm may give each of the two sums weights of its own.

    Args:
        origin: The model that was sent out, flat, by name.
        trained: Names of the arrays that training moves.
        totals: Where sums may be kept, flat, by name: those that have the same type as their array are.
    """

    def __init__(self, origin: Arrays, trained: Collection[str], totals: Arrays) -> None:
        moved = {name: start for name, start in origin.items() if name in trained}
        others = {name: start for name, start in origin.items() if name not in trained}
        self._trained = UpdateSum(
            moved,
            {
                name: totals[name]
                if sum_type(start.dtype) == start.dtype
                else np.empty(start.size, sum_type(start.dtype))
                for name, start in moved.items()
            },
        )
        self._others = UpdateSum(
            {name: np.broadcast_to(start.dtype.type(0), start.shape) for name, start in others.items()},
            {name: np.empty(start.size) for name, start in others.items()},
        )
        self._names = frozenset(moved)

    def add(self, models: Sequence[Blocks], weights: Sequence[tuple[float, float]], *, watch: bool = False) -> bool:
        """As `UpdateSum.add`, with a weight for trained arrays and one for all others."""
        for_trained, for_others = zip(*weights, strict=True)
        are_finite = self._trained.add(models, for_trained, watch=watch)
        return self._others.add(models, for_others, watch=watch) and are_finite

    def mean(self, name: str, place: slice, dtype: DTypeLike) -> NDArray[Any]:
        """As `UpdateSum.mean`."""
        return (self._trained if name in self._names else self._others).mean(name, place, dtype)


def sum_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type in which updates of an array are summed."""
    return np.dtype(np.float32 if dtype.itemsize <= 4 else np.float64)
