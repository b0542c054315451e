"""One-shot ensemble: each hospital trains once, and their models vote (Guha et al. 2019, section 3; arXiv 1902.11175).

With y a hospital's model after one round of local training from the same start, the result is not a model between them
but all of them, n of n hospitals::

    prediction = sum over hospitals of prediction of y / n

What is averaged is said by `fl_contract.tasks.task.Task.combine`: probabilities, or numbers.

Its price: every hospital's model goes to every hospital that measures, and into the result, as it is. No sum hides it
among others, so secure aggregation and hospital-level privacy do not go with it. The coordinator's memory, the file and
a request to measure are those of n models.
"""

from collections.abc import Iterable
from typing import Unpack

from flwr.app import ArrayRecord, Message, MetricRecord

from fl_contract.array_record import Arrays, ArrayViews
from fl_contract.models.ensemble import join_members
from strategies.fedavg import Common, FedAvg


class OneShotEnsemble(FedAvg):
    """The server's half; a hospital's local training is that of FedAvg.

    The model between rounds is the mean, as in FedAvg; `result` gives the members of the last round, in the order of
    their hospitals' names. A hospital whose reply is left out is no member.

    Args:
        common: See `FedAvg`.
    """

    def __init__(self, **common: Unpack[Common]) -> None:
        super().__init__(**common)
        self._received: dict[str, Arrays] = {}
        self._ensemble: Arrays = {}

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Keep the usable replies; see `FedAvg.aggregate_train`."""
        self._received = {}
        stepped = super().aggregate_train(server_round, replies)
        self._ensemble = join_members([self._received[site] for site in sorted(self.outcome.examples)])
        self._received = {}
        return stepped

    def result(self, arrays: Arrays) -> Arrays:
        """The members; before the first round the model."""
        return dict(self._ensemble) or arrays

    def state(self) -> Arrays:
        """The members."""
        return dict(self._ensemble)

    def load_state(self, state: Arrays) -> None:
        """Take back what `state` gave."""
        self._ensemble = dict(state)

    def _read(self, reply: Message, *, checked: bool) -> tuple[ArrayViews, float]:
        arrays, num_examples = super()._read(reply, checked=checked)
        self._received[self._site(reply)] = dict(arrays)
        return arrays, num_examples
