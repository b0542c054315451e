"""What a hospital has spent of its privacy budget, read from its own ledger."""

from dataclasses import dataclass
from pathlib import Path

from fl_client.settings import SiteSettings, read_site_settings
from fl_client.site import LEDGER_FILE, SITE_FILE, open_ledger
from fl_contract.errors import SettingError
from privacy.ledger import LedgerEntry


@dataclass(frozen=True, kw_only=True)
class RunSpend:
    """What one run has spent.

    Attributes:
        study: Its study.
        run: Its identity.
        rounds: Rounds charged.
        steps: Noisy steps charged.
        epsilon: Of this run alone, at the ledger's delta.
    """

    study: str
    run: str
    rounds: int
    steps: int
    epsilon: float


@dataclass(frozen=True, kw_only=True)
class SiteBudget:
    """A hospital's budget.

    Attributes:
        name: Of the hospital.
        budget: Epsilon that its policy allows over all studies.
        delta: Of every epsilon here.
        spent: Epsilon of everything charged; less than the sum over runs, since runs compose.
        remaining: Budget less spent, at least 0.
        runs: In the order they began.
    """

    name: str
    budget: float
    delta: float
    spent: float
    remaining: float
    runs: tuple[RunSpend, ...]


def read_budgets(place: Path) -> list[SiteBudget]:
    """Budgets of the hospital whose ``site.toml`` is given, or of every hospital in a folder.

    Guarantees:
        - Creates nothing: a hospital without a ledger has spent nothing.

    Raises:
        SettingError: There is no ``site.toml``, or it breaks a rule.
        LedgerError: A ledger cannot be trusted.
    """
    if not place.exists():
        raise SettingError(f"{place}: does not exist; give the hospital's {SITE_FILE} or its folder")
    files = [place] if place.is_file() else sorted(place.rglob(SITE_FILE))
    if not files:
        raise SettingError(f"{place}: holds no {SITE_FILE}; give the hospital's file or its folder")
    return [_read_budget(path) for path in files]


def _read_budget(path: Path) -> SiteBudget:
    settings = read_site_settings(path)
    if not (path.parent / LEDGER_FILE).exists():
        return _budget(settings, spent=0.0, remaining=settings.policy.epsilon_budget, runs=())
    with open_ledger(settings, path.parent) as ledger:
        by_run: dict[str, list[LedgerEntry]] = {}
        for entry in ledger.entries():
            by_run.setdefault(entry.run, []).append(entry)
        runs = tuple(
            RunSpend(
                study=entries[0].study,
                run=run,
                rounds=len(entries),
                steps=sum(entry.spend.steps for entry in entries),
                epsilon=ledger.spent_by_run(run),
            )
            for run, entries in by_run.items()
        )
        return _budget(settings, spent=ledger.spent(), remaining=ledger.remaining(), runs=runs)


def _budget(settings: SiteSettings, *, spent: float, remaining: float, runs: tuple[RunSpend, ...]) -> SiteBudget:
    return SiteBudget(
        name=settings.name,
        budget=settings.policy.epsilon_budget,
        delta=settings.policy.delta,
        spent=spent,
        remaining=remaining,
        runs=runs,
    )
