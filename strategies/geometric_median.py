"""RFA: the geometric median of hospitals' models (Pillutla et al. 2022, algorithm 2; arXiv 1912.13445)."""

import numpy as np
from numpy.typing import NDArray

from strategies.robust import CoefficientRule

ITERATIONS = 1000
TOLERANCE = 1e-6
"""Relative change of every weight at which the iteration ends; a far model's weight is small, and counts."""

SMOOTHING = 1e-6
"""Least distance, in weight units, so that a model in the middle of others does not get all of the weight."""


class GeometricMedian(CoefficientRule):
    """The model whose summed distance to all hospitals' models is least, by smoothed Weiszfeld steps."""

    def coefficients(self, products: NDArray[np.float64]) -> NDArray[np.float64]:
        """Weights that add up to 1."""
        count, squares = len(products), np.diag(products)
        weights = np.full(count, 1.0 / count)
        for _ in range(ITERATIONS):
            to_each = squares - 2 * products @ weights + weights @ products @ weights
            inverse = 1.0 / np.maximum(np.sqrt(np.maximum(to_each, 0.0)), SMOOTHING)
            stepped = inverse / inverse.sum()
            has_converged = (np.abs(stepped - weights) < TOLERANCE * weights).all()
            weights = stepped
            if has_converged:
                break
        return weights
