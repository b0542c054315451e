"""``fl-client log`` says whether a journal is whole, which line is not, and what happened."""

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from fl_client.cli import app
from fl_client.journal import APPROVAL, JOURNAL_FILE, REFUSAL, RELEASE, Journal


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs a command on a terminal of 120 columns."""
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")
    return lambda *words: CliRunner().invoke(app, ["log", *(str(word) for word in words)])


@pytest.fixture
def site(write_site_file: Callable[..., Path]) -> Path:
    """The file of a hospital whose journal has three lines."""
    path = write_site_file()
    journal = Journal(path.parent)
    journal.append(APPROVAL, sha256="a" * 64, version="0.1.0", by="officer A [Privacy]")
    journal.append(RELEASE, reply="train", study="heart-disease", run="7", round=3, bytes=12345, sha256="b" * 64)
    journal.append(REFUSAL, refusal="policy", request="query.plan", study="heart-disease", run="8", round=0)
    return path


def test_a_whole_journal_is_told_with_its_last_hash(run: Callable[..., Result], site: Path) -> None:
    result = run("verify", site)

    assert result.exit_code == 0
    assert f"OK, 3 lines, last hash {Journal(site.parent).read()[-1].hash}" in result.stdout


def test_the_broken_line_of_one_hospital_is_named_and_the_others_are_checked(
    run: Callable[..., Result], site: Path, write_site_file: Callable[..., Path]
) -> None:
    other, third = write_site_file("st-barbara"), write_site_file("st-clara")
    Journal(other.parent).append(RELEASE, reply="train")
    file = site.parent / JOURNAL_FILE
    file.write_text(file.read_text().replace("12345", "12346"))

    result = run("verify", site.parent.parent)

    assert result.exit_code == 1
    assert f"{site.parent}: BROKEN, line 2 was changed" in result.stdout
    assert f"{other.parent}: OK, 1 lines" in result.stdout
    assert f"{third.parent}: no journal, nothing happened" in result.stdout


def test_what_a_crash_left_is_told_and_no_failure(run: Callable[..., Result], site: Path) -> None:
    with (site.parent / JOURNAL_FILE).open("a") as stream:
        stream.write('{"content"')

    result = run("verify", site)

    assert result.exit_code == 0
    assert "behind them 10 bytes that a crash left" in result.stdout


def test_a_place_without_a_hospital_is_told(run: Callable[..., Result], tmp_path: Path) -> None:
    result = run("verify", tmp_path)

    assert result.exit_code == 1
    assert "holds no site.toml" in result.stderr


def test_the_table_shows_what_happened(run: Callable[..., Result], site: Path) -> None:
    result = run("show", site)

    assert result.exit_code == 0
    for words in ("approval officer A [Privacy]", "refusal policy query.plan", "12,345", "b" * 12, "heart-disease"):
        assert words in result.stdout


def test_where_the_reason_of_a_refusal_stands_is_told(run: Callable[..., Result], site: Path) -> None:
    assert str(site.parent / "site.log") in run("show", site).stdout
    assert "site.log" not in run("show", site, "--kind", "release").stdout


def test_one_kind_alone_can_be_shown(run: Callable[..., Result], site: Path) -> None:
    result = run("show", site, "--kind", "release")

    assert "train" in result.stdout
    assert "policy" not in result.stdout
    assert "no such line" in run("show", site, "--kind", "stop").stdout
    assert run("show", site, "--kind", "lunch").exit_code == 2


def test_a_broken_journal_is_not_shown(run: Callable[..., Result], site: Path) -> None:
    (site.parent / JOURNAL_FILE).write_text("")

    result = run("show", site)

    assert result.exit_code == 1
    assert "line 1 is missing" in result.stderr
