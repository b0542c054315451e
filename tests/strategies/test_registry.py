"""A study's settings become the strategy it names; every setting arrives."""

from collections.abc import Callable

import numpy as np
import pytest

from fl_contract.study import Scalar, load_study
from strategies.fedavg import FedAvg
from strategies.fedavgm import FedAvgM
from strategies.participation import Roster
from strategies.registry import make_strategy

OVERRIDES: dict[str, Scalar] = {
    "strategy.server-learning-rate": 0.5,
    "strategy.server-momentum": 0.25,
    "strategy.server-dampening": 0.125,
    "strategy.weighting": "equal",
    "federation.min-sites": 2,
    "federation.fraction-sites": 0.75,
}


@pytest.mark.parametrize(("name", "kind"), [("fedavg", FedAvg), ("fedavgm", FedAvgM)])
def test_a_study_makes_the_strategy_that_it_names(
    name: str, kind: type[FedAvg], roster_of: Callable[..., Roster]
) -> None:
    study = load_study("breast-cancer", overrides={**OVERRIDES, "strategy.name": name})
    generator = np.random.default_rng(1)
    roster = roster_of("a", "b")

    strategy = make_strategy(study, roster=roster, generator=generator, buffer_names={"running_var"})

    assert type(strategy) is kind
    assert strategy.roster is roster
    assert strategy.server_learning_rate == 0.5
    assert strategy.buffer_names == {"running_var"}
    assert (strategy.sampling.min_sites, strategy.sampling.fraction) == (2, 0.75)
    assert strategy.sampling.generator is generator
    assert strategy.weighting.kind == "equal"
    if isinstance(strategy, FedAvgM):
        assert (strategy.server_momentum, strategy.server_dampening) == (0.25, 0.125)
