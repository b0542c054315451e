"""The hospital's command line shows the ledger's numbers, on one screen of 80 columns."""

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from flwr.app import Message
from typer.testing import CliRunner

from fl_client.budget import read_budgets
from fl_client.cli import app
from fl_contract.messages import PLAN


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs a command on a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def trained(ask: Callable[..., Message], train: Callable[..., Message], tmp_path: Path) -> Path:
    """A folder of four virtual hospitals; the first did two rounds, the second one."""
    for site, num_rounds in (("hospital-1", 2), ("hospital-2", 1)):
        ask(PLAN, site=site, run="0123456789abcdef")
        for server_round in range(1, num_rounds + 1):
            train(server_round, site=site, run="0123456789abcdef")
    return tmp_path


def rows(result: Result) -> list[list[str]]:
    """The words of each line that is a table's row."""
    lines = (line.replace("│", " ").replace("┃", " ").split() for line in result.stdout.splitlines())
    return [line for line in lines if line]


def test_a_folder_of_hospitals_shows_what_each_has_spent_and_has_left(
    run: Callable[..., Result], trained: Path
) -> None:
    result = run("budget", trained)

    assert result.exit_code == 0
    shown = rows(result)
    for budget in read_budgets(trained):
        left = f"{budget.remaining:.3f}"
        assert [budget.name, f"{budget.spent:.3f}", "10.000", left, "0.001", str(len(budget.runs))] in shown
    for budget, rounds in zip(read_budgets(trained)[:2], ("2", "1"), strict=True):
        epsilon = f"{budget.runs[0].epsilon:.3f}"
        assert [budget.name, "breast-cancer", "01234567", rounds, str(4 * int(rounds)), epsilon] in shown


def test_one_hospitals_own_file_shows_that_hospital_only(run: Callable[..., Result], trained: Path) -> None:
    result = run("budget", trained / "sites" / "hospital-2" / "site.toml")

    assert result.exit_code == 0
    assert "hospital-2" in result.stdout
    assert "hospital-1" not in result.stdout


def test_a_hospital_that_has_spent_nothing_shows_no_runs(
    run: Callable[..., Result], write_site_file: Callable[..., Path]
) -> None:
    path = write_site_file("st-anna", epsilon_budget=6.5)

    result = run("budget", path)

    assert result.exit_code == 0
    assert ["st-anna", "0.000", "6.500", "6.500", "0.001", "0"] in rows(result)
    assert "by run" not in result.stdout
    assert not (path.parent / "ledger.sqlite").exists()


def test_a_long_name_is_shown_in_full_within_80_columns(
    run: Callable[..., Result], write_site_file: Callable[..., Path]
) -> None:
    name = "university-hospital-of-a-town-with-a-long-name-department-of-car"
    result = run("budget", write_site_file(name))

    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert name in "".join(line.split("│")[1].strip() for line in lines if line.startswith("│"))
    assert "0.001" in result.stdout


def test_several_runs_are_told_not_to_add_up(
    run: Callable[..., Result], ask: Callable[..., Message], train: Callable[..., Message], tmp_path: Path
) -> None:
    said = []
    for name in ("run-1", "run-2"):
        ask(PLAN, run=name)
        train(1, run=name)
        said.append("Runs compose: spent is less than their sum." in run("budget", tmp_path).stdout)

    assert said == [False, True]


def test_every_line_fits_80_columns(run: Callable[..., Result], trained: Path) -> None:
    assert max(len(line) for line in run("budget", trained).stdout.splitlines()) <= 80


@pytest.mark.parametrize(
    ("place", "message"),
    [("nowhere", "nowhere: does not exist; give the hospital's site.toml or its folder"), ("", "holds no site.toml")],
)
def test_a_wrong_place_ends_with_one_and_says_what_to_give(
    run: Callable[..., Result], tmp_path: Path, place: str, message: str
) -> None:
    result = run("budget", tmp_path / place)

    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_a_damaged_ledger_ends_with_one(run: Callable[..., Result], trained: Path) -> None:
    (trained / "sites" / "hospital-1" / "ledger.sqlite").write_bytes(b"")

    result = run("budget", trained)

    assert result.exit_code == 1
    assert "ledger" in result.stderr


@pytest.mark.parametrize("words", [["--help"], ["budget", "--help"]])
def test_help_names_the_command_and_what_it_needs(run: Callable[..., Result], words: list[str]) -> None:
    result = run(*words)

    assert result.exit_code == 0
    assert "budget" in result.stdout


def test_a_command_that_is_not_known_is_an_error(run: Callable[..., Result]) -> None:
    assert run("spend").exit_code == 2


# --- the ledger ------------------------------------------------------------------------------------------------------


def test_a_good_ledger_is_verified_with_its_rows_and_its_last_hash(run: Callable[..., Result], trained: Path) -> None:
    receipt = json.loads((trained / "sites" / "hospital-1" / "receipts" / "ledger.receipt").read_text())

    result = run("ledger", "verify", trained)

    assert result.exit_code == 0
    first, second, third, _ = result.stdout.splitlines()
    # Whose it is, a plan, and a charge and its settling for each round.
    assert first.startswith(f"hospital-1: OK, 6 rows, last hash {receipt['hash']}; hospital-1 ε ")
    assert second.startswith("hospital-2: OK, 4 rows")
    assert third == "hospital-3: no ledger, nothing spent"


def test_the_first_broken_row_of_a_ledger_is_named(run: Callable[..., Result], trained: Path) -> None:
    database = sqlite3.connect(trained / "sites" / "hospital-1" / "ledger.sqlite")
    database.execute("DROP TRIGGER row_is_kept")
    database.execute("UPDATE chain SET content = replace(content, 'steps_run\":4', 'steps_run\":0')")
    database.commit()
    database.close()

    result = run("ledger", "verify", trained)

    assert result.exit_code == 1
    assert "row 4 was changed" in result.stderr
    assert "OK" not in result.stdout


def test_a_spend_from_elsewhere_is_charged_and_shown(run: Callable[..., Result], trained: Path) -> None:
    site = trained / "sites" / "hospital-3" / "site.toml"
    words = ["ledger", "charge", site, "--study", "survey", "--epsilon", "0.5", "--delta", "1e-5", "--reason", "counts"]

    result = run(*words, "--yes")

    assert result.exit_code == 0
    assert ["hospital-3", "0.500", "10.000", "9.500", "0.001", "0"] in rows(result)
    assert ["hospital-3", "survey", "1", "0.500"] in rows(run("budget", site))


def test_a_spend_is_charged_only_after_a_person_said_so(run: Callable[..., Result], trained: Path) -> None:
    site = trained / "sites" / "hospital-3" / "site.toml"

    result = run("ledger", "charge", site, "--study", "survey", "--epsilon", "0.5", "--reason", "counts")

    assert result.exit_code == 1
    assert "for ever?" in result.output
    assert not (site.parent / "ledger.sqlite").exists()


def test_a_spend_that_is_no_spend_is_an_error(run: Callable[..., Result], trained: Path) -> None:
    site = trained / "sites" / "hospital-3" / "site.toml"

    result = run("ledger", "charge", site, "--study", "survey", "--epsilon", "-1", "--reason", "counts", "--yes")

    assert result.exit_code == 1
    assert "epsilon=-1.0; expected more than 0" in result.stderr


def test_the_next_round_of_an_open_run_is_shown_with_its_cost(run: Callable[..., Result], trained: Path) -> None:
    (before,) = read_budgets(trained / "sites" / "hospital-1" / "site.toml")
    coming = before.runs[0].next_round
    assert coming is not None

    shown = rows(run("budget", trained / "sites" / "hospital-1" / "site.toml"))

    costs = ["4", "of", "4", f"{coming.epsilon_before:.3f}", f"{coming.epsilon_after:.3f}"]
    assert ["hospital-1", "breast-cancer", "01234567", *costs] in shown
