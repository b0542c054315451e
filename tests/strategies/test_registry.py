"""A study's settings become the strategy it names; every setting arrives."""

import re
from collections.abc import Callable

import numpy as np
import pytest

from fl_contract.errors import SettingError
from fl_contract.study_file import Scalar, load_study
from strategies.central_privacy import SpentRounds
from strategies.centred_clipping import CentredClipping
from strategies.cyclic import Cyclic
from strategies.fedadagrad import FedAdagrad
from strategies.fedadam import FedAdam
from strategies.fedavg import FedAvg
from strategies.fedavgm import FedAvgM
from strategies.fedbuff import FedBuff
from strategies.feddyn import FedDyn
from strategies.fednova import FedNova
from strategies.fedsgd import FedSGD
from strategies.fedyogi import FedYogi
from strategies.geometric_median import GeometricMedian
from strategies.krum import Krum
from strategies.median import Median
from strategies.norm_bounding import NormBounding
from strategies.one_shot_ensemble import OneShotEnsemble
from strategies.participation import Roster
from strategies.q_fedavg import QFedAvg
from strategies.registry import make_central_plan, make_central_strategy, make_strategy
from strategies.scaffold import Scaffold
from strategies.trimmed_mean import TrimmedMean

OVERRIDES: dict[str, Scalar] = {
    "strategy.server-learning-rate": 0.5,
    "strategy.weighting": "equal",
    "federation.min-sites": 2,
    "federation.fraction-sites": 0.75,
    "federation.max-update-norm": 3.5,
}


LOCAL: dict[str, dict[str, Scalar]] = {
    "fedsgd": {"privacy.steps-per-round": 1},
    "q-fedavg": {"privacy.mechanism": "none", "training.learning-rate": 0.0625},
}
"""What some algorithms need of local training."""


@pytest.mark.parametrize(
    ("name", "settings", "kind", "attributes"),
    [
        ("fedavg", {}, FedAvg, {}),
        ("fedprox", {}, FedAvg, {}),
        (
            "fedavgm",
            {"server-momentum": 0.25, "server-dampening": 0.125},
            FedAvgM,
            {"server_momentum": 0.25, "server_dampening": 0.125, "server_nesterov": False},
        ),
        ("fedavgm", {"server-nesterov": True}, FedAvgM, {"server_nesterov": True}),
        *(
            (
                kind.__name__.lower(),
                {"server-beta1": 0.5, "server-beta2": 0.75, "server-tau": 0.125},
                kind,
                {"server_betas": (0.5, 0.75), "server_tau": 0.125},
            )
            for kind in (FedAdam, FedYogi, FedAdagrad)
        ),
        ("fedsgd", {}, FedSGD, {"learning_rate": 0.75}),
        ("q-fedavg", {"fairness": 2.5}, QFedAvg, {"fairness": 2.5, "learning_rate": 0.0625}),
        ("scaffold", {}, Scaffold, {"local_path": 4 * 0.75}),
        ("feddyn", {"dynamic-alpha": 0.25}, FedDyn, {"alpha": 0.25}),
        ("fednova", {}, FedNova, {}),
        ("cyclic", {}, Cyclic, {}),
        ("fedbuff", {"max-staleness": 3}, FedBuff, {"max_staleness": 3}),
        ("median", {}, Median, {}),
        ("geometric-median", {}, GeometricMedian, {}),
        ("trimmed-mean", {"trim-fraction": 0.25}, TrimmedMean, {"trim_fraction": 0.25}),
        ("krum", {"num-hostile": 2, "num-chosen": 3}, Krum, {"num_hostile": 2, "num_chosen": 3}),
        ("norm-bounding", {"update-bound": 0.25}, NormBounding, {"update_bound": 0.25}),
        ("centred-clipping", {"clip-radius": 0.25}, CentredClipping, {"clip_radius": 0.25}),
    ],
)
def test_a_study_makes_the_strategy_that_it_names(
    name: str,
    settings: dict[str, Scalar],
    kind: type[FedAvg],
    attributes: dict[str, object],
    roster_of: Callable[..., Roster],
) -> None:
    named: dict[str, Scalar] = {f"strategy.{key}": settings[key] for key in settings}
    named["strategy.name"] = name
    local: dict[str, Scalar] = {"training.private-learning-rate": 0.75, "privacy.steps-per-round": 4}
    local |= LOCAL.get(name, {})
    fraction = 1.0 if name == "fedbuff" else 0.75
    local["federation.fraction-sites"] = fraction
    study = load_study("breast-cancer", overrides={**OVERRIDES, **local, **named})
    generator = np.random.default_rng(1)
    roster = roster_of("a", "b")

    strategy = make_strategy(study, roster=roster, generator=generator, buffer_names={"running_var"})

    assert type(strategy) is kind
    assert strategy.roster is roster
    assert strategy.server_learning_rate == 0.5
    assert strategy.buffer_names == {"running_var"}
    assert (strategy.sampling.min_sites, strategy.sampling.fraction) == (1 if name == "cyclic" else 2, fraction)
    assert strategy.sampling.max_update_norm == 3.5
    assert strategy.sampling.generator is generator
    assert strategy.weighting.kind == "equal"
    assert {key: getattr(strategy, key) for key in attributes} == attributes


def test_a_study_makes_an_ensemble_in_which_every_hospital_counts_the_same(roster_of: Callable[..., Roster]) -> None:
    named: dict[str, Scalar] = {"strategy.name": "one-shot-ensemble", "strategy.weighting": "equal", "num-rounds": 1}
    study = load_study("breast-cancer", overrides=named)

    strategy = make_strategy(
        study, roster=roster_of("a", "b"), generator=np.random.default_rng(1), buffer_names={"running_var"}
    )

    assert type(strategy) is OneShotEnsemble
    assert (strategy.weighting.kind, strategy.server_learning_rate) == ("equal", 1.0)
    assert strategy.buffer_names == {"running_var"}


@pytest.mark.parametrize("name", ["fedper", "fedrep", "ditto", "apfl", "fine-tuning"])
def test_the_coordinator_of_a_personalised_study_takes_the_mean(name: str, roster_of: Callable[..., Roster]) -> None:
    personal: dict[str, Scalar] = {"strategy.name": name, "model.kind": "mlp", "privacy.mechanism": "none"}
    study = load_study("breast-cancer", overrides={**OVERRIDES, **personal})

    strategy = make_strategy(study, roster=roster_of("a", "b"), generator=np.random.default_rng(1), buffer_names=())

    assert type(strategy) is FedAvg
    assert strategy.server_learning_rate == 0.5


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": 0.6}, "no weight for ['b']; expected one for every hospital"),
        ({"a": 0.6, "b": 0.3, "c": 0.1}, "names ['c']; expected only hospitals of the run, ['a', 'b']"),
    ],
)
def test_institution_weights_name_every_hospital_and_no_other(
    weights: dict[str, float], message: str, roster_of: Callable[..., Roster]
) -> None:
    study = load_study("breast-cancer")
    settings = study.strategy.model_copy(update={"weighting": "institution", "institution_weights": weights})
    study = study.model_copy(update={"strategy": settings})

    with pytest.raises(SettingError, match=re.escape(message)):
        make_strategy(study, roster=roster_of("a", "b"), generator=np.random.default_rng(1), buffer_names=())


@pytest.mark.parametrize(("buffer_size", "quorum"), [(None, 2), (2, 2), (3, 3)])
def test_the_buffer_s_size_is_the_quorum(
    buffer_size: int | None, quorum: int, roster_of: Callable[..., Roster]
) -> None:
    overrides: dict[str, Scalar] = {"strategy.name": "fedbuff", "federation.min-sites": 2}
    overrides |= {} if buffer_size is None else {"strategy.buffer-size": buffer_size}
    study, generator = load_study("breast-cancer", overrides=overrides), np.random.default_rng(1)

    strategy = make_strategy(study, roster=roster_of("a", "b", "c"), generator=generator, buffer_names=())

    assert strategy.sampling.min_sites == quorum


def test_a_buffer_that_the_hospitals_cannot_fill_is_refused(roster_of: Callable[..., Roster]) -> None:
    overrides: dict[str, Scalar] = {"strategy.name": "fedbuff", "strategy.buffer-size": 4, "federation.min-sites": 2}
    study, generator = load_study("breast-cancer", overrides=overrides), np.random.default_rng(1)

    with pytest.raises(
        SettingError, match=r"buffer-size=4; expected at most 2, the hospitals that train, \['a', 'b'\]"
    ):
        make_strategy(study, roster=roster_of("a", "b"), generator=generator, buffer_names=())


def test_a_hospital_alone_fills_the_buffer_of_its_run_for_comparison(roster_of: Callable[..., Roster]) -> None:
    overrides: dict[str, Scalar] = {"strategy.name": "fedbuff", "strategy.buffer-size": 4, "federation.min-sites": 1}
    study = load_study("breast-cancer", overrides=overrides | {"simulation.trainers": "hospital-1"})

    strategy = make_strategy(study, roster=roster_of("hospital-1"), generator=np.random.default_rng(1), buffer_names=())

    assert strategy.sampling.min_sites == 1


def test_the_weight_of_a_hospital_alone_does_not_matter(roster_of: Callable[..., Roster]) -> None:
    study = load_study("breast-cancer")
    settings = study.strategy.model_copy(update={"weighting": "institution", "institution_weights": {"b": 1.0}})
    study = study.model_copy(update={"strategy": settings})

    strategy = make_strategy(study, roster=roster_of("a"), generator=np.random.default_rng(1), buffer_names=())

    assert strategy.weighting.weigh("a", 7) == 1.0


CENTRAL: dict[str, Scalar] = {
    "central-privacy.epsilon": 4.0,
    "central-privacy.delta": 1e-4,
    "central-privacy.clip-norm": 2.5,
}


@pytest.mark.parametrize(("weighting", "weight"), [("examples", 0.75), ("equal", 0.5)])
def test_a_study_makes_the_plan_for_whole_hospitals(
    weighting: str, weight: float, roster_of: Callable[..., Roster]
) -> None:
    study = load_study("breast-cancer", overrides=CENTRAL | {"strategy.weighting": weighting, "num-rounds": 7})

    plan = make_central_plan(study, roster=roster_of("a", "b"), declared={"a": 30, "b": 10}, num_coordinates=31)

    assert plan is not None
    assert (plan.epsilon, plan.delta, plan.clip_norm) == (4.0, 1e-4, 2.5)
    assert (plan.num_rounds, plan.num_coordinates, plan.weights["a"]) == (7, 31, weight)


@pytest.mark.parametrize("overrides", [{}, CENTRAL | {"central-privacy.mechanism": "none"}])
def test_a_study_without_central_privacy_makes_no_plan(
    overrides: dict[str, Scalar], roster_of: Callable[..., Roster]
) -> None:
    study = load_study("breast-cancer", overrides=overrides)

    assert make_central_plan(study, roster=roster_of("a"), declared={"a": 30}, num_coordinates=31) is None


def test_hospital_level_privacy_goes_round_the_strategy_of_the_study(roster_of: Callable[..., Roster]) -> None:
    named: dict[str, Scalar] = {
        "strategy.name": "fedavgm",
        "federation.min-sites": 2,
        "federation.max-update-norm": 3.5,
    }
    study = load_study("breast-cancer", overrides=CENTRAL | named)
    roster, spent_rounds = roster_of("a", "b"), SpentRounds(count=2)
    plan = make_central_plan(study, roster=roster, declared={"a": 30, "b": 10}, num_coordinates=31)
    assert plan is not None

    strategy = make_central_strategy(
        study, plan, roster=roster, generator=np.random.default_rng(1), buffer_names=(), spent_rounds=spent_rounds
    )

    assert isinstance(strategy.inner, FedAvgM)
    assert (strategy.inner.sampling.min_sites, strategy.inner.sampling.max_update_norm) == (1, None)
    assert (strategy.min_sites, strategy.max_update_norm) == (2, 3.5)
    assert strategy.plan is plan
    assert strategy.spent_rounds is spent_rounds
