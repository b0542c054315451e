"""Cyclic weight transfer: the model goes from hospital to hospital.

Source: Chang et al. 2018, J. Am. Med. Inform. Assoc. 25 (8).
"""

from collections.abc import Iterable

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from strategies.fedavg import FedAvg
from strategies.participation import Roster


class Cyclic(FedAvg):
    """A round trains at one hospital, the next by name, and its model is the next round's.

    One that does not answer ends the round with a `QuorumError`. A pass over all hospitals takes as many rounds as
    there are hospitals.
    """

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One train request, for the hospital whose turn it is."""
        roster = self.roster or Roster.of_grid(grid)
        turn = sorted(roster.trainers)[(server_round - 1) % len(roster.trainers)]
        return self._ask((turn,), roster, server_round, arrays, config)
