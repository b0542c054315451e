"""SCAFFOLD: control variates take out how hospitals' gradients differ (Karimireddy et al. 2020; arXiv 1910.06378).

With x the model, y a hospital's after K local steps of rate e, c the server's control and c_i the hospital's::

    local step    y = y - e * (gradient - c_i + c)
    afterwards    c_i = c_i - c + (x - y) / (K * e)          (option II of algorithm 1)

The server needs no control from a hospital: the change of c_i follows from x, y and c, which it has. With weights p and
a share s of the hospitals answering::

    x = x + r * (sum p y - x)
    c = c + s * ((x - sum p y) / (K * e) - c)

Under differential privacy a term is added after the noise, to gradients that are noised already, so the guarantee is
the same; but c and c_i are then made of noised gradients and carry their noise from round to round (Noble et al. 2022,
arXiv 2111.09278), and a hospital that runs fewer steps than planned has a smaller c_i. A reply that the server leaves
out is not in c while its hospital's c_i has changed.
"""

from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fl_contract.array_record import Arrays
from strategies.client_half import ClientHalf
from strategies.fedavg import Common, FedAvg


class Scaffold(FedAvg):
    """The server's half.

    Args:
        local_path: K * e, the summed rates of a hospital's local steps in a round; above 0.
        server_learning_rate: r.
        common: See `FedAvg`.

    A checkpoint holds c, float64.
    """

    def __init__(self, *, local_path: float, server_learning_rate: float = 1.0, **common: Unpack[Common]) -> None:
        super().__init__(server_learning_rate=server_learning_rate, **common)
        self.local_path = local_path

    def control(self) -> Arrays:
        """c, by name of the trained array, in the model's types; 0 before the first round."""
        return {
            name: self._kept.get(name, np.zeros(self._global[name].shape)).astype(self._global[name].dtype)
            for name in self._global
            if name in self._trained()
        }

    def _starts(self) -> dict[str, float]:
        return {"": 0.0}

    def _step_block(
        self, name: str, place: slice, old: NDArray[np.float64], mean: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        share = len(self.outcome.examples) / self.num_trainers
        control = self._kept_block(name, place)
        control += share * ((old - mean) / self.local_path - control)
        return super()._step_block(name, place, old, mean)


class ScaffoldClient(ClientHalf):
    """The hospital's half.

    Args:
        local_path: K * e, as at the server.
        common: See `ClientHalf`.
    """

    def __init__(self, *args: Any, local_path: float, **common: Any) -> None:
        super().__init__(*args, **common)
        self._local_path = local_path

    def term(self, name: str, parameter: Tensor) -> Tensor:
        """C - c_i."""
        control = self._control[name]
        return control - self._state[name] if name in self._state else control

    def state(self) -> Arrays:
        """c_i."""
        kept = {}
        for name, parameter in self.trained().items():
            change = (self._received[name] - parameter.detach()) / self._local_path - self._control[name]
            kept[name] = (change + self._state[name] if name in self._state else change).cpu().numpy()
        return kept
