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
        self._weights: list[float] = []
        self._shares: list[float] = []
        self._spare = {dtype: _room(dtype) for dtype in {total.dtype for total in totals.values()}}

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
        before = len(self)
        self._weights += weights
        self._shares = _shares(self._weights)
        finite = True
        with np.errstate(over="ignore", invalid="ignore"):  # seen by who watches
            for name, origin in self._origin.items():
                for place in places(origin.size):
                    total = self._totals[name][place]
                    self._add_block(total, origin[place], [model.block(name, place) for model in models], before)
                    finite = finite and (not watch or is_finite(total))
        return finite

    def mean(self, name: str, place: slice, dtype: DTypeLike) -> NDArray[Any]:
        """The mean of the models added; a single one's own numbers.

        Raises:
            ValueError: Nothing was added.
        """
        if not self._weights:
            raise ValueError("the mean of no models is not defined; add at least one")
        total = self._totals[name][place].astype(dtype)
        return total if len(self) == 1 else _divide(total, self._shares, self._origin[name][place])

    def _add_block(self, total: NDArray[Any], origin: NDArray[Any], rows: Sequence[NDArray[Any]], before: int) -> None:
        """Add to one block; the first model of all is kept as it is until the second comes."""
        if before == 0 and len(rows) == 1:
            total[...] = rows[0]
            return
        if before == 1:
            _weigh(total, self._shares[0], origin, total)
        _fold(rows, self._shares[before:], origin, total, self._spare[total.dtype], is_begun=before > 0)


class LazySum:
    """`UpdateSum` of models that can be read at any time: each number is worked out when it is asked for.

    Guarantees:
        - To the last bit what `UpdateSum` gives for the same order of models.
        - Memory: two blocks for each type of sum.

    Args:
        origin: g, flat, by name.
    """

    def __init__(self, origin: Arrays) -> None:
        self._origin = origin
        self._models: list[Blocks] = []
        self._weights: list[float] = []
        types = {sum_type(start.dtype) for start in origin.values()}
        self._room = {dtype: (_room(dtype), _room(dtype)) for dtype in types}

    def add(self, models: Sequence[Blocks], weights: Sequence[float], *, watch: bool = False) -> bool:
        """Add models, of which nothing is read yet."""
        del watch
        self._models += models
        self._weights += weights
        return True

    def mean(self, name: str, place: slice, dtype: DTypeLike) -> NDArray[Any]:
        """As `UpdateSum.mean`; good until the next call."""
        rows, origin = [model.block(name, place) for model in self._models], self._origin[name][place]
        if len(rows) == 1:
            return rows[0].astype(dtype, copy=False)
        shares, (total, spare) = _shares(self._weights), self._room[sum_type(origin.dtype)]
        total = total[: origin.size]
        _fold(rows, shares, origin, total, spare, is_begun=False)
        return _divide(total.astype(dtype, copy=False), shares, origin)


def _shares(weights: Sequence[float]) -> list[float]:
    """Weights over a power of two that makes the first about 1, so that sums are about as large as updates."""
    unit = 2.0 ** math.frexp(weights[0])[1]
    return [weight / unit for weight in weights]


def _fold(
    rows: Sequence[NDArray[Any]],
    shares: Sequence[float],
    origin: NDArray[Any],
    total: NDArray[Any],
    spare: NDArray[Any],
    *,
    is_begun: bool,
) -> None:
    """One block: t = t + w * (x - g) of each model in turn, and t = w * (x - g) of the first of all."""
    for row, share in zip(rows, shares, strict=True):
        if is_begun:
            _weigh(row, share, origin, spare[: total.size])
            np.add(total, spare[: total.size], out=total)
        else:
            _weigh(row, share, origin, total)
            is_begun = True


def _weigh(row: NDArray[Any], share: float, origin: NDArray[Any], out: NDArray[Any]) -> None:
    np.subtract(row, origin, out=out, dtype=out.dtype)
    np.multiply(out, share, out=out)


def _divide(total: NDArray[Any], shares: Sequence[float], origin: NDArray[Any]) -> NDArray[Any]:
    """The mean of models whose updates were summed up; in place of the sum."""
    np.divide(total, math.fsum(shares), out=total)
    np.add(total, origin, out=total, dtype=total.dtype)
    return total


def _room(dtype: np.dtype[Any]) -> NDArray[Any]:
    """A block that begins with a line of the cache, which is a quarter faster."""
    line = 64
    raw = np.empty(BLOCK * dtype.itemsize + line, np.uint8)
    start = -raw.ctypes.data % line
    return raw[start : start + BLOCK * dtype.itemsize].view(dtype)


class ModelMean:
    """The weighted mean of hospitals' models, in two sums.

    Trained arrays are sums of updates. Buffers and whole numbers are summed as they are, in float64: no rounding may
    make a variance negative. An algorithm may give each of the two sums weights of its own.

    Args:
        origin: The model that was sent out, flat, by name.
        trained: Names of the arrays that training moves.
        totals: Where sums may be kept, flat, by name: those that have the same type as their array are. None for
            models that can be read at any time, whose updates are then not summed before they are needed.
        unchecked: The models, by hospital, if they may hold NaN or infinity; the sums are then watched.

    Attributes:
        is_odd: Whether a sum that was watched is not finite.
    """

    def __init__(
        self,
        origin: Arrays,
        trained: Collection[str],
        totals: Arrays | None,
        *,
        unchecked: dict[str, Blocks] | None = None,
    ) -> None:
        self.unchecked = {} if unchecked is None else unchecked
        self.is_odd = False
        moved = {name: start for name, start in origin.items() if name in trained}
        others = {name: start for name, start in origin.items() if name not in trained}
        self._trained: UpdateSum | LazySum = (
            LazySum(moved)
            if totals is None
            else UpdateSum(
                moved,
                {
                    name: totals[name]
                    if start.dtype == (dtype := sum_type(start.dtype))
                    else np.empty(start.size, dtype)
                    for name, start in moved.items()
                },
            )
        )
        self._others = UpdateSum(
            {name: np.broadcast_to(start.dtype.type(0), start.shape) for name, start in others.items()},
            {name: np.empty(start.size) for name, start in others.items()},
        )
        self._names = frozenset(moved)

    def add(self, models: Sequence[Blocks], weights: Sequence[tuple[float, float]]) -> None:
        """As `UpdateSum.add`, with a weight for trained arrays and one for all others."""
        for each, part in zip((self._trained, self._others), zip(*weights, strict=True), strict=True):
            self.is_odd |= not each.add(models, part, watch=bool(self.unchecked))

    def mean(self, name: str, place: slice, dtype: DTypeLike) -> NDArray[Any]:
        """As `UpdateSum.mean`."""
        return (self._trained if name in self._names else self._others).mean(name, place, dtype)


def sum_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type in which updates of an array are summed."""
    return np.dtype(np.float32 if dtype.itemsize <= 4 else np.float64)
