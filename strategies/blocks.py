"""Models as aggregation reads them: flat, and some numbers at a time, so that what is worked on stays in the cache."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fl_contract.messages import Arrays

BLOCK = 1 << 15
"""Numbers at a time; a few blocks of float32 fit into a core's second-level cache."""


class Blocks(Protocol):
    """A model that is read block by block, from wherever it is."""

    def block(self, name: str, place: slice) -> NDArray[Any]:
        """Some numbers of one array, flat, in its own type; not to be written to."""


class Mean(Protocol):
    """What a rule makes of hospitals' models, worked out block by block."""

    def mean(self, name: str, place: slice, dtype: DTypeLike) -> NDArray[Any]:
        """Some numbers of one array, flat, in that type or a wider one; whole numbers are not rounded yet."""


@dataclass(frozen=True)
class Resident:
    """A model in memory; a block is a view of it.

    Attributes:
        flat: Its arrays by name, flat.
    """

    flat: Arrays

    def block(self, name: str, place: slice) -> NDArray[Any]:
        """A view."""
        return self.flat[name][place]


def flatten(arrays: Arrays) -> Arrays:
    """Flat views by name; only arrays that are not in C order are copied."""
    return {name: array.reshape(-1) for name, array in arrays.items()}


def places(size: int, block: int | None = None) -> Iterator[slice]:
    """The blocks of an array with so many numbers; of `BLOCK` if nothing else is said."""
    step = block or BLOCK
    for start in range(0, size, step):
        yield slice(start, min(start + step, size))


def is_finite(numbers: NDArray[Any]) -> bool:
    """Whether no number of a block is NaN or infinite.

    Their sum says so if it is finite, faster than looking at each; one that overflows says nothing.
    """
    return bool(np.isfinite(np.add.reduce(numbers))) or bool(np.isfinite(numbers).all())
