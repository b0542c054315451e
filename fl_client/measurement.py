"""The only place that decides how a model is measured for the coordinator: with noise and a charge, exactly, or not."""

import logging

from flwr.app import RecordDict

from fl_client.agreements import Agreements
from fl_client.data.records import Records
from fl_client.disclosure import NOISED_EVALUATE
from fl_client.evaluation import contributions, evaluate
from fl_client.inputs import held_out_examples, privacy_units, record_contents
from fl_client.outbox import Outbox
from fl_client.personal import model_to_measure
from fl_client.policy import check_plan, check_room, make_measurement_plan
from fl_client.site import Site
from fl_contract.array_record import Arrays
from fl_contract.errors import RefusalCode, RefusalError
from fl_contract.messages import EVALUATE, PrivacySpent, Request, evaluation_content, noised_evaluation_content
from fl_contract.metrics.classes import Evaluation
from fl_contract.metrics.measurement import Measurement
from fl_contract.metrics.noised import NoisedCounts
from privacy.errors import BudgetExceededError
from privacy.ledger import Ledger
from privacy.noised_sum import noise_scale, release_noised_sum
from privacy.plan import PrivacyPlan

logger = logging.getLogger("fl_client")


def agree_on_measurement(site: Site, request: Request, held_out: Records) -> None:
    """Fix the noise of the run's measurements before round 1, where the hospital's policy asks for noise.

    A hospital whose held-out patients have no budget left takes part all the same and measures nothing; so does one
    whose policy asks for noise in a study whose measurement cannot be noised.

    Raises:
        RefusalError: BUDGET_EXHAUSTED: the policy gives nothing to any run.
    """
    if site.settings.policy.measurements != "noised" or not site.study.task.HAS_NOISED:
        return
    check_room(site.settings)
    plan = make_measurement_plan(site.settings, site.study)
    with site.open_held_out_ledger() as ledger:
        if ledger.load_plan(request.run) is None:
            try:
                ledger.require_room(request.run, site.study.name, plan)
            except BudgetExceededError:
                logger.exception("run %s will not be measured", request.run)
                return
        fingerprint = ledger.fingerprint(record_contents(held_out))
        ledger.store_plan(request.run, site.study.name, plan, fingerprint=fingerprint)


def measure(site: Site, request: Request, received: Arrays) -> tuple[RecordDict, str]:
    """Measure a model, once a round; a retried request gets the same answer, whatever model it brings.

    Returns:
        The reply and the kind of it that the gate checks.

    Raises:
        RefusalError: POLICY, INVALID_REQUEST or NO_AGREEMENT; or the held-out patients are too few.
        BudgetExceededError: The measurement does not fit the budget of the held-out patients.
    """
    number = site.study.measurement_number(request.server_round)
    if number is None:
        raise RefusalError(
            RefusalCode.INVALID_REQUEST, f"round {request.server_round}; the study does not measure after it"
        )
    if site.settings.policy.measurements == "none":
        raise RefusalError(RefusalCode.POLICY, "policy.measurements='none'; no measurement leaves")
    if site.settings.policy.measurements == "exact":
        return evaluation_content(site.name, _measure_exactly(site, request, received)), EVALUATE
    if not site.study.task.HAS_NOISED:
        task = site.study.data_schema.task
        raise RefusalError(
            RefusalCode.POLICY, f"policy.measurements='noised'; there is no noised measurement of {task}, only 'exact'"
        )
    noised, spent = _measure_with_noise(site, request, number, received)
    return noised_evaluation_content(site.name, noised, spent), NOISED_EVALUATE


def _measure_exactly(site: Site, request: Request, received: Arrays) -> Measurement:
    agreements = Agreements(site.folder)
    with Outbox(site.folder).locked(request.run):
        if (evaluation := agreements.measured(request)) is None:
            examples = held_out_examples(site, site.load_records())
            try:
                evaluation = evaluate(model_to_measure(site, request, received), examples, site.study.task)
            except ValueError:
                agreements.keep_measurement(request, None)  # that it failed tells something of somebody: once is enough
                raise
            agreements.keep_measurement(request, evaluation)
    return evaluation


def _measure_with_noise(
    site: Site, request: Request, number: int, received: Arrays
) -> tuple[NoisedCounts, PrivacySpent]:
    """Charge, draw, keep, settle, in this order: a crash anywhere leaves no release unpaid and none paid twice."""
    run, agreements = request.run, Agreements(site.folder)
    with Outbox(site.folder).locked(run), site.open_held_out_ledger() as ledger:
        plan = ledger.load_plan(run)
        if plan is None:
            raise RefusalError(
                RefusalCode.BUDGET_EXHAUSTED, f"run {run!r} has no plan for measurements; its site.log says why"
            )
        check_plan(site.settings, plan)
        kept = agreements.measured(request)
        if kept is None:
            noised = _draw(site, request, number, received, (ledger, plan))
            agreements.keep_measurement(request, Evaluation.from_noised(noised))
        elif kept.noised is None:
            raise RefusalError(RefusalCode.POLICY, "this round was measured exactly before policy.measurements changed")
        else:
            noised = kept.noised
        _settle(ledger, run, number)
        epsilon = ledger.spent_by_run(run, delta=plan.delta)
    return noised, PrivacySpent(epsilon=epsilon, delta=plan.delta, steps=1)


def _draw(
    site: Site, request: Request, number: int, received: Arrays, paid_by: tuple[Ledger, PrivacyPlan]
) -> NoisedCounts:
    ledger, plan = paid_by
    records = site.load_records()
    held_out = records.test
    rows = privacy_units(site, held_out).mean(
        contributions(model_to_measure(site, request, received), held_out_examples(site, records))
    )
    ledger.reserve(
        run=request.run,
        server_round=number,
        study=site.study.name,
        plan=plan,
        fingerprint=ledger.fingerprint(record_contents(held_out)),
    )
    cells = release_noised_sum(rows, plan)
    return NoisedCounts(cells=cells, noise_scale=noise_scale(plan), threshold=site.study.data_schema.threshold)


def _settle(ledger: Ledger, run: str, number: int) -> None:
    """Close the charge of a measurement that was kept; the process that drew it may be gone."""
    charges = [entry for entry in ledger.entries() if (entry.run, entry.server_round) == (run, number)]
    if charges[-1].steps_run is None:
        ledger.take_over(run=run, server_round=number)
        ledger.settle(run=run, server_round=number, steps_run=1)
