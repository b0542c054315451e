"""FedBuff: a step is taken as soon as some updates are there, whichever version of the model they started from.

Source: Nguyen et al. 2022, algorithm 1 (arXiv 2106.06639), with its staleness weights, which are the polynomial ones of
Xie et al. 2019 (arXiv 1903.03934) with exponent 1/2.
"""

import math
from collections.abc import Callable, Iterable
from typing import Unpack

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fl_contract.array_record import Arrays, ArrayViews, to_array_record
from fl_contract.messages import TRAIN
from strategies.fedavg import Common, FedAvg, RoundOutcome, make_requests
from strategies.participation import Roster

_OPEN, _MODEL = "open/", "model/"


def staleness_weight(staleness: int) -> float:
    """How much an update counts by the steps that were taken since its hospital got the model.

    >>> staleness_weight(0), staleness_weight(3)
    (1.0, 0.5)
    """
    return 1.0 / math.sqrt(1.0 + staleness)


class FedBuff(FedAvg):
    """The server's half; a hospital's local training is that of FedAvg.

    Round t + 1 begins with version t of the model, x(t). It asks each hospital that is free, and ends when the buffer
    holds enough updates. With y the model that a hospital sends back for version v, w its weight, s(t - v) its
    `staleness_weight` and r the rate, over the buffer::

        x(t + 1) = x(t) + r * (sum w s (y - x(v))) / (sum w)

    Equal weights give the paper's form, in which the sum is divided by the buffer's size. Buffers of the model, such as
    BatchNorm's statistics, become the mean of those received, by w s.

    A hospital has one request at a time, and each version at most once: so its rounds are at most those of the run, and
    one step holds at most one update of it.

    The loop that hands on replies ends a round when `is_full`, and says by `give_up` which hospitals it no longer waits
    for. Flower's own loop waits for all it asked, so with it nothing is ever stale; a node that does not reply to it is
    not asked again.

    Args:
        max_staleness: An update that is older is left out, with its reason.
        server_learning_rate: r.
        common: See `FedAvg`; the quorum of ``sampling`` is the buffer's size.
    """

    def __init__(self, *, max_staleness: int = 10, server_learning_rate: float = 1.0, **common: Unpack[Common]) -> None:
        super().__init__(server_learning_rate=server_learning_rate, **common)
        self.max_staleness = max_staleness
        self.staleness: dict[str, int] = {}
        self._open: dict[str, int] = {}
        self._unsent: list[str] = []
        self._started: dict[str, int] = {}
        self._models: dict[int, Arrays] = {}
        self._rate = server_learning_rate

    @property
    def is_full(self) -> bool:
        """Whether the buffer holds enough updates for a step."""
        return len(self.outcome.examples) >= self.sampling.min_sites

    @property
    def open_requests(self) -> dict[str, int]:
        """Version that each hospital which has not replied yet trains from, in the order of the requests."""
        return dict(self._open)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """A train request for each hospital that is free; before them those that were open when a run was stopped."""
        roster, version = self.roster or Roster.of_grid(grid), server_round - 1
        requests: list[Message] = []
        for site in self._unsent:
            started = self._open[site]
            model = to_array_record(self._models[started])
            requests += make_requests(TRAIN, (site,), roster, started + 1, model, config)
        self._unsent = []
        free = tuple(site for site in sorted(roster.trainers) if site not in self._open)
        requests += self._ask(free, roster, server_round, arrays, config)
        self._open |= dict.fromkeys(free, version)
        self._started, self.staleness = dict(self._open), {}
        self._models = {started: self._models.get(started, self._global) for started in set(self._open.values())}
        self.outcome = RoundOutcome(asked=tuple(self._open), quorum_key="strategy.buffer-size")
        return requests

    def give_up(self, site: str, code: str, reason: str) -> None:
        """Wait no longer for a hospital; the next round asks it again."""
        del self._open[site]
        self.outcome.left_out[site] = (code, reason)

    def state(self) -> Arrays:
        """The hospitals that have not replied yet, in the order in which they were asked, and the models they have."""
        waiting = enumerate(self._open.items())
        state: Arrays = {f"{_OPEN}{site}": np.array([position, version]) for position, (site, version) in waiting}
        for version in set(self._open.values()):
            state |= {f"{_MODEL}{version}/{name}": array for name, array in self._models[version].items()}
        return state

    def load_state(self, state: Arrays) -> None:
        """Take back what `state` gave; the next round asks again for what was open."""
        waiting = [(*each.tolist(), name.removeprefix(_OPEN)) for name, each in state.items() if name.startswith(_OPEN)]
        self._open = {site: version for _, version, site in sorted(waiting)}
        self._unsent = list(self._open)
        self._models = {version: {} for version in self._open.values()}
        for key, array in state.items():
            if key.startswith(_MODEL):
                version, _, name = key.removeprefix(_MODEL).partition("/")
                self._models[int(version)][name] = array

    def _fold(self, reply: Message, add: Callable[[str, ArrayViews], None], *, checked: bool) -> None:
        site = self._site(reply)
        self._open.pop(site, None)
        staleness = self._server_round - 1 - self._started.get(site, self._server_round - 1)
        if staleness > self.max_staleness and not reply.has_error():
            reason = (
                f"Its model is {staleness} steps old; expected at most {self.max_staleness} (strategy.max-staleness)."
            )
            self.outcome.left_out[site] = ("too-stale", reason)
            return

        def add_moved(site: str, arrays: ArrayViews) -> None:
            self.staleness[site] = staleness
            add(site, self._carry_over(site, arrays))

        super()._fold(reply, add_moved, checked=checked)

    def _weights(self, site: str, num_examples: float) -> tuple[float, float]:
        """W s, twice."""
        weight = self.weighting.weigh(site, num_examples) * staleness_weight(self.staleness[site])
        return weight, weight

    def _started_from(self, site: str) -> Arrays:
        return self._models[self._started[site]]

    def _carry_over(self, site: str, arrays: ArrayViews) -> ArrayViews:
        """The present model moved by the hospital's update; a fresh reply's own arrays, to the last bit."""
        if self.staleness[site] == 0:
            return arrays
        old, moved = self._started_from(site), dict(arrays)
        for name in self._trained():
            update = arrays[name].astype(np.float64) - old[name].astype(np.float64)
            moved[name] = self._global[name].astype(np.float64) + update
        return moved

    def _begin_step(self) -> None:
        """R * (sum w s) / (sum w): how much of the way to the mean by w s is gone."""
        used = self.outcome.examples
        self.staleness = {site: self.staleness[site] for site in sorted(used)}
        lowered = math.fsum(self._weights(site, used[site])[0] for site in self.staleness)
        weights = math.fsum(self.weighting.weigh(site, used[site]) for site in self.staleness)
        self._rate = self.server_learning_rate * lowered / weights

    def _step_block(
        self, name: str, place: slice, old: NDArray[np.float64], mean: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        del name, place
        return (1.0 - self._rate) * old + self._rate * mean
