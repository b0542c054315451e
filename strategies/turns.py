"""The only place that decides in which order the replies of a round are averaged."""

from collections import deque
from collections.abc import Callable, Collection, Iterable

from fl_contract.array_record import ArrayViews
from strategies.blocks import Blocks, Resident
from strategies.spool import Spool

HandOn = Callable[[list[tuple[str, Blocks]]], None]


class Turns:
    """Hands models on in the order of hospitals' names, whoever replies first.

    One whose turn it is goes straight on. One that comes too early waits in a file, until all before it have come, are
    left out, or the round is over.

    Args:
        sites: Hospitals that were asked.
        left_out: Those whose reply is not used; grows during the round.
        spool: For models that wait.
        hand_on: Given one or more hospitals with their models at a time.
    """

    def __init__(self, sites: Iterable[str], left_out: Collection[str], spool: Spool, hand_on: HandOn) -> None:
        self._turns = deque(sorted(sites))
        self._left_out, self._spool, self._hand_on = left_out, spool, hand_on
        self._waiting: dict[str, Blocks] = {}

    def arrive(self, site: str, arrays: ArrayViews) -> None:
        """Take a hospital's model, its only one.

        One that was not asked in this round, whose reply to an earlier one comes now, has its turn after all others.
        """
        if site not in self._turns:
            self._turns.append(site)
        while self._turns and self._turns[0] in self._left_out:
            self._turns.popleft()
        if self._turns[0] != site:
            self._waiting[site] = self._spool.put(arrays)
            return
        self._waiting[site] = Resident(arrays)
        ready = []
        while self._turns and (self._turns[0] in self._waiting or self._turns[0] in self._left_out):
            ready.append(self._turns.popleft())
        self._hand_on_those(ready)

    def finish(self) -> None:
        """Nobody else will come: hand on those that wait."""
        self._hand_on_those(self._turns)

    def _hand_on_those(self, sites: Iterable[str]) -> None:
        ready = [(site, self._waiting.pop(site)) for site in sites if site in self._waiting]
        if ready:
            self._hand_on(ready)
