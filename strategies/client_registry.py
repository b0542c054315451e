"""The only place that makes the client half of a study's algorithm."""

from torch import nn

from fl_contract.array_record import Arrays
from fl_contract.exchanged import kept_names
from fl_contract.strategy_settings import (
    APFLSettings,
    DittoSettings,
    FedBNSettings,
    FedDynSettings,
    FedPerSettings,
    FedProxSettings,
    FedRepSettings,
    FedSGDSettings,
    FineTuningSettings,
    ScaffoldSettings,
)
from fl_contract.study import Study
from strategies.apfl import APFLClient
from strategies.client_half import ClientHalf
from strategies.ditto import DittoClient
from strategies.fedbn import FedBNClient
from strategies.feddyn import FedDynClient
from strategies.fedper import FedPerClient
from strategies.fedprox import FedProxClient
from strategies.fedrep import FedRepClient
from strategies.fedsgd import FedSGDClient
from strategies.fine_tuning import FineTuningClient
from strategies.scaffold import ScaffoldClient


def make_client_half(study: Study, model: nn.Module, *, control: Arrays, state: Arrays) -> ClientHalf:
    """What the study's algorithm changes in local training.

    Args:
        study: Names the algorithm and its settings.
        model: With the received weights.
        control: What the coordinator sent beside them.
        state: What the half kept at this hospital after its last round; empty before the first.
    """
    settings = study.strategy
    if isinstance(settings, FedProxSettings):
        return FedProxClient(model, control=control, state=state, mu=settings.proximal_mu)
    if isinstance(settings, ScaffoldSettings):
        return ScaffoldClient(model, control=control, state=state, local_path=study.local_path)
    if isinstance(settings, FedDynSettings):
        return FedDynClient(model, control=control, state=state, alpha=settings.dynamic_alpha)
    if isinstance(settings, FedSGDSettings):
        return FedSGDClient(model, control=control, state=state)
    if study.is_personal:
        return _make_personal_half(study, model, state)
    return ClientHalf(model, control=control, state=state)


def _make_personal_half(study: Study, model: nn.Module, state: Arrays) -> ClientHalf:
    settings, kept = study.strategy, kept_names(study, model)
    match settings:
        case FedBNSettings():
            return FedBNClient(model, state=state, kept=kept)
        case FedPerSettings():
            return FedPerClient(model, state=state, kept=kept)
        case FedRepSettings():
            return FedRepClient(model, state=state, kept=kept, head_share=settings.head_share)
        case DittoSettings():
            return DittoClient(model, state=state, pull=settings.personal_pull)
        case APFLSettings():
            return APFLClient(model, state=state, alpha=settings.mixture, is_adaptive=settings.adaptive_mixture)
        case FineTuningSettings():
            return FineTuningClient(model, state=state)
    raise TypeError(f"{settings.name!r} has no personal half")
