"""The numbers that the project's requirements work out, reproduced by the strategies as they run in a federation."""

from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message
from flwr.serverapp import Grid

from fl_contract.messages import CONFIG, Arrays, to_array_record
from strategies.fedavg import FedAvg, weighted_mean
from strategies.fedavgm import FedAvgM
from strategies.participation import Roster, SiteWeighting

RunRound = Callable[..., Arrays]
MakeRoster = Callable[..., Roster]


def model_of(*values: float) -> Arrays:
    return {"theta": np.array(values, dtype=np.float32)}


def test_two_clients_average_to_the_middle(run_round: RunRound, roster_of: MakeRoster) -> None:
    strategy = FedAvg(roster=roster_of("a", "b"))

    model = run_round(strategy, model_of(0, 0), {"a": model_of(1, 1), "b": model_of(1, -1)})

    # ([1, 1] + [1, -1]) / 2 = [2, 0] / 2
    assert model["theta"].tolist() == [1.0, 0.0]


def test_a_momentum_blend_of_equal_updates_is_that_update(run_round: RunRound, roster_of: MakeRoster) -> None:
    # rho = 0.1: v = 0.1 * v + 0.9 * u.
    strategy = FedAvgM(server_momentum=0.1, server_dampening=0.1, roster=roster_of("a"))

    # Round 1: v = u = [1, 0] - [0, 0]. Round 2: u = [2, 0] - [1, 0] and v = 0.1 * [1, 0] + 0.9 * [1, 0] = [1, 0].
    first = run_round(strategy, model_of(0, 0), {"a": model_of(1, 0)})
    second = run_round(strategy, first, {"a": model_of(2, 0)}, server_round=2)

    assert (second["theta"] - first["theta"]).tolist() == [1.0, 0.0]
    assert strategy.state()["theta"].tolist() == [1.0, 0.0]


def test_institution_weights_and_the_server_rate_step_to_0_996(run_round: RunRound, roster_of: MakeRoster) -> None:
    strategy = FedAvg(
        weighting=SiteWeighting(kind="institution", institution_weights={"a": 0.6, "b": 0.4}),
        server_learning_rate=0.1,
        roster=roster_of("a", "b"),
    )
    sent = {"a": model_of(0.8, 0.8), "b": model_of(1.2, 1.2)}

    # Examples of 1 to 99 would give 1.196 if they counted.
    model = run_round(strategy, model_of(1, 1), sent, {"a": 1, "b": 99})

    # Mean: 0.6 * 0.8 + 0.4 * 1.2 = 0.96. Step: 0.9 * 1 + 0.1 * 0.96 = 0.996.
    assert model["theta"] == pytest.approx([0.996, 0.996], abs=1e-7)


def test_opposite_gradients_average_to_nothing(run_round: RunRound, roster_of: MakeRoster) -> None:
    strategy = FedAvg(roster=roster_of("a", "b"))

    model = run_round(strategy, model_of(0, 0), {"a": model_of(1, 1), "b": model_of(-1, -1)})

    # Each coordinate: (1 + -1) / 2 = 0.
    assert model["theta"].tolist() == [0.0, 0.0]


def test_losses_are_weighted_like_models(
    reply_to: Callable[..., Message], grid_of: Callable[..., Grid], roster_of: MakeRoster
) -> None:
    weighting = SiteWeighting(kind="institution", institution_weights={"a": 0.6, "b": 0.4})
    strategy = FedAvg(weighting=weighting, roster=roster_of("a", "b"))
    requests = strategy.configure_evaluate(1, to_array_record(model_of(0)), ConfigRecord(), grid_of())
    losses = {"a": 0.1, "b": 0.2}

    replies = [
        reply_to(request, {}, 10, metrics={"loss": losses[str(request.content.config_records[CONFIG]["site"])]})
        for request in requests
    ]
    metrics = strategy.aggregate_evaluate(1, replies)

    # 0.6 * 0.1 + 0.4 * 0.2 = 0.06 + 0.08
    assert metrics is not None
    assert metrics["loss"] == pytest.approx(0.14, abs=1e-15)
    assert weighted_mean([(0.6, 0.1), (0.4, 0.2)]) == pytest.approx(0.14, abs=1e-15)
