"""Promise: every check of a doctor ends in one line, whatever it raises; what depends on a failed one is skipped."""

import json

import pytest
from rich.console import Console

from fl_contract.errors import SettingError
from fl_host.checks import (
    SETTINGS,
    Finding,
    Question,
    Status,
    exit_code,
    failed,
    ok,
    print_checks,
    run_checks,
    skipped,
    to_json,
    warning,
)


def _raise(error: Exception) -> Finding:
    raise error


@pytest.mark.parametrize(
    ("error", "finding"),
    [
        (SettingError("port=0; expected at least 1"), "port=0; expected at least 1"),
        (FileNotFoundError(2, "No such file", "ca.crt"), "[Errno 2] No such file: 'ca.crt'"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
    ],
)
def test_an_exception_is_a_failed_check_and_the_next_one_is_made(error: Exception, finding: str) -> None:
    questions = [
        Question(name="first", ask=lambda: _raise(error)),
        Question(name="second", ask=lambda: ok("fine")),
    ]

    first, second = run_checks(questions)

    assert (first.status, first.finding) == (Status.FAILED, finding)
    assert first.advice
    assert second.status is Status.OK


def test_what_needs_a_failed_check_is_skipped_and_so_is_what_needs_that() -> None:
    questions = [
        Question(name="name", ask=lambda: failed("no address", "look at DNS")),
        Question(name="route", ask=lambda: ok("opens"), needs=("name",)),
        Question(name="certificate", ask=lambda: ok("signed"), needs=("route",)),
    ]

    checks = run_checks(questions)

    assert [check.status for check in checks] == [Status.FAILED, Status.SKIPPED, Status.SKIPPED]
    assert checks[1].finding == "needs name"


@pytest.mark.parametrize(
    ("findings", "code"),
    [
        ({}, 0),
        ({"a": ok("x")}, 0),
        ({"a": warning("x", "y"), "b": skipped("z")}, 0),
        ({"a": ok("x"), "b": failed("x", "y")}, 1),
        ({SETTINGS: failed("x", "y"), "b": skipped("z")}, 2),
    ],
)
def test_the_exit_code_is_zero_unless_something_failed_and_two_for_settings(
    findings: dict[str, Finding], code: int
) -> None:
    def asks(finding: Finding) -> Question:
        return Question(name="", ask=lambda: finding)

    checks = run_checks([Question(name=name, ask=asks(finding).ask) for name, finding in findings.items()])

    assert exit_code(checks) == code


def test_the_table_shows_each_finding_and_then_what_to_do() -> None:
    checks = run_checks(
        [
            Question(name="disk", ask=lambda: warning("[1 GB] free", "make room")),
            Question(name="gpu", ask=lambda: ok("none")),
        ]
    )
    console = Console(record=True, width=100)

    print_checks("doctor", checks, console)

    text = console.export_text()
    assert "[1 GB] free" in text
    assert text.index("make room") > text.index("none")
    assert "1 ok, 1 warning" in text


def test_json_holds_every_check_and_the_verdict() -> None:
    checks = run_checks([Question(name="disk", ask=lambda: failed("full", "make room"))])

    assert json.loads(to_json(checks)) == {
        "ok": False,
        "checks": [{"name": "disk", "status": "failed", "finding": "full", "advice": "make room"}],
    }
