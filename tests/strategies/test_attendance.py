"""Who fails again and again sits out ever longer, who refuses for the run for good; no quorum is missed for it."""

import json

import pytest

from strategies.attendance import Attendance, Presence

SITES = ("a", "b", "c")


def failing(*rounds: int, code: str = "deadline", after: int = 2, min_sites: int = 1) -> Attendance:
    """Hospital a fails in these rounds."""
    attendance = Attendance(set_aside_after=after, min_sites=min_sites)
    for server_round in rounds:
        attendance.observe("a", code, server_round=server_round)
    return attendance


def asked_of_a(attendance: Attendance, rounds: range) -> list[int]:
    asked = []
    for server_round in rounds:
        attendance.begin(server_round)
        if "a" not in attendance.sort(SITES).aside:
            asked.append(server_round)
    return asked


@pytest.mark.parametrize(
    ("failed", "after", "asked"),
    [
        ((), 2, [6, 7, 8, 9, 10]),
        ((5,), 2, [6, 7, 8, 9, 10]),
        ((4, 5), 2, [7, 8, 9, 10]),  # sits out 1 round
        ((2, 3, 5), 2, [8, 9, 10]),  # then 2
        ((5,), 1, [7, 8, 9, 10]),
        ((1, 3), 1, [6, 7, 8, 9, 10]),
        ((1, 2, 3, 4, 5), 3, [10]),  # then 4
    ],
)
def test_the_rounds_that_a_hospital_sits_out_double(failed: tuple[int, ...], after: int, asked: list[int]) -> None:
    assert asked_of_a(failing(*failed, after=after), range(6, 11)) == asked


@pytest.mark.parametrize("code", ["policy", "budget-exhausted"])
def test_a_refusal_for_the_run_is_final_at_once(code: str) -> None:
    attendance = failing(1, code=code)

    assert asked_of_a(attendance, range(2, 200)) == []
    assert attendance.reasons() == {"a": f"It refused ({code}) and is not asked again in this run."}
    assert not attendance.is_silent("a")


@pytest.mark.parametrize("code", ["deadline", "internal", "unusable-reply", "invalid-data", "no-agreement", "flower-5"])
def test_every_other_failure_has_to_repeat_itself(code: str) -> None:
    once, twice = failing(1, code=code), failing(1, 2, code=code)

    assert (once.is_set_aside("a"), twice.is_set_aside("a")) == (False, True)
    assert (once.is_silent("a"), twice.is_silent("a")) == (False, True)


def test_one_usable_reply_brings_a_hospital_back() -> None:
    attendance = failing(1, 2, 4)

    attendance.observe("a", None, server_round=7)
    attendance.observe("a", "deadline", server_round=8)

    assert not attendance.is_set_aside("a")
    assert attendance.reasons() == {}


def test_who_is_due_is_asked_beside_those_that_may_be_drawn() -> None:
    attendance = failing(1, 2)

    attendance.begin(3)
    sits_out = attendance.sort(SITES)
    attendance.begin(4)

    assert sits_out == Presence(here=("b", "c"), aside=("a",))
    assert attendance.sort(SITES) == Presence(here=("b", "c"), due=("a",))


@pytest.mark.parametrize(("min_sites", "due"), [(2, ()), (3, ("a",))])
@pytest.mark.parametrize("code", ["deadline", "policy"])
def test_nobody_sits_out_a_round_whose_quorum_needs_it(min_sites: int, due: tuple[str, ...], code: str) -> None:
    attendance = failing(1, 2, code=code, min_sites=min_sites)

    attendance.begin(3)

    assert attendance.sort(SITES).due == due


def test_whose_reply_is_awaited_is_not_asked_whatever_the_quorum() -> None:
    attendance = failing(1, 2, min_sites=3)

    attendance.begin(4, awaited={"a", "b"})

    assert attendance.sort(SITES) == Presence(here=("c",))


def test_the_state_survives_a_file() -> None:
    attendance, again = failing(1, 2, 4), Attendance(set_aside_after=2, min_sites=1)

    again.load_state(json.loads(json.dumps(attendance.state())))

    assert again.state() == attendance.state()
    assert asked_of_a(again, range(5, 10)) == asked_of_a(attendance, range(5, 10)) == [7, 8, 9]
