"""What a doctor is made of: the only place that runs checks, one after the other, and puts their outcome into words."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fl_contract.errors import ConsiliumError

SETTINGS = "settings"
"""Name of the check of the settings file; if it fails, a doctor ends with 2 instead of 1."""


class Status(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a check found.

    Attributes:
        status: How it ended.
        text: What was seen, in words and numbers.
        advice: What to do; empty if there is nothing to do.
    """

    status: Status
    text: str
    advice: str = ""


def ok(text: str) -> Finding:
    """All is well."""
    return Finding(status=Status.OK, text=text)


def warning(text: str, advice: str) -> Finding:
    """It works today; a person should act before it does not."""
    return Finding(status=Status.WARNING, text=text, advice=advice)


def failed(text: str, advice: str) -> Finding:
    """It does not work."""
    return Finding(status=Status.FAILED, text=text, advice=advice)


def skipped(text: str) -> Finding:
    """It was not looked at."""
    return Finding(status=Status.SKIPPED, text=text)


@dataclass(frozen=True, kw_only=True)
class Question:
    """A check that was not made yet.

    Attributes:
        name: As the table shows it.
        ask: Makes it.
        needs: Names of earlier checks without which the answer would say nothing.
    """

    name: str
    ask: Callable[[], Finding]
    needs: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Check:
    """A check that was made.

    Attributes:
        name: As the table shows it.
        status: How it ended.
        finding: What was seen.
        advice: What to do; empty if there is nothing to do.
    """

    name: str
    status: Status
    finding: str
    advice: str


def run_checks(questions: Iterable[Question]) -> list[Check]:
    """Ask every question, in order.

    Guarantees:
        - One check for each question, whatever a check raises: an exception is a failed check.
        - A question whose need failed or was skipped is skipped, and says why.
    """
    checks: list[Check] = []
    unmet: set[str] = set()
    for question in questions:
        missing = [name for name in question.needs if name in unmet]
        finding = skipped(f"needs {', '.join(missing)}") if missing else _answer(question)
        if finding.status in (Status.FAILED, Status.SKIPPED):
            unmet.add(question.name)
        checks.append(
            Check(name=question.name, status=finding.status, finding=finding.text, advice=finding.advice),
        )
    return checks


def _answer(question: Question) -> Finding:
    try:
        return question.ask()
    except (ConsiliumError, OSError) as error:
        return failed(str(error), "put right what the finding names, then run the doctor again")
    except Exception as error:  # noqa: BLE001  # one broken check must not hide the others
        return failed(f"{type(error).__name__}: {error}", "the check itself broke; report it with this line")


def exit_code(checks: Sequence[Check]) -> int:
    """0 if nothing failed, warnings allowed; 2 if the settings cannot be used; else 1."""
    bad = {check.name for check in checks if check.status is Status.FAILED}
    if SETTINGS in bad:
        return 2
    return 1 if bad else 0


COLOURS = {Status.OK: "green", Status.WARNING: "yellow", Status.FAILED: "red", Status.SKIPPED: "dim"}


def print_checks(title: str, checks: Sequence[Check], console: Console) -> None:
    """Show a table of all checks, then what to do."""
    table = Table(title=escape(title), title_justify="left", pad_edge=False)
    table.add_column("check", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("finding", overflow="fold")
    for check in checks:
        table.add_row(check.name, f"[{COLOURS[check.status]}]{check.status}[/]", escape(check.finding))
    console.print(table)
    todo = [check for check in checks if check.advice]
    if todo:
        console.print("\n[bold]What to do[/]")
        grid = Table.grid(padding=(0, 2))
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        for check in todo:
            grid.add_row(f"[{COLOURS[check.status]}]{check.name}[/]", escape(check.advice))
        console.print(grid)
    counts = {status: sum(check.status is status for check in checks) for status in Status}
    told = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    console.print(f"\n{told}", highlight=False)


def to_json(checks: Sequence[Check]) -> str:
    """All checks, with the verdict as ``ok``."""
    return json.dumps({"ok": exit_code(checks) == 0, "checks": [asdict(check) for check in checks]}, indent=2)
