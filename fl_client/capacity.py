"""How much a hospital trains in a round: what it says of its machine, and the steps that it may be asked for."""

import torch

from fl_client.site import Site
from fl_contract.errors import RefusalCode, RefusalError
from fl_contract.messages import Capacity, Request


def capacity_of(site: Site) -> Capacity | None:
    """What the hospital says of its machine: nothing, unless its policy allows it and the study balances by it."""
    if not (site.settings.policy.share_capacity and site.study.federation.balance):
        return None
    return Capacity(num_cores=torch.get_num_threads(), has_gpu=torch.cuda.is_available())


def check_asked_steps(site: Site, request: Request) -> None:
    """Refuse a request for more steps than the study's own, or for fewer than its stated share of them.

    An update of fewer steps tells more about each patient, so the bound is held here, whatever the coordinator sends.

    Raises:
        RefusalError: INVALID_REQUEST.
    """
    asked, training, declared = request.local_steps, site.study.training, site.settings.declared_examples
    if asked is None:
        return
    if not site.study.federation.balance:
        raise _invalid(f"local-steps={asked}; the study does not balance steps (federation.balance)")
    least, own = training.least_steps_for(declared), training.steps_for(declared)
    if not least <= asked <= own:
        raise _invalid(f"local-steps={asked}; expected {least} to {own}, a share of the study's own steps")


def steps_of(site: Site, request: Request) -> int | None:
    """Local steps of a round without privacy, after `check_asked_steps`; None for the epochs that the study says."""
    study = site.study
    if not (study.federation.balance or study.strategy.DECLARED_STEPS):
        return None
    return request.local_steps or study.training.steps_for(site.settings.declared_examples)


def _invalid(detail: str) -> RefusalError:
    return RefusalError(RefusalCode.INVALID_REQUEST, detail)
