"""A private run's model is the mean of the models of the last half of its rounds."""

import numpy as np
import pytest

from fl_contract.array_record import Arrays
from fl_contract.study_file import load_study
from fl_server.averaging import ModelAverage, first_averaged_round


def model(value: float) -> Arrays:
    return {"weight": np.full((2, 3), value, np.float32), "steps": np.array(int(value), np.int64)}


@pytest.mark.parametrize(("num_rounds", "first"), [(1, 1), (2, 2), (3, 2), (20, 11), (21, 11)])
def test_the_last_half_of_the_planned_rounds_counts(num_rounds: int, first: int) -> None:
    assert first_averaged_round(load_study("breast-cancer", overrides={"num-rounds": num_rounds})) == first


def test_a_study_without_privacy_averages_nothing() -> None:
    study = load_study("breast-cancer", overrides={"privacy.mechanism": "none"})
    average = ModelAverage(first_averaged_round(study))
    for number in range(1, 21):
        average.observe(number, model(number))

    last = model(20)

    assert average.of(last)["weight"] is last["weight"]


def test_before_the_first_round_that_counts_the_latest_model_is_the_result() -> None:
    average = ModelAverage(3)
    average.observe(1, model(1))
    average.observe(2, model(5))

    assert np.array_equal(average.of(model(5))["weight"], model(5)["weight"])


def test_the_result_is_the_mean_of_the_rounds_that_count() -> None:
    average = ModelAverage(2)
    for number, value in enumerate([100.0, 1.0, 2.0, 6.0], start=1):
        average.observe(number, model(value))

    result = average.of(model(6))

    assert np.array_equal(result["weight"], np.full((2, 3), 3.0))  # (1 + 2 + 6) / 3
    assert result["weight"].dtype == np.float32
    assert result["steps"] == 6  # a whole number is the latest


def test_the_models_taken_in_are_not_changed() -> None:
    average, first = ModelAverage(1), model(1)
    average.observe(1, first)
    average.observe(2, model(2))

    assert np.array_equal(first["weight"], model(1)["weight"])


def test_the_state_goes_on_to_the_bit_where_it_was() -> None:
    generator = np.random.default_rng(1)
    models = [{"weight": generator.normal(size=5).astype(np.float32)} for _ in range(6)]
    whole, before, after = ModelAverage(2), ModelAverage(2), ModelAverage(2)
    for number, each in enumerate(models, start=1):
        whole.observe(number, each)
    for number, each in enumerate(models[:4], start=1):
        before.observe(number, each)

    after.load_state(before.state())
    for number, each in enumerate(models[4:], start=5):
        after.observe(number, each)

    assert after.of(models[-1])["weight"].tobytes() == whole.of(models[-1])["weight"].tobytes()
