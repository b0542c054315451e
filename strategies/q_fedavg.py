"""q-FedAvg: hospitals where the model is worse count for more (Li et al. 2020, algorithm 2; arXiv 1905.10497).

With w the model, y a hospital's after local steps of plain SGD of rate e, F its training loss at w, weights p and
L = 1 / e in place of the loss's Lipschitz constant::

    d = L * (w - y)
    h = q * F^(q - 1) * |d|^2 + L * F^q
    model = w - r * (sum p F^q d) / (sum p h)

which descends on sum p F^(q + 1) / (q + 1). q = 0 is FedAvg; the larger q, the more alike the hospitals' losses become.
The paper draws hospitals by p and sums without weights; here p is in the sums, and equal weights are its formula. Its
authors' code adds 1e-10 to F, so that 0 has a power, and so does this.

A hospital that states a larger loss than it has counts for more than it should.
"""

import math
from typing import Unpack

import numpy as np
from flwr.app import Message
from numpy.typing import NDArray

from fl_contract.array_record import ArrayViews
from strategies.fedavg import Common, FedAvg
from strategies.reply_check import read_loss

_LEAST_LOSS = 1e-10


class QFedAvg(FedAvg):
    """The server's half; a hospital's local training is that of FedAvg, and its reply holds F beside the model.

    Buffers are averaged by p F^q, as the models are.

    Args:
        fairness: q; at least 0.
        learning_rate: e; above 0.
        server_learning_rate: r.
        common: See `FedAvg`.
    """

    def __init__(
        self, *, fairness: float, learning_rate: float, server_learning_rate: float = 1.0, **common: Unpack[Common]
    ) -> None:
        super().__init__(server_learning_rate=server_learning_rate, **common)
        self.fairness = fairness
        self.learning_rate = learning_rate
        self._losses: dict[str, float] = {}
        self._squares: dict[str, float] = {}
        self._share = 1.0

    def _read(self, reply: Message, *, checked: bool) -> tuple[ArrayViews, float]:
        arrays, num_examples = super()._read(reply, checked=checked)
        site = self._site(reply)
        self._losses[site] = read_loss(reply) + _LEAST_LOSS
        self._squares[site] = math.fsum(
            float(np.square(self._global[name].astype(np.float64) - arrays[name].astype(np.float64)).sum())
            for name in sorted(self._trained())
        )
        return arrays, num_examples

    def _weights(self, site: str, num_examples: float) -> tuple[float, float]:
        """P F^q, twice."""
        weight = self.weighting.weigh(site, num_examples) * math.pow(self._losses[site], self.fairness)
        return weight, weight

    def _begin_step(self) -> None:
        """(sum p F^q) L / (sum p h): how much of the way to the weighted mean is gone."""
        lipschitz, powers, curvatures = 1 / self.learning_rate, [], []
        for site, num_examples in sorted(self.outcome.examples.items()):
            power, _ = self._weights(site, num_examples)
            squared_slope = lipschitz**2 * self._squares[site]
            powers.append(power)
            curvatures.append(power * (self.fairness / self._losses[site] * squared_slope + lipschitz))
        self._share = lipschitz * math.fsum(powers) / math.fsum(curvatures)

    def _step_block(
        self, name: str, place: slice, old: NDArray[np.float64], mean: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        del name, place
        return old - self.server_learning_rate * self._share * (old - mean)
