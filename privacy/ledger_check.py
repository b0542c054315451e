"""The only place that holds every charge of a ledger against the plan that it was made for."""

from privacy.errors import LedgerError, PrivacySettingError
from privacy.grant import keeps_target
from privacy.ledger_book import Book
from privacy.plan import PrivacyPlan


def check_charges(book: Book) -> None:
    """Build every plan again, compare each charge with its own, and compute every run's epsilon again.

    Raises:
        LedgerError: Names the first row that is broken.
    """
    plans = {key: _build(stored.text, stored.number) for key, stored in book.plans.items()}
    for entry in book.entries:
        plan = plans[entry.cohort, entry.run]
        found = (entry.noise_multiplier, entry.sampling_rate, entry.clip_norm, entry.unit)
        if found != (plan.noise_multiplier, plan.sampling_rate, plan.clip_norm, plan.unit):
            raise LedgerError(f"row {entry.number} charges another noise, rate, clip norm or unit than its plan")
        if entry.steps_reserved > plan.steps_per_round or entry.server_round > plan.num_rounds:
            raise LedgerError(f"row {entry.number} charges more steps or rounds than its plan has")
    for (cohort, run), plan in plans.items():
        if not keeps_target(plan, book.run_history(cohort, run)):
            row = max(entry.number for entry in book.entries if (entry.cohort, entry.run) == (cohort, run))
            raise LedgerError(f"row {row} takes run {run!r} above its plan's epsilon of {plan.epsilon}")


def _build(text: str, number: int) -> PrivacyPlan:
    try:
        return PrivacyPlan.from_json(text)
    except PrivacySettingError as error:
        raise LedgerError(f"row {number} holds no valid plan: {error}") from error
