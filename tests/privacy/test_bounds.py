"""Every single number that privacy code accepts is finite, of the right type and inside its range."""

import math
from collections.abc import Callable

import pytest

from privacy.bounds import (
    require_clip_norm,
    require_count,
    require_delta,
    require_label,
    require_positive,
    require_rate,
    require_real,
    require_total_steps,
)
from privacy.errors import PrivacyError, PrivacySettingError

NOT_NUMBERS = [math.nan, math.inf, -math.inf, 10**400, True, "1", None, 1j]


@pytest.mark.parametrize("require", [require_real, require_positive, require_rate, require_delta, require_clip_norm])
@pytest.mark.parametrize("value", NOT_NUMBERS, ids=repr)
def test_what_is_not_a_finite_number_is_refused(require: Callable[[str, object], float], value: object) -> None:
    with pytest.raises(PrivacySettingError, match=r"the_name=.*; expected a (finite )?number"):
        require("the_name", value)


@pytest.mark.parametrize(
    ("require", "value"),
    [
        (require_positive, 0),
        (require_positive, -0.1),
        (require_rate, 0.0),
        (require_rate, 1.0000001),
        (require_delta, 0.0),
        (require_delta, 9e-11),
        (require_delta, 1.0),
        (require_clip_norm, 0.0),
        (require_clip_norm, -1.0),
        (require_clip_norm, 3e-45),  # the smallest single-precision numbers
        (require_clip_norm, 9e-7),
        (require_clip_norm, 1000001.0),
    ],
)
def test_a_number_outside_its_range_is_refused_with_name_value_and_rule(
    require: Callable[[str, object], float], value: float
) -> None:
    with pytest.raises(PrivacySettingError, match=rf"the_name={value!r}; expected .*(more than|at least)"):
        require("the_name", value)


@pytest.mark.parametrize(
    ("require", "value"),
    [
        (require_real, -2),
        (require_positive, 1e-300),
        (require_rate, 1),
        (require_delta, 1e-10),
        (require_delta, 0.999),
        (require_clip_norm, 1e-6),
        (require_clip_norm, 1_000_000),
    ],
)
def test_a_number_at_the_edge_of_its_range_comes_back_as_float(
    require: Callable[[str, object], float], value: float
) -> None:
    number = require("the_name", value)

    assert number == value
    assert isinstance(number, float)


@pytest.mark.parametrize("value", [2.0, True, "2", None, math.nan], ids=repr)
def test_a_count_that_is_not_an_integer_is_refused(value: object) -> None:
    with pytest.raises(PrivacySettingError, match=r"steps=.*; expected an integer"):
        require_count("steps", value, at_least=0)


def test_a_count_is_refused_below_its_least_value_and_accepted_at_it() -> None:
    with pytest.raises(PrivacySettingError, match="steps=0; expected at least 1"):
        require_count("steps", 0, at_least=1)

    assert require_count("steps", 1, at_least=1) == 1


@pytest.mark.parametrize(("steps_per_round", "num_rounds"), [(1, 1), (100_000, 1), (1, 100_000), (250, 400)])
def test_up_to_a_hundred_thousand_steps_in_all_are_accepted(steps_per_round: int, num_rounds: int) -> None:
    assert require_total_steps(steps_per_round, num_rounds) == steps_per_round * num_rounds


@pytest.mark.parametrize(
    ("steps_per_round", "num_rounds", "rule"),
    [
        (100_001, 1, "at most 100000 steps over all rounds together"),
        (1, 100_001, "at most 100000 steps over all rounds together"),
        (401, 250, "at most 100000 steps over all rounds together"),
        (10**400, 10**400, "at most 100000 steps over all rounds together"),
        (0, 5, "steps_per_round=0; expected at least 1"),
        (5, 0, "num_rounds=0; expected at least 1"),
        (-1, -1, "steps_per_round=-1; expected at least 1"),
        (2.0, 1, "steps_per_round=2.0; expected an integer"),
        (1, True, "num_rounds=True; expected an integer"),
    ],
)
def test_too_many_or_too_few_steps_in_all_are_refused(steps_per_round: object, num_rounds: object, rule: str) -> None:
    with pytest.raises(PrivacySettingError, match=rule):
        require_total_steps(steps_per_round, num_rounds)


@pytest.mark.parametrize("value", ["", "  ", None, 7], ids=repr)
def test_a_blank_name_is_refused(value: object) -> None:
    with pytest.raises(PrivacySettingError, match=r"run=.*; expected a name"):
        require_label("run", value)


def test_the_refusal_is_also_a_value_error_and_a_privacy_error() -> None:
    with pytest.raises(ValueError, match="epsilon") as raised:
        require_positive("epsilon", -1)

    assert isinstance(raised.value, PrivacyError)
