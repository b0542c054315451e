"""Both halves of each algorithm against its paper's formula, worked out in plain arithmetic on one weight."""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import pytest
import torch
from flwr.app import Message
from torch import nn

from fl_contract.array_record import Arrays
from fl_contract.messages import request_control
from strategies.client_half import ClientHalf
from strategies.feddyn import FedDyn, FedDynClient
from strategies.fednova import FedNova
from strategies.fedprox import FedProxClient
from strategies.fedsgd import FedSGD, FedSGDClient
from strategies.participation import Roster, SiteSampling, SiteWeighting
from strategies.scaffold import Scaffold, ScaffoldClient

Ask = Callable[..., dict[str, Message]]
RunRound = Callable[..., Arrays]
MakeRoster = Callable[..., Roster]

RATE, STEPS = 0.1, 3
PATH = RATE * STEPS
TARGETS = {"a": 2.0, "b": -1.0}
"""Each hospital's loss is (w - target)^2 / 2."""

EQUAL = SiteWeighting(kind="equal")


def one_weight(value: float) -> nn.Module:
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, value)
    return model


def train_locally(model: nn.Module, half: ClientHalf, target: float) -> float:
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    half.attach(optimizer)
    (weight,) = model.parameters()
    for _ in range(STEPS):
        optimizer.zero_grad()
        ((weight - target) ** 2 / 2).sum().backward()
        optimizer.step()
    return weight.item()


def gradient(w: float, *, target: float, shift: float = 0.0, mu: float = 0.0, start: float = 0.0) -> float:
    return (w - target) + shift + mu * (w - start)


def by_hand(start: float, slope: Callable[[float], float]) -> float:
    w = start
    for _ in range(STEPS):
        w -= RATE * slope(w)
    return w


def arrays_of(value: float) -> Arrays:
    return {"weight": np.array([[value]])}


def test_fedprox_pulls_towards_the_received_weight() -> None:
    model = one_weight(0.5)

    trained = train_locally(model, FedProxClient(model, control={}, state={}, mu=0.7), target=2.0)

    assert trained == pytest.approx(by_hand(0.5, partial(gradient, target=2.0, mu=0.7, start=0.5)), rel=1e-12)


def test_the_plain_half_changes_nothing_and_keeps_nothing() -> None:
    model = one_weight(0.5)
    half = ClientHalf(model, control={}, state={})

    assert train_locally(model, half, target=2.0) == pytest.approx(
        by_hand(0.5, partial(gradient, target=2.0)), rel=1e-12
    )
    assert half.state() == {}


def test_three_rounds_of_scaffold_follow_the_paper(ask: Ask, run_round: RunRound, roster_of: MakeRoster) -> None:
    server = Scaffold(local_path=PATH, server_learning_rate=0.5, weighting=EQUAL, roster=roster_of("a", "b"))
    model, kept = arrays_of(0.25), {site: dict[str, np.ndarray]() for site in TARGETS}
    x, c, c_of = 0.25, 0.0, dict.fromkeys(TARGETS, 0.0)
    for server_round in (1, 2, 3):
        controls = {site: request_control(each) for site, each in ask(server, model, server_round).items()}
        sent, y = {}, {}
        for site, target in TARGETS.items():
            local = one_weight(float(model["weight"][0, 0]))
            half = ScaffoldClient(local, control=controls[site], state=kept[site], local_path=PATH)
            sent[site] = arrays_of(train_locally(local, half, target))
            kept[site] = half.state()
            y[site] = by_hand(x, partial(gradient, target=target, shift=c - c_of[site]))
        new_c_of = {site: c_of[site] - c + (x - y[site]) / PATH for site in TARGETS}
        c += sum(new_c_of[site] - c_of[site] for site in TARGETS) / len(TARGETS)
        x, c_of = x + 0.5 * (sum(y.values()) / 2 - x), new_c_of

        model = run_round(server, model, sent, server_round=server_round)

        assert model["weight"][0, 0] == pytest.approx(x, rel=1e-9)
        assert server.state()["weight"][0, 0] == pytest.approx(c, rel=1e-9)
        assert {site: kept[site]["weight"][0, 0] for site in TARGETS} == pytest.approx(c_of, rel=1e-9)


def test_scaffold_moves_its_control_by_the_share_that_answered(run_round: RunRound, roster_of: MakeRoster) -> None:
    sampling = SiteSampling(min_sites=1, fraction=0.5, generator=np.random.default_rng(0))
    server = Scaffold(local_path=0.5, sampling=sampling, roster=roster_of("a", "b"))

    run_round(server, arrays_of(1.0), {site: arrays_of(0.5) for site in sampling_of(server)}, server_round=1)

    assert server.state()["weight"][0, 0] == pytest.approx(0.5 * (1.0 - 0.5) / 0.5)


def sampling_of(server: Scaffold) -> tuple[str, ...]:
    """Whom the first round will ask: the generator's draw, made on a copy."""
    sampling = server.sampling
    copy = np.random.default_rng(0)
    return SiteSampling(min_sites=1, fraction=sampling.fraction, generator=copy).choose(("a", "b"))


def test_three_rounds_of_feddyn_follow_the_paper(run_round: RunRound, roster_of: MakeRoster) -> None:
    alpha = 0.4
    server = FedDyn(alpha=alpha, weighting=EQUAL, roster=roster_of("a", "b"))
    model, kept = arrays_of(0.25), {site: dict[str, np.ndarray]() for site in TARGETS}
    w, h, g = 0.25, 0.0, dict.fromkeys(TARGETS, 0.0)
    for server_round in (1, 2, 3):
        sent, v = {}, {}
        for site, target in TARGETS.items():
            local = one_weight(float(model["weight"][0, 0]))
            half = FedDynClient(local, control={}, state=kept[site], alpha=alpha)
            sent[site] = arrays_of(train_locally(local, half, target))
            kept[site] = half.state()
            v[site] = by_hand(w, partial(gradient, target=target, shift=-g[site], mu=alpha, start=w))
            g[site] -= alpha * (v[site] - w)
        mean = sum(v.values()) / 2
        h -= alpha * (mean - w)
        w = mean - h / alpha

        model = run_round(server, model, sent, server_round=server_round)

        assert model["weight"][0, 0] == pytest.approx(w, rel=1e-9)
        assert {site: kept[site]["weight"][0, 0] for site in TARGETS} == pytest.approx(g, rel=1e-9)


def take_one_step(model: nn.Module, half: ClientHalf, loss: torch.Tensor) -> None:
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=RATE)
    half.attach(optimizer)
    loss.backward()
    optimizer.step()


def test_three_rounds_of_fedsgd_follow_the_paper(run_round: RunRound, roster_of: MakeRoster) -> None:
    server = FedSGD(learning_rate=RATE, server_learning_rate=0.5, roster=roster_of("a", "b"))
    model, w = arrays_of(0.25), 0.25
    for server_round in (1, 2, 3):
        sent = {}
        for site, target in TARGETS.items():
            local = one_weight(float(model["weight"][0, 0]))
            half = FedSGDClient(local, control={}, state={})
            (weight,) = local.parameters()
            take_one_step(local, half, ((weight - target) ** 2 / 2).sum())
            sent[site] = half.outgoing()
            assert half.state() == {}
        w -= 0.5 * RATE * (3 * gradient(w, target=TARGETS["a"]) + gradient(w, target=TARGETS["b"])) / 4

        model = run_round(server, model, sent, {"a": 3, "b": 1}, server_round=server_round)

        assert model["weight"][0, 0] == pytest.approx(w, rel=1e-12)


def test_a_gradient_is_zero_where_training_does_not_reach_and_buffers_travel_as_they_are() -> None:
    used, frozen, norm = nn.Linear(1, 1, bias=False), nn.Linear(1, 1).requires_grad_(False), nn.BatchNorm1d(1)
    model = nn.ModuleDict({"used": used, "frozen": frozen, "norm": norm})
    half = FedSGDClient(model, control={}, state={})
    norm(torch.tensor([[1.0], [3.0]]))

    take_one_step(model, half, 5 * used.weight.sum())

    outgoing = half.outgoing()
    assert list(outgoing) == list(model.state_dict())
    assert {name: array.dtype for name, array in outgoing.items()} == {
        name: each.numpy().dtype for name, each in model.state_dict().items()
    }
    assert outgoing["used.weight"].tolist() == [[5.0]]
    assert [outgoing[name].tolist() for name in ("frozen.weight", "frozen.bias", "norm.weight")] == [[[0]], [0], [0]]
    # Momentum 0.1: 0.9 * 0 + 0.1 * 2 of the mean 2.
    assert outgoing["norm.running_mean"] == pytest.approx([0.2])
    assert outgoing["norm.num_batches_tracked"] == 1


def test_fednova_takes_the_mean_of_updates_by_step(run_round: RunRound, roster_of: MakeRoster) -> None:
    steps: Mapping[float, int] = {30: 10, 10: 2}
    server = FedNova(local_steps=lambda examples: steps[examples], server_learning_rate=0.5, roster=roster_of("a", "b"))

    model = run_round(
        server, arrays_of(1.0), {"a": arrays_of(4.0), "b": arrays_of(-1.0)}, {"a": 30, "b": 10}, server_round=1
    )

    # p = 3/4, 1/4; sum p t = 8; sum p (y - x) / t = 3/4 * 3/10 - 1/4 * 2/2 = -0.025
    assert model["weight"][0, 0] == pytest.approx(1.0 + 0.5 * 8 * -0.025, rel=1e-12)


def test_fednova_with_equal_steps_is_fedavg(run_round: RunRound, roster_of: MakeRoster) -> None:
    server = FedNova(local_steps=lambda _: 7, roster=roster_of("a", "b"))

    model = run_round(server, arrays_of(1.0), {"a": arrays_of(4.0), "b": arrays_of(-1.0)}, server_round=1)

    assert model["weight"][0, 0] == pytest.approx(1.5, rel=1e-12)
