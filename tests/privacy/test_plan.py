"""A privacy plan is consistent, keeps what it promises, and survives being written down."""

import json
import math
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from privacy.accounting import Spend, compute_epsilon
from privacy.errors import PrivacySettingError
from privacy.plan import PrivacyPlan

VALID: dict[str, Any] = {
    "epsilon": 8.0,
    "delta": 1e-3,
    "clip_norm": 0.5,
    "sampling_rate": 1.0,
    "steps_per_round": 4,
    "num_rounds": 20,
    "nominal_units": 400,
}


@pytest.fixture(scope="module")
def plan() -> PrivacyPlan:
    return PrivacyPlan.calibrate(**VALID)


def test_all_rounds_together_keep_the_promised_epsilon(plan: PrivacyPlan) -> None:
    spent = compute_epsilon([plan.round_spend] * plan.num_rounds, plan.delta)

    assert 7.98 < spent <= 8.0


def test_the_spends_follow_from_the_plan(plan: PrivacyPlan) -> None:
    noise = plan.noise_multiplier

    assert plan.round_spend == Spend(noise_multiplier=noise, sampling_rate=1.0, steps=4)
    assert plan.total_spend == Spend(noise_multiplier=noise, sampling_rate=1.0, steps=80)


def test_the_expected_batch_size_is_rate_times_nominal_size(plan: PrivacyPlan) -> None:
    assert replace(plan, sampling_rate=0.25).expected_batch_size == 100.0


def test_the_unit_and_the_neighbouring_relation_are_part_of_the_plan(plan: PrivacyPlan) -> None:
    assert plan.unit == "record"
    assert plan.neighbouring == "add-or-remove-one"


def test_a_plan_cannot_be_changed(plan: PrivacyPlan) -> None:
    with pytest.raises(FrozenInstanceError):
        plan.noise_multiplier = 0.1  # type: ignore[misc]


def test_a_plan_with_too_little_noise_for_its_epsilon_cannot_be_built(plan: PrivacyPlan) -> None:
    with pytest.raises(PrivacySettingError, match=r"noise_multiplier=.*; expected at most 8\.0; .*calibrate"):
        replace(plan, noise_multiplier=plan.noise_multiplier * 0.99)


def test_a_plan_with_more_noise_than_needed_can_be_built(plan: PrivacyPlan) -> None:
    generous = replace(plan, noise_multiplier=plan.noise_multiplier * 3)

    assert generous.noise_multiplier == plan.noise_multiplier * 3


@pytest.mark.parametrize(
    "changed",
    [
        {"epsilon": 0.0},
        {"epsilon": -1.0},
        {"epsilon": math.nan},
        {"epsilon": math.inf},
        {"epsilon": "8"},
        {"epsilon": True},
        {"delta": 0.0},
        {"delta": 1 / 400},
        {"delta": 0.5},
        {"delta": math.nan},
        {"clip_norm": 0.0},
        {"clip_norm": -1.0},
        {"clip_norm": math.inf},
        {"clip_norm": 3e-45},
        {"clip_norm": 1.1e6},
        {"clip_norm": 10**400},
        {"sampling_rate": 0.0},
        {"sampling_rate": 1.1},
        {"sampling_rate": math.nan},
        {"steps_per_round": 0},
        {"steps_per_round": 4.0},
        {"num_rounds": 0},
        {"num_rounds": True},
        {"num_rounds": 25_001},
        {"steps_per_round": 10**400},
        {"nominal_units": 0},
        {"nominal_units": -5},
    ],
    ids=repr,
)
def test_a_setting_outside_its_range_is_refused_by_name(plan: PrivacyPlan, changed: dict[str, Any]) -> None:
    name = next(iter(changed))

    with pytest.raises(PrivacySettingError, match=name):
        PrivacyPlan.calibrate(**VALID | changed)
    with pytest.raises(PrivacySettingError, match=name):
        replace(plan, **changed)


@pytest.mark.parametrize("changed", [{"unit": "hospital"}, {"neighbouring": "replace-one"}, {"noise_multiplier": 0.0}])
def test_a_promise_that_is_not_kept_here_is_refused(plan: PrivacyPlan, changed: dict[str, Any]) -> None:
    with pytest.raises(PrivacySettingError, match=next(iter(changed))):
        replace(plan, **changed)


def test_a_plan_read_from_its_own_text_is_equal(plan: PrivacyPlan) -> None:
    assert PrivacyPlan.from_json(plan.to_json()) == plan


def test_whole_numbers_and_floats_make_equal_plans_and_equal_text() -> None:
    whole = PrivacyPlan.calibrate(**VALID | {"epsilon": 8, "clip_norm": 1, "sampling_rate": 1})
    decimal = PrivacyPlan.calibrate(**VALID | {"clip_norm": 1.0})

    assert whole.to_json() == decimal.to_json()


def text_with(plan: PrivacyPlan, **changed: object) -> str:
    return json.dumps(json.loads(plan.to_json()) | changed)


def test_text_with_an_unknown_key_is_refused(plan: PrivacyPlan) -> None:
    with pytest.raises(PrivacySettingError, match=r"unknown keys \['noise'\]"):
        PrivacyPlan.from_json(text_with(plan, noise=1.0))


@pytest.mark.parametrize("key", ["unit", "delta", "noise_multiplier"])
def test_text_without_a_key_is_refused_even_if_the_plan_has_a_default(plan: PrivacyPlan, key: str) -> None:
    values = json.loads(plan.to_json())
    del values[key]

    with pytest.raises(PrivacySettingError, match=rf"missing keys \['{key}'\]"):
        PrivacyPlan.from_json(json.dumps(values))


def test_text_with_a_repeated_key_is_refused(plan: PrivacyPlan) -> None:
    text = plan.to_json().replace('"epsilon": 8.0', '"epsilon": 80.0, "epsilon": 8.0')

    with pytest.raises(PrivacySettingError, match="each key once"):
        PrivacyPlan.from_json(text)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null"])
def test_text_that_is_not_an_object_is_refused(text: str) -> None:
    with pytest.raises(PrivacySettingError, match="expected one JSON object"):
        PrivacyPlan.from_json(text)


@pytest.mark.parametrize(
    "changed", [{"epsilon": "8.0"}, {"num_rounds": 20.5}, {"delta": None}, {"epsilon": math.nan}], ids=repr
)
def test_text_with_a_value_of_the_wrong_type_is_refused(plan: PrivacyPlan, changed: dict[str, object]) -> None:
    with pytest.raises(PrivacySettingError, match=next(iter(changed))):
        PrivacyPlan.from_json(text_with(plan, **changed))


def test_text_whose_noise_was_lowered_is_refused(plan: PrivacyPlan) -> None:
    with pytest.raises(PrivacySettingError, match="noise_multiplier"):
        PrivacyPlan.from_json(text_with(plan, noise_multiplier=plan.noise_multiplier / 2))
