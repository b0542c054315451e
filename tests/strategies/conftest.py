"""Rounds of a strategy without a network: its own requests, and replies as a hospital's app would make them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from fl_contract.array_record import Arrays, from_array_record, to_array_record
from fl_contract.messages import ARRAYS, CONFIG, METRICS
from strategies.fedavg import FedAvg
from strategies.participation import Roster


@pytest.fixture(scope="module", autouse=True)
def task_identity() -> Iterator[None]:
    """Whose messages these are; Flower makes none without it."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_run_id", "_node_id", "_task_id"):
            patch.setattr(TaskIdentity, name, 1)
        yield


class NoGrid:
    """Stands for a grid with these nodes, which carries nothing."""

    def __init__(self, nodes: Iterable[int] = ()) -> None:
        self._nodes = list(nodes)

    def get_node_ids(self) -> list[int]:
        return self._nodes


def _grid_of(*nodes: int) -> Grid:
    return cast(Grid, NoGrid(nodes))


def _roster_of(*sites: str) -> Roster:
    return Roster(
        nodes={site: 1001 + number for number, site in enumerate(sites)}, trainers=tuple(sites), evaluators=tuple(sites)
    )


def _ask(strategy: FedAvg, model: Arrays, server_round: int = 1) -> dict[str, Message]:
    requests = strategy.configure_train(server_round, to_array_record(model), ConfigRecord(), _grid_of())
    return {str(request.content.config_records[CONFIG]["site"]): request for request in requests}


def _reply_to(
    request: Message, arrays: Arrays, num_examples: Any = 1, *, metrics: Mapping[str, Any] | None = None
) -> Message:
    site = request.content.config_records[CONFIG]["site"]
    records: dict[str, ArrayRecord | MetricRecord | ConfigRecord] = {
        ARRAYS: to_array_record(arrays),
        METRICS: MetricRecord({"num-examples": num_examples, **(metrics or {})}),
        CONFIG: ConfigRecord({"site": site}),
    }
    return Message(RecordDict(records), reply_to=request)


def _run_round(
    strategy: FedAvg,
    model: Arrays,
    answers: Mapping[str, Arrays],
    examples: Mapping[str, int] | None = None,
    *,
    server_round: int = 1,
) -> Arrays:
    requests = _ask(strategy, model, server_round)
    replies = (_reply_to(requests[site], arrays, (examples or {}).get(site, 1)) for site, arrays in answers.items())
    stepped, _ = strategy.aggregate_train(server_round, replies)
    assert stepped is not None
    return from_array_record(stepped)


@pytest.fixture
def grid_of() -> Callable[..., Grid]:
    """A grid with the given nodes."""
    return _grid_of


@pytest.fixture
def roster_of() -> Callable[..., Roster]:
    """Hospitals by name, at nodes 1001, 1002 and so on; all train and measure."""
    return _roster_of


@pytest.fixture
def ask() -> Callable[..., dict[str, Message]]:
    """A strategy's train requests by hospital."""
    return _ask


@pytest.fixture
def reply_to() -> Callable[..., Message]:
    """A hospital's reply to a request."""
    return _reply_to


@pytest.fixture
def run_round() -> Callable[..., Arrays]:
    """One round in which the given hospitals answer, in the given order; the new model."""
    return _run_round
