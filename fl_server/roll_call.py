"""Before round 1: which hospitals are there, and what each agrees to."""

import time
from collections.abc import Iterable

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fl_contract.errors import MessageError, QuorumError, RunError
from fl_contract.messages import CONFIG, PLAN, ROSTER, Request, SitePlan, read_roster, refusal_of_reply
from fl_contract.study import Study
from fl_server.exchange import exchange
from fl_server.run_record import Absence
from strategies.participation import Roster

LOOK_SECONDS = 0.5


def call_roster(grid: Grid, study: Study, request: Request) -> tuple[Roster, dict[str, Absence]]:
    """Ask every node for its hospitals, until enough are there.

    Returns:
        The hospitals, and the nodes that did not say theirs with the reason.

    Raises:
        QuorumError: Fewer hospitals than ``federation.min-sites`` before the deadline.
        RunError: Two nodes claim the same hospital.
    """
    timeout = study.federation.round_timeout_seconds
    deadline = time.monotonic() + timeout
    nodes: dict[str, int] = {}
    asked: set[int] = set()
    refusals: dict[str, Absence] = {}
    while True:
        new = sorted(set(grid.get_node_ids()) - asked)
        asked |= set(new)
        messages = [_message(request, node, ROSTER) for node in new]
        silent = Absence(code="deadline", reason=f"No answer within {timeout:g} s.")
        refusals |= {f"node {node}": silent for node in new}
        for position, reply in exchange(grid, messages, timeout_seconds=max(0.0, deadline - time.monotonic())):
            _take_in(reply, new[position], nodes, refusals)
        roster = _assign(nodes, study)
        if len(roster.trainers) >= study.federation.min_sites:
            return roster, refusals
        if time.monotonic() > deadline or (refusals and len(refusals) == len(asked)):
            raise QuorumError(_describe(roster.trainers, study, refusals))
        time.sleep(min(LOOK_SECONDS, timeout))


def _take_in(reply: Message, node: int, nodes: dict[str, int], refusals: dict[str, Absence]) -> None:
    if reply.has_error():
        refusals[f"node {node}"] = _absence(reply)
        return
    try:
        names = read_roster(reply)
    except MessageError as error:
        refusals[f"node {node}"] = Absence(code="unusable-reply", reason=str(error))
        return
    if claimed := sorted(set(names) & set(nodes)):
        raise RunError(f"hospitals {claimed} are claimed by two nodes; expected one node for each hospital")
    nodes |= dict.fromkeys(names, node)
    del refusals[f"node {node}"]


def call_plans(
    grid: Grid, study: Study, request: Request, roster: Roster
) -> tuple[dict[str, SitePlan], dict[str, Absence]]:
    """Ask every hospital what it will do; one that does not agree neither trains nor measures.

    Returns:
        The plan of each that agrees, and why the others do not.

    Raises:
        QuorumError: Fewer that train agree than ``federation.min-sites``.
    """
    sites = sorted({*roster.trainers, *roster.evaluators})
    messages = [_message(_for_site(request, site), roster.nodes[site], PLAN) for site in sites]
    plans: dict[str, SitePlan] = {}
    timeout = study.federation.round_timeout_seconds
    refused = {site: Absence(code="deadline", reason=f"No answer within {timeout:g} s.") for site in sites}
    for position, reply in exchange(grid, messages, timeout_seconds=timeout):
        site = sites[position]
        try:
            if reply.has_error():
                refused[site] = _absence(reply)
            else:
                plans[site] = _checked_plan(reply, site, study)
                del refused[site]
        except MessageError as error:
            refused[site] = Absence(code="unusable-reply", reason=str(error))
    trainers = set(plans) & set(roster.trainers)
    if len(trainers) < study.federation.min_sites:
        raise QuorumError(_describe(trainers, study, refused))
    return plans, refused


def _assign(nodes: dict[str, int], study: Study) -> Roster:
    hospitals = tuple(sorted(name for name in nodes if name != "pooled"))
    trainers = study.simulation.trainers
    chosen = hospitals if trainers == "all" else tuple(name for name in nodes if name == trainers)
    return Roster(nodes=nodes, trainers=chosen, evaluators=hospitals)


def _checked_plan(reply: Message, site: str, study: Study) -> SitePlan:
    plan = SitePlan.from_message(reply)
    if plan.site != site:
        raise MessageError(f"the plan names site {plan.site!r}; expected {site!r}")
    if (plan.noise_multiplier > 0) != study.is_private:
        raise MessageError(f"noise-multiplier={plan.noise_multiplier}; expected above 0 in a private study, else 0")
    return plan


def _for_site(request: Request, site: str) -> Request:
    return Request(run=request.run, fingerprint=request.fingerprint, site=site)


def _message(request: Request, node: int, message_type: str) -> Message:
    config: ConfigRecord = request.to_config()
    return Message(RecordDict({CONFIG: config}), node, message_type, group_id="0")


def _describe(agreed: Iterable[str], study: Study, refused: dict[str, Absence]) -> str:
    names = sorted(agreed)
    reasons = [f"{site}: {absence.code} ({absence.reason})" for site, absence in sorted(refused.items())]
    return (
        f"before round 1: {len(names)} hospitals take part {names}; expected at least {study.federation.min_sites} "
        f"(federation.min-sites). " + "; ".join(reasons)
    )


def _absence(reply: Message) -> Absence:
    code, reason = refusal_of_reply(reply)
    return Absence(code=code, reason=reason)
