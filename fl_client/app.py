"""The hospital's Flower app: one handler for each request, in the order of a round's stops 4 to 8."""

from typing import NoReturn

import numpy as np
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from torch import nn

from fl_client.agreements import Agreements
from fl_client.disclosure import release
from fl_client.evaluation import evaluate
from fl_client.guard import guard, log_to_site
from fl_client.outbox import Outbox
from fl_client.preprocessing import Examples, check_trainable, prepare
from fl_client.site import Site, open_sites
from fl_client.training import round_generator, train, train_with_privacy
from fl_contract.errors import RefusalCode, RefusalError
from fl_contract.messages import (
    EVALUATE,
    PLAN,
    ROSTER,
    TRAIN,
    Arrays,
    PrivacySpent,
    Request,
    SitePlan,
    TrainReply,
    evaluation_content,
    request_arrays,
    roster_content,
)
from fl_contract.models import build_model
from fl_contract.tasks import num_outputs
from privacy.accounting import compute_epsilon_adaptive
from privacy.errors import BudgetExceededError
from privacy.ledger import Ledger
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
        release(content, ROSTER, request, folder=site.folder)
    return Message(content, reply_to=message)


@app.query("plan")
def answer_plan(message: Message, context: Context) -> Message:
    """Check data, policy, model and budget before round 1, and fix the noise for the whole run."""
    site, request = _open(message, context)
    _load_training_examples(site)
    plan = _agree_on_privacy(site, request) if site.study.is_private else None
    Agreements(site.folder).agree(request)
    answer = SitePlan(
        site=site.name,
        num_examples=site.settings.declared_examples,
        noise_multiplier=plan.noise_multiplier if plan else 0.0,
    )
    return Message(release(answer.to_content(), PLAN, request, folder=site.folder), reply_to=message)


@app.train()
def answer_train(message: Message, context: Context) -> Message:
    """Train the received model on this hospital's patients for one round."""
    site, request = _open(message, context)
    _check_agreed(site, request)
    received = request_arrays(message)
    if site.study.is_private:
        reply = _train_privately(site, request, received)
    else:
        reply = _train_plainly(site, request, received)
    content = release(reply.to_content(), TRAIN, request, folder=site.folder, model=received)
    return Message(content, reply_to=message)


@app.evaluate()
def answer_evaluate(message: Message, context: Context) -> Message:
    """Measure the received model on this hospital's held-out patients, once a round; a retry gets the same answer."""
    site, request = _open(message, context)
    _check_agreed(site, request)
    if not site.settings.policy.release_evaluations:
        _refuse(RefusalCode.POLICY, "policy.release-evaluations=false; exact measurements of patients do not leave")
    agreements = Agreements(site.folder)
    evaluation = agreements.measured(request)
    if evaluation is None:
        evaluation = evaluate(_load_model(site, request_arrays(message)), _load_held_out_examples(site))
        agreements.keep_measurement(request, evaluation)
    content = release(evaluation_content(site.name, evaluation), EVALUATE, request, folder=site.folder)
    return Message(content, reply_to=message)


def _open(message: Message, context: Context) -> tuple[Site, Request]:
    sites = open_sites(context)
    request = Request.from_message(message)
    if request.site not in sites:
        _refuse(RefusalCode.INVALID_REQUEST, f"site={request.site!r}; this node speaks for {sorted(sites)}")
    site = sites[request.site]
    log_to_site(site.folder)
    if request.fingerprint != site.study.fingerprint:
        _refuse(RefusalCode.STUDY_MISMATCH, f"fingerprint {request.fingerprint!r}; ours is {site.study.fingerprint!r}")
    if site.settings.policy.require_privacy and not site.study.is_private:
        _refuse(RefusalCode.POLICY, "privacy.mechanism='none'; policy.require-privacy asks for differential privacy")
    return site, request


def _check_agreed(site: Site, request: Request) -> None:
    Agreements(site.folder).check(request)
    if not 1 <= request.server_round <= site.study.num_rounds:
        _refuse(RefusalCode.INVALID_REQUEST, f"round {request.server_round}; expected 1 to {site.study.num_rounds}")


def _agree_on_privacy(site: Site, request: Request) -> PrivacyPlan:
    proposed, policy = site.study.privacy, site.settings.policy
    if proposed.delta > policy.delta:
        _refuse(RefusalCode.POLICY, f"privacy.delta={proposed.delta}; policy.delta allows at most {policy.delta}")
    check_dp_compatible(_build_model(site))
    plan = PrivacyPlan.calibrate(
        epsilon=proposed.epsilon,
        delta=proposed.delta,
        clip_norm=proposed.clip_norm,
        sampling_rate=proposed.sampling_rate,
        steps_per_round=proposed.steps_per_round,
        num_rounds=site.study.num_rounds,
        nominal_examples=site.settings.declared_examples,
    )
    with site.open_ledger() as ledger:
        after_round = compute_epsilon_adaptive([*ledger.history(), plan.round_spend], policy.delta)
        if after_round > policy.epsilon_budget and ledger.load_plan(request.run) is None:
            raise BudgetExceededError(
                epsilon_spent=ledger.spent(), epsilon_budget=policy.epsilon_budget, epsilon_requested=after_round
            )
        ledger.store_plan(request.run, site.study.name, plan)
    return plan


def _train_plainly(site: Site, request: Request, received: Arrays) -> TrainReply:
    model = _load_model(site, received)
    generator = round_generator(site.study.seed, site.name, request.server_round)
    train(model, _load_training_examples(site), site.study.training, generator)
    return TrainReply(site=site.name, arrays=_state(model), num_examples=site.settings.declared_examples, spent=None)


def _train_privately(site: Site, request: Request, received: Arrays) -> TrainReply:
    """Charge, train, store, settle; in this order a crash anywhere leaves no release unpaid and none paid twice."""
    run, server_round, outbox = request.run, request.server_round, Outbox(site.folder)
    with outbox.locked(run), site.open_ledger() as ledger:
        plan = ledger.load_plan(run)
        if plan is None:
            _refuse(RefusalCode.INVALID_REQUEST, f"run {run!r} has no privacy plan; it is made before round 1")
        if (last := outbox.last(run)) is not None:
            made_in, made = last
            _settle_made(ledger, run, made_in, site.study.name, plan)
            if made_in == server_round:
                return made
        examples = _load_training_examples(site)
        model = _load_model(site, received)
        ledger.reserve(run=run, server_round=server_round, study=site.study.name, plan=plan)
        steps = train_with_privacy(model, examples, site.study.training, plan)
        spent = PrivacySpent(epsilon=ledger.spent_by_run(run, delta=plan.delta), delta=plan.delta, steps=steps)
        reply = TrainReply(
            site=site.name, arrays=_state(model), num_examples=site.settings.declared_examples, spent=spent
        )
        outbox.put(run, server_round, reply, spent)
        ledger.settle(run=run, server_round=server_round, steps_run=steps)
    return reply


def _settle_made(ledger: Ledger, run: str, made_in: int, study: str, plan: PrivacyPlan) -> None:
    """Finish what a crash between storing and settling left open; the process that trained may be gone."""
    charges = [entry for entry in ledger.entries() if (entry.run, entry.server_round) == (run, made_in)]
    if not charges or charges[-1].steps_run is None:
        ledger.reserve(run=run, server_round=made_in, study=study, plan=plan)
        ledger.settle(run=run, server_round=made_in, steps_run=plan.steps_per_round)


def _load_training_examples(site: Site) -> Examples:
    schema = site.study.data_schema
    examples = prepare(site.load_records().train, schema)
    policy = site.settings.policy
    check_trainable(examples, schema, min_examples=policy.min_examples, allow_one_class=site.study.is_private)
    return examples


def _load_held_out_examples(site: Site) -> Examples:
    examples = prepare(site.load_records().test, site.study.data_schema)
    if len(examples) < (fewest := site.settings.policy.min_examples):
        _refuse(
            RefusalCode.TOO_FEW_PATIENTS,
            f"{len(examples)} held-out records; policy.min-examples expects at least {fewest}",
        )
    return examples


def _build_model(site: Site) -> nn.Module:
    study = site.study
    return build_model(
        study.model,
        input_shape=study.data_schema.input_shape,
        num_outputs=num_outputs(study.num_classes),
        seed=study.seed,
    )


def _load_model(site: Site, received: Arrays) -> nn.Module:
    model = _build_model(site)
    expected = {name: (tuple(tensor.shape), str(tensor.numpy().dtype)) for name, tensor in model.state_dict().items()}
    if {name: (array.shape, str(array.dtype)) for name, array in received.items()} != expected:
        _refuse(
            RefusalCode.INVALID_REQUEST, "the received arrays are not the study's model; expected its names and shapes"
        )
    if bad := sorted(name for name, array in received.items() if not np.isfinite(array).all()):
        _refuse(RefusalCode.INVALID_REQUEST, f"the received arrays {bad} hold NaN or infinity; expected finite numbers")
    model.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in received.items()})
    return model


def _state(model: nn.Module) -> Arrays:
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in model.state_dict().items()}


def _refuse(code: RefusalCode, detail: str) -> NoReturn:
    raise RefusalError(code, detail)
