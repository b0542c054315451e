"""FedAdam: the mean update as the gradient of Adam at the server (Reddi et al. 2021, algorithm 2; arXiv 2003.00295)."""

from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from fl_contract.messages import Arrays
from strategies.fedavg import Common, FedAvg

_FIRST, _SECOND = "first-moment/", "second-moment/"


class FedAdam(FedAvg):
    """Each number of the model moves by its mean update over the root of its mean squared update.

    With update u = mean - model, betas b and c, adaptivity t and rate r::

        m = b * m + (1 - b) * u          from 0
        v = c * v + (1 - c) * u * u      from t * t
        model = model + r * m / (sqrt(v) + t)

    without the bias correction of Adam, as in the paper.

    Args:
        server_learning_rate: r; about the size of a number's step, so well below 1.
        server_betas: b and c, in [0, 1).
        server_tau: t, above 0: updates much smaller than this move the model in proportion.
        common: See `FedAvg`.
    """

    def __init__(
        self,
        *,
        server_learning_rate: float = 0.1,
        server_betas: tuple[float, float] = (0.9, 0.99),
        server_tau: float = 1e-3,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(server_learning_rate=server_learning_rate, **common)
        self.server_betas = server_betas
        self.server_tau = server_tau
        self._first: Arrays = {}
        self._second: Arrays = {}

    def state(self) -> Arrays:
        """Both moments of each trained array, float64."""
        first = {f"{_FIRST}{name}": array for name, array in self._first.items()}
        return first | {f"{_SECOND}{name}": array for name, array in self._second.items()}

    def load_state(self, state: Arrays) -> None:
        """Take back what `state` gave."""
        self._first = _with_prefix(_FIRST, state)
        self._second = _with_prefix(_SECOND, state)

    def _begin_step(self) -> None:
        if not self._first:
            self._first, self._second = self._filled(0.0), self._filled(self.server_tau**2)

    def _step_block(
        self, name: str, place: slice, old: NDArray[np.float64], mean: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        first, second = self._first[name].reshape(-1)[place], self._second[name].reshape(-1)[place]
        update, beta1 = mean - old, self.server_betas[0]
        first[...] = beta1 * first + (1.0 - beta1) * update
        second[...] = self._next_second(second, update)
        return old + self.server_learning_rate * first / (np.sqrt(second) + self.server_tau)

    def _next_second(self, second: NDArray[np.float64], update: NDArray[np.float64]) -> NDArray[np.float64]:
        beta2 = self.server_betas[1]
        return beta2 * second + (1.0 - beta2) * update**2


def _with_prefix(prefix: str, state: Arrays) -> Arrays:
    return {name.removeprefix(prefix): np.array(array) for name, array in state.items() if name.startswith(prefix)}
