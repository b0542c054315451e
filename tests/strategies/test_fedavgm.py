"""FedAvgM moves the trained arrays by v = b * v + (1 - d) * u, and nothing else by momentum."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from flwr.app import Message
from torch import nn

from fl_contract.array_record import Arrays
from fl_contract.errors import QuorumError
from fl_contract.models import buffer_names
from strategies.fedavgm import FedAvgM
from strategies.participation import Roster

Ask = Callable[..., dict[str, Message]]
ReplyTo = Callable[..., Message]
RunRound = Callable[..., Arrays]
MakeRoster = Callable[..., Roster]


def model_of(*values: float) -> Arrays:
    return {"w": np.array(values, dtype=np.float32)}


def test_three_rounds_follow_the_formula(run_round: RunRound, roster_of: MakeRoster) -> None:
    strategy = FedAvgM(server_learning_rate=0.5, server_momentum=0.5, server_dampening=0.25, roster=roster_of("a", "b"))
    model = model_of(0)
    seen = []

    for server_round, update in enumerate([1.0, 2.0, -1.0], start=1):
        # The hospitals' mean lies one update from the model; each is 3 off, on either side.
        sent = {"a": model_of(model["w"][0] + update + 3), "b": model_of(model["w"][0] + update - 3)}
        model = run_round(strategy, model, sent, server_round=server_round)
        seen.append((strategy.state()["w"][0], model["w"][0]))

    assert seen == [
        (1.0, 0.5),  # v = 1 without dampening;            0 + 0.5 * 1
        (2.0, 1.5),  # v = 0.5 * 1 + 0.75 * 2 = 2;          0.5 + 0.5 * 2
        (0.25, 1.625),  # v = 0.5 * 2 + 0.75 * -1 = 0.25;   1.5 + 0.5 * 0.25
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("momentum", "dampening", "rate", "nesterov"),
    [(0.9, 0.0, 1.0, False), (0.1, 0.1, 0.3, False), (0.0, 0.0, 0.5, False), (0.9, 0.0, 0.3, True)],
)
def test_the_steps_are_those_of_torch_sgd_on_the_negative_update(
    momentum: float, dampening: float, rate: float, nesterov: bool, run_round: RunRound, roster_of: MakeRoster
) -> None:
    strategy = FedAvgM(
        server_learning_rate=rate,
        server_momentum=momentum,
        server_dampening=dampening,
        server_nesterov=nesterov,
        roster=roster_of("a"),
    )
    model: Arrays = {"w": np.array([1.0, -2.0, 0.5])}
    parameter = torch.tensor(model["w"].copy(), requires_grad=True)
    reference = torch.optim.SGD([parameter], lr=rate, momentum=momentum, dampening=dampening, nesterov=nesterov)
    generator = np.random.default_rng(5)

    for server_round in range(1, 6):
        mean = generator.normal(size=3)
        parameter.grad = torch.tensor(model["w"] - mean)
        reference.step()
        model = run_round(strategy, model, {"a": {"w": mean}}, server_round=server_round)

    assert model["w"] == pytest.approx(parameter.detach().numpy(), abs=1e-12)


def test_momentum_never_extrapolates_the_statistics_of_batch_norm(run_round: RunRound, roster_of: MakeRoster) -> None:
    layer = nn.BatchNorm1d(2)
    start = {name: tensor.detach().numpy().copy() for name, tensor in layer.state_dict().items()}
    strategy = FedAvgM(server_momentum=0.9, buffer_names=buffer_names(layer), roster=roster_of("a", "b"))
    model = start

    # With momentum the variance would go 1 -> 0.5 -> 0.5 + 0.9 * -0.5 + (0.01 - 0.5) = -0.44.
    for server_round, variance in enumerate([0.5, 0.01, 0.001, 0.0], start=1):
        sent = {
            site: {
                **{name: array + np.float32(1) for name, array in model.items() if array.dtype == np.float32},
                "running_mean": np.full(2, shift, "f4"),
                "running_var": np.full(2, variance, "f4"),
                "num_batches_tracked": np.array(10 * server_round),
            }
            for site, shift in (("a", -3.0), ("b", 4.0))
        }
        model = run_round(strategy, model, sent, server_round=server_round)

        assert model["running_var"].tolist() == [np.float32(variance)] * 2
        assert model["running_mean"].tolist() == [0.5, 0.5]
        assert model["num_batches_tracked"] == 10 * server_round

    assert model["num_batches_tracked"].dtype == np.int64
    assert model["num_batches_tracked"].shape == ()
    assert set(strategy.state()) == {"weight", "bias"}
    assert model["weight"][0] > 5  # the trained arrays do have momentum: 4 updates of 1 would make it 1 + 4


def test_a_run_that_goes_on_from_its_state_is_the_same_to_the_bit(run_round: RunRound, roster_of: MakeRoster) -> None:
    generator = np.random.default_rng(3)
    rounds = [{site: {"w": generator.normal(size=4).astype("f4")} for site in ("a", "b")} for _ in range(4)]
    whole = FedAvgM(roster=roster_of("a", "b"))
    model = model_of(0, 0, 0, 0)
    for sent in rounds[:2]:
        model = run_round(whole, model, sent)
    resumed = FedAvgM(roster=roster_of("a", "b"))
    resumed.load_state({name: array.copy() for name, array in whole.state().items()})
    forgetful = FedAvgM(roster=roster_of("a", "b"))
    ends = {}

    for name, strategy in (("whole", whole), ("resumed", resumed), ("forgetful", forgetful)):
        last = model
        for sent in rounds[2:]:
            last = run_round(strategy, last, sent)
        ends[name] = last["w"].tobytes()

    assert ends["resumed"] == ends["whole"]
    assert ends["forgetful"] != ends["whole"]


def test_a_round_below_the_quorum_leaves_the_momentum_alone(
    ask: Ask, reply_to: ReplyTo, run_round: RunRound, roster_of: MakeRoster
) -> None:
    strategy = FedAvgM(roster=roster_of("a"))
    model = run_round(strategy, model_of(0), {"a": model_of(1)})
    before = strategy.state()["w"].copy()
    requests = ask(strategy, model, 2)

    with pytest.raises(QuorumError):
        strategy.aggregate_train(2, [reply_to(requests["a"], model_of(np.nan))])

    assert strategy.state()["w"].tobytes() == before.tobytes()


def test_momentum_is_kept_in_float64_for_a_model_in_float16(run_round: RunRound, roster_of: MakeRoster) -> None:
    strategy = FedAvgM(roster=roster_of("a"))

    model = run_round(strategy, {"w": np.zeros(2, "f2")}, {"a": {"w": np.ones(2, "f2")}})

    assert model["w"].dtype == np.float16
    assert strategy.state()["w"].dtype == np.float64
