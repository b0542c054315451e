"""FedAvgM: FedAvg with momentum at the server (Hsu, Qi and Brown 2019, section 4; arXiv 1909.06335).

Nesterov's form is that of Sutskever, Martens, Dahl and Hinton 2013 (ICML, equations 3 and 4), with the model that
hospitals get at the point looked ahead to.
"""

from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from fl_contract.messages import Arrays
from strategies.fedavg import Common, FedAvg


class FedAvgM(FedAvg):
    """The mean update goes through a momentum buffer before it moves the model.

    With update u = mean - model, momentum b, dampening d and rate r, the buffer and the model become::

        v = u                            in the first round
        v = b * v + (1 - d) * u          in later rounds
        model = model + r * v            or, with Nesterov's momentum,
        model = model + r * (u + b * v)

    which is ``torch.optim.SGD`` on the negative update. d = 0 is the paper's form; d = b makes v a running mean.

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
        self._velocity: Arrays = {}
        self._is_first = True

    def state(self) -> Arrays:
        """The momentum buffer of each trained array, float64."""
        return dict(self._velocity)

    def load_state(self, state: Arrays) -> None:
        """Take back what `state` gave."""
        self._velocity = {name: np.array(array) for name, array in state.items()}

    def _begin_step(self) -> None:
        self._is_first = not self._velocity
        if self._is_first:
            self._velocity = self._filled(0.0)

    def _step_block(
        self, name: str, place: slice, old: NDArray[np.float64], mean: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        kept = self._velocity[name].reshape(-1)[place]
        update = velocity = mean - old
        if not self._is_first:
            velocity = self.server_momentum * kept + (1.0 - self.server_dampening) * update
        kept[...] = velocity
        step = update + self.server_momentum * velocity if self.server_nesterov else velocity
        return old + self.server_learning_rate * step
