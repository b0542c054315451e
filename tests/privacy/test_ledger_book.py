"""A row that contradicts the rows before it is refused, even where every hash fits."""

from collections.abc import Callable
from typing import Any

import pytest

from privacy.accounting import ExternalSpend, Spend
from privacy.errors import LedgerError, PrivacySettingError
from privacy.ledger import Ledger
from privacy.ledger_book import spend_content, spend_from

Contents = list[dict[str, Any]]

# Rows of the ledger `charged`, from 0: whose it is, plan, reservation, settling, reservation.
PLAN, FIRST_ROUND, SETTLED, SECOND_ROUND = 1, 2, 3, 4


@pytest.mark.usefixtures("charged")
@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda rows: rows.append(rows[0]), "row 6 repeats whose ledger it is"),
        (lambda rows: rows.append(rows[PLAN]), "row 6 gives run '7' a second plan"),
        (lambda rows: rows.pop(PLAN), "row 2 charges run '7', which has no plan"),
        (lambda rows: rows.append(rows[SECOND_ROUND]), "row 6 charges a round that is open"),
        (lambda rows: rows.append(rows[FIRST_ROUND]), "row 6 is attempt 1 after 1"),
        (lambda rows: rows[SECOND_ROUND].update(attempt=2), "row 5 is attempt 2 after 0"),
        (lambda rows: rows.append(rows[SETTLED]), r"row 6 is about round \('adults', '7', 1\), which is not open"),
        (lambda rows: rows[SETTLED].update(steps_run=5), "row 4 settles 5 steps of 4 charged"),
        (lambda rows: rows[SETTLED].update(steps_run=-1), "row 4 says what no ledger says: .*steps_run=-1"),
        (lambda rows: rows[FIRST_ROUND].update(steps_reserved=0), "row 3 says .*steps_reserved=0"),
        (lambda rows: rows[FIRST_ROUND].update(noise_multiplier=-1.0), "row 3 says .*noise_multiplier=-1.0"),
        (lambda rows: rows[FIRST_ROUND].update(sampling_rate=0.5), "row 3 calls its mechanism 'gaussian'"),
        (lambda rows: rows[FIRST_ROUND].pop("clip_norm"), "row 3 says what no ledger says: KeyError"),
        (lambda rows: rows[SETTLED].update(kind="forgive"), "row 4 says what no ledger says: KeyError"),
        (lambda rows: rows[SETTLED].pop("transaction"), "row 4 says what no ledger says: KeyError"),
    ],
)
def test_a_row_that_contradicts_those_before_it_is_named(
    open_at: Callable[..., Ledger],
    forge: Callable[[Callable[[Contents], object]], None],
    edit: Callable[[Contents], object],
    told: str,
) -> None:
    forge(edit)

    with pytest.raises(LedgerError, match=told):
        open_at()


@pytest.mark.usefixtures("charged")
@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda rows: rows[PLAN].update(plan="{}"), "row 2 holds no valid plan: plan has missing keys"),
        (lambda rows: rows[FIRST_ROUND].update(noise_multiplier=30.0), "row 3 charges another noise, rate, clip norm"),
        (lambda rows: rows[SECOND_ROUND].update(unit="patient"), "row 5 charges another noise, .* or unit than"),
        (lambda rows: rows[SECOND_ROUND].update(clip_norm=9.0), "row 5 charges another noise, rate, clip norm"),
        (lambda rows: rows[SECOND_ROUND].update(steps_reserved=5), "row 5 charges more steps or rounds than"),
        (lambda rows: rows[SECOND_ROUND].update(server_round=21), "row 5 charges more steps or rounds than"),
    ],
)
def test_verifying_names_a_charge_that_is_not_its_plans(
    open_at: Callable[..., Ledger],
    forge: Callable[[Callable[[Contents], object]], None],
    edit: Callable[[Contents], object],
    told: str,
) -> None:
    forge(edit)

    with open_at() as ledger, pytest.raises(LedgerError, match=told):
        ledger.verify()


@pytest.mark.usefixtures("charged")
def test_verifying_names_the_row_that_takes_a_run_above_its_plans_epsilon(
    open_at: Callable[..., Ledger], forge: Callable[[Callable[[Contents], object]], None]
) -> None:
    def repeat_for_ever(rows: Contents) -> None:
        settling = rows[SETTLED] | {"server_round": 2, "steps_run": 4}
        for attempt in range(1, 150):
            rows.extend([settling | {"attempt": attempt}, rows[SECOND_ROUND] | {"attempt": attempt + 1}])

    forge(repeat_for_ever)

    with (
        open_at() as ledger,
        pytest.raises(LedgerError, match=r"row 303 takes run '7' above its plan's epsilon of 3.0"),
    ):
        ledger.verify()


@pytest.mark.usefixtures("charged")
def test_verifying_recomputes_what_each_cohort_has_spent(open_at: Callable[..., Ledger]) -> None:
    with open_at(cohort="children") as ledger:
        ledger.charge(study="survey", spend=ExternalSpend(epsilon=0.5), reason="an earlier study")
        state = ledger.verify()

        assert state.epsilons == {"adults": open_at().spent(), "children": 0.5}
        assert ledger.cohorts() == ["adults", "children"]


@pytest.mark.parametrize(
    "spend",
    [
        Spend(noise_multiplier=2.0, sampling_rate=1.0, steps=3),
        Spend(noise_multiplier=2.0, sampling_rate=0.5, steps=3),
        ExternalSpend(epsilon=0.5),
        ExternalSpend(epsilon=0.5, delta=1e-6),
    ],
)
def test_a_spend_comes_back_from_its_row(spend: Spend | ExternalSpend) -> None:
    content = spend_content(spend)

    assert spend_from(content["mechanism"], content["parameters"]) == spend


def test_a_spend_under_the_name_of_another_mechanism_is_refused() -> None:
    with pytest.raises(PrivacySettingError, match="mechanism='gaussian'; its parameters are those of 'subsampled"):
        spend_from("gaussian", {"noise_multiplier": 2.0, "sampling_rate": 0.5, "steps": 3})
