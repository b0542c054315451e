"""The exceptions of privacy form one tree and say what to do."""

import pytest

from privacy.errors import (
    BudgetExceededError,
    LedgerError,
    PrivacyError,
    PrivacySettingError,
    UnsupportedModelError,
)


@pytest.mark.parametrize("kind", [BudgetExceededError, LedgerError, PrivacySettingError, UnsupportedModelError])
def test_every_exception_can_be_caught_as_privacy_error(kind: type[Exception]) -> None:
    assert issubclass(kind, PrivacyError)


def test_an_exceeded_budget_carries_its_three_numbers() -> None:
    error = BudgetExceededError(epsilon_spent=2.5, epsilon_budget=3.0, epsilon_requested=3.25)

    assert (error.epsilon_spent, error.epsilon_budget, error.epsilon_requested) == (2.5, 3.0, 3.25)
    for number in ("2.5000", "3.0000", "3.2500"):
        assert number in str(error)


def test_a_budget_of_zero_is_explained_differently() -> None:
    error = BudgetExceededError(epsilon_spent=0.0, epsilon_budget=0.0, epsilon_requested=1.0)

    assert "a budget of 0 refuses every private round" in str(error)


def test_an_exhausted_target_names_its_run_and_does_not_advise_to_raise_the_budget() -> None:
    error = BudgetExceededError(epsilon_spent=2.9, epsilon_budget=3.0, epsilon_requested=3.1, run="7")

    assert error.run == "7"
    assert "epsilon of run '7' after this round=3.1000" in str(error)
    assert "the run's own target of 3.0000" in str(error)
    assert "raise" not in str(error)
