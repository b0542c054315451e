"""The mean of a round whose hospitals take different numbers of steps: FedNova's, with the steps asked for."""

from typing import Unpack

from strategies.balance import StepBalance
from strategies.fedavg import Common
from strategies.fednova import FedNova


class Balanced(FedNova):
    """FedNova (Wang et al. 2020; arXiv 2007.07481), in place of the weighted mean.

    A hospital with half the steps then moves the model as much as with all of them, up to the noise of its batches.
    Where all take the same number, it is the weighted mean.

    Args:
        balance: Says what each hospital was asked for.
        server_learning_rate: See `FedNova`.
        common: See `FedAvg`.
    """

    def __init__(self, *, balance: StepBalance, server_learning_rate: float = 1.0, **common: Unpack[Common]) -> None:
        super().__init__(local_steps=lambda _: 1, server_learning_rate=server_learning_rate, **common)
        self._balance = balance

    def _steps(self, site: str, num_examples: float) -> float:
        del num_examples
        return self._balance.effective_steps(site)
