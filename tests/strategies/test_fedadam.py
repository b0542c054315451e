"""FedAdam moves the trained arrays by r * m / (sqrt(v) + t), from m = 0 and v = t * t."""

from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import Message

from fl_contract.array_record import Arrays
from strategies.fedadam import FedAdam
from strategies.participation import Roster

RunRound = Callable[..., Arrays]
MakeRoster = Callable[..., Roster]
Ask = Callable[..., dict[str, Message]]


def model_of(*values: float) -> Arrays:
    return {"w": np.array(values, dtype=np.float64)}


def test_two_rounds_follow_the_formula(run_round: RunRound, roster_of: MakeRoster) -> None:
    # m = 0.5 * 0 + 0.5 * 2 = 1; v = 0.75 * 1 + 0.25 * 4 = 1.75; step 0.1 * 1 / (1.75^0.5 + 1)
    # m = 0.5 * 1 + 0.5 * -3 = -1; v = 0.75 * 1.75 + 0.25 * 9 = 3.5625; step 0.1 * -1 / (3.5625^0.5 + 1)
    strategy = FedAdam(server_learning_rate=0.1, server_betas=(0.5, 0.75), server_tau=1.0, roster=roster_of("a", "b"))
    first = run_round(strategy, model_of(0.0), {"a": model_of(5.0), "b": model_of(-1.0)}, server_round=1)
    expected = 0.1 / (1.75**0.5 + 1)
    assert first["w"][0] == pytest.approx(expected, rel=1e-12)

    sent = {site: model_of(first["w"][0] - 3.0) for site in ("a", "b")}
    second = run_round(strategy, first, sent, server_round=2)

    assert second["w"][0] == pytest.approx(expected - 0.1 / (3.5625**0.5 + 1), rel=1e-12)
    assert {name: array[0] for name, array in strategy.state().items()} == {
        "first-moment/w": pytest.approx(-1.0),
        "second-moment/w": pytest.approx(3.5625),
    }


def test_a_number_that_does_not_move_stays(run_round: RunRound, roster_of: MakeRoster) -> None:
    strategy = FedAdam(roster=roster_of("a"))

    assert run_round(strategy, model_of(3.0), {"a": model_of(3.0)}, server_round=1)["w"][0] == 3.0


def test_it_goes_on_where_its_state_was_taken(run_round: RunRound, roster_of: MakeRoster) -> None:
    def run(strategy: FedAdam, model: Arrays, server_round: int) -> Arrays:
        return run_round(strategy, model, {"a": {"w": model["w"] + server_round}}, server_round=server_round)

    whole = FedAdam(roster=roster_of("a"))
    model = run(whole, run(whole, model_of(1.0, -1.0), 1), 2)
    before, after = FedAdam(roster=roster_of("a")), FedAdam(roster=roster_of("a"))
    half = run(before, model_of(1.0, -1.0), 1)
    after.load_state(before.state())

    assert np.array_equal(run(after, half, 2)["w"], model["w"])
