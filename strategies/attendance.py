"""The only place that decides which hospitals sit out: those that failed several times in a row, or refused.

A hospital that failed ``set_aside_after`` times in a row is set aside for 1 round, then asked once more. Each time that
fails again the number of rounds that it sits out doubles: 1, 2, 4, 8 and so on. One usable reply brings it back. What
follows from its rounds alone is the same in a run that was resumed.
"""

from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from fl_contract.errors import RefusalCode

FINAL = (RefusalCode.BUDGET_EXHAUSTED.label, RefusalCode.POLICY.label)
"""Refusals for the whole run: what was spent never comes back, and a run's plan does not follow a changed policy."""


@dataclass(frozen=True, kw_only=True)
class Failures:
    """How a hospital failed, since its last usable reply.

    Attributes:
        count: Requests in a row without a usable reply; at least 1.
        server_round: Of the last of them.
        code: Why the last of them failed.
    """

    count: int
    server_round: int
    code: str


@dataclass(frozen=True, kw_only=True)
class Presence:
    """Hospitals in one round, each in the order of the list that was sorted; those whose reply is awaited are in none.

    Attributes:
        here: May be drawn.
        due: Were set aside, and are asked in this round whoever is drawn.
        aside: Sit the round out.
    """

    here: tuple[str, ...]
    due: tuple[str, ...] = ()
    aside: tuple[str, ...] = ()


class Attendance:
    """Keeps how each hospital answered, and says who may be asked.

    Guarantees:
        - Nobody sits out a round whose quorum needs it.
        - It depends on the rounds' outcomes alone: no clock, no draw.

    Args:
        set_aside_after: Failures in a row after which a hospital is set aside; at least 1.
        min_sites: The quorum.
    """

    def __init__(self, *, set_aside_after: int, min_sites: int) -> None:
        self._set_aside_after = set_aside_after
        self._min_sites = min_sites
        self._failures: dict[str, Failures] = {}
        self._server_round = 0
        self._awaited: frozenset[str] = frozenset()

    def begin(self, server_round: int, *, awaited: Collection[str] = ()) -> None:
        """Begin a round, in which hospitals that still owe a reply to an earlier one are not asked."""
        self._server_round, self._awaited = server_round, frozenset(awaited)

    def observe(self, site: str, code: str | None, *, server_round: int) -> None:
        """Take in how a request ended: with a usable reply (None), or with a code why not."""
        if code is None:
            self._failures.pop(site, None)
            return
        before = self._failures.get(site)
        self._failures[site] = Failures(count=1 + (before.count if before else 0), server_round=server_round, code=code)

    def sort(self, sites: Iterable[str]) -> Presence:
        """Who may be drawn in this round, who is asked beside them, and who sits out."""
        free = [site for site in sites if site not in self._awaited]
        here = tuple(site for site in free if not self.is_set_aside(site))
        aside = tuple(site for site in free if self.is_set_aside(site))
        if len(here) < self._min_sites:
            return Presence(here=here, due=aside)
        due = tuple(site for site in aside if self._is_due(site))
        return Presence(here=here, due=due, aside=tuple(site for site in aside if site not in due))

    def is_set_aside(self, site: str) -> bool:
        """Whether a hospital is asked only when it is due, or when the quorum needs it."""
        failures = self._failures.get(site)
        return failures is not None and (failures.count >= self._set_aside_after or failures.code in FINAL)

    def is_silent(self, site: str) -> bool:
        """Whether a hospital is set aside for failing; one that refused for the run may still measure."""
        return self.is_set_aside(site) and self._failures[site].code not in FINAL

    def reasons(self) -> dict[str, str]:
        """A sentence for each hospital that is set aside."""
        return {site: self._reason(each) for site, each in self._failures.items() if self.is_set_aside(site)}

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {site: asdict(each) for site, each in sorted(self._failures.items())}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        self._failures = {site: Failures(**each) for site, each in state.items()}

    def _is_due(self, site: str) -> bool:
        failures = self._failures[site]
        sits_out = 2 ** (failures.count - self._set_aside_after) if failures.code not in FINAL else float("inf")
        return self._server_round - failures.server_round > sits_out

    def _reason(self, failures: Failures) -> str:
        if failures.code in FINAL:
            return f"It refused ({failures.code}) and is not asked again in this run."
        return (
            f"It gave no usable reply {self._set_aside_after} times in a row or more ({failures.code}); it is asked "
            "again after 1, 2, 4, ... rounds."
        )
