"""FedSGD: hospitals send gradients, the coordinator steps (McMahan et al. 2017, section 2; arXiv 1602.05629).

With w the model, g a hospital's gradient at w over all its records, weights p adding up to 1, e the study's learning
rate and r the server's::

    model = w - r * e * sum p * g

With r = 1 it is FedAvg with one local step of plain SGD on all records. Under differential privacy g is the noised
mean gradient of the round's one step. Buffers, such as BatchNorm's statistics, travel as they are after the pass over
the records, and are averaged.
"""

from typing import Any, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fl_contract.array_record import Arrays
from strategies.client_half import ClientHalf
from strategies.fedavg import Common, FedAvg


class FedSGD(FedAvg):
    """The server's half.

    A reply holds gradients under the names of the trained arrays. ``max_update_norm`` of the sampling bounds the norm
    of a hospital's gradient, not of a step.

    Args:
        learning_rate: e; above 0.
        server_learning_rate: r.
        common: See `FedAvg`.
    """

    def __init__(self, *, learning_rate: float, server_learning_rate: float = 1.0, **common: Unpack[Common]) -> None:
        super().__init__(server_learning_rate=server_learning_rate, **common)
        self.learning_rate = learning_rate

    def _started_from(self, site: str) -> Arrays:
        """Zeros: a gradient is an update already."""
        del site
        return {name: np.zeros_like(array) for name, array in self._global.items()}

    def _step_block(
        self, name: str, place: slice, old: NDArray[np.float64], mean: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        del name, place
        return old - self.server_learning_rate * self.learning_rate * mean


class FedSGDClient(ClientHalf):
    """The hospital's half: keeps the gradient of the round's one step.

    Args:
        common: See `ClientHalf`.
    """

    def __init__(self, model: nn.Module, **common: Any) -> None:
        super().__init__(model, **common)
        self._gradients: Arrays = {}

    def _adjust(self, *_: Any) -> None:
        """Take the gradient that the optimiser is about to step by; under differential privacy it is noised."""
        self._gradients = {
            name: parameter.grad.detach().cpu().numpy().copy()
            for name, parameter in self.trained().items()
            if parameter.grad is not None
        }

    def outgoing(self) -> Arrays:
        """The gradient of each parameter, 0 where there is none, and the buffers as they are."""
        parameters = dict(self._model.named_parameters())
        zeros = {name: torch.zeros_like(each).numpy() for name, each in parameters.items()}
        return super().outgoing() | zeros | self._gradients
