"""Each cohort of patients has a budget of its own, whatever it is called, over every study and every other tool."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant

from privacy.accounting import AnySpend, ExternalSpend, Spend, compute_epsilon, compute_epsilon_adaptive
from privacy.errors import BudgetExceededError, LedgerError, PrivacySettingError
from privacy.ledger import Ledger, LedgerTerms
from privacy.plan import PrivacyPlan

Open = Callable[..., Ledger]


def reserve(
    ledger: Ledger, plan: PrivacyPlan, server_round: int = 1, run: str = "7", *, fingerprint: str = "f-1"
) -> int:
    """Steps granted."""
    reservation = ledger.reserve(run=run, server_round=server_round, study="heart", plan=plan, fingerprint=fingerprint)
    return reservation.spend.steps


def budget_of(plan: PrivacyPlan, steps: int) -> float:
    return compute_epsilon([replace(plan.round_spend, steps=steps)], 1e-3)


# --- cohorts ---------------------------------------------------------------------------------------------------------


def test_disjoint_cohorts_do_not_draw_on_each_other_and_one_run_may_have_a_plan_for_each(
    open_at: Open, cheap_plan: PrivacyPlan
) -> None:
    budget = budget_of(cheap_plan, 4)
    louder = replace(cheap_plan, noise_multiplier=40.0)
    with (
        open_at(epsilon_budget=budget) as trained,
        open_at(cohort="adults/held-out", epsilon_budget=budget) as held_out,
    ):
        assert reserve(trained, cheap_plan, fingerprint="f-1") == 4
        assert reserve(held_out, louder, fingerprint="f-2") == 4

        with pytest.raises(BudgetExceededError):
            reserve(trained, cheap_plan, 2)

        assert trained.load_plan("7") == cheap_plan
        assert held_out.load_plan("7") == louder
        assert [entry.cohort for entry in held_out.entries()] == ["adults/held-out"]
        assert trained.spent() == budget


def test_another_name_for_the_same_records_gives_no_new_budget(open_at: Open, cheap_plan: PrivacyPlan) -> None:
    with open_at() as ledger:
        fingerprint = ledger.fingerprint([b"1", b"2"])
        reserve(ledger, cheap_plan, fingerprint=fingerprint)

    with open_at(cohort="grown-ups") as ledger:
        again = ledger.fingerprint([b"2", b"1"])
        for act in (
            lambda: ledger.store_plan("8", "heart", cheap_plan, fingerprint=again),
            lambda: reserve(ledger, cheap_plan, run="8", fingerprint=again),
        ):
            with pytest.raises(LedgerError, match="cohort 'adults' was charged with the same records"):
                act()
        assert ledger.cohorts() == ["adults"]
        assert reserve(ledger, cheap_plan, run="8", fingerprint=ledger.fingerprint([b"1"])) == 4


def test_a_cohort_whose_records_changed_keeps_its_history(open_at: Open, cheap_plan: PrivacyPlan) -> None:
    with open_at() as ledger:
        for server_round, fingerprint in ((1, "f-1"), (2, "f-2")):
            reserve(ledger, cheap_plan, server_round, fingerprint=fingerprint)

        assert [entry.fingerprint for entry in ledger.entries()] == ["f-1", "f-2"]
        assert ledger.spent() == budget_of(cheap_plan, 8)


def test_fingerprints_of_two_ledgers_cannot_be_compared(open_at: Open, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    terms = LedgerTerms(site="st-anna", cohort="adults", epsilon_budget=3.0, delta=1e-3, policy="policy-1")
    other = Ledger(tmp_path / "other" / "ledger.sqlite", terms, receipt=tmp_path / "other" / "receipts" / "receipt")
    with open_at() as ledger, other:
        assert ledger.fingerprint([b"1"]) == ledger.fingerprint([b"1"]) != other.fingerprint([b"1"])
        assert ledger.fingerprint([b"1"]) != ledger.fingerprint([b"1", b"1"])


def test_an_entry_tells_unit_mechanism_policy_and_fingerprint(open_at: Open, cheap_plan: PrivacyPlan) -> None:
    with open_at() as ledger:
        reserve(ledger, cheap_plan)
        (entry,) = ledger.entries()

    assert (entry.unit, entry.mechanism, entry.policy, entry.fingerprint) == ("record", "gaussian", "policy-1", "f-1")
    assert entry.number == 3


@pytest.mark.parametrize("changed", [{"site": ""}, {"cohort": " "}, {"policy": ""}, {"epsilon_budget": -1.0}])
def test_terms_without_a_name_or_a_limit_are_refused(open_at: Open, changed: dict[str, object]) -> None:
    with pytest.raises(PrivacySettingError, match=next(iter(changed))):
        open_at(**changed)


# --- a part of a round -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [1, 2, 3, 4])
def test_the_largest_part_of_a_round_that_fits_is_granted_and_charged(
    open_at: Open, cheap_plan: PrivacyPlan, room: int
) -> None:
    with open_at(epsilon_budget=budget_of(cheap_plan, 4 + room)) as ledger:
        reserve(ledger, cheap_plan, 1)

        assert ledger.next_round("7", "heart", cheap_plan).steps == room
        assert reserve(ledger, cheap_plan, 2) == room

        assert [entry.steps_reserved for entry in ledger.entries()] == [4, room]
        with pytest.raises(BudgetExceededError, match="not one step of it fits"):
            reserve(ledger, cheap_plan, 3)
        assert ledger.next_round("7", "heart", cheap_plan).steps == 0
        assert reserve(ledger, cheap_plan, 2) == room  # handed out again, still open
        with pytest.raises(LedgerError, match=f"{room} steps reserved"):
            ledger.settle(run="7", server_round=2, steps_run=room + 1)


def test_a_part_of_a_round_is_found_among_many_steps(open_at: Open, cheap_plan: PrivacyPlan) -> None:
    plan = replace(cheap_plan, steps_per_round=80, num_rounds=1)

    with open_at(epsilon_budget=budget_of(plan, 37)) as ledger:
        assert reserve(ledger, plan) == 37


def test_all_runs_of_a_study_share_its_own_limit_and_other_studies_have_theirs(
    open_at: Open, cheap_plan: PrivacyPlan
) -> None:
    with open_at(epsilon_per_study=budget_of(cheap_plan, 10)) as ledger:
        assert [reserve(ledger, cheap_plan, number) for number in (1, 2)] == [4, 4]

        assert reserve(ledger, cheap_plan, 1, "8") == 2
        with pytest.raises(
            BudgetExceededError, match=f"expected at most the budget of {budget_of(cheap_plan, 10):.4f}"
        ):
            reserve(ledger, cheap_plan, 2, "8")
        other = ledger.reserve(run="9", server_round=1, study="lung", plan=cheap_plan, fingerprint="f-1")
        assert other.spend.steps == 4


def test_the_cost_of_the_next_round_is_told_without_charging_it(open_at: Open, cheap_plan: PrivacyPlan) -> None:
    with open_at() as ledger:
        reserve(ledger, cheap_plan)
        coming = ledger.next_round("7", "heart", cheap_plan)

        assert (coming.steps, len(ledger.entries())) == (4, 1)
        assert (coming.epsilon_before, coming.epsilon_after) == (budget_of(cheap_plan, 4), budget_of(cheap_plan, 8))
        ledger.require_room("7", "heart", cheap_plan)
    with open_at(epsilon_budget=0.01) as ledger, pytest.raises(BudgetExceededError):
        ledger.require_room("7", "heart", cheap_plan)


# --- rounds of another process ---------------------------------------------------------------------------------------


def test_an_open_round_may_be_taken_over_and_settled(
    open_at: Open, cheap_plan: PrivacyPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_at() as ledger:
        reserve(ledger, cheap_plan)
        monkeypatch.setattr("privacy.ledger._HOLDER", "another")
        with pytest.raises(LedgerError, match="reserved by another process"):
            ledger.settle(run="7", server_round=1, steps_run=4)

        ledger.take_over(run="7", server_round=1)
        ledger.settle(run="7", server_round=1, steps_run=4)

        assert ledger.verify().num_rows == 5


@pytest.mark.parametrize("is_settled", [False, True])
def test_only_an_open_round_can_be_taken_over(open_at: Open, cheap_plan: PrivacyPlan, *, is_settled: bool) -> None:
    with open_at() as ledger:
        if is_settled:
            reserve(ledger, cheap_plan)
            ledger.settle(run="7", server_round=1, steps_run=4)

        with pytest.raises(LedgerError, match="run '7' round 1 is not open"):
            ledger.take_over(run="7", server_round=1)


# --- spends of other kinds -------------------------------------------------------------------------------------------


def test_a_spend_made_elsewhere_counts_and_is_never_refused(open_at: Open, cheap_plan: PrivacyPlan) -> None:
    with open_at(epsilon_budget=1.0) as ledger:
        ledger.charge(study="survey", spend=ExternalSpend(epsilon=0.9, delta=1e-4), reason="a table of counts")
        assert ledger.spent() == 0.9
        with pytest.raises(BudgetExceededError):
            reserve(ledger, replace(cheap_plan, noise_multiplier=2.0, epsilon=40.0))
        ledger.charge(study="survey", spend=ExternalSpend(epsilon=5.0), reason="a second table")
        first, second = ledger.outside_charges()

    assert (first.study, first.reason, first.policy) == ("survey", "a table of counts", "policy-1")
    assert (first.spend, second.spend) == (ExternalSpend(epsilon=0.9, delta=1e-4), ExternalSpend(epsilon=5.0))


@pytest.mark.parametrize("changed", [{"study": ""}, {"reason": " "}])
def test_a_charge_without_study_or_reason_is_refused(open_at: Open, changed: dict[str, str]) -> None:
    arguments = {"study": "survey", "spend": ExternalSpend(epsilon=0.5), "reason": "counts"} | changed
    with open_at() as ledger, pytest.raises(PrivacySettingError, match=next(iter(changed))):
        ledger.charge(**arguments)  # type: ignore[arg-type]


def test_three_studies_on_one_cohort_compose_as_the_second_opinion_says(open_at: Open) -> None:
    studies = [(1.0, 0.01, 500), (0.8, 0.02, 200), (1.5, 0.05, 300)]
    google = PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=1e-3)
    with open_at(epsilon_budget=50.0, delta=1e-5) as ledger:
        for run, (noise, rate, steps) in enumerate(studies):
            step = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise))
            google.compose(dp_accounting.SelfComposedDpEvent(step, steps))
            plan = PrivacyPlan(
                epsilon=20.0,
                delta=1e-5,
                clip_norm=1.0,
                sampling_rate=rate,
                steps_per_round=steps,
                num_rounds=1,
                noise_multiplier=noise,
                nominal_units=400,
            )
            reserve(ledger, plan, run=str(run))
        history = ledger.history()
        spent = ledger.spent()

    pld = google.get_epsilon(1e-5)
    assert pld <= compute_epsilon(history, 1e-5) <= 1.01 * pld
    assert spent == compute_epsilon_adaptive(history, 1e-5) > compute_epsilon(history, 1e-5)


def test_spends_of_one_kind_and_external_ones_add_up() -> None:
    gaussian = Spend(noise_multiplier=5.0, sampling_rate=1.0, steps=4)
    history: list[AnySpend] = [ExternalSpend(epsilon=0.5), gaussian, ExternalSpend(epsilon=0.25, delta=4e-4)]

    assert compute_epsilon(history, 1e-3) == pytest.approx(0.75 + compute_epsilon([gaussian], 6e-4))
    assert compute_epsilon_adaptive(history, 1e-3) > compute_epsilon(history, 1e-3)
