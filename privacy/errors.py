"""Every exception of the `privacy` package.

    PrivacyError
    ├── PrivacySettingError     a number, a plan or a call breaks a rule        (also a ValueError)
    ├── BudgetExceededError     the hospital's budget, or the run's own target, does not allow the round
    ├── LedgerError             the ledger is absent, damaged, older than its receipt, or contradicts what was asked
    └── UnsupportedModelError   the model or its loss cannot be trained privately

The texts are for the hospital's own log: they may name paths and settings, and must not be sent anywhere.
"""


class PrivacyError(Exception):
    """Base of every exception of this package."""


class PrivacySettingError(PrivacyError, ValueError):
    """A setting is missing, of the wrong type, outside its range, or contradicts another one."""


class BudgetExceededError(PrivacyError):
    """The hospital's budget, or the run's own target, does not allow the round; nothing was charged.

    Attributes:
        epsilon_spent: Epsilon of everything charged before this round, at the ledger's delta; if ``run`` is given, of
            that run alone, at its plan's delta.
        epsilon_budget: The hospital's limit; if ``run`` is given, that run's target.
        epsilon_requested: As ``epsilon_spent``, this whole round included; not even one step of it fits.
        run: The run whose own target is exhausted; None if the hospital's budget is.
    """

    def __init__(
        self, *, epsilon_spent: float, epsilon_budget: float, epsilon_requested: float, run: str | None = None
    ) -> None:
        """Keep the numbers and put them in words."""
        whose, limit = "", "budget"
        if run is not None:
            whose, limit = f" of run {run!r}", "run's own target"
            advice = "the run has used up what was agreed; no budget changes that; start a new run"
        elif epsilon_budget == 0:
            advice = "a budget of 0 refuses every private round; raise it in the site's settings to take part"
        else:
            advice = "not one step of it fits; ask for more noise, or raise the budget"
        super().__init__(
            f"epsilon{whose} after this round={epsilon_requested:.4f} (before it {epsilon_spent:.4f}); "
            f"expected at most the {limit} of {epsilon_budget:.4f}; {advice}"
        )
        self.epsilon_spent = epsilon_spent
        self.epsilon_budget = epsilon_budget
        self.epsilon_requested = epsilon_requested
        self.run = run


class LedgerError(PrivacyError):
    """The ledger is absent, damaged, foreign or older than its receipt, or what was asked contradicts what it says."""


class UnsupportedModelError(PrivacyError):
    """The model or its loss cannot be trained with differential privacy."""
