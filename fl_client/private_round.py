"""A private round from the charge to the reply: the only place that trains under the ledger.

    charge      the ledger holds the round's steps before anything of a patient is used
    train       by the steps that were granted
    store       the reply lies in the outbox, durably
    settle      the charge is that of the steps that ran
    send        through the gate

In this order a crash anywhere leaves no release unpaid and none paid twice. A request that comes again finds the stored
reply, settles its charge if a crash left that open, and sends the same bytes.
"""

from flwr.app import RecordDict

from fl_client.inputs import load_model, make_half, outgoing_arrays, privacy_units, record_contents, training_examples
from fl_client.outbox import Outbox
from fl_client.policy import check_plan
from fl_client.reply_coding import release_reply
from fl_client.site import Site
from fl_client.strategy_state import StrategyState
from fl_client.training import Recipe, train_with_privacy
from fl_contract.array_record import Arrays
from fl_contract.errors import RefusalCode, RefusalError
from fl_contract.messages import PrivacySpent, Request, TrainReply
from privacy.errors import LedgerError
from privacy.ledger import Ledger
from privacy.plan import PrivacyPlan


def answer_private_round(site: Site, request: Request, received: Arrays, control: Arrays) -> RecordDict:
    """Train one round with differential privacy, or send again what was made for it.

    Raises:
        RefusalError: The run has no plan, or one that the policy no longer allows; the model or patients are not fit.
        BudgetExceededError: Not one step of the round fits the budget.
        LedgerError: The ledger cannot be used, or knows less than the outbox.
        DisclosureError: The gate stopped the reply.
    """
    run, server_round, outbox = request.run, request.server_round, Outbox(site.folder)
    with outbox.locked(run), site.open_ledger() as ledger:
        plan = ledger.load_plan(run)
        if plan is None:
            raise RefusalError(
                RefusalCode.INVALID_REQUEST, f"run {run!r} has no privacy plan; it is made before round 1"
            )
        check_plan(site.settings, plan)
        reply = _reply_made(outbox, ledger, run, server_round)
        if reply is None:
            reply, spent = _make_reply(site, request, (received, control), plan, ledger)
            outbox.put(run, server_round, reply, spent)
            ledger.settle(run=run, server_round=server_round, steps_run=spent.steps)
    return release_reply(site, request, reply, received)


def _reply_made(outbox: Outbox, ledger: Ledger, run: str, server_round: int) -> TrainReply | None:
    """The reply that was stored for this round; whatever round it is of, its charge is settled now if a crash left it.

    The process that trained may be gone, so this one takes the round over. A stored reply is of all granted steps.
    """
    last = outbox.last(run)
    if last is None:
        return None
    made_in, made = last
    charges = [entry for entry in ledger.entries() if (entry.run, entry.server_round) == (run, made_in)]
    if not charges:
        raise LedgerError(f"run {run!r} round {made_in} has a stored reply and no charge; nothing is sent")
    if charges[-1].steps_run is None:
        ledger.take_over(run=run, server_round=made_in)
        ledger.settle(run=run, server_round=made_in, steps_run=charges[-1].steps_reserved)
    return made if made_in == server_round else None


def _make_reply(
    site: Site, request: Request, sent: tuple[Arrays, Arrays], plan: PrivacyPlan, ledger: Ledger
) -> tuple[TrainReply, PrivacySpent]:
    """Charge the round, then train it from the model, and the control, that were sent."""
    run, study = request.run, site.study
    records = site.load_records().train
    examples, units = training_examples(site, records), privacy_units(site, records)
    model = load_model(site, sent[0])
    half = make_half(site, request, model, sent[1])
    granted = ledger.reserve(
        run=run,
        server_round=request.server_round,
        study=study.name,
        plan=plan,
        fingerprint=ledger.fingerprint(record_contents(records)),
    )
    recipe = Recipe(task=study.task, settings=study.training, half=half)
    steps = train_with_privacy(model, examples, units, recipe, plan, granted.spend.steps)
    StrategyState(site.folder, run).keep(request.server_round, half.state())
    spent = PrivacySpent(epsilon=ledger.spent_by_run(run, delta=plan.delta), delta=plan.delta, steps=steps)
    reply = TrainReply(
        site=site.name,
        arrays=outgoing_arrays(site, model, half),
        num_examples=site.settings.declared_examples,
        spent=spent,
    )
    return reply, spent
