"""Every exception of the `privacy` package.

    PrivacyError
    ├── PrivacySettingError     a number, a plan or a call breaks a rule        (also a ValueError)
    ├── BudgetExceededError     the hospital's budget does not allow the round
    ├── LedgerError             the ledger is absent, damaged, or contradicts what was asked
    └── UnsupportedModelError   the model or its loss cannot be trained privately

The texts are for the hospital's own log: they may name paths and settings, and must not be sent anywhere.
"""


class PrivacyError(Exception):
    """Base of every exception of this package."""


class PrivacySettingError(PrivacyError, ValueError):
    """A setting is missing, of the wrong type, outside its range, or contradicts another one."""


class BudgetExceededError(PrivacyError):
    """The hospital's budget does not allow the round; nothing was charged.

    Attributes:
        epsilon_spent: Epsilon of everything charged before this round, at the ledger's delta.
        epsilon_budget: The hospital's limit.
        epsilon_requested: Epsilon that everything charged, this round included, would reach.
    """

    def __init__(self, *, epsilon_spent: float, epsilon_budget: float, epsilon_requested: float) -> None:
        """Keep the three numbers and put them in words."""
        if epsilon_budget == 0:
            advice = "a budget of 0 refuses every private round; raise it in the site's settings to take part"
        else:
            advice = "the round is refused; ask for fewer steps or more noise, or raise the budget"
        super().__init__(
            f"epsilon after this round={epsilon_requested:.4f} (before it {epsilon_spent:.4f}); "
            f"expected at most the budget of {epsilon_budget:.4f}; {advice}"
        )
        self.epsilon_spent = epsilon_spent
        self.epsilon_budget = epsilon_budget
        self.epsilon_requested = epsilon_requested


class LedgerError(PrivacyError):
    """The ledger is absent, damaged or not a ledger, or what was asked contradicts what it records."""


class UnsupportedModelError(PrivacyError):
    """The model or its loss cannot be trained with differential privacy."""
