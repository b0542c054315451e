"""The only place that makes a strategy from a study's settings."""

from collections.abc import Collection

import numpy as np

from fl_contract.study import Study
from strategies.fedavg import FedAvg
from strategies.fedavgm import FedAvgM
from strategies.participation import Roster, SiteSampling, SiteWeighting


def make_strategy(
    study: Study, *, roster: Roster, generator: np.random.Generator, buffer_names: Collection[str]
) -> FedAvg:
    """The strategy that the study names, for these hospitals.

    Args:
        study: Names the algorithm and its settings.
        roster: Hospitals and their nodes.
        generator: Draws the hospitals of each round.
        buffer_names: Arrays of the model that are not trained.
    """
    settings = study.strategy
    sampling = SiteSampling(
        min_sites=study.federation.min_sites,
        fraction=study.federation.fraction_sites,
        generator=generator,
    )
    weighting = SiteWeighting(kind=settings.weighting, institution_weights=settings.institution_weights)
    if settings.name == "fedavg":
        return FedAvg(
            sampling=sampling,
            weighting=weighting,
            server_learning_rate=settings.server_learning_rate,
            buffer_names=buffer_names,
            roster=roster,
        )
    return FedAvgM(
        sampling=sampling,
        weighting=weighting,
        server_learning_rate=settings.server_learning_rate,
        server_momentum=settings.server_momentum,
        server_dampening=settings.server_dampening,
        buffer_names=buffer_names,
        roster=roster,
    )
