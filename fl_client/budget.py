"""What a hospital has spent of its privacy budgets, read from its own ledger; and what is entered there by hand."""

from dataclasses import dataclass
from pathlib import Path

from fl_client.settings import SiteSettings, read_site_settings
from fl_client.site import has_ledger, open_ledger, training_cohort
from fl_client.site_files import site_files
from privacy.accounting import AnySpend, ExternalSpend, compute_epsilon
from privacy.ledger import Ledger, LedgerState, NextRound
from privacy.ledger_book import LedgerEntry


@dataclass(frozen=True, kw_only=True)
class RunSpend:
    """What one run has spent, and what it would spend next.

    Attributes:
        study: Its study.
        run: Its identity.
        rounds: Rounds charged.
        steps: Noisy steps charged.
        epsilon: Of this run alone, at the ledger's delta.
        steps_per_round: Of its plan.
        next_round: What its next round would cost; None after the last one.
    """

    study: str
    run: str
    rounds: int
    steps: int
    epsilon: float
    steps_per_round: int
    next_round: NextRound | None


@dataclass(frozen=True, kw_only=True)
class StudySpend:
    """What all runs of a study have spent, and what was entered for it by hand.

    Attributes:
        study: Its name.
        epsilon: Of this study alone, at the ledger's delta.
        outside: Spends that were entered by hand.
    """

    study: str
    epsilon: float
    outside: int


@dataclass(frozen=True, kw_only=True)
class SiteBudget:
    """A hospital's budget for one cohort of its patients.

    Attributes:
        name: Of the hospital.
        cohort: Of the patients.
        budget: Epsilon that its policy allows over all studies.
        delta: Of every epsilon here.
        spent: Epsilon of everything charged; less than the sum over runs, since runs compose.
        remaining: Budget less spent, at least 0.
        runs: In the order they began.
        studies: In the order they began.
    """

    name: str
    cohort: str
    budget: float
    delta: float
    spent: float
    remaining: float
    runs: tuple[RunSpend, ...]
    studies: tuple[StudySpend, ...]


def read_budgets(place: Path) -> list[SiteBudget]:
    """Budgets of the hospital whose ``site.toml`` is given, or of every hospital in a folder; one for each cohort.

    Guarantees:
        - Creates nothing: a hospital without a ledger has spent nothing.

    Raises:
        SettingError: There is no ``site.toml``, or it breaks a rule.
        LedgerError: A ledger cannot be trusted.
    """
    return [budget for path in site_files(place) for budget in _read_site(path)]


def verify_ledgers(place: Path) -> dict[str, LedgerState | None]:
    """Check every row, the receipt and the arithmetic of every ledger in a place; None where there is none.

    Raises:
        SettingError: There is no ``site.toml``, or it breaks a rule.
        LedgerError: Names the first row that is broken, or what else is.
    """
    states: dict[str, LedgerState | None] = {}
    for path in site_files(place):
        settings = read_site_settings(path)
        states[settings.name] = None
        if has_ledger(settings, path.parent):
            with open_ledger(settings, path.parent, cohort=training_cohort(settings)) as ledger:
                states[settings.name] = ledger.verify()
    return states


def charge_by_hand(path: Path, *, study: str, spend: ExternalSpend, reason: str) -> SiteBudget:
    """Enter a spend that was made elsewhere on the patients the hospital trains on.

    Args:
        path: The hospital's ``site.toml``.
        study: What it was for.
        spend: What was spent.
        reason: Why it is entered.

    Returns:
        The cohort's budget after it.
    """
    settings = read_site_settings(path)
    with open_ledger(settings, path.parent, cohort=training_cohort(settings)) as ledger:
        ledger.charge(study=study, spend=spend, reason=reason)
    return _read_cohort(settings, path.parent, training_cohort(settings))


def _read_site(path: Path) -> list[SiteBudget]:
    settings = read_site_settings(path)
    if not has_ledger(settings, path.parent):
        return [_nothing_spent(settings)]
    with open_ledger(settings, path.parent, cohort=training_cohort(settings)) as ledger:
        cohorts = ledger.cohorts()
    return [_read_cohort(settings, path.parent, cohort) for cohort in cohorts or [training_cohort(settings)]]


def _nothing_spent(settings: SiteSettings) -> SiteBudget:
    policy = settings.policy
    return SiteBudget(
        name=settings.name,
        cohort=training_cohort(settings),
        budget=policy.epsilon_budget,
        delta=policy.delta,
        spent=0.0,
        remaining=policy.epsilon_budget,
        runs=(),
        studies=(),
    )


def _read_cohort(settings: SiteSettings, folder: Path, cohort: str) -> SiteBudget:
    with open_ledger(settings, folder, cohort=cohort) as ledger:
        return SiteBudget(
            name=settings.name,
            cohort=cohort,
            budget=settings.policy.epsilon_budget,
            delta=settings.policy.delta,
            spent=ledger.spent(),
            remaining=ledger.remaining(),
            runs=_runs(ledger),
            studies=_studies(ledger, settings.policy.delta),
        )


def _runs(ledger: Ledger) -> tuple[RunSpend, ...]:
    by_run: dict[str, list[LedgerEntry]] = {run: [] for run in ledger.plans()}
    for entry in ledger.entries():
        by_run[entry.run].append(entry)
    return tuple(_run_spend(ledger, run, entries) for run, entries in by_run.items())


def _run_spend(ledger: Ledger, run: str, entries: list[LedgerEntry]) -> RunSpend:
    stored = ledger.plans()[run]
    plan = stored.plan
    is_open = len({entry.server_round for entry in entries}) < plan.num_rounds
    return RunSpend(
        study=stored.study,
        run=run,
        rounds=len(entries),
        steps=sum(entry.spend.steps for entry in entries),
        epsilon=ledger.spent_by_run(run),
        steps_per_round=plan.steps_per_round,
        next_round=ledger.next_round(run, stored.study, plan) if is_open else None,
    )


def _studies(ledger: Ledger, delta: float) -> tuple[StudySpend, ...]:
    spends: dict[str, list[AnySpend]] = {}
    for entry in ledger.entries():
        spends.setdefault(entry.study, []).append(entry.spend)
    outside = ledger.outside_charges()
    for charge in outside:
        spends.setdefault(charge.study, []).append(charge.spend)
    return tuple(
        StudySpend(
            study=study,
            epsilon=compute_epsilon(history, delta),
            outside=sum(charge.study == study for charge in outside),
        )
        for study, history in spends.items()
    )
