"""A late reply becomes an update of the current model, after the same checks as any other."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict

from fl_contract.array_record import Arrays, from_array_record, to_array_record
from fl_contract.errors import ReplyError
from fl_contract.messages import ARRAYS, CONFIG, METRICS, TRAIN, Request
from fl_server.late_replies import MAX_STALENESS, LateReplies, LateReply
from fl_server.local_grid import FIRST_NODE, LocalGrid

SENT: Arrays = {
    "weight": np.array([1.0, 2.0], np.float32),
    "running_var": np.array([1.0], np.float32),
    "num_batches_tracked": np.array(10),
}
CURRENT: Arrays = {
    "weight": np.array([5.0, 5.0], np.float32),
    "running_var": np.array([0.1], np.float32),
    "num_batches_tracked": np.array(30),
}
RUN = Request(run="run", fingerprint="f")


@pytest.fixture(autouse=True)
def grid() -> Iterator[LocalGrid]:
    """Two nodes that send the model back as it came."""

    def echo(message: Message, context: Context) -> Message:
        return Message(RecordDict({ARRAYS: message.content.array_records[ARRAYS]}), reply_to=message)

    local = LocalGrid(echo, [{}, {}], run_config={})
    yield local
    local.close()


def request_of(site: str, server_round: int, arrays: Arrays = SENT, local_steps: int | None = None) -> Message:
    request = Request(run="run", fingerprint="f", site=site, server_round=server_round, local_steps=local_steps)
    node = FIRST_NODE + (site == "b")
    return Message(RecordDict({ARRAYS: to_array_record(arrays), CONFIG: request.to_config()}), node, TRAIN)


def late_of(arrays: Arrays) -> LateReply:
    request = request_of("a", 2)
    content = RecordDict({
        ARRAYS: to_array_record(arrays),
        METRICS: MetricRecord({"num-examples": 7}),
        CONFIG: ConfigRecord({"site": "a"}),
    })  # fmt: skip
    return LateReply(site="a", server_round=2, request=request, reply=Message(content, reply_to=request))


def test_trained_arrays_move_and_buffers_are_taken_as_they_are() -> None:
    late = late_of({
        "weight": np.array([1.5, 1.0], np.float32),
        "running_var": np.array([0.25], np.float32),
        "num_batches_tracked": np.array(12),
    })  # fmt: skip

    fitted = LateReplies(buffer_names=("running_var", "num_batches_tracked")).fit(late, CURRENT)

    arrays = from_array_record(fitted.content.array_records[ARRAYS])
    assert arrays["weight"].tolist() == [5.5, 4.0]
    assert arrays["running_var"].tolist() == [0.25]  # 0.1 + (0.25 - 1) would be no variance
    assert arrays["num_batches_tracked"] == 12
    assert {name: array.dtype for name, array in arrays.items()} == {n: each.dtype for n, each in SENT.items()}
    assert fitted.content[METRICS] == late.reply.content[METRICS]


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda arrays: {**arrays, "weight": np.array([np.nan, 1], np.float32)}, "holds NaN or infinity"),
        (lambda arrays: {**arrays, "weight": np.zeros(3, np.float32)}, r"has shape \[3\]"),
        (lambda arrays: {**arrays, "weight": np.zeros(2)}, "has type float64"),
        (lambda arrays: {"weight": arrays["weight"]}, "are missing or not expected"),
    ],
)
def test_a_late_reply_that_breaks_a_rule_is_not_folded(change: Callable[[Arrays], Arrays], rule: str) -> None:
    with pytest.raises(ReplyError, match=rule):
        LateReplies().fit(late_of(change(SENT)), CURRENT)


def exchange_all(late: LateReplies, grid: LocalGrid, requests: list[Message]) -> list[int]:
    return [position for position, _ in late.exchange(grid, requests, timeout_seconds=5)]


def test_replies_to_earlier_rounds_are_kept_until_they_are_taken(grid: LocalGrid) -> None:
    late, request = LateReplies(), request_of("a", 2)
    list(grid.push_messages([request]))
    late.expect("a", request)

    positions = exchange_all(late, grid, [request_of("b", 2)])

    assert positions == [0]
    assert late.sites == {"a"}
    ((site, number),) = [(each.site, each.server_round) for each in late.take()]
    assert (site, number, late.sites, late.num_arrived) == ("a", 2, frozenset(), 0)


def test_what_is_too_old_is_given_up_but_not_what_has_arrived(grid: LocalGrid) -> None:
    late, request = LateReplies(), request_of("a", 2)
    list(grid.push_messages([request]))
    late.expect("a", request)
    late.expect("b", request_of("b", 3))
    exchange_all(late, grid, [request_of("a", 3)])

    kept = late.give_up(3 + MAX_STALENESS)
    given_up = late.give_up(3 + MAX_STALENESS + 1)

    assert (kept, given_up, late.sites) == ([], ["b"], frozenset({"a"}))


def test_a_resumed_run_sends_what_was_awaited_again_with_the_model_of_its_round(grid: LocalGrid) -> None:
    late = LateReplies()
    late.expect("a", request_of("a", 2, local_steps=3))
    late.expect("b", request_of("b", 3, CURRENT))
    late.expect("gone", request_of("a", 2))
    again = LateReplies()

    again.load_state(late.state(), late.arrays(), RUN, {"a": FIRST_NODE, "b": FIRST_NODE + 1})
    assert exchange_all(again, grid, [request_of("a", 4)]) == [0]
    while again.num_arrived < 2:
        exchange_all(again, grid, [request_of("a", 4)])

    replies = {each.site: each for each in again.take()}
    models = {site: from_array_record(each.reply.content.array_records[ARRAYS]) for site, each in replies.items()}
    assert models["a"]["weight"].tolist() == SENT["weight"].tolist()
    assert models["b"]["weight"].tolist() == CURRENT["weight"].tolist()
    asked = {site: Request.from_message(each.request) for site, each in replies.items()}
    assert {site: (each.server_round, each.local_steps) for site, each in asked.items()} == {
        "a": (2, 3),
        "b": (3, None),
    }
