"""A hospital reads what it has spent from its own ledger, and reading changes nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.app import Message

from fl_client.budget import SiteBudget, read_budgets
from fl_contract.errors import SettingError
from fl_contract.messages import METRICS, PLAN
from privacy.accounting import compute_epsilon
from privacy.errors import LedgerError
from privacy.ledger_book import LedgerEntry


@pytest.fixture
def spent_epsilons(ask: Callable[..., Message], train: Callable[..., Message]) -> list[float]:
    """What the replies said after two rounds of one run and one of another."""
    told = []
    for run, num_rounds in (("run-1", 2), ("run-2", 1)):
        ask(PLAN, run=run)
        replies = [train(server_round, run=run) for server_round in range(1, num_rounds + 1)]
        told.append(replies[-1].content.metric_records[METRICS]["epsilon"])
    return [float(epsilon) for epsilon in told if not isinstance(epsilon, list)]


@pytest.fixture
def spent(spent_epsilons: list[float], folder: Path) -> SiteBudget:
    (budget,) = read_budgets(folder / "site.toml")
    return budget


def test_the_numbers_are_the_ledgers(spent: SiteBudget, charges: Callable[[], list[LedgerEntry]]) -> None:
    whole = compute_epsilon([entry.spend for entry in charges()], 0.001)

    assert (spent.name, spent.budget, spent.delta) == ("hospital-1", 10.0, 0.001)
    assert spent.spent == whole
    assert spent.remaining == 10.0 - whole


def test_each_run_is_told_as_its_replies_told_it(spent: SiteBudget, spent_epsilons: list[float]) -> None:
    assert [(run.study, run.run, run.rounds, run.steps) for run in spent.runs] == [
        ("breast-cancer", "run-1", 2, 8),
        ("breast-cancer", "run-2", 1, 4),
    ]
    assert [run.epsilon for run in spent.runs] == spent_epsilons


def test_runs_compose_to_less_than_their_sum(spent: SiteBudget) -> None:
    epsilons = [run.epsilon for run in spent.runs]

    assert max(epsilons) < spent.spent < sum(epsilons)


def test_an_interrupted_round_counts_in_full(
    ask: Callable[..., Message], train: Callable[..., Message], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> int:
        raise RuntimeError

    ask(PLAN)
    monkeypatch.setattr("fl_client.private_round.train_with_privacy", crash)
    train(1)

    (budget,) = read_budgets(folder)

    assert [(run.rounds, run.steps) for run in budget.runs] == [(1, 4)]
    assert budget.spent > 0.5


def test_a_folder_shows_every_hospital_in_it(spent: SiteBudget, tmp_path: Path) -> None:
    budgets = read_budgets(tmp_path)

    assert [(budget.name, len(budget.runs)) for budget in budgets] == [
        ("hospital-1", 2),
        ("hospital-2", 0),
        ("hospital-3", 0),
        ("hospital-4", 0),
    ]


def test_a_hospital_that_never_trained_privately_has_spent_nothing_and_gets_no_ledger(
    ask: Callable[..., Message], train: Callable[..., Message], tmp_path: Path
) -> None:
    overrides = {"privacy.mechanism": "none", "simulation.trainers": "pooled"}
    ask(PLAN, site="pooled", overrides=overrides)
    train(1, site="pooled", overrides=overrides)

    budgets = read_budgets(tmp_path)

    assert [budget.name for budget in budgets][-1] == "pooled"
    assert {(budget.spent, budget.remaining, budget.runs) for budget in budgets} == {(0.0, 10.0, ())}
    assert list(tmp_path.rglob("ledger.sqlite*")) == []


def test_a_plan_alone_costs_nothing(ask: Callable[..., Message], folder: Path) -> None:
    ask(PLAN)

    (budget,) = read_budgets(folder)

    assert (budget.spent, [run.epsilon for run in budget.runs]) == (0.0, [0.0])


def test_reading_changes_no_file(spent: SiteBudget, folder: Path) -> None:
    def contents() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    before = contents()

    read_budgets(folder)

    assert contents() == before


def test_a_place_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"nowhere: does not exist; give the hospital's site\.toml or its folder"):
        read_budgets(tmp_path / "nowhere")


def test_a_folder_without_a_hospital_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"holds no site\.toml"):
        read_budgets(tmp_path)


def test_a_ledger_that_cannot_be_trusted_is_not_read_as_nothing_spent(spent: SiteBudget, folder: Path) -> None:
    (folder / "ledger.sqlite").write_bytes(b"")

    with pytest.raises(LedgerError, match="a new, empty ledger would forget what was spent"):
        read_budgets(folder)
