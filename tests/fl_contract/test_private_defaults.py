"""A study that sets only epsilon and delta gets the rest by one rule; what it says itself is kept."""

import math
import tomllib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from fl_contract.private_defaults import (
    LARGEST_STEP,
    PATH_PER_EPSILON,
    fill_private_defaults,
    private_learning_rate,
    steps_per_round,
)
from fl_contract.study import Study
from fl_contract.study_file import STUDIES, load_study

Raw = dict[str, Any]


@pytest.fixture
def raw() -> Raw:
    """The breast-cancer study: a table, a logistic model, 20 rounds, epsilon 8, plain SGD."""
    return tomllib.loads((STUDIES / "breast-cancer.toml").read_text())


def test_a_study_that_sets_only_epsilon_and_delta_gets_every_other_private_setting(raw: Raw) -> None:
    raw["privacy"] = {"mechanism": "dp-sgd", "epsilon": 8.0, "delta": 0.001}

    study = Study.parse(raw, origin="test")

    # 80 steps over 20 rounds; a path of 60 x 8 = 480 in 80 steps of gradients of length 0.5.
    assert study.privacy.clip_norm == 0.5
    assert study.privacy.sampling_rate == 1.0
    assert study.privacy.steps_per_round == 4
    assert study.training.private_learning_rate == 480 / 80 / 0.5


def test_a_study_of_images_gets_batches_and_more_steps() -> None:
    raw = tomllib.loads((STUDIES / "digits.toml").read_text())
    raw["privacy"] = {"mechanism": "dp-sgd", "epsilon": 8.0, "delta": 0.0005}

    study = Study.parse(raw, origin="test")

    # 200 steps over 20 rounds; a path of 12.5 x 8 = 100 in 200 steps of gradients of length 0.5.
    assert (study.privacy.sampling_rate, study.privacy.steps_per_round) == (0.2, 10)
    assert study.training.private_learning_rate == 100 / 200 / 0.5


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        ("privacy", "clip-norm", 2.0),
        ("privacy", "sampling-rate", 0.125),
        ("privacy", "steps-per-round", 3),
        ("training", "private-learning-rate", 0.75),
    ],
)
def test_what_a_study_says_is_kept(raw: Raw, table: str, key: str, value: float) -> None:
    raw[table][key] = value

    assert fill_private_defaults(raw)[table][key] == value


def test_the_learning_rate_follows_what_a_study_says_of_the_rest(raw: Raw) -> None:
    raw["privacy"] |= {"clip-norm": 2.0, "steps-per-round": 12, "epsilon": 2.0}

    # A path of 60 x 2 = 120 in 12 x 20 = 240 steps of gradients of length 2.
    assert fill_private_defaults(raw)["training"]["private-learning-rate"] == 120 / 240 / 2


@pytest.mark.parametrize(
    "change", [{"optimizer": "Adam"}, {"optimizer-options": {"momentum": 0.9}}], ids=["Adam", "momentum"]
)
def test_the_learning_rate_of_another_optimiser_than_plain_sgd_is_not_guessed(raw: Raw, change: Raw) -> None:
    raw["training"] |= change

    assert Study.parse(raw, origin="test").training.private_learning_rate is None


def test_the_record_and_the_fingerprint_hold_the_filled_numbers(raw: Raw) -> None:
    filled = Study.parse(raw, origin="test")
    raw["privacy"] |= {"clip-norm": 0.5, "sampling-rate": 1.0, "steps-per-round": 4}
    raw["training"]["private-learning-rate"] = 12.0

    assert filled.to_table()["privacy"]["steps-per-round"] == 4
    assert filled.to_table()["training"]["private-learning-rate"] == 12.0
    assert filled.fingerprint == Study.parse(raw, origin="test").fingerprint


def test_an_override_is_taken_into_account() -> None:
    study = load_study("breast-cancer", overrides={"num-rounds": 10, "privacy.epsilon": 1.0})

    # 80 steps over 10 rounds; a path of 60 in 80 steps of gradients of length 0.5.
    assert study.privacy.steps_per_round == 8
    assert study.training.private_learning_rate == 60 / 80 / 0.5


def test_the_raw_study_is_not_changed(raw: Raw) -> None:
    before = {"privacy": dict(raw["privacy"]), "training": dict(raw["training"])}

    fill_private_defaults(raw)

    assert {"privacy": raw["privacy"], "training": raw["training"]} == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw.pop("num-rounds"),
        lambda raw: raw.pop("model"),
        lambda raw: raw["privacy"].pop("epsilon"),
        lambda raw: raw["privacy"].update({"epsilon": "eight"}),
        lambda raw: raw["privacy"].update({"epsilon": math.nan}),
        lambda raw: raw.update({"num-rounds": 0}),
        lambda raw: raw.update({"num-rounds": 2.5}),
        lambda raw: raw.update({"training": None}),
        lambda raw: raw.update({"schema": "table"}),
    ],
)
def test_a_broken_study_is_filled_so_that_only_its_own_fault_is_named(raw: Raw, damage: Callable[[Raw], Any]) -> None:
    damage(raw)

    assert {"clip-norm", "sampling-rate", "steps-per-round"} <= set(fill_private_defaults(raw)["privacy"])


def test_a_study_without_a_privacy_table_comes_back_as_it_is(raw: Raw) -> None:
    raw["privacy"] = 3

    assert fill_private_defaults(raw) == raw


@given(num_rounds=some.integers(1, 1000))
def test_all_rounds_together_have_about_the_planned_steps(num_rounds: int) -> None:
    total = steps_per_round("table", num_rounds=num_rounds) * num_rounds

    assert 80 <= total < 80 + num_rounds


@given(epsilon=some.floats(0.02, 100), clip_norm=some.floats(0.01, 10), total_steps=some.integers(1, 10_000))
def test_no_step_and_no_path_is_longer_than_the_rule_says(epsilon: float, clip_norm: float, total_steps: int) -> None:
    for kind, path in PATH_PER_EPSILON.items():
        rate = private_learning_rate(kind, epsilon=epsilon, clip_norm=clip_norm, total_steps=total_steps)

        step = rate * clip_norm
        assert 0 < step <= LARGEST_STEP * (1 + 1e-12)
        assert step * total_steps <= path * min(epsilon, 8.0) * (1 + 1e-12)
