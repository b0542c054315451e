"""Slower hospitals are asked for fewer steps, within bounds, and count for as much as before."""

import json
from collections.abc import Callable, Mapping

import numpy as np
import pytest

from fl_contract.array_record import Arrays
from fl_contract.messages import Capacity, SitePlan
from fl_contract.study_tables import TrainingSettings
from strategies.balance import StepBalance
from strategies.balanced import Balanced
from strategies.fedavg import FedAvg
from strategies.participation import Roster


def training_of(**settings: int) -> TrainingSettings:
    table = {"learning-rate": 0.5, **{key.replace("_", "-"): value for key, value in settings.items()}}
    return TrainingSettings.parse(table, origin="test")


EIGHT = training_of(local_steps=8)


def plans_of(
    sites: str, capacity: Mapping[str, Capacity] | None = None, num_examples: int = 100
) -> dict[str, SitePlan]:
    told = capacity or {}
    return {
        site: SitePlan(site=site, num_examples=num_examples, noise_multiplier=0.0, capacity=told.get(site))
        for site in sites
    }


def balance_of(sites: str, *, seconds: Mapping[str, float], training: TrainingSettings = EIGHT) -> StepBalance:
    """After a first round that took each of these hospitals so long."""
    balance = StepBalance(training, plans_of(sites))
    balance.ask(sites)
    for site, each in seconds.items():
        balance.observe(site, each)
    return balance


@pytest.mark.parametrize(
    ("seconds", "asked"),
    [
        ({}, {"a": 8, "b": 8, "c": 8, "d": 8}),
        ({"a": 8, "b": 8, "c": 8, "d": 8}, {"a": 8, "b": 8, "c": 8, "d": 8}),
        ({"a": 4, "b": 8, "c": 16, "d": 20}, {"a": 8, "b": 8, "c": 4, "d": 3}),  # the second of four is the middle
        ({"a": 4, "b": 8, "c": 8, "d": 800}, {"a": 8, "b": 8, "c": 8, "d": 2}),  # a quarter is the least
        ({"a": 8, "b": 16}, {"a": 8, "b": 4, "c": 8, "d": 8}),  # of whom nothing is known yet, all
        ({"d": 800}, {"a": 8, "b": 8, "c": 8, "d": 8}),
    ],
)
def test_all_are_asked_to_finish_with_the_middle_one(seconds: dict[str, float], asked: dict[str, int]) -> None:
    assert balance_of("abcd", seconds=seconds).ask("dcba") == asked


def test_a_hospital_s_own_steps_follow_from_the_records_that_it_declares() -> None:
    training = training_of(batch_size=10, local_epochs=2)
    plans = plans_of("a", num_examples=45) | plans_of("b", num_examples=100)
    balance = StepBalance(training, plans)

    first = balance.ask("ab")
    balance.observe("a", 10.0)
    balance.observe("b", 20.0)

    assert first == {"a": 10, "b": 20}
    assert balance.ask("ab") == {"a": 10, "b": 10}  # both need a second a step


def test_steps_settle_where_all_take_as_long_as_the_middle_one_also_with_a_fixed_cost() -> None:
    balance = StepBalance(training_of(local_steps=100), plans_of("abc"))
    cost = {"a": (5.0, 1.0), "b": (5.0, 1.0), "c": (25.0, 2.0)}  # seconds a round, seconds a step

    steps, seconds = dict[str, int](), dict[str, float]()
    for _ in range(12):
        steps = balance.ask("abc")
        seconds = {site: fixed + each * steps[site] for site, (fixed, each) in cost.items()}
        for site, each in seconds.items():
            balance.observe(site, each)

    assert steps == {"a": 100, "b": 100, "c": 40}  # 25 + 2 * 40 = 5 + 100
    assert set(seconds.values()) == {105.0}


def test_before_the_first_round_cores_stand_for_speed_and_a_gpu_takes_all_steps() -> None:
    told = {
        "a": Capacity(num_cores=8, has_gpu=False),
        "b": Capacity(num_cores=8, has_gpu=False),
        "c": Capacity(num_cores=4, has_gpu=False),
        "d": Capacity(num_cores=1, has_gpu=True),
    }
    balance = StepBalance(EIGHT, plans_of("abcde", told))

    assert balance.ask("abcde") == {"a": 8, "b": 8, "c": 4, "d": 8, "e": 8}
    for site in "abcd":
        balance.observe(site, 5.0)  # c took 5 s for 4 steps, the others for 8
    assert balance.ask("abcde") == {"a": 8, "b": 8, "c": 4, "d": 8, "e": 8}


def test_a_state_that_was_kept_asks_for_the_same() -> None:
    balance = balance_of("abcd", seconds={"a": 1, "b": 3, "c": 7, "d": 9})
    state = json.loads(json.dumps(balance.state()))
    again = StepBalance(EIGHT, plans_of("abcd"))

    again.load_state(state)

    assert again.ask("abcd") == balance.ask("abcd")
    assert again.effective_steps("d") == balance.effective_steps("d")


@pytest.mark.parametrize(("mu", "effective"), [(0.0, 3.0), (0.4, 1 + 0.8 + 0.64), (2.0, 1.0), (3.0, 1 + 0.5 + 0.25)])
def test_the_pull_of_fedprox_shrinks_earlier_steps(mu: float, effective: float) -> None:
    """With learning rate 0.5: 1 - 0.5 mu is 1, 0.8, 0 and -0.5, of which the size counts."""
    training = training_of(local_steps=3)
    balance = StepBalance(training, plans_of("a"), proximal_mu=mu)

    balance.ask("a")

    assert balance.effective_steps("a") == pytest.approx(effective)


RunRound = Callable[..., Arrays]


def test_a_hospital_with_a_quarter_of_the_steps_counts_as_much_as_the_others(
    run_round: RunRound, roster_of: Callable[..., Roster]
) -> None:
    balance = balance_of("abc", seconds={"a": 1, "b": 1, "c": 100})
    assert balance.ask("abc") == {"a": 8, "b": 8, "c": 2}
    server = Balanced(balance=balance, roster=roster_of("a", "b", "c"))
    model = {"weight": np.array([1.0, 1.0, 1.0])}
    moved = {"a": [1.8, 1.0, 1.0], "b": [1.0, 1.8, 1.0], "c": [1.0, 1.0, 1.2]}  # each by 0.1 a step

    stepped = run_round(server, model, {site: {"weight": np.array(each)} for site, each in moved.items()})

    # Weights are equal; the mean number of steps is 6, so each moves its own number by 6 * 0.1 / 3.
    np.testing.assert_allclose(stepped["weight"], [1.2, 1.2, 1.2])


def test_where_all_take_their_own_steps_it_is_the_weighted_mean(
    run_round: RunRound, roster_of: Callable[..., Roster]
) -> None:
    balance = balance_of("ab", seconds={})
    model, answers = {"weight": np.array([0.25])}, {"a": {"weight": np.array([3.0])}, "b": {"weight": np.array([7.0])}}
    strategies = [Balanced(balance=balance, roster=roster_of("a", "b")), FedAvg(roster=roster_of("a", "b"))]

    balanced, mean = (run_round(each, model, answers, {"a": 10, "b": 30}) for each in strategies)

    np.testing.assert_allclose(balanced["weight"], mean["weight"], rtol=1e-12)
    assert mean["weight"] == [6.0]
