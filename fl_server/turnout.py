"""What the coordinator keeps of hospitals' answers from round to round: who sits out, who is late, who is slow."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from fl_contract.array_record import Arrays
from fl_contract.messages import Request, SitePlan, ask_local_steps
from fl_contract.study import Study
from fl_server.late_replies import MAX_STALENESS, LateReplies
from strategies.attendance import Attendance
from strategies.balance import StepBalance
from strategies.fedavg import RoundOutcome

SET_ASIDE, AWAITED, DEADLINE = "set-aside", "awaited", "deadline"
"""Codes for the record: not asked, not asked because a reply is awaited, no reply in time."""


@dataclass(kw_only=True)
class Turnout:
    """The hooks of a round, in the order in which it calls them.

    Attributes:
        study: Of the run.
        attendance: Who is set aside.
        late: Replies to earlier rounds.
        balance: Steps that hospitals are asked for; None where all take the study's own.
        answers_in_turn: Whether requests are answered one after the other, as in one process: a hospital's time is then
            counted from the reply before.
    """

    study: Study
    attendance: Attendance
    late: LateReplies
    balance: StepBalance | None = None
    answers_in_turn: bool = False
    _counted_from: float = field(default=0.0, init=False)

    @classmethod
    def of_study(
        cls, study: Study, plans: Mapping[str, SitePlan], *, buffer_names: Collection[str], answers_in_turn: bool
    ) -> "Turnout":
        """At the start of a run of these hospitals."""
        federation, strategy = study.federation, study.strategy
        balance = None
        if federation.balance:
            balance = StepBalance(study.training, plans, proximal_mu=getattr(strategy, "proximal_mu", 0.0))
        return cls(
            study=study,
            attendance=Attendance(set_aside_after=federation.set_aside_after, min_sites=federation.min_sites),
            late=LateReplies(buffer_names=buffer_names),
            balance=balance,
            answers_in_turn=answers_in_turn,
        )

    def begin(self, server_round: int) -> None:
        """Begin a round: give up what is too old, and let those who still owe a reply be."""
        for site in self.late.give_up(server_round):
            self.attendance.observe(site, DEADLINE, server_round=server_round - 1)
        self.attendance.begin(server_round, awaited=self.late.sites)

    def ask(self, requests: Sequence[Message], asked: Sequence[str]) -> None:
        """Put the steps that each hospital shall take into its request."""
        self._counted_from = time.monotonic()
        if self.balance is None:
            return
        steps = self.balance.ask(asked)
        for site, request in zip(asked, requests, strict=True):
            ask_local_steps(request, steps[site])

    def exchange(
        self, grid: Grid, requests: Sequence[Message], *, is_enough: Callable[[], bool] = lambda: True
    ) -> Iterator[tuple[int, Message]]:
        """Send requests and hand on replies up to the study's deadline."""
        timeout = self.study.federation.round_timeout_seconds
        return self.late.exchange(grid, requests, timeout_seconds=timeout, is_enough=is_enough)

    def observe_time(self, site: str, reply: Message) -> None:
        """Take in that a reply has just come."""
        now = time.monotonic()
        if self.balance is not None and not reply.has_error():
            self.balance.observe(site, now - self._counted_from)
        if self.answers_in_turn:
            self._counted_from = now

    def miss(self, site: str, request: Message) -> tuple[str, str]:
        """Code and sentence for a hospital that is late; its reply is awaited where the study folds such in."""
        sentence = f"No reply within {self.study.federation.round_timeout_seconds:g} s."
        if self.study.federation.late_replies == "fold":
            self.late.expect(site, request)
            sentence += f" It is folded in if it comes within {MAX_STALENESS} more rounds."
        return DEADLINE, sentence

    def end(self, server_round: int, outcome: RoundOutcome) -> None:
        """Take in how the round's replies were used."""
        for site in outcome.examples:
            self.attendance.observe(site, None, server_round=server_round)
        for site, (code, _) in outcome.left_out.items():
            if site in outcome.asked and site not in self.late.sites:
                self.attendance.observe(site, code, server_round=server_round)

    def not_asked(self, asked: Collection[str]) -> dict[str, tuple[str, str]]:
        """Code and sentence for each that is set aside, or that owes a reply to an earlier round."""
        reasons = {site: (SET_ASIDE, reason) for site, reason in self.attendance.reasons().items()}
        for site in self.late.sites:
            owed = self.late.round_of(site)
            reasons[site] = (AWAITED, f"Its reply to round {owed} is awaited; it is not asked for another until then.")
        return {site: each for site, each in reasons.items() if site not in asked}

    def can_measure(self, site: str) -> bool:
        """Whether a hospital is asked to measure: not while it is silent, which would cost the round its deadline."""
        return not self.attendance.is_silent(site) and site not in self.late.sites

    def state(self) -> dict[str, Any]:
        """For a checkpoint, with ``late.arrays()``."""
        return {
            "attendance": self.attendance.state(),
            "late": self.late.state(),
            "balance": self.balance.state() if self.balance else None,
        }

    def load_state(self, state: dict[str, Any], arrays: Arrays, request: Request, nodes: Mapping[str, int]) -> None:
        """Take back what `state` and ``late.arrays()`` gave; see `fl_server.late_replies.LateReplies.load_state`."""
        self.attendance.load_state(state["attendance"])
        self.late.load_state(state["late"], arrays, request, nodes)
        if self.balance is not None:
            self.balance.load_state(state["balance"])
