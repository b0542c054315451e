"""The only place that knows what a hospital has spent, and whether it may spend more.

A round is charged durably, before any noise is drawn (`Ledger.reserve`), and lowered afterwards to the steps that
really ran (`Ledger.settle`). A crash in between leaves the full charge. A hospital has one ledger over its whole life:
every study on the same patients, a cohort, shares one budget, and epsilon is always that of the cohort's whole history.
Cohorts are disjoint, so each patient's epsilon is that of the patient's own cohort.
"""

import hashlib
import hmac
import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from privacy.accounting import AnySpend, Spend, compute_epsilon, compute_epsilon_adaptive
from privacy.bounds import require_count, require_delta, require_label, require_real
from privacy.errors import LedgerError, PrivacySettingError
from privacy.grant import Limits
from privacy.ledger_book import LedgerEntry, OutsideCharge, StoredPlan, spend_content
from privacy.ledger_check import check_charges
from privacy.ledger_store import LedgerStore
from privacy.plan import PrivacyPlan

_HOLDER = secrets.token_hex(8)


@dataclass(frozen=True, kw_only=True)
class LedgerTerms:
    """What a hospital's own settings say to its ledger.

    Attributes:
        site: The hospital's name; fixed for ever when the ledger is created.
        cohort: The patients who are charged; disjoint from those of every other cohort.
        epsilon_budget: Limit for the cohort's whole history; at least 0; 0 refuses every round. It may differ at every
            opening.
        epsilon_per_study: Limit for all runs of one study on the cohort; at least 0; none of its own if None.
        delta: Of every epsilon in the ledger; fixed for ever when the ledger is created.
        policy: Version of the hospital's policy; kept with every charge.
    """

    site: str
    cohort: str
    epsilon_budget: float
    epsilon_per_study: float | None = None
    delta: float
    policy: str

    def __post_init__(self) -> None:
        """Refuse what is no name and no limit."""
        for name in ("site", "cohort", "policy"):
            require_label(name, getattr(self, name))
        object.__setattr__(self, "epsilon_budget", require_real("epsilon_budget", self.epsilon_budget))
        if self.epsilon_per_study is not None:
            object.__setattr__(self, "epsilon_per_study", require_real("epsilon_per_study", self.epsilon_per_study))
        if self.epsilon_budget < 0:
            raise PrivacySettingError(f"epsilon_budget={self.epsilon_budget!r}; expected at least 0")
        object.__setattr__(self, "delta", require_delta("delta", self.delta))


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """Leave to train one round once, already charged.

    Attributes:
        run: The run it belongs to.
        server_round: The round it is for; from 1.
        attempt: 1, or more if the round was settled before and is trained again, each time at its own charge.
        spend: The charge: noise, rate and the steps that may run; fewer than planned where the budget ends.
    """

    run: str
    server_round: int
    attempt: int
    spend: Spend


@dataclass(frozen=True, kw_only=True)
class NextRound:
    """What a further round of a run would cost.

    Attributes:
        steps: Steps that would be granted; 0 if the round would be refused.
        epsilon_before: Of everything charged to the cohort.
        epsilon_after: The same with those steps.
    """

    steps: int
    epsilon_before: float
    epsilon_after: float


@dataclass(frozen=True, kw_only=True)
class LedgerState:
    """What a whole ledger says, after everything in it was checked.

    Attributes:
        num_rows: How many rows it has.
        last_hash: Of the last one.
        epsilons: Spent by each cohort, as the budget counts it.
    """

    num_rows: int
    last_hash: str
    epsilons: dict[str, float]


class Ledger:
    """A hospital's record of spent privacy, seen from one cohort; shared safely by several processes.

    Guarantees:
        - `reserve` returns only after the charge is on disk; no two processes can both take the last of a budget.
        - A run has one plan for each cohort, kept from its first round at the latest, and never goes above that plan's
          own epsilon, however often its rounds are repeated and however much budget is left.
        - Limits hold for a coordinator that chooses later plans after seeing what earlier ones released: with several
          noises or rates in the ledger, `compute_epsilon_adaptive` says how, and what twice its delta is for.
        - Rows are only ever added, each chained to the one before. A charge is lowered once at most, by a further row.
        - A changed, shortened or foreign ledger is refused, and so is one that is older than its receipt.
        - The file holds no patient data and no result of training; a fingerprint tells nothing without the file's salt.

    Rule for the caller: reserve, train, settle, send, in this order and in one process, and send nothing whose
    settling failed. Use it in a ``with`` statement, or `close` it; one instance serves one thread.
    """

    def __init__(self, path: Path, terms: LedgerTerms, *, receipt: Path) -> None:
        """Open the ledger, or create it in an existing folder.

        Args:
            path: The file; see `open_ledger_file` for what is refused.
            terms: The hospital's own.
            receipt: Where the ledger's receipt is kept; best on another disk.
        """
        self._terms, self._cohort = terms, terms.cohort
        self._store = LedgerStore(path, site=terms.site, delta=terms.delta, receipt=receipt)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; allowed more than once."""
        self._store.close()

    def reserve(self, *, run: str, server_round: int, study: str, plan: PrivacyPlan, fingerprint: str) -> Reservation:
        """Charge one round of ``plan`` before it is trained, or raise `BudgetExceededError` and charge nothing.

        Stores the plan if `store_plan` did not. Where the whole round does not fit the budget or the run's own target,
        the largest number of its steps that does is granted and charged, at least one.

        A round that was reserved and not settled is handed out again without a second charge: nothing of it left, its
        first holder failed, and if that one is still running it can no longer settle. It is still refused if the budget
        was lowered below what is charged.

        A round that was settled may have been sent; training it again draws new noise on the same patients, so it is
        charged again, as the next attempt, to the budget and to the run's target, which holds every round once. To
        avoid that charge, send the kept reply again instead.

        Args:
            run: The run's identifier.
            server_round: From 1 to the plan's number of rounds.
            study: The study's name, for display.
            plan: The run's plan; equal to the stored one if there is one.
            fingerprint: Of the records that are trained on, by `fingerprint`.

        Raises:
            BudgetExceededError: With one step of this round, the whole history would exceed the budget, or this run
                its plan's epsilon.
            LedgerError: The run is known with another plan or study, another cohort was charged with the same records,
                or the ledger cannot be used.
        """
        require_count("server_round", server_round, at_least=1)
        if server_round > plan.num_rounds:
            raise PrivacySettingError(f"server_round={server_round}; expected at most the plan's {plan.num_rounds}")
        with self._store.transaction() as rows:
            self._keep_plan(rows, run, study, plan, fingerprint)
            latest = self._latest(run, server_round)
            if latest is not None and latest.steps_run is None:
                self._limits(run, study).require_budget()
                self._hand_over(rows, latest)
                attempt, spend = latest.attempt, latest.spend
            else:
                attempt = 1 if latest is None else latest.attempt + 1
                spend = self._limits(run, study).grant(plan)
                round_of_run = {"run": run, "server_round": server_round, "attempt": attempt, "study": study}
                rows.append(self._entry_content(round_of_run, plan, spend, fingerprint))
        return Reservation(run=run, server_round=server_round, attempt=attempt, spend=spend)

    def take_over(self, *, run: str, server_round: int) -> None:
        """Let this process settle a round that another one reserved, which can no longer settle it from then on.

        Raises:
            LedgerError: The round is not open.
        """
        with self._store.transaction() as rows:
            latest = self._latest(run, server_round)
            if latest is None or latest.steps_run is not None:
                raise LedgerError(f"run {run!r} round {server_round} is not open; expected a reserved, unsettled round")
            self._hand_over(rows, latest)

    def settle(self, *, run: str, server_round: int, steps_run: int) -> None:
        """Lower the latest charge of a round to the steps that really ran; before the reply is sent.

        Settling again with the same number changes nothing, so a lost answer does no harm.

        Raises:
            LedgerError: The round is not reserved, is settled with another number, has fewer steps reserved than
                ``steps_run``, or was handed to another process meanwhile; send nothing then.
        """
        require_count("steps_run", steps_run, at_least=0)
        with self._store.transaction() as rows:
            latest = self._latest(run, server_round)
            name = f"run {run!r} round {server_round}"
            if latest is None:
                raise LedgerError(f"{name} is not reserved; expected reserve before settle; send nothing")
            if self._holder_of(latest) != _holder():
                raise LedgerError(f"{name} was reserved by another process since; only the last one may settle it")
            if steps_run > latest.steps_reserved:
                raise LedgerError(
                    f"steps_run={steps_run}; {name} has {latest.steps_reserved} steps reserved; expected at most "
                    "that: more steps ran than were charged, so send nothing"
                )
            if latest.steps_run is None:
                rows.append({"kind": "settle", **_round_of(latest), "steps_run": steps_run})
            elif latest.steps_run != steps_run:
                raise LedgerError(f"steps_run={steps_run}; {name} is settled with {latest.steps_run} already")

    def charge(self, *, study: str, spend: AnySpend, reason: str) -> None:
        """Enter a spend on this cohort that was made elsewhere; never refused, since it has happened.

        Args:
            study: What it was for.
            spend: What was spent.
            reason: Why it is entered, for whoever reads the ledger later.
        """
        require_label("study", study)
        require_label("reason", reason)
        with self._store.transaction() as rows:
            named = {"kind": "charge", "cohort": self._cohort, "study": study, "reason": reason}
            rows.append({**named, **spend_content(spend), "policy": self._terms.policy})

    def fingerprint(self, records: Iterable[bytes]) -> str:
        """Return a keyed hash of records, the same in any order; who does not have the ledger cannot test a guess.

        Args:
            records: Each record's content in a fixed form.
        """
        with self._store.reading() as book:
            key = bytes.fromhex(book.salt)
        hashes = sorted(hmac.digest(key, record, "sha256") for record in records)
        return hmac.new(key, b"".join(hashes), hashlib.sha256).hexdigest()

    def entries(self) -> list[LedgerEntry]:
        """Return every charged round of the cohort, oldest first, for display."""
        with self._store.reading() as book:
            return [entry for entry in book.entries if entry.cohort == self._cohort]

    def outside_charges(self) -> list[OutsideCharge]:
        """Return the cohort's spends that were made elsewhere, oldest first, for display."""
        with self._store.reading() as book:
            return [charge for charge in book.charges if charge.cohort == self._cohort]

    def cohorts(self) -> list[str]:
        """Return the names of all cohorts with a plan or a charge, in the order they came."""
        with self._store.reading() as book:
            return book.cohorts()

    def plans(self) -> dict[str, StoredPlan]:
        """Return the cohort's plans by run, oldest first."""
        with self._store.reading() as book:
            return {run: stored for (cohort, run), stored in book.plans.items() if cohort == self._cohort}

    def history(self) -> list[AnySpend]:
        """Return everything charged to the cohort, as the accountant takes it."""
        with self._store.reading() as book:
            return book.history(self._cohort)

    def spent(self) -> float:
        """Return the epsilon of everything charged to the cohort, at the ledger's delta, as the budget counts it."""
        return compute_epsilon_adaptive(self.history(), self._terms.delta)

    def remaining(self) -> float:
        """Return budget minus `spent`, at least 0. Only an indication: epsilons do not add up."""
        return max(0.0, self._terms.epsilon_budget - self.spent())

    def spent_by_run(self, run: str, *, delta: float | None = None) -> float:
        """Return the epsilon of one run's charges alone; the runs' epsilons do not add up to `spent`.

        Args:
            run: The run's identifier.
            delta: Of the epsilon returned; the ledger's own if None.
        """
        spends = [entry.spend for entry in self.entries() if entry.run == run]
        return compute_epsilon(spends, self._terms.delta if delta is None else require_delta("delta", delta))

    def next_round(self, run: str, study: str, plan: PrivacyPlan) -> NextRound:
        """Return what a further round of ``plan`` would cost, without charging it."""
        with self._store.reading():
            limits = self._limits(run, study)
        steps = limits.largest_fit(plan)
        after = [*limits.history, replace(plan.round_spend, steps=steps)]
        return NextRound(
            steps=steps,
            epsilon_before=compute_epsilon_adaptive(limits.history, limits.delta),
            epsilon_after=compute_epsilon_adaptive(after, limits.delta),
        )

    def require_room(self, run: str, study: str, plan: PrivacyPlan) -> None:
        """Raise `BudgetExceededError` if not even one step of a round of ``plan`` could be granted; charges nothing."""
        with self._store.reading():
            self._limits(run, study).grant(plan)

    def store_plan(self, run: str, study: str, plan: PrivacyPlan, *, fingerprint: str) -> None:
        """Keep the plan of a run, so that every process and every restart uses the same noise.

        Storing an equal plan again changes nothing.

        Raises:
            LedgerError: The run has another plan or study already, or another cohort was charged with these records.
        """
        with self._store.transaction() as rows:
            self._keep_plan(rows, run, study, plan, fingerprint)

    def load_plan(self, run: str) -> PrivacyPlan | None:
        """Return the plan stored for a run, or None."""
        stored = self.plans().get(run)
        return None if stored is None else stored.plan

    def verify(self) -> LedgerState:
        """Check everything once more: each row's hash and sense, the receipt, each plan, each run's epsilon.

        Raises:
            LedgerError: Names the first row that is broken, or what else is.
        """
        self._store.read_again()
        with self._store.reading() as book:
            check_charges(book)
            epsilons = {cohort: compute_epsilon_adaptive(book.history(cohort), book.delta) for cohort in book.cohorts()}
        return LedgerState(num_rows=self._store.num_rows, last_hash=self._store.last_hash, epsilons=epsilons)

    def _limits(self, run: str, study: str) -> Limits:
        book = self._store.book
        return Limits(
            history=book.history(self._cohort),
            run=run,
            run_history=book.run_history(self._cohort, run),
            study_history=book.study_history(self._cohort, study),
            epsilon_budget=self._terms.epsilon_budget,
            epsilon_per_study=self._terms.epsilon_per_study,
            delta=self._terms.delta,
        )

    def _latest(self, run: str, server_round: int) -> LedgerEntry | None:
        return self._store.book.latest(self._cohort, run, server_round)

    def _holder_of(self, entry: LedgerEntry) -> str:
        return self._store.book.holders[entry.cohort, entry.run, entry.server_round]

    def _hand_over(self, rows: list[dict[str, Any]], entry: LedgerEntry) -> None:
        if self._holder_of(entry) != _holder():
            rows.append({"kind": "take-over", **_round_of(entry), "holder": _holder()})

    def _keep_plan(self, rows: list[dict[str, Any]], run: str, study: str, plan: PrivacyPlan, fingerprint: str) -> None:
        """Add a row with a run's plan, or refuse it if another one is stored."""
        for name, value in (("run", run), ("study", study), ("fingerprint", fingerprint)):
            require_label(name, value)
        book = self._store.book
        if (other := book.cohort_with(fingerprint, other_than=self._cohort)) is not None:
            raise LedgerError(
                f"cohort={self._cohort!r}; cohort {other!r} was charged with the same records; expected the same name "
                "for the same patients: another name does not give them another budget"
            )
        stored = book.plans.get((self._cohort, run))
        if stored is None:
            named = {"kind": "plan", "cohort": self._cohort, "run": run, "study": study}
            rows.append({**named, "plan": plan.to_json()})
        elif (stored.study, stored.text) != (study, plan.to_json()):
            raise LedgerError(
                f"run={run!r} of study {study!r} has another plan: stored for study {stored.study!r} is {stored.text}, "
                f"asked for is {plan.to_json()}; expected the same; start a new run to use another plan"
            )

    def _entry_content(
        self, round_of_run: dict[str, Any], plan: PrivacyPlan, spend: Spend, fingerprint: str
    ) -> dict[str, Any]:
        return {
            "kind": "reserve",
            "cohort": self._cohort,
            **round_of_run,
            "unit": plan.unit,
            "mechanism": spend.mechanism,
            "noise_multiplier": spend.noise_multiplier,
            "sampling_rate": spend.sampling_rate,
            "clip_norm": plan.clip_norm,
            "steps_reserved": spend.steps,
            "policy": self._terms.policy,
            "fingerprint": fingerprint,
            "holder": _holder(),
        }


def _holder() -> str:
    """Name this process, also after a fork; only the last process that reserved a round may settle it."""
    return f"{os.getpid()}-{_HOLDER}"


def _round_of(entry: LedgerEntry) -> dict[str, Any]:
    return {"cohort": entry.cohort, "run": entry.run, "server_round": entry.server_round, "attempt": entry.attempt}
