"""The only place that makes a strategy from a study's settings."""

from collections.abc import Collection, Mapping

import numpy as np

from fl_contract.errors import SettingError
from fl_contract.strategy_settings import (
    AdaptiveSettings,
    APFLSettings,
    CentredClippingSettings,
    CyclicSettings,
    DittoSettings,
    FedAvgMSettings,
    FedAvgSettings,
    FedBNSettings,
    FedBuffSettings,
    FedDynSettings,
    FedNovaSettings,
    FedPerSettings,
    FedProxSettings,
    FedRepSettings,
    FedSGDSettings,
    FineTuningSettings,
    KrumSettings,
    NormBoundingSettings,
    OneShotEnsembleSettings,
    QFedAvgSettings,
    RobustSettings,
    ScaffoldSettings,
    TrimmedMeanSettings,
)
from fl_contract.study import Study
from privacy.central import CentralPlan
from strategies.attendance import Attendance
from strategies.balance import StepBalance
from strategies.balanced import Balanced
from strategies.central_privacy import CentralPrivacy, SpentRounds
from strategies.centred_clipping import CentredClipping
from strategies.cyclic import Cyclic
from strategies.fedadagrad import FedAdagrad
from strategies.fedadam import FedAdam
from strategies.fedavg import Common, FedAvg
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
from strategies.participation import Roster, SiteSampling, SiteWeighting
from strategies.q_fedavg import QFedAvg
from strategies.regions import Regions
from strategies.scaffold import Scaffold
from strategies.trimmed_mean import TrimmedMean

ADAPTIVE = {"fedadam": FedAdam, "fedyogi": FedYogi, "fedadagrad": FedAdagrad}


def make_strategy(
    study: Study,
    *,
    roster: Roster,
    generator: np.random.Generator,
    buffer_names: Collection[str],
    attendance: Attendance | None = None,
    balance: StepBalance | None = None,
) -> FedAvg:
    """The strategy that the study names, for these hospitals.

    Args:
        study: Names the algorithm and its settings.
        roster: Hospitals and their nodes.
        generator: Draws the hospitals of each round.
        buffer_names: Arrays of the model that are not trained.
        attendance: Who may be asked in a round; None asks all.
        balance: Steps that hospitals are asked for, of a study that balances them.

    Raises:
        SettingError: ``strategy.institution-weights`` misses a hospital that trains, or names one that is not there;
            ``federation.regions`` misses one, or a region has fewer than ``federation.min-per-region``; there are fewer
            hospitals than ``strategy.buffer-size``.
    """
    settings, rate = study.strategy, study.strategy.server_learning_rate
    common: Common = {
        "sampling": SiteSampling(
            min_sites=_quorum(study, roster),
            fraction=study.federation.fraction_sites,
            max_update_norm=study.federation.max_update_norm,
            generator=generator,
            regions=_make_regions(study, roster),
            attendance=attendance,
        ),
        "weighting": _make_weighting(study, roster),
        "buffer_names": buffer_names,
        "roster": roster,
    }
    if balance is not None:
        return Balanced(balance=balance, server_learning_rate=rate, **common)
    match settings:
        case FedAvgSettings() | FedProxSettings():
            return FedAvg(server_learning_rate=rate, **common)
        case FedBNSettings() | FedPerSettings() | FedRepSettings():
            return FedAvg(server_learning_rate=rate, **common)
        case DittoSettings() | APFLSettings() | FineTuningSettings():
            return FedAvg(server_learning_rate=rate, **common)
        case FedAvgMSettings():
            return FedAvgM(
                server_learning_rate=rate,
                server_momentum=settings.server_momentum,
                server_dampening=settings.server_dampening,
                server_nesterov=settings.server_nesterov,
                **common,
            )
        case FedSGDSettings():
            return FedSGD(learning_rate=study.local_rate, server_learning_rate=rate, **common)
        case QFedAvgSettings():
            return QFedAvg(
                fairness=settings.fairness, learning_rate=study.local_rate, server_learning_rate=rate, **common
            )
        case AdaptiveSettings():
            return ADAPTIVE[settings.name](
                server_learning_rate=rate,
                server_betas=(settings.server_beta1, settings.server_beta2),
                server_tau=settings.server_tau,
                **common,
            )
        case ScaffoldSettings():
            return Scaffold(local_path=study.local_path, server_learning_rate=rate, **common)
        case FedDynSettings():
            return FedDyn(alpha=settings.dynamic_alpha, server_learning_rate=rate, **common)
        case FedNovaSettings():
            steps = (lambda _: study.privacy.steps_per_round) if study.is_private else study.training.steps_for
            return FedNova(local_steps=steps, server_learning_rate=rate, **common)
        case CyclicSettings():
            return Cyclic(server_learning_rate=rate, **common)
        case OneShotEnsembleSettings():
            return OneShotEnsemble(**common)
        case FedBuffSettings():
            return FedBuff(max_staleness=settings.max_staleness, server_learning_rate=rate, **common)
        case RobustSettings():
            kind = Median if settings.name == "median" else GeometricMedian
            return kind(server_learning_rate=rate, **common)
        case TrimmedMeanSettings():
            return TrimmedMean(trim_fraction=settings.trim_fraction, server_learning_rate=rate, **common)
        case KrumSettings():
            return Krum(
                num_hostile=settings.num_hostile,
                num_chosen=settings.num_chosen,
                server_learning_rate=rate,
                **common,
            )
        case NormBoundingSettings():
            return NormBounding(update_bound=settings.update_bound, server_learning_rate=rate, **common)
        case CentredClippingSettings():
            return CentredClipping(clip_radius=settings.clip_radius, server_learning_rate=rate, **common)


def make_central_plan(
    study: Study, *, roster: Roster, declared: Mapping[str, float], num_coordinates: int
) -> CentralPlan | None:
    """What protects whole hospitals in a run of the study; None if the study does not ask for it.

    Args:
        study: With the target, the clip norm and the weighting.
        roster: Hospitals that agreed; those that train get a weight each, for the whole run.
        declared: Training records that each of them declared before round 1.
        num_coordinates: Trained numbers of the model.
    """
    settings = study.central_privacy
    if settings is None or not study.protects_hospitals:
        return None
    weighting = _make_weighting(study, roster)
    return CentralPlan.calibrate(
        epsilon=settings.epsilon,
        delta=settings.delta,
        clip_norm=settings.clip_norm,
        declared={site: weighting.weigh(site, declared[site]) for site in roster.trainers},
        num_rounds=study.num_rounds,
        num_coordinates=num_coordinates,
    )


def make_central_strategy(
    study: Study,
    plan: CentralPlan,
    *,
    roster: Roster,
    generator: np.random.Generator,
    buffer_names: Collection[str],
    spent_rounds: SpentRounds,
    attendance: Attendance | None = None,
) -> CentralPrivacy:
    """The strategy that the study names, with hospital-level privacy round it.

    Args:
        study: See `make_strategy`.
        plan: From `make_central_plan`.
        roster: See `make_strategy`.
        generator: See `make_strategy`.
        buffer_names: See `make_strategy`; there may be none.
        spent_rounds: Where noised rounds are counted.
        attendance: See `make_strategy`.
    """
    federation = study.federation
    alone = federation.model_copy(update={"min_sites": 1, "max_update_norm": None})
    inner = make_strategy(
        study.model_copy(update={"federation": alone}),
        roster=roster,
        generator=generator,
        buffer_names=buffer_names,
        attendance=attendance,
    )
    return CentralPrivacy(
        inner,
        plan,
        buffer_names=buffer_names,
        min_sites=federation.min_sites,
        max_update_norm=federation.max_update_norm,
        spent_rounds=spent_rounds,
    )


def _make_regions(study: Study, roster: Roster) -> Regions | None:
    """None for one hospital alone, with which a study is compared."""
    federation = study.federation
    if not federation.regions or len(roster.trainers) == 1:
        return None
    return Regions.for_sites(federation.regions, federation.min_per_region, roster.trainers)


def _quorum(study: Study, roster: Roster) -> int:
    """Usable replies that make a step."""
    settings, trainers = study.strategy, sorted(roster.trainers)
    if isinstance(settings, CyclicSettings):
        return 1
    if not isinstance(settings, FedBuffSettings) or settings.buffer_size is None or study.simulation.trainers != "all":
        return study.federation.min_sites
    if settings.buffer_size > len(trainers):
        raise SettingError(
            f"strategy.buffer-size={settings.buffer_size}; expected at most {len(trainers)}, the hospitals that train, "
            f"{trainers}, since a step holds one update of each at most"
        )
    return settings.buffer_size


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
