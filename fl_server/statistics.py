"""Before round 1: statistics of all hospitals' features together become part of the model."""

from collections.abc import Sequence

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fl_contract.array_record import Arrays
from fl_contract.errors import MessageError, RunError
from fl_contract.features import Column
from fl_contract.messages import CONFIG, STATISTICS, Request, read_statistics, refusal_of_reply
from fl_contract.statistics import FeatureStatistics
from fl_contract.study import STANDARDISE, Study
from fl_server.exchange import exchange
from strategies.participation import Roster


def standardise_by_all(model: Arrays, grid: Grid, study: Study, request: Request, roster: Roster) -> Arrays:
    """The model with the statistics of all hospitals that train; as it is where the study needs none.

    Raises:
        RunError: A hospital gives none: a model standardised by some hospitals would fit the others badly. Or no
            hospital has enough values of a feature.
    """
    layer, columns = study.standardise(), study.data_schema.columns
    if layer is None:
        return model
    sites = sorted(roster.trainers)
    requests = [_request(request, site, roster.nodes[site]) for site in sites]
    received: dict[str, FeatureStatistics] = {}
    for position, reply in exchange(grid, requests, timeout_seconds=study.federation.round_timeout_seconds):
        site = sites[position]
        if reply.has_error():
            code, sentence = refusal_of_reply(reply)
            raise RunError(f"before round 1: {site} gives no statistics of its features: {code} ({sentence})")
        try:
            received[site] = read_statistics(reply, columns)
        except MessageError as error:
            raise RunError(f"before round 1: the statistics of {site} cannot be used; {error}") from error
    if silent := sorted(set(sites) - set(received)):
        raise RunError(f"before round 1: {silent} sent no statistics before the deadline; expected all that train")
    statistics = FeatureStatistics.merge(received[site] for site in sites)
    _check_counts(statistics, columns)
    return model | {f"{STANDARDISE}.{name}": array for name, array in layer.buffers_from(statistics).items()}


def _check_counts(statistics: FeatureStatistics, columns: Sequence[Column]) -> None:
    pairs = zip(columns, statistics.counts, strict=True)
    if unknown := [column.name for column, count in pairs if column.needs_statistics and count == 0]:
        raise RunError(
            f"before round 1: no hospital has enough values of {unknown} to say a statistic (policy.min-count); "
            "expected some; leave these features out of the study"
        )


def _request(request: Request, site: str, node: int) -> Message:
    config: ConfigRecord = Request(run=request.run, fingerprint=request.fingerprint, site=site).to_config()
    return Message(RecordDict({CONFIG: config}), node, STATISTICS, group_id="0")
