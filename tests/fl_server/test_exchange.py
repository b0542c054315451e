"""Replies are handed on as they arrive, each once, up to a deadline."""

import time
from collections.abc import Iterator

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

from fl_server.exchange import exchange
from fl_server.local_grid import LocalGrid


def _grid(seconds: dict[int, float]) -> LocalGrid:
    def answer(message: Message, context: Context) -> Message:
        time.sleep(seconds.get(context.node_id, 0.0))
        return Message(RecordDict({"config": ConfigRecord({"node": context.node_id})}), reply_to=message)

    return LocalGrid(answer, [{}, {}, {}], run_config={})


def _requests(grid: LocalGrid) -> list[Message]:
    return [Message(RecordDict(), node, "train") for node in grid.get_node_ids()]


@pytest.fixture
def quick() -> Iterator[LocalGrid]:
    grid = _grid({})
    yield grid
    grid.close()


def test_every_reply_comes_once_with_the_position_of_its_request(quick: LocalGrid) -> None:
    replies = list(exchange(quick, _requests(quick), timeout_seconds=5))

    nodes = {position: reply.content.config_records["config"]["node"] for position, reply in replies}
    assert len(replies) == 3
    assert nodes == {0: 1000, 1: 1001, 2: 1002}


def test_no_request_needs_no_waiting(quick: LocalGrid) -> None:
    started = time.monotonic()

    assert list(exchange(quick, [], timeout_seconds=60)) == []

    assert time.monotonic() - started < 1


def test_a_reply_is_handed_on_before_the_next_one_is_there() -> None:
    grid = _grid({1001: 0.4})
    replies = exchange(grid, _requests(grid), timeout_seconds=5)
    started = time.monotonic()

    next(replies)

    assert time.monotonic() - started < 0.35
    assert len(list(replies)) == 2
    grid.close()


def test_replies_after_the_deadline_are_given_up() -> None:
    grid = _grid({1001: 1.0})
    started = time.monotonic()

    replies = list(exchange(grid, _requests(grid), timeout_seconds=0.3))

    assert [position for position, _ in replies] == [0]
    assert time.monotonic() - started < 0.8
    grid.close()


def test_send_and_receive_gives_all_replies_at_once(quick: LocalGrid) -> None:
    assert len(list(quick.send_and_receive(_requests(quick), timeout=5))) == 3


def test_earlier_requests_are_waited_for_as_long_as_the_others_unless_it_is_not_enough() -> None:
    grid = _grid({1001: 0.3})
    first, slow, third = _requests(grid)
    (earlier,) = grid.push_messages([slow])

    quick = [place for place, _ in exchange(grid, [], timeout_seconds=5, earlier=[earlier])]
    all_of_them: list[int] = []
    for place, _ in exchange(
        grid, [first], timeout_seconds=5, earlier=[earlier], is_enough=lambda: len(all_of_them) > 1
    ):
        all_of_them.append(place)

    assert quick == []
    assert sorted(all_of_them) == [0, 1]
    assert [place for place, _ in exchange(grid, [third], timeout_seconds=5, earlier=["never"])] == [0]
    grid.close()


def test_an_earlier_request_that_is_not_answered_ends_with_the_deadline() -> None:
    grid = _grid({1001: 1.0})
    (earlier,) = grid.push_messages([_requests(grid)[1]])
    started = time.monotonic()

    assert list(exchange(grid, [], timeout_seconds=0.2, earlier=[earlier], is_enough=lambda: False)) == []

    assert time.monotonic() - started < 0.8
    grid.close()
