"""The hospital's Flower app: one handler for each request, in the order of a round's stops 4 to 8."""

from dataclasses import replace
from typing import NoReturn

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fl_client.agreements import Agreements
from fl_client.capacity import capacity_of, check_asked_steps, steps_of
from fl_client.data.records import Records
from fl_client.disclosure import release
from fl_client.evaluation import evaluate
from fl_client.guard import guard, log_to_site
from fl_client.inputs import (
    load_model,
    make_half,
    outgoing_arrays,
    record_contents,
    record_refusals,
    training_examples,
)
from fl_client.measurement import agree_on_measurement, measure
from fl_client.personal import keep_personal_model
from fl_client.policy import check_policy, check_room, make_plan
from fl_client.private_round import answer_private_round
from fl_client.refusals import refuse_if_any
from fl_client.reply_coding import release_reply
from fl_client.site import Site, open_sites
from fl_client.statistics import add_up_features, check_statistics_allowed
from fl_client.strategy_state import StrategyState
from fl_client.training import Recipe, round_generator, train
from fl_contract.array_record import Arrays
from fl_contract.errors import RefusalCode, RefusalError
from fl_contract.messages import (
    PLAN,
    ROSTER,
    STATISTICS,
    Request,
    SitePlan,
    TrainReply,
    request_arrays,
    request_control,
    roster_content,
    statistics_content,
)
from privacy.model_check import check_dp_compatible
from privacy.plan import PrivacyPlan

app = ClientApp(mods=[guard])


@app.query("roster")
def answer_roster(message: Message, context: Context) -> Message:
    """The names of the hospitals that this node speaks for."""
    sites = open_sites(context)
    request = Request.from_message(message)
    content = roster_content(list(sites))
    for site in sites.values():
        release(content, ROSTER, request, folder=site.folder, study=site.study.name)
    return Message(content, reply_to=message)


@app.query("plan")
def answer_plan(message: Message, context: Context) -> Message:
    """Check policy, data, model and budget before round 1, and fix the noise for the whole run."""
    site, request = _open(message, context)
    if site.study.is_private:
        check_room(site.settings)
    check_statistics_allowed(site)
    records = site.load_records()
    refuse_if_any(record_refusals(site, records))
    site.build_model()  # a file of weights that is missing is said before round 1
    plan = _agree_on_privacy(site, request, records.train) if site.study.is_private else None
    agree_on_measurement(site, request, records.test)
    Agreements(site.folder).agree(request)
    answer = SitePlan(
        site=site.name,
        num_examples=site.settings.declared_examples,
        noise_multiplier=plan.noise_multiplier if plan else 0.0,
        capacity=capacity_of(site),
    )
    content = answer.to_content()
    release(content, PLAN, request, folder=site.folder, study=site.study.name)
    return Message(content, reply_to=message)


@app.query("statistics")
def answer_statistics(message: Message, context: Context) -> Message:
    """Add up this hospital's features, before round 1 of a run that was agreed."""
    site, request = _open(message, context)
    Agreements(site.folder).check(request)
    content = statistics_content(site.name, add_up_features(site))
    release(content, STATISTICS, request, folder=site.folder, study=site.study.name)
    return Message(content, reply_to=message)


@app.train()
def answer_train(message: Message, context: Context) -> Message:
    """Train the received model on this hospital's patients for one round."""
    site, request = _open(message, context)
    _check_agreed(site, request)
    check_asked_steps(site, request)
    received, control = request_arrays(message), request_control(message)
    answer = answer_private_round if site.study.is_private else _answer_plain_round
    return Message(answer(site, request, received, control), reply_to=message)


@app.evaluate()
def answer_evaluate(message: Message, context: Context) -> Message:
    """Measure a model on this hospital's held-out patients, once a round; a retry gets the same answer."""
    site, request = _open(message, context)
    _check_agreed(site, request)
    received = request_arrays(message)
    keep_personal_model(site, request, received)
    content, kind = measure(site, request, received)
    release(content, kind, request, folder=site.folder, study=site.study.name)
    return Message(content, reply_to=message)


def _open(message: Message, context: Context) -> tuple[Site, Request]:
    sites = open_sites(context)
    request = Request.from_message(message)
    if request.site not in sites:
        _refuse(RefusalCode.INVALID_REQUEST, f"site={request.site!r}; this node speaks for {sorted(sites)}")
    site = replace(sites[request.site], run=request.run)
    log_to_site(site.folder)
    if request.fingerprint != site.study.fingerprint:
        _refuse(RefusalCode.STUDY_MISMATCH, f"fingerprint {request.fingerprint!r}; ours is {site.study.fingerprint!r}")
    check_policy(site.settings, site.study)
    return site, request


def _check_agreed(site: Site, request: Request) -> None:
    Agreements(site.folder).check(request)
    if not 1 <= request.server_round <= site.study.num_rounds:
        _refuse(RefusalCode.INVALID_REQUEST, f"round {request.server_round}; expected 1 to {site.study.num_rounds}")


def _agree_on_privacy(site: Site, request: Request, records: Records) -> PrivacyPlan:
    check_dp_compatible(site.build_model())
    plan = make_plan(site.settings, site.study)
    with site.open_ledger() as ledger:
        if ledger.load_plan(request.run) is None:
            ledger.require_room(request.run, site.study.name, plan)
        fingerprint = ledger.fingerprint(record_contents(records))
        ledger.store_plan(request.run, site.study.name, plan, fingerprint=fingerprint)
    return plan


def _answer_plain_round(site: Site, request: Request, received: Arrays, control: Arrays) -> RecordDict:
    model = load_model(site, received)
    generator = round_generator(site.study.seed, site.name, request.server_round)
    examples = training_examples(site, site.load_records().train)
    half, declared = make_half(site, request, model, control), site.settings.declared_examples
    study = site.study
    loss = evaluate(model, examples, study.task).loss if study.strategy.SENDS_LOSS else None
    recipe = Recipe(
        task=study.task,
        settings=study.training,
        half=half,
        steps=steps_of(site, request),
        is_full_batch=study.strategy.FULL_BATCH,
    )
    train(model, examples, recipe, generator)
    StrategyState(site.folder, request.run).keep(request.server_round, half.state())
    reply = TrainReply(
        site=site.name, arrays=outgoing_arrays(site, model, half), num_examples=declared, spent=None, loss=loss
    )
    return release_reply(site, request, reply, received)


def _refuse(code: RefusalCode, detail: str) -> NoReturn:
    raise RefusalError(code, detail)
