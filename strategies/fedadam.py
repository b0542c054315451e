"""FedAdam: the mean update as the gradient of Adam at the server (Reddi et al. 2021, algorithm 2; arXiv 2003.00295)."""

from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from strategies.fedavg import Common, FedAvg

_FIRST, _SECOND = "first-moment/", "second-moment/"


class FedAdam(FedAvg):
    """Each number of the model moves by its mean update over the root of its mean squared update.

    With update u = mean - model, betas b and c, adaptivity t and rate r::

        m = b * m + (1 - b) * u          from 0
        v = c * v + (1 - c) * u * u      from t * t
        model = model + r * m / (sqrt(v) + t)

    without the bias correction of Adam, as in the paper. A checkpoint holds both moments, float64.

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

    def _starts(self) -> dict[str, float]:
        return {_FIRST: 0.0, _SECOND: self.server_tau**2}

    def _step_block(
        self, name: str, place: slice, old: NDArray[np.float64], mean: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        update, beta1 = np.subtract(mean, old, out=mean), self.server_betas[0]
        first, second = self._kept_block(f"{_FIRST}{name}", place), self._kept_block(f"{_SECOND}{name}", place)
        first *= beta1
        first += (1.0 - beta1) * update
        self._take_in(second, np.square(update, out=update))
        root = np.sqrt(second, out=mean)
        root += self.server_tau
        step = self.server_learning_rate * first
        step /= root
        return np.add(old, step, out=old)

    def _take_in(self, second: NDArray[np.float64], square: NDArray[np.float64]) -> None:
        """Write the next second moment over the last; the square may be written to."""
        beta2 = self.server_betas[1]
        second *= beta2
        square *= 1.0 - beta2
        second += square
