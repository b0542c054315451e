"""FedNova: hospitals that take more local steps do not count for more (Wang et al. 2020; arXiv 2007.07481).

With p a hospital's weight, t its local steps of plain SGD and y its model (section 4)::

    model = model + r * (sum p t) * sum p * (y - model) / t          p adding up to 1
"""

from collections.abc import Callable
from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from fl_contract.messages import Arrays
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

    def _steps(self, site: str, num_examples: float) -> float:
        """The t of a hospital in this round."""
        del site
        return self.local_steps(num_examples)

    def _normalise(self, site: str, arrays: Arrays, num_examples: float) -> Arrays:
        """The model moved by the hospital's update of one step."""
        steps, trained = self._steps(site, num_examples), self._trained()
        normalised = dict(arrays)
        for name in trained:
            old = self._global[name].astype(np.float64)
            normalised[name] = old + (arrays[name].astype(np.float64) - old) / steps
        return normalised

    def _step_array(self, name: str, old: NDArray[np.float64], mean: NDArray[np.float64]) -> NDArray[np.float64]:
        replied = sorted(self.outcome.examples.items())
        weights = [self.weighting.weigh(site, examples) for site, examples in replied]
        steps = sum(weight * self._steps(*each) for weight, each in zip(weights, replied, strict=True))
        return old + self.server_learning_rate * steps / sum(weights) * (mean - old)
