"""The only place where a reply takes the form that the study's codec gives it, on its way to the gate.

Coding follows the privacy noise and the outbox: a repeated round codes the same model from the same residual, and sends
the same bytes.
"""

from flwr.app import ArrayRecord, RecordDict

from fl_client.disclosure import TRAIN_WITH_LOSS, release
from fl_client.site import Site
from fl_client.strategy_state import StrategyState
from fl_contract.array_record import Arrays
from fl_contract.coded_update import UpdateForm, codec_seed, update_form
from fl_contract.errors import RefusalCode, RefusalError
from fl_contract.messages import TRAIN, Request, TrainReply

_RESIDUAL = "residual"


def release_reply(site: Site, request: Request, reply: TrainReply, received: Arrays) -> RecordDict:
    """A train reply in the study's form, through the gate.

    Args:
        site: That trained.
        request: What was asked.
        reply: With the trained model.
        received: The model that was sent.

    Raises:
        RefusalError: INTERNAL: the codec cannot hold the update, as where the training diverges.
        DisclosureError: The gate stopped the reply.
    """
    form = update_form(site.study)
    coded = None if form is None else _code(form, site, request, reply, received)
    kind = TRAIN if reply.loss is None else TRAIN_WITH_LOSS
    content = reply.to_content(coded)
    return release(content, kind, request, folder=site.folder, study=site.study.name, model=received, form=form)


def _code(form: UpdateForm, site: Site, request: Request, reply: TrainReply, received: Arrays) -> ArrayRecord:
    kept = StrategyState(site.folder, request.run, owner="codec")
    residual = kept.before(request.server_round).get(_RESIDUAL)
    seed = codec_seed(site.study, site=site.name, server_round=request.server_round)
    try:
        coded, residual = form.encode(reply.arrays, received, residual, seed)
    except ValueError as error:
        raise RefusalError(RefusalCode.INTERNAL, f"communication.codec: {error}") from error
    if residual is not None:
        kept.keep(request.server_round, {_RESIDUAL: residual})
    return coded
