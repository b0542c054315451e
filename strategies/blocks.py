"""Models as aggregation reads them: flat, and some numbers at a time, so that what is worked on stays in the cache."""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fl_contract.array_record import Arrays, ArrayViews, RecordViews

BLOCK = 1 << 15
"""Numbers at a time; a few blocks of float32 fit into a core's second-level cache."""

TOGETHER = 18
"""Binary digits of the numbers of all models that are read together: a megabyte of float32."""


class Blocks(Protocol):
    """A model that is read block by block, from wherever it is."""

    def block(self, name: str, place: slice) -> NDArray[Any]:
        """Some numbers of one array, flat, in its own type; not to be written to."""


class Mean(Protocol):
    """What a rule makes of hospitals' models, worked out block by block.

    Attributes:
        block: Numbers at a time.
        unchecked: The models, by hospital, if they may hold NaN or infinity; a number then follows that is not finite.
    """

    @property
    def unchecked(self) -> dict[str, Blocks]:
        """See above."""

    @property
    def block(self) -> int:
        """See above."""

    def mean(self, name: str, place: slice, dtype: DTypeLike) -> NDArray[Any]:
        """Some numbers of one array, flat, in that type or a wider one; whole numbers are not rounded yet."""


class Resident:
    """A model in memory; a block is a view of it.

    Args:
        arrays: By name; one of them is looked at for as long as blocks are of the same one.
    """

    def __init__(self, arrays: ArrayViews) -> None:
        self._arrays = arrays
        self._name: str | None = None
        self._flat: NDArray[Any] = np.empty(0)

    def block(self, name: str, place: slice) -> NDArray[Any]:
        """A view; a copy if the array is not in C order."""
        if name != self._name:
            self._name, self._flat = name, self._arrays[name].reshape(-1)
        return self._flat[place]


def resident(arrays: ArrayViews) -> Blocks:
    """A model in memory, read in the cheaper of two ways."""
    return arrays if isinstance(arrays, RecordViews) else Resident(arrays)


def flatten(arrays: Arrays) -> Arrays:
    """Flat views by name; only arrays that are not in C order are copied."""
    return {name: array.reshape(-1) for name, array in arrays.items()}


def places(size: int, block: int | None = None) -> Iterator[slice]:
    """The blocks of an array with so many numbers; of `BLOCK` if nothing else is said."""
    step = block or BLOCK
    for start in range(0, size, step):
        yield slice(start, min(start + step, size))


def block_of(num_models: int) -> int:
    """Numbers of each of so many models at a time, where all are read together."""
    return min(BLOCK, 1 << max(TOGETHER - num_models.bit_length(), 0))


def is_finite(numbers: NDArray[Any]) -> bool:
    """Whether no number of a block is NaN or infinite.

    Their sum says so if it is finite, faster than looking at each; one that overflows says nothing.
    """
    return bool(np.isfinite(np.add.reduce(numbers, axis=None))) or bool(np.isfinite(numbers).all())
