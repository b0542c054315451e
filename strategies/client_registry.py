"""The only place that makes the client half of a study's algorithm."""

from torch import nn

from fl_contract.messages import Arrays
from fl_contract.strategy_settings import FedDynSettings, FedProxSettings, FedSGDSettings, ScaffoldSettings
from fl_contract.study import Study
from strategies.client_half import ClientHalf
from strategies.feddyn import FedDynClient
from strategies.fedprox import FedProxClient
from strategies.fedsgd import FedSGDClient
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
    return ClientHalf(model, control=control, state=state)
