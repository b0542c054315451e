"""FedNova: hospitals that take more local steps do not count for more (Wang et al. 2020; arXiv 2007.07481).

With p a hospital's weight, t its local steps of plain SGD and y its model (section 4)::

    model = model + r * (sum p t) * sum p * (y - model) / t          p adding up to 1
"""

import math
from collections.abc import Callable
from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from strategies.fedavg import Common, FedAvg


class FedNova(FedAvg):
    """The server's half; a hospital's local training is that of FedAvg.

    Args:
        local_steps: t by the number of examples that a hospital declares; at least 1.
        server_learning_rate: r.
        common: See `FedAvg`.
    """

    def __init__(
        self, *, local_steps: Callable[[float], int], server_learning_rate: float = 1.0, **common: Unpack[Common]
    ) -> None:
        super().__init__(server_learning_rate=server_learning_rate, **common)
        self.local_steps = local_steps
        self._path = 1.0

    def _steps(self, site: str, num_examples: float) -> float:
        """The t of a hospital in this round."""
        del site
        return self.local_steps(num_examples)

    def _weights(self, site: str, num_examples: float) -> tuple[float, float]:
        """Of the trained arrays, that of an update of one step."""
        weight = self.weighting.weigh(site, num_examples)
        return weight / self._steps(site, num_examples), weight

    def _begin_step(self) -> None:
        """With the weights w of this round, the mean update is sum (w / t) (y - model) / sum (w / t)."""
        replied = sorted(self.outcome.examples.items())
        steps = [self._steps(site, examples) for site, examples in replied]
        weights = [self.weighting.weigh(site, examples) for site, examples in replied]
        pairs = list(zip(weights, steps, strict=True))
        total = math.fsum(weights)
        self._path = math.fsum(w * t for w, t in pairs) / total * math.fsum(w / t for w, t in pairs) / total

    def _step_block(
        self, name: str, place: slice, old: NDArray[np.float64], mean: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        del name, place
        return old + self.server_learning_rate * self._path * (mean - old)
