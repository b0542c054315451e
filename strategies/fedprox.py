"""FedProx: local training is pulled towards the received model (Li et al. 2020, algorithm 2; arXiv 1812.06127).

The server's half is FedAvg's.
"""

from typing import Any

from torch import Tensor

from strategies.client_half import ClientHalf


class FedProxClient(ClientHalf):
    """The local loss gets mu / 2 times the squared distance to the received model.

    Args:
        mu: At least 0; 0 is FedAvg.
        common: See `ClientHalf`.
    """

    def __init__(self, *args: Any, mu: float, **common: Any) -> None:
        super().__init__(*args, **common)
        self._mu = mu

    def term(self, name: str, parameter: Tensor) -> Tensor:
        """The gradient of the pull: mu times the way from the received weights."""
        return self._mu * (parameter - self._received[name])
