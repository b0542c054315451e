"""Where Flower has the same algorithm, ours gives the same models from the same replies, so that a user can switch."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from flwr.serverapp import strategy as flower

from fl_contract.array_record import Arrays, from_array_record, to_array_record
from fl_contract.errors import QuorumError
from strategies.fedadagrad import FedAdagrad
from strategies.fedadam import FedAdam
from strategies.fedavg import FedAvg
from strategies.fedavgm import FedAvgM
from strategies.fedyogi import FedYogi
from strategies.krum import Krum
from strategies.median import Median
from strategies.participation import Roster, SiteSampling
from strategies.trimmed_mean import TrimmedMean

Ask = Callable[..., dict[str, Message]]
ReplyTo = Callable[..., Message]
MakeRoster = Callable[..., Roster]

SITES = ("a", "b", "c", "d", "e", "f", "g")
EXAMPLES = dict(zip(SITES, (17, 400, 3, 88, 51, 260, 9), strict=True))


def model_of(seed: int, scale: float = 1.0) -> Arrays:
    generator = np.random.default_rng(seed)
    return {
        "weight": (scale * generator.normal(size=(4, 3))).astype(np.float32),
        "bias": (scale * generator.normal(size=3)).astype(np.float32),
        "scale": np.array(scale * generator.normal(), np.float32),
    }


def run_both(
    ours: FedAvg,
    theirs: flower.FedAvg,
    ask: Ask,
    reply_to: ReplyTo,
    grid: Grid,
    *,
    rounds: int = 4,
    examples: Mapping[str, int] = EXAMPLES,
    seed: int = 0,
) -> list[tuple[Arrays, Arrays]]:
    """The models after each round, of both; hospitals move what they were sent, which may differ by roundings."""
    ends = []
    mine, other = model_of(seed), model_of(seed)
    for server_round in range(1, rounds + 1):
        requests = ask(ours, mine, server_round)
        list(theirs.configure_train(server_round, to_array_record(other), ConfigRecord(), grid))
        moves = {site: model_of(1000 * seed + 100 * server_round + ord(site), 0.1) for site in SITES}
        answers = [
            [
                reply_to(requests[site], {name: start[name] + moves[site][name] for name in start}, examples[site])
                for site in SITES
            ]
            for start in (mine, other)
        ]
        stepped, _ = ours.aggregate_train(server_round, answers[0])
        expected, _ = theirs.aggregate_train(server_round, answers[1])
        assert isinstance(stepped, ArrayRecord)
        assert isinstance(expected, ArrayRecord)
        mine, other = from_array_record(stepped), from_array_record(expected)
        ends.append((mine, other))
    return ends


def assert_same(ends: list[tuple[Arrays, Arrays]]) -> None:
    for server_round, (mine, other) in enumerate(ends, start=1):
        for name, array in other.items():
            assert mine[name] == pytest.approx(array, rel=1e-6, abs=1e-6), (server_round, name)


LINEAR: dict[str, tuple[Callable[..., FedAvg], Callable[[], flower.FedAvg]]] = {
    "fedavg": (FedAvg, flower.FedAvg),
    "fedavgm": (lambda **c: FedAvgM(server_momentum=0.9, **c), lambda: flower.FedAvgM(server_momentum=0.9)),
    "fedavgm with a rate": (
        lambda **c: FedAvgM(server_momentum=0.5, server_learning_rate=0.3, **c),
        lambda: flower.FedAvgM(server_momentum=0.5, server_learning_rate=0.3),
    ),
    "fedavg with a rate": (
        lambda **c: FedAvg(server_learning_rate=0.7, **c),
        lambda: flower.FedAvgM(server_momentum=0.0, server_learning_rate=0.7),
    ),
    "median": (Median, flower.FedMedian),
    "trimmed mean": (lambda **c: TrimmedMean(trim_fraction=0.2, **c), lambda: flower.FedTrimmedAvg(beta=0.2)),
    "trimmed mean of all": (lambda **c: TrimmedMean(trim_fraction=0.0, **c), lambda: flower.FedTrimmedAvg(beta=0.0)),
    "krum": (lambda **c: Krum(num_hostile=2, **c), lambda: flower.Krum(num_malicious_nodes=2)),
}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", LINEAR)
def test_the_models_of_several_rounds_are_flowers(
    name: str, seed: int, ask: Ask, reply_to: ReplyTo, roster_of: MakeRoster, grid_of: Callable[..., Grid]
) -> None:
    ours, theirs = LINEAR[name]

    ends = run_both(ours(roster=roster_of(*SITES)), theirs(), ask, reply_to, grid_of(*range(1, 8)), seed=seed)

    assert_same(ends)


def test_multi_krum_is_flowers_where_hospitals_have_equally_many_examples(
    ask: Ask, reply_to: ReplyTo, roster_of: MakeRoster, grid_of: Callable[..., Grid]
) -> None:
    """Flower weighs the chosen models by the examples that hospitals declare; ours counts hospitals."""
    ours = Krum(num_hostile=2, num_chosen=3, roster=roster_of(*SITES))
    theirs = flower.MultiKrum(num_malicious_nodes=2, num_nodes_to_select=3)

    ends = run_both(ours, theirs, ask, reply_to, grid_of(*range(1, 8)), examples=dict.fromkeys(SITES, 10))

    assert_same(ends)


ADAPTIVE: dict[str, tuple[type[FedAdam], Callable[..., Any]]] = {
    "fedadam": (FedAdam, flower.FedAdam),
    "fedyogi": (FedYogi, flower.FedYogi),
    "fedadagrad": (FedAdagrad, flower.FedAdagrad),
}


@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive_ones_are_flowers_once_both_begin_alike(
    name: str, ask: Ask, reply_to: ReplyTo, roster_of: MakeRoster, grid_of: Callable[..., Grid]
) -> None:
    """The second moment begins at t * t here, as in the paper, at 0 in Flower; Flower's FedAdam corrects Adam's bias.

    So Flower's is given the paper's beginning, and its correction, a factor on the rate by the round, is taken out.
    """
    ours_type, theirs_type = ADAPTIVE[name]
    tau, beta2 = 0.01, 0.99
    beta1 = 0.0 if name == "fedadagrad" else 0.9
    ours = ours_type(server_learning_rate=0.05, server_betas=(beta1, beta2), server_tau=tau, roster=roster_of(*SITES))
    betas = {} if name == "fedadagrad" else {"beta_1": beta1, "beta_2": beta2}
    theirs = theirs_type(eta=0.05, tau=tau, **betas)
    theirs.v_t = {key: np.full(array.shape, tau**2, np.float32) for key, array in model_of(0).items()}
    if name == "fedadam":
        correct = theirs.aggregate_train

        def without_correction(server_round: int, replies: Any) -> Any:
            theirs.eta = 0.05 / np.sqrt(1 - beta2 ** (server_round + 1)) * (1 - beta1 ** (server_round + 1))
            return correct(server_round, replies)

        theirs.aggregate_train = without_correction

    assert_same(run_both(ours, theirs, ask, reply_to, grid_of(*range(1, 8))))


def test_flowers_mean_takes_in_nan_and_ours_leaves_it_out(ask: Ask, reply_to: ReplyTo, roster_of: MakeRoster) -> None:
    ours = FedAvg(roster=roster_of("a", "b"))
    requests = ask(ours, {"w": np.zeros(1, np.float32)})
    answers = [
        [
            reply_to(requests["a"], {"w": np.array([np.nan], np.float32)}),
            reply_to(requests["b"], {"w": np.array([2.0], np.float32)}),
        ]
        for _ in range(2)
    ]

    mine, _ = ours.aggregate_train(1, answers[0])
    theirs, _ = flower.FedAvg().aggregate_train(1, answers[1])

    assert mine is not None
    assert theirs is not None
    assert from_array_record(mine)["w"].tolist() == [2.0]
    assert np.isnan(from_array_record(theirs)["w"]).all()


def test_flower_goes_on_without_replies_and_ours_stops(ask: Ask, roster_of: MakeRoster) -> None:
    ours = FedAvg(roster=roster_of("a"), sampling=SiteSampling(min_sites=1, generator=np.random.default_rng(0)))
    ask(ours, {"w": np.zeros(1, np.float32)})

    assert flower.FedAvg().aggregate_train(1, []) == (None, None)
    with pytest.raises(QuorumError):
        ours.aggregate_train(1, [])
