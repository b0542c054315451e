"""FedAvgM: FedAvg with momentum at the server (Hsu, Qi and Brown 2019, section 4; arXiv 1909.06335).

Nesterov's form is that of Sutskever, Martens, Dahl and Hinton 2013 (ICML, equations 3 and 4), with the model that
hospitals get at the point looked ahead to.
"""

from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from strategies.fedavg import Common, FedAvg


class FedAvgM(FedAvg):
    """The mean update goes through a momentum buffer before it moves the model.

    With update u = mean - model, momentum b, dampening d and rate r, the buffer and the model become::

        v = u                            in the first round
        v = b * v + (1 - d) * u          in later rounds
        model = model + r * v            or, with Nesterov's momentum,
        model = model + r * (u + b * v)

    which is ``torch.optim.SGD`` on the negative update. d = 0 is the paper's form; d = b makes v a running mean.
    A checkpoint holds the buffer, float64.

    Args:
        server_learning_rate: r.
        server_momentum: b, in [0, 1).
        server_dampening: d, in [0, 1].
        server_nesterov: Whether the step looks ahead; goes with d = 0.
        common: See `FedAvg`.
    """

    def __init__(
        self,
        *,
        server_learning_rate: float = 1.0,
        server_momentum: float = 0.9,
        server_dampening: float = 0.0,
        server_nesterov: bool = False,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(server_learning_rate=server_learning_rate, **common)
        self.server_momentum = server_momentum
        self.server_dampening = server_dampening
        self.server_nesterov = server_nesterov
        self._is_first = True

    def _starts(self) -> dict[str, float]:
        return {"": 0.0}

    def _begin_step(self) -> None:
        self._is_first = not self._kept
        super()._begin_step()

    def _step_block(
        self, name: str, place: slice, old: NDArray[np.float64], mean: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        update, velocity = np.subtract(mean, old, out=mean), self._kept_block(name, place)
        if self._is_first:
            velocity[...] = update
        else:
            velocity *= self.server_momentum
            velocity += (1.0 - self.server_dampening) * update
        if self.server_nesterov:
            update += self.server_momentum * velocity
        step = update if self.server_nesterov else velocity
        return np.add(old, np.multiply(step, self.server_learning_rate, out=update), out=old)
