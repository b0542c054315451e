"""Before round 1: statistics of all hospitals' features together become part of the model."""

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fl_contract.errors import MessageError, RunError
from fl_contract.messages import CONFIG, STATISTICS, Arrays, Request, read_statistics, refusal_of_reply
from fl_contract.schema import TableSchema
from fl_contract.statistics import FeatureSums
from fl_contract.study import STANDARDISE, Study
from fl_server.exchange import exchange
from strategies.participation import Roster


def standardise_by_all(model: Arrays, grid: Grid, study: Study, request: Request, roster: Roster) -> Arrays:
    """The model with the statistics of all hospitals that train; as it is where the study needs none.

    Raises:
        RunError: A hospital gives none: a model standardised by some hospitals would fit the others badly. Or no
            hospital has enough values of a feature.
    """
    layer, schema = study.standardise(), study.data_schema
    if layer is None or not isinstance(schema, TableSchema):
        return model
    sites = sorted(roster.trainers)
    requests = [_request(request, site, roster.nodes[site]) for site in sites]
    received: dict[str, FeatureSums] = {}
    for position, reply in exchange(grid, requests, timeout_seconds=study.federation.round_timeout_seconds):
        site = sites[position]
        if reply.has_error():
            code, sentence = refusal_of_reply(reply)
            raise RunError(f"before round 1: {site} gives no statistics of its features: {code} ({sentence})")
        try:
            received[site] = read_statistics(reply, num_features=len(schema.features))
        except MessageError as error:
            raise RunError(f"before round 1: the statistics of {site} cannot be used; {error}") from error
    if silent := sorted(set(sites) - set(received)):
        raise RunError(f"before round 1: {silent} sent no statistics before the deadline; expected all that train")
    sums = FeatureSums.merge(received[site] for site in sites)
    _check_counts(sums, schema)
    return model | {f"{STANDARDISE}.{name}": array for name, array in layer.buffers_from(sums).items()}


def _check_counts(sums: FeatureSums, schema: TableSchema) -> None:
    pairs = zip(schema.features, sums.counts, strict=True)
    if unknown := [feature.name for feature, count in pairs if feature.needs_statistics and count == 0]:
        raise RunError(
            f"before round 1: no hospital has enough values of {unknown} to say a statistic (policy.min-count); "
            "expected some; leave these features out of the study"
        )


def _request(request: Request, site: str, node: int) -> Message:
    config: ConfigRecord = Request(run=request.run, fingerprint=request.fingerprint, site=site).to_config()
    return Message(RecordDict({CONFIG: config}), node, STATISTICS, group_id="0")
