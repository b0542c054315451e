"""A federation of one hospital is that hospital's own training, by every algorithm for which that is true."""

from pathlib import Path

import numpy as np
import pytest
import torch
from federation_harness import Federation

from fl_client.preprocessing import prepare
from fl_client.settings import read_site_settings
from fl_client.site import Site
from fl_client.training import round_generator
from fl_contract.array_record import Arrays
from fl_contract.strategy_settings import strategy_names
from fl_contract.study_file import Scalar, load_study

ROUNDS, STEPS, RATE, BATCH = 3, 10, 0.5, 16

ALONE: dict[str, Scalar] = {
    "privacy.mechanism": "none",
    "simulation.num-sites": 1,
    "federation.min-sites": 1,
    "num-rounds": ROUNDS,
    "training.local-steps": STEPS,
    "training.learning-rate": RATE,
    "training.batch-size": BATCH,
    "strategy.weighting": "equal",
}

IS_LOCAL: dict[str, dict[str, Scalar]] = {
    "fedavg": {},
    "fedavgm": {"strategy.server-momentum": 0.0},
    "fedprox": {"strategy.proximal-mu": 0.0},
    "scaffold": {},
    "fednova": {},
    "cyclic": {},
    "fedbuff": {},
    "q-fedavg": {"strategy.fairness": 0.0},
    "ditto": {},
    "apfl": {},
    "median": {},
    "geometric-median": {},
    "trimmed-mean": {},
    "krum": {},
    "norm-bounding": {"strategy.update-bound": 1000.0},
    "centred-clipping": {"strategy.clip-radius": 1000.0},
}
"""Settings with which one hospital's round changes nothing about its training."""

ROUNDINGS = {"scaffold": 1e-6, "q-fedavg": 1e-6}
"""Largest difference of a weight where it is not equal to the bit: the hospital's control and the server's cancel, but
one is made in float32 and the other in float64; q-FedAvg goes the whole way to the mean, step by step in float64."""

IS_NOT = {
    "fedadam": "the server's step has a length of its own",
    "fedyogi": "as fedadam",
    "fedadagrad": "as fedadam",
    "feddyn": "the server moves on past the mean, which the hospital's linear term takes back in the next round",
    "fine-tuning": "a share of the patients is kept out of all training",
}


ELSEWHERE = {
    "fedsgd": "one step over all records: test_whole_runs.py",
    "one-shot-ensemble": "one round, and several models: test_ensemble.py",
    "fedbn": "part of the model stays at the hospital: test_personal.py",
    "fedper": "as fedbn",
    "fedrep": "as fedbn",
}
"""Algorithms that cannot run this study's rounds."""


def test_every_algorithm_is_in_one_of_the_tables() -> None:
    assert sorted([*IS_LOCAL, *IS_NOT, *ELSEWHERE]) == sorted(strategy_names())


def train_by_hand(folder: Path) -> Arrays:
    """Plain SGD from the study's first weights, over the batches that the hospital draws in each round."""
    study = load_study("breast-cancer", overrides=ALONE)
    site = Site(settings=read_site_settings(folder / "site.toml"), folder=folder, study=study)
    train = site.load_records().train
    examples = prepare(train, study.data_schema, train=train)
    model = study.build_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for server_round in range(1, ROUNDS + 1):
        order = torch.randperm(len(examples), generator=round_generator(study.seed, site.name, server_round))
        for rows in order.split(BATCH)[:STEPS]:
            optimizer.zero_grad()
            study.task.batch_loss(model(examples.inputs[rows]), examples.labels[rows]).backward()
            optimizer.step()
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", [*IS_LOCAL, *IS_NOT])
def test_one_hospital_is_plain_local_training_where_it_should_be(tmp_path: Path, name: str) -> None:
    overrides = {**ALONE, "strategy.name": name, **IS_LOCAL.get(name, {})}

    outcome = Federation(tmp_path).run(overrides=overrides, num_nodes=1)

    expected = train_by_hand(tmp_path / "sites" / "hospital-1")
    assert set(outcome.model) == set(expected)
    differences = [np.abs(outcome.model[key] - expected[key]).max() for key in expected]
    assert (max(differences) <= ROUNDINGS.get(name, 0.0)) == (name in IS_LOCAL)
