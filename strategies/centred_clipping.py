"""Centred clipping: updates are clipped round a running guess of the honest one.

Source: Karimireddy, He and Jaggi 2021, algorithm 2; arXiv 2012.10333.
"""

from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from strategies.fedavg import Common
from strategies.robust import CoefficientRule

ITERATIONS = 5


class CentredClipping(CoefficientRule):
    """From v = 0 a few steps v = v + mean of (u - v) * min(1, t / |u - v|) over the updates u.

    The paper begins at the last round's result; here each round begins at the model itself, so that nothing has to be
    kept, and takes more steps.

    Args:
        clip_radius: t, in weight units; above 0.
        server_learning_rate: See `FedAvg`.
        common: See `FedAvg`.
    """

    def __init__(self, *, clip_radius: float, server_learning_rate: float = 1.0, **common: Unpack[Common]) -> None:
        super().__init__(server_learning_rate=server_learning_rate, **common)
        self.clip_radius = clip_radius

    def coefficients(self, products: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of v in the updates."""
        count, squares = len(products), np.diag(products)
        v = np.zeros(count)
        for _ in range(ITERATIONS):
            to_each = np.sqrt(np.maximum(squares - 2 * products @ v + v @ products @ v, 0.0))
            scales = self.clip_radius / np.maximum(to_each, self.clip_radius) / count
            v = v * (1.0 - scales.sum()) + scales
        return v
