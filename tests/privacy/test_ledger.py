"""The hospital's ledger charges every round before its noise, never forgets a charge, and never overspends.

Children are forked, so that the tests meet real processes and real SIGKILLs without importing everything again.
"""

import os
import resource
import signal
import sqlite3
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from privacy import grant as grant_module
from privacy.accounting import Spend, compute_epsilon, compute_epsilon_adaptive, compute_epsilon_rdp
from privacy.errors import BudgetExceededError, LedgerError, PrivacySettingError
from privacy.grant import Limits
from privacy.ledger import Ledger, LedgerTerms, Reservation
from privacy.plan import PrivacyPlan

DELTA = 1e-3
RESERVED, OVER_BUDGET, REFUSED, BROKEN = 10, 11, 12, 13


@pytest.fixture(scope="module")
def plan() -> PrivacyPlan:
    return PrivacyPlan.calibrate(
        epsilon=3.0,
        delta=DELTA,
        clip_norm=1.0,
        sampling_rate=1.0,
        steps_per_round=4,
        num_rounds=20,
        nominal_units=400,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


def open_ledger(
    path: Path, budget: float = 3.0, *, cohort: str = "adults", site: str = "st-anna", delta: float = DELTA
) -> Ledger:
    terms = LedgerTerms(site=site, cohort=cohort, epsilon_budget=budget, delta=delta, policy="policy-1")
    return Ledger(path, terms, receipt=path.parent / "receipts" / "ledger.receipt")


def reserve(
    ledger: Ledger, plan: PrivacyPlan, server_round: int = 1, run: str = "7", fingerprint: str = "f-1"
) -> Reservation:
    return ledger.reserve(run=run, server_round=server_round, study="heart", plan=plan, fingerprint=fingerprint)


def epsilon_of_rounds(plan: PrivacyPlan, count: int) -> float:
    return compute_epsilon([plan.round_spend] * count, DELTA)


def fork(act: Callable[[], object]) -> int:
    """Start a child that reports with its exit code how ``act`` ended."""
    child = os.fork()
    if child:
        return child
    code = BROKEN
    try:
        act()
        code = RESERVED
    except BudgetExceededError:
        code = OVER_BUDGET
    except LedgerError:
        code = REFUSED
    finally:
        os._exit(code)


def wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# --- reserve and settle ----------------------------------------------------------------------------------------------


def test_a_new_ledger_has_spent_nothing(path: Path) -> None:
    with open_ledger(path) as ledger:
        assert ledger.history() == []
        assert ledger.entries() == []
        assert ledger.spent() == 0.0
        assert ledger.remaining() == 3.0
        assert ledger.spent_by_run("7") == 0.0
        assert ledger.load_plan("7") is None


def test_a_reserved_round_is_charged_in_full(path: Path, plan: PrivacyPlan) -> None:
    with open_ledger(path) as ledger:
        reservation = reserve(ledger, plan)

        assert reservation == Reservation(run="7", server_round=1, attempt=1, spend=plan.round_spend)
        assert ledger.history() == [plan.round_spend]
        assert ledger.spent() == epsilon_of_rounds(plan, 1)
        assert ledger.remaining() == 3.0 - epsilon_of_rounds(plan, 1)


def test_charges_survive_closing_and_opening_again(path: Path, plan: PrivacyPlan) -> None:
    with open_ledger(path) as ledger:
        reserve(ledger, plan, 1)
        ledger.settle(run="7", server_round=1, steps_run=3)
        reserve(ledger, plan, 2)
        before = ledger.entries()

    with open_ledger(path) as ledger:
        assert ledger.entries() == before
        assert [entry.spend.steps for entry in ledger.entries()] == [3, 4]


@pytest.mark.parametrize("steps_run", [0, 3, 4])
def test_settling_lowers_the_charge_to_the_steps_that_ran(path: Path, plan: PrivacyPlan, steps_run: int) -> None:
    with open_ledger(path) as ledger:
        reserve(ledger, plan)

        ledger.settle(run="7", server_round=1, steps_run=steps_run)

        assert ledger.history() == [replace(plan.round_spend, steps=steps_run)]


def test_settling_can_never_raise_the_charge(path: Path, plan: PrivacyPlan) -> None:
    with open_ledger(path) as ledger:
        reserve(ledger, plan)

        with pytest.raises(LedgerError, match=r"steps_run=5; .* 4 steps reserved; .*send nothing"):
            ledger.settle(run="7", server_round=1, steps_run=5)

        assert ledger.history() == [plan.round_spend]


def test_settling_again_is_harmless_with_the_same_number_and_refused_with_another(
    path: Path, plan: PrivacyPlan
) -> None:
    with open_ledger(path) as ledger:
        reserve(ledger, plan)
        ledger.settle(run="7", server_round=1, steps_run=3)

        ledger.settle(run="7", server_round=1, steps_run=3)
        for other in (2, 4):
            with pytest.raises(LedgerError, match="is settled with 3 already"):
                ledger.settle(run="7", server_round=1, steps_run=other)

        assert [entry.spend.steps for entry in ledger.entries()] == [3]


@pytest.mark.parametrize(("run", "server_round"), [("7", 2), ("8", 1)])
def test_settling_what_was_not_reserved_is_refused(path: Path, plan: PrivacyPlan, run: str, server_round: int) -> None:
    with open_ledger(path) as ledger:
        reserve(ledger, plan)

        with pytest.raises(LedgerError, match="not reserved"):
            ledger.settle(run=run, server_round=server_round, steps_run=1)


def test_settling_a_negative_number_of_steps_is_refused(path: Path, plan: PrivacyPlan) -> None:
    with open_ledger(path) as ledger:
        reserve(ledger, plan)

        with pytest.raises(PrivacySettingError, match="steps_run=-1"):
            ledger.settle(run="7", server_round=1, steps_run=-1)


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"server_round": 0}, "server_round=0"),
        ({"server_round": 21}, "at most the plan's 20"),
        ({"run": ""}, "run=''"),
        ({"study": " "}, "study=' '"),
    ],
)
def test_a_reservation_without_a_proper_run_study_or_round_is_refused(
    path: Path, plan: PrivacyPlan, changed: dict[str, Any], name: str
) -> None:
    arguments: dict[str, Any] = {"run": "7", "server_round": 1, "study": "heart", "plan": plan, "fingerprint": "f-1"}
    with open_ledger(path) as ledger:
        with pytest.raises(PrivacySettingError, match=name):
            ledger.reserve(**arguments | changed)

        assert ledger.entries() == []


# --- retried rounds --------------------------------------------------------------------------------------------------


def test_a_round_that_was_not_settled_is_handed_out_again_without_a_second_charge(
    path: Path, plan: PrivacyPlan
) -> None:
    with open_ledger(path) as ledger:
        first = reserve(ledger, plan)

    with open_ledger(path) as ledger:
        assert reserve(ledger, plan) == first
        assert ledger.history() == [plan.round_spend]


def test_an_open_round_is_handed_out_again_even_if_the_budget_is_used_up(path: Path, plan: PrivacyPlan) -> None:
    with open_ledger(path, budget=epsilon_of_rounds(plan, 1)) as ledger:
        first = reserve(ledger, plan)

        assert reserve(ledger, plan) == first


@pytest.mark.parametrize("lowered", [0.0, 0.1])
def test_an_open_round_is_refused_once_the_budget_was_lowered_below_its_charge(
    path: Path, plan: PrivacyPlan, lowered: float
) -> None:
    with open_ledger(path) as ledger:
        reserve(ledger, plan)

    with open_ledger(path, budget=lowered) as ledger:
        with pytest.raises(BudgetExceededError) as raised:
            reserve(ledger, plan)
        assert raised.value.epsilon_requested == raised.value.epsilon_spent == epsilon_of_rounds(plan, 1)
        assert ledger.history() == [plan.round_spend]


def test_training_a_settled_round_again_is_a_new_charge(path: Path, plan: PrivacyPlan) -> None:
    with open_ledger(path) as ledger:
        reserve(ledger, plan)
        ledger.settle(run="7", server_round=1, steps_run=4)

        again = reserve(ledger, plan)

        assert again.attempt == 2
        assert ledger.spent() == epsilon_of_rounds(plan, 2)
        ledger.settle(run="7", server_round=1, steps_run=1)
        assert [entry.spend.steps for entry in ledger.entries()] == [4, 1]


@pytest.mark.parametrize("is_settled", [False, True])
@pytest.mark.parametrize(
    "changed",
    [{"noise_multiplier": 50.0}, {"sampling_rate": 0.5}, {"clip_norm": 2.0}, {"steps_per_round": 3}],
    ids=repr,
)
def test_a_retried_round_with_other_numbers_is_refused(
    path: Path, plan: PrivacyPlan, changed: dict[str, Any], *, is_settled: bool
) -> None:
    other = replace(plan, **changed)
    with open_ledger(path) as ledger:
        reserve(ledger, plan)
        if is_settled:
            ledger.settle(run="7", server_round=1, steps_run=4)

        with pytest.raises(LedgerError, match="another plan"):
            reserve(ledger, other)

        assert ledger.history() == [plan.round_spend]


def test_a_retried_round_of_another_study_is_refused(path: Path, plan: PrivacyPlan) -> None:
    with open_ledger(path) as ledger:
        reserve(ledger, plan)

        with pytest.raises(LedgerError, match="of study 'lung' has another plan"):
            ledger.reserve(run="7", server_round=1, study="lung", plan=plan, fingerprint="f-1")


def test_when_a_second_process_takes_over_a_round_the_first_one_can_no_longer_settle(
    path: Path, plan: PrivacyPlan
) -> None:
    with open_ledger(path) as ledger:
        reserve(ledger, plan)

        assert wait(fork(lambda: reserve(open_ledger(path), plan))) == RESERVED

        with pytest.raises(LedgerError, match="reserved by another process since"):
            ledger.settle(run="7", server_round=1, steps_run=4)
        assert ledger.history() == [plan.round_spend]


# --- the budget ------------------------------------------------------------------------------------------------------


def test_a_run_calibrated_to_the_budget_fits_exactly_and_one_round_more_does_not(path: Path, plan: PrivacyPlan) -> None:
    with open_ledger(path, budget=plan.epsilon) as ledger:
        for server_round in range(1, 21):
            reserve(ledger, plan, server_round)
            ledger.settle(run="7", server_round=server_round, steps_run=4)

        with pytest.raises(BudgetExceededError) as raised:
            reserve(ledger, plan, 1, run="8")

        assert ledger.spent() == epsilon_of_rounds(plan, 20) <= 3.0
        assert raised.value.epsilon_budget == 3.0
        assert raised.value.epsilon_spent == epsilon_of_rounds(plan, 20)
        assert raised.value.epsilon_requested == epsilon_of_rounds(plan, 21)
        assert len(ledger.entries()) == 20
        assert 0 <= ledger.remaining() < 0.02


def test_the_last_steps_are_granted_by_the_tight_bound_where_the_fast_one_would_refuse(
    path: Path, plan: PrivacyPlan
) -> None:
    budget = epsilon_of_rounds(plan, 2)
    assert compute_epsilon_rdp([plan.round_spend] * 2, DELTA) > budget

    with open_ledger(path, budget=budget) as ledger:
        reserve(ledger, plan, 1)
        reserve(ledger, plan, 2)
        with pytest.raises(BudgetExceededError):
            reserve(ledger, plan, 3)


def test_while_the_fast_bound_suffices_the_slow_one_is_not_asked(
    path: Path, plan: PrivacyPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> float:
        raise AssertionError

    monkeypatch.setattr(grant_module, "compute_epsilon", refuse)
    monkeypatch.setattr(grant_module, "compute_epsilon_adaptive", refuse)

    with open_ledger(path, budget=100.0) as ledger:
        reserve(ledger, plan)
        assert len(ledger.entries()) == 1


def test_steps_that_did_not_run_are_free_for_a_later_round(path: Path, plan: PrivacyPlan) -> None:
    with open_ledger(path, budget=epsilon_of_rounds(plan, 1)) as ledger:
        reserve(ledger, plan, 1)
        with pytest.raises(BudgetExceededError):
            reserve(ledger, plan, 2)

        ledger.settle(run="7", server_round=1, steps_run=0)

        assert reserve(ledger, plan, 2).server_round == 2


def test_every_study_on_the_same_patients_draws_from_one_budget(path: Path, plan: PrivacyPlan) -> None:
    with open_ledger(path, budget=epsilon_of_rounds(plan, 2)) as ledger:
        ledger.reserve(run="7", server_round=1, study="heart", plan=plan, fingerprint="f-1")
        ledger.reserve(run="8", server_round=1, study="lung", plan=plan, fingerprint="f-1")

        with pytest.raises(BudgetExceededError):
            ledger.reserve(run="9", server_round=1, study="skin", plan=plan, fingerprint="f-1")

        assert ledger.spent_by_run("7") == ledger.spent_by_run("8") == epsilon_of_rounds(plan, 1)
        assert ledger.spent_by_run("9") == 0.0
        assert ledger.spent() == epsilon_of_rounds(plan, 2)


def test_the_budget_is_checked_at_the_delta_of_the_ledger_and_not_of_the_plan(path: Path, plan: PrivacyPlan) -> None:
    budget = epsilon_of_rounds(plan, 20)

    with open_ledger(path, budget, delta=1e-6) as ledger:
        for server_round in range(1, 5):
            reserve(ledger, plan, server_round)
        assert ledger.spent() == compute_epsilon([plan.round_spend] * 4, 1e-6) > epsilon_of_rounds(plan, 4)


def test_a_budget_of_zero_refuses_every_round_with_an_explanation(path: Path, plan: PrivacyPlan) -> None:
    almost_free = replace(plan, noise_multiplier=1e9)

    with open_ledger(path, budget=0) as ledger:
        for asked in (plan, almost_free):
            with pytest.raises(BudgetExceededError, match="a budget of 0 refuses every private round"):
                reserve(ledger, asked)
        assert ledger.remaining() == 0.0


def test_a_budget_of_zero_also_refuses_a_round_whose_epsilon_rounds_to_zero(path: Path, plan: PrivacyPlan) -> None:
    almost_free = replace(plan, noise_multiplier=1e9)
    assert compute_epsilon([almost_free.round_spend], 0.5) == 0.0

    with open_ledger(path, 0.0, delta=0.5) as ledger, pytest.raises(BudgetExceededError):
        reserve(ledger, almost_free)


def test_the_budget_may_change_between_openings(path: Path, plan: PrivacyPlan) -> None:
    with open_ledger(path, budget=3.0) as ledger:
        reserve(ledger, plan, 1)
    with open_ledger(path, budget=0.1) as ledger:
        assert ledger.remaining() == 0.0
        with pytest.raises(BudgetExceededError):
            reserve(ledger, plan, 2)
    with open_ledger(path, budget=3.0) as ledger:
        assert reserve(ledger, plan, 2).server_round == 2


@pytest.mark.parametrize("budget", [-1.0, float("nan"), float("inf"), True])
def test_a_budget_that_is_no_limit_is_refused(path: Path, budget: float) -> None:
    with pytest.raises(PrivacySettingError, match="epsilon_budget"):
        open_ledger(path, budget)

    assert not path.exists()


# --- the run's own target --------------------------------------------------------------------------------------------


def train_round(ledger: Ledger, plan: PrivacyPlan, server_round: int, run: str = "7") -> None:
    reserve(ledger, plan, server_round, run)
    ledger.settle(run=run, server_round=server_round, steps_run=plan.steps_per_round)


def test_a_run_never_exceeds_its_own_target_however_often_its_rounds_are_repeated(
    path: Path, plan: PrivacyPlan
) -> None:
    with open_ledger(path, budget=100.0) as ledger:
        for asked in range(20):  # the plan has 20 rounds
            train_round(ledger, plan, 1 + asked % 2)

        with pytest.raises(BudgetExceededError, match=r"of run '7' .* the run's own target of 3\.0") as raised:
            reserve(ledger, plan, 1)

        assert raised.value.run == "7"
        assert raised.value.epsilon_budget == plan.epsilon
        assert raised.value.epsilon_spent == epsilon_of_rounds(plan, 20) <= plan.epsilon
        assert raised.value.epsilon_requested == epsilon_of_rounds(plan, 21) > plan.epsilon
        assert len(ledger.entries()) == 20
        train_round(ledger, plan, 1, run="8")


def test_the_target_of_a_run_holds_at_the_delta_of_its_plan_and_not_of_the_ledger(path: Path) -> None:
    plan = PrivacyPlan.calibrate(
        epsilon=3.0,
        delta=1e-5,
        clip_norm=1.0,
        sampling_rate=1.0,
        steps_per_round=4,
        num_rounds=5,
        nominal_units=400,
    )
    with open_ledger(path, budget=100.0) as ledger:
        for server_round in range(1, 6):
            train_round(ledger, plan, server_round)

        with pytest.raises(BudgetExceededError):
            reserve(ledger, plan, 5)

        assert compute_epsilon([plan.round_spend] * 6, DELTA) < 3.0
        assert ledger.spent_by_run("7") == compute_epsilon([plan.total_spend], DELTA)
        assert 2.98 < ledger.spent_by_run("7", delta=plan.delta) == compute_epsilon([plan.total_spend], 1e-5) <= 3.0


def test_more_noise_than_the_target_needs_leaves_room_to_repeat_a_round(path: Path, plan: PrivacyPlan) -> None:
    generous = replace(plan, noise_multiplier=plan.noise_multiplier * 2, num_rounds=1)

    with open_ledger(path, budget=100.0) as ledger:
        train_round(ledger, generous, 1)
        reserve(ledger, generous, 1)

        assert ledger.spent_by_run("7") <= generous.epsilon


def test_an_open_round_is_handed_out_again_even_if_the_target_is_used_up(path: Path, plan: PrivacyPlan) -> None:
    with open_ledger(path, budget=100.0) as ledger:
        for server_round in range(1, 20):
            train_round(ledger, plan, server_round)
        last = reserve(ledger, plan, 20)

        assert reserve(ledger, plan, 20) == last


def test_an_honest_run_is_granted_although_the_accountant_errs_from_step_to_step(
    path: Path, plan: PrivacyPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grant_module, "compute_epsilon", lambda *_: 3.001)  # its error, between round 19 and 20
    monkeypatch.setattr(grant_module, "compute_epsilon_rdp", lambda *_: 3.3)
    monkeypatch.setattr(grant_module, "compute_epsilon_adaptive", lambda *_: 3.001)

    with open_ledger(path, budget=100.0) as ledger:
        for server_round in range(1, 21):
            train_round(ledger, plan, server_round)

        with pytest.raises(BudgetExceededError, match="the run's own target"):
            reserve(ledger, plan, 20)


def test_the_first_round_of_a_run_fixes_its_plan_so_that_its_target_cannot_be_raised_later(
    path: Path, plan: PrivacyPlan
) -> None:
    with open_ledger(path, budget=100.0) as ledger:
        reserve(ledger, plan, 1)

        with pytest.raises(LedgerError, match="another plan"):
            reserve(ledger, replace(plan, epsilon=50.0), 2)

        assert ledger.load_plan("7") == plan


# --- plans chosen after seeing earlier outputs -----------------------------------------------------------------------


def test_once_plans_differ_the_budget_is_counted_by_a_bound_that_allows_them_to_depend_on_outputs(
    path: Path, plan: PrivacyPlan
) -> None:
    other = replace(plan, noise_multiplier=plan.noise_multiplier * 1.5)
    both = [plan.round_spend, other.round_spend]
    fixed_in_advance, chosen_on_the_way = compute_epsilon(both, DELTA), compute_epsilon_adaptive(both, DELTA)
    assert compute_epsilon_rdp(both, DELTA) < chosen_on_the_way

    with open_ledger(path, budget=(fixed_in_advance + chosen_on_the_way) / 2) as ledger:
        reserve(ledger, plan)
        with pytest.raises(BudgetExceededError) as raised:
            reserve(ledger, other, run="8")
        assert raised.value.epsilon_requested == chosen_on_the_way
    with open_ledger(path, budget=chosen_on_the_way) as ledger:
        reserve(ledger, other, run="8")
        assert ledger.spent() == chosen_on_the_way
        assert ledger.remaining() == 0.0


# --- crashes and other processes -------------------------------------------------------------------------------------


def test_a_process_killed_between_reserve_and_settle_leaves_its_charge(path: Path, plan: PrivacyPlan) -> None:
    def reserve_and_die() -> None:
        reserve(open_ledger(path), plan)
        os.kill(os.getpid(), signal.SIGKILL)

    assert wait(fork(reserve_and_die)) == -signal.SIGKILL

    with open_ledger(path) as ledger:
        assert ledger.history() == [plan.round_spend]
        assert ledger.entries()[0].steps_run is None


def test_a_process_killed_in_the_middle_of_reserving_leaves_a_usable_ledger(
    path: Path, plan: PrivacyPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with open_ledger(path) as ledger:
        reserve(ledger, plan, 1)
    with monkeypatch.context() as in_child:
        in_child.setattr(Limits, "grant", die)
        assert wait(fork(lambda: reserve(open_ledger(path), plan, 2))) == -signal.SIGKILL

    with open_ledger(path) as ledger:
        assert len(ledger.entries()) == 1
        reserve(ledger, plan, 2)
        assert len(ledger.entries()) == 2


def test_several_processes_at_once_cannot_overspend(
    path: Path, plan: PrivacyPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Arrange: room for two rounds; four processes, each pausing between its check and its charge.
    budget = epsilon_of_rounds(plan, 2)
    open_ledger(path, budget).close()

    def check_slowly(history: list[Spend], delta: float) -> float:
        bound = compute_epsilon_rdp(history, delta)
        time.sleep(0.1)
        return bound

    monkeypatch.setattr(grant_module, "compute_epsilon_rdp", check_slowly)

    def spend(run: str) -> None:
        with open_ledger(path, budget) as ledger:
            reserve(ledger, plan, run=run)

    children = [fork(lambda run=run: spend(run)) for run in "abcd"]  # type: ignore[misc]
    ends = sorted(wait(child) for child in children)

    assert ends == [RESERVED, RESERVED, OVER_BUDGET, OVER_BUDGET]
    with open_ledger(path, budget) as ledger:
        assert ledger.spent() <= budget
        assert len(ledger.entries()) == 2


def test_several_processes_that_create_the_ledger_at_once_share_one(path: Path, plan: PrivacyPlan) -> None:
    def spend(run: str) -> None:
        with open_ledger(path) as ledger:
            reserve(ledger, plan, run=run)

    children = [fork(lambda run=run: spend(run)) for run in "abcd"]  # type: ignore[misc]

    assert [wait(child) for child in children] == [RESERVED] * 4
    with open_ledger(path) as ledger:
        assert sorted(entry.run for entry in ledger.entries()) == ["a", "b", "c", "d"]


def test_a_refused_round_leaves_the_ledger_unlocked_for_others(path: Path, plan: PrivacyPlan) -> None:
    with open_ledger(path, budget=0.0) as ledger:
        with pytest.raises(BudgetExceededError):
            reserve(ledger, plan)

        with open_ledger(path, budget=3.0) as other:
            reserve(other, plan)
        assert len(ledger.entries()) == 1


# --- plans and display -----------------------------------------------------------------------------------------------


def test_a_stored_plan_is_the_same_after_a_restart(path: Path, plan: PrivacyPlan) -> None:
    with open_ledger(path) as ledger:
        ledger.store_plan("7", "heart", plan, fingerprint="f-1")

    with open_ledger(path) as ledger:
        assert ledger.load_plan("7") == plan
        assert ledger.load_plan("8") is None
        ledger.store_plan("7", "heart", plan, fingerprint="f-1")


def test_another_plan_or_study_for_a_known_run_is_refused(path: Path, plan: PrivacyPlan) -> None:
    other = replace(plan, clip_norm=2.0)
    with open_ledger(path) as ledger:
        ledger.store_plan("7", "heart", plan, fingerprint="f-1")

        with pytest.raises(LedgerError, match="another plan"):
            ledger.store_plan("7", "heart", other, fingerprint="f-1")
        with pytest.raises(LedgerError, match="another plan"):
            ledger.store_plan("7", "lung", plan, fingerprint="f-1")
        with pytest.raises(LedgerError, match="another plan"):
            reserve(ledger, other)

        assert ledger.load_plan("7") == plan
        assert ledger.entries() == []


@pytest.mark.parametrize(("run", "study"), [("", "heart"), ("7", "")])
def test_a_plan_without_run_or_study_is_refused(path: Path, plan: PrivacyPlan, run: str, study: str) -> None:
    with open_ledger(path) as ledger, pytest.raises(PrivacySettingError, match="expected a name"):
        ledger.store_plan(run, study, plan, fingerprint="f-1")


def test_an_entry_tells_what_was_charged_for_whom_and_when(path: Path, plan: PrivacyPlan) -> None:
    with open_ledger(path) as ledger:
        reserve(ledger, plan, 1)
        ledger.settle(run="7", server_round=1, steps_run=3)
        reserve(ledger, plan, 2)
        settled, still_open = ledger.entries()

    assert (settled.run, settled.server_round, settled.attempt, settled.study) == ("7", 1, 1, "heart")
    assert (settled.noise_multiplier, settled.sampling_rate) == (plan.noise_multiplier, 1.0)
    assert (settled.clip_norm, settled.steps_reserved, settled.steps_run) == (1.0, 4, 3)
    assert (still_open.server_round, still_open.steps_run, still_open.settled_at) == (2, None, None)
    for moment in (settled.reserved_at, settled.settled_at, still_open.reserved_at):
        assert moment is not None
        assert abs(datetime.now(UTC) - datetime.fromisoformat(moment)) < timedelta(minutes=5)


# --- a file that fails -----------------------------------------------------------------------------------------------


def test_a_full_disk_refuses_the_charge_and_loses_nothing(path: Path, plan: PrivacyPlan) -> None:
    def reserve_on_a_full_disk() -> None:
        largest = path.stat().st_size  # no file may grow beyond it from here on, and Python ignores SIGXFSZ
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
        with open_ledger(path) as ledger:
            for server_round in range(2, 20):
                reserve(ledger, plan, server_round)

    with open_ledger(path) as ledger:
        reserve(ledger, plan)

    assert wait(fork(reserve_on_a_full_disk)) == REFUSED

    with open_ledger(path) as ledger:
        assert ledger.history() == [plan.round_spend] * len(ledger.entries())
        before = len(ledger.entries())
        reserve(ledger, plan, before + 1)
        assert ledger.verify().num_rows == 2 + before + 1


def test_a_file_that_may_not_grow_refuses_the_charge(path: Path, plan: PrivacyPlan) -> None:
    with open_ledger(path) as ledger:
        reserve(ledger, plan)
        database = ledger._store._connection
        pages = database.execute("PRAGMA page_count").fetchone()[0]
        database.execute(f"PRAGMA max_page_count = {pages}")

        with pytest.raises(LedgerError, match=r"full; nothing was changed"):
            ledger.store_plan("8", "heart" * 10_000, plan, fingerprint="f-1")

        assert ledger.load_plan("8") is None
        reserve(ledger, plan, 2)
        assert ledger.history() == [plan.round_spend] * 2


def test_a_closed_ledger_says_so(path: Path, plan: PrivacyPlan) -> None:
    ledger = open_ledger(path)
    ledger.close()
    ledger.close()

    with pytest.raises(LedgerError, match="closed"):
        reserve(ledger, plan)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM chain",
        "DELETE FROM chain WHERE number = (SELECT max(number) FROM chain)",
        "UPDATE chain SET content = '{}'",
        "UPDATE chain SET hash = '' WHERE number = 2",
        "UPDATE OR REPLACE chain SET number = 1 WHERE number = 2",
        "INSERT OR REPLACE INTO chain SELECT number, '{}', hash FROM chain WHERE number = 2",
        "INSERT INTO chain VALUES (0, '{}', '')",
        "INSERT INTO chain VALUES (-1, '{}', '')",
        "INSERT INTO chain VALUES (NULL, '{}', '')",
        "INSERT INTO chain VALUES (99, '{}', '')",
    ],
)
def test_the_file_itself_refuses_to_forget_or_to_change_a_charge(path: Path, plan: PrivacyPlan, statement: str) -> None:
    with open_ledger(path) as ledger:
        ledger.store_plan("7", "heart", plan, fingerprint="f-1")
        reserve(ledger, plan, 1)
        ledger.settle(run="7", server_round=1, steps_run=3)
        reserve(ledger, plan, 2)
        before = ledger.entries()

        other_program = sqlite3.connect(path)
        with pytest.raises(sqlite3.Error, match=r"a row can"):
            other_program.execute(statement)
        other_program.close()

        assert ledger.entries() == before
        assert ledger.load_plan("7") == plan
