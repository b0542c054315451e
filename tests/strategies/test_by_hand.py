"""Every algorithm that a study may name, as the study's settings make it, against its formula worked out by hand."""

from collections.abc import Callable

import numpy as np
import pytest

from fl_contract.array_record import Arrays
from fl_contract.strategy_settings import strategy_names
from fl_contract.study_file import Scalar, load_study
from strategies.fedavg import FedAvg
from strategies.participation import Roster
from strategies.registry import make_strategy

START = 1.0
SENT = {"a": 2.0, "b": 3.0, "c": 4.0, "d": 11.0}
"""Models of one weight that the hospitals send, in both rounds; the updates of round 1 are 1, 2, 3 and 10."""

EXAMPLES = {"a": 16, "b": 32, "c": 16, "d": 64}
"""Weights 1, 2, 1 and 4 of 8; in batches of 16 as many steps."""

MEAN = 7.0
"""(1 * 2 + 2 * 3 + 1 * 4 + 4 * 11) / 8 = 56 / 8, an update of 6."""

ADAPTIVE: dict[str, Scalar] = {
    "server-learning-rate": 0.5,
    "server-beta1": 0.5,
    "server-beta2": 0.625,
    "server-tau": 2.0,
}
EQUAL: dict[str, Scalar] = {"weighting": "equal"}

BY_HAND: dict[str, tuple[str, dict[str, Scalar], float, float]] = {
    # Label: the algorithm, its settings, and the model after rounds 1 and 2.
    "fedavg": ("fedavg", {}, MEAN, MEAN),
    # 1 + 0.5 * 6; then 4 + 0.5 * (7 - 4)
    "fedavg at half the rate": ("fedavg", {"server-learning-rate": 0.5}, 4.0, 5.5),
    # Mean of 2, 3, 4 and 11
    "fedavg of equal hospitals": ("fedavg", EQUAL, 5.0, 5.0),
    # v = 6; then v = 0.5 * 6 + (7 - 7) and 7 + 3
    "fedavgm": ("fedavgm", {"server-momentum": 0.5}, MEAN, 10.0),
    # m = 0.5 * 6 = 3, v = 0.625 * 4 + 0.375 * 36 = 16, 1 + 0.5 * 3 / (4 + 2) = 1.25; then u = 5.75,
    # m = 1.5 + 2.875 = 4.375, v = 10 + 0.375 * 33.0625 = 22.3984375, 1.25 + 0.5 * 4.375 / (4.732699 + 2)
    "fedadam": ("fedadam", ADAPTIVE, 1.25, 1.5749067),
    # v = 4 + 0.375 * 36 = 17.5, 1 + 0.5 * 3 / (4.183300 + 2) = 1.2425889; then u = 5.7574111, m = 4.3787056,
    # v = 17.5 + 0.375 * 33.147783 = 29.930418, 1.2425889 + 0.5 * 4.3787056 / (5.470870 + 2)
    "fedyogi": ("fedyogi", ADAPTIVE, 1.2425889, 1.5356408),
    # v = 4 + 36 = 40, 1 + 0.5 * 3 / (6.324555 + 2) = 1.1801900; then u = 5.8198100, m = 4.4099050,
    # v = 40 + 33.870188 = 73.870188, 1.1801900 + 0.5 * 4.4099050 / (8.594777 + 2)
    "fedadagrad": ("fedadagrad", ADAPTIVE, 1.1801900, 1.3883069),
    # Their server half is FedAvg's.
    "fedprox": ("fedprox", {"proximal-mu": 0.5}, MEAN, MEAN),
    "fedper": ("fedper", {}, MEAN, MEAN),
    "fedrep": ("fedrep", {}, MEAN, MEAN),
    "ditto": ("ditto", {}, MEAN, MEAN),
    "apfl": ("apfl", {}, MEAN, MEAN),
    "fine-tuning": ("fine-tuning", {}, MEAN, MEAN),
    # What is sent are gradients: 1 - 0.5 * 3 * 7, at the study's rate of 3; then 9.5 + 10.5 further down
    "fedsgd": ("fedsgd", {"server-learning-rate": 0.5}, -9.5, -20.0),
    # Nobody is late.
    "fedbuff": ("fedbuff", {"server-learning-rate": 0.5}, 4.0, 5.5),
    # Between rounds it is the mean; the members are in test_worked_examples.py.
    "one-shot-ensemble": ("one-shot-ensemble", {**EQUAL, "num-rounds": 1}, 5.0, 5.0),
    # The model is the mean; what the server keeps beside it is in test_client_halves.py.
    "scaffold": ("scaffold", {}, MEAN, MEAN),
    # h = -0.5 * 6 = -3, 7 - -3 / 0.5 = 13; then h = -3 - 0.5 * (7 - 13) = 0, 7 - 0 / 0.5
    "feddyn": ("feddyn", {"dynamic-alpha": 0.5}, 13.0, MEAN),
    # Mean steps (1 * 1 + 2 * 2 + 1 * 1 + 4 * 4) / 8 = 2.75, mean update of a step (1 / 1 + 2 * 2 / 2 + 3 / 1 +
    # 4 * 10 / 4) / 8 = 2, 1 + 2.75 * 2 = 6.5; then updates -4.5, -3.5, -2.5, 4.5 and
    # (-4.5 - 2 * 3.5 / 2 - 2.5 + 4 * 4.5 / 4) / 8 = -0.75, 6.5 - 2.75 * 0.75
    "fednova": ("fednova", {}, 6.5, 4.4375),
    # Round 1 is a's, round 2 is b's.
    "cyclic": ("cyclic", {}, 2.0, 3.0),
    # The middle of 3 and 4
    "median": ("median", EQUAL, 3.5, 3.5),
    # Without 2 and 11
    "trimmed-mean": ("trimmed-mean", {**EQUAL, "trim-fraction": 0.25}, 3.5, 3.5),
    # Squared distance to the 4 - 1 - 2 = 1 nearest: 1, 1, 1, 49; the first of equal ones
    "krum": ("krum", {**EQUAL, "num-hostile": 1}, 2.0, 2.0),
    # Mean of 2, 3 and 4
    "multi-krum": ("krum", {**EQUAL, "num-hostile": 1, "num-chosen": 3}, 3.0, 3.0),
    # All are longer than 0.5 in the same direction; then 0.5, 1.5, 2.5 and 9.5 are too
    "norm-bounding": ("norm-bounding", {**EQUAL, "update-bound": 0.5}, 1.5, 2.0),
    # v = 0.5; 1; + (0 + 3 * 0.5) / 4 = 1.375; + (-0.375 + 1.5) / 4 = 1.65625; + (-0.5 + 0.34375 + 1) / 4 = 1.8671875.
    # Then updates -0.8671875, 0.1328125, 1.1328125, 8.1328125, of which only the second is not clipped: v = (0.5 +
    # 0.1328125) / 4 = 0.158203; plus (0.5 + 0.1328125 - v) / 4, four times: 0.276855, 0.365845, 0.432587, 0.482643
    "centred-clipping": ("centred-clipping", {**EQUAL, "clip-radius": 0.5}, 2.8671875, 3.3498306),
}


def test_every_algorithm_is_worked_out() -> None:
    elsewhere = {"geometric-median", "q-fedavg", "fedbn"}  # below; test_worked_examples.py; test_personal.py
    assert {name for name, *_ in BY_HAND.values()} | elsewhere == set(strategy_names())


def make_named(name: str, settings: dict[str, Scalar], roster: Roster) -> FedAvg:
    named: dict[str, Scalar] = {f"strategy.{key}": value for key, value in settings.items()}
    if "strategy.num-rounds" in named:
        named["num-rounds"] = named.pop("strategy.num-rounds")
    if name in ("fedper", "fedrep"):
        named["model.kind"] = "mlp"  # which has a body and a head
    if name == "scaffold":
        named["training.local-steps"] = 4
    study = load_study(
        "breast-cancer",
        overrides={"privacy.mechanism": "none", "federation.min-sites": 1, "strategy.name": name, **named},
    )
    assert study.training.batch_size == 16
    return make_strategy(study, roster=roster, generator=np.random.default_rng(0), buffer_names=())


def model_of(value: float) -> Arrays:
    return {"theta": np.array([value], np.float64)}


@pytest.mark.parametrize("label", BY_HAND)
def test_two_rounds_are_those_of_the_formula(
    label: str, run_round: Callable[..., Arrays], roster_of: Callable[..., Roster]
) -> None:
    name, settings, *expected = BY_HAND[label]
    strategy = make_named(name, settings, roster_of(*SENT))
    model, found = model_of(START), []

    for server_round in (1, 2):
        asked = SENT if name != "cyclic" else ["ab"[server_round - 1]]
        answers = {site: model_of(SENT[site]) for site in asked}
        model = run_round(strategy, model, answers, EXAMPLES, server_round=server_round)
        found.append(float(model["theta"][0]))

    assert found == pytest.approx(expected, abs=1e-6)


def test_the_geometric_median_is_where_most_are(
    run_round: Callable[..., Arrays], roster_of: Callable[..., Roster]
) -> None:
    """On a line the least summed distance is the median's, which three of four make 2."""
    strategy = make_named("geometric-median", EQUAL, roster_of("a", "b", "c", "d"))

    model = run_round(
        strategy, model_of(START), {"a": model_of(2), "b": model_of(2), "c": model_of(2), "d": model_of(11)}
    )

    assert model["theta"] == pytest.approx([2.0], abs=1e-5)
