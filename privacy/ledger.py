"""The only place that knows what a hospital has spent, and whether it may spend more.

A round is charged in full, durably, before any noise is drawn (`Ledger.reserve`), and lowered afterwards to the steps
that really ran (`Ledger.settle`). A crash in between leaves the full charge. One ledger per patient population, kept by
the hospital: every study on the same patients shares it, and epsilon is always that of the whole history.
"""

import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from privacy.accounting import Spend, compute_epsilon, compute_epsilon_adaptive, compute_epsilon_rdp
from privacy.bounds import require_count, require_delta, require_label, require_real
from privacy.errors import BudgetExceededError, LedgerError, PrivacySettingError
from privacy.ledger_file import open_ledger_file
from privacy.plan import PrivacyPlan

_HOLDER = secrets.token_hex(8)


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """Leave to train one round once, already charged.

    Attributes:
        run: The run it belongs to.
        server_round: The round it is for; from 1.
        attempt: 1, or more if the round was settled before and is trained again, each time at its own charge.
        spend: The charge: noise, rate and the planned steps.
    """

    run: str
    server_round: int
    attempt: int
    spend: Spend


@dataclass(frozen=True, kw_only=True)
class LedgerEntry:
    """One charge as the ledger holds it, for display.

    Attributes:
        run: The run that was charged for.
        server_round: The round of that run.
        attempt: How often that round had been settled before, plus one.
        study: The study's name.
        noise_multiplier: Standard deviation of the noise over the clip norm.
        sampling_rate: Probability with which each record was in a batch.
        clip_norm: In gradient units.
        steps_reserved: Steps that were charged at first.
        steps_run: Steps that really ran; None while the round is open.
        reserved_at: UTC, ISO 8601.
        settled_at: UTC, ISO 8601; None while the round is open.
    """

    run: str
    server_round: int
    attempt: int
    study: str
    noise_multiplier: float
    sampling_rate: float
    clip_norm: float
    steps_reserved: int
    steps_run: int | None
    reserved_at: str
    settled_at: str | None

    @property
    def spend(self) -> Spend:
        """What is charged now: the steps run, or all that were reserved while that is not known."""
        steps = self.steps_reserved if self.steps_run is None else self.steps_run
        return Spend(noise_multiplier=self.noise_multiplier, sampling_rate=self.sampling_rate, steps=steps)


class Ledger:
    """A hospital's record of spent privacy, one SQLite file, shared safely by several processes.

    Guarantees:
        - `reserve` returns only after the charge is on disk; no two processes can both take the last of a budget.
        - A run has one plan, kept from its first round at the latest, and never goes above that plan's own epsilon,
          however often its rounds are repeated and however much budget is left.
        - Limits hold for a coordinator that chooses later plans after seeing what earlier ones released: with several
          noises or rates in the ledger, `compute_epsilon_adaptive` says how, and what twice its delta is for.
        - A charge is never deleted and never raised, and lowered once at most.
        - The file holds no patient data and no result of training.

    Rule for the caller: reserve, train, settle, send, in this order and in one process, and send nothing whose
    settling failed. Use it in a ``with`` statement, or `close` it; one instance serves one thread.
    """

    def __init__(self, path: Path, *, epsilon_budget: float, delta: float) -> None:
        """Open the ledger, or create it in an existing folder.

        Args:
            path: The file; see `open_ledger_file` for what is refused.
            epsilon_budget: The hospital's limit for the whole history; at least 0; 0 refuses every round. Not stored:
                it may differ at every opening.
            delta: The delta of every epsilon of this ledger; fixed for ever at creation.
        """
        self._epsilon_budget = require_real("epsilon_budget", epsilon_budget)
        if self._epsilon_budget < 0:
            raise PrivacySettingError(f"epsilon_budget={epsilon_budget!r}; expected at least 0")
        self._delta = require_delta("delta", delta)
        self._path = path
        self._connection = open_ledger_file(path, delta=self._delta)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; allowed more than once."""
        self._connection.close()

    def reserve(self, *, run: str, server_round: int, study: str, plan: PrivacyPlan) -> Reservation:
        """Charge one round of ``plan`` before it is trained, or raise `BudgetExceededError` and charge nothing.

        Stores the plan if `store_plan` did not.

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

        Raises:
            BudgetExceededError: The whole history with this round would exceed the budget, or this run with this round
                its plan's epsilon.
            LedgerError: The round or run is known with another plan or study, or the file cannot be used.
        """
        require_label("run", run)
        require_label("study", study)
        require_count("server_round", server_round, at_least=1)
        if server_round > plan.num_rounds:
            raise PrivacySettingError(f"server_round={server_round}; expected at most the plan's {plan.num_rounds}")
        with self._transaction() as connection:
            latest = _latest_attempt(connection, run, server_round)
            if latest is not None:
                _refuse_other_parameters(latest, study, plan)
            _keep_plan(connection, run, study, plan)
            if latest is not None and latest["steps_run"] is None:
                self._require_budget(connection)
                connection.execute("UPDATE entry SET holder = ? WHERE id = ?", (_holder(), latest["id"]))
                attempt = int(latest["attempt"])
            else:
                attempt = 1 if latest is None else int(latest["attempt"]) + 1
                _require_target(connection, run, plan)
                self._require_budget(connection, plan.round_spend)
                _insert(connection, run, server_round, attempt, study, plan)
        return Reservation(run=run, server_round=server_round, attempt=attempt, spend=plan.round_spend)

    def settle(self, *, run: str, server_round: int, steps_run: int) -> None:
        """Lower the latest charge of a round to the steps that really ran; before the reply is sent.

        Settling again with the same number changes nothing, so a lost answer does no harm.

        Raises:
            LedgerError: The round is not reserved, is settled with another number, has fewer steps reserved than
                ``steps_run``, or was handed to another process meanwhile; send nothing then.
        """
        require_count("steps_run", steps_run, at_least=0)
        with self._transaction() as connection:
            latest = _latest_attempt(connection, run, server_round)
            name = f"run {run!r} round {server_round}"
            if latest is None:
                raise LedgerError(f"{name} is not reserved; expected reserve before settle; send nothing")
            if latest["holder"] != _holder():
                raise LedgerError(f"{name} was reserved by another process since; only the last one may settle it")
            if steps_run > latest["steps_reserved"]:
                raise LedgerError(
                    f"steps_run={steps_run}; {name} has {latest['steps_reserved']} steps reserved; expected at most "
                    "that: more steps ran than were charged, so send nothing"
                )
            if latest["steps_run"] is None:
                connection.execute(
                    "UPDATE entry SET steps_run = ?, settled_at = ? WHERE id = ?", (steps_run, _now(), latest["id"])
                )
            elif latest["steps_run"] != steps_run:
                raise LedgerError(f"steps_run={steps_run}; {name} is settled with {latest['steps_run']} already")

    def entries(self) -> list[LedgerEntry]:
        """Return every charge, oldest first, for display."""
        with self._transaction() as connection:
            return _read_entries(connection)

    def history(self) -> list[Spend]:
        """Return every charge as the accountant takes it, oldest first."""
        return [entry.spend for entry in self.entries()]

    def spent(self) -> float:
        """Return the epsilon of everything charged, at the ledger's delta, as the budget counts it."""
        return compute_epsilon_adaptive(self.history(), self._delta)

    def remaining(self) -> float:
        """Return budget minus `spent`, at least 0. Only an indication: epsilons do not add up."""
        return max(0.0, self._epsilon_budget - self.spent())

    def spent_by_run(self, run: str, *, delta: float | None = None) -> float:
        """Return the epsilon of one run's charges alone; the runs' epsilons do not add up to `spent`.

        Args:
            run: The run's identifier.
            delta: Of the epsilon returned; the ledger's own if None.
        """
        spends = [entry.spend for entry in self.entries() if entry.run == run]
        return compute_epsilon(spends, self._delta if delta is None else require_delta("delta", delta))

    def store_plan(self, run: str, study: str, plan: PrivacyPlan) -> None:
        """Keep the plan of a run, so that every process and every restart uses the same noise.

        Storing an equal plan again changes nothing.

        Raises:
            LedgerError: The run has another plan or study already.
        """
        require_label("run", run)
        require_label("study", study)
        with self._transaction() as connection:
            _keep_plan(connection, run, study, plan)

    def load_plan(self, run: str) -> PrivacyPlan | None:
        """Return the plan stored for a run, or None."""
        with self._transaction() as connection:
            row = connection.execute("SELECT plan FROM plan WHERE run = ?", (run,)).fetchone()
        return None if row is None else PrivacyPlan.from_json(row["plan"])

    def _require_budget(self, connection: sqlite3.Connection, *requested: Spend) -> None:
        """Raise if everything charged and ``requested`` exceed the budget."""
        spent = [entry.spend for entry in _read_entries(connection)]
        history = [*spent, *requested]
        if self._epsilon_budget == 0 or not _is_within(self._epsilon_budget, history, self._delta):
            raise BudgetExceededError(
                epsilon_spent=compute_epsilon_adaptive(spent, self._delta),
                epsilon_budget=self._epsilon_budget,
                epsilon_requested=compute_epsilon_adaptive(history, self._delta),
            )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Hold the file's write lock from the first read to the durable commit; undo everything on an error."""
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise LedgerError(f"ledger={self._path}; cannot be used: {error}; nothing was changed") from error


def _holder() -> str:
    """Name this process, also after a fork; only the last process that reserved a round may settle it."""
    return f"{os.getpid()}-{_HOLDER}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _read_entries(connection: sqlite3.Connection) -> list[LedgerEntry]:
    rows = connection.execute("SELECT * FROM entry ORDER BY id").fetchall()
    return [LedgerEntry(**{field.name: row[field.name] for field in fields(LedgerEntry)}) for row in rows]


def _insert(
    connection: sqlite3.Connection, run: str, server_round: int, attempt: int, study: str, plan: PrivacyPlan
) -> None:
    values = {
        "run": run,
        "server_round": server_round,
        "attempt": attempt,
        "study": study,
        "noise_multiplier": plan.noise_multiplier,
        "sampling_rate": plan.sampling_rate,
        "clip_norm": plan.clip_norm,
        "steps_reserved": plan.steps_per_round,
        "holder": _holder(),
        "reserved_at": _now(),
    }
    connection.execute(
        "INSERT INTO entry (run, server_round, attempt, study, noise_multiplier, sampling_rate, clip_norm,"
        " steps_reserved, holder, reserved_at) VALUES (:run, :server_round, :attempt, :study, :noise_multiplier,"
        " :sampling_rate, :clip_norm, :steps_reserved, :holder, :reserved_at)",
        values,
    )


def _latest_attempt(connection: sqlite3.Connection, run: str, server_round: int) -> sqlite3.Row | None:
    row: sqlite3.Row | None = connection.execute(
        "SELECT * FROM entry WHERE run = ? AND server_round = ? ORDER BY attempt DESC LIMIT 1", (run, server_round)
    ).fetchone()
    return row


def _is_within(limit: float, history: list[Spend], delta: float) -> bool:
    """Whether the history's epsilon is at most ``limit``; the fast bound first, it often suffices.

    With several noises or rates the fast bound would allow too much, see `compute_epsilon_adaptive`.
    """
    is_uniform = len({(spend.noise_multiplier, spend.sampling_rate) for spend in history}) == 1
    if is_uniform and compute_epsilon_rdp(history, delta) <= limit:
        return True
    return compute_epsilon_adaptive(history, delta) <= limit


def _require_target(connection: sqlite3.Connection, run: str, plan: PrivacyPlan) -> None:
    """Raise if the run's charges and one more round exceed the plan's own epsilon, at the plan's delta."""
    spent = [entry.spend for entry in _read_entries(connection) if entry.run == run]
    history = [*spent, plan.round_spend]
    # No plan can be built unless its total keeps its epsilon, and fewer of the same steps cost no more. Computed, they
    # might: the accountant's numerical error can exceed the cost of a round, and would refuse an honest one.
    if sum(spend.steps for spend in history) <= plan.total_spend.steps:
        return
    if not _is_within(plan.epsilon, history, plan.delta):
        raise BudgetExceededError(
            epsilon_spent=compute_epsilon(spent, plan.delta),
            epsilon_budget=plan.epsilon,
            epsilon_requested=compute_epsilon(history, plan.delta),
            run=run,
        )


def _keep_plan(connection: sqlite3.Connection, run: str, study: str, plan: PrivacyPlan) -> None:
    """Store a run's plan, or refuse it if another one is stored."""
    row = connection.execute("SELECT study, plan FROM plan WHERE run = ?", (run,)).fetchone()
    if row is None:
        connection.execute("INSERT INTO plan VALUES (?, ?, ?)", (run, study, plan.to_json()))
    elif (row["study"], row["plan"]) != (study, plan.to_json()):
        raise LedgerError(
            f"run={run!r} of study {study!r} has another plan: stored for study {row['study']!r} is {row['plan']}, "
            f"asked for is {plan.to_json()}; expected the same; start a new run to use another plan"
        )


def _refuse_other_parameters(charged: sqlite3.Row, study: str, plan: PrivacyPlan) -> None:
    asked = {
        "study": study,
        "noise_multiplier": plan.noise_multiplier,
        "sampling_rate": plan.sampling_rate,
        "clip_norm": plan.clip_norm,
        "steps_reserved": plan.steps_per_round,
    }
    different = [f"{name}={value!r} (was {charged[name]!r})" for name, value in asked.items() if charged[name] != value]
    if different:
        raise LedgerError(
            f"run {charged['run']!r} round {charged['server_round']} was reserved with other numbers: "
            f"{', '.join(different)}; expected the same; start a new run to use another plan"
        )
