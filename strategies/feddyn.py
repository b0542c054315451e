"""FedDyn: each hospital's loss is regularised so that their optima agree (Acar et al. 2021; arXiv 2111.04263).

With w the received model, a the strength and g a hospital's own linear term, from 0 (algorithm 1)::

    local loss    f(v) - <g, v> + a / 2 * |v - w|^2
    afterwards    g = g - a * (v - w)
    server        h = h - a * s * (mean of v - w),  w = w + r * (mean of v - h / a - w)

with s the share of the hospitals that answered, h from 0 and r = 1.
"""

from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fl_contract.array_record import Arrays
from strategies.client_half import ClientHalf
from strategies.fedavg import Common, FedAvg


class FedDyn(FedAvg):
    """The server's half.

    Args:
        alpha: a, above 0.
        server_learning_rate: r.
        common: See `FedAvg`; the paper's mean has equal weights.

    A checkpoint holds h, float64.
    """

    def __init__(self, *, alpha: float, server_learning_rate: float = 1.0, **common: Unpack[Common]) -> None:
        super().__init__(server_learning_rate=server_learning_rate, **common)
        self.alpha = alpha

    def _starts(self) -> dict[str, float]:
        return {"": 0.0}

    def _step_block(
        self, name: str, place: slice, old: NDArray[np.float64], mean: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        share = len(self.outcome.examples) / self.num_trainers
        linear = self._kept_block(name, place)
        linear -= self.alpha * share * (mean - old)
        return super()._step_block(name, place, old, mean - linear / self.alpha)


class FedDynClient(ClientHalf):
    """The hospital's half.

    Args:
        alpha: a.
        common: See `ClientHalf`.
    """

    def __init__(self, *args: Any, alpha: float, **common: Any) -> None:
        super().__init__(*args, **common)
        self._alpha = alpha

    def term(self, name: str, parameter: Tensor) -> Tensor:
        """A * (v - w) - g."""
        pull = self._alpha * (parameter - self._received[name])
        return pull - self._state[name] if name in self._state else pull

    def state(self) -> Arrays:
        """G."""
        kept = {}
        for name, parameter in self.trained().items():
            change = -self._alpha * (parameter.detach() - self._received[name])
            kept[name] = (change + self._state[name] if name in self._state else change).cpu().numpy()
        return kept
