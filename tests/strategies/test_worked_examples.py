"""The numbers that the project's requirements work out, reproduced by the strategies as they run in a federation."""

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message
from flwr.serverapp import Grid

from fl_contract.array_record import Arrays, from_array_record, to_array_record
from fl_contract.messages import CONFIG
from strategies.fedavg import FedAvg, weighted_mean
from strategies.fedavgm import FedAvgM
from strategies.fedsgd import FedSGD
from strategies.one_shot_ensemble import OneShotEnsemble
from strategies.participation import Roster, SiteSampling, SiteWeighting
from strategies.q_fedavg import QFedAvg

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


def test_nesterovs_momentum_steps_by_the_update_and_what_it_makes_of_the_momentum(
    run_round: RunRound, roster_of: MakeRoster
) -> None:
    strategy = FedAvgM(server_learning_rate=0.5, server_momentum=0.5, server_nesterov=True, roster=roster_of("a", "b"))

    # Round 1: u = 2, v = 2, step 0.5 * (2 + 0.5 * 2) = 1.5. Round 2: u = 4, v = 0.5 * 2 + 4 = 5,
    # step 0.5 * (4 + 0.5 * 5) = 3.25.
    first = run_round(strategy, model_of(0), {"a": model_of(1), "b": model_of(3)})
    second = run_round(strategy, first, {"a": model_of(5.5), "b": model_of(5.5)}, server_round=2)

    assert (first["theta"].tolist(), second["theta"].tolist()) == ([1.5], [4.75])


def test_fedsgd_steps_by_the_weighted_mean_of_gradients(run_round: RunRound, roster_of: MakeRoster) -> None:
    strategy = FedSGD(learning_rate=0.5, server_learning_rate=0.25, roster=roster_of("a", "b"))

    model = run_round(strategy, model_of(1, 2), {"a": model_of(4, 0), "b": model_of(0, -8)}, {"a": 3, "b": 1})

    # Mean gradient: [3/4 * 4, 1/4 * -8] = [3, -2]. Step: [1, 2] - 0.25 * 0.5 * [3, -2].
    assert model["theta"].tolist() == [0.625, 2.25]


def test_fedsgd_bounds_the_gradient_and_not_its_distance_from_the_model(
    ask: Callable[..., dict[str, Message]], reply_to: Callable[..., Message], roster_of: MakeRoster
) -> None:
    sampling = SiteSampling(min_sites=1, generator=np.random.default_rng(0), max_update_norm=5.0)
    strategy = FedSGD(learning_rate=1.0, sampling=sampling, roster=roster_of("a", "b"))
    requests = ask(strategy, model_of(100, 100))

    # |[3, 4]| = 5 is within the bound, though 96 and 97 away from the model; |[99, 99]| = 140 is not, though near it.
    strategy.aggregate_train(1, [reply_to(requests["a"], model_of(3, 4)), reply_to(requests["b"], model_of(99, 99))])

    assert set(strategy.outcome.examples) == {"a"}
    assert "norm is 140; expected at most 5" in strategy.outcome.left_out["b"][1]


def run_fair_round(
    strategy: QFedAvg,
    model: Arrays,
    sent: dict[str, tuple[Arrays, float, int]],
    ask: Callable[..., dict[str, Message]],
    reply_to: Callable[..., Message],
) -> Arrays:
    """A round in which each hospital sends a model, its training loss and its number of examples."""
    requests = ask(strategy, model)
    replies = [
        reply_to(requests[site], arrays, examples, metrics={"loss": loss})
        for site, (arrays, loss, examples) in sent.items()
    ]
    stepped, _ = strategy.aggregate_train(1, replies)
    assert stepped is not None
    return from_array_record(stepped)


@pytest.mark.parametrize(
    ("q", "weighting", "expected"),
    [
        # w = 0, e = 0.5, so L = 2. a: y = 1, F = 1, d = -2, |d|^2 = 4. b: y = -2, F = 3, d = 4, |d|^2 = 16.
        # q = 1, p = 1, 1: sum F d = 1 * -2 + 3 * 4 = 10; h: 1 * 4 + 2 * 1 = 6 and 1 * 16 + 2 * 3 = 22; 0 - 10 / 28.
        (1.0, "equal", -10 / 28),
        # q = 2: sum F^2 d = -2 + 36 = 34; h: 2 * 1 * 4 + 2 * 1 = 10 and 2 * 3 * 16 + 2 * 9 = 114; 0 - 34 / 124.
        (2.0, "equal", -34 / 124),
        # q = 1, p = 30, 10: sum p F d = 30 * -2 + 10 * 12 = 60; sum p h = 30 * 6 + 10 * 22 = 400; 0 - 60 / 400.
        (1.0, "examples", -0.15),
        # q = 0 is FedAvg: (30 * 1 + 10 * -2) / 40.
        (0.0, "examples", 0.25),
    ],
)
def test_q_fedavg_follows_the_paper(
    q: float,
    weighting: Literal["equal", "examples"],
    expected: float,
    ask: Callable[..., dict[str, Message]],
    reply_to: Callable[..., Message],
    roster_of: MakeRoster,
) -> None:
    strategy = QFedAvg(
        fairness=q, learning_rate=0.5, weighting=SiteWeighting(kind=weighting), roster=roster_of("a", "b")
    )
    sent = {"a": (model_of(1), 1.0, 30), "b": (model_of(-2), 3.0, 10)}

    model = run_fair_round(strategy, model_of(0), sent, ask, reply_to)

    assert model["theta"] == pytest.approx([expected], rel=1e-6)


def test_a_hospital_without_loss_does_not_move_a_fair_model(
    ask: Callable[..., dict[str, Message]], reply_to: Callable[..., Message], roster_of: MakeRoster
) -> None:
    strategy = QFedAvg(fairness=2.0, learning_rate=0.5, roster=roster_of("a", "b"))
    sent = {"a": (model_of(1), 0.0, 1), "b": (model_of(-2), 3.0, 1)}

    model = run_fair_round(strategy, model_of(0), sent, ask, reply_to)

    # F^2 d of a is 1e-20 * -2; only b's is left: 36 / 114.
    assert model["theta"] == pytest.approx([-36 / 114], rel=1e-7)


@pytest.mark.parametrize("loss", [None, -0.5, math.nan, math.inf, 1e10, 1, [0.5]])
def test_a_reply_without_a_usable_loss_is_left_out_of_a_fair_round(
    loss: Any, ask: Callable[..., dict[str, Message]], reply_to: Callable[..., Message], roster_of: MakeRoster
) -> None:
    strategy = QFedAvg(fairness=1.0, learning_rate=0.5, roster=roster_of("a", "b"))
    requests = ask(strategy, model_of(0))
    metrics = {} if loss is None else {"loss": loss}

    strategy.aggregate_train(
        1,
        [
            reply_to(requests["a"], model_of(1), metrics=metrics),
            reply_to(requests["b"], model_of(1), metrics={"loss": 0.5}),
        ],
    )

    assert set(strategy.outcome.examples) == {"b"}
    code, reason = strategy.outcome.left_out["a"]
    assert code == "unusable-reply"
    assert "expected a number from 0 to 1e+09" in reason


def test_an_ensemble_keeps_the_usable_models_of_its_last_round_by_name_of_hospital(
    ask: Callable[..., dict[str, Message]], reply_to: Callable[..., Message], roster_of: MakeRoster
) -> None:
    strategy = OneShotEnsemble(roster=roster_of("a", "b", "c"))
    assert strategy.result(model_of(0)) == model_of(0)
    for server_round, shift in ((1, 10), (2, 0)):
        requests = ask(strategy, model_of(0), server_round)
        strategy.aggregate_train(
            server_round,
            [
                reply_to(requests["c"], model_of(3 + shift)),
                reply_to(requests["b"], model_of(math.nan)),
                reply_to(requests["a"], model_of(1 + shift)),
            ],
        )
    resumed = OneShotEnsemble(roster=roster_of("a", "b", "c"))
    resumed.load_state(strategy.state())

    for each in (strategy, resumed):
        members = {name: array.tolist() for name, array in each.result(model_of(0)).items()}
        assert members == {"members.0.theta": [1.0], "members.1.theta": [3.0]}


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
