"""The only place where hospitals' models are averaged."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from warnings import catch_warnings, filterwarnings

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

from fl_contract.array_record import Arrays
from strategies import blocks
from strategies.blocks import Blocks, is_finite, places

MEAN_BLOCK = 1 << 18
"""Numbers at a time, of one array or of several small ones: a megabyte of float32."""

Bundle = list[tuple[str, slice]]
"""Blocks of arrays that are worked out together, by the arrays' names."""


class RunningMean:
    """The weighted mean of models, taken in one after another (West 1979, Comm. ACM 22 (9)).

    ::

        m = m + (w / W) * (x - m)

    with w the weight of model x and W that of all until now. So for one order of models the mean is the same to the
    last bit, whichever of them came in one call and wherever they are read from.

    Roundings are those of the mean's type: in float32 it is off by at most 8 n * 2**-24 of the largest of n numbers.
    Equal numbers, however many, have their own value as their mean.

    Guarantees:
        - Memory: one number for each of the model, and a block.
        - The mean of one model is that model, to the last bit, and a mean of numbers that are not negative is not.

    Args:
        means: Where the means are kept, flat, by name; their types are those of the arithmetic.
    """

    def __init__(self, means: Arrays) -> None:
        self._means = means
        self._weights: list[float] = []

    def add(self, models: Sequence[Blocks], weights: Sequence[float], *, watch: bool = False) -> bool:
        """Take in models whose names, shapes and types were checked before.

        Args:
            models: One after another.
            weights: Of each; above 0.
            watch: Whether to look at the means.

        Returns:
            False if a mean is not finite; then a number of these models may not be.
        """
        shares = _shares(self._weights, weights)
        self._weights += weights
        finite = True
        for bundle in _bundles(self._means):
            means = [self._means[name][place] for name, place in bundle]
            _fold(models, shares, bundle, means)
            finite = finite and (not watch or all(is_finite(mean) for mean in means))
        return finite

    def mean(self, name: str, place: slice, dtype: DTypeLike) -> NDArray[Any]:
        """The mean of the models taken in; a view where the type is the same.

        Raises:
            ValueError: Nothing was added.
        """
        if not self._weights:
            raise ValueError("the mean of no models is not defined; add at least one")
        return self._means[name][place].astype(dtype, copy=False)


class LazyMean:
    """`RunningMean` of models that can be read at any time: each number is worked out when it is asked for.

    Guarantees:
        - To the last bit what `RunningMean` gives for the same order of models.
        - Memory: a block, of means whose type the room does not have.

    Args:
        types: Of the arithmetic, by name.
        room: Where numbers are worked out if the array there has their type, flat, by name.
    """

    def __init__(self, types: Mapping[str, np.dtype[Any]], room: Arrays) -> None:
        self._types, self._room = types, room
        self._models: list[Blocks] = []
        self._weights: list[float] = []
        self._shares: list[float] = []
        bundles = _bundles({name: room[name] for name in types})
        self._bundle_of = {(name, place.start): bundle for bundle in bundles for name, place in bundle}
        self._ready: dict[tuple[str, int], NDArray[Any]] = {}

    def add(self, models: Sequence[Blocks], weights: Sequence[float], *, watch: bool = False) -> bool:
        """Add models, of which nothing is read yet."""
        del watch
        self._models += models
        self._shares += _shares(self._weights, weights)
        self._weights += weights
        self._ready = {}
        return True

    def mean(self, name: str, place: slice, dtype: DTypeLike) -> NDArray[Any]:
        """As `RunningMean.mean`, of one block of `MEAN_BLOCK`; blocks beside it are worked out with it."""
        if (name, place.start) not in self._ready:
            bundle = self._bundle_of[name, place.start]
            means = [self._place_for(*part) for part in bundle]
            _fold(self._models, self._shares, bundle, means)
            self._ready = {(name, place.start): mean for (name, place), mean in zip(bundle, means, strict=True)}
        return self._ready[name, place.start].astype(dtype, copy=False)

    def _place_for(self, name: str, place: slice) -> NDArray[Any]:
        room, dtype = self._room[name][place], self._types[name]
        return room if room.dtype == dtype else np.empty(room.size, dtype)


def _shares(before: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Of each weight in all until it."""
    everything = [*before, *weights]
    return [everything[last] / math.fsum(everything[: last + 1]) for last in range(len(before), len(everything))]


def _bundles(arrays: Arrays) -> Iterator[Bundle]:
    """All blocks of flat arrays, in order: calls cost too much for the small arrays of many models one by one."""
    bundle: Bundle = []
    taken = 0
    for name, array in arrays.items():
        for place in places(array.size, MEAN_BLOCK):
            size = place.stop - place.start
            if bundle and taken + size > MEAN_BLOCK:
                yield bundle
                bundle, taken = [], 0
            bundle.append((name, place))
            taken += size
    if bundle:
        yield bundle


def _fold(models: Sequence[Blocks], shares: Sequence[float], bundle: Bundle, means: Sequence[NDArray[Any]]) -> None:
    """Take in the same blocks of each model; those of the first of all, whose share is 1, as they are."""
    targets = [torch.from_numpy(mean) for mean in means]
    parts = [(name, place, mean.dtype) for (name, place), mean in zip(bundle, means, strict=True)]
    for model, share in zip(models, shares, strict=True):
        rows = [torch.from_numpy(model.block(name, place).astype(dtype, copy=False)) for name, place, dtype in parts]
        if share == 1.0:
            torch._foreach_copy_(targets, rows)
        else:
            torch._foreach_lerp_(targets, rows, share)
        del rows  # those of a file take memory, and the next are read before a name is given to them


@contextmanager
def reading_only() -> Iterator[None]:
    """Let PyTorch read arrays that cannot be written to, such as the bytes of a message, without a warning of it."""
    with catch_warnings():
        filterwarnings("ignore", message="The given NumPy array is not writable")
        yield


class ModelMean:
    """The weighted mean of hospitals' models, in two parts.

    Buffers and whole numbers are averaged in float64, trained arrays in their own type, or float32 if that is smaller.
    An algorithm may give each of the two parts weights of its own.

    Args:
        like: The model that was sent out, flat, by name.
        trained: Names of the arrays that training moves.
        room: Where means may be kept, flat, by name: those that have the same type as their array are.
        unchecked: The models, by hospital, if they may hold NaN or infinity; the means are then watched.
        is_lazy: Whether models can be read at any time; their mean is then not worked out before it is needed.

    Attributes:
        is_odd: Whether a mean that was watched is not finite.
    """

    def __init__(
        self,
        like: Arrays,
        trained: Collection[str],
        room: Arrays,
        *,
        unchecked: dict[str, Blocks] | None = None,
        is_lazy: bool = False,
    ) -> None:
        self.unchecked = {} if unchecked is None else unchecked
        self.is_odd = False
        types = {name: mean_type(array.dtype) for name, array in like.items() if name in trained}
        self._trained: RunningMean | LazyMean
        if is_lazy:
            self._trained = LazyMean(types, room)
        else:
            self._trained = RunningMean({
                name: room[name] if room[name].dtype == dtype else np.empty(room[name].size, dtype)
                for name, dtype in types.items()
            })  # fmt: skip
        self._others = RunningMean({name: np.empty(like[name].size) for name in like if name not in trained})
        self._names = frozenset(types)

    def add(self, models: Sequence[Blocks], weights: Sequence[tuple[float, float]]) -> None:
        """As `RunningMean.add`, with a weight for trained arrays and one for all others."""
        for each, part in zip((self._trained, self._others), zip(*weights, strict=True), strict=True):
            self.is_odd |= not each.add(models, part, watch=bool(self.unchecked))

    @property
    def block(self) -> int:
        """See `strategies.blocks.Mean`."""
        return MEAN_BLOCK if isinstance(self._trained, LazyMean) else blocks.BLOCK

    def mean(self, name: str, place: slice, dtype: DTypeLike) -> NDArray[Any]:
        """As `RunningMean.mean`."""
        return (self._trained if name in self._names else self._others).mean(name, place, dtype)


def mean_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type in which a trained array is averaged."""
    return np.dtype(np.float32 if dtype.itemsize <= 4 else np.float64)
