"""The only place that decides how a model is measured for the coordinator: with noise and a charge, exactly, or not."""

import numpy as np
from flwr.app import RecordDict
from numpy.typing import NDArray
from torch import nn

from fl_client.agreements import Agreements
from fl_client.disclosure import NOISED_EVALUATE
from fl_client.evaluation import contributions, evaluate
from fl_client.outbox import Outbox
from fl_client.preprocessing import Examples
from fl_client.site import Site
from fl_contract.errors import RefusalCode, RefusalError
from fl_contract.messages import EVALUATE, PrivacySpent, Request, evaluation_content, noised_evaluation_content
from fl_contract.metrics import Evaluation, NoisedCounts, cells_sensitivity
from fl_contract.tasks import num_outputs
from privacy.ledger import Ledger
from privacy.noised_sum import noise_scale, release_noised_sum
from privacy.plan import PrivacyPlan


def agree_on_measurement(site: Site, request: Request) -> None:
    """Fix the noise of the run's measurements before round 1, where the hospital's policy asks for noise."""
    if site.settings.policy.measurements != "noised":
        return
    plan = _make_plan(site)
    with site.open_ledger() as ledger:
        ledger.store_plan(_held_out(request.run), site.study.name, plan)


def measure(site: Site, request: Request, model: nn.Module, examples: Examples) -> tuple[RecordDict, str]:
    """Measure a model, once a round; a retried request gets the same answer, whatever model it brings.

    Returns:
        The reply and the kind of it that the gate checks.

    Raises:
        RefusalError: POLICY or INVALID_REQUEST.
    """
    number = site.study.measurement_number(request.server_round)
    if number is None:
        raise RefusalError(
            RefusalCode.INVALID_REQUEST, f"round {request.server_round}; the study does not measure after it"
        )
    if site.settings.policy.measurements == "none":
        raise RefusalError(RefusalCode.POLICY, "policy.measurements='none'; no measurement leaves")
    if site.settings.policy.measurements == "exact":
        return evaluation_content(site.name, _measure_exactly(site, request, model, examples)), EVALUATE
    noised, spent = _measure_with_noise(site, request, number, contributions(model, examples))
    return noised_evaluation_content(site.name, noised, spent), NOISED_EVALUATE


def _measure_exactly(site: Site, request: Request, model: nn.Module, examples: Examples) -> Evaluation:
    agreements = Agreements(site.folder)
    if (evaluation := agreements.measured(request)) is None:
        evaluation = evaluate(model, examples)
        agreements.keep_measurement(request, evaluation)
    return evaluation


def _measure_with_noise(
    site: Site, request: Request, number: int, rows: NDArray[np.float64]
) -> tuple[NoisedCounts, PrivacySpent]:
    """Charge, draw, keep, settle, in this order: a crash anywhere leaves no release unpaid and none paid twice."""
    run, agreements = _held_out(request.run), Agreements(site.folder)
    with Outbox(site.folder).locked(run), site.open_ledger() as ledger:
        plan = ledger.load_plan(run)
        if plan is None:
            raise RefusalError(RefusalCode.NO_AGREEMENT, f"run {run!r} has no plan for measurements")
        evaluation = agreements.measured(request)
        if evaluation is None:
            ledger.reserve(run=run, server_round=number, study=site.study.name, plan=plan)
            noised = NoisedCounts(cells=release_noised_sum(rows, plan), noise_scale=noise_scale(plan))
            agreements.keep_measurement(request, Evaluation.from_noised(noised))
        elif evaluation.noised is None:
            raise RefusalError(RefusalCode.POLICY, "this round was measured exactly before policy.measurements changed")
        else:
            noised = evaluation.noised
        _settle(ledger, run, number, site.study.name, plan)
        epsilon = ledger.spent_by_run(run, delta=plan.delta)
    return noised, PrivacySpent(epsilon=epsilon, delta=plan.delta, steps=1)


def _settle(ledger: Ledger, run: str, number: int, study: str, plan: PrivacyPlan) -> None:
    charges = [entry for entry in ledger.entries() if (entry.run, entry.server_round) == (run, number)]
    if charges[-1].steps_run is None:
        ledger.reserve(run=run, server_round=number, study=study, plan=plan)
        ledger.settle(run=run, server_round=number, steps_run=1)


def _make_plan(site: Site) -> PrivacyPlan:
    proposed = site.study.privacy
    return PrivacyPlan.calibrate(
        epsilon=proposed.measurement_epsilon,
        delta=proposed.delta,
        clip_norm=cells_sensitivity(num_outputs(site.study.num_classes)),
        sampling_rate=1.0,
        steps_per_round=1,
        num_rounds=site.study.num_measurements,
        nominal_examples=site.settings.declared_examples,
    )


def _held_out(run: str) -> str:
    return f"{run}/held-out"
