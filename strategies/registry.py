"""The only place that makes a strategy from a study's settings."""

from collections.abc import Collection

import numpy as np

from fl_contract.errors import SettingError
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

    Raises:
        SettingError: ``strategy.institution-weights`` misses a hospital that trains, or names one that is not there.
    """
    settings = study.strategy
    sampling = SiteSampling(
        min_sites=study.federation.min_sites,
        fraction=study.federation.fraction_sites,
        max_update_norm=study.federation.max_update_norm,
        generator=generator,
    )
    weighting = _make_weighting(study, roster)
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


def _make_weighting(study: Study, roster: Roster) -> SiteWeighting:
    weights = study.strategy.institution_weights
    if study.strategy.weighting != "institution" or len(roster.trainers) == 1:
        return SiteWeighting(kind="equal" if len(roster.trainers) == 1 else study.strategy.weighting)
    if missing := sorted(set(roster.trainers) - set(weights)):
        raise SettingError(f"strategy.institution-weights has no weight for {missing}; expected one for every hospital")
    if unknown := sorted(set(weights) - set(roster.nodes)):
        raise SettingError(
            f"strategy.institution-weights names {unknown}; expected only hospitals of the run, {sorted(roster.nodes)}"
        )
    return SiteWeighting(kind="institution", institution_weights=weights)
