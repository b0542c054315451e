"""The only place where hospitals' models are added up: one running sum, the same whatever order replies arrive in."""

import math

import numpy as np

from fl_contract.messages import Arrays


class ExactSum:
    """A weighted sum of models that is folded up one reply at a time.

    Each term is a weight times a value, rounded once to float64. The sum of the terms is kept as two float64 numbers, a
    rounded sum and the error of its roundings (Knuth's TwoSum: Ogita, Rump and Oishi 2005, algorithm 3.1).

    Guarantees:
        - Memory: two float64 arrays for each array of the model, however many replies are added.
        - The mean of n replies does not depend on their order, to the last bit, as long as at one coordinate n**2 times
          the largest term is less than 2**53 times the smallest non-zero one.
        - One reply alone comes back unchanged to the last bit, but for the sign of a zero, in arrays of 32 bits or
          fewer and in whole numbers up to 2**50; a float64 array to within one rounding.

    Args:
        like: A model with the names, shapes and types that every reply has and that the mean will have.
    """

    def __init__(self, like: Arrays) -> None:
        self._like = {name: (array.shape, array.dtype) for name, array in like.items()}
        self._high = {name: np.zeros(array.shape, np.float64) for name, array in like.items()}
        self._low = {name: np.zeros(array.shape, np.float64) for name, array in like.items()}
        self._weights: list[float] = []

    def __len__(self) -> int:
        """Replies added so far."""
        return len(self._weights)

    def add(self, arrays: Arrays, weight: float) -> None:
        """Add ``weight`` times a model; names and shapes are checked before by `strategies.reply_check`."""
        for name, high in self._high.items():
            term = np.multiply(arrays[name], weight, dtype=np.float64)
            total = high + term
            tail = total - high
            self._low[name] += (high - (total - tail)) + (term - tail)
            self._high[name] = total
        self._weights.append(weight)

    def mean(self) -> Arrays:
        """The weighted mean; whole-number and truth-value arrays are rounded to the nearest, halves to even.

        Raises:
            ValueError: Nothing was added.
        """
        if not self._weights:
            raise ValueError("the mean of no replies is not defined; add at least one")
        total_weight = math.fsum(self._weights)
        mean = {}
        for name, (shape, dtype) in self._like.items():
            value = (self._high[name] + self._low[name]) / total_weight
            mean[name] = (value if dtype.kind == "f" else np.rint(value)).astype(dtype).reshape(shape)
        return mean
