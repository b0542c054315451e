"""Ditto: a model of the hospital's own, pulled towards the shared one (Li et al. 2021, algorithm 1; arXiv 2012.04221).

With w the received model, v the hospital's own, f its loss, e the learning rate and l the pull::

    local step    v = v - e * (gradient of f at v + l * (v - w))

on the same batches on which w is trained as in FedAvg. The server's half is FedAvg's.
"""

from typing import Any

from torch import Tensor

from strategies.personal_model import PersonalModel


class DittoClient(PersonalModel):
    """The hospital's half.

    Args:
        pull: l, at least 0.
        common: See `PersonalModel`.
    """

    def __init__(self, *args: Any, pull: float, **common: Any) -> None:
        super().__init__(*args, **common)
        self._pull = pull

    def pull(self, name: str, parameter: Tensor) -> Tensor | None:
        """L * (v - w)."""
        return self._pull * (parameter - self._received[name]) if name in self._received else None
